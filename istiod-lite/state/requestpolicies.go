package state

import (
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// policyTarget is what policies can be attached to.
type policyTarget struct {
	kind authz.TargetKind
	key  cluster.Key
}

// attachPolicy enters that a policy, nil for none, is attached to other things than before, and marks the services for which waypoints
// enforce it.
func (s *State) attachPolicy(key cluster.Key, old, p *cluster.AuthorizationPolicy) {
	follow := func(p *cluster.AuthorizationPolicy, link func(map[policyTarget]set[cluster.Key], policyTarget, cluster.Key)) {
		if p == nil {
			return
		}
		for _, t := range p.Policy.Requests.Targets {
			target := policyTarget{t.Kind, cluster.Key{Namespace: key.Namespace, Name: t.Name}}
			link(s.views.policies, target, key)
			s.touchTarget(target)
		}
	}
	if old == nil || p == nil || !old.Policy.Equal(p.Policy) {
		follow(old, drop[policyTarget, cluster.Key])
		follow(p, add[policyTarget, cluster.Key])
	}
	s.dirtyViews.policies[key] = struct{}{}
}

// touchTarget marks the services for which the policies of a target are.
func (s *State) touchTarget(t policyTarget) {
	mark := func(refs set[cluster.ObjectRef]) {
		for ref := range refs {
			s.dirtyViews.fronts[ref] = struct{}{}
		}
	}
	switch t.kind {
	case authz.TargetService:
		s.dirtyViews.fronts[cluster.ServiceRef(t.key)] = struct{}{}
	case authz.TargetServiceEntry:
		s.dirtyViews.fronts[cluster.EntryRef(t.key)] = struct{}{}
	case authz.TargetGateway:
		if v := s.views.of[t.key]; v != nil {
			mark(v.fronts)
		}
	case authz.TargetGatewayClass:
		for _, v := range s.views.of {
			mark(v.fronts)
		}
	}
}

// touchPolicies marks the policies of a target: what they say of themselves depends on it.
func (s *State) touchPolicies(kind authz.TargetKind, key cluster.Key) {
	for k := range s.views.policies[policyTarget{kind, key}] {
		s.dirtyViews.policies[k] = struct{}{}
	}
}

// requestPolicies are the policies that a waypoint enforces for a service.
func (s *State) requestPolicies(ref cluster.ObjectRef, gateway cluster.Key) l7.Policies {
	out := l7.Policies{Mesh: s.mesh}
	kind := authz.TargetService
	if ref.IsEntry() {
		kind = authz.TargetServiceEntry
	}
	found := set[cluster.Key]{}
	for _, t := range []policyTarget{
		{kind, ref.Key}, {authz.TargetGateway, gateway}, {authz.TargetGatewayClass, cluster.Key{Namespace: s.mesh.RootNamespace, Name: authz.WaypointClass}},
	} {
		for k := range s.views.policies[t] {
			if _, twice := found[k]; !twice {
				found[k] = struct{}{}
				out.All = append(out.All, s.authorizations[k])
			}
		}
	}
	return out
}

// policyStatus says what waypoints make of a policy. One that was never a waypoint's says nothing.
func (c *collector) policyStatus(k cluster.Key) {
	s := c.state
	p := s.authorizations[k]
	if p == nil || !p.Policy.Attached && p.SeenWaypoint == (cluster.Condition{}) {
		s.tellBound(translate.Status{Kind: cluster.KindAuthorizationPolicy, Key: k, Type: authz.WaypointConditionType, Gone: true})
		return
	}
	s.tellBound(l7.PolicyStatus(s.mesh, p, seen{c, ""}, s.waypointThere))
}

// waypointThere is l7.Gateways.
func (s *State) waypointThere(k cluster.Key) (there, waypoint bool) {
	w := s.waypoint(k)
	return s.bindings.gateways[k] != nil, w != nil && w.Unready == ""
}
