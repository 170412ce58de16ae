package config

import "github.com/ambit-mesh/ambit/waypoint/strict"

// supported are the fields that are understood, by message; those of RouteConfiguration are package route's. The second list of
// each are those that are left aside: they name things for statistics, tune sockets and buffers that are not as Envoy's are, or
// say what this proxy does in any case.
var supported = strict.Table{
	"envoy.config.listener.v3.Listener": strict.Known(`name address additional_addresses filter_chains filter_chain_matcher
		listener_filters listener_filters_timeout internal_listener`, `stat_prefix traffic_direction metadata connection_balance_config
		per_connection_buffer_limit_bytes continue_on_listener_filters_timeout tcp_backlog_size
		enable_reuse_port ignore_global_conn_limit bind_to_port`),
	"envoy.config.listener.v3.Listener.InternalListenerConfig":                strict.Known(``, ``),
	"envoy.config.listener.v3.Listener.ConnectionBalanceConfig":               strict.Known(``, `exact_balance`),
	"envoy.config.listener.v3.Listener.ConnectionBalanceConfig.ExactBalance":  strict.Known(``, ``),
	"envoy.config.listener.v3.AdditionalAddress":                              strict.Known(`address`, ``),
	"envoy.config.listener.v3.ListenerFilter":                                 strict.Known(`name typed_config`, `filter_disabled`),
	"envoy.config.listener.v3.ListenerFilterChainMatchPredicate":              strict.Known(``, `or_match and_match not_match any_match destination_port_range`),
	"envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet":     strict.Known(``, `rules`),
	"envoy.config.listener.v3.FilterChain":                                    strict.Known(`name filters transport_socket`, `metadata transport_socket_connect_timeout`),
	"envoy.config.listener.v3.Filter":                                         strict.Known(`name typed_config`, ``),
	"envoy.extensions.filters.listener.original_dst.v3.OriginalDst":           strict.Known(``, ``),
	"envoy.config.core.v3.Address":                                            strict.Known(`socket_address envoy_internal_address`, ``),
	"envoy.config.core.v3.SocketAddress":                                      strict.Known(`protocol address port_value`, `ipv4_compat`),
	"envoy.config.core.v3.EnvoyInternalAddress":                               strict.Known(`server_listener_name endpoint_id`, ``),
	"envoy.config.core.v3.TransportSocket":                                    strict.Known(`name typed_config`, ``),
	"envoy.config.core.v3.TypedExtensionConfig":                               strict.Known(`name typed_config`, ``),
	"envoy.config.core.v3.Metadata":                                           strict.Known(``, `filter_metadata typed_filter_metadata`),
	"envoy.config.core.v3.ConfigSource":                                       strict.Known(`ads self`, `resource_api_version initial_fetch_timeout`),
	"envoy.config.core.v3.AggregatedConfigSource":                             strict.Known(``, ``),
	"envoy.config.core.v3.SelfConfigSource":                                   strict.Known(``, `transport_api_version`),
	"xds.core.v3.TypedExtensionConfig":                                        strict.Known(`name typed_config`, ``),
	"xds.core.v3.CidrRange":                                                   strict.Known(`address_prefix prefix_len`, ``),
	"xds.type.matcher.v3.Matcher":                                             strict.Known(`matcher_tree on_no_match`, ``),
	"xds.type.matcher.v3.Matcher.MatcherTree":                                 strict.Known(`input exact_match_map custom_match`, ``),
	"xds.type.matcher.v3.Matcher.MatcherTree.MatchMap":                        strict.Known(`map`, ``),
	"xds.type.matcher.v3.Matcher.OnMatch":                                     strict.Known(`matcher action`, ``),
	"xds.type.matcher.v3.IPMatcher":                                           strict.Known(`range_matchers`, ``),
	"xds.type.matcher.v3.IPMatcher.IPRangeMatcher":                            strict.Known(`ranges on_match`, ``),
	"xds.type.matcher.v3.ServerNameMatcher":                                   strict.Known(`domain_matchers`, ``),
	"xds.type.matcher.v3.ServerNameMatcher.DomainMatcher":                     strict.Known(`domains on_match`, ``),
	"envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":         strict.Known(``, `initial_read_buffer_size`),
	"envoy.extensions.matching.common_inputs.network.v3.ServerNameInput":      strict.Known(``, ``),
	"envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput":   strict.Known(``, ``),
	"envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput": strict.Known(``, ``),
	"envoy.extensions.filters.network.http_connection_manager.v3.Rds":         strict.Known(`config_source route_config_name`, ``),
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter":  strict.Known(`name typed_config`, ``),
	"envoy.extensions.filters.http.router.v3.Router":                          strict.Known(`suppress_envoy_headers`, `dynamic_stats start_child_span suppress_grpc_request_failure_code_stats`),
	"envoy.extensions.filters.http.cors.v3.Cors":                              strict.Known(``, ``),
	"envoy.extensions.filters.http.rbac.v3.RBAC":                              strict.Known(`rules shadow_rules shadow_rules_stat_prefix`, `rules_stat_prefix track_per_rule_stats`),
	"envoy.extensions.filters.network.rbac.v3.RBAC":                           strict.Known(`rules shadow_rules`, `stat_prefix shadow_rules_stat_prefix`),
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz": strict.Known(`grpc_service http_service transport_api_version failure_mode_allow with_request_body
		clear_route_cache status_on_error filter_enabled_metadata stat_prefix allowed_headers metadata_context_namespaces`, `charge_cluster_response_stats`),
	"envoy.extensions.filters.http.ext_authz.v3.BufferSettings":              strict.Known(`max_request_bytes allow_partial_message pack_as_bytes`, ``),
	"envoy.extensions.filters.http.ext_authz.v3.HttpService":                 strict.Known(`server_uri path_prefix authorization_request authorization_response`, ``),
	"envoy.extensions.filters.http.ext_authz.v3.AuthorizationRequest":        strict.Known(`headers_to_add`, ``),
	"envoy.extensions.filters.http.ext_authz.v3.AuthorizationResponse":       strict.Known(`allowed_upstream_headers allowed_client_headers allowed_client_headers_on_success`, ``),
	"envoy.type.v3.HttpStatus":                                               strict.Known(`code`, ``),
	"envoy.type.matcher.v3.ListStringMatcher":                                strict.Known(`patterns`, ``),
	"envoy.config.rbac.v3.RBAC":                                              strict.Known(`action policies`, ``),
	"envoy.config.rbac.v3.Policy":                                            strict.Known(`permissions principals`, ``),
	"envoy.config.rbac.v3.Permission":                                        strict.Known(`and_rules or_rules not_rule any header url_path destination_ip destination_port destination_port_range requested_server_name uri_template`, ``),
	"envoy.config.rbac.v3.Permission.Set":                                    strict.Known(`rules`, ``),
	"envoy.config.rbac.v3.Principal":                                         strict.Known(`and_ids or_ids not_id any authenticated filter_state direct_remote_ip remote_ip header url_path sourced_metadata`, ``),
	"envoy.config.rbac.v3.SourcedMetadata":                                   strict.Known(`metadata_matcher metadata_source`, ``),
	"envoy.type.matcher.v3.MetadataMatcher":                                  strict.Known(`filter path value invert`, ``),
	"envoy.type.matcher.v3.MetadataMatcher.PathSegment":                      strict.Known(`key`, ``),
	"envoy.type.matcher.v3.ValueMatcher":                                     strict.Known(`string_match list_match or_match`, ``),
	"envoy.type.matcher.v3.ListMatcher":                                      strict.Known(`one_of`, ``),
	"envoy.type.matcher.v3.OrMatcher":                                        strict.Known(`value_matchers`, ``),
	"envoy.config.rbac.v3.Principal.Set":                                     strict.Known(`ids`, ``),
	"envoy.config.rbac.v3.Principal.Authenticated":                           strict.Known(`principal_name`, ``),
	"envoy.config.route.v3.HeaderMatcher":                                    strict.Known(`name present_match string_match`, ``),
	"envoy.type.matcher.v3.PathMatcher":                                      strict.Known(`path`, ``),
	"envoy.type.matcher.v3.FilterStateMatcher":                               strict.Known(`key string_match`, ``),
	"envoy.type.matcher.v3.StringMatcher":                                    strict.Known(`exact prefix suffix contains safe_regex ignore_case`, ``),
	"envoy.type.matcher.v3.RegexMatcher":                                     strict.Known(`regex`, `google_re2`),
	"envoy.type.matcher.v3.RegexMatcher.GoogleRE2":                           strict.Known(``, ``),
	"envoy.type.v3.Int32Range":                                               strict.Known(`start end`, ``),
	"envoy.config.core.v3.CidrRange":                                         strict.Known(`address_prefix prefix_len`, ``),
	"envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig":     strict.Known(`path_template`, ``),
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":                 strict.Known(`cluster weighted_clusters idle_timeout max_downstream_connection_duration max_connect_attempts tunneling_config hash_policy access_log`, `stat_prefix`),
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster": strict.Known(`clusters`, ``),
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig": strict.Known(``, `hostname headers_to_add propagate_response_headers propagate_response_trailers`),
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing": strict.Known(`random_sampling
		overall_sampling max_path_tag_length custom_tags provider spawn_upstream_span`, `client_sampling verbose`),

	"envoy.config.accesslog.v3.AccessLog":                             strict.Known(`filter typed_config`, `name`),
	"envoy.config.accesslog.v3.AccessLogFilter":                       strict.Known(`extension_filter`, ``),
	"envoy.config.accesslog.v3.ExtensionFilter":                       strict.Known(`typed_config`, `name`),
	"envoy.extensions.access_loggers.file.v3.FileAccessLog":           strict.Known(`path`, ``),
	"envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter": strict.Known(`expression`, ``),

	"envoy.config.trace.v3.Tracing.Http":         strict.Known(`name typed_config`, ``),
	"envoy.config.trace.v3.OpenTelemetryConfig":  strict.Known(`grpc_service http_service service_name`, `max_cache_size`),
	"envoy.config.core.v3.GrpcService":           strict.Known(`envoy_grpc timeout`, ``),
	"envoy.config.core.v3.GrpcService.EnvoyGrpc": strict.Known(`cluster_name authority`, ``),
	"envoy.config.core.v3.HttpService":           strict.Known(`http_uri request_headers_to_add`, ``),
	"envoy.config.core.v3.HttpUri":               strict.Known(`uri cluster timeout`, ``),
	"envoy.config.core.v3.HeaderValueOption":     strict.Known(`header`, `append_action`),
	"envoy.config.core.v3.HeaderValue":           strict.Known(`key value`, ``),
	"envoy.type.tracing.v3.CustomTag":            strict.Known(`tag literal request_header`, ``),
	"envoy.type.tracing.v3.CustomTag.Literal":    strict.Known(`value`, ``),
	"envoy.type.tracing.v3.CustomTag.Header":     strict.Known(`name default_value`, ``),

	"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication": strict.Known(`providers rules bypass_cors_preflight`, `stat_prefix`),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider": strict.Known(`issuer audiences local_jwks forward from_headers from_params from_cookies
		forward_payload_header pad_forward_payload_header claim_to_headers payload_in_metadata normalize_payload_in_metadata clock_skew_seconds`, `jwt_cache_config clear_route_cache`),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.NormalizePayload": strict.Known(`space_delimited_claims`, ``),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtCacheConfig":               strict.Known(``, `jwt_cache_size jwt_max_token_size`),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtHeader":                    strict.Known(`name value_prefix`, ``),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader":             strict.Known(`claim_name header_name`, ``),
	"envoy.extensions.filters.http.jwt_authn.v3.RequirementRule":              strict.Known(`match requires`, ``),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement":               strict.Known(`provider_name requires_any requires_all allow_missing`, ``),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementOrList":         strict.Known(`requirements`, ``),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementAndList":        strict.Known(`requirements`, ``),
	"envoy.config.route.v3.RouteMatch":                                        strict.Known(`prefix`, ``),

	"envoy.type.v3.Percent":           strict.Known(`value`, ``),
	"envoy.type.v3.FractionalPercent": strict.Known(`numerator denominator`, ``),
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight": strict.Known(`name weight`, ``),
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": strict.Known(`rds
		route_config http_filters common_http_protocol_options http_protocol_options http2_protocol_options server_name
		server_header_transformation max_request_headers_kb stream_idle_timeout request_headers_timeout use_remote_address
		generate_request_id upgrade_configs normalize_path merge_slashes path_with_escaped_slashes_action tracing access_log`,
		`stat_prefix represent_ipv4_remote_address_as_ipv4_mapped_ipv6 stream_error_on_invalid_http_message`),
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig": strict.Known(`upgrade_type
		enabled`, ``),
	"envoy.config.core.v3.HttpProtocolOptions": strict.Known(`idle_timeout max_headers_count max_response_headers_kb
		max_stream_duration headers_with_underscores_action max_requests_per_connection`, ``),
	"envoy.config.core.v3.Http1ProtocolOptions": strict.Known(``,
		`accept_http_10 allow_absolute_url enable_trailers override_stream_error_on_invalid_http_message use_balsa_parser allow_custom_methods`),
	"envoy.config.core.v3.Http2ProtocolOptions": strict.Known(`max_concurrent_streams`, `allow_connect
		hpack_table_size initial_stream_window_size initial_connection_window_size max_outbound_frames
		max_outbound_control_frames max_consecutive_inbound_frames_with_empty_payload max_inbound_priority_frames_per_stream
		max_inbound_window_update_frames_per_data_frame_sent override_stream_error_on_invalid_http_message`),

	"envoy.config.cluster.v3.Cluster": strict.Known(`name type eds_cluster_config connect_timeout lb_policy load_assignment
		typed_extension_protocol_options transport_socket_matches transport_socket metadata least_request_lb_config ring_hash_lb_config maglev_lb_config common_lb_config
		dns_lookup_family original_dst_lb_config circuit_breakers outlier_detection upstream_connection_options`, `alt_stat_name
		per_connection_buffer_limit_bytes cleanup_interval wait_for_warm_on_init track_cluster_stats ignore_health_on_host_removal
		respect_dns_ttl dns_refresh_rate dns_failure_refresh_rate`),
	"envoy.config.cluster.v3.Cluster.EdsClusterConfig":     strict.Known(`eds_config service_name`, ``),
	"envoy.config.cluster.v3.Cluster.TransportSocketMatch": strict.Known(`match transport_socket`, `name`),
	"envoy.config.cluster.v3.Cluster.LeastRequestLbConfig": strict.Known(`choice_count`, ``),
	"envoy.config.cluster.v3.Cluster.RingHashLbConfig":     strict.Known(`minimum_ring_size hash_function`, `maximum_ring_size`),
	"envoy.config.cluster.v3.Cluster.MaglevLbConfig":       strict.Known(`table_size`, ``),
	"envoy.config.cluster.v3.Cluster.OriginalDstLbConfig":  strict.Known(``, `upstream_port_override`),
	"envoy.config.cluster.v3.Cluster.CommonLbConfig": strict.Known(`healthy_panic_threshold locality_weighted_lb_config`,
		`update_merge_window`),
	"envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig": strict.Known(``, ``),
	"envoy.config.cluster.v3.CircuitBreakers":                                 strict.Known(`thresholds`, ``),
	"envoy.config.cluster.v3.CircuitBreakers.Thresholds": strict.Known(`max_connections max_pending_requests max_requests max_retries
		retry_budget`, `track_remaining`),
	"envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget": strict.Known(`budget_percent budget_interval min_retry_concurrency`, ``),
	"envoy.config.cluster.v3.OutlierDetection": strict.Known(`consecutive_5xx base_ejection_time max_ejection_percent
		enforcing_consecutive_5xx consecutive_gateway_failure enforcing_consecutive_gateway_failure
		split_external_local_origin_errors consecutive_local_origin_failure enforcing_consecutive_local_origin_failure
		max_ejection_time max_ejection_time_jitter always_eject_one_host enforcing_success_rate
		enforcing_failure_percentage enforcing_local_origin_success_rate`, `interval`),
	"envoy.config.cluster.v3.UpstreamConnectionOptions": strict.Known(`tcp_keepalive`, ``),
	"envoy.config.cluster.v3.TrackClusterStats":         strict.Known(``, `timeout_budgets request_response_sizes per_endpoint_stats`),
	"envoy.config.core.v3.TcpKeepalive":                 strict.Known(`keepalive_probes keepalive_time keepalive_interval`, ``),
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": strict.Known(`common_http_protocol_options explicit_http_config
		use_downstream_protocol_config`, ``),
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig": strict.Known(`http_protocol_options
		http2_protocol_options`, ``),
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig": strict.Known(`http_protocol_options
		http2_protocol_options`, ``),
	"envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer":             strict.Known(``, ``),
	"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext":           strict.Known(`common_tls_context sni`, ``),
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext":             strict.Known(`tls_params validation_context`, ``),
	"envoy.extensions.transport_sockets.tls.v3.TlsParameters":                strict.Known(`tls_minimum_protocol_version tls_maximum_protocol_version`, ``),
	"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext": strict.Known(`trusted_ca match_typed_subject_alt_names`, ``),
	"envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher":        strict.Known(`san_type matcher`, ``),
	"envoy.config.core.v3.DataSource":                                        strict.Known(`inline_string inline_bytes filename`, ``),
	"envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport": strict.Known(`transport_socket`,
		`passthrough_metadata`),
	"envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport.MetadataValueSource": strict.Known(``, `kind name`),
	"envoy.type.metadata.v3.MetadataKind":      strict.Known(``, `host cluster route request`),
	"envoy.type.metadata.v3.MetadataKind.Host": strict.Known(``, ``),

	"envoy.config.endpoint.v3.ClusterLoadAssignment": strict.Known(`cluster_name endpoints`, ``),
	"envoy.config.endpoint.v3.LocalityLbEndpoints": strict.Known(`locality lb_endpoints load_balancing_weight priority`,
		`metadata proximity`),
	"envoy.config.core.v3.Locality":       strict.Known(`region zone sub_zone`, ``),
	"envoy.config.endpoint.v3.LbEndpoint": strict.Known(`endpoint health_status metadata load_balancing_weight`, ``),
	"envoy.config.endpoint.v3.Endpoint":   strict.Known(`address`, `hostname observability_name`),

	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit":   strict.Known(``, `stat_prefix`), // virtual hosts have it
	"envoy.extensions.filters.http.fault.v3.HTTPFault":                  strict.Known(``, ``),            // routes have their own
	"envoy.extensions.filters.http.stateful_session.v3.StatefulSession": strict.Known(``, ``),

	"envoy.type.v3.HashPolicy":          strict.Known(`source_ip`, ``),
	"envoy.type.v3.HashPolicy.SourceIp": strict.Known(``, ``),
}

// tunnels are the fields that are understood beside those, in what describes tunnels: connect_terminate and connect_originate,
// the listeners and the cluster. Package hbone is what they describe; what they can say is at most as strict as what it does.
var tunnels = supported.With(strict.Table{
	"envoy.config.core.v3.KeepaliveSettings":   strict.Known(`interval timeout`, `interval_jitter connection_idle_interval`),
	"envoy.config.core.v3.HttpProtocolOptions": strict.Known(``, `idle_timeout max_headers_count`),
	"envoy.config.core.v3.Http2ProtocolOptions": strict.Known(`max_concurrent_streams connection_keepalive`, `allow_connect
		hpack_table_size initial_stream_window_size initial_connection_window_size max_outbound_frames
		max_outbound_control_frames max_consecutive_inbound_frames_with_empty_payload max_inbound_priority_frames_per_stream
		max_inbound_window_update_frames_per_data_frame_sent override_stream_error_on_invalid_http_message`),
	"envoy.extensions.filters.http.set_filter_state.v3.Config":             strict.Known(`on_request_headers`, ``),
	"envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue": strict.Known(`object_key`, `factory_key format_string read_only shared_with_upstream skip_if_empty`),
	"envoy.config.core.v3.SubstitutionFormatString":                        strict.Known(``, `text_format text_format_source omit_empty_values`),
	"envoy.config.core.v3.DataSource":                                      strict.Known(``, `inline_string inline_bytes`),
	"envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext": strict.Known(`common_tls_context require_client_certificate`,
		`prefer_client_ciphers disable_stateful_session_resumption`),
	"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext": strict.Known(`common_tls_context`, `sni`),
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext": strict.Known(`tls_certificate_sds_secret_configs
		combined_validation_context validation_context_sds_secret_config`, `tls_params alpn_protocols`),
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext": strict.Known(
		`validation_context_sds_secret_config`, `default_validation_context`),
	"envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": strict.Known(`name`, `sds_config`),
	"envoy.extensions.transport_sockets.tls.v3.TlsParameters":   strict.Known(``, `tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites`),
	"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext": strict.Known(``,
		`match_subject_alt_names match_typed_subject_alt_names`),
	"envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher": strict.Known(``, `san_type matcher`),
	"envoy.type.matcher.v3.StringMatcher":                             strict.Known(``, `exact prefix suffix safe_regex contains ignore_case`),
	"envoy.type.matcher.v3.RegexMatcher":                              strict.Known(``, `regex google_re2`),
	"envoy.type.matcher.v3.RegexMatcher.GoogleRE2":                    strict.Known(``, ``),

	// The route of connect_terminate, which only leads tunnels inside.
	"envoy.config.route.v3.RouteConfiguration":                      strict.Known(`virtual_hosts`, `name validate_clusters`),
	"envoy.config.route.v3.VirtualHost":                             strict.Known(`domains routes`, `name`),
	"envoy.config.route.v3.Route":                                   strict.Known(`match route`, `name`),
	"envoy.config.route.v3.RouteMatch":                              strict.Known(`connect_matcher`, ``),
	"envoy.config.route.v3.RouteMatch.ConnectMatcher":               strict.Known(``, ``),
	"envoy.config.route.v3.RouteAction":                             strict.Known(`cluster upgrade_configs`, `timeout`),
	"envoy.config.route.v3.RouteAction.UpgradeConfig":               strict.Known(`upgrade_type connect_config`, ``),
	"envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig": strict.Known(``, ``),
})
