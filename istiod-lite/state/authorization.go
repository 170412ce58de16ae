package state

import (
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// setAuthorization takes an AuthorizationPolicy, nil if it is gone. One with a selector matters to the pods that it selects,
// which name it; others apply by their scope.
func (s *State) setAuthorization(key cluster.Key, p *cluster.AuthorizationPolicy) {
	old := s.authorizations[key]
	if old == nil && p == nil || old != nil && p != nil && old.Equal(p) {
		return
	}
	s.dirty.authorizations[key] = struct{}{}
	s.attachPolicy(key, old, p)
	group := s.group(key.Namespace)
	if p == nil {
		delete(s.authorizations, key)
	} else {
		s.authorizations[key] = p
	}
	if old == nil || p == nil || !named(old).Equal(named(p)) {
		if labels := named(old); len(labels) > 0 {
			drop(group.authorizing, labels[0], key)
			s.touchPods(key.Namespace, labels)
		}
		if labels := named(p); len(labels) > 0 {
			add(group.authorizing, labels[0], key)
			s.touchPods(key.Namespace, labels)
		}
	}
	s.ungroup(key.Namespace)
}

// named are the labels of the workloads that name a policy; empty if none does.
func named(p *cluster.AuthorizationPolicy) cluster.Labels {
	if p == nil || !p.Policy.Enforced() {
		return nil
	}
	return p.Selector
}

// authorizing lists the policies that a workload of a namespace, with these labels, names.
func (s *State) authorizing(own string, labels cluster.Labels) []*cluster.AuthorizationPolicy {
	var out []*cluster.AuthorizationPolicy
	look := func(namespace string) {
		n := s.namespaces[namespace]
		if n == nil || len(n.authorizing) == 0 {
			return
		}
		for _, label := range labels {
			for k := range n.authorizing[label] {
				if ap := s.authorizations[k]; translate.Authorizes(s.mesh, ap, own, labels) {
					out = append(out, ap)
				}
			}
		}
	}
	look(own)
	if own != s.mesh.RootNamespace {
		look(s.mesh.RootNamespace)
	}
	return out
}

// authorization translates an AuthorizationPolicy.
func (c *collector) authorization(k cluster.Key) {
	s := c.state
	o := object{cluster.KindAuthorizationPolicy, k}
	name := resource.Name{Type: resource.Authorization, Name: k.String()}
	p := s.authorizations[k]
	if p == nil {
		c.one(o, name, nil, nil)
		s.gone(o, authz.ConditionType)
		return
	}
	a, problems := translate.AuthorizationPolicy(s.mesh, p)
	var content proto.Message
	if a != nil {
		content = a
	}
	c.one(o, name, content, problems)
	s.report.Statuses = append(s.report.Statuses, translate.AuthorizationPolicyStatus(p))
}
