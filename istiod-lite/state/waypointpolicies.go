package state

import (
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
)

// setWaypointPolicy takes a WaypointPolicy, nil if it is gone. On it depend its targets, and what the other policies of these say.
func (s *State) setWaypointPolicy(key cluster.Key, p *cluster.WaypointPolicy) {
	old := s.views.refining[key]
	if old == nil && p == nil || old != nil && p != nil && old.Equal(p) {
		return
	}
	s.dirtyViews.refining[key] = struct{}{}
	if old != nil {
		s.linkWaypointPolicy(old, drop[cluster.ObjectRef, cluster.Key])
	}
	if p == nil {
		delete(s.views.refining, key)
		return
	}
	s.views.refining[key] = p
	s.linkWaypointPolicy(p, add[cluster.ObjectRef, cluster.Key])
}

// linkWaypointPolicy enters a policy, or takes it out, where it is found by its targets, and marks these.
func (s *State) linkWaypointPolicy(p *cluster.WaypointPolicy, link func(map[cluster.ObjectRef]set[cluster.Key], cluster.ObjectRef, cluster.Key)) {
	done := set[cluster.ObjectRef]{}
	for _, t := range p.Targets {
		if _, twice := done[t.Ref]; twice {
			continue
		}
		done[t.Ref] = struct{}{}
		link(s.views.refined, t.Ref, p.Key)
		if t.Mesh() {
			s.touchFront(t.Ref)
			continue
		}
		s.touchRefining(t.Ref)
		if v := s.views.of[t.Ref.Key]; v != nil && t.Ref.IsGateway() {
			for ref := range v.fronts {
				s.dirtyViews.fronts[ref] = struct{}{}
			}
		}
	}
}

// touchRefining marks the policies of an object: what they say of themselves depends on it.
func (s *State) touchRefining(ref cluster.ObjectRef) {
	for k := range s.views.refined[ref] {
		s.dirtyViews.refining[k] = struct{}{}
	}
}

// WaypointPolicies is part of l7.Index.
func (c *collector) WaypointPolicies(target cluster.ObjectRef) []*cluster.WaypointPolicy {
	var out []*cluster.WaypointPolicy
	for k := range c.state.views.refined[target] {
		out = append(out, c.state.views.refining[k])
	}
	return out
}

// waypointPolicyStatus says what became of a policy.
func (c *collector) waypointPolicyStatus(k cluster.Key) {
	out := RouteStatus{Kind: cluster.KindWaypointPolicy, Key: k, Gone: true}
	if p := c.state.views.refining[k]; p != nil {
		out = RouteStatus{
			Kind: out.Kind, Key: k, Generation: p.Generation, Seen: p.Seen,
			Want: l7.WaypointPolicyStatus(p, seen{collector: c}, c.state.waypointThere),
		}
	}
	c.state.report.Routes = append(c.state.report.Routes, out)
}
