package l7

import (
	"slices"
	"strconv"
	"time"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	sessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// Names of filters, Envoy's own.
const (
	filterHCM     = "envoy.filters.network.http_connection_manager"
	filterTCP     = "envoy.filters.network.tcp_proxy"
	filterCORS    = "envoy.filters.http.cors"
	filterFault   = "envoy.filters.http.fault"
	filterLimit   = "envoy.filters.http.local_ratelimit"
	filterSession = "envoy.filters.http.stateful_session"
	filterRouter  = "envoy.filters.http.router"
)

// idleTime is how long a connection may be without a request, or without bytes where it is none of HTTP. Istio's.
const idleTime = time.Hour

// Part is one host's share of ListenerMain. It is immutable.
type Part struct {
	host   *Host
	chains []*listenerv3.FilterChain
	match  *matcher.IPMatcher_IPRangeMatcher
	// names are the ports on which the name of the server that clients ask for counts.
	names []uint16
}

// Equal reports whether both put the same into the listener.
func (p *Part) Equal(o *Part) bool {
	return proto.Equal(p.match, o.match) && slices.Equal(p.names, o.names) &&
		slices.EqualFunc(p.chains, o.chains, func(a, b *listenerv3.FilterChain) bool { return proto.Equal(a, b) })
}

// HostPart translates one host's share of ListenerMain; nil if nobody can ask for the host by an address of it. It depends on the
// routes that name the host as a parent, for TCPRoutes and TLSRoutes on the hosts that these refer to, on the rule for the host, and on
// the policies that are for it.
func HostPart(h *Host, ix Index, policies Policies) *Part {
	if len(h.Addresses) == 0 || len(h.Ports) == 0 || h.Unfit != "" {
		return nil
	}
	routes := ix.Routes(h.Ref)
	p := &Part{host: h}
	ports := map[string]*matcher.Matcher_OnMatch{}
	for _, port := range h.Ports {
		at, number := attach(h, port, routes), strconv.Itoa(int(port.Port))
		if at.kind != cluster.KindTLSRoute {
			chain := chainOf(h, port, at, ix, policies)
			p.chains = append(p.chains, chain)
			ports[number] = chosen(chain.Name)
			continue
		}
		chains, choice := byName(h, port, at, ix, policies)
		p.chains = append(p.chains, chains...)
		p.names = append(p.names, port.Port)
		ports[number] = choice
	}
	p.match = &matcher.IPMatcher_IPRangeMatcher{
		OnMatch: &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Matcher{Matcher: &matcher.Matcher{
			MatcherType: &matcher.Matcher_MatcherTree_{MatcherTree: &matcher.Matcher_MatcherTree{
				Input:    &xdscore.TypedExtensionConfig{Name: "port", TypedConfig: config(&networkv3.DestinationPortInput{})},
				TreeType: &matcher.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &matcher.Matcher_MatcherTree_MatchMap{Map: ports}},
			}},
		}}},
	}
	for _, a := range h.Addresses {
		p.match.Ranges = append(p.match.Ranges, &xdscore.CidrRange{AddressPrefix: a.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(a.Bits()))})
	}
	return p
}

// MainInternal puts ListenerMain together. Connections to what none of the parts has are refused. Of hosts that have their name in
// common, ServiceEntries of several namespaces, the first is in it: chains and routes go by that name. direct are DirectChains, for a
// waypoint that has them.
func MainInternal(parts []*Part, direct ...*listenerv3.FilterChain) *listenerv3.Listener {
	parts = slices.Clone(parts)
	SortParts(parts)
	parts = slices.CompactFunc(parts, func(a, b *Part) bool { return a.host.Hostname == b.host.Hostname })
	l := &listenerv3.Listener{
		Name:              ListenerMain,
		ListenerSpecifier: &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
		ListenerFilters:   []*listenerv3.ListenerFilter{originalDst()},
		TrafficDirection:  corev3.TrafficDirection_INBOUND,
	}
	tree := &matcher.IPMatcher{}
	var names []uint16
	for _, p := range parts {
		names = append(names, p.names...)
		l.FilterChains = append(l.FilterChains, p.chains...)
		tree.RangeMatchers = append(tree.RangeMatchers, p.match)
	}
	if slices.Sort(names); len(names) > 0 {
		l.ListenerFilters = append(l.ListenerFilters, inspector(slices.Compact(names)))
		l.ListenerFiltersTimeout = durationpb.New(helloTime)
		// Another service may have the port for clients that wait for the server to begin.
		l.ContinueOnListenerFiltersTimeout = true
	}
	l.FilterChains = append(l.FilterChains, direct...)
	if len(parts) == 0 {
		// Envoy wants a chain in each listener; this one is never chosen.
		l.FilterChains = append(l.FilterChains, chain("none", filterTCP, tcpProxy("none", ClusterInvalid)))
		l.FilterChainMatcher = &matcher.Matcher{OnNoMatch: &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Action{
			Action: &xdscore.TypedExtensionConfig{Name: "refused", TypedConfig: config(wrapperspb.String("refused"))}}}}
		return l
	}
	l.FilterChainMatcher = &matcher.Matcher{MatcherType: &matcher.Matcher_MatcherTree_{MatcherTree: &matcher.Matcher_MatcherTree{
		Input:    &xdscore.TypedExtensionConfig{Name: "ip", TypedConfig: config(&networkv3.DestinationIPInput{})},
		TreeType: &matcher.Matcher_MatcherTree_CustomMatch{CustomMatch: &xdscore.TypedExtensionConfig{Name: "ip", TypedConfig: config(tree)}},
	}}}
	return l
}

// chainOf is the filter chain of a port that is not one of TLSRoutes.
func chainOf(h *Host, port cluster.ServicePort, at attachment, ix Index, policies Policies) *listenerv3.FilterChain {
	name := ChainName(h, port.Port, at.http)
	if !at.http {
		encrypted := translate.AppProtocol(port) == workload.AppProtocol_TLS
		proxy := tcpProxy(name, ClusterName(h, port.Port))
		switch {
		case len(at.producers) > 0:
			proxy = splitTCP(name, at.producers[0], ix, encrypted)
		case encrypted:
			proxy = tcpProxy(name, asIsCluster(h, port.Port))
		}
		return carry(name, proxy, ix.Rule(h).PolicyOf(port.Port), policies)
	}
	return httpChain(name, routeFilters{limits: limitOf(h, port, ix) != nil, faults: ix.Fault(h) != nil, sessions: at.sessions()}, ix, policies)
}

// routeFilters are filters that a table of routes has settings for: it bounds requests, injects faults, or keeps clients with endpoints.
type routeFilters struct{ limits, faults, sessions bool }

// httpChain is one whose table of routes has its name.
func httpChain(name string, has routeFilters, ix Index, policies Policies) *listenerv3.FilterChain {
	filters, later, refusing := policies.asks(ix)
	if f := policies.jwtAuthentication(); f != nil {
		filters = append(filters, httpFilter(FilterTokens, f))
	}
	filters = append(filters, later...)
	for _, f := range policies.filters(true, refusing) {
		filters = append(filters, httpFilter(filterHTTPRBAC, f.http()))
	}
	filters = append(filters, httpFilter(filterCORS, &corsv3.Cors{}))
	if has.limits {
		filters = append(filters, httpFilter(filterLimit, &localv3.LocalRateLimit{StatPrefix: limitPrefix}))
	}
	if has.faults {
		filters = append(filters, httpFilter(filterFault, &faultv3.HTTPFault{}))
	}
	if has.sessions {
		filters = append(filters, httpFilter(filterSession, &sessionv3.StatefulSession{}))
	}
	return chain(name, filterHCM, &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: ads(), RouteConfigName: name,
		}},
		HttpFilters:               append(filters, httpFilter(filterRouter, &routerv3.Router{SuppressEnvoyHeaders: true})),
		UpgradeConfigs:            []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		UseRemoteAddress:          wrapperspb.Bool(false),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(idleTime)},
		// Streams of gRPC may be silent for as long as they like.
		StreamIdleTimeout:            durationpb.New(0),
		NormalizePath:                wrapperspb.Bool(true),
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		ServerHeaderTransformation:   hcmv3.HttpConnectionManager_PASS_THROUGH,
		Tracing:                      policies.Telemetry.tracing(policies.Mesh, ix),
		AccessLog:                    policies.Telemetry.accessLog(),
	})
}

// carry is the filter chain of connections that are carried as they are.
func carry(name string, proxy *tcpv3.TcpProxy, policy *cluster.TrafficPolicy, policies Policies) *listenerv3.FilterChain {
	applyTCP(policies.Telemetry.logged(proxy), policy)
	c := chain(name, filterTCP, proxy)
	for i, f := range policies.filters(false, nil) {
		c.Filters = slices.Insert(c.Filters, i, networkFilter(filterNetworkRBAC, f.network(name)))
	}
	return c
}

func chain(name, filter string, settings proto.Message) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{Name: name, Filters: []*listenerv3.Filter{networkFilter(filter, settings)}}
}

func networkFilter(name string, settings proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config(settings)}}
}

func tcpProxy(name, to string) *tcpv3.TcpProxy {
	return &tcpv3.TcpProxy{
		StatPrefix: name, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: to}, IdleTimeout: durationpb.New(idleTime),
	}
}

// splitTCP carries connections to the backends of a TCPRoute or TLSRoute by their weights. The share of one that cannot be used is refused, and
// so are all if the rule has none that can. What clients send is encrypted, or it is not known to be.
func splitTCP(name string, r *cluster.Route, ix Index, encrypted bool) *tcpv3.TcpProxy {
	out := tcpProxy(name, ClusterInvalid)
	if len(r.Rules) == 0 || len(faultsOf(r, 0)) > 0 {
		return out
	}
	to := func(b cluster.BackendRef) string {
		t := resolve(b, ix)
		if encrypted {
			return t.asIs
		}
		return t.cluster
	}
	backends := shares(&r.Rules[0])
	if len(backends) == 1 {
		out.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: to(backends[0].BackendRef)}
	}
	if len(backends) < 2 {
		return out
	}
	weighted := &tcpv3.TcpProxy_WeightedCluster{}
	for _, b := range backends {
		weighted.Clusters = append(weighted.Clusters, &tcpv3.TcpProxy_WeightedCluster_ClusterWeight{Name: to(b.BackendRef), Weight: b.Weight})
	}
	out.ClusterSpecifier = &tcpv3.TcpProxy_WeightedClusters{WeightedClusters: weighted}
	return out
}

func httpFilter(name string, settings proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config(settings)}}
}

// ads says that a resource comes from where this one came from.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}
