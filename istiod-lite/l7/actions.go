package l7

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	sessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	cookiesessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/cookie/v3"
	headersessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/header/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	httptypev3 "github.com/envoyproxy/go-control-plane/envoy/type/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// faultsOf is all that keeps a rule from being executed: what its reading found, and what cannot be said to waypoints.
func faultsOf(r *cluster.Route, i int) []cluster.Fault {
	rule := &r.Rules[i]
	faults := slices.Clone(rule.Faults)
	add := func(incompatible bool, format string, args ...any) {
		faults = append(faults, cluster.Fault{Incompatible: incompatible, Message: fmt.Sprintf("spec.rules[%d]", i) + fmt.Sprintf(format, args...)})
	}
	host := func(where string, f cluster.RouteFilters) {
		if c := f.Response; c != nil && (slices.Contains(c.Remove, headerHost) || slices.ContainsFunc(c.Set, isHost) || slices.ContainsFunc(c.Add, isHost)) {
			add(false, "%s: ResponseHeaderModifier: Host is no header of answers", where)
		}
		if f.Request == nil {
			return
		}
		if slices.Contains(f.Request.Remove, headerHost) || slices.ContainsFunc(f.Request.Add, isHost) {
			add(false, "%s: RequestHeaderModifier can set the header Host, not add to it or remove it", where)
		}
		if slices.ContainsFunc(f.Request.Set, isHost) && f.Rewrite != nil && f.Rewrite.Hostname != "" {
			add(true, "%s: RequestHeaderModifier sets the header Host, and so does URLRewrite", where)
		}
	}
	if !isHTTP(r.Kind) && i > 0 {
		add(false, " is never reached: the first rule takes all connections")
	}
	host(".filters", rule.Filters)
	several := len(shares(rule)) > 1
	for j, b := range rule.Backends {
		where := fmt.Sprintf(".backendRefs[%d].filters", j)
		f := b.Filters
		host(where, f)
		switch {
		case f.Redirect != nil:
			add(false, "%s: RequestRedirect is not supported for a single backend", where)
		case f.CORS != nil:
			add(false, "%s: CORS is not supported for a single backend", where)
		case several && len(f.Mirrors) > 0:
			add(false, "%s: RequestMirror is not supported for one of several backends", where)
		case several && f.Rewrite != nil && f.Rewrite.Path.Kind != cluster.PathKept:
			add(false, "%s: URLRewrite of the path is not supported for one of several backends", where)
		case f.Rewrite != nil && rule.Filters.Rewrite != nil:
			add(true, "%s: the rule has a URLRewrite already", where)
		}
	}
	return faults
}

const headerHost = "host"

func isHost(h cluster.Header) bool { return h.Name == headerHost }

// shares are the backends that get requests.
func shares(rule *cluster.RouteRule) []cluster.RouteBackend {
	var out []cluster.RouteBackend
	for _, b := range rule.Backends {
		if b.Weight > 0 {
			out = append(out, b)
		}
	}
	return out
}

// act says what is done with requests that match.
func act(out *routev3.Route, e entry, port cluster.ServicePort, ix Index) {
	rule, match := e.of()
	if len(faultsOf(e.route, e.rule)) > 0 {
		out.Action = respond(500)
		return
	}
	f := rule.Filters
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = headerOptions(f.Response), removals(f.Response)
	if f.CORS != nil {
		setFilter(out, filterCORS, corsPolicy(f.CORS))
	}
	if f.Redirect != nil {
		out.Action = &routev3.Route_Redirect{Redirect: redirect(f.Redirect, match.Path, port)}
		return
	}
	backends := shares(rule)
	good := slices.ContainsFunc(backends, func(b cluster.RouteBackend) bool { return resolve(b.BackendRef, ix).fault == "" })
	if !good {
		out.Action = respond(500)
		return
	}
	request := withoutHost(f.Request)
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = headerOptions(request), removals(request)
	rewrite, mirrors := f.Rewrite, f.Mirrors
	if len(backends) == 1 {
		b := backends[0].Filters
		mirrors = append(slices.Clone(mirrors), b.Mirrors...)
		if b.Rewrite != nil {
			rewrite = b.Rewrite
		}
	}
	action := forward(rule, nil)
	spread(action, backends, ix)
	var refs []cluster.BackendRef
	for _, b := range backends {
		refs = append(refs, b.BackendRef)
	}
	action.HashPolicy = hashing(refs, ix)
	rewriteRequest(action, rewrite, match.Path)
	if host := hostOf(f); host != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host}
	} else if len(backends) == 1 && hostOf(backends[0].Filters) != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: hostOf(backends[0].Filters)}
	}
	for _, m := range mirrors {
		if to := resolve(m.Backend, ix); to.fault == "" && m.PerMillion > 0 {
			action.RequestMirrorPolicies = append(action.RequestMirrorPolicies, mirror(to, m.PerMillion))
		}
	}
	if s := rule.Session; s != nil {
		setFilter(out, filterSession, sessionOf(s, e))
	}
	out.Action = &routev3.Route_Route{Route: action}
}

// setFilter gives a filter settings for a route alone.
func setFilter(out *routev3.Route, name string, settings proto.Message) {
	if out.TypedPerFilterConfig == nil {
		out.TypedPerFilterConfig = map[string]*anypb.Any{}
	}
	out.TypedPerFilterConfig[name] = config(settings)
}

// sessionOf keeps clients of a rule with one endpoint. Each rule without a name has a session of its own.
func sessionOf(s *cluster.Session, e entry) *sessionv3.StatefulSessionPerRoute {
	name := s.Name
	if name == "" {
		name = fmt.Sprintf("ambit-session-%x", sha256.Sum256([]byte(string(e.route.Kind)+"/"+e.route.Key.String()+"/"+strconv.Itoa(e.rule))))[:len("ambit-session-")+10]
	}
	state := &corev3.TypedExtensionConfig{}
	if s.Header {
		state.Name, state.TypedConfig = "envoy.http.stateful_session.header", config(&headersessionv3.HeaderBasedSessionState{Name: name})
	} else {
		c := &httptypev3.Cookie{Name: name, Path: "/"}
		if s.Lifetime > 0 {
			c.Ttl = durationpb.New(s.Lifetime)
		}
		state.Name, state.TypedConfig = "envoy.http.stateful_session.cookie", config(&cookiesessionv3.CookieBasedSessionState{Cookie: c})
	}
	return &sessionv3.StatefulSessionPerRoute{Override: &sessionv3.StatefulSessionPerRoute_StatefulSession{
		StatefulSession: &sessionv3.StatefulSession{SessionState: state}}}
}

// hostOf is the host that filters give to requests, "" if they leave it.
func hostOf(f cluster.RouteFilters) string {
	if f.Rewrite != nil && f.Rewrite.Hostname != "" {
		return f.Rewrite.Hostname
	}
	if f.Request != nil {
		if i := slices.IndexFunc(f.Request.Set, isHost); i >= 0 {
			return f.Request.Set[i].Value
		}
	}
	return ""
}

// withoutHost leaves the header Host out, which is changed in another way.
func withoutHost(c *cluster.HeaderChanges) *cluster.HeaderChanges {
	if c == nil || !slices.ContainsFunc(c.Set, isHost) {
		return c
	}
	return &cluster.HeaderChanges{Set: slices.DeleteFunc(slices.Clone(c.Set), isHost), Add: c.Add, Remove: c.Remove}
}

func removals(c *cluster.HeaderChanges) []string {
	if c == nil {
		return nil
	}
	return c.Remove
}

// literal keeps Envoy from reading a variable into a value.
func literal(value string) string { return strings.ReplaceAll(value, "%", "%%") }

// spread sends requests to backends by their weights. The share of one that cannot be used is answered 500.
func spread(out *routev3.RouteAction, backends []cluster.RouteBackend, ix Index) {
	out.ClusterNotFoundResponseCode = routev3.RouteAction_SERVICE_UNAVAILABLE
	if len(backends) == 1 && backends[0].Filters.Request == nil && backends[0].Filters.Response == nil {
		out.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: resolve(backends[0].BackendRef, ix).cluster}
		return
	}
	weighted := &routev3.WeightedCluster{}
	for _, b := range backends {
		to := resolve(b.BackendRef, ix)
		if to.fault != "" {
			out.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
		}
		request := withoutHost(b.Filters.Request)
		w := &routev3.WeightedCluster_ClusterWeight{
			Name: to.cluster, Weight: wrapperspb.UInt32(b.Weight),
			RequestHeadersToAdd: headerOptions(request), RequestHeadersToRemove: removals(request),
			ResponseHeadersToAdd: headerOptions(b.Filters.Response), ResponseHeadersToRemove: removals(b.Filters.Response),
		}
		if host := hostOf(b.Filters); host != "" && len(backends) > 1 {
			w.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: host}
		}
		weighted.Clusters = append(weighted.Clusters, w)
	}
	out.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
}

// Retries of requests whose rule asks for none: those that certainly reached no application.
const (
	retrySafe     = "connect-failure,refused-stream"
	retryAsked    = retrySafe + ",reset-before-request,retriable-status-codes"
	retryAttempts = 2 // Istio's
	// otherHostTries is how often a choice of an endpoint that was tried already is repeated.
	otherHostTries = 5
	// backoffGrowth is how much longer than the first the longest wait between tries may become: Envoy's own.
	backoffGrowth = 10
)

// forward is what all rules that send requests on have in common; to may be nil, and then is still to be filled in.
func forward(rule *cluster.RouteRule, to *routev3.RouteAction_Cluster) *routev3.RouteAction {
	retry := &routev3.RetryPolicy{
		RetryOn: retrySafe, NumRetries: wrapperspb.UInt32(retryAttempts), HostSelectionRetryMaxAttempts: otherHostTries,
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: config(&previoushostsv3.PreviousHostsPredicate{})},
		}},
	}
	timeout := rule.Timeout
	if asked := rule.Retry; asked != nil {
		retry.RetryOn, retry.RetriableStatusCodes = retryAsked, asked.Codes
		if len(asked.Codes) == 0 {
			retry.RetryOn = strings.TrimSuffix(retryAsked, ",retriable-status-codes")
		}
		if asked.Attempts != nil {
			retry.NumRetries = wrapperspb.UInt32(*asked.Attempts)
		}
		if asked.Backoff >= time.Millisecond {
			longest := asked.Backoff
			if longest < time.Hour {
				longest *= backoffGrowth
			}
			retry.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{
				BaseInterval: durationpb.New(asked.Backoff), MaxInterval: durationpb.New(longest)}
		}
	}
	if try := rule.TryTimeout; try > 0 {
		if rule.Retry != nil && retry.NumRetries.GetValue() > 0 {
			// A try whose time is over is one to try again after, which Envoy takes for a reset.
			retry.PerTryTimeout, retry.RetryOn = durationpb.New(try), retry.RetryOn+",reset"
		} else if timeout == 0 || try < timeout {
			timeout = try
		}
	}
	out := &routev3.RouteAction{Timeout: durationpb.New(timeout), RetryPolicy: retry}
	if to != nil {
		out.ClusterSpecifier = to
	}
	return out
}

// rewriteRequest changes the path of requests.
func rewriteRequest(out *routev3.RouteAction, rewrite *cluster.Rewrite, match cluster.PathMatch) {
	if rewrite == nil {
		return
	}
	prefix, regex := pathChange(rewrite.Path, match)
	out.PrefixRewrite, out.RegexRewrite = prefix, regex
}

// pathChange is a change of a path, by a prefix that takes the place of the one that was matched, or by an expression.
func pathChange(c cluster.PathChange, match cluster.PathMatch) (string, *matcherv3.RegexMatchAndSubstitute) {
	regex := func(pattern, substitution string) (string, *matcherv3.RegexMatchAndSubstitute) {
		return "", &matcherv3.RegexMatchAndSubstitute{
			Pattern: &matcherv3.RegexMatcher{Regex: pattern}, Substitution: strings.ReplaceAll(substitution, `\`, `\\`)}
	}
	switch {
	case c.Kind == cluster.PathReplaced:
		return regex("^.*$", c.Value)
	case c.Kind == cluster.PathKept:
		return "", nil
	case match.Kind != cluster.PathPrefix: // what was matched is the slash at the beginning
		return c.Value + "/", nil
	case c.Value == "": // the slash after the prefix has to stay, and there may be none
		return regex("^"+regexp.QuoteMeta(match.Value)+"/?", "/")
	}
	return c.Value, nil
}

// defaultPorts are those that a URL may leave out.
var defaultPorts = map[string]uint16{"http": 80, "https": 443}

// redirect answers with another place. The port is the one that is asked for, else that of the scheme that is asked for, else the
// one of the service. Envoy keeps the port of the request's host if neither host nor port are given, and writes one that is given
// even where the scheme implies it.
func redirect(in *cluster.Redirect, match cluster.PathMatch, port cluster.ServicePort) *routev3.RedirectAction {
	out := &routev3.RedirectAction{HostRedirect: in.Hostname, ResponseCode: redirectCodes[in.Status], PortRedirect: uint32(in.Port)}
	if in.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: in.Scheme}
	}
	switch {
	case in.Port != 0:
	case in.Scheme != "" && in.Hostname == "":
		out.PortRedirect = uint32(defaultPorts[in.Scheme])
	case in.Scheme == "" && in.Hostname != "" && port.Port != defaultPorts["http"]:
		out.PortRedirect = uint32(port.Port)
	}
	if in.Path.Kind == cluster.PathReplaced {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: in.Path.Value}
		return out
	}
	if prefix, regex := pathChange(in.Path, match); regex != nil {
		out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: regex}
	} else if prefix != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
	}
	return out
}

var redirectCodes = map[int]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY, 302: routev3.RedirectAction_FOUND, 303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT, 308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

// mirror copies requests. The host is left as it is: mirrors are the same service in another version.
func mirror(to target, perMillion uint32) *routev3.RouteAction_RequestMirrorPolicy {
	out := &routev3.RouteAction_RequestMirrorPolicy{Cluster: to.cluster, DisableShadowHostSuffixAppend: true}
	share := &typev3.FractionalPercent{Numerator: perMillion, Denominator: typev3.FractionalPercent_MILLION}
	if perMillion%10_000 == 0 {
		share = &typev3.FractionalPercent{Numerator: perMillion / 10_000, Denominator: typev3.FractionalPercent_HUNDRED}
	}
	out.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: share}
	return out
}

// corsPolicy answers preflight requests of origins that are not allowed without the headers that would allow them.
func corsPolicy(in *cluster.CORS) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		AllowMethods: strings.Join(in.Methods, ", "), AllowHeaders: strings.Join(in.Headers, ", "), ExposeHeaders: strings.Join(in.Exposed, ", "),
		MaxAge:                       strconv.Itoa(int(in.MaxAge / time.Second)),
		AllowCredentials:             wrapperspb.Bool(in.Credentials),
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	for _, o := range in.Origins {
		switch {
		case o == "*":
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, stringMatch(".*", true))
		case strings.Contains(o, "*"):
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, stringMatch(strings.ReplaceAll(regexp.QuoteMeta(o), `\*`, "[^/]*"), true))
		default:
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, stringMatch(o, false))
		}
	}
	return out
}
