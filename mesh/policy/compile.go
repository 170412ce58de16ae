package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Compile makes a Policy. If the error is not nil, it says what was not understood, and the Policy is the one that fails
// closed, to be used in place of what was meant; it is nil only if even that cannot be said, since the policy has no name,
// a scope that is not known, or the scope of a namespace without one.
func Compile(a *security.Authorization) (*Policy, error) {
	p := &Policy{Name: a.GetName(), Namespace: a.GetNamespace(), DryRun: a.GetDryRun()}
	if p.Name == "" {
		return nil, errors.New("policy without a name")
	}
	switch a.GetScope() {
	case security.Scope_GLOBAL:
		p.Scope = ScopeGlobal
	case security.Scope_NAMESPACE:
		p.Scope = ScopeNamespace
	case security.Scope_WORKLOAD_SELECTOR:
		p.Scope = ScopeWorkload
	default:
		return nil, fmt.Errorf("policy %s: scope %d is not known", p.Key(), a.GetScope())
	}
	if p.Scope == ScopeNamespace && p.Namespace == "" {
		return nil, fmt.Errorf("policy %s: scope of a namespace without a namespace", p.Key())
	}
	switch a.GetAction() {
	case security.Action_ALLOW:
		p.Action = Allow
	case security.Action_DENY:
		p.Action = Deny
	default:
		p.Action = Deny
		p.Invalid = fmt.Errorf("action %d is not known", a.GetAction())
	}
	if p.Invalid == nil {
		p.rules, p.Invalid = compileRules(a.GetRules(), p.Action)
	}
	if p.Invalid != nil {
		return p, fmt.Errorf("policy %s: %w", p.Key(), p.Invalid)
	}
	return p, nil
}

func compileRules(in []*security.Rule, action Action) ([]rule, error) {
	rules := make([]rule, 0, len(in))
	for i, r := range in {
		compiled := make(rule, 0, len(r.GetClauses()))
		for j, c := range r.GetClauses() {
			matches := make(clause, 0, len(c.GetMatches()))
			for k, m := range c.GetMatches() {
				cm, err := compileMatch(m, action)
				if err != nil {
					return nil, fmt.Errorf("rule %d, clause %d, match %d: %w", i, j, k, err)
				}
				matches = append(matches, cm)
			}
			compiled = append(compiled, matches)
		}
		rules = append(rules, compiled)
	}
	return rules, nil
}

// compileMatch makes a match. One that names nothing is what is left of attributes that layer 4 does not have: such a
// part of an ALLOW policy matches nothing, and of a DENY policy everything, so that neither is weakened.
func compileMatch(m *security.Match, action Action) (match, error) {
	out := match{empty: action == Deny}
	var c compiler
	out.namespaces = c.texts("namespaces", m.GetNamespaces())
	out.notNamespaces = c.texts("not_namespaces", m.GetNotNamespaces())
	out.principals = c.principals("principals", m.GetPrincipals())
	out.notPrincipals = c.principals("not_principals", m.GetNotPrincipals())
	out.sources = c.prefixes("source_ips", m.GetSourceIps())
	out.notSources = c.prefixes("not_source_ips", m.GetNotSourceIps())
	out.destinations = c.prefixes("destination_ips", m.GetDestinationIps())
	out.notDestinations = c.prefixes("not_destination_ips", m.GetNotDestinationIps())
	out.ports = c.ports("destination_ports", m.GetDestinationPorts())
	out.notPorts = c.ports("not_destination_ports", m.GetNotDestinationPorts())
	out.accounts = c.accounts("service_accounts", m.GetServiceAccounts())
	out.notAccounts = c.accounts("not_service_accounts", m.GetNotServiceAccounts())
	out.names = c.n > 0
	return out, c.err
}

// compiler counts the values that it has read, and keeps the first error.
type compiler struct {
	n   int
	err error
}

func (c *compiler) fail(what string, i int, err error) {
	if c.err == nil {
		c.err = fmt.Errorf("%s[%d]: %w", what, i, err)
	}
}

func (c *compiler) texts(what string, in []*security.StringMatch) []text {
	var out []text
	for i, m := range in {
		c.n++
		t := text{}
		switch v := m.GetMatchType().(type) {
		case *security.StringMatch_Exact:
			t.kind, t.value = textExact, v.Exact
		case *security.StringMatch_Prefix:
			t.kind, t.value = textPrefix, v.Prefix
		case *security.StringMatch_Suffix:
			t.kind, t.value = textSuffix, v.Suffix
		case *security.StringMatch_Presence:
			t.kind = textPresence
		default:
			c.fail(what, i, errors.New("neither exact, prefix, suffix nor presence"))
		}
		if t.kind != textPresence && t.value == "" {
			c.fail(what, i, errors.New("empty value"))
		}
		out = append(out, t)
	}
	return out
}

func (c *compiler) principals(what string, in []*security.StringMatch) []text {
	out := c.texts(what, in)
	for i := range out {
		t := &out[i]
		if t.kind != textExact && t.kind != textPrefix {
			continue
		}
		t.value = strings.TrimPrefix(t.value, identity.Scheme) // principals are compared without it
		if t.kind == textExact {
			if id, err := identity.Parse(identity.Scheme + t.value); err == nil {
				t.id = id
			}
		}
	}
	return out
}

func (c *compiler) prefixes(what string, in []*security.Address) []netip.Prefix {
	var out []netip.Prefix
	for i, a := range in {
		c.n++
		p, err := prefix(a)
		if err != nil {
			c.fail(what, i, err)
		}
		out = append(out, p)
	}
	return out
}

func prefix(a *security.Address) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(a.GetAddress())
	if !ok {
		return netip.Prefix{}, fmt.Errorf("address of %d bytes; want 4 or 16", len(a.GetAddress()))
	}
	bits := a.GetLength()
	if bits > uint32(addr.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("prefix of %d bits for %s", bits, addr)
	}
	if addr.Is4In6() {
		if bits < 96 {
			return netip.Prefix{}, fmt.Errorf("prefix of %d bits for %s holds more than mapped addresses", bits, addr)
		}
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, int(bits)).Masked(), nil
}

func (c *compiler) ports(what string, in []uint32) []uint16 {
	var out []uint16
	for i, p := range in {
		c.n++
		if p == 0 || p > 65535 {
			c.fail(what, i, fmt.Errorf("port %d", p))
		}
		out = append(out, uint16(p))
	}
	return out
}

func (c *compiler) accounts(what string, in []*security.ServiceAccountMatch) []account {
	var out []account
	for i, a := range in {
		c.n++
		if a.GetNamespace() == "" || a.GetServiceAccount() == "" {
			c.fail(what, i, errors.New("want a namespace and a service account"))
		}
		out = append(out, account{a.GetNamespace(), a.GetServiceAccount()})
	}
	return out
}
