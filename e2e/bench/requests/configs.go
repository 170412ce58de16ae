package requests

// The same job for each proxy: every request goes to one backend, in the version of HTTP that it came in, with nothing of it changed.

const routesYAML = `
name: web
virtual_hosts:
- name: stock
  domains: ["*"]
  routes: [{name: all, match: {prefix: /}, route: {cluster: stock, timeout: 0s}}]
`

const clusterYAML = `
name: stock
type: EDS
connect_timeout: 10s
lb_policy: LEAST_REQUEST
eds_cluster_config: {service_name: stock, eds_config: {ads: {}, resource_api_version: V3}}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}
`

// endpointsYAML takes the backend's address and port.
const endpointsYAML = `
cluster_name: stock
endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`

const listenerYAML = `
name: main_internal
internal_listener: {}
filter_chain_matcher:
  matcher_tree:
    input: {name: ip, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput}}
    custom_match:
      name: ip
      typed_config:
        '@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher
        range_matchers:
        - ranges: [{address_prefix: 10.96.0.1, prefix_len: 32}]
          on_match:
            matcher:
              matcher_tree:
                input: {name: port, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput}}
                exact_match_map:
                  map:
                    "80": {action: {name: web, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: web}}}
filter_chains:
- name: web
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      common_http_protocol_options: {idle_timeout: 3600s}
      http_filters:
      - {name: envoy.filters.http.router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
      normalize_path: true
      path_with_escaped_slashes_action: KEEP_UNCHANGED
      rds: {config_source: {ads: {}, resource_api_version: V3}, route_config_name: web}
      server_header_transformation: PASS_THROUGH
      stat_prefix: web
      stream_idle_timeout: 0s
      use_remote_address: false
`

// envoyYAML is Envoy's bootstrap. It takes the port to listen on, and the backend's address and port.
const envoyYAML = `
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: %s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          codec_type: AUTO
          common_http_protocol_options: {idle_timeout: 3600s}
          generate_request_id: false
          http2_protocol_options: {max_concurrent_streams: 100}
          http_filters:
          - {name: envoy.filters.http.router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
          normalize_path: true
          path_with_escaped_slashes_action: KEEP_UNCHANGED
          route_config:
            name: web
            virtual_hosts:
            - name: stock
              domains: ["*"]
              routes: [{name: all, match: {prefix: /}, route: {cluster: stock, timeout: 0s}}]
          server_header_transformation: PASS_THROUGH
          stat_prefix: web
          stream_idle_timeout: 0s
          use_remote_address: false
  clusters:
  - name: stock
    type: STATIC
    connect_timeout: 10s
    lb_policy: LEAST_REQUEST
    circuit_breakers: {thresholds: [{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}
    load_assignment:
      cluster_name: stock
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`

// tunnelYAML are further fields of a cluster whose endpoints are reached by tunnels.
const tunnelYAML = `
transport_socket_matches:
- name: hbone
  match: {tunnel: h2}
  transport_socket:
    name: envoy.transport_sockets.internal_upstream
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
      passthrough_metadata: [{kind: {host: {}}, name: envoy.filters.listener.original_dst}]
      transport_socket: {name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
`

// tunnelEndpointYAML takes the backend's address and port, and its identity.
const tunnelEndpointYAML = `
cluster_name: stock
endpoints:
- lb_endpoints:
  - endpoint: {address: {envoy_internal_address: {server_listener_name: connect_originate, endpoint_id: "%[1]s"}}}
    metadata:
      filter_metadata:
        ambit.io/peer: {identity: "%[2]s"}
        envoy.filters.listener.original_dst: {local: "%[1]s"}
        envoy.transport_socket_match: {tunnel: h2}
        istio: {workload: "server;default;server;latest;Kubernetes"}
`

// terminateYAML is the listener of tunnels.
const terminateYAML = `
name: connect_terminate
address: {socket_address: {address: "0.0.0.0", port_value: 15008}}
filter_chains:
- name: default
  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        alpn_protocols: [h2]
        tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
        tls_certificate_sds_secret_configs: [{name: default, sds_config: {ads: {}}}]
        combined_validation_context:
          default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://cluster.local/"}}]}
          validation_context_sds_secret_config: {name: ROOTCA, sds_config: {ads: {}}}
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: connect_terminate
      http2_protocol_options: {allow_connect: true, max_concurrent_streams: 100}
      route_config:
        name: default
        virtual_hosts:
        - name: default
          domains: ["*"]
          routes: [{match: {connect_matcher: {}}, route: {cluster: main_internal, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]
      upgrade_configs: [{upgrade_type: CONNECT}]
      http_filters:
      - name: peer
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config
          on_request_headers: [{object_key: io.istio.peer_principal, format_string: {text_format_source: {inline_string: "%DOWNSTREAM_PEER_URI_SAN%"}}, shared_with_upstream: ONCE}]
      - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
`

// meshedYAML is Envoy's bootstrap as a waypoint, with the listeners that Istio gives it. It takes its certificate, key and roots in PEM, the
// backend's address and port, that of its tunnels without a port, and the backend's identity.
const meshedYAML = `
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: {'@type': type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}
static_resources:
  listeners:
  - name: connect_terminate
    address: {socket_address: {address: "0.0.0.0", port_value: 15008}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2]
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {inline_string: %[1]q}, private_key: {inline_string: %[2]q}}]
            validation_context:
              trusted_ca: {inline_string: %[3]q}
              match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://cluster.local/"}}]
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: connect_terminate
          generate_request_id: false
          http2_protocol_options: {allow_connect: true, max_concurrent_streams: 100}
          route_config:
            name: default
            virtual_hosts:
            - name: default
              domains: ["*"]
              routes: [{match: {connect_matcher: {}}, route: {cluster: main_internal, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]
          upgrade_configs: [{upgrade_type: CONNECT}]
          stream_idle_timeout: 0s
          http_filters:
          - name: peer
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config
              on_request_headers:
              - object_key: io.istio.peer_principal
                factory_key: envoy.string
                format_string: {text_format_source: {inline_string: "%%DOWNSTREAM_PEER_URI_SAN%%"}}
                shared_with_upstream: ONCE
          - {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
  - name: main_internal
    internal_listener: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          codec_type: AUTO
          common_http_protocol_options: {idle_timeout: 3600s}
          generate_request_id: false
          http2_protocol_options: {max_concurrent_streams: 100}
          http_filters:
          - {name: envoy.filters.http.router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
          normalize_path: true
          path_with_escaped_slashes_action: KEEP_UNCHANGED
          route_config:
            name: web
            virtual_hosts:
            - name: stock
              domains: ["*"]
              routes: [{name: all, match: {prefix: /}, route: {cluster: stock, timeout: 0s}}]
          server_header_transformation: PASS_THROUGH
          stat_prefix: web
          stream_idle_timeout: 0s
          use_remote_address: false
  - name: connect_originate
    internal_listener: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: connect_originate
          cluster: connect_originate
          tunneling_config: {hostname: "%[4]s"}
  clusters:
  - name: main_internal
    type: STATIC
    circuit_breakers: &unbound {thresholds: [{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}]}
    transport_socket: &internal
      name: internal
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
        transport_socket: {name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
    load_assignment:
      cluster_name: main_internal
      endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: main_internal}}}}]}]
  - name: stock
    type: STATIC
    connect_timeout: 10s
    lb_policy: LEAST_REQUEST
    circuit_breakers: *unbound
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}
    transport_socket: *internal
    load_assignment:
      cluster_name: stock
      endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: connect_originate, endpoint_id: "%[4]s"}}}}]}]
  - name: connect_originate
    type: STATIC
    connect_timeout: 10s
    circuit_breakers: *unbound
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {allow_connect: true, max_concurrent_streams: 100}}
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          tls_certificates: [{certificate_chain: {inline_string: %[1]q}, private_key: {inline_string: %[2]q}}]
          validation_context:
            trusted_ca: {inline_string: %[3]q}
            match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "%[6]s"}}]
    load_assignment:
      cluster_name: connect_originate
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: "%[5]s", port_value: 15008}}}}]}]
`
