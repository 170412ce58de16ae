package state

import (
	"maps"
	"slices"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// setRule takes a DestinationRule, nil if it is gone. On it depend the services that its host means, and what the rules that are alike
// say of themselves.
func (s *State) setRule(key cluster.Key, r *cluster.DestinationRule) {
	old := s.views.rules[key]
	if old == nil && r == nil || old != nil && r != nil && old.Equal(r) {
		return
	}
	delete(s.views.rules, key)
	if old != nil {
		s.views.found.Remove(old)
	}
	if r != nil {
		s.views.rules[key] = r
		s.views.found.Add(r)
	}
	s.dirtyViews.rules[key] = struct{}{}
	for _, changed := range []*cluster.DestinationRule{old, r} {
		if changed == nil {
			continue
		}
		for _, o := range s.views.found.Alike(changed) {
			s.dirtyViews.rules[o.Key] = struct{}{}
		}
		for ref, b := range s.views.backs {
			if slices.ContainsFunc(b.hosts, func(h *l7.Host) bool { return l7.Means(changed, h) }) {
				s.touchHost(ref)
			}
		}
	}
}

// ruleStatus says what became of a DestinationRule.
func (c *collector) ruleStatus(k cluster.Key) {
	s := c.state
	if r := s.views.rules[k]; r != nil {
		s.report.Statuses = append(s.report.Statuses, l7.RuleStatus(r, s.views.found.Alike(r)))
		return
	}
	s.gone(object{cluster.KindDestinationRule, k}, authz.WaypointConditionType)
}

// seen is the l7.Index of a waypoint.
type seen struct {
	*collector
	gateway cluster.Key // the waypoint's; without a name for all of its namespace
}

// Gateway is part of l7.Index.
func (v seen) Gateway() cluster.Key { return v.gateway }

// Rule is part of l7.Index.
func (v seen) Rule(h *l7.Host) *cluster.DestinationRule {
	return v.state.views.found.Lookup(v.state.mesh, v.gateway.Namespace, h)
}

// Fault is part of l7.Index.
func (c *collector) Fault(h *l7.Host) *cluster.Injection {
	if all := c.state.views.virtual[h.Ref.Key.Namespace]; len(all) > 0 {
		return l7.FaultOf(slices.Collect(maps.Values(all)), h)
	}
	return nil
}

// setVirtualService takes a VirtualService, nil if it is gone. On it depend the services of its namespace that it names, and what the
// others of the namespace say of themselves.
func (s *State) setVirtualService(key cluster.Key, v *cluster.VirtualService) {
	all := s.views.virtual[key.Namespace]
	old := all[key]
	if old == nil && v == nil || old != nil && v != nil && old.Equal(v) {
		return
	}
	switch {
	case v == nil:
		s.dirtyViews.vanished[key] = struct{}{}
		if delete(all, key); len(all) == 0 {
			delete(s.views.virtual, key.Namespace)
		}
	case all == nil:
		s.views.virtual[key.Namespace] = map[cluster.Key]*cluster.VirtualService{key: v}
	default:
		all[key] = v
	}
	s.dirtyViews.virtual[key.Namespace] = struct{}{}
	for ref, b := range s.views.backs {
		if slices.ContainsFunc(b.hosts, func(h *l7.Host) bool { return old != nil && l7.FaultsFor(old, h) || v != nil && l7.FaultsFor(v, h) }) {
			s.touchFront(ref)
		}
	}
}

// virtualStatuses says what became of VirtualServices.
func (c *collector) virtualStatuses() {
	s := c.state
	for key := range s.dirtyViews.vanished {
		if s.views.virtual[key.Namespace][key] == nil {
			s.gone(object{cluster.KindVirtualService, key}, authz.WaypointConditionType)
		}
	}
	for namespace := range s.dirtyViews.virtual {
		all := slices.Collect(maps.Values(s.views.virtual[namespace]))
		for _, v := range all {
			s.report.Statuses = append(s.report.Statuses, l7.VirtualServiceStatus(v, all))
		}
	}
}

// virtualServices counts them.
func (s *State) virtualServices() int {
	n := 0
	for _, all := range s.views.virtual {
		n += len(all)
	}
	return n
}
