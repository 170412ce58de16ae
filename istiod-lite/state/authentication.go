package state

import (
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// setAuthentication takes a RequestAuthentication, nil if it is gone, and marks the services for which waypoints authenticate by it.
func (s *State) setAuthentication(key cluster.Key, p *cluster.RequestAuthentication) {
	old := s.authentications[key]
	if old == nil && p == nil || old != nil && p != nil && old.Equal(p) {
		return
	}
	if p == nil {
		delete(s.authentications, key)
	} else {
		s.authentications[key] = p
	}
	s.dirtyViews.authentications[key] = struct{}{}
	if old != nil && p != nil && old.Policy.Equal(p.Policy) {
		return
	}
	if old != nil {
		s.linkAuthentication(old, drop[policyTarget, cluster.Key], drop[cluster.Key, cluster.Key])
	}
	if p != nil {
		s.linkAuthentication(p, add[policyTarget, cluster.Key], add[cluster.Key, cluster.Key])
	}
}

// linkAuthentication enters a policy, or takes it out, where it is found by what it names.
func (s *State) linkAuthentication(
	p *cluster.RequestAuthentication, target func(map[policyTarget]set[cluster.Key], policyTarget, cluster.Key), keys func(map[cluster.Key]set[cluster.Key], cluster.Key, cluster.Key),
) {
	for _, t := range targetsOf(p) {
		target(s.views.authentications, t, p.Key)
		s.touchTarget(t)
	}
	named := set[cluster.Key]{}
	for _, r := range p.Policy.Rules {
		if k := cluster.KeySetKey(r.Source); !r.Source.IsZero() {
			if _, twice := named[k]; !twice {
				named[k] = struct{}{}
				keys(s.views.keyUsers, k, p.Key)
			}
		}
	}
}

func targetsOf(p *cluster.RequestAuthentication) []policyTarget {
	var out []policyTarget
	for _, t := range p.Policy.Targets {
		out = append(out, policyTarget{t.Kind, cluster.Key{Namespace: p.Namespace, Name: t.Name}})
	}
	return out
}

// setKeySet takes what an issuer publishes, nil if nobody asks for it any more, and marks what depends on it.
func (s *State) setKeySet(key cluster.Key, k *cluster.KeySet) {
	old := s.keySets[key]
	if old == nil && k == nil || old != nil && k != nil && old.Equal(k) {
		return
	}
	if k == nil {
		delete(s.keySets, key)
	} else {
		s.keySets[key] = k
	}
	for user := range s.views.keyUsers[key] {
		s.dirtyViews.authentications[user] = struct{}{}
		if old == nil || k == nil || old.Set.String() != k.Set.String() {
			for _, t := range targetsOf(s.authentications[user]) {
				s.touchTarget(t)
			}
		}
	}
}

// keySet is l7.KeySets.
func (s *State) keySet(source authn.Source) *cluster.KeySet {
	return s.keySets[cluster.KeySetKey(source)]
}

// authenticationStatus says what waypoints make of a policy.
func (c *collector) authenticationStatus(k cluster.Key) {
	s := c.state
	p := s.authentications[k]
	if p == nil {
		s.tellBound(translate.Status{Kind: cluster.KindRequestAuthentication, Key: k, Type: authz.WaypointConditionType, Gone: true})
		return
	}
	s.tellBound(l7.AuthenticationStatus(s.mesh, p, seen{collector: c}, s.waypointThere, s.keySet))
}
