package state

import (
	"slices"

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

// touchTarget marks the fronts for which the policies of a target are.
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
	for k := range s.views.authentications[policyTarget{kind, key}] {
		s.dirtyViews.authentications[k] = struct{}{}
	}
}

// requestPolicies are the policies that a waypoint enforces for a front.
func (s *State) requestPolicies(ref cluster.ObjectRef, gateway cluster.Key) l7.Policies {
	out := l7.Policies{Mesh: s.mesh, Telemetry: s.telemetry(ref, gateway), KeySets: s.keySet}
	kind := authz.TargetService
	switch {
	case ref.IsEntry():
		kind = authz.TargetServiceEntry
	case ref.Kind == cluster.KindGateway:
		kind = authz.TargetGateway
	}
	found, authentications := set[cluster.Key]{}, set[cluster.Key]{}
	for _, t := range []policyTarget{
		{kind, ref.Key}, {authz.TargetGateway, gateway}, {authz.TargetGatewayClass, cluster.Key{Namespace: s.mesh.RootNamespace, Name: authz.WaypointClass}},
	} {
		for k := range s.views.policies[t] {
			if _, twice := found[k]; !twice {
				found[k] = struct{}{}
				out.All = append(out.All, s.authorizations[k])
			}
		}
		for k := range s.views.authentications[t] {
			if _, twice := authentications[k]; !twice {
				authentications[k] = struct{}{}
				out.Authentications = append(out.Authentications, s.authentications[k])
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
	s.tellBound(l7.PolicyStatus(s.mesh, p, seen{collector: c}, s.waypointThere))
}

// waypointThere is l7.Gateways.
func (s *State) waypointThere(k cluster.Key) (there, waypoint bool) {
	w := s.waypoint(k)
	return s.bindings.gateways[k] != nil, w != nil && w.Unready == ""
}

// asked are the services of those whom the policies for a service at a waypoint want to be asked.
func (c *collector) asked(ref cluster.ObjectRef, gateway cluster.Key) (out []cluster.ObjectRef) {
	for _, p := range c.state.requestPolicies(ref, gateway).All {
		if p.Policy.Action != authz.Custom {
			continue
		}
		if _, h, err := l7.Provider(c.state.mesh, p.Policy.Provider, seen{c, gateway}); err == nil {
			out = append(out, h.Ref)
		}
	}
	return out
}

// Named is part of l7.Index.
func (c *collector) Named(namespace, hostname string) *l7.Host {
	s := c.state
	if key, is := l7.KubernetesService(s.mesh, hostname); is {
		return c.Host(cluster.ServiceRef(key))
	}
	var refs []cluster.ObjectRef
	if claims := s.hosts[hostname]; claims != nil {
		for in, entries := range claims.in {
			for _, e := range entries {
				if namespace == "" || namespace == in {
					refs = append(refs, cluster.EntryRef(e.Key))
				}
			}
		}
	}
	slices.SortFunc(refs, cluster.ObjectRef.Compare)
	for _, ref := range refs {
		for _, h := range c.hostsOf(ref) {
			if h.Hostname == hostname {
				return h
			}
		}
	}
	return nil
}

// touchAsked marks what depends on who can be asked, or told, if a service that is another than before may be one of those.
func (s *State) touchAsked(ref cluster.ObjectRef) {
	if !s.mayBeAsked(ref) {
		return
	}
	s.touchTelemetry()
	for k, p := range s.authorizations {
		if p.Policy.Action != authz.Custom {
			continue
		}
		s.dirtyViews.policies[k] = struct{}{}
		for _, t := range p.Policy.Requests.Targets {
			s.touchTarget(policyTarget{t.Kind, cluster.Key{Namespace: k.Namespace, Name: t.Name}})
		}
	}
}

// mayBeAsked reports whether a service is named by the mesh settings; a ServiceEntry, whether one may be.
func (s *State) mayBeAsked(ref cluster.ObjectRef) bool {
	for _, p := range s.mesh.Providers {
		_, hostname, err := l7.ProviderService(s.mesh, l7.ProviderOf(p))
		if err != nil {
			continue
		}
		if key, is := l7.KubernetesService(s.mesh, hostname); is == ref.IsService() && (!is || key == ref.Key) {
			return true
		}
	}
	return false
}
