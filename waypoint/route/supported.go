package route

import "github.com/ambit-mesh/ambit/waypoint/strict"

// supported are the fields that Compile understands, by message. The second list of each are those that it leaves aside:
// they name things for statistics and traces, or tune what this proxy does not have (runtime overrides).
var supported = strict.Table{
	"envoy.config.route.v3.RouteConfiguration": strict.Known(`name virtual_hosts request_headers_to_add request_headers_to_remove
		response_headers_to_add response_headers_to_remove most_specific_header_mutations_wins validate_clusters
		ignore_port_in_host_matching`, `max_direct_response_body_size_bytes metadata`),
	"envoy.config.route.v3.VirtualHost": strict.Known(`name domains routes request_headers_to_add request_headers_to_remove
		response_headers_to_add response_headers_to_remove typed_per_filter_config`, `metadata`),
	"envoy.config.route.v3.Route": strict.Known(`name match route redirect direct_response request_headers_to_add
		request_headers_to_remove response_headers_to_add response_headers_to_remove typed_per_filter_config`,
		`metadata decorator stat_prefix`),
	"envoy.config.route.v3.Decorator": strict.Known(``, `operation propagate`),
	"envoy.config.route.v3.RouteMatch": strict.Known(`prefix path safe_regex path_separated_prefix case_sensitive headers
		query_parameters grpc filter_state`, ``),
	"envoy.config.route.v3.HeaderMatcher": strict.Known(`name exact_match safe_regex_match range_match present_match prefix_match
		suffix_match contains_match string_match invert_match treat_missing_header_as_empty`, ``),
	"envoy.config.route.v3.QueryParameterMatcher": strict.Known(`name string_match present_match`, ``),
	"envoy.config.route.v3.RouteAction": strict.Known(`cluster weighted_clusters cluster_not_found_response_code prefix_rewrite
		regex_rewrite host_rewrite_literal host_rewrite_header append_x_forwarded_host timeout idle_timeout retry_policy
		request_mirror_policies upgrade_configs max_stream_duration hash_policy`, ``),
	"envoy.config.route.v3.RouteAction.HashPolicy":                      strict.Known(`header cookie connection_properties query_parameter terminal`, ``),
	"envoy.config.route.v3.RouteAction.HashPolicy.Header":               strict.Known(`header_name`, ``),
	"envoy.config.route.v3.RouteAction.HashPolicy.Cookie":               strict.Known(`name ttl path attributes`, ``),
	"envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute":      strict.Known(`name value`, ``),
	"envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties": strict.Known(`source_ip`, ``),
	"envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter":       strict.Known(`name`, ``),
	"envoy.config.route.v3.RouteAction.UpgradeConfig":                   strict.Known(`upgrade_type enabled`, ``),
	"envoy.config.route.v3.RouteAction.MaxStreamDuration":               strict.Known(`max_stream_duration grpc_timeout_header_max`, ``),
	"envoy.config.route.v3.RouteAction.RequestMirrorPolicy": strict.Known(`cluster runtime_fraction
		disable_shadow_host_suffix_append`, `trace_sampled`),
	"envoy.config.route.v3.WeightedCluster": strict.Known(`clusters`, `runtime_key_prefix total_weight`),
	"envoy.config.route.v3.WeightedCluster.ClusterWeight": strict.Known(`name weight request_headers_to_add
		request_headers_to_remove response_headers_to_add response_headers_to_remove host_rewrite_literal`, ``),
	"envoy.config.route.v3.RetryPolicy": strict.Known(`retry_on num_retries per_try_timeout
		retry_host_predicate retriable_status_codes retry_back_off`, `host_selection_retry_max_attempts`),
	"envoy.config.route.v3.RetryPolicy.RetryHostPredicate": strict.Known(`name typed_config`, ``),
	"envoy.config.route.v3.RetryPolicy.RetryBackOff":       strict.Known(`base_interval max_interval`, ``),
	"envoy.config.route.v3.RedirectAction": strict.Known(`https_redirect scheme_redirect host_redirect port_redirect path_redirect
		prefix_rewrite regex_rewrite response_code strip_query`, ``),
	"envoy.config.route.v3.DirectResponseAction":    strict.Known(`status body`, ``),
	"envoy.config.core.v3.DataSource":               strict.Known(`inline_string inline_bytes`, ``),
	"envoy.config.core.v3.HeaderValueOption":        strict.Known(`header append append_action keep_empty_value`, ``),
	"envoy.config.core.v3.HeaderValue":              strict.Known(`key value raw_value`, ``),
	"envoy.config.core.v3.RuntimeFractionalPercent": strict.Known(`default_value`, `runtime_key`),
	"envoy.config.core.v3.Metadata":                 strict.Known(``, `filter_metadata typed_filter_metadata`),
	"envoy.type.v3.FractionalPercent":               strict.Known(`numerator denominator`, ``),
	"envoy.type.v3.Int64Range":                      strict.Known(`start end`, ``),
	"envoy.type.matcher.v3.StringMatcher":           strict.Known(`exact prefix suffix safe_regex contains ignore_case`, ``),
	"envoy.type.matcher.v3.RegexMatcher":            strict.Known(`regex`, `google_re2`),
	"envoy.type.matcher.v3.RegexMatcher.GoogleRE2":  strict.Known(``, `max_program_size`),
	"envoy.type.matcher.v3.RegexMatchAndSubstitute": strict.Known(`pattern substitution`, ``),
	"envoy.type.matcher.v3.FilterStateMatcher":      strict.Known(`key string_match`, ``),
	"envoy.extensions.filters.http.cors.v3.CorsPolicy": strict.Known(`allow_origin_string_match allow_methods allow_headers
		expose_headers max_age allow_credentials filter_enabled forward_not_matching_preflights`, ``),

	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit": strict.Known(`token_bucket filter_enabled filter_enforced
		local_rate_limit_per_downstream_connection enable_x_ratelimit_headers enable_retry_after_header rate_limited_as_resource_exhausted`, `stat_prefix`),
	"envoy.type.v3.TokenBucket":                                                 strict.Known(`max_tokens tokens_per_fill fill_interval`, ``),
	"envoy.extensions.filters.http.fault.v3.HTTPFault":                          strict.Known(`delay abort headers`, ``),
	"envoy.extensions.filters.http.fault.v3.FaultAbort":                         strict.Known(`http_status grpc_status percentage`, ``),
	"envoy.extensions.filters.common.fault.v3.FaultDelay":                       strict.Known(`fixed_delay percentage`, ``),
	"envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute": strict.Known(`disabled stateful_session`, ``),
	"envoy.extensions.filters.http.stateful_session.v3.StatefulSession":         strict.Known(`session_state`, ``),
	"envoy.config.core.v3.TypedExtensionConfig":                                 strict.Known(`name typed_config`, ``),
	"envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState":  strict.Known(`cookie`, ``),
	"envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState":  strict.Known(`name`, ``),
	"envoy.type.http.v3.Cookie":                                                 strict.Known(`name path ttl`, ``),
}
