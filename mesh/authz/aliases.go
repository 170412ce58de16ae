package authz

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/security"
)

const scheme = "spiffe://"

// withAliases lets each principal stand for the same one of all of the mesh's trust domains. One of another trust domain
// stands for itself. "cluster.local" means the mesh's own, whatever that is called, as in Istio; where that would let more
// through than the text says, it means itself besides.
func withAliases(r *security.Rule, action Action, domains []string) *security.Rule {
	out := proto.CloneOf(r)
	for _, c := range out.GetClauses() {
		for _, m := range c.GetMatches() {
			m.Principals = expand(m.Principals, domains, action == Deny)
			m.NotPrincipals = expand(m.NotPrincipals, domains, action == Allow)
		}
	}
	return out
}

func expand(in []*security.StringMatch, domains []string, keep bool) []*security.StringMatch {
	var out []*security.StringMatch
	for _, m := range in {
		domain, rest, ok := strings.Cut(strings.TrimPrefix(m.GetExact()+m.GetPrefix(), scheme), "/")
		own := ok && len(domains) > 0 && (slices.Contains(domains, domain) || domain == api.DefaultTrustDomain)
		if !own {
			out = append(out, m)
			continue
		}
		if keep && !slices.Contains(domains, domain) {
			out = append(out, m)
		}
		for _, d := range domains {
			value := d + "/" + rest
			if m.GetExact() != "" {
				out = append(out, &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: value}})
			} else {
				out = append(out, &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: value}})
			}
		}
	}
	return out
}
