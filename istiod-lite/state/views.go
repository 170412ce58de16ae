package state

import (
	"maps"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// views is what waypoints are told. A service that is bound to a waypoint is a front: the waypoint has its address and its routes.
// Whatever requests are sent to, the service itself or what its routes name, is a back: the waypoint has its endpoints. Several
// views may have the same back, and then the same resources.
type views struct {
	routes map[object]*cluster.Route
	// attached are the routes that name an object as a parent, referring those that name it as a backend.
	attached, referring map[cluster.ObjectRef]set[object]
	// astray are the routes that name a Gateway as a parent: only services have routes.
	astray map[cluster.Key]set[object]

	// backendTLS are BackendTLSPolicies, securing those that have an object as a target, and trusting those that refer to a bundle.
	backendTLS map[cluster.Key]*cluster.BackendTLSPolicy
	securing   map[cluster.ObjectRef]set[cluster.Key]
	bundles    map[cluster.Key]*cluster.Bundle
	trusting   map[cluster.Key]set[cluster.Key]
	// traffic are BackendTrafficPolicies, bounding those that have an object as a target.
	traffic  map[cluster.Key]*cluster.BackendTrafficPolicy
	bounding map[cluster.ObjectRef]set[cluster.Key]
	// refining are WaypointPolicies, refined those that have an object as a target.
	refining map[cluster.Key]*cluster.WaypointPolicy
	refined  map[cluster.ObjectRef]set[cluster.Key]
	// rules are DestinationRules; found has them by host.
	rules map[cluster.Key]*cluster.DestinationRule
	found l7.Rules
	// virtual are VirtualServices, by namespace.
	virtual map[string]map[cluster.Key]*cluster.VirtualService
	// telemetries say what is told of requests.
	telemetries map[cluster.Key]*cluster.Telemetry
	// policies are AuthorizationPolicies by what they are attached to, authentications RequestAuthentications.
	policies, authentications map[policyTarget]set[cluster.Key]
	// keyUsers are RequestAuthentications by the KeySets that they name.
	keyUsers map[cluster.Key]set[cluster.Key]

	of     map[cluster.Key]*view                        // by Gateway
	gone   []cluster.Key                                // views that waypoints are still to be told of
	bound  map[cluster.ObjectRef][]cluster.Key          // to one, or to a canary too
	fronts map[cluster.ObjectRef]map[cluster.Key]*front // by Gateway
	backs  map[cluster.ObjectRef]*back
	// members are the workloads of backs, by the key under which workloads name a service, and memberOf the other way round.
	members  map[string]map[string]*workload.Workload
	memberOf map[string][]string
	refOf    map[string]cluster.ObjectRef
	// residents are workloads of which waypoints are told, by Gateway: those whose own addresses they serve, and their own pods.
	residents map[cluster.ObjectRef]set[cluster.Key]

	// linger keeps fronts and residents that are not bound any more in their views until the second Sweep: node proxies hear of it a
	// little later than waypoints. leaving are those that wait for the first Sweep, last those that wait for the second.
	linger        bool
	leaving, last set[membership]
}

// membership is a front's, or a resident's, in a view.
type membership struct {
	ref     cluster.ObjectRef
	gateway cluster.Key
}

// view is what one waypoint is told.
type view struct {
	fronts set[cluster.ObjectRef]
	// backs counts the fronts that need each.
	backs map[cluster.ObjectRef]int
	// out has, for each name, who wants to be it: the first of them is. Hosts of ServiceEntries may have a name in common.
	out map[resource.Name][]contender
	// told are the versions that the waypoint was told last.
	told map[resource.Name]string
	// fresh views were not told of yet.
	fresh bool
}

// contender is a resource and the object that it is of.
type contender struct {
	of cluster.ObjectRef
	r  *resource.Resource
}

// front is a service that is bound to a waypoint; or the waypoint itself, if it is for workloads.
type front struct {
	gateway cluster.Key
	needs   []cluster.ObjectRef
	parts   []*l7.Part
	direct  []*listenerv3.FilterChain // of a waypoint that is for workloads
	made    map[resource.Name]*resource.Resource
}

// back is a service that requests are sent to.
type back struct {
	views set[cluster.Key]
	keys  []string
	// hosts are those that it was when it was translated last; made is what became of it, by the namespace of the waypoint, whose
	// rules come first.
	hosts []*l7.Host
	made  map[string]map[resource.Name]*resource.Resource
}

func newViews() views {
	return views{
		rules: map[cluster.Key]*cluster.DestinationRule{}, virtual: map[string]map[cluster.Key]*cluster.VirtualService{}, telemetries: map[cluster.Key]*cluster.Telemetry{},
		routes: map[object]*cluster.Route{}, attached: map[cluster.ObjectRef]set[object]{}, astray: map[cluster.Key]set[object]{}, referring: map[cluster.ObjectRef]set[object]{},
		refining: map[cluster.Key]*cluster.WaypointPolicy{}, refined: map[cluster.ObjectRef]set[cluster.Key]{},
		backendTLS: map[cluster.Key]*cluster.BackendTLSPolicy{}, securing: map[cluster.ObjectRef]set[cluster.Key]{},
		traffic: map[cluster.Key]*cluster.BackendTrafficPolicy{}, bounding: map[cluster.ObjectRef]set[cluster.Key]{},
		bundles: map[cluster.Key]*cluster.Bundle{}, trusting: map[cluster.Key]set[cluster.Key]{},
		policies: map[policyTarget]set[cluster.Key]{}, authentications: map[policyTarget]set[cluster.Key]{}, keyUsers: map[cluster.Key]set[cluster.Key]{},
		of: map[cluster.Key]*view{}, bound: map[cluster.ObjectRef][]cluster.Key{}, fronts: map[cluster.ObjectRef]map[cluster.Key]*front{}, backs: map[cluster.ObjectRef]*back{},
		members: map[string]map[string]*workload.Workload{}, memberOf: map[string][]string{}, refOf: map[string]cluster.ObjectRef{},
		residents: map[cluster.ObjectRef]set[cluster.Key]{}, leaving: set[membership]{}, last: set[membership]{},
	}
}

// dirtyViews marks what of views is to be looked at.
type dirtyViews struct {
	// fronts and backs are to be translated anew; ends are backs of which only endpoints are.
	fronts, backs, ends set[cluster.ObjectRef]
	routes              set[object]
	// policies are those of which it may be another thing what waypoints make of them.
	policies, authentications set[cluster.Key]
	// rules are those of which it is to be said what became of them.
	rules set[cluster.Key]
	// virtual are namespaces of whose VirtualServices it is to be said what became of them, vanished those that are gone.
	virtual  set[string]
	vanished set[cluster.Key]
	// backendTLS are BackendTLSPolicies of which it may be so, telemetries Telemetries, traffic BackendTrafficPolicies.
	backendTLS, telemetries, traffic set[cluster.Key]
	// refining are WaypointPolicies of which it may be so.
	refining set[cluster.Key]
	// listeners are those of views, static what all of them have.
	listeners set[cluster.Key]
	// swept have lingered long enough.
	swept  set[membership]
	static bool
}

func newDirtyViews() dirtyViews {
	return dirtyViews{
		fronts: set[cluster.ObjectRef]{}, backs: set[cluster.ObjectRef]{}, ends: set[cluster.ObjectRef]{}, routes: set[object]{}, listeners: set[cluster.Key]{},
		policies: set[cluster.Key]{}, authentications: set[cluster.Key]{}, rules: set[cluster.Key]{}, virtual: set[string]{}, vanished: set[cluster.Key]{}, backendTLS: set[cluster.Key]{}, telemetries: set[cluster.Key]{}, traffic: set[cluster.Key]{}, refining: set[cluster.Key]{},
		swept: set[membership]{},
	}
}

// setRoute takes a route, nil if it is gone.
func (s *State) setRoute(o object, r *cluster.Route) {
	old := s.views.routes[o]
	if old == nil && r == nil || old != nil && r != nil && old.Equal(r) {
		return
	}
	if old != nil {
		s.linkRoute(o, old, drop[cluster.ObjectRef, object], drop[cluster.Key, object])
	}
	if r == nil {
		delete(s.views.routes, o)
	} else {
		s.views.routes[o] = r
		s.linkRoute(o, r, add[cluster.ObjectRef, object], add[cluster.Key, object])
	}
	s.dirtyViews.routes[o] = struct{}{}
	for _, changed := range []*cluster.Route{old, r} {
		if changed == nil {
			continue
		}
		for _, p := range changed.Parents {
			s.touchFront(p.Ref)
		}
	}
}

// linkRoute enters a route, or takes it out, where it is found by what it names.
func (s *State) linkRoute(o object, r *cluster.Route, link func(map[cluster.ObjectRef]set[object], cluster.ObjectRef, object), stray func(map[cluster.Key]set[object], cluster.Key, object)) {
	done := set[cluster.ObjectRef]{}
	for _, p := range r.Parents {
		if _, twice := done[p.Ref]; !twice && p.Mesh() {
			done[p.Ref] = struct{}{}
			link(s.views.attached, p.Ref, o)
		}
		if p.Ref.IsGateway() {
			stray(s.views.astray, p.Ref.Key, o)
		}
	}
	clear(done)
	for _, b := range r.Backends() {
		if _, twice := done[b.Ref]; !twice {
			done[b.Ref] = struct{}{}
			link(s.views.referring, b.Ref, o)
		}
	}
}

// touchFront marks a service and the routes that it is a parent of: each of them may have its ports or lose them to another.
func (s *State) touchFront(ref cluster.ObjectRef) {
	s.dirtyViews.fronts[ref] = struct{}{}
	for o := range s.views.attached[ref] {
		s.dirtyViews.routes[o] = struct{}{}
	}
	s.touchRefining(ref)
}

// touchHost marks what hangs on a service that is another than before.
func (s *State) touchHost(ref cluster.ObjectRef) {
	s.touchFront(ref)
	s.dirtyViews.backs[ref] = struct{}{}
	for k := range s.views.securing[ref] {
		s.dirtyViews.backendTLS[k] = struct{}{}
	}
	for k := range s.views.bounding[ref] {
		s.dirtyViews.traffic[k] = struct{}{}
	}
	s.touchAsked(ref)
	for o := range s.views.referring[ref] {
		s.dirtyViews.routes[o] = struct{}{}
		for _, p := range s.views.routes[o].Parents {
			s.dirtyViews.fronts[p.Ref] = struct{}{}
		}
	}
}

// touchViews marks everything: the settings are others.
func (s *State) touchViews() {
	s.dirtyViews.static = true
	for ref := range s.views.fronts {
		s.dirtyViews.fronts[ref] = struct{}{}
	}
	for ref := range s.views.backs {
		s.dirtyViews.backs[ref] = struct{}{}
	}
	for o := range s.views.routes {
		s.dirtyViews.routes[o] = struct{}{}
	}
	for k := range s.authorizations {
		s.dirtyViews.policies[k] = struct{}{}
	}
	s.touchTelemetry()
	for k := range s.authentications {
		s.dirtyViews.authentications[k] = struct{}{}
	}
}

// bindFronts looks to which waypoints services are bound that may be bound to another one than before. It comes before workloads are
// translated, since those of a service that becomes a back are then looked for.
func (c *collector) bindFronts() {
	s := c.state
	bind := func(ref cluster.ObjectRef, b translate.Binding) {
		s.touchHost(ref)
		s.touchPolicies(authz.TargetKind(ref.Kind), ref.Key)
		if b.Waypoint == nil {
			delete(s.views.bound, ref)
		} else {
			s.views.bound[ref] = []cluster.Key{b.Waypoint.Key}
			if b.Canary != nil {
				s.views.bound[ref] = append(s.views.bound[ref], b.Canary.Key)
			}
		}
	}
	for k := range s.dirty.services {
		var b translate.Binding
		if svc := s.services[k]; svc != nil && !svc.External {
			b = s.bind(translate.ServiceBind(svc, s.namespaceOf(k.Namespace)))
		}
		bind(cluster.ServiceRef(k), b)
	}
	for k := range s.dirty.entries {
		var b translate.Binding
		if e := s.entries[k]; e != nil {
			b = s.bind(translate.EntryBind(e, s.namespaceOf(k.Namespace)))
		}
		bind(cluster.EntryRef(k), b)
	}
	for ref := range s.dirtyViews.fronts {
		c.frontNeeds(ref)
	}
	clear(c.hosts) // of ServiceEntries it is not settled yet which hosts they have
}

// frontNeeds works out in whose views a service is, and what it needs there.
func (c *collector) frontNeeds(ref cluster.ObjectRef) {
	s := c.state
	bound := s.views.bound[ref]
	for k, f := range s.views.fronts[ref] {
		if !slices.Contains(bound, k) && !s.lingers(membership{ref, k}) {
			c.dropFront(ref, f)
		}
	}
	for _, gateway := range bound {
		delete(s.views.leaving, membership{ref, gateway})
		delete(s.views.last, membership{ref, gateway})
		if s.views.fronts[ref][gateway] == nil {
			if s.views.fronts[ref] == nil {
				s.views.fronts[ref] = map[cluster.Key]*front{}
			}
			s.views.fronts[ref][gateway] = &front{gateway: gateway, made: map[resource.Name]*resource.Resource{}}
			s.views.of[gateway].fronts[ref] = struct{}{}
		}
	}
	if len(s.views.fronts[ref]) == 0 {
		return
	}
	var needs []cluster.ObjectRef
	if ref.Kind != cluster.KindGateway {
		needs = append(needs, ref)
	}
	for o := range s.views.attached[ref] {
		for _, b := range s.views.routes[o].Backends() {
			if (b.Ref.IsService() || b.Ref.IsEntry()) && !slices.Contains(needs, b.Ref) {
				needs = append(needs, b.Ref)
			}
		}
	}
	routed := needs
	for k, f := range s.views.fronts[ref] {
		needs := slices.Clone(routed)
		for _, asked := range append(c.asked(ref, k), c.told(ref, k)...) {
			if !slices.Contains(needs, asked) {
				needs = append(needs, asked)
			}
		}
		for _, need := range needs {
			if !slices.Contains(f.needs, need) {
				c.needBack(k, need)
			}
		}
		for _, need := range f.needs {
			if !slices.Contains(needs, need) {
				c.dropBack(k, need)
			}
		}
		f.needs = needs
	}
}

// dropFront takes a service out of the view that it is in.
func (c *collector) dropFront(ref cluster.ObjectRef, f *front) {
	s := c.state
	for n := range f.made {
		c.dropFromView(f.gateway, ref, n)
	}
	for _, need := range f.needs {
		c.dropBack(f.gateway, need)
	}
	if v := s.views.of[f.gateway]; v != nil {
		delete(v.fronts, ref)
		s.dirtyViews.listeners[f.gateway] = struct{}{}
	}
	m := membership{ref, f.gateway}
	delete(s.views.leaving, m)
	delete(s.views.last, m)
	if delete(s.views.fronts[ref], f.gateway); len(s.views.fronts[ref]) == 0 {
		delete(s.views.fronts, ref)
	}
}

// needBack counts a front of a view that sends to a service.
func (c *collector) needBack(gateway cluster.Key, ref cluster.ObjectRef) {
	s := c.state
	v := s.views.of[gateway]
	v.backs[ref]++
	b := s.views.backs[ref]
	if b == nil {
		b = &back{views: set[cluster.Key]{}, made: map[string]map[resource.Name]*resource.Resource{}}
		s.views.backs[ref] = b
		s.dirtyViews.backs[ref] = struct{}{}
	}
	if _, has := b.views[gateway]; !has {
		b.views[gateway] = struct{}{}
		if made, ok := b.made[gateway.Namespace]; ok {
			for _, r := range made {
				c.putInView(gateway, ref, r)
			}
		} else {
			s.dirtyViews.backs[ref] = struct{}{}
		}
	}
}

// dropBack takes back what needBack did.
func (c *collector) dropBack(gateway cluster.Key, ref cluster.ObjectRef) {
	s := c.state
	v, b := s.views.of[gateway], s.views.backs[ref]
	if v != nil {
		if v.backs[ref]--; v.backs[ref] > 0 {
			return
		}
		delete(v.backs, ref)
	}
	if b == nil {
		return
	}
	for n := range b.made[gateway.Namespace] {
		c.dropFromView(gateway, ref, n)
	}
	if delete(b.views, gateway); !slices.ContainsFunc(slices.Collect(maps.Keys(b.views)), func(k cluster.Key) bool { return k.Namespace == gateway.Namespace }) {
		delete(b.made, gateway.Namespace)
	}
	if len(b.views) == 0 {
		s.forgetMembers(ref, b.keys)
		delete(s.views.backs, ref)
	}
}

// followBacks looks for the workloads of services that are backs now, so that they are translated again and become members. A name
// may go from a service to a ServiceEntry or back: it is given up before it is taken.
func (c *collector) followBacks() {
	s := c.state
	changed := map[cluster.ObjectRef][]string{}
	for ref := range s.dirtyViews.backs {
		b := s.views.backs[ref]
		if b == nil {
			continue
		}
		var keys []string
		switch {
		case ref.IsService():
			if svc := s.services[ref.Key]; svc != nil && !svc.External {
				keys = []string{translate.ServiceName(s.mesh, ref.Key)}
			}
		case s.entries[ref.Key] != nil:
			for _, h := range c.entryInput(s.entries[ref.Key]).Hosts() {
				keys = append(keys, translate.EntryName(ref.Key.Namespace, h))
			}
		}
		if slices.Equal(keys, b.keys) {
			continue
		}
		s.forgetMembers(ref, b.keys)
		changed[ref] = keys
	}
	for ref, keys := range changed {
		s.views.backs[ref].keys = keys
		for _, key := range keys {
			s.views.members[key], s.views.refOf[key] = map[string]*workload.Workload{}, ref
		}
		s.touchEndpoints(ref)
	}
}

// touchEndpoints marks whatever may be an endpoint of a service.
func (s *State) touchEndpoints(ref cluster.ObjectRef) {
	if e := s.entries[ref.Key]; ref.IsEntry() && e != nil {
		s.dirty.entries[ref.Key] = struct{}{}
		s.touchMembers(e)
		return
	}
	if svc := s.services[ref.Key]; ref.IsService() && svc != nil {
		s.touchSelected(s.group(ref.Key.Namespace), svc)
		for k := range s.slicesOf[ref.Key] {
			s.touchSlice(s.slices[k])
		}
	}
}

// forgetMembers gives names up, those that are of the object still.
func (s *State) forgetMembers(ref cluster.ObjectRef, keys []string) {
	for _, key := range keys {
		if s.views.refOf[key] != ref {
			continue
		}
		for uid := range s.views.members[key] {
			rest := slices.DeleteFunc(s.views.memberOf[uid], func(k string) bool { return k == key })
			if len(rest) == 0 {
				delete(s.views.memberOf, uid)
			} else {
				s.views.memberOf[uid] = rest
			}
		}
		delete(s.views.members, key)
		delete(s.views.refOf, key)
	}
}

// member takes note of a workload, nil if it is gone; changed tells that node proxies are told something else of it than before.
func (s *State) member(uid string, w *workload.Workload, changed bool) {
	if len(s.views.members) == 0 {
		return
	}
	var is []string
	for key := range w.GetServices() {
		if s.views.members[key] != nil {
			is = append(is, key)
		}
	}
	for _, key := range s.views.memberOf[uid] {
		if !slices.Contains(is, key) {
			delete(s.views.members[key], uid)
			s.dirtyViews.ends[s.views.refOf[key]] = struct{}{}
		}
	}
	for _, key := range is {
		members := s.views.members[key]
		if changed || members[uid] == nil {
			members[uid] = w
			s.dirtyViews.ends[s.views.refOf[key]] = struct{}{}
		}
	}
	if len(is) == 0 {
		delete(s.views.memberOf, uid)
	} else {
		s.views.memberOf[uid] = is
	}
}

// flushViews translates what was marked, when everything else has been.
func (c *collector) flushViews() {
	s := c.state
	for ref := range s.dirtyViews.fronts {
		if len(s.views.fronts[ref]) > 0 {
			c.front(ref)
		}
	}
	for ref := range s.dirtyViews.backs {
		if b := s.views.backs[ref]; b != nil {
			c.back(ref, b)
		}
	}
	for ref := range s.dirtyViews.ends {
		if _, done := s.dirtyViews.backs[ref]; !done && s.views.backs[ref] != nil {
			c.back(ref, s.views.backs[ref])
		}
	}
	for k, v := range s.views.of {
		if v.fresh || s.dirtyViews.static {
			c.viewStatic(k)
		}
	}
	for k := range s.dirtyViews.listeners {
		c.viewListener(k)
	}
	for o := range s.dirtyViews.routes {
		c.routeStatus(o)
	}
	for k := range s.dirtyViews.backendTLS {
		c.backendTLSStatus(k)
	}
	for k := range s.dirtyViews.traffic {
		c.backendTrafficStatus(k)
	}
	for k := range s.dirtyViews.refining {
		c.waypointPolicyStatus(k)
	}
	for k := range s.dirtyViews.policies {
		c.policyStatus(k)
	}
	for k := range s.dirtyViews.telemetries {
		c.telemetryStatus(k)
	}
	for k := range s.dirtyViews.rules {
		c.ruleStatus(k)
	}
	c.virtualStatuses()
	for k := range s.dirtyViews.authentications {
		c.authenticationStatus(k)
	}
	c.takeViews()
	s.dirtyViews = newDirtyViews()
}

// front translates what is a service's own in the views that it is in: its share of the listener, and its routes.
func (c *collector) front(ref cluster.ObjectRef) {
	if ref.Kind == cluster.KindGateway {
		c.direct(ref)
		return
	}
	for k, f := range c.state.views.fronts[ref] {
		made := map[resource.Name]*resource.Resource{}
		var parts []*l7.Part
		ix, policies := seen{c, k}, c.state.requestPolicies(ref, k)
		for _, h := range c.hostsOf(ref) {
			if p := l7.HostPart(h, ix, policies); p != nil {
				parts = append(parts, p)
			}
			for _, port := range h.Ports {
				if table := l7.RouteTable(h, port, ix); table != nil {
					c.encode(made, resource.Routes, table.Name, table)
				}
			}
		}
		if !slices.EqualFunc(f.parts, parts, (*l7.Part).Equal) {
			f.parts = parts
			c.state.dirtyViews.listeners[k] = struct{}{}
		}
		c.remake(ref, f.made, made, set[cluster.Key]{k: {}})
		f.made = made
	}
}

// back translates the clusters of a service and their endpoints.
func (c *collector) back(ref cluster.ObjectRef, b *back) {
	s := c.state
	b.hosts = c.hostsOf(ref)
	ends := map[resource.Name]*resource.Resource{} // for all waypoints alike
	workloadsOf := func(h *l7.Host) []*workload.Workload {
		return slices.Collect(maps.Values(s.views.members[translate.EntryName(ref.Key.Namespace, h.Hostname)]))
	}
	for _, h := range b.hosts {
		workloads := workloadsOf(h)
		for _, port := range h.Ports {
			for _, a := range l7.LoadAssignments(s.mesh, h, port, workloads) {
				c.encode(ends, resource.Endpoints, a.ClusterName, a)
			}
		}
	}
	views := map[string]set[cluster.Key]{}
	for k := range b.views {
		add(views, k.Namespace, k)
	}
	for namespace, in := range views {
		made := maps.Clone(ends)
		ix := seen{c, cluster.Key{Namespace: namespace}}
		for _, h := range b.hosts {
			workloads := workloadsOf(h)
			for _, port := range h.Ports {
				for _, cl := range l7.Clusters(s.mesh, h, port, ix.Rule(h), workloads) {
					c.encode(made, resource.Cluster, cl.Name, cl)
				}
			}
		}
		c.remake(ref, b.made[namespace], made, in)
		b.made[namespace] = made
	}
}

// encode adds a resource to what an object became. One that cannot be encoded is left out: it has text that is not UTF-8, which
// the API server lets nobody write.
func (c *collector) encode(made map[resource.Name]*resource.Resource, t resource.Type, name string, content proto.Message) {
	if r, err := resource.New(t, name, content); err == nil {
		made[resource.Name{Type: t, Name: name}] = r
	}
}

// remake puts what an object became into views, in the place of what it became before.
func (c *collector) remake(ref cluster.ObjectRef, old, made map[resource.Name]*resource.Resource, in set[cluster.Key]) {
	for n, r := range made {
		if before := old[n]; before != nil && before.Version == r.Version {
			made[n] = before
			continue
		}
		for gateway := range in {
			c.putInView(gateway, ref, r)
		}
	}
	for n := range old {
		if made[n] != nil {
			continue
		}
		for gateway := range in {
			c.dropFromView(gateway, ref, n)
		}
	}
}

// viewListener puts the listener together that has all services of a view, and what is there for workloads' own addresses.
func (c *collector) viewListener(k cluster.Key) {
	s := c.state
	v := s.views.of[k]
	if v == nil {
		return
	}
	var parts []*l7.Part
	var direct []*listenerv3.FilterChain
	for ref := range v.fronts {
		f := s.views.fronts[ref][k]
		parts, direct = append(parts, f.parts...), append(direct, f.direct...)
	}
	made := map[resource.Name]*resource.Resource{}
	l := l7.MainInternal(parts, direct...)
	c.encode(made, resource.Listener, l.Name, l)
	for _, r := range made {
		c.putInView(k, cluster.ObjectRef{}, r)
	}
}
