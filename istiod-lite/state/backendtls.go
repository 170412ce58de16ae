package state

import (
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
)

// setBackendTLS takes a BackendTLSPolicy, nil if it is gone. On it depend its targets, and what the other policies of these say.
func (s *State) setBackendTLS(key cluster.Key, p *cluster.BackendTLSPolicy) {
	old := s.views.backendTLS[key]
	if old == nil && p == nil || old != nil && p != nil && old.Equal(p) {
		return
	}
	s.dirtyViews.backendTLS[key] = struct{}{}
	if old != nil {
		s.linkBackendTLS(old, drop[cluster.ObjectRef, cluster.Key], drop[cluster.Key, cluster.Key])
	}
	if p == nil {
		delete(s.views.backendTLS, key)
		return
	}
	s.views.backendTLS[key] = p
	s.linkBackendTLS(p, add[cluster.ObjectRef, cluster.Key], add[cluster.Key, cluster.Key])
}

// linkBackendTLS enters a policy, or takes it out, where it is found by what it names, and marks that.
func (s *State) linkBackendTLS(p *cluster.BackendTLSPolicy, target func(map[cluster.ObjectRef]set[cluster.Key], cluster.ObjectRef, cluster.Key), bundle func(map[cluster.Key]set[cluster.Key], cluster.Key, cluster.Key)) {
	done := set[cluster.ObjectRef]{}
	for _, t := range p.Targets {
		if _, twice := done[t.Ref]; twice || !t.Mesh() {
			continue
		}
		done[t.Ref] = struct{}{}
		target(s.views.securing, t.Ref, p.Key)
		s.touchHost(t.Ref)
	}
	trusted := set[cluster.Key]{}
	for _, k := range p.Authorities {
		if _, twice := trusted[k]; !twice {
			trusted[k] = struct{}{}
			bundle(s.views.trusting, k, p.Key)
		}
	}
}

// setBundle takes whom a config map says to trust, nil if it is gone. Most say nothing of that, and nothing is kept of them.
func (s *State) setBundle(key cluster.Key, b *cluster.Bundle) {
	old := s.views.bundles[key]
	if b.Empty() && old == nil || !b.Empty() && old != nil && *old == *b {
		return
	}
	if b.Empty() {
		delete(s.views.bundles, key)
	} else {
		s.views.bundles[key] = b
	}
	for k := range s.views.trusting[key] {
		s.dirtyViews.backendTLS[k] = struct{}{}
		for _, t := range s.views.backendTLS[k].Targets {
			if t.Mesh() {
				s.touchHost(t.Ref)
			}
		}
	}
}

// backendTLSStatus says what became of a policy.
func (c *collector) backendTLSStatus(k cluster.Key) {
	out := RouteStatus{Kind: cluster.KindBackendTLSPolicy, Key: k, Gone: true}
	if p := c.state.views.backendTLS[k]; p != nil {
		out = RouteStatus{Kind: out.Kind, Key: k, Generation: p.Generation, Want: l7.BackendTLSStatus(p, seen{collector: c}), Seen: p.Seen}
	}
	c.state.report.Routes = append(c.state.report.Routes, out)
}
