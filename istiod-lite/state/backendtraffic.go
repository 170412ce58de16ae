package state

import (
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
)

// setBackendTraffic takes a BackendTrafficPolicy, nil if it is gone. On it depend its targets, and what the other policies of these say.
func (s *State) setBackendTraffic(key cluster.Key, p *cluster.BackendTrafficPolicy) {
	old := s.views.traffic[key]
	if old == nil && p == nil || old != nil && p != nil && old.Equal(p) {
		return
	}
	s.dirtyViews.traffic[key] = struct{}{}
	follow := func(p *cluster.BackendTrafficPolicy, link func(map[cluster.ObjectRef]set[cluster.Key], cluster.ObjectRef, cluster.Key)) {
		if p == nil {
			return
		}
		done := set[cluster.ObjectRef]{}
		for _, t := range p.Targets {
			if _, twice := done[t.Ref]; twice || !t.Mesh() {
				continue
			}
			done[t.Ref] = struct{}{}
			link(s.views.bounding, t.Ref, key)
			s.touchHost(t.Ref)
		}
	}
	follow(old, drop[cluster.ObjectRef, cluster.Key])
	follow(p, add[cluster.ObjectRef, cluster.Key])
	if p == nil {
		delete(s.views.traffic, key)
	} else {
		s.views.traffic[key] = p
	}
}

// BackendTraffic is part of l7.Index.
func (c *collector) BackendTraffic(target cluster.ObjectRef) []*cluster.BackendTrafficPolicy {
	var out []*cluster.BackendTrafficPolicy
	for k := range c.state.views.bounding[target] {
		out = append(out, c.state.views.traffic[k])
	}
	return out
}

// backendTrafficStatus says what became of a policy.
func (c *collector) backendTrafficStatus(k cluster.Key) {
	out := RouteStatus{Kind: cluster.KindBackendTraffic, Key: k, Gone: true}
	if p := c.state.views.traffic[k]; p != nil {
		out = RouteStatus{Kind: out.Kind, Key: k, Generation: p.Generation, Want: l7.BackendTrafficStatus(p, seen{collector: c}), Seen: p.Seen}
	}
	c.state.report.Routes = append(c.state.report.Routes, out)
}
