package translate

import (
	"slices"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// AuthorizationPolicy translates a policy; nil if node proxies are not given it.
func AuthorizationPolicy(m Mesh, p *cluster.AuthorizationPolicy) (*security.Authorization, []Problem) {
	var problems []Problem
	if c := p.Policy.Condition(); !c.Accepted && c.Reason != authz.ReasonAttached {
		problems = append(problems, Problem{p.ObjectKind(), p.Key, c.Message})
	}
	return p.Policy.Authorization(m.Authorization()), problems
}

// Authorization is what the meaning of AuthorizationPolicies depends on.
func (m Mesh) Authorization() authz.Mesh {
	return authz.Mesh{RootNamespace: m.RootNamespace, TrustDomains: m.trustDomains()}
}

// trustDomains are the mesh's own and its aliases.
func (m Mesh) trustDomains() []string {
	return append([]string{m.TrustDomain}, m.TrustDomainAliases...)
}

// Authorizes reports whether a workload of a namespace, with these labels, has to name a policy: others apply by their scope.
func Authorizes(m Mesh, p *cluster.AuthorizationPolicy, namespace string, labels cluster.Labels) bool {
	return len(p.Selector) > 0 && p.Policy.Enforced() && (p.Namespace == namespace || p.Namespace == m.RootNamespace) &&
		labels.Contains(p.Selector)
}

// PoliciesOf names the authorisations that select a workload: what PeerAuthentications became, then policies by name.
func PoliciesOf(converted []string, policies []*cluster.AuthorizationPolicy) []string {
	var names []string
	for _, p := range policies {
		names = append(names, p.Key.String())
	}
	slices.Sort(names)
	return append(converted, names...)
}

// Status is the condition that an object should have.
type Status struct {
	Kind cluster.Kind
	Key  cluster.Key
	// Type is that of the condition.
	Type string
	// Want is that condition, zero if the object should have none of the type; Seen is the one that the object has.
	Want, Seen cluster.Condition
	// Gone says that there is nothing to say, such as when the object is gone; Want and Seen are zero then.
	Gone bool
}

// AuthorizationPolicyStatus says what node proxies make of a policy.
func AuthorizationPolicyStatus(p *cluster.AuthorizationPolicy) Status {
	c := p.Policy.Condition()
	want := cluster.Condition{Type: authz.ConditionType, Status: "False", Reason: c.Reason, Message: c.Message, Generation: p.Generation}
	if c.Accepted {
		want.Status = "True"
	}
	return Status{Kind: p.ObjectKind(), Key: p.Key, Type: authz.ConditionType, Want: want, Seen: p.Seen}
}
