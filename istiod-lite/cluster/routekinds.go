package cluster

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// HTTPRouteOf reduces an HTTPRoute.
func HTTPRouteOf(in *unstructured.Unstructured) *Route {
	var spec gatewayv1.HTTPRouteSpec
	r, unknown, ok := routeOf(KindHTTPRoute, in, &spec, func() (gatewayv1.CommonRouteSpec, []gatewayv1.Hostname, int) {
		return spec.CommonRouteSpec, spec.Hostnames, len(spec.Rules)
	})
	if !ok {
		return r
	}
	for i, rule := range spec.Rules {
		b := ruleReader{where: fmt.Sprintf("spec.rules[%d]", i), namespace: r.Namespace, rule: RouteRule{Faults: unknown[i]}}
		b.name(rule.Name)
		if len(rule.Matches) == 0 {
			b.rule.Matches = []RouteMatch{{}}
		}
		for j, m := range rule.Matches {
			b.httpMatch(fmt.Sprintf("%s.matches[%d]", b.where, j), m)
		}
		b.rule.Filters = b.httpFilters(b.where+".filters", rule.Filters)
		for j, ref := range rule.BackendRefs {
			b.backend(ref.BackendRef, b.httpFilters(fmt.Sprintf("%s.backendRefs[%d].filters", b.where, j), ref.Filters))
		}
		if t := rule.Timeouts; t != nil {
			b.rule.Timeout = b.duration(b.where+".timeouts.request", t.Request)
			b.rule.TryTimeout = b.duration(b.where+".timeouts.backendRequest", t.BackendRequest)
		}
		b.retry(rule.Retry)
		b.persistence(rule.SessionPersistence)
		b.together()
		r.Rules = append(r.Rules, b.rule)
	}
	return r
}

// GRPCRouteOf reduces a GRPCRoute.
func GRPCRouteOf(in *unstructured.Unstructured) *Route {
	var spec gatewayv1.GRPCRouteSpec
	r, unknown, ok := routeOf(KindGRPCRoute, in, &spec, func() (gatewayv1.CommonRouteSpec, []gatewayv1.Hostname, int) {
		return spec.CommonRouteSpec, spec.Hostnames, len(spec.Rules)
	})
	if !ok {
		return r
	}
	for i, rule := range spec.Rules {
		b := ruleReader{where: fmt.Sprintf("spec.rules[%d]", i), namespace: r.Namespace, rule: RouteRule{Faults: unknown[i]}}
		b.name(rule.Name)
		if len(rule.Matches) == 0 {
			b.rule.Matches = []RouteMatch{{}}
		}
		for j, m := range rule.Matches {
			b.grpcMatch(fmt.Sprintf("%s.matches[%d]", b.where, j), m)
		}
		b.rule.Filters = b.httpFilters(b.where+".filters", asHTTP(rule.Filters))
		for j, ref := range rule.BackendRefs {
			b.backend(ref.BackendRef, b.httpFilters(fmt.Sprintf("%s.backendRefs[%d].filters", b.where, j), asHTTP(ref.Filters)))
		}
		b.persistence(rule.SessionPersistence)
		r.Rules = append(r.Rules, b.rule)
	}
	return r
}

// asHTTP gives filters of a GRPCRoute as those of an HTTPRoute, which has all of its kinds.
func asHTTP(in []gatewayv1.GRPCRouteFilter) []gatewayv1.HTTPRouteFilter {
	var out []gatewayv1.HTTPRouteFilter
	for _, f := range in {
		out = append(out, gatewayv1.HTTPRouteFilter{
			Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		})
	}
	return out
}

// TCPRouteOf reduces a TCPRoute.
func TCPRouteOf(in *unstructured.Unstructured) *Route {
	var spec gatewayv1.TCPRouteSpec
	r, unknown, ok := routeOf(KindTCPRoute, in, &spec, func() (gatewayv1.CommonRouteSpec, []gatewayv1.Hostname, int) {
		return spec.CommonRouteSpec, nil, len(spec.Rules)
	})
	if !ok {
		return r
	}
	for i, rule := range spec.Rules {
		r.addPlainRule(i, rule.Name, rule.BackendRefs, unknown[i])
	}
	return r
}

// TLSRouteOf reduces a TLSRoute.
func TLSRouteOf(in *unstructured.Unstructured) *Route {
	var spec gatewayv1.TLSRouteSpec
	r, unknown, ok := routeOf(KindTLSRoute, in, &spec, func() (gatewayv1.CommonRouteSpec, []gatewayv1.Hostname, int) {
		return spec.CommonRouteSpec, spec.Hostnames, len(spec.Rules)
	})
	if !ok {
		return r
	}
	var odd []Fault
	for i, h := range r.Hostnames {
		host, fault := parseHost(fmt.Sprintf("spec.hostnames[%d]:", i), h, true)
		if fault != "" {
			odd = append(odd, Fault{Message: fault})
		}
		r.Hostnames[i] = host
	}
	for i, rule := range spec.Rules {
		r.addPlainRule(i, rule.Name, rule.BackendRefs, slices.Concat(unknown[i], odd))
	}
	return r
}

// addPlainRule adds a rule that only has backends.
func (r *Route) addPlainRule(i int, name *gatewayv1.SectionName, backends []gatewayv1.BackendRef, faults []Fault) {
	b := ruleReader{where: fmt.Sprintf("spec.rules[%d]", i), namespace: r.Namespace, rule: RouteRule{Faults: faults}}
	b.name(name)
	b.rule.Matches = []RouteMatch{{}}
	for _, ref := range backends {
		b.backend(ref, RouteFilters{})
	}
	r.Rules = append(r.Rules, b.rule)
}

// ruleReader reduces one rule. Where names it in messages.
type ruleReader struct {
	where, namespace string
	rule             RouteRule
}

func (b *ruleReader) fault(format string, args ...any) {
	b.rule.Faults = append(b.rule.Faults, Fault{Message: fmt.Sprintf(format, args...)})
}

func (b *ruleReader) name(in *gatewayv1.SectionName) {
	if in != nil {
		b.rule.Name = string(*in)
	}
}

func (b *ruleReader) backend(in gatewayv1.BackendRef, filters RouteFilters) {
	out := RouteBackend{BackendRef: b.ref(in.BackendObjectReference), Weight: 1, Filters: filters}
	if in.Weight != nil {
		out.Weight = uint32(max(*in.Weight, 0))
	}
	b.rule.Backends = append(b.rule.Backends, out)
}

func (b *ruleReader) ref(in gatewayv1.BackendObjectReference) BackendRef {
	out := BackendRef{Ref: ObjectRef{GroupCore, KindService, Key{b.namespace, string(in.Name)}}}
	if in.Group != nil {
		out.Ref.Group = groupOf(*in.Group)
	}
	if in.Kind != nil {
		out.Ref.Kind = Kind(*in.Kind)
	}
	if in.Namespace != nil {
		out.Ref.Key.Namespace = string(*in.Namespace)
	}
	if in.Port != nil {
		out.Port, _ = parsePort("", *in.Port) // the API server lets ports only pass
	}
	return out
}

// duration reads a duration of the Gateway API, whose form is a part of Go's.
func (b *ruleReader) duration(where string, in *gatewayv1.Duration) time.Duration {
	if in == nil {
		return 0
	}
	d, err := time.ParseDuration(string(*in))
	if err != nil || d < 0 {
		b.fault("%s: %q is not a duration", where, *in)
		return 0
	}
	return d
}

func (b *ruleReader) retry(in *gatewayv1.HTTPRouteRetry) {
	if in == nil {
		return
	}
	out := &RouteRetry{Backoff: b.duration(b.where+".retry.backoff", in.Backoff)}
	for _, c := range in.Codes {
		if c < 400 || c > 599 {
			b.fault("%s.retry.codes: %d is not a status code from 400 to 599", b.where, c)
			continue
		}
		out.Codes = append(out.Codes, uint32(c))
	}
	slices.Sort(out.Codes)
	out.Codes = slices.Compact(out.Codes)
	if in.Attempts != nil {
		attempts := uint32(min(max(*in.Attempts, 0), maxAttempts))
		out.Attempts = &attempts
	}
	b.rule.Retry = out
}

// maxAttempts bounds retries of a request; a larger number is an endless loop to whoever waits.
const maxAttempts = 1000

func (b *ruleReader) persistence(in *gatewayv1.SessionPersistence) {
	if in == nil {
		return
	}
	at := b.where + ".sessionPersistence"
	out := &Session{}
	if in.SessionName != nil {
		if out.Name = *in.SessionName; !httpguts.ValidHeaderFieldName(out.Name) {
			b.fault("%s.sessionName: %q cannot be the name of a cookie or header field", at, out.Name)
		}
	}
	permanent := in.CookieConfig != nil && in.CookieConfig.LifetimeType != nil && *in.CookieConfig.LifetimeType == gatewayv1.PermanentCookieLifetimeType
	absolute := b.duration(at+".absoluteTimeout", in.AbsoluteTimeout)
	switch kind := in.Type; {
	case kind != nil && *kind == gatewayv1.HeaderBasedSessionPersistence:
		out.Header = true
		switch strings.ToLower(out.Name) {
		case "host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "keep-alive", "proxy-connection":
			b.fault("%s.sessionName: %q has a meaning of its own in HTTP", at, out.Name)
		}
		if absolute > 0 {
			b.fault("%s.absoluteTimeout is not supported for type Header: a header field has no end", at)
		}
	case kind != nil && *kind != gatewayv1.CookieBasedSessionPersistence:
		b.fault("%s.type: %q is not supported", at, *kind)
	case permanent && absolute == 0:
		b.fault("%s.absoluteTimeout is required with lifetimeType Permanent", at)
	case !permanent && absolute > 0:
		b.fault("%s.absoluteTimeout is supported with cookieConfig.lifetimeType Permanent only", at)
	}
	out.Lifetime = absolute
	b.rule.Session = out
}

// regex reports whether an expression compiles, and adds a fault if not. Go's syntax and Envoy's are both RE2's.
func (b *ruleReader) regex(where, value string) bool {
	if _, err := regexp.Compile(value); err != nil {
		b.fault("%s: %v", where, err)
		return false
	}
	return true
}

func (b *ruleReader) httpMatch(where string, in gatewayv1.HTTPRouteMatch) {
	var out RouteMatch
	ok := b.path(where+".path", in.Path, &out.Path)
	if in.Method != nil {
		out.Method = string(*in.Method)
		ok = b.token(where+".method", out.Method) && ok
	}
	for i, h := range in.Headers {
		kind := gatewayv1.HeaderMatchExact
		if h.Type != nil {
			kind = *h.Type
		}
		ok = b.header(fmt.Sprintf("%s.headers[%d]", where, i), string(kind), string(h.Name), h.Value, &out) && ok
	}
	for i, q := range in.QueryParams {
		kind := gatewayv1.QueryParamMatchExact
		if q.Type != nil {
			kind = *q.Type
		}
		ok = b.value(fmt.Sprintf("%s.queryParams[%d]", where, i), string(kind), string(q.Name), q.Value, &out.Query) && ok
	}
	if ok {
		b.rule.Matches = append(b.rule.Matches, out)
	}
}

func (b *ruleReader) path(where string, in *gatewayv1.HTTPPathMatch, out *PathMatch) bool {
	if in == nil {
		return true
	}
	kind, value := gatewayv1.PathMatchPathPrefix, "/"
	if in.Type != nil {
		kind = *in.Type
	}
	if in.Value != nil {
		value = *in.Value
	}
	switch kind {
	case gatewayv1.PathMatchExact:
		*out = PathMatch{PathExact, value}
		return b.goodPath(where+".value", value)
	case gatewayv1.PathMatchPathPrefix:
		if !b.goodPath(where+".value", value) {
			return false
		}
		if value = strings.TrimRight(value, "/"); value != "" {
			*out = PathMatch{PathPrefix, value}
		}
	case gatewayv1.PathMatchRegularExpression:
		*out = PathMatch{PathRegex, value}
		if value == "" {
			b.fault("%s.value: an expression is required", where)
			return false
		}
		return b.regex(where+".value", value)
	default:
		b.fault("%s.type: %q is not supported", where, kind)
		return false
	}
	return true
}

// header adds a match of a header.
func (b *ruleReader) header(where, kind, name, value string, to *RouteMatch) bool {
	name = strings.ToLower(name)
	return b.token(where+".name", name) && b.value(where, kind, name, value, &to.Headers)
}

// value adds a match of a header or query parameter. Of several with one name the first counts, as the Gateway API wants it.
func (b *ruleReader) value(where, kind, name, value string, to *[]ValueMatch) bool {
	m := ValueMatch{Name: name, Value: value}
	if name == "" {
		b.fault("%s.name: a name is required", where)
		return false
	}
	switch kind {
	case string(gatewayv1.HeaderMatchExact):
	case string(gatewayv1.HeaderMatchRegularExpression):
		m.Regex = true
		if value == "" {
			b.fault("%s.value: an expression is required", where)
			return false
		}
		if !b.regex(where+".value", value) {
			return false
		}
	default:
		b.fault("%s.type: %q is not supported", where, kind)
		return false
	}
	if !slices.ContainsFunc(*to, func(o ValueMatch) bool { return o.Name == name }) {
		*to = append(*to, m)
	}
	return true
}

func (b *ruleReader) grpcMatch(where string, in gatewayv1.GRPCRouteMatch) {
	var out RouteMatch
	ok := true
	if m := in.Method; m != nil {
		kind := gatewayv1.GRPCMethodMatchExact
		if m.Type != nil {
			kind = *m.Type
		}
		if m.Service != nil {
			out.GRPC.Service = *m.Service
		}
		if m.Method != nil {
			out.GRPC.Method = *m.Method
		}
		switch kind {
		case gatewayv1.GRPCMethodMatchExact:
			ok = b.goodPath(where+".method", "/"+out.GRPC.Service+"/"+out.GRPC.Method) && ok
		case gatewayv1.GRPCMethodMatchRegularExpression:
			out.GRPC.Regex = true
			ok = b.regex(where+".method.service", out.GRPC.Service) && ok
			ok = b.regex(where+".method.method", out.GRPC.Method) && ok
		default:
			b.fault("%s.method.type: %q is not supported", where, kind)
			ok = false
		}
	}
	for i, h := range in.Headers {
		kind := gatewayv1.GRPCHeaderMatchExact
		if h.Type != nil {
			kind = *h.Type
		}
		ok = b.header(fmt.Sprintf("%s.headers[%d]", where, i), string(kind), string(h.Name), h.Value, &out) && ok
	}
	if ok {
		b.rule.Matches = append(b.rule.Matches, out)
	}
}

// together adds faults for what does not go together.
func (b *ruleReader) together() {
	incompatible := func(format string, args ...any) {
		b.rule.Faults = append(b.rule.Faults, Fault{true, fmt.Sprintf(format, args...)})
	}
	f := b.rule.Filters
	if f.Redirect != nil && f.Rewrite != nil {
		incompatible("%s.filters: RequestRedirect and URLRewrite exclude each other", b.where)
	}
	if f.Redirect != nil && len(b.rule.Backends) > 0 {
		incompatible("%s: a rule that redirects has no backendRefs", b.where)
	}
	if f.prefixReplaced() || slices.ContainsFunc(b.rule.Backends, func(o RouteBackend) bool { return o.Filters.prefixReplaced() }) {
		if slices.ContainsFunc(b.rule.Matches, func(m RouteMatch) bool { return m.Path.Kind == PathExact || m.Path.Kind == PathRegex }) {
			incompatible("%s.filters: ReplacePrefixMatch needs matches of type PathPrefix", b.where)
		}
	}
	if t := b.rule; t.Timeout > 0 && t.TryTimeout > t.Timeout {
		incompatible("%s.timeouts: backendRequest is longer than request", b.where)
	}
}

func (f RouteFilters) prefixReplaced() bool {
	return f.Redirect != nil && f.Redirect.Path.Kind == PathPrefixReplaced || f.Rewrite != nil && f.Rewrite.Path.Kind == PathPrefixReplaced
}

// CompareRoutes is the order among routes of which nothing else tells which comes first: the oldest, then by name.
func CompareRoutes(a, b *Route) int {
	return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key))
}
