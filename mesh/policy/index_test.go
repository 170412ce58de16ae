package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// TestFewCandidates: of thousands of rules a decision looks at a few, whatever the rules ask for, without a clock.
func TestFewCandidates(t *testing.T) {
	text := func(s string) []*security.StringMatch {
		return []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: s}}}
	}
	for name, match := range map[string]func(i int) *security.Match{
		"principal": func(i int) *security.Match {
			return &security.Match{Principals: text(fmt.Sprintf("cluster.local/ns/n/sa/s%d", i)), DestinationPorts: []uint32{80}}
		},
		"account": func(i int) *security.Match {
			return &security.Match{ServiceAccounts: []*security.ServiceAccountMatch{{Namespace: "n", ServiceAccount: fmt.Sprint("s", i)}}}
		},
		"namespace": func(i int) *security.Match { return &security.Match{Namespaces: text(fmt.Sprint("n", i))} },
		"beginning": func(i int) *security.Match {
			return &security.Match{Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Prefix{Prefix: fmt.Sprintf("cluster.local/ns/n%d/", i)}}}}
		},
		"end": func(i int) *security.Match {
			return &security.Match{Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Suffix{Suffix: fmt.Sprintf("/sa/s%d", i)}}}}
		},
		"address": func(i int) *security.Match {
			return &security.Match{SourceIps: []*security.Address{{Address: []byte{10, 1, byte(i >> 8), byte(i)}, Length: 32}}}
		},
		"port of one namespace": func(i int) *security.Match {
			return &security.Match{Namespaces: text("n"), DestinationPorts: []uint32{uint32(i + 1)}}
		},
		"no identity": func(int) *security.Match {
			return &security.Match{NotPrincipals: []*security.StringMatch{{MatchType: &security.StringMatch_Presence{}}}}
		},
	} {
		var all []*Policy
		for i := range 5000 {
			p, err := Compile(&security.Authorization{Name: fmt.Sprint("p", i), Namespace: "n", Scope: security.Scope_NAMESPACE, Action: security.Action_DENY,
				Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{match(i)}}}}}})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
		g := NewGroup(all)
		s := newSubject(Connection{
			Peer:   identity.Identity{TrustDomain: "cluster.local", Namespace: "n", ServiceAccount: "s7"},
			Source: netip.MustParseAddr("10.1.0.7"), Destination: netip.MustParseAddrPort("10.2.0.1:80"),
		})
		n := 0
		g.deny.look(&s, func(entries []entry) { n += len(entries) })
		if n > 1 {
			t.Errorf("%s: a decision looks at %d of %d rules", name, n, len(all))
		}
	}
}
