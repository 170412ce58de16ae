package config

import (
	"math"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	httpauthv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	sessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// Type URLs of what a filter can be.
const (
	typeHCM         = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	typeTCP         = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	typeRouter      = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
	typeHTTPRBAC    = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
	typeNetworkRBAC = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
	typeExtAuthz    = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
	typeJWT         = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
	typeCORS        = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"
	typeFault       = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
	typeLimit       = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
	typeSession     = "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession"
)

// Envoy's defaults, which the control plane relies on where it leaves a field out.
const (
	defaultIdle          = time.Hour
	defaultStreamIdle    = 5 * time.Minute
	defaultHeaderKiB     = 60
	maxHeaderKiB         = 8192
	defaultHeaderFields  = 100
	defaultConnectTries  = 1
	defaultServerName    = "ambit"
	upgradeWebsocket     = "websocket"
	upgradeConnect       = "connect"
	kibi                 = 1 << 10
	maxHeaderFieldsBound = math.MaxInt32
)

// chain reads a filter chain of main_internal.
func (d decoder) chain(c *listenerv3.FilterChain, at *strict.Path) *Chain {
	out := &Chain{Name: c.GetName()}
	if out.Name == "" {
		d.add(at.Field("name"), "required")
	}
	if c.GetTransportSocket() != nil {
		d.add(at.Field("transport_socket"), "not supported inside tunnels: leave it out")
	}
	at = at.Field("filters")
	last := len(c.GetFilters()) - 1
	if last < 0 {
		d.add(at, "required: the last must be an HttpConnectionManager or a TcpProxy")
		return out
	}
	filter := c.GetFilters()[last].GetTypedConfig()
	for i, f := range c.GetFilters()[:last] {
		at := at.Index(i).Field("typed_config")
		var m networkrbacv3.RBAC
		if f.GetTypedConfig().GetTypeUrl() != typeNetworkRBAC {
			d.add(at, "filter %q (%s) is not supported here: RBAC, then an HttpConnectionManager or a TcpProxy last", f.GetName(), f.GetTypedConfig().GetTypeUrl())
		} else if filter.GetTypeUrl() != typeTCP {
			d.add(at, "not supported before an HttpConnectionManager: use its http_filters")
		} else if d.unpack(f.GetTypedConfig(), &m, at) {
			if step, does := d.step(&m, false, at); does {
				out.Authorization = append(out.Authorization, step)
			}
		}
	}
	at = at.Index(last).Field("typed_config")
	switch filter.GetTypeUrl() {
	case typeHCM:
		var m hcmv3.HttpConnectionManager
		out.HTTP = &HTTP{}
		if d.unpack(filter, &m, at) {
			out.HTTP = d.http(&m, at)
			d.filters(out, m.GetHttpFilters(), at.Field("http_filters"))
			out.Logging = d.accessLog(m.GetAccessLog(), at.Field("access_log"))
		}
	case typeTCP:
		var m tcpv3.TcpProxy
		out.TCP = &TCP{}
		if d.unpack(filter, &m, at) {
			out.TCP = d.tcp(&m, at)
			out.Logging = d.accessLog(m.GetAccessLog(), at.Field("access_log"))
		}
	default:
		d.add(at, "%q is not supported: an HttpConnectionManager or a TcpProxy", filter.GetTypeUrl())
	}
	return out
}

func (d decoder) tcp(m *tcpv3.TcpProxy, at *strict.Path) *TCP {
	out := &TCP{
		IdleTimeout:     d.duration(m.GetIdleTimeout(), at.Field("idle_timeout"), defaultIdle),
		MaxDuration:     d.duration(m.GetMaxDownstreamConnectionDuration(), at.Field("max_downstream_connection_duration"), 0),
		ConnectAttempts: int(d.bounded(m.GetMaxConnectAttempts(), at.Field("max_connect_attempts"), defaultConnectTries, 100)),
	}
	if m.GetTunnelingConfig() != nil {
		d.add(at.Field("tunneling_config"), "only in connect_originate: endpoints say for themselves how they are reached")
	}
	for i, h := range m.GetHashPolicy() {
		if out.BySource = h.GetSourceIp() != nil; !out.BySource {
			d.add(at.Field("hash_policy").Index(i), "only source_ip")
		}
	}
	var weights []uint32
	if w := m.GetWeightedClusters(); w != nil {
		for i, c := range w.GetClusters() {
			if c.GetName() == "" {
				d.add(at.Field("weighted_clusters").Field("clusters").Index(i).Field("name"), "required")
			}
			out.Clusters, weights = append(out.Clusters, c.GetName()), append(weights, c.GetWeight())
		}
	} else {
		out.Clusters, weights = []string{m.GetCluster()}, []uint32{1}
		if m.GetCluster() == "" {
			d.add(at, "cluster or weighted_clusters is required")
		}
	}
	if out.split = route.NewSplit(weights); out.split == nil {
		d.add(at.Field("weighted_clusters"), "the sum of the weights must not be 0")
	}
	return out
}

func (d decoder) http(m *hcmv3.HttpConnectionManager, at *strict.Path) *HTTP {
	out := &HTTP{
		Routes:                m.GetRds().GetRouteConfigName(),
		StreamIdleTimeout:     d.duration(m.GetStreamIdleTimeout(), at.Field("stream_idle_timeout"), defaultStreamIdle),
		RequestHeadersTimeout: d.duration(m.GetRequestHeadersTimeout(), at.Field("request_headers_timeout"), 0),
		MaxRequestHeader:      kibi * int(d.bounded(m.GetMaxRequestHeadersKb(), at.Field("max_request_headers_kb"), defaultHeaderKiB, maxHeaderKiB)),
		MaxConcurrentStreams:  m.GetHttp2ProtocolOptions().GetMaxConcurrentStreams().GetValue(),
		ServerName:            m.GetServerName(),
		Paths:                 route.Paths{Normalize: m.GetNormalizePath().GetValue(), MergeSlashes: m.GetMergeSlashes()},
	}
	if m.GetRds() == nil || out.Routes == "" {
		d.add(at.Field("rds").Field("route_config_name"), "required")
	} else {
		d.ads(m.GetRds().GetConfigSource(), at.Field("rds").Field("config_source"))
	}
	if m.GetRouteConfig() != nil {
		d.add(at.Field("route_config"), "not supported here: use rds")
	}
	for field, on := range map[string]bool{
		"use_remote_address": m.GetUseRemoteAddress().GetValue(), "generate_request_id": m.GetGenerateRequestId().GetValue(),
	} {
		if on {
			d.add(at.Field(field), "not supported: false")
		}
	}
	if out.ServerName == "" {
		out.ServerName = defaultServerName
	}
	d.common(m.GetCommonHttpProtocolOptions(), out, at.Field("common_http_protocol_options"))
	d.choices(m, out, at)
	out.Tracing = d.tracing(m.GetTracing(), at.Field("tracing"))
	for i, u := range m.GetUpgradeConfigs() {
		at := at.Field("upgrade_configs").Index(i)
		switch name := strings.ToLower(u.GetUpgradeType()); {
		case name == "" || name == upgradeConnect:
			d.add(at.Field("upgrade_type"), "a protocol such as %s, not %q", upgradeWebsocket, u.GetUpgradeType())
		case u.GetEnabled() == nil || u.GetEnabled().GetValue():
			out.Upgrades = append(out.Upgrades, name)
		}
	}
	return out
}

// common reads the options that do not depend on the version of HTTP.
func (d decoder) common(o *corev3.HttpProtocolOptions, out *HTTP, at *strict.Path) {
	out.IdleTimeout = d.duration(o.GetIdleTimeout(), at.Field("idle_timeout"), defaultIdle)
	out.MaxStreamDuration = d.duration(o.GetMaxStreamDuration(), at.Field("max_stream_duration"), 0)
	out.MaxHeaderFields = int(d.bounded(o.GetMaxHeadersCount(), at.Field("max_headers_count"), defaultHeaderFields, maxHeaderFieldsBound))
	if o.GetMaxResponseHeadersKb() != nil {
		d.add(at.Field("max_response_headers_kb"), "only in clusters")
	}
	if o.GetMaxRequestsPerConnection() != nil {
		d.add(at.Field("max_requests_per_connection"), "only in clusters")
	}
}

// choices reads the enumerations.
func (d decoder) choices(m *hcmv3.HttpConnectionManager, out *HTTP, at *strict.Path) {
	switch m.GetServerHeaderTransformation() {
	case hcmv3.HttpConnectionManager_OVERWRITE:
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		out.ServerHeader = ServerIfAbsent
	case hcmv3.HttpConnectionManager_PASS_THROUGH:
		out.ServerHeader = ServerPassThrough
	default:
		d.add(at.Field("server_header_transformation"), "%v is not known", m.GetServerHeaderTransformation())
	}
	switch m.GetPathWithEscapedSlashesAction() {
	case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		out.Paths.EscapedSlashes = route.RejectSlashes
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		out.Paths.EscapedSlashes = route.DecodeSlashes
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		out.Paths.EscapedSlashes = route.RedirectSlashes
	default:
		d.add(at.Field("path_with_escaped_slashes_action"), "%v is not known", m.GetPathWithEscapedSlashesAction())
	}
	switch a := m.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction(); a {
	case corev3.HttpProtocolOptions_ALLOW:
	case corev3.HttpProtocolOptions_REJECT_REQUEST:
		out.Underscores = UnderscoresReject
	case corev3.HttpProtocolOptions_DROP_HEADER:
		out.Underscores = UnderscoresDrop
	default:
		d.add(at.Field("common_http_protocol_options").Field("headers_with_underscores_action"), "%v is not known", a)
	}
}

// filters reads the HTTP filters: external authorization, each after an RBAC that selects what it is asked about, and jwt_authn, in
// their order; then RBAC and then cors, if at all, and then router. What judges is asked first wherever it is, but it is not taken
// where it would come after cors, which answers some requests itself.
func (d decoder) filters(out *Chain, all []*hcmv3.HttpFilter, at *strict.Path) {
	var asks asking
	cors, tokens := false, false
	for i, f := range all {
		at := at.Index(i).Field("typed_config")
		last := i == len(all)-1
		switch url := f.GetTypedConfig().GetTypeUrl(); {
		case url == typeRouter && last:
			var m routerv3.Router
			if d.unpack(f.GetTypedConfig(), &m, at) && !m.GetSuppressEnvoyHeaders() {
				d.add(at.Field("suppress_envoy_headers"), "must be true: there are no x-envoy-* headers")
			}
		case url == typeHTTPRBAC && !last && !cors:
			var m httprbacv3.RBAC
			if !d.unpack(f.GetTypedConfig(), &m, at) || d.selects(&asks, &m, at) {
				break
			}
			if step, does := d.step(&m, true, at); does {
				out.Authorization = append(out.Authorization, step)
			}
		case url == typeExtAuthz && !last && !cors && len(out.Authorization) == 0:
			var m httpauthv3.ExtAuthz
			if d.unpack(f.GetTypedConfig(), &m, at) {
				d.ask(&asks, &m, at)
			}
		case url == typeJWT && !last && !cors && !tokens && len(out.Authorization) == 0:
			tokens = true
			out.AsksFirst, asks.asks = asks.asks, nil
			var m jwtv3.JwtAuthentication
			if d.unpack(f.GetTypedConfig(), &m, at) {
				out.Authentication = d.authentication(&m, at)
			}
		case url == typeCORS && !last:
			cors = true
			d.unpack(f.GetTypedConfig(), &corsv3.Cors{}, at)
		case url == typeLimit && !last: // virtual hosts say it
			d.unpack(f.GetTypedConfig(), &localv3.LocalRateLimit{}, at)
		case url == typeFault && !last: // routes say what it does
			d.unpack(f.GetTypedConfig(), &faultv3.HTTPFault{}, at)
		case url == typeSession && !last:
			d.unpack(f.GetTypedConfig(), &sessionv3.StatefulSession{}, at)
		default:
			d.add(at, "filter %q (%s) is not supported here: ext_authz, jwt_authn, rbac, cors, local_ratelimit, fault, stateful_session, then router last", f.GetName(), url)
		}
	}
	if len(all) == 0 {
		d.add(at, "required: the last must be the router")
	}
	d.end(&asks)
	out.Asks = asks.asks
}
