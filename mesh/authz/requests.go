package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	securityv1 "istio.io/api/security/v1beta1"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// requestRule is a rule as waypoints take it, before it is known which trust domains are the same.
type requestRule struct {
	from, to []part // alternatives
	when     []part
}

// part is what must hold together: what connections have too, and what only waypoints know.
type part struct {
	matches           []*security.Match
	source, operation policy.All
}

// errLater is the fault of what waypoints do not do.
var errLater = errors.New("is not supported at waypoints in this release")

// denies reports whether the policy is against what it matches: it refuses that, or has somebody asked, who may refuse it.
func (p *Policy) denies() bool { return p.Action == Deny || p.Action == Custom }

// readRequests reads the rules for waypoints, each by itself.
func (p *Policy) readRequests(value any) {
	if p.Action == Custom && p.Provider == "" {
		p.Requests.problem(Problem{Invalid, "provider", "name is missing: there is nobody to be asked, so that what the policy matches is refused"})
	}
	list, ok := value.([]any)
	if !ok && value != nil {
		p.Requests.problem(Problem{Invalid, "rules", "is not a list"})
		p.Requests.denyAll(p.denies())
		return
	}
	for i, v := range list {
		r := reader{namespace: p.Namespace, where: fmt.Sprintf("rules[%d]", i), requests: true}
		rule := r.readRequest(v, p.denies())
		p.Requests.problem(r.problems...)
		if len(r.problems) > 0 {
			p.Requests.spoilt++
		}
		if len(r.problems) == 0 || p.denies() {
			p.Requests.rules = append(p.Requests.rules, rule)
		}
	}
}

// Requests is what a policy with targetRefs means at waypoints.
type Requests struct {
	// Targets are what it is attached to.
	Targets []Target
	// Problems say what of it does not mean at waypoints what it says, in the order of the text.
	Problems []Problem

	rules  []requestRule
	spoilt int // rules that have problems
}

func (q *Requests) problem(p ...Problem) { q.Problems = append(q.Problems, p...) }

func (q *Requests) denyAll(denies bool) {
	q.rules = nil
	if denies {
		q.rules = []requestRule{{}}
	}
}

// RequestRules are the rules for waypoints, of which one must hold for the policy to match. With action CUSTOM they are those of a
// policy that denies.
func (p *Policy) RequestRules(m Mesh) []policy.RequestRule {
	var out []policy.RequestRule
	for _, r := range p.Requests.rules {
		var rule struct{ source, operation policy.All }
		alternatives := func(parts []part) {
			var sources, operations policy.Any // of which one side asks for nothing
			for _, one := range parts {
				s, o := one.exprs(p.denies(), m.TrustDomains)
				sources, operations = append(sources, s), append(operations, o)
			}
			rule.source, rule.operation = oneOf(rule.source, sources), oneOf(rule.operation, operations)
		}
		if len(r.from) > 0 {
			alternatives(r.from)
		}
		if len(r.to) > 0 {
			alternatives(r.to)
		}
		for _, one := range r.when {
			s, o := one.exprs(p.denies(), m.TrustDomains)
			rule.source, rule.operation = append(rule.source, s...), append(rule.operation, o...)
		}
		out = append(out, policy.RequestRule{Source: rule.source, Operation: rule.operation})
	}
	return out
}

// oneOf adds that one of the alternatives holds, unless one of them holds always.
func oneOf(to policy.All, alternatives policy.Any) policy.All {
	for _, e := range alternatives {
		if all, ok := e.(policy.All); ok && len(all) == 0 {
			return to
		}
	}
	return append(to, alternatives)
}

// RequestPolicy compiles the policy for waypoints; nil if it has no targetRefs.
func (p *Policy) RequestPolicy(m Mesh) *policy.RequestPolicy {
	if !p.Attached {
		return nil
	}
	action := policy.Allow
	if p.denies() {
		action = policy.Deny
	}
	return policy.NewRequestPolicy(p.Namespace, p.Name, action, p.DryRun, p.RequestRules(m))
}

func (r *reader) readRequest(value any, denies bool) requestRule {
	spec := r.decode(value)
	if spec == nil {
		return requestRule{}
	}
	var out requestRule
	for i, from := range spec.GetFrom() {
		out.from = append(out.from, r.requestSource(fmt.Sprintf(".from[%d].source", i), from.GetSource()))
	}
	for i, to := range spec.GetTo() {
		out.to = append(out.to, r.requestOperation(fmt.Sprintf(".to[%d].operation", i), to.GetOperation(), denies))
	}
	for i, when := range spec.GetWhen() {
		out.when = append(out.when, r.requestCondition(fmt.Sprintf(".when[%d]", i), when))
	}
	return out
}

// later notes what waypoints do not do.
func (r *reader) later(where string, values ...[]string) {
	for _, v := range values {
		if len(v) > 0 {
			r.problems = append(r.problems, Problem{Unsupported, r.where + where, errLater.Error()})
			return
		}
	}
}

func (r *reader) requestSource(where string, s *securityv1.Source) part {
	before := len(r.problems)
	p := part{matches: r.source(where, s)}
	tests(r, &p.source, where+".requestPrincipals", s.GetRequestPrincipals(), where+".notRequestPrincipals", s.GetNotRequestPrincipals(), requestPrincipal)
	tests(r, &p.source, where+".remoteIpBlocks", s.GetRemoteIpBlocks(), where+".notRemoteIpBlocks", s.GetNotRemoteIpBlocks(), remoteIP)
	r.asks(where, p, before)
	return p
}

func (r *reader) requestOperation(where string, o *securityv1.Operation, denies bool) part {
	before := len(r.problems)
	p := part{matches: []*security.Match{r.operation(where, o)}}
	add := func(field string, values []string, not string, notValues []string, parse func(string) (policy.Expr, error)) {
		tests(r, &p.operation, where+"."+field, values, where+"."+not, notValues, parse)
	}
	// A host means the host at any port, also as a full name with its dot, where that lets less through: as what a DENY policy names, as what an ALLOW policy excepts.
	for not, h := range map[bool][]string{false: o.GetHosts(), true: o.GetNotHosts()} {
		if len(h) > 0 {
			parse := func(v string) (policy.Expr, error) { return host(v, denies != not) }
			if not {
				add("", nil, "notHosts", h, parse)
			} else {
				add("hosts", h, "", nil, parse)
			}
		}
	}
	add("methods", o.GetMethods(), "notMethods", o.GetNotMethods(), func(v string) (policy.Expr, error) { return field(":method", v) })
	add("paths", o.GetPaths(), "notPaths", o.GetNotPaths(), path)
	r.asks(where, p, before)
	return p
}

// asks notes a part that asks for nothing.
func (r *reader) asks(where string, p part, before int) {
	source, operation := p.exprs(false, nil)
	if len(source)+len(operation) == 0 && len(r.problems) == before {
		r.invalid(where, errNothing)
	}
}

func (r *reader) requestCondition(where string, c *securityv1.Condition) part {
	var p part
	key, in, out := c.GetKey(), where+".values", where+".notValues"
	name, isHeader := strings.CutPrefix(key, "request.headers[")
	switch {
	case len(c.GetValues())+len(c.GetNotValues()) == 0:
		r.invalid(where, errNothing)
	case key == "remote.ip":
		tests(r, &p.source, in, c.GetValues(), out, c.GetNotValues(), remoteIP)
	case key == "connection.sni":
		tests(r, &p.operation, in, c.GetValues(), out, c.GetNotValues(), serverName)
	case isHeader:
		name, closed := strings.CutSuffix(strings.ToLower(name), "]")
		if !closed || !headerName.MatchString(name) {
			r.invalid(where, fmt.Errorf("key %q: want request.headers[NAME]", key))
			break
		}
		tests(r, &p.operation, in, c.GetValues(), out, c.GetNotValues(), func(v string) (policy.Expr, error) { return field(name, v) })
	case strings.HasPrefix(key, "request.auth."):
		parse, err := claimOf(key)
		if err != nil {
			r.invalid(where, err)
			break
		}
		tests(r, &p.source, in, c.GetValues(), out, c.GetNotValues(), parse)
	case isLayer7Key(key):
		r.later(where+" ("+key+")", []string{key})
	default:
		p.matches = r.condition(where, c)
	}
	return p
}

// headerName is what a field of a header may be called, or a part of the request's head.
var headerName = regexp.MustCompile("^(:(authority|method)|[a-z0-9!#$%&'*+.^_`|~-]+)$")

// tests adds that one of the values holds, and none of the others.
func tests(r *reader, to *policy.All, where string, values []string, whereNot string, not []string, parse func(string) (policy.Expr, error)) {
	var is, isNot policy.Any
	take(r, where, values, (*[]policy.Expr)(&is), parse)
	take(r, whereNot, not, (*[]policy.Expr)(&isNot), parse)
	if len(is) > 0 {
		*to = append(*to, is)
	}
	if len(isNot) > 0 {
		*to = append(*to, policy.Not{Expr: isNot})
	}
}

// text turns a pattern into a test.
func text(v string) (policy.Text, error) {
	m, err := pattern(v)
	if err != nil {
		return policy.Text{}, err
	}
	return textOf(m), nil
}

func textOf(m *security.StringMatch) policy.Text {
	switch t := m.GetMatchType().(type) {
	case *security.StringMatch_Prefix:
		return policy.Text{Kind: policy.Prefix, Value: t.Prefix}
	case *security.StringMatch_Suffix:
		return policy.Text{Kind: policy.Suffix, Value: t.Suffix}
	case *security.StringMatch_Presence:
		return policy.Text{Kind: policy.Present}
	}
	return policy.Text{Value: m.GetExact()}
}

func field(name, v string) (policy.Expr, error) {
	t, err := text(v)
	return policy.Field{Name: name, Text: t}, err
}

func host(v string, anyPort bool) (policy.Expr, error) {
	t, err := text(strings.ToLower(v))
	t.Fold = t.Kind != policy.Present
	exact := policy.Field{Name: ":authority", Text: t}
	if err != nil || !anyPort || t.Kind != policy.Exact && t.Kind != policy.Suffix || strings.Contains(strings.Trim(v, "[]"), ":") && !strings.HasSuffix(v, "]") {
		return exact, err
	}
	begin := "(?i)"
	if t.Kind == policy.Suffix {
		begin += ".*"
	}
	open, err := policy.NewRegexp(begin + regexp.QuoteMeta(t.Value) + `\.?(:[0-9]*)?`)
	return policy.Any{exact, policy.Field{Name: ":authority", Text: open}}, err
}

func path(v string) (policy.Expr, error) {
	if policy.IsTemplate(v) {
		t, err := policy.NewTemplate(v)
		return policy.PathTemplate{Template: t}, err
	}
	t, err := text(v)
	return policy.Path{Text: t}, err
}

func remoteIP(v string) (policy.Expr, error) {
	a, err := addresses(v)
	return policy.RemoteIP{Range: prefixOf(a)}, err
}

func serverName(v string) (policy.Expr, error) {
	t, err := text(strings.ToLower(v))
	t.Fold = t.Kind != policy.Present
	return policy.ServerName{Text: t}, err
}

func prefixOf(a *security.Address) netip.Prefix {
	addr, _ := netip.AddrFromSlice(a.GetAddress())
	return netip.PrefixFrom(addr, int(a.GetLength()))
}

// exprs says what a part asks of who comes, and of what is asked for.
func (p part) exprs(denies bool, domains []string) (source, operation policy.All) {
	action := Allow
	if denies {
		action = Deny
	}
	for _, m := range p.matches {
		both := func(to *policy.All, is, not policy.Any) {
			if len(is) > 0 {
				*to = append(*to, is)
			}
			if len(not) > 0 {
				*to = append(*to, policy.Not{Expr: not})
			}
		}
		both(&source, each(expand(m.Principals, domains, action == Deny), principal), each(expand(m.NotPrincipals, domains, action == Allow), principal))
		both(&source, each(m.Namespaces, namespace), each(m.NotNamespaces, namespace))
		both(&source, each(m.ServiceAccounts, account), each(m.NotServiceAccounts, account))
		ip := func(a *security.Address) policy.Expr { return policy.SourceIP{Range: prefixOf(a)} }
		both(&source, each(m.SourceIps, ip), each(m.NotSourceIps, ip))
		ip = func(a *security.Address) policy.Expr { return policy.DestinationIP{Range: prefixOf(a)} }
		both(&operation, each(m.DestinationIps, ip), each(m.NotDestinationIps, ip))
		port := func(n uint32) policy.Expr { return policy.DestinationPort{First: uint16(n), Last: uint16(n)} }
		both(&operation, each(m.DestinationPorts, port), each(m.NotDestinationPorts, port))
	}
	return append(source, p.source...), append(operation, p.operation...)
}

func each[T any](in []T, f func(T) policy.Expr) policy.Any {
	var out policy.Any
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

// principal is a test of a SPIFFE URI. One without a principal has none that is present.
func principal(m *security.StringMatch) policy.Expr {
	t := textOf(m)
	switch t.Kind {
	case policy.Exact, policy.Prefix:
		t.Value = scheme + strings.TrimPrefix(t.Value, scheme)
	case policy.Present:
		t = policy.Text{Kind: policy.Prefix, Value: scheme}
	}
	return policy.Principal{Text: t}
}

// namespace and account are told by a SPIFFE URI, of any trust domain.

func namespace(m *security.StringMatch) policy.Expr {
	name := regexp.QuoteMeta(m.GetExact())
	switch t := textOf(m); t.Kind {
	case policy.Prefix:
		name = regexp.QuoteMeta(t.Value) + "[^/]*"
	case policy.Suffix:
		name = "[^/]*" + regexp.QuoteMeta(t.Value)
	case policy.Present:
		name = "[^/]+"
	}
	return uri(name, "[^/]+")
}

func account(m *security.ServiceAccountMatch) policy.Expr {
	return uri(regexp.QuoteMeta(m.GetNamespace()), regexp.QuoteMeta(m.GetServiceAccount()))
}

func uri(namespace, account string) policy.Expr {
	t, _ := policy.NewRegexp(scheme + "[^/]+/ns/" + namespace + "/sa/" + account) // of quoted text
	return policy.Principal{Text: t}
}

// Verdict says how much of a policy means at waypoints what it says.
type Verdict struct {
	// Whole: all of it does. Some: at least one rule does, where one does not.
	Whole, Some bool
	// Message says what does not, and what is in force instead; empty if Whole.
	Message string
}

// AtWaypoints says what waypoints make of what the policy says, wherever it is attached.
func (p *Policy) AtWaypoints() Verdict {
	q := &p.Requests
	if len(q.Problems) == 0 {
		return Verdict{Whole: true}
	}
	v := Verdict{Some: q.spoilt > 0 && len(q.rules) > 0 && (!p.denies() || len(q.rules) > q.spoilt)}
	if q.spoilt == 0 && !(p.Action == Custom && p.Provider == "") { // a target, or the annotation
		v.Some = true
	}
	v.Message = list(q.Problems)
	switch {
	case q.spoilt == 0:
	case p.Action == Custom:
		v.Message += ". Without such parts the policy has somebody asked about more than it says"
	case p.denies():
		v.Message += ". Without such parts the policy denies more than it says"
	case p.Action == Audit:
		v.Message += ". Rules with such parts match nothing"
	default:
		v.Message += ". Rules with such parts allow nothing"
	}
	return v
}
