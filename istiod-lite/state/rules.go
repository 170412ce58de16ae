package state

import (
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
	namespace string // the waypoint's
}

// Rule is part of l7.Index.
func (v seen) Rule(h *l7.Host) *cluster.DestinationRule {
	return v.state.views.found.Lookup(v.state.mesh, v.namespace, h)
}
