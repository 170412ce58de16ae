package l7

import (
	"fmt"
	"slices"
	"strings"
	"time"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

const (
	// filterInspector is Envoy's name of the filter that looks for the name of the server that a client of TLS asks for.
	filterInspector = "envoy.filters.listener.tls_inspector"
	// helloTime is how long a client may take to say it.
	helloTime = 5 * time.Second
	// anyName stands for all names, and for clients that say none.
	anyName = "*"
)

// share is what a TLSRoute has of a port: those of its names that no better route has.
type share struct {
	route *cluster.Route
	names []string
	// lost are names of which others have the connections, sorted, and winner one of these routes.
	lost   []string
	winner *cluster.Route
}

// byClaim settles which of the TLSRoutes of a port, in their order, has which name: the first that gives it. A name that another only
// covers by a wildcard stays with the route that says more.
func byClaim(routes []*cluster.Route) []share {
	owner := map[string]*cluster.Route{}
	var out []share
	for _, r := range routes {
		c := share{route: r}
		names := slices.Clone(r.Hostnames)
		if len(names) == 0 {
			names = []string{anyName}
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if name == "" { // malformed
				continue
			}
			if owner[name] == nil {
				owner[name] = r
				c.names = append(c.names, name)
			} else if c.lost = append(c.lost, name); c.winner == nil {
				c.winner = owner[name]
			}
		}
		out = append(out, c)
	}
	return out
}

// byName gives a port of TLSRoutes its chains, one for each route that has a name, and what chooses between them: the name that the
// client asks for, whole or else by the longest wildcard. Connections that ask for another are refused.
func byName(h *Host, port cluster.ServicePort, at attachment, ix Index, policies Policies) ([]*listenerv3.FilterChain, *matcher.Matcher_OnMatch) {
	all := fmt.Sprintf("inbound-vip|%d|tls|%s", port.Port, h.Hostname)
	var chains []*listenerv3.FilterChain
	var rest *matcher.Matcher_OnMatch
	names := &matcher.ServerNameMatcher{}
	for _, c := range byClaim(at.producers) {
		if len(c.names) == 0 {
			continue
		}
		name := all + "|" + c.route.Name
		chains = append(chains, carry(name, splitTCP(name, c.route, ix, true), ix.Rule(h).PolicyOf(port.Port), policies))
		if slices.Contains(c.names, anyName) {
			rest = chosen(name) // also of those that ask for none
		}
		if named := slices.DeleteFunc(c.names, func(n string) bool { return n == anyName }); len(named) > 0 {
			names.DomainMatchers = append(names.DomainMatchers, &matcher.ServerNameMatcher_DomainMatcher{Domains: named, OnMatch: chosen(name)})
		}
	}
	if len(names.DomainMatchers) == 0 && rest == nil { // all are malformed
		chains, rest = append(chains, chain(all, filterTCP, tcpProxy(all, ClusterInvalid))), chosen(all)
	}
	if len(names.DomainMatchers) == 0 {
		return chains, rest
	}
	return chains, &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Matcher{Matcher: &matcher.Matcher{
		MatcherType: &matcher.Matcher_MatcherTree_{MatcherTree: &matcher.Matcher_MatcherTree{
			Input:    &xdscore.TypedExtensionConfig{Name: "server_name", TypedConfig: config(&networkv3.ServerNameInput{})},
			TreeType: &matcher.Matcher_MatcherTree_CustomMatch{CustomMatch: &xdscore.TypedExtensionConfig{Name: all, TypedConfig: config(names)}},
		}},
		OnNoMatch: rest,
	}}}
}

// chosen leads to a filter chain.
func chosen(name string) *matcher.Matcher_OnMatch {
	return &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Action{
		Action: &xdscore.TypedExtensionConfig{Name: name, TypedConfig: config(wrapperspb.String(name))}}}
}

// inspector looks for names of servers on some ports, and on others for nothing: clients there may wait for the server to begin.
func inspector(ports []uint16) *listenerv3.ListenerFilter {
	is := func(port uint16) *listenerv3.ListenerFilterChainMatchPredicate {
		return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
			DestinationPortRange: &typev3.Int32Range{Start: int32(port), End: int32(port) + 1}}}
	}
	one := is(ports[0])
	if len(ports) > 1 {
		set := &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{}
		for _, port := range ports {
			set.Rules = append(set.Rules, is(port))
		}
		one = &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{OrMatch: set}}
	}
	return &listenerv3.ListenerFilter{
		Name:           filterInspector,
		ConfigType:     &listenerv3.ListenerFilter_TypedConfig{TypedConfig: config(&inspectorv3.TlsInspector{})},
		FilterDisabled: &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: one}},
	}
}

// outdone tells which names of a TLSRoute others have on a port; "" if it has all of them.
func outdone(r *cluster.Route, routes []*cluster.Route) string {
	all := byClaim(routes)
	c := all[slices.IndexFunc(all, func(c share) bool { return c.route == r })]
	if len(c.lost) == 0 {
		return ""
	}
	return fmt.Sprintf("that ask for %s are those of TLSRoute %s", strings.Join(c.lost, ", "), c.winner.Key)
}
