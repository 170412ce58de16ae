package state

import (
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// set is a set of comparable things.
type set[T comparable] map[T]struct{}

// add puts x into the set at key k of m.
func add[K, T comparable](m map[K]set[T], k K, x T) {
	s := m[k]
	if s == nil {
		s = set[T]{}
		m[k] = s
	}
	s[x] = struct{}{}
}

// drop takes x out of the set at key k of m, and the set out of m with its last element.
func drop[K, T comparable](m map[K]set[T], k K, x T) {
	s := m[k]
	delete(s, x)
	if len(s) == 0 {
		delete(m, k)
	}
}

// namespace groups what refers to each other within a namespace.
type namespace struct {
	object   *cluster.Namespace // nil while only things in it are known
	pods     set[cluster.Key]
	services set[cluster.Key]
	// selecting finds the services that may select a pod by the first label of their selector.
	selecting map[cluster.Label]set[cluster.Key]
	policies  set[cluster.Key] // PeerAuthentications
	// authorizing finds the AuthorizationPolicies that may select a pod by the first label of their selector.
	authorizing map[cluster.Label]set[cluster.Key]
	// entries are ServiceEntries; choosing finds them by the first label of their selector.
	entries  set[cluster.Key]
	choosing map[cluster.Label]set[cluster.Key]

	workloadEntries set[cluster.Key]
}

// State is the cluster and what follows from it. Make one with New.
type State struct {
	mesh translate.Mesh

	namespaces map[string]*namespace
	// namespaceObjects counts those that are known themselves.
	namespaceObjects int
	nodes            map[string]*cluster.Node
	pods             map[cluster.Key]*cluster.Pod
	services         map[cluster.Key]*cluster.Service
	slices           map[cluster.Key]*cluster.EndpointSlice
	policies         map[cluster.Key]*cluster.PeerAuthentication
	authorizations   map[cluster.Key]*cluster.AuthorizationPolicy
	authentications  map[cluster.Key]*cluster.RequestAuthentication
	keySets          map[cluster.Key]*cluster.KeySet
	entries          map[cluster.Key]*cluster.ServiceEntry
	workloadEntries  map[cluster.Key]*cluster.WorkloadEntry

	podsOnNode  map[string]set[cluster.Key]
	podsAt      map[netip.Addr][]*cluster.Pod    // pods that have a place: nearly always one, so no set
	slicesOf    map[cluster.Key]set[cluster.Key] // by service
	slicesAt    map[netip.Addr]set[cluster.Key]  // by the address of an endpoint that names no pod
	slicesNamed map[cluster.Key]set[cluster.Key] // by a pod that an endpoint names
	slicesOn    map[string]set[cluster.Key]      // by node of an endpoint
	claims      map[netip.Addr]*addrClaims
	hosts       map[string]*hostClaims          // of ServiceEntries
	entriesAt   map[netip.Addr]set[cluster.Key] // ServiceEntries by the address of an endpoint that they spell out

	workloadEntriesAt map[netip.Addr]set[cluster.Key]

	bindings   bindings
	views      views
	dirtyViews dirtyViews

	shortages map[cluster.Key][]cluster.Shortage // of virtual addresses, by ServiceEntry

	dirty struct {
		pods, services, slices, policies, authorizations, entries, workloadEntries set[cluster.Key]
		// hosts are those of ServiceEntries: namespace and host. contests are the same where somebody asks for it, or has given
		// it up, and spots where somebody does so with an address.
		hosts, contests set[cluster.Key]
		spots           set[addrSpot]
		// gateways are those of which it may be another thing whether traffic can be sent to them.
		gateways set[cluster.Key]
		static   bool
	}

	// out is what data planes were last told, by type and name.
	out [resource.Types]map[string]*resource.Resource
	// made lists the resources that an object became, where their names do not follow from the object's.
	made map[object][]resource.Name
	// problems by the object that they are of.
	problems map[object][]translate.Problem
	// faults are changes of problems since the last takeFaults: the problems that the object had then.
	faults map[object][]translate.Problem
	// report is what has become of objects since the last TakeReport.
	report Report
}

// object names an object of the cluster.
type object struct {
	kind cluster.Kind
	key  cluster.Key
}

// New returns the state of an empty cluster.
func New(mesh translate.Mesh) *State {
	s := &State{
		mesh:           mesh,
		namespaces:     map[string]*namespace{},
		nodes:          map[string]*cluster.Node{},
		pods:           map[cluster.Key]*cluster.Pod{},
		services:       map[cluster.Key]*cluster.Service{},
		slices:         map[cluster.Key]*cluster.EndpointSlice{},
		policies:       map[cluster.Key]*cluster.PeerAuthentication{},
		authorizations: map[cluster.Key]*cluster.AuthorizationPolicy{},

		authentications: map[cluster.Key]*cluster.RequestAuthentication{},
		keySets:         map[cluster.Key]*cluster.KeySet{},

		entries:     map[cluster.Key]*cluster.ServiceEntry{},
		hosts:       map[string]*hostClaims{},
		entriesAt:   map[netip.Addr]set[cluster.Key]{},
		podsOnNode:  map[string]set[cluster.Key]{},
		podsAt:      map[netip.Addr][]*cluster.Pod{},
		slicesOf:    map[cluster.Key]set[cluster.Key]{},
		slicesAt:    map[netip.Addr]set[cluster.Key]{},
		slicesNamed: map[cluster.Key]set[cluster.Key]{},
		slicesOn:    map[string]set[cluster.Key]{},
		claims:      map[netip.Addr]*addrClaims{},
		made:        map[object][]resource.Name{},
		problems:    map[object][]translate.Problem{},
		faults:      map[object][]translate.Problem{},

		workloadEntries:   map[cluster.Key]*cluster.WorkloadEntry{},
		workloadEntriesAt: map[netip.Addr]set[cluster.Key]{},
		bindings:          newBindings(),
		views:             newViews(),
		dirtyViews:        newDirtyViews(),
	}
	for t := range s.out {
		s.out[t] = map[string]*resource.Resource{}
	}
	s.clean()
	s.dirty.static = true
	return s
}

func (s *State) clean() {
	s.dirty.pods, s.dirty.services = set[cluster.Key]{}, set[cluster.Key]{}
	s.dirty.slices, s.dirty.policies = set[cluster.Key]{}, set[cluster.Key]{}
	s.dirty.authorizations, s.dirty.entries = set[cluster.Key]{}, set[cluster.Key]{}
	s.dirty.workloadEntries, s.dirty.hosts = set[cluster.Key]{}, set[cluster.Key]{}
	s.dirty.contests, s.dirty.spots = set[cluster.Key]{}, set[addrSpot]{}
	s.dirty.gateways, s.dirty.static = set[cluster.Key]{}, false
}

// Mesh returns the settings in force.
func (s *State) Mesh() translate.Mesh { return s.mesh }

// SetMesh replaces the settings. Everything depends on them.
func (s *State) SetMesh(m translate.Mesh) {
	if m.Equal(s.mesh) {
		return
	}
	s.mesh = m
	s.dirty.static = true
	for k := range s.pods {
		s.dirty.pods[k] = struct{}{}
	}
	for k := range s.services {
		s.dirty.services[k] = struct{}{}
	}
	for k := range s.slices {
		s.dirty.slices[k] = struct{}{}
	}
	for k := range s.policies {
		s.dirty.policies[k] = struct{}{}
	}
	for k := range s.authorizations {
		s.dirty.authorizations[k] = struct{}{}
	}
	for k := range s.entries {
		s.touchEntry(k)
	}
	for host, h := range s.hosts { // which of them are Kubernetes services' names
		for namespace := range h.in {
			s.dirty.contests[cluster.Key{Namespace: namespace, Name: host}] = struct{}{}
		}
	}
	for k := range s.workloadEntries {
		s.dirty.workloadEntries[k] = struct{}{}
	}
	for k := range s.bindings.gateways {
		s.dirty.gateways[k] = struct{}{}
	}
	s.touchViews()
}

// Flush translates what was marked since the last call and returns how what data planes are told has changed.
func (s *State) Flush() resource.Change {
	c := collector{
		state: s, inputs: map[*cluster.ServiceEntry]translate.EntryInput{}, hosts: map[cluster.ObjectRef][]*l7.Host{}, viewed: map[cluster.Key]set[resource.Name]{},
	}
	s.settle()
	c.bindFronts()
	c.followBacks()
	if s.dirty.static {
		c.static()
	}
	for k := range s.dirty.policies {
		c.policy(k)
	}
	for k := range s.dirty.authorizations {
		c.authorization(k)
	}
	for k := range s.dirty.services {
		c.service(k)
	}
	for k := range s.dirty.hosts {
		c.host(k)
	}
	for k := range s.dirty.slices {
		c.slice(k)
	}
	for k := range s.dirty.entries {
		c.entry(k)
	}
	for k := range s.dirty.workloadEntries {
		c.workloadEntry(k)
	}
	for k := range s.dirty.pods {
		c.pod(k)
	}
	c.flushViews()
	s.clean()
	return c.change
}

// Report is what has become of objects, those of which it, or what they say themselves, has changed.
type Report struct {
	// Statuses are conditions that objects should have.
	Statuses []translate.Status
	Routes   []RouteStatus
	Gateways []Gateway
	Classes  []Class
	Meshes   []Mesh
}

// Empty reports whether nothing is in it.
func (r Report) Empty() bool {
	return len(r.Statuses)+len(r.Routes)+len(r.Gateways)+len(r.Classes)+len(r.Meshes) == 0
}

// TakeReport returns what has become of objects since the last call.
func (s *State) TakeReport() Report {
	out := s.report
	s.report = Report{}
	return out
}

// gone takes note that an object says nothing any more by conditions of a type.
func (s *State) gone(o object, typ string) {
	s.report.Statuses = append(s.report.Statuses, translate.Status{Kind: o.kind, Key: o.key, Type: typ, Gone: true})
}

// faultChange is an object whose problems are others than before.
type faultChange struct {
	object
	before, now []translate.Problem
}

// takeFaults returns the objects whose problems have changed since the last call.
func (s *State) takeFaults() []faultChange {
	var out []faultChange
	for o, before := range s.faults {
		if now := s.problems[o]; !slices.Equal(before, now) {
			out = append(out, faultChange{o, before, now})
		}
	}
	clear(s.faults)
	return out
}

// Problems lists the faults of all objects, sorted.
func (s *State) Problems() []translate.Problem {
	var out []translate.Problem
	for _, ps := range s.problems {
		out = append(out, ps...)
	}
	translate.SortProblems(out)
	return out
}

// kindRoutes stands for all kinds of routes together.
const kindRoutes cluster.Kind = "Route"

// Sizes counts what is known, by kind.
func (s *State) Sizes() map[cluster.Kind]int {
	return map[cluster.Kind]int{
		cluster.KindNamespace:             s.namespaceObjects,
		cluster.KindNode:                  len(s.nodes),
		cluster.KindPod:                   len(s.pods),
		cluster.KindService:               len(s.services),
		cluster.KindEndpointSlice:         len(s.slices),
		cluster.KindPeerAuthentication:    len(s.policies),
		cluster.KindAuthorizationPolicy:   len(s.authorizations),
		cluster.KindServiceEntry:          len(s.entries),
		cluster.KindWorkloadEntry:         len(s.workloadEntries),
		cluster.KindGateway:               len(s.bindings.gateways),
		cluster.KindGatewayClass:          len(s.bindings.classes),
		cluster.KindDeployment:            len(s.bindings.deployments),
		cluster.KindMesh:                  len(s.bindings.meshes),
		cluster.KindBackendTLSPolicy:      len(s.views.backendTLS),
		cluster.KindBackendTraffic:        len(s.views.traffic),
		cluster.KindBundle:                len(s.views.bundles),
		kindRoutes:                        len(s.views.routes),
		cluster.KindDestinationRule:       len(s.views.rules),
		cluster.KindVirtualService:        s.virtualServices(),
		cluster.KindTelemetry:             len(s.views.telemetries),
		cluster.KindRequestAuthentication: len(s.authentications),
		cluster.KindKeySet:                len(s.keySets),
		cluster.KindWaypointPolicy:        len(s.views.refining),
	}
}

// collector gathers one Flush. No two objects become a resource of the same name: names hold the object's.
type collector struct {
	state  *State
	change resource.Change
	// inputs are those of entries that were needed already.
	inputs map[*cluster.ServiceEntry]translate.EntryInput
	// hosts are those that were needed already.
	hosts map[cluster.ObjectRef][]*l7.Host
	// viewed are names that mean another resource than before in views, or did for a while.
	viewed map[cluster.Key]set[resource.Name]
}

// one puts what the object o becomes, nothing if content is nil, in the place of what it became before.
func (c *collector) one(o object, n resource.Name, content proto.Message, problems []translate.Problem) {
	if content == nil || !c.put(n, content, o, &problems) {
		c.remove(n)
	}
	c.report(o, problems)
}

// many does the same for an object that becomes any number of resources of one type, given by name.
func (c *collector) many(o object, t resource.Type, contents map[string]proto.Message, problems []translate.Problem) {
	s := c.state
	names := make([]resource.Name, 0, len(contents))
	for name, content := range contents {
		n := resource.Name{Type: t, Name: name}
		if c.put(n, content, o, &problems) {
			names = append(names, n)
		} else {
			delete(contents, name)
		}
	}
	for _, old := range s.made[o] {
		if _, kept := contents[old.Name]; !kept {
			c.remove(old)
		}
	}
	if len(names) == 0 {
		delete(s.made, o)
	} else {
		s.made[o] = names
	}
	c.report(o, problems)
}

// put reports whether the content could be encoded; if not, that is a problem of the object.
func (c *collector) put(n resource.Name, content proto.Message, o object, problems *[]translate.Problem) bool {
	r, err := resource.New(n.Type, n.Name, content)
	if err != nil {
		*problems = append(*problems, translate.Problem{Kind: o.kind, Key: o.key, Message: err.Error()})
		return false
	}
	out := c.state.out[n.Type]
	old := out[n.Name]
	changed := old == nil || old.Version != r.Version
	if changed {
		out[n.Name] = r
		c.change.Upserts = append(c.change.Upserts, r)
	}
	if a, ok := content.(*workload.Address); ok {
		c.state.member(n.Name, a.GetWorkload(), changed)
	}
	return true
}

func (c *collector) remove(n resource.Name) {
	if _, ok := c.state.out[n.Type][n.Name]; ok {
		delete(c.state.out[n.Type], n.Name)
		if n.Type == resource.Address {
			c.state.member(n.Name, nil, true)
		}
		c.change.Removed = append(c.change.Removed, n)
	}
}

func (c *collector) report(o object, problems []translate.Problem) {
	s := c.state
	if slices.Equal(s.problems[o], problems) {
		return
	}
	if _, known := s.faults[o]; !known {
		s.faults[o] = s.problems[o]
	}
	if len(problems) == 0 {
		delete(s.problems, o)
		return
	}
	s.problems[o] = problems
}
