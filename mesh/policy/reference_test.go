package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// The reference evaluates protobufs as they are, one statement of the rules after the other. It panics on what it does
// not understand.

func refMatches(a *security.Authorization, c policy.Connection) bool {
	for _, r := range a.GetRules() {
		all := true
		for _, cl := range r.GetClauses() {
			some := len(cl.GetMatches()) == 0
			for _, m := range cl.GetMatches() {
				if proto.Equal(stripExtensions(m), &security.Match{}) {
					some = some || a.GetAction() == security.Action_DENY
				} else if refMatch(m, c) {
					some = true
				}
			}
			all = all && some
		}
		if all {
			return true
		}
	}
	return false
}

func stripExtensions(m *security.Match) *security.Match {
	m = proto.CloneOf(m)
	m.Extensions = nil
	m.ProtoReflect().SetUnknown(nil)
	return m
}

func refMatch(m *security.Match, c policy.Connection) bool {
	result := true
	and := func(positive, negative []bool) {
		if len(positive) > 0 {
			one := false
			for _, p := range positive {
				one = one || p
			}
			result = result && one
		}
		for _, n := range negative {
			result = result && !n
		}
	}
	principal := strings.TrimPrefix(c.Peer.String(), "spiffe://")
	and(refTexts(m.GetNamespaces(), c.Peer.Namespace, false), refTexts(m.GetNotNamespaces(), c.Peer.Namespace, false))
	and(refTexts(m.GetPrincipals(), principal, true), refTexts(m.GetNotPrincipals(), principal, true))
	and(refIPs(m.GetSourceIps(), c.Source), refIPs(m.GetNotSourceIps(), c.Source))
	and(refIPs(m.GetDestinationIps(), c.Destination.Addr()), refIPs(m.GetNotDestinationIps(), c.Destination.Addr()))
	and(refPorts(m.GetDestinationPorts(), c), refPorts(m.GetNotDestinationPorts(), c))
	and(refAccounts(m.GetServiceAccounts(), c), refAccounts(m.GetNotServiceAccounts(), c))
	return result
}

func refTexts(in []*security.StringMatch, value string, principal bool) []bool {
	var out []bool
	for _, m := range in {
		trim := func(s string) string {
			if s == "" {
				panic("empty")
			}
			if principal {
				return strings.TrimPrefix(s, "spiffe://")
			}
			return s
		}
		var is bool
		switch v := m.GetMatchType().(type) {
		case *security.StringMatch_Exact:
			is = value == trim(v.Exact)
		case *security.StringMatch_Prefix:
			is = strings.HasPrefix(value, trim(v.Prefix))
		case *security.StringMatch_Suffix:
			if v.Suffix == "" {
				panic("empty")
			}
			is = strings.HasSuffix(value, v.Suffix)
		case *security.StringMatch_Presence:
			is = true
		default:
			panic("no match type")
		}
		out = append(out, is && value != "")
	}
	return out
}

func refIPs(in []*security.Address, addr netip.Addr) []bool {
	var out []bool
	for _, a := range in {
		ip, ok := netip.AddrFromSlice(a.GetAddress())
		bits := int(a.GetLength())
		if !ok || a.GetLength() > uint32(ip.BitLen()) || ip.Is4In6() && bits < 96 {
			panic("address")
		}
		if ip.Is4In6() {
			ip, bits = ip.Unmap(), bits-96
		}
		addr := addr.Unmap()
		is := ip.Is4() == addr.Is4()
		x, y := ip.AsSlice(), addr.AsSlice()
		for i := 0; is && i < bits; i++ {
			mask := byte(0x80) >> (i % 8)
			is = x[i/8]&mask == y[i/8]&mask
		}
		out = append(out, is)
	}
	return out
}

func refPorts(in []uint32, c policy.Connection) []bool {
	var out []bool
	for _, p := range in {
		if p == 0 || p > 65535 {
			panic("port")
		}
		out = append(out, p == uint32(c.Destination.Port()))
	}
	return out
}

func refAccounts(in []*security.ServiceAccountMatch, c policy.Connection) []bool {
	var out []bool
	for _, a := range in {
		if a.GetNamespace() == "" || a.GetServiceAccount() == "" {
			panic("account")
		}
		out = append(out, a.GetNamespace() == c.Peer.Namespace && a.GetServiceAccount() == c.Peer.ServiceAccount)
	}
	return out
}

// refUnderstands reports whether the reference can make sense of all of a, wherever the evaluation would end.
func refUnderstands(a *security.Authorization) (ok bool) {
	defer func() { ok = recover() == nil }()
	for _, r := range a.GetRules() {
		for _, c := range r.GetClauses() {
			for _, m := range c.GetMatches() {
				refMatch(m, conn(alice))
			}
		}
	}
	if a.GetAction() != security.Action_ALLOW && a.GetAction() != security.Action_DENY {
		panic("action")
	}
	return true
}

// connections are few, and chosen so that policies with the names in seeds tell them apart.
func connections() []policy.Connection {
	var out []policy.Connection
	for _, peer := range []identity.Identity{{}, alice, bob} {
		for _, src := range []string{"10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "0.0.0.0"} {
			for _, dst := range []string{"10.9.8.7:8080", "[fd00::2]:80", "[::ffff:10.9.8.7]:1"} {
				out = append(out, policy.Connection{Peer: peer, Source: netip.MustParseAddr(src), Destination: netip.MustParseAddrPort(dst)})
			}
		}
	}
	return out
}

// FuzzAgainstReference: compiled policies decide as the reference does, and what it does not understand is invalid.
func FuzzAgainstReference(f *testing.F) {
	for _, seed := range []string{
		`{"rules": [{"clauses": [{"matches": [{"namespaces": [{"exact": "shop"}], "notPrincipals": [{"presence": {}}]}, {"destinationPorts": [80, 8080]}]}]}]}`,
		`{"action": "DENY", "rules": [{}, {"clauses": [{}, {"matches": [{}]}]}]}`,
		`{"action": "DENY", "rules": [{"clauses": [{"matches": [{"sourceIps": [{"address": "CgEAAA==", "length": 16}], "notDestinationIps": [{"address": "/QAAAAAAAAAAAAAAAAAAAg==", "length": 128}]}]}]}]}`,
		`{"rules": [{"clauses": [{"matches": [{"serviceAccounts": [{"namespace": "bank", "serviceAccount": "bob"}], "notNamespaces": [{"prefix": "s"}], "principals": [{"suffix": "/bob"}, {"prefix": "cluster"}]}]}]}]}`,
		`{"rules": [{"clauses": [{"matches": [{"principals": [{"exact": "cluster.local/ns/shop/sa/alice"}], "notServiceAccounts": [{"namespace": "a", "serviceAccount": "b"}], "notDestinationPorts": [1]}]}]}]}`,
		`{"action": 5, "rules": [{"clauses": [{"matches": [{"sourceIps": [{"address": "CgE=", "length": 16}], "destinationPorts": [70000], "namespaces": [{}]}]}]}]}`,
	} {
		var a security.Authorization
		if err := protojson.Unmarshal([]byte(seed), &a); err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(&a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	conns := connections()
	f.Fuzz(func(t *testing.T, b []byte) {
		var a security.Authorization
		if proto.Unmarshal(b, &a) != nil {
			return
		}
		a.Name, a.Namespace, a.Scope = "p", "shop", security.Scope_NAMESPACE
		p, err := policy.Compile(&a)
		if p == nil {
			t.Fatalf("no policy: %v", err)
		}
		understood := refUnderstands(&a)
		if understood != (err == nil) || (p.Invalid == nil) != understood {
			t.Fatalf("understood by the reference: %v, error %v, invalid %v", understood, err, p.Invalid)
		}
		p.Dump()
		for _, c := range conns {
			want := p.Action == policy.Deny
			if understood {
				want = refMatches(&a, c)
			}
			if got := p.Matches(c); got != want {
				t.Fatalf("%v matches %+v: %v, want %v", &a, c, got, want)
			}
		}
	})
}

// refDecide is Set.Evaluate over protobufs: all policies that apply, and whether one is missing.
func refDecide(all []*security.Authorization, missing bool, c policy.Connection) policy.Verdict {
	allows, allowed := 0, false
	for _, a := range all {
		switch {
		case a.GetDryRun():
		case a.GetAction() == security.Action_DENY:
			if refMatches(a, c) {
				return policy.Denied
			}
		default:
			allows++
			allowed = allowed || refMatches(a, c)
		}
	}
	switch {
	case missing:
		return policy.Undecided
	case allows > 0 && !allowed:
		return policy.Denied
	}
	return policy.Allowed
}

// refDryRun lists what policies that are not enforced would have decided.
func refDryRun(all []*security.Authorization, c policy.Connection) []policy.Verdict {
	var out []policy.Verdict
	allowed, allows := false, 0
	for _, a := range all {
		is := refMatches(a, c)
		switch {
		case a.GetAction() == security.Action_ALLOW:
			allowed = allowed || is
			if a.GetDryRun() {
				if allows++; is {
					out = append(out, policy.Allowed)
				}
			}
		case a.GetDryRun() && is:
			out = append(out, policy.Denied)
		}
	}
	if !allowed {
		for range allows {
			out = append(out, policy.Denied)
		}
	}
	return out
}

// FuzzDecide: a decision on several policies, by the index, is that of the reference, and names the first policy that decides.
func FuzzDecide(f *testing.F) {
	f.Add(uint64(1), uint8(3))
	f.Add(uint64(7), uint8(40))
	conns := connections()
	f.Fuzz(func(t *testing.T, seed uint64, n uint8) {
		r := rand.New(rand.NewPCG(seed, 3))
		var all []*security.Authorization
		var compiled []*policy.Policy
		for i := range int(n) {
			a := randomPolicy(r)
			a.Name = fmt.Sprintf("p%03d", i)
			all, compiled = append(all, a), append(compiled, compile(t, a))
		}
		set := policy.Set{Namespace: policy.NewGroup(compiled)}
		for _, c := range conns {
			want, by := refDecide(all, false, c), ""
			for _, a := range all {
				decides := want == policy.Denied && a.GetAction() == security.Action_DENY || want == policy.Allowed && a.GetAction() == security.Action_ALLOW
				if decides && !a.GetDryRun() && refMatches(a, c) {
					by = "shop/" + a.GetName()
					break
				}
			}
			if got := set.Evaluate(c); got.Verdict != want || got.Policy != by {
				t.Fatalf("policies %v, connection %+v: %+v, want %v by %q", all, c, got, want, by)
			}
		}
	})
}

// randomPolicy uses few words, so that something matches often.
func randomPolicy(r *rand.Rand) *security.Authorization {
	some := func(n int) bool { return r.IntN(n) == 0 }
	word := func(words ...string) *security.StringMatch {
		w := words[r.IntN(len(words))]
		return []*security.StringMatch{exact(w), prefix(w[:1+r.IntN(len(w))]), suffix(w[r.IntN(len(w)):]), presence()}[r.IntN(4)]
	}
	namespaces := func() (out []*security.StringMatch) {
		for range r.IntN(2) * (1 + r.IntN(2)) {
			out = append(out, word("shop", "bank", "other"))
		}
		return out
	}
	principals := func() (out []*security.StringMatch) {
		for range r.IntN(2) * (1 + r.IntN(2)) {
			out = append(out, word("cluster.local/ns/shop/sa/alice", "spiffe://other.org/ns/bank/sa/bob", "x"))
		}
		return out
	}
	prefixes := func() (out []*security.Address) {
		for range r.IntN(2) * (1 + r.IntN(2)) {
			out = append(out, ips([]string{"10.0.0.0/8", "10.1.2.3/32", "fd00::/8", "::ffff:10.9.0.0/112", "0.0.0.0/0"}[r.IntN(5)])...)
		}
		return out
	}
	a := authz("p", security.Action(r.IntN(2)))
	a.DryRun = some(8)
	a.Rules = nil
	for range r.IntN(3) {
		rule := &security.Rule{}
		for range r.IntN(3) {
			cl := &security.Clause{}
			for range r.IntN(3) {
				m := &security.Match{}
				if some(2) {
					m.Namespaces, m.NotNamespaces = namespaces(), namespaces()
				}
				if some(2) {
					m.Principals, m.NotPrincipals = principals(), principals()
				}
				if some(3) {
					m.SourceIps, m.NotDestinationIps = prefixes(), prefixes()
				}
				if some(3) {
					m.NotSourceIps, m.DestinationIps = prefixes(), prefixes()
				}
				if some(3) {
					m.DestinationPorts = []uint32{80, uint32(1 + r.IntN(2)*8079)}
				}
				if some(3) {
					m.NotDestinationPorts = []uint32{uint32(1 + r.IntN(2)*79)}
				}
				if some(4) {
					m.ServiceAccounts, m.NotServiceAccounts = accounts("shop/alice", "bank/x"), accounts("bank/bob")[:r.IntN(2)]
				}
				cl.Matches = append(cl.Matches, m)
			}
			rule.Clauses = append(rule.Clauses, cl)
		}
		a.Rules = append(a.Rules, rule)
	}
	return a
}

// TestAgainstReference compares decisions on random sets of policies.
func TestAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	conns := connections()
	outcomes := map[policy.Verdict]int{}
	for range 3000 {
		var all []*security.Authorization
		groups := [3][]*policy.Policy{}
		for range r.IntN(5) {
			a := randomPolicy(r)
			all = append(all, a)
			i := r.IntN(3)
			groups[i] = append(groups[i], compile(t, a))
		}
		set := policy.Set{Global: policy.NewGroup(groups[0]), Selected: policy.NewGroup(groups[2])}
		if len(groups[1]) > 0 {
			set.Namespace = policy.NewGroup(groups[1])
		}
		if r.IntN(10) == 0 {
			set.Missing = []string{"shop/missing"}
		}
		for _, c := range conns {
			want := refDecide(all, len(set.Missing) > 0, c)
			outcomes[want]++
			got := set.Evaluate(c)
			if got.Verdict != want {
				t.Fatalf("policies %v, missing %v, connection %+v: %+v, want %v", all, set.Missing, c, got, want)
			}
			if dry := refDryRun(all, c); len(got.DryRun) != len(dry) {
				t.Fatalf("policies %v, connection %+v: dry run %+v, want %v", all, c, got.DryRun, dry)
			}
		}
	}
	for _, v := range []policy.Verdict{policy.Allowed, policy.Denied, policy.Undecided} {
		if outcomes[v] < 1000 {
			t.Errorf("only %d of the decisions are %v", outcomes[v], v)
		}
	}
}
