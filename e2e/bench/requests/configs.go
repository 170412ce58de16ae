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
