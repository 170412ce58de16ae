package authz

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	securityv1 "istio.io/api/security/v1beta1"

	"github.com/ambit-mesh/ambit/api/security"
)

// readRules reads each rule by itself, so that one that is malformed leaves the others alone.
func (p *Policy) readRules(value any) {
	list, ok := value.([]any)
	if !ok && value != nil {
		p.invalid("rules", "is not a list")
		p.denyAll()
		return
	}
	for i, v := range list {
		r := reader{namespace: p.Namespace, where: fmt.Sprintf("rules[%d]", i)}
		rules := r.read(v)
		p.Problems = append(p.Problems, r.problems...)
		if len(r.problems) == 0 || p.Action == Deny {
			p.rules = append(p.rules, rules...)
		}
	}
}

// reader reads one rule. Once it has found a problem, what it gives is a DENY rule's only.
type reader struct {
	namespace string // the policy's
	where     string
	problems  []Problem
	// requests: what connections do not have is somebody else's to read.
	requests bool
}

func (r *reader) invalid(where string, err error) {
	r.problems = append(r.problems, Problem{Invalid, r.where + where, err.Error()})
}

func (r *reader) layer7(where string, values ...[]string) {
	if !r.requests && slices.ContainsFunc(values, func(v []string) bool { return len(v) > 0 }) {
		r.problems = append(r.problems, Problem{Kind: Layer7, Where: r.where + where})
	}
}

// decode reads a rule's text, nil if it cannot be read.
func (r *reader) decode(value any) *securityv1.Rule {
	spec := new(securityv1.Rule)
	text, err := json.Marshal(value)
	if err == nil {
		err = protojson.Unmarshal(text, spec) // what it does not know is an error, or a rule could mean less than it says
	}
	if err != nil {
		// protojson varies its spaces, so that nobody relies on its words; problems are compared all the same.
		r.invalid("", errors.New(strings.ReplaceAll(err.Error(), "\u00a0", " ")))
		return nil
	}
	return spec
}

func (r *reader) read(value any) []*security.Rule {
	spec := r.decode(value)
	if spec == nil {
		return []*security.Rule{{}}
	}
	var sources [][]*security.Match // alternatives, of which all parts must hold
	for i, from := range spec.GetFrom() {
		sources = append(sources, r.source(fmt.Sprintf(".from[%d].source", i), from.GetSource()))
	}
	var operations []*security.Match
	for i, to := range spec.GetTo() {
		operations = append(operations, r.operation(fmt.Sprintf(".to[%d].operation", i), to.GetOperation()))
	}
	var common []*security.Clause
	add := func(clauses []*security.Clause, matches []*security.Match) []*security.Clause {
		// An alternative of which nothing is left holds always.
		if len(matches) == 0 || slices.ContainsFunc(matches, isEmpty) {
			return clauses
		}
		return append(clauses, &security.Clause{Matches: matches})
	}
	common = add(common, operations)
	for i, when := range spec.GetWhen() {
		for _, m := range r.condition(fmt.Sprintf(".when[%d]", i), when) {
			common = add(common, []*security.Match{m})
		}
	}
	if !slices.ContainsFunc(sources, func(parts []*security.Match) bool { return len(parts) > 1 }) {
		var all []*security.Match
		for _, parts := range sources {
			all = append(all, parts...)
		}
		return []*security.Rule{{Clauses: append(add(nil, all), common...)}}
	}
	var out []*security.Rule
	for _, parts := range sources {
		var clauses []*security.Clause
		for _, m := range parts {
			clauses = add(clauses, []*security.Match{m})
		}
		out = append(out, &security.Rule{Clauses: append(clauses, common...)})
	}
	return out
}

func isEmpty(m *security.Match) bool {
	for _, n := range []int{
		len(m.Namespaces), len(m.NotNamespaces), len(m.Principals), len(m.NotPrincipals), len(m.SourceIps), len(m.NotSourceIps),
		len(m.DestinationIps), len(m.NotDestinationIps), len(m.DestinationPorts), len(m.NotDestinationPorts),
		len(m.ServiceAccounts), len(m.NotServiceAccounts),
	} {
		if n > 0 {
			return false
		}
	}
	return true
}

// errNothing is the fault of a part that asks for nothing, which its writer can hardly have meant.
var errNothing = errors.New("names nothing")

// source reads where a connection comes from: matches that must all hold.
func (r *reader) source(where string, s *securityv1.Source) []*security.Match {
	before := len(r.problems)
	m := &security.Match{}
	r.patterns(where+".principals", s.GetPrincipals(), &m.Principals)
	r.patterns(where+".notPrincipals", s.GetNotPrincipals(), &m.NotPrincipals)
	r.patterns(where+".namespaces", s.GetNamespaces(), &m.Namespaces)
	r.patterns(where+".notNamespaces", s.GetNotNamespaces(), &m.NotNamespaces)
	r.prefixes(where+".ipBlocks", s.GetIpBlocks(), &m.SourceIps)
	r.prefixes(where+".notIpBlocks", s.GetNotIpBlocks(), &m.NotSourceIps)
	r.accounts(where+".serviceAccounts", s.GetServiceAccounts(), &m.ServiceAccounts)
	r.accounts(where+".notServiceAccounts", s.GetNotServiceAccounts(), &m.NotServiceAccounts)
	var domains, notDomains []*security.StringMatch
	r.domains(where+".trustDomains", s.GetTrustDomains(), &domains)
	r.domains(where+".notTrustDomains", s.GetNotTrustDomains(), &notDomains)
	m.NotPrincipals = append(m.NotPrincipals, notDomains...)
	r.layer7(where+".requestPrincipals", s.GetRequestPrincipals())
	r.layer7(where+".notRequestPrincipals", s.GetNotRequestPrincipals())
	r.layer7(where+".remoteIpBlocks", s.GetRemoteIpBlocks())
	r.layer7(where+".notRemoteIpBlocks", s.GetNotRemoteIpBlocks())
	if len(domains) > 0 && len(m.Principals) > 0 {
		return []*security.Match{m, {Principals: domains}} // both, where one list would be either
	}
	m.Principals = append(m.Principals, domains...)
	if !r.requests && isEmpty(m) && len(r.problems) == before {
		r.invalid(where, errNothing)
	}
	return []*security.Match{m}
}

func (r *reader) operation(where string, o *securityv1.Operation) *security.Match {
	before := len(r.problems)
	m := &security.Match{}
	r.ports(where+".ports", o.GetPorts(), &m.DestinationPorts)
	r.ports(where+".notPorts", o.GetNotPorts(), &m.NotDestinationPorts)
	r.layer7(where+".hosts", o.GetHosts())
	r.layer7(where+".notHosts", o.GetNotHosts())
	r.layer7(where+".methods", o.GetMethods())
	r.layer7(where+".notMethods", o.GetNotMethods())
	r.layer7(where+".paths", o.GetPaths())
	r.layer7(where+".notPaths", o.GetNotPaths())
	if !r.requests && isEmpty(m) && len(r.problems) == before {
		r.invalid(where, errNothing)
	}
	return m
}

// condition reads what must hold besides; nothing if the key is of layer 7.
func (r *reader) condition(where string, c *securityv1.Condition) []*security.Match {
	m := &security.Match{}
	values, not := c.GetValues(), c.GetNotValues()
	if len(values)+len(not) == 0 {
		r.invalid(where, errNothing)
		return nil
	}
	in, out := where+".values", where+".notValues"
	switch key := c.GetKey(); key {
	case "source.ip":
		r.prefixes(in, values, &m.SourceIps)
		r.prefixes(out, not, &m.NotSourceIps)
	case "source.namespace":
		r.patterns(in, values, &m.Namespaces)
		r.patterns(out, not, &m.NotNamespaces)
	case "source.principal":
		r.patterns(in, values, &m.Principals)
		r.patterns(out, not, &m.NotPrincipals)
	case "source.serviceAccount":
		r.accounts(in, values, &m.ServiceAccounts)
		r.accounts(out, not, &m.NotServiceAccounts)
	case "source.trustDomain":
		r.domains(in, values, &m.Principals)
		r.domains(out, not, &m.NotPrincipals)
	case "destination.ip":
		r.prefixes(in, values, &m.DestinationIps)
		r.prefixes(out, not, &m.NotDestinationIps)
	case "destination.port":
		r.ports(in, values, &m.DestinationPorts)
		r.ports(out, not, &m.NotDestinationPorts)
	default:
		if isLayer7Key(key) {
			r.problems = append(r.problems, Problem{Layer7, r.where + where + " (" + key + ")", ""})
		} else {
			r.invalid(where, fmt.Errorf("key %q is not known", key))
		}
		return nil
	}
	return []*security.Match{m}
}

// isLayer7Key reports whether a key of spec.rules.when is one that Istio knows and connections do not have.
func isLayer7Key(key string) bool {
	return strings.HasPrefix(key, "request.") || strings.HasPrefix(key, "experimental.") || key == "remote.ip" || key == "connection.sni"
}

// take adds to a list what was made of all values. If one of them is malformed, the whole list is left out: without one of
// its values it could match less, or more, than was meant.
func take[T any](r *reader, where string, values []string, list *[]T, parse func(string) (T, error)) {
	var out []T
	for i, v := range values {
		one, err := parse(v)
		if err != nil {
			r.invalid(fmt.Sprintf("%s[%d]", where, i), err)
			return
		}
		out = append(out, one)
	}
	*list = append(*list, out...)
}

func (r *reader) patterns(where string, values []string, list *[]*security.StringMatch) {
	take(r, where, values, list, pattern)
}

func (r *reader) domains(where string, values []string, list *[]*security.StringMatch) {
	take(r, where, values, list, domain)
}

func (r *reader) prefixes(where string, values []string, list *[]*security.Address) {
	take(r, where, values, list, addresses)
}

func (r *reader) ports(where string, values []string, list *[]uint32) {
	take(r, where, values, list, port)
}

func (r *reader) accounts(where string, values []string, list *[]*security.ServiceAccountMatch) {
	take(r, where, values, list, r.account)
}

// pattern reads "x", "x*", "*x" or "*".
func pattern(v string) (*security.StringMatch, error) {
	switch {
	case v == "":
		return nil, errors.New("is empty")
	case v == "*":
		return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &security.Empty{}}}, nil
	case strings.Contains(strings.TrimSuffix(v[1:], "*"), "*"), strings.HasPrefix(v, "*") && strings.HasSuffix(v, "*"):
		return nil, fmt.Errorf("%q: * may stand at the beginning or at the end only", v)
	case strings.HasPrefix(v, "*"):
		return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: v[1:]}}, nil
	case strings.HasSuffix(v, "*"):
		return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: v[:len(v)-1]}}, nil
	}
	return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: v}}, nil
}

// domain reads a pattern of trust domains as one of principals, which begin with their trust domain.
func domain(v string) (*security.StringMatch, error) {
	m, err := pattern(v)
	if err != nil {
		return nil, err
	}
	switch t := m.GetMatchType().(type) {
	case *security.StringMatch_Exact:
		return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: t.Exact + "/"}}, nil
	case *security.StringMatch_Suffix:
		return nil, fmt.Errorf("%q: ends of trust domains cannot be matched here; name them", v)
	}
	return m, nil
}

// addresses reads an address or a range.
func addresses(v string) (*security.Address, error) {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(v); err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%q is neither an IP address nor a range such as 10.0.0.0/8", v)
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.Addr().Is4In6() {
		return nil, fmt.Errorf("%q: write it as an IPv4 address", v)
	}
	p = p.Masked()
	return &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}, nil
}

func port(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", v)
	}
	return uint32(n), nil
}

// account reads "namespace/name", or the name alone of one in the policy's namespace.
func (r *reader) account(v string) (*security.ServiceAccountMatch, error) {
	namespace, name, ok := strings.Cut(v, "/")
	if !ok {
		namespace, name = r.namespace, v
	}
	if namespace == "" || name == "" || strings.ContainsAny(name, "/*") || strings.Contains(namespace, "*") {
		return nil, fmt.Errorf("%q is neither the name of a service account nor namespace/name", v)
	}
	return &security.ServiceAccountMatch{Namespace: namespace, ServiceAccount: name}, nil
}
