package config

import (
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

const typeSetFilterState = "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config"

// Secrets that Istio serves under these names: the proxy's own certificate, and the roots of the mesh.
const (
	secretCertificate = "default"
	secretRoots       = "ROOTCA"
)

// terminate reads connect_terminate. Package hbone is what it describes: what it does not do otherwise is only checked.
func (d decoder) terminate(l *listenerv3.Listener) *Terminate {
	addr := d.address(l.GetAddress(), root.Field("address"))
	out := &Terminate{Port: addr.Port()}
	if addr.IsValid() && out.Port != api.PortHBONE {
		d.add(root.Field("address").Field("socket_address").Field("port_value"), "must be %d, not %d", api.PortHBONE, out.Port)
	}
	for i, a := range l.GetAdditionalAddresses() {
		at := root.Field("additional_addresses").Index(i).Field("address")
		if other := d.address(a.GetAddress(), at); other.Port() != out.Port {
			d.add(at.Field("socket_address").Field("port_value"), "must be that of address, %d, not %d", out.Port, other.Port())
		}
	}
	if l.GetFilterChainMatcher() != nil {
		d.add(root.Field("filter_chain_matcher"), "not supported here: there is one chain")
	}
	for i, f := range l.GetListenerFilters() {
		d.add(root.Field("listener_filters").Index(i), "%q is not supported here", f.GetName())
	}
	m, at := d.manager(l)
	if m == nil {
		return out
	}
	d.downstreamTLS(l.GetFilterChains()[0], root.Field("filter_chains").Index(0).Field("transport_socket").Field("typed_config"))
	h2, h2at := m.GetHttp2ProtocolOptions(), at.Field("http2_protocol_options")
	out.MaxConcurrentStreams = h2.GetMaxConcurrentStreams().GetValue()
	if k := h2.GetConnectionKeepalive(); k != nil {
		at := h2at.Field("connection_keepalive")
		out.KeepaliveInterval = d.duration(k.GetInterval(), at.Field("interval"), 0)
		out.KeepaliveTimeout = d.duration(k.GetTimeout(), at.Field("timeout"), 0)
	}
	d.connect(m, at)
	return out
}

// manager returns the connection manager of a listener's only chain; nil if it has none.
func (d decoder) manager(l *listenerv3.Listener) (*hcmv3.HttpConnectionManager, *strict.Path) {
	at := root.Field("filter_chains")
	if len(l.GetFilterChains()) != 1 || len(l.GetFilterChains()[0].GetFilters()) != 1 {
		d.add(at, "exactly one, with one filter: an HttpConnectionManager")
		return nil, nil
	}
	at = at.Index(0).Field("filters").Index(0).Field("typed_config")
	var m hcmv3.HttpConnectionManager
	if !d.unpack(l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig(), &m, at) {
		return nil, nil
	}
	return &m, at
}

// connect checks that tunnels lead to main_internal and nowhere else.
func (d decoder) connect(m *hcmv3.HttpConnectionManager, at *strict.Path) {
	if m.GetRds() != nil {
		d.add(at.Field("rds"), "not supported here: use route_config")
	}
	if m.GetTracing() != nil {
		d.add(at.Field("tracing"), "not supported here: tunnels are no requests")
	}
	at2 := at.Field("route_config").Field("virtual_hosts")
	hosts := m.GetRouteConfig().GetVirtualHosts()
	if len(hosts) != 1 || len(hosts[0].GetRoutes()) != 1 {
		d.add(at2, "exactly one, with one route: CONNECT to %s", listenerInbound)
	} else {
		at2 = at2.Index(0).Field("routes").Index(0)
		r := hosts[0].GetRoutes()[0]
		if _, ok := r.GetMatch().GetPathSpecifier().(*routev3.RouteMatch_ConnectMatcher_); !ok {
			d.add(at2.Field("match").Field("connect_matcher"), "required")
		}
		if c := r.GetRoute().GetCluster(); c != listenerInbound {
			d.add(at2.Field("route").Field("cluster"), "must be %s, not %q", listenerInbound, c)
		}
	}
	for i, f := range m.GetHttpFilters() {
		at := at.Field("http_filters").Index(i).Field("typed_config")
		switch f.GetTypedConfig().GetTypeUrl() {
		case typeRouter:
			d.unpack(f.GetTypedConfig(), &routerv3.Router{}, at)
		case typeSetFilterState:
			var s setfilterstatev3.Config
			d.unpack(f.GetTypedConfig(), &s, at)
			for k, v := range s.GetOnRequestHeaders() {
				if !filterStates[v.GetObjectKey()] {
					d.add(at.Field("on_request_headers").Index(k).Field("object_key"), "%q is not known", v.GetObjectKey())
				}
			}
		default:
			d.add(at, "filter %q (%s) is not supported here: set_filter_state, then router", f.GetName(), f.GetTypedConfig().GetTypeUrl())
		}
	}
}

// filterStates are those that Istio sets from a tunnel, all of which the proxy knows of each tunnel by itself.
var filterStates = map[string]bool{
	"io.istio.peer_principal": true, "io.istio.local_principal": true,
	"envoy.filters.listener.original_dst.local_ip": true, "envoy.filters.listener.original_dst.remote_ip": true,
}

// downstreamTLS checks that the listener asks for what the proxy does: mutual TLS with certificates of the mesh.
func (d decoder) downstreamTLS(c *listenerv3.FilterChain, at *strict.Path) {
	var m tlsv3.DownstreamTlsContext
	if !d.unpack(c.GetTransportSocket().GetTypedConfig(), &m, at) {
		return
	}
	if !m.GetRequireClientCertificate().GetValue() {
		d.add(at.Field("require_client_certificate"), "must be true: tunnels are mutual TLS")
	}
	d.commonTLS(m.GetCommonTlsContext(), at.Field("common_tls_context"))
}

func (d decoder) commonTLS(c *tlsv3.CommonTlsContext, at *strict.Path) {
	for i, s := range c.GetTlsCertificateSdsSecretConfigs() {
		if s.GetName() != secretCertificate {
			d.add(at.Field("tls_certificate_sds_secret_configs").Index(i).Field("name"), "only %q, not %q", secretCertificate, s.GetName())
		}
	}
	roots, at := c.GetValidationContextSdsSecretConfig(), at.Field("validation_context_sds_secret_config")
	if v := c.GetCombinedValidationContext(); v != nil {
		roots = v.GetValidationContextSdsSecretConfig()
	}
	if roots.GetName() != secretRoots {
		d.add(at, "the roots must be those of the mesh, %q, not %q", secretRoots, roots.GetName())
	}
}

// originate checks connect_originate: package hbone is what it describes.
func (d decoder) originate(l *listenerv3.Listener) {
	if l.GetInternalListener() == nil {
		d.add(root.Field("internal_listener"), "required")
	}
	at := root.Field("filter_chains")
	if len(l.GetFilterChains()) != 1 || len(l.GetFilterChains()[0].GetFilters()) != 1 {
		d.add(at, "exactly one, with one filter: a TcpProxy")
		return
	}
	at = at.Index(0).Field("filters").Index(0).Field("typed_config")
	var m tcpv3.TcpProxy
	if !d.unpack(l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig(), &m, at) {
		return
	}
	if m.GetCluster() != listenerOriginate {
		d.add(at.Field("cluster"), "must be %s, not %q", listenerOriginate, m.GetCluster())
	}
	if m.GetTunnelingConfig() == nil {
		d.add(at.Field("tunneling_config"), "required")
	}
}
