package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

var (
	alice  = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "alice"}
	bob    = identity.Identity{TrustDomain: "other.org", Namespace: "bank", ServiceAccount: "bob"}
	nobody identity.Identity
)

func conn(peer identity.Identity) policy.Connection {
	return policy.Connection{Peer: peer, Source: netip.MustParseAddr("10.1.2.3"), Destination: netip.MustParseAddrPort("10.9.8.7:8080")}
}

func exact(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: s}}
}

func prefix(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: s}}
}

func suffix(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: s}}
}

func presence() *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &security.Empty{}}}
}

func strs(m ...*security.StringMatch) []*security.StringMatch { return m }

func ips(prefixes ...string) []*security.Address {
	var out []*security.Address
	for _, s := range prefixes {
		p := netip.MustParsePrefix(s)
		out = append(out, &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func accounts(pairs ...string) []*security.ServiceAccountMatch {
	var out []*security.ServiceAccountMatch
	for _, s := range pairs {
		ns, name, _ := strings.Cut(s, "/")
		out = append(out, &security.ServiceAccountMatch{Namespace: ns, ServiceAccount: name})
	}
	return out
}

// authz is a policy of namespace shop; clauses are of one rule.
func authz(name string, action security.Action, clauses ...*security.Clause) *security.Authorization {
	return &security.Authorization{Name: name, Namespace: "shop", Scope: security.Scope_NAMESPACE, Action: action,
		Rules: []*security.Rule{{Clauses: clauses}}}
}

func clause(matches ...*security.Match) *security.Clause { return &security.Clause{Matches: matches} }

func group(ps ...*policy.Policy) *policy.Group { return policy.NewGroup(ps) }

func compile(t testing.TB, a *security.Authorization) *policy.Policy {
	t.Helper()
	p, err := policy.Compile(a)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestMatch: each attribute, positive and negative, for a peer that has it, for another, and for one without identity.
func TestMatch(t *testing.T) {
	tests := []struct {
		name             string
		match            *security.Match
		alice, bob, anon bool
	}{
		{"namespace", &security.Match{Namespaces: strs(exact("shop"))}, true, false, false},
		{"namespaces", &security.Match{Namespaces: strs(exact("shop"), exact("bank"))}, true, true, false},
		{"namespace prefix", &security.Match{Namespaces: strs(prefix("sh"))}, true, false, false},
		{"namespace suffix", &security.Match{Namespaces: strs(suffix("nk"))}, false, true, false},
		{"namespace presence", &security.Match{Namespaces: strs(presence())}, true, true, false},
		{"not namespace", &security.Match{NotNamespaces: strs(exact("shop"))}, false, true, true},
		{"not namespace presence", &security.Match{NotNamespaces: strs(presence())}, false, false, true},
		{"principal", &security.Match{Principals: strs(exact("cluster.local/ns/shop/sa/alice"))}, true, false, false},
		{"principal with scheme", &security.Match{Principals: strs(exact("spiffe://cluster.local/ns/shop/sa/alice"))}, true, false, false},
		{"principal that is none", &security.Match{Principals: strs(exact("cluster.local/ns/shop/sa/alice/x"))}, false, false, false},
		{"principal prefix", &security.Match{Principals: strs(prefix("cluster.local/"))}, true, false, false},
		{"principal prefix with scheme", &security.Match{Principals: strs(prefix("spiffe://other"))}, false, true, false},
		{"principal suffix", &security.Match{Principals: strs(suffix("/sa/bob"))}, false, true, false},
		{"principal presence", &security.Match{Principals: strs(presence())}, true, true, false},
		{"not principal", &security.Match{NotPrincipals: strs(exact("cluster.local/ns/shop/sa/alice"))}, false, true, true},
		{"not principal presence", &security.Match{NotPrincipals: strs(presence())}, false, false, true},
		{"account, whatever its trust domain", &security.Match{ServiceAccounts: accounts("bank/bob")}, false, true, false},
		{"account of another namespace", &security.Match{ServiceAccounts: accounts("shop/bob")}, false, false, false},
		{"not account", &security.Match{NotServiceAccounts: accounts("bank/bob")}, true, false, true},
		{"source", &security.Match{SourceIps: ips("10.1.0.0/16")}, true, true, true},
		{"source, other", &security.Match{SourceIps: ips("10.2.0.0/16", "fd00::/8")}, false, false, false},
		{"source, all", &security.Match{SourceIps: ips("0.0.0.0/0")}, true, true, true},
		{"source, mapped", &security.Match{SourceIps: ips("::ffff:10.1.0.0/112")}, true, true, true},
		{"not source", &security.Match{NotSourceIps: ips("10.1.2.3/32")}, false, false, false},
		{"destination", &security.Match{DestinationIps: ips("10.9.8.7/32")}, true, true, true},
		{"not destination", &security.Match{NotDestinationIps: ips("10.9.8.8/32")}, true, true, true},
		{"port", &security.Match{DestinationPorts: []uint32{80, 8080}}, true, true, true},
		{"other port", &security.Match{DestinationPorts: []uint32{80}}, false, false, false},
		{"not port", &security.Match{NotDestinationPorts: []uint32{8080}}, false, false, false},
		{"not other port", &security.Match{NotDestinationPorts: []uint32{80}}, true, true, true},
		{"two kinds", &security.Match{Namespaces: strs(presence()), DestinationPorts: []uint32{80}}, false, false, false},
		{"both hold", &security.Match{Namespaces: strs(presence()), NotPrincipals: strs(suffix("bob"))}, true, false, false},
		{"positive and negative of one kind", &security.Match{Namespaces: strs(presence()), NotNamespaces: strs(exact("shop"))}, false, true, false},
	}
	for _, tt := range tests {
		for _, action := range []security.Action{security.Action_ALLOW, security.Action_DENY} {
			p := compile(t, authz("p", action, clause(tt.match)))
			for _, side := range []struct {
				peer identity.Identity
				want bool
			}{{alice, tt.alice}, {bob, tt.bob}, {nobody, tt.anon}} {
				if got := p.Matches(conn(side.peer)); got != side.want {
					t.Errorf("%s: %v matches %q: %v, want %v", tt.name, action, side.peer, got, side.want)
				}
			}
		}
	}
}

// TestTree: rules OR, clauses AND, matches OR; what is empty.
func TestTree(t *testing.T) {
	yes, no, empty := &security.Match{DestinationPorts: []uint32{8080}}, &security.Match{DestinationPorts: []uint32{1}}, &security.Match{}
	rules := func(clauses ...[]*security.Clause) []*security.Rule {
		var out []*security.Rule
		for _, c := range clauses {
			out = append(out, &security.Rule{Clauses: c})
		}
		return out
	}
	type cs = []*security.Clause
	tests := []struct {
		name        string
		rules       []*security.Rule
		allow, deny bool
	}{
		{"no rules", nil, false, false},
		{"a rule without clauses", rules(nil), true, true},
		{"one", rules(cs{clause(yes)}), true, true},
		{"none", rules(cs{clause(no)}), false, false},
		{"matches are alternatives", rules(cs{clause(no, yes)}), true, true},
		{"clauses all", rules(cs{clause(yes), clause(no)}), false, false},
		{"rules are alternatives", rules(cs{clause(no)}, cs{clause(yes)}), true, true},
		{"an empty clause holds", rules(cs{clause(), clause(yes)}), true, true},
		{"an empty match is what is left of layer 7", rules(cs{clause(empty)}), false, true},
		{"the same beside others", rules(cs{clause(empty, no)}), false, true},
		{"the same beside one that holds", rules(cs{clause(empty, yes)}), true, true},
		{"the same in another clause", rules(cs{clause(empty), clause(no)}), false, false},
	}
	for _, tt := range tests {
		for action, want := range map[security.Action]bool{security.Action_ALLOW: tt.allow, security.Action_DENY: tt.deny} {
			a := authz("p", action)
			a.Rules = tt.rules
			if got := compile(t, a).Matches(conn(alice)); got != want {
				t.Errorf("%s: %v matches: %v, want %v", tt.name, action, got, want)
			}
		}
	}
}

// TestInvalid: what is not understood makes the policy fail closed, as a whole.
func TestInvalid(t *testing.T) {
	tests := map[string]*security.Match{
		"source_ips[0]":               {SourceIps: []*security.Address{{Address: []byte{1, 2, 3}, Length: 8}}},
		"prefix of 33 bits":           {NotSourceIps: []*security.Address{{Address: []byte{1, 2, 3, 4}, Length: 33}}},
		"prefix of 129 bits":          {DestinationIps: []*security.Address{{Address: make([]byte, 16), Length: 129}}},
		"more than mapped addresses":  {NotDestinationIps: ips("::ffff:10.0.0.0/95")},
		"neither exact":               {Namespaces: strs(&security.StringMatch{})},
		"not_principals[1]":           {NotPrincipals: strs(presence(), &security.StringMatch{})},
		"empty value":                 {Principals: strs(exact(""))},
		"port 65536":                  {DestinationPorts: []uint32{80, 65536}},
		"port 0":                      {NotDestinationPorts: []uint32{0}},
		"want a namespace and a serv": {ServiceAccounts: accounts("shop/")},
		"not_service_accounts[0]":     {NotServiceAccounts: accounts("/x")},
	}
	for want, match := range tests {
		for _, action := range []security.Action{security.Action_ALLOW, security.Action_DENY} {
			a := authz("p", action, clause(match))
			a.Rules = append(a.Rules, &security.Rule{Clauses: []*security.Clause{clause(&security.Match{DestinationPorts: []uint32{8080}})}})
			p, err := policy.Compile(a)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "shop/p") || p == nil || p.Invalid == nil {
				t.Errorf("%s: policy %+v, error %v", want, p, err)
				continue
			}
			if got := p.Matches(conn(alice)); got != (action == security.Action_DENY) {
				t.Errorf("%s: invalid %v matches: %v", want, action, got)
			}
			d := policy.Set{Namespace: policy.NewGroup([]*policy.Policy{p})}.Evaluate(conn(alice))
			if d.Verdict != policy.Denied || !strings.Contains(d.Reason, want) {
				t.Errorf("%s: invalid %v decides %+v", want, action, d)
			}
		}
	}
	p, err := policy.Compile(authz("p", 7))
	if err == nil || p == nil || !p.Matches(conn(alice)) || p.Action != policy.Deny {
		t.Errorf("action of the future: %+v, %v", p, err)
	}
	for name, a := range map[string]*security.Authorization{
		"no name":                         {Namespace: "shop", Scope: security.Scope_NAMESPACE},
		"scope of the future":             {Name: "p", Namespace: "shop", Scope: 7},
		"scope of a namespace without it": {Name: "p", Scope: security.Scope_NAMESPACE},
	} {
		if p, err := policy.Compile(a); p != nil || err == nil {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

// TestStrict: STRICT peer authentication arrives as this DENY policy, with a port left open.
func TestStrict(t *testing.T) {
	strict := compile(t, authz("strict", security.Action_DENY,
		clause(&security.Match{NotPrincipals: strs(presence())}), clause(&security.Match{NotDestinationPorts: []uint32{9090}})))
	set := policy.Set{Selected: group(strict)}
	open := conn(nobody)
	open.Destination = netip.AddrPortFrom(open.Destination.Addr(), 9090)
	for _, tt := range []struct {
		c    policy.Connection
		want policy.Verdict
	}{{conn(alice), policy.Allowed}, {conn(nobody), policy.Denied}, {open, policy.Allowed}} {
		if d := set.Evaluate(tt.c); d.Verdict != tt.want || (tt.want == policy.Denied) != (d.Policy == "shop/strict") {
			t.Errorf("%+v: %+v, want %v", tt.c, d, tt.want)
		}
	}
}

func TestEvaluate(t *testing.T) {
	all := clause(&security.Match{DestinationPorts: []uint32{8080}})
	never := clause(&security.Match{DestinationPorts: []uint32{1}})
	p := func(name string, action security.Action, c *security.Clause, dry ...bool) *policy.Policy {
		a := authz(name, action, c)
		a.DryRun = len(dry) > 0
		return compile(t, a)
	}
	const allow, deny = security.Action_ALLOW, security.Action_DENY
	tests := []struct {
		name   string
		set    policy.Set
		want   policy.Verdict
		policy string
		reason string // part of it
		dry    string
	}{
		{"nothing", policy.Set{}, policy.Allowed, "", "", ""},
		{"empty groups", policy.Set{Global: group(), Namespace: group()}, policy.Allowed, "", "", ""},
		{"deny, global", policy.Set{Global: group(p("d", deny, all))}, policy.Denied, "shop/d", "denied by policy shop/d", ""},
		{"deny, namespace", policy.Set{Namespace: group(p("d", deny, all))}, policy.Denied, "shop/d", "", ""},
		{"deny, selected", policy.Set{Selected: group(p("d", deny, all))}, policy.Denied, "shop/d", "", ""},
		{"deny that does not match", policy.Set{Global: group(p("d", deny, never))}, policy.Allowed, "", "", ""},
		{"allow", policy.Set{Global: group(p("a", allow, all))}, policy.Allowed, "shop/a", "", ""},
		{"allow that does not match", policy.Set{Namespace: group(p("a", allow, never))}, policy.Denied, "", "no ALLOW policy matches; there are shop/a", ""},
		{"one of several allows", policy.Set{Global: group(p("a", allow, never)), Selected: group(p("b", allow, all))}, policy.Allowed, "shop/b", "", ""},
		{"deny wins over allow", policy.Set{Global: group(p("a", allow, all)), Selected: group(p("d", deny, all))}, policy.Denied, "shop/d", "", ""},
		{"dry-run deny", policy.Set{Global: group(p("d", deny, all, true))}, policy.Allowed, "", "", "shop/d denied"},
		{"dry-run deny, selected", policy.Set{Selected: group(p("d", deny, all, true), p("e", deny, never, true))}, policy.Allowed, "", "", "shop/d denied"},
		{"a dry-run allow is none", policy.Set{Global: group(p("a", allow, never, true)), Selected: group(p("b", allow, never, true))}, policy.Allowed, "", "", "shop/a denied shop/b denied"},
		{"one of two dry-run allows", policy.Set{Global: group(p("a", allow, never, true)), Selected: group(p("b", allow, all, true))}, policy.Allowed, "", "", "shop/b allowed"},
		{"an allow lets through what a dry-run allow does not", policy.Set{Global: group(p("a", allow, never, true)), Namespace: group(p("b", allow, all))}, policy.Allowed, "shop/b", "", ""},
		{"dry-run allow beside an allow", policy.Set{Global: group(p("a", allow, all, true), p("b", allow, never))}, policy.Denied, "", "shop/b", "shop/a allowed"},
		{"missing", policy.Set{Missing: []string{"shop/m"}}, policy.Undecided, "shop/m", "policy shop/m", ""},
		{"missing and allowed", policy.Set{Global: group(p("a", allow, all)), Missing: []string{"shop/m"}}, policy.Undecided, "shop/m", "", ""},
		{"missing and denied", policy.Set{Global: group(p("d", deny, all)), Missing: []string{"shop/m"}}, policy.Denied, "shop/d", "", ""},
	}
	for _, tt := range tests {
		d := tt.set.Evaluate(conn(alice))
		var dry []string
		for _, p := range d.DryRun {
			dry = append(dry, p.Policy.Key(), p.Verdict.String())
		}
		if d.Verdict != tt.want || d.Policy != tt.policy || !strings.Contains(d.Reason, tt.reason) || strings.Join(dry, " ") != tt.dry ||
			d.Allowed() != (tt.want == policy.Allowed) || (d.Reason == "") != d.Allowed() {
			t.Errorf("%s: %+v, dry run %v", tt.name, d, dry)
		}
	}
	var many []*policy.Policy
	for i := range 100 {
		many = append(many, p(strings.Repeat("x", i+1), allow, never))
	}
	if d := (policy.Set{Global: group(many...)}).Evaluate(conn(alice)); !strings.HasSuffix(d.Reason, "and 95 more") {
		t.Errorf("reason %q", d.Reason)
	}
}

// TestAllocations: a decision by exact principals makes no garbage.
func TestAllocations(t *testing.T) {
	set := policy.Set{Global: policy.NewGroup([]*policy.Policy{
		compile(t, authz("d", security.Action_DENY, clause(&security.Match{Principals: strs(exact("other.org/ns/bank/sa/bob"))}))),
		compile(t, authz("s", security.Action_DENY, clause(&security.Match{NotPrincipals: strs(presence())}))),
	})}
	c := conn(alice)
	if n := testing.AllocsPerRun(100, func() { set.Evaluate(c) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
