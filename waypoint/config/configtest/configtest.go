// Package configtest makes Envoy resources of the form that the control plane gives waypoints, for tests. Only tests import it.
package configtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// The service of Listener: on port 80 of Address it is HTTP by the chain Chain, on port 81 TCP to the cluster "raw".
const (
	Address = "10.96.0.1"
	Chain   = "inbound-vip|80|http|stock.shop.svc.cluster.local"
)

// Cluster is a cluster and its endpoints.
type Cluster struct {
	Name string
	// Options is YAML of HttpProtocolOptions; "" for HTTP as the client speaks it.
	Options string
	// Policy is the lb_policy; "" for LEAST_REQUEST.
	Policy string
	// More is YAML of further fields of the cluster.
	More string
	// Refused is why nothing may be sent there; "" if it may.
	Refused string
	// RetriesWithin is the time within which the least number of retries is allowed; "" for the default.
	RetriesWithin string
	// TLS is a line of YAML of the UpstreamTlsContext by which endpoints are spoken to; "" for plain.
	TLS string
	// Endpoints are what HBONE and Plain return.
	Endpoints []string
}

// HBONE is the YAML of an endpoint in the mesh. The workload is as Istio's metadata has it: name, namespace, canonical name,
// revision and cluster, with ";" between.
func HBONE(addr netip.AddrPort, id identity.Identity, workload string) string {
	return fmt.Sprintf(`
- endpoint: {address: {envoy_internal_address: {server_listener_name: connect_originate, endpoint_id: "%[1]s"}}}
  load_balancing_weight: 1
  metadata:
    filter_metadata:
      ambit.io/peer: {identity: "%[2]s"}
      envoy.filters.listener.original_dst: {local: "%[1]s"}
      envoy.transport_socket_match: {tunnel: h2}
      istio: {workload: "%[3]s"}`, addr, id, workload)
}

// Plain is the YAML of an endpoint outside the mesh.
func Plain(addr netip.AddrPort, workload string) string {
	return fmt.Sprintf(`
- endpoint: {address: {socket_address: {address: %s, port_value: %d}}}
  load_balancing_weight: 1
  metadata: {filter_metadata: {istio: {workload: "%s"}}}`, addr.Addr(), addr.Port(), workload)
}

// Resources are a whole configuration.
type Resources struct {
	Clusters []Cluster
	// Listener is what Listener returns, Terminate the YAML of connect_terminate; "" for none.
	Listener, Terminate string
	// Routes is a YAML list of routes, for the chain Chain.
	Routes string
	// Host is YAML of further fields of their virtual host; "" for none.
	Host string
}

// All returns the resources by type, in the order in which they are subscribed to.
func (r Resources) All(t testing.TB) iter.Seq2[string, []*discoveryv3.Resource] {
	t.Helper()
	var clusters, assignments, listeners []*discoveryv3.Resource
	for _, c := range r.Clusters {
		clusters = append(clusters, resource(t, xds.TypeCluster, c.Name, c.yaml()))
		assignments = append(assignments, resource(t, xds.TypeEndpoints, c.Name, fmt.Sprintf(
			"cluster_name: \"%s\"\nendpoints:\n- lb_endpoints:%s\n", c.Name, strings.ReplaceAll(strings.Join(c.Endpoints, ""), "\n", "\n  "))))
	}
	if r.Listener != "" {
		listeners = append(listeners, resource(t, xds.TypeListener, "main_internal", r.Listener))
	}
	if r.Terminate != "" {
		listeners = append(listeners, resource(t, xds.TypeListener, "connect_terminate", r.Terminate))
	}
	routes := []*discoveryv3.Resource{resource(t, xds.TypeRoutes, Chain, fmt.Sprintf(`
name: "%s"
virtual_hosts:
- name: stock
  domains: ["*"]
  %s
  routes:
  %s
`, Chain, r.Host, strings.ReplaceAll(strings.Trim(r.Routes, "\n"), "\n", "\n  ")))}
	return func(yield func(string, []*discoveryv3.Resource) bool) {
		_ = yield(xds.TypeCluster, clusters) && yield(xds.TypeEndpoints, assignments) &&
			yield(xds.TypeListener, listeners) && yield(xds.TypeRoutes, routes)
	}
}

// resource makes a resource of YAML.
func resource(t testing.TB, typeURL, name, text string) *discoveryv3.Resource {
	t.Helper()
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatalf("%s %s: %v\n%s", typeURL, name, err, text)
	}
	fields["@type"] = typeURL
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	var a anypb.Any
	if err := protojson.Unmarshal(b, &a); err != nil {
		t.Fatalf("%s %s: %v\n%s", typeURL, name, err, text)
	}
	return &discoveryv3.Resource{Name: name, Version: "1", Resource: &a}
}

func (c Cluster) yaml() string {
	options := c.Options
	if options == "" {
		options = "use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}"
	}
	socket := "{'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}"
	if c.TLS != "" {
		socket = "{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, " + c.TLS + "}"
	}
	return fmt.Sprintf(`
name: "%[1]s"
type: EDS
connect_timeout: 10s
lb_policy: %[5]s
eds_cluster_config: {service_name: "%[1]s", eds_config: {ads: {}, resource_api_version: V3}}
metadata: {filter_metadata: {ambit.io/refused: {reason: %[4]q}, ambit.io/retry-budget: {min_interval: %[6]q}, istio: {services: [{host: stock.shop.svc.cluster.local, name: stock, namespace: shop}]}}}
transport_socket_matches:
- name: hbone
  match: {tunnel: h2}
  transport_socket:
    name: envoy.transport_sockets.internal_upstream
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
      passthrough_metadata: [{kind: {host: {}}, name: envoy.filters.listener.original_dst}]
      transport_socket: {name: raw, typed_config: %[3]s}
- name: plain
  match: {}
  transport_socket: {name: raw, typed_config: %[3]s}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    %[2]s
`, c.Name, options, socket, c.Refused, cmp.Or(c.Policy, "LEAST_REQUEST"), c.RetriesWithin) + c.More
}

// Terminate is the YAML of connect_terminate.
const Terminate = `
name: connect_terminate
address: {socket_address: {address: "0.0.0.0", port_value: 15008}}
additional_addresses: [{address: {socket_address: {address: "::", port_value: 15008}}}]
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
      http2_protocol_options: {allow_connect: true, max_concurrent_streams: 100, connection_keepalive: {interval: 10s, timeout: 20s}}
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

// Listener is the YAML of main_internal. idle is the stream_idle_timeout of its HTTP port.
func Listener(idle string) string { return strings.ReplaceAll(listener, "IDLE", idle) }

// Named is the YAML of the listener where the port of raw bytes goes by the name of the server: domains by cluster, in each a chain. Wait is how
// long a name is waited for, rest the cluster of those who give none of them; "" is none. Rbac is YAML of a filter in all chains.
func Named(wait, rest, rbac string, clusters map[string]string) string {
	const service = "inbound-vip|81|tls|stock.shop.svc.cluster.local"
	to := func(cluster string) string {
		return fmt.Sprintf("{action: {name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: %q}}}", service+"|"+cluster)
	}
	var matchers []string
	chains, filters := "", ""
	if rbac != "" {
		filters = "{name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, " + rbac + "}}, "
	}
	for cluster, domains := range clusters {
		if domains != "" {
			matchers = append(matchers, fmt.Sprintf("{domains: [%s], on_match: %s}", domains, to(cluster)))
		}
		chains += fmt.Sprintf("- {name: %q, filters: [%s{name: tcp, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: %s, stat_prefix: x}}]}\n",
			service+"|"+cluster, filters, cluster)
	}
	otherwise := ""
	if rest != "" {
		otherwise = "on_no_match: " + to(rest) + ", "
	}
	l := Listener("0s")
	i := strings.Index(l, `"81": `)
	end := strings.IndexByte(l[i:], '\n')
	l = l[:i] + `"81": {matcher: {` + otherwise + `matcher_tree: {input: {name: sni, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.ServerNameInput}},
                      custom_match: {name: "` + service + `", typed_config: {'@type': type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher, domain_matchers: [` + strings.Join(matchers, ", ") + `]}}}}}` + l[i+end:]
	return l + chains + "listener_filters_timeout: " + wait +
		"\nlistener_filters: [{name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]\n"
}

const listener = `
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
                    "80": {action: {name: web, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: "inbound-vip|80|http|stock.shop.svc.cluster.local"}}}
                    "81": {action: {name: raw, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: raw}}}
filter_chains:
- name: inbound-vip|80|http|stock.shop.svc.cluster.local
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      common_http_protocol_options: {idle_timeout: 3600s}
      http_filters:
      - {name: envoy.filters.http.cors, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}
      - {name: envoy.filters.http.router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
      normalize_path: true
      path_with_escaped_slashes_action: KEEP_UNCHANGED
      rds: {config_source: {ads: {}, resource_api_version: V3}, route_config_name: "inbound-vip|80|http|stock.shop.svc.cluster.local"}
      server_header_transformation: PASS_THROUGH
      stat_prefix: web
      stream_idle_timeout: IDLE
      upgrade_configs: [{upgrade_type: websocket}]
      use_remote_address: false
- name: raw
  filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      cluster: raw
      idle_timeout: 3600s
      stat_prefix: raw
`
