package state

import (
	"slices"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// putInView makes an object want a name in a view.
func (c *collector) putInView(k cluster.Key, of cluster.ObjectRef, r *resource.Resource) {
	v := c.state.views.of[k]
	if v == nil {
		return
	}
	n := resource.Name{Type: r.Type, Name: r.Name}
	all := v.out[n]
	i, found := slices.BinarySearchFunc(all, of, func(a contender, of cluster.ObjectRef) int { return a.of.Compare(of) })
	if found {
		all[i].r = r
	} else {
		v.out[n] = slices.Insert(all, i, contender{of, r})
	}
	c.markView(k, n)
}

// dropFromView makes an object want a name no more.
func (c *collector) dropFromView(k cluster.Key, of cluster.ObjectRef, n resource.Name) {
	v := c.state.views.of[k]
	if v == nil {
		return
	}
	rest := slices.DeleteFunc(v.out[n], func(a contender) bool { return a.of == of })
	if len(rest) == 0 {
		delete(v.out, n)
	} else {
		v.out[n] = rest
	}
	c.markView(k, n)
}

// replica tells the waypoint that a pod may be one of, p of Gateway's label, what node proxies are told of that pod, so that it knows
// where it runs; nil if there is nothing to tell.
func (c *collector) replica(k cluster.Key, p *cluster.Pod, r *resource.Resource) {
	s := c.state
	of := cluster.ObjectRef{Kind: cluster.KindPod, Key: k}
	if old, was := s.views.replicas[k]; was {
		c.dropFromView(old.gateway, of, old.name)
		delete(s.views.replicas, k)
	}
	if p == nil || r == nil {
		return
	}
	gateway := cluster.Key{Namespace: k.Namespace, Name: p.Labels.Get(api.LabelGatewayName)}
	if s.views.of[gateway] == nil {
		return
	}
	s.views.replicas[k] = replica{gateway, resource.Name{Type: r.Type, Name: r.Name}}
	c.putInView(gateway, of, r)
}

// touchReplicas marks the pods that may be a waypoint's.
func (s *State) touchReplicas(gateway cluster.Key) {
	n := s.namespaces[gateway.Namespace]
	if n == nil {
		return
	}
	for k := range n.pods {
		if s.pods[k].Labels.Get(api.LabelGatewayName) == gateway.Name {
			s.dirty.pods[k] = struct{}{}
		}
	}
}

func (c *collector) markView(k cluster.Key, n resource.Name) { add(c.viewed, k, n) }

// takeViews gathers how views have changed.
func (c *collector) takeViews() {
	s := c.state
	for k, v := range s.views.of {
		if v.fresh {
			add(c.viewed, k, resource.Name{Type: resource.Listener, Name: l7.ListenerMain})
		}
	}
	for k, names := range c.viewed {
		v := s.views.of[k]
		if v == nil {
			continue
		}
		step := resource.View{Gateway: k.String(), Account: k.String()}
		for n := range names {
			before := v.told[n]
			switch all := v.out[n]; {
			case len(all) == 0 && before != "":
				delete(v.told, n)
				step.Removed = append(step.Removed, n)
			case len(all) > 0 && all[0].r.Version != before:
				v.told[n] = all[0].r.Version
				step.Upserts = append(step.Upserts, all[0].r)
			}
		}
		if v.fresh || len(step.Upserts)+len(step.Removed) > 0 {
			v.fresh = false
			c.change.Views = append(c.change.Views, step)
		}
	}
	for _, k := range s.views.gone {
		c.change.Views = append(c.change.Views, resource.View{Gateway: k.String(), Account: k.String(), Gone: true})
	}
	s.views.gone = nil
}

// setView makes the view of a Gateway that is a waypoint now, or removes that of one that is none any more.
func (s *State) setView(k cluster.Key, there bool) {
	v := s.views.of[k]
	switch {
	case there && v == nil:
		s.views.of[k] = &view{
			fronts: set[cluster.ObjectRef]{}, backs: map[cluster.ObjectRef]int{}, out: map[resource.Name][]contender{}, told: map[resource.Name]string{}, fresh: true,
		}
		s.dirtyViews.listeners[k] = struct{}{}
		s.touchReplicas(k)
	case !there && v != nil:
		delete(s.views.of, k)
		for ref := range v.fronts {
			s.dirtyViews.fronts[ref] = struct{}{}
		}
		if !v.fresh {
			s.views.gone = append(s.views.gone, k)
		}
	}
}

// routeStatus says what became of a route.
func (c *collector) routeStatus(o object) {
	r := c.state.views.routes[o]
	if r == nil {
		c.state.report.Routes = append(c.state.report.Routes, RouteStatus{Kind: o.kind, Key: o.key, Gone: true})
		return
	}
	c.state.report.Routes = append(c.state.report.Routes, RouteStatus{Kind: o.kind, Key: o.key, Generation: r.Generation, Want: l7.Status(r, seen{c, ""}), Seen: r.Seen})
}

// RouteStatus is what a route should say to its parents that are services, or a BackendTLSPolicy of its targets that are, and what it
// says.
type RouteStatus struct {
	Kind       cluster.Kind
	Key        cluster.Key
	Generation int64
	Want, Seen []cluster.ParentStatus
	// Gone says that the object is gone.
	Gone bool
}
