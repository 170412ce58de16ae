package l7

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// RouteTable translates the routes of one port of a host; nil if HTTP is not spoken there, and for a host without addresses. It
// depends on the routes that name the host as a parent, and on the hosts that these refer to.
func RouteTable(h *Host, port cluster.ServicePort, ix Index) *routev3.RouteConfiguration {
	if len(h.Addresses) == 0 || h.Unfit != "" {
		return nil
	}
	at := attach(h, port, ix.Routes(h.Ref))
	if !at.http {
		return nil
	}
	host := &routev3.VirtualHost{
		Name: fmt.Sprintf("inbound|%s|%d", h.Hostname, port.Port), Domains: []string{"*"},
	}
	for _, c := range at.consumers {
		from := clientsOf(c.namespace)
		for _, e := range ordered(c.routes) {
			for _, r := range e.translate(port, ix) {
				r.Match.FilterState = append(r.Match.FilterState, from)
				host.Routes = append(host.Routes, r)
			}
		}
		host.Routes = append(host.Routes, &routev3.Route{
			Name:   "unmatched/" + c.namespace,
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}, FilterState: []*matcherv3.FilterStateMatcher{from}},
			Action: respond(404),
		})
	}
	for _, e := range ordered(at.producers) {
		host.Routes = append(host.Routes, e.translate(port, ix)...)
	}
	if len(at.producers) == 0 {
		own := forward(&cluster.RouteRule{}, &routev3.RouteAction_Cluster{Cluster: ClusterName(h, port.Port)})
		own.HashPolicy = hashing([]cluster.BackendRef{{Ref: h.Ref, Port: port.Port}}, ix)
		host.Routes = append(host.Routes, &routev3.Route{
			Name:   "default",
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: own},
		})
	}
	inject(host.Routes, ix.Fault(h))
	limit(host, limitOf(h, port, ix))
	return &routev3.RouteConfiguration{
		Name: ChainName(h, port.Port, true), VirtualHosts: []*routev3.VirtualHost{host},
		// A backend may be gone before the route that names it; it is answered for when it is asked for.
		ValidateClusters: wrapperspb.Bool(false),
	}
}

// clientsOf matches clients by the namespace of their identity, in whatever trust domain.
func clientsOf(namespace string) *matcherv3.FilterStateMatcher {
	return &matcherv3.FilterStateMatcher{Key: FilterStatePeer, Matcher: &matcherv3.FilterStateMatcher_StringMatch{
		StringMatch: stringMatch("^spiffe://[^/]+/ns/"+regexp.QuoteMeta(namespace)+"/.*", true)}}
}

// entry is one match of one rule.
type entry struct {
	route       *cluster.Route
	rule, match int
}

func (e entry) of() (*cluster.RouteRule, cluster.RouteMatch) {
	rule := &e.route.Rules[e.rule]
	return rule, rule.Matches[e.match]
}

// ordered lists the matches of routes, the one that is tried first coming first.
func ordered(routes []*cluster.Route) []entry {
	var out []entry
	for _, r := range routes {
		for i, rule := range r.Rules {
			for j := range rule.Matches {
				out = append(out, entry{r, i, j})
			}
		}
	}
	slices.SortStableFunc(out, compareEntries)
	return out
}

// compareEntries is the order of the Gateway API: the path that says more (exact ones before expressions, whose place it leaves
// open, before prefixes), then a method, the number of headers and of query parameters, then the older route, its name, and the
// order within it.
func compareEntries(a, b entry) int {
	_, x := a.of()
	_, y := b.of()
	return cmp.Or(
		cmp.Compare(pathRank(x.Path), pathRank(y.Path)),
		cmp.Compare(len(y.Path.Value), len(x.Path.Value)),
		cmp.Compare(grpcRank(x.GRPC), grpcRank(y.GRPC)),
		cmp.Compare(len(y.GRPC.Service), len(x.GRPC.Service)),
		cmp.Compare(len(y.GRPC.Method), len(x.GRPC.Method)),
		cmp.Compare(presence(y.Method), presence(x.Method)),
		cmp.Compare(len(y.Headers), len(x.Headers)),
		cmp.Compare(len(y.Query), len(x.Query)),
		cluster.CompareRoutes(a.route, b.route),
		cmp.Compare(a.rule, b.rule),
		cmp.Compare(a.match, b.match),
	)
}

func pathRank(p cluster.PathMatch) int {
	switch p.Kind {
	case cluster.PathExact:
		return 0
	case cluster.PathRegex:
		return 1
	}
	return 2
}

// grpcRank puts expressions after exact methods and before all others.
func grpcRank(g cluster.GRPCMatch) int {
	switch {
	case g.Service != "" && g.Method != "" && !g.Regex:
		return 0
	case g.Regex:
		return 1
	}
	return 2
}

func presence(s string) int { return min(len(s), 1) }

// translate makes a route of one match, and one more for the preflights of requests that only the method tells from others: a
// browser asks by OPTIONS what it may do by another method.
func (e entry) translate(port cluster.ServicePort, ix Index) []*routev3.Route {
	rule, match := e.of()
	name := rule.Name
	if name == "" {
		name = strconv.Itoa(e.rule)
	}
	r := &routev3.Route{
		Name:  fmt.Sprintf("%s/%s/%d", e.route.Key, name, e.match),
		Match: matchOf(match),
	}
	act(r, e, port, ix)
	cors := r.TypedPerFilterConfig[filterCORS]
	if cors == nil || match.Method == "" || match.Method == methodPreflight || len(match.Headers) > 0 {
		return []*routev3.Route{r}
	}
	asked := match.Method
	match.Method = methodPreflight
	preflight := &routev3.Route{
		Name: r.Name + "/preflight", Match: matchOf(match), TypedPerFilterConfig: map[string]*anypb.Any{filterCORS: cors},
		Action: respond(404), // to what looks like a preflight and is none
	}
	preflight.Match.Headers = append(preflight.Match.Headers, headerMatch("access-control-request-method", asked, false))
	return []*routev3.Route{r, preflight}
}

// methodPreflight is the method of preflights, which ask what another origin's page may do (the Fetch standard).
const methodPreflight = "OPTIONS"

func matchOf(in cluster.RouteMatch) *routev3.RouteMatch {
	out := &routev3.RouteMatch{}
	switch in.Path.Kind {
	case cluster.PathExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: in.Path.Value}
	case cluster.PathPrefix:
		out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: in.Path.Value}
	case cluster.PathRegex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: in.Path.Value}}
	default:
		grpcPath(in.GRPC, out)
	}
	if in.Method != "" {
		out.Headers = append(out.Headers, headerMatch(":method", in.Method, false))
	}
	for _, h := range in.Headers {
		out.Headers = append(out.Headers, headerMatch(h.Name, h.Value, h.Regex))
	}
	for _, q := range in.Query {
		out.QueryParameters = append(out.QueryParameters, &routev3.QueryParameterMatcher{
			Name: q.Name, QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: stringMatch(q.Value, q.Regex)}})
	}
	return out
}

// grpcPath matches the path of a gRPC request: /service/method. The zero match is for any path.
func grpcPath(in cluster.GRPCMatch, out *routev3.RouteMatch) {
	part := func(value string) string {
		switch {
		case value == "":
			return "[^/]+"
		case in.Regex:
			return "(?:" + value + ")"
		}
		return regexp.QuoteMeta(value)
	}
	switch {
	case in.Service == "" && in.Method == "":
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
	case in.Regex || in.Service == "":
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "/" + part(in.Service) + "/" + part(in.Method)}}
	case in.Method == "":
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/" + in.Service + "/"}
	default:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: "/" + in.Service + "/" + in.Method}
	}
}

func headerMatch(name, value string, regex bool) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatch(value, regex)}}
}

func stringMatch(value string, regex bool) *matcherv3.StringMatcher {
	if regex {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: value}}}
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}
}

func respond(status uint32) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: status}}
}

// headerOptions are changes that put headers there.
func headerOptions(c *cluster.HeaderChanges) []*corev3.HeaderValueOption {
	if c == nil {
		return nil
	}
	var out []*corev3.HeaderValueOption
	add := func(headers []cluster.Header, action corev3.HeaderValueOption_HeaderAppendAction) {
		for _, h := range headers {
			out = append(out, &corev3.HeaderValueOption{
				Header: &corev3.HeaderValue{Key: h.Name, Value: literal(h.Value)}, AppendAction: action, KeepEmptyValue: h.Value == "",
			})
		}
	}
	add(c.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	add(c.Add, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	return out
}
