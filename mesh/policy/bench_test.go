package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// kinds of rules, the j-th of the i-th policy, none of which matches alice's connection.
var kinds = []struct {
	name string
	make func(i, j int) *security.Match
}{
	{"principal", func(i, j int) *security.Match {
		return &security.Match{Principals: strs(exact(fmt.Sprintf("cluster.local/ns/n%d/sa/s%d", i, j))), DestinationPorts: []uint32{8080}}
	}},
	{"account", func(i, j int) *security.Match {
		return &security.Match{ServiceAccounts: accounts(fmt.Sprintf("n%d/s%d", i, j)), DestinationPorts: []uint32{8080}}
	}},
	{"namespace", func(i, j int) *security.Match {
		return &security.Match{Namespaces: strs(exact(fmt.Sprintf("n%d-%d", i, j))), DestinationPorts: []uint32{8080}}
	}},
	{"prefix", func(i, j int) *security.Match {
		return &security.Match{Principals: strs(prefix(fmt.Sprintf("cluster.local/ns/n%d-%d/", i, j)))}
	}},
	{"ip", func(i, j int) *security.Match {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), byte(j)}), 32)
		return &security.Match{SourceIps: ips(p.String()), DestinationPorts: []uint32{8080}}
	}},
	{"port", func(i, j int) *security.Match {
		return &security.Match{Namespaces: strs(exact("shop")), DestinationPorts: []uint32{uint32(10000 + (10*i+j)%50000)}}
	}},
	{"strict", func(i, j int) *security.Match { return &security.Match{NotPrincipals: strs(presence())} }},
}

// rules makes n DENY policies of ten rules.
func rules(b *testing.B, n int, match func(i, j int) *security.Match) []*policy.Policy {
	var all []*policy.Policy
	for i := range n {
		a := authz(fmt.Sprint("p", i), security.Action_DENY)
		a.Rules = nil
		for j := range 10 {
			a.Rules = append(a.Rules, &security.Rule{Clauses: []*security.Clause{clause(match(i, j))}})
		}
		all = append(all, compile(b, a))
	}
	return all
}

// BenchmarkEvaluate decides against n policies of ten rules each.
func BenchmarkEvaluate(b *testing.B) {
	for _, kind := range kinds {
		for _, n := range []int{1, 10, 10000} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, n), func(b *testing.B) {
				set, c := policy.Set{Namespace: policy.NewGroup(rules(b, n, kind.make))}, conn(alice)
				b.ReportAllocs()
				for b.Loop() {
					if !set.Evaluate(c).Allowed() {
						b.Fatal("denied")
					}
				}
			})
		}
	}
}

// BenchmarkNewGroup is what a change of one of n policies costs.
func BenchmarkNewGroup(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all := rules(b, n, kinds[0].make)
			for b.Loop() {
				policy.NewGroup(all)
			}
		})
	}
}

// requestKinds are rules for requests, the j-th of the i-th policy, none of which matches BenchmarkDecide's.
var requestKinds = []struct {
	name string
	make func(i, j int) policy.RequestRule
}{
	{"path", func(i, j int) policy.RequestRule {
		return policy.RequestRule{Source: policy.All{}, Operation: policy.Path{Text: policy.Text{Kind: policy.Prefix, Value: fmt.Sprintf("/p%d/%d", i, j)}}}
	}},
	{"template", func(i, j int) policy.RequestRule {
		t, err := policy.NewTemplate(fmt.Sprintf("/p%d/{*}/%d/{**}", i, j))
		if err != nil {
			panic(err)
		}
		return policy.RequestRule{Source: policy.All{}, Operation: policy.PathTemplate{Template: t}}
	}},
	{"header", func(i, j int) policy.RequestRule {
		return policy.RequestRule{Source: policy.All{}, Operation: policy.Field{Name: "x-role", Text: policy.Text{Value: fmt.Sprintf("r%d-%d", i, j)}}}
	}},
	{"namespace", func(i, j int) policy.RequestRule {
		t, err := policy.NewRegexp(fmt.Sprintf("spiffe://[^/]+/ns/n%d-%d/sa/[^/]+", i, j))
		if err != nil {
			panic(err)
		}
		return policy.RequestRule{Source: policy.Principal{Text: t}, Operation: policy.All{}}
	}},
	{"claim", func(i, j int) policy.RequestRule {
		return policy.RequestRule{Source: policy.Claim{Path: []string{"realm", "roles"}, Text: policy.Text{Value: fmt.Sprintf("r%d-%d", i, j)}}, Operation: policy.All{}}
	}},
}

// BenchmarkDecide decides on a request against n DENY policies of ten rules each.
func BenchmarkDecide(b *testing.B) {
	r := policy.Request{Connection: conn(alice), Head: &policy.Head{Method: "GET", Authority: "web.shop", Path: "/v1/items/7?x=y", Header: []h2.Field{
		{Name: "accept", Value: "*/*"}, {Name: "user-agent", Value: "curl/8"}, {Name: "x-request-id", Value: "1"}, {Name: "x-role", Value: "user"}}},
		Claims: map[string]any{"realm": map[string]any{"roles": []any{"user", "guest"}}}}
	for _, kind := range requestKinds {
		for _, n := range []int{1, 100} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, n), func(b *testing.B) {
				step := policy.Step{Kind: policy.StepDeny, Enforced: true}
				for i := range n {
					var rules []policy.RequestRule
					for j := range 10 {
						rules = append(rules, kind.make(i, j))
					}
					step.Policies = append(step.Policies, policy.NewRequestPolicy("shop", fmt.Sprint("p", i), policy.Deny, false, rules))
				}
				steps := policy.Steps{step}
				b.ReportAllocs()
				for b.Loop() {
					q := r
					if !steps.Decide(&q).Allowed() {
						b.Fatal("denied")
					}
				}
			})
		}
	}
}
