package policy_test

import (
	"fmt"
	"testing"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// BenchmarkEvaluate decides against n DENY policies of ten rules each, none of which matches.
func BenchmarkEvaluate(b *testing.B) {
	for _, n := range []int{1, 10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var all []*policy.Policy
			for i := range n {
				a := authz(fmt.Sprint("p", i), security.Action_DENY)
				a.Rules = nil
				for j := range 10 {
					a.Rules = append(a.Rules, &security.Rule{Clauses: []*security.Clause{clause(&security.Match{
						Principals: strs(exact(fmt.Sprintf("cluster.local/ns/n%d/sa/s%d", i, j))), DestinationPorts: []uint32{8080},
					})}})
				}
				all = append(all, compile(b, a))
			}
			set, c := policy.Set{Namespace: policy.NewGroup(all)}, conn(alice)
			b.ReportAllocs()
			for b.Loop() {
				if !set.Evaluate(c).Allowed() {
					b.Fatal("denied")
				}
			}
		})
	}
}
