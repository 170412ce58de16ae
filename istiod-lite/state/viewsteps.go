package state

import (
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
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

// reside tells waypoints of a workload, under the name that node proxies know it by: the one that it is bound to (b), and the one of
// which it may be a pod, pod being what has its Gateway's label, nil for what is none. content is what node proxies are told of it, nil
// if it is gone.
func (c *collector) reside(of cluster.ObjectRef, name string, content *workload.Workload, b translate.Binding, pod *cluster.Pod) {
	s := c.state
	in := map[cluster.Key]*resource.Resource{}
	if content != nil && pod != nil && pod.Labels.Has(api.LabelGatewayName) {
		in[cluster.Key{Namespace: pod.Namespace, Name: pod.Labels.Get(api.LabelGatewayName)}] = s.out[resource.Address][name]
	}
	if content != nil && b.Waypoint != nil {
		if w := l7.Workload(s.mesh, content, b.Waypoint); w != nil {
			if r, err := resource.New(resource.Address, name, address(w)); err == nil {
				in[b.Waypoint.Key] = r
			}
		}
	}
	n := resource.Name{Type: resource.Address, Name: name}
	for k := range s.views.residents[of] {
		m := membership{of, k}
		if in[k] != nil || content != nil && s.lingers(m) {
			continue
		}
		c.dropFromView(k, of, n)
		delete(s.views.leaving, m)
		delete(s.views.last, m)
		drop(s.views.residents, of, k)
	}
	for k, r := range in {
		if r == nil || s.views.of[k] == nil {
			continue
		}
		delete(s.views.leaving, membership{of, k})
		delete(s.views.last, membership{of, k})
		add(s.views.residents, of, k)
		c.putInView(k, of, r)
	}
}

// lingers reports whether a front, or a resident, that is not bound any more stays in its view for a while. If the view is gone it does not.
func (s *State) lingers(m membership) bool {
	if !s.views.linger || s.views.of[m.gateway] == nil {
		return false
	}
	_, leaving := s.views.leaving[m]
	_, last := s.views.last[m]
	if _, swept := s.dirtyViews.swept[m]; swept {
		return false
	}
	if !leaving && !last {
		s.views.leaving[m] = struct{}{}
	}
	return true
}

// Sweep takes fronts and residents out of views that were left before the Sweep before this one.
func (s *State) Sweep() {
	for m := range s.views.last {
		s.dirtyViews.swept[m] = struct{}{}
		switch {
		case m.ref.Kind == cluster.KindPod:
			s.dirty.pods[m.ref.Key] = struct{}{}
		case m.ref.Kind == cluster.KindWorkloadEntry:
			s.dirty.workloadEntries[m.ref.Key] = struct{}{}
		default:
			s.dirtyViews.fronts[m.ref] = struct{}{}
		}
	}
	s.views.last, s.views.leaving = s.views.leaving, set[membership]{}
}

// Leaving reports whether there is something to be swept.
func (s *State) Leaving() bool { return len(s.views.leaving)+len(s.views.last) > 0 }

// bindWorkloads makes a waypoint a front of its own view, if it is for workloads now, or none any more.
func (s *State) bindWorkloads(k cluster.Key, now bool) {
	ref := cluster.GatewayRef(k)
	if _, before := s.views.bound[ref]; before == now {
		return
	}
	if now {
		s.views.bound[ref] = []cluster.Key{k}
	} else {
		delete(s.views.bound, ref)
	}
	s.dirtyViews.fronts[ref] = struct{}{}
}

// direct translates what a waypoint has for workloads' own addresses.
func (c *collector) direct(ref cluster.ObjectRef) {
	for k, f := range c.state.views.fronts[ref] {
		chains := l7.DirectChains(c.state.requestPolicies(ref, k), seen{c, k})
		if !slices.EqualFunc(f.direct, chains, func(a, b *listenerv3.FilterChain) bool { return proto.Equal(a, b) }) {
			f.direct = chains
			c.state.dirtyViews.listeners[k] = struct{}{}
		}
		made := map[resource.Name]*resource.Resource{}
		routes, lead := l7.DirectRoutes(), l7.DirectCluster()
		c.encode(made, resource.Routes, routes.Name, routes)
		c.encode(made, resource.Cluster, lead.Name, lead)
		c.remake(ref, f.made, made, set[cluster.Key]{k: {}})
		f.made = made
	}
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
	c.state.report.Routes = append(c.state.report.Routes, RouteStatus{Kind: o.kind, Key: o.key, Generation: r.Generation, Want: l7.Status(r, seen{collector: c}), Seen: r.Seen})
}

// RouteStatus is what a route should say to its parents that are services, or a BackendTLSPolicy or a WaypointPolicy of its targets, and
// what it says.
type RouteStatus struct {
	Kind       cluster.Kind
	Key        cluster.Key
	Generation int64
	Want, Seen []cluster.ParentStatus
	// Gone says that the object is gone.
	Gone bool
}

// viewStatic puts what all waypoints have in common into a view.
func (c *collector) viewStatic(k cluster.Key) {
	made := map[resource.Name]*resource.Resource{}
	listeners, clusters := l7.Static(c.state.mesh)
	for _, l := range listeners {
		c.encode(made, resource.Listener, l.Name, l)
	}
	for _, cl := range clusters {
		c.encode(made, resource.Cluster, cl.Name, cl)
	}
	c.encode(made, resource.Settings, extension.Mesh, translate.Settings(c.state.mesh))
	for _, r := range made {
		c.putInView(k, cluster.ObjectRef{}, r)
	}
}
