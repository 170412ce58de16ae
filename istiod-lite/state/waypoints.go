package state

import (
	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// bindings is what is known of waypoints, and who means which of them.
type bindings struct {
	gateways    map[cluster.Key]*cluster.Gateway
	classes     map[string]*cluster.GatewayClass
	deployments map[cluster.Key]*cluster.Deployment
	meshes      map[string]*cluster.Mesh
	// bundle is the version of the Gateway API's definitions, "" while it is not known.
	bundle string
	// users are the objects that name a Gateway themselves, namespaces those that name it for others.
	users      map[cluster.Key]set[object]
	namespaces map[cluster.Key]set[string]
	// faults are what keeps Gateways from being deployed.
	faults map[cluster.Key]DeployFault
	// told are the objects that say, or should say, what became of their waypoint, or what waypoints make of them.
	told set[object]
	// waypoints are as of the last Flush.
	waypoints map[cluster.Key]*translate.Waypoint
}

func newBindings() bindings {
	return bindings{
		gateways: map[cluster.Key]*cluster.Gateway{}, classes: map[string]*cluster.GatewayClass{}, deployments: map[cluster.Key]*cluster.Deployment{},
		meshes: map[string]*cluster.Mesh{},
		users:  map[cluster.Key]set[object]{}, namespaces: map[cluster.Key]set[string]{}, told: set[object]{}, faults: map[cluster.Key]DeployFault{}, waypoints: map[cluster.Key]*translate.Waypoint{},
	}
}

// Gateway is what has become of a Gateway.
type Gateway struct {
	Key cluster.Key
	// WaypointInput is what is known of it; its Gateway is nil if that is gone.
	translate.WaypointInput
	// Waypoint is nil if it is none.
	Waypoint *translate.Waypoint
	// Fault is what keeps it from being deployed, zero if nothing does.
	Fault DeployFault
}

// DeployFault is what keeps a Gateway from being deployed.
type DeployFault struct {
	// Message is for people; "" is no fault.
	Message string
	// Parameters says that it is in what spec.infrastructure.parametersRef leads to.
	Parameters bool
}

// SetDeployFault takes what keeps a Gateway from being deployed, zero if nothing does.
func (s *State) SetDeployFault(key cluster.Key, fault DeployFault) {
	if s.bindings.gateways[key] == nil || s.bindings.faults[key] == fault {
		return
	}
	s.dirty.gateways[key] = struct{}{}
	if fault == (DeployFault{}) {
		delete(s.bindings.faults, key)
	} else {
		s.bindings.faults[key] = fault
	}
}

// setGateway takes a Gateway, nil if it is gone.
func (s *State) setGateway(key cluster.Key, g *cluster.Gateway) {
	old := s.bindings.gateways[key]
	if old == nil && g == nil || old != nil && g != nil && old.Equal(g) {
		return
	}
	s.dirty.gateways[key] = struct{}{}
	if g == nil {
		delete(s.bindings.gateways, key)
		delete(s.bindings.faults, key)
	} else {
		s.bindings.gateways[key] = g
	}
}

// setClass takes a GatewayClass, nil if it is gone.
func (s *State) setClass(name string, c *cluster.GatewayClass) {
	old := s.bindings.classes[name]
	if old == nil && c == nil || old != nil && c != nil && old.Equal(c) {
		return
	}
	if c == nil {
		delete(s.bindings.classes, name)
	} else {
		s.bindings.classes[name] = c
	}
	s.report.Classes = append(s.report.Classes, Class{cluster.Key{Name: name}, c, s.bindings.bundle})
	for k, g := range s.bindings.gateways {
		if g.Class == name {
			s.dirty.gateways[k] = struct{}{}
		}
	}
}

// Class is what has become of a GatewayClass; Class is nil if it is gone.
type Class struct {
	Key   cluster.Key
	Class *cluster.GatewayClass
	// Bundle is the version of the Gateway API's definitions, "" if it is not known.
	Bundle string
}

// Mesh is what has become of an XMesh; Mesh is nil if it is gone.
type Mesh struct {
	Key  cluster.Key
	Mesh *cluster.Mesh
}

// setMesh takes an XMesh, nil if it is gone.
func (s *State) setMesh(name string, m *cluster.Mesh) {
	old := s.bindings.meshes[name]
	if old == nil && m == nil || old != nil && m != nil && old.Equal(m) {
		return
	}
	if m == nil {
		delete(s.bindings.meshes, name)
	} else {
		s.bindings.meshes[name] = m
	}
	s.report.Meshes = append(s.report.Meshes, Mesh{cluster.Key{Name: name}, m})
}

// SetBundle takes the version of the Gateway API's definitions, such as v1.7.0.
func (s *State) SetBundle(version string) {
	if s.bindings.bundle == version {
		return
	}
	s.bindings.bundle = version
	for name, c := range s.bindings.classes {
		s.report.Classes = append(s.report.Classes, Class{cluster.Key{Name: name}, c, version})
	}
}

// setDeployment takes a Deployment of a Gateway, nil if it is gone.
func (s *State) setDeployment(key cluster.Key, d *cluster.Deployment) {
	if d == nil {
		delete(s.bindings.deployments, key)
	} else {
		s.bindings.deployments[key] = d
	}
	s.dirty.gateways[key] = struct{}{}
}

// waypoint looks up a waypoint as it is now, nil if there is none.
func (s *State) waypoint(k cluster.Key) *translate.Waypoint { return s.bindings.waypoints[k] }

// settleWaypoints works out which waypoints are others than before, and marks what is bound to them.
func (s *State) settleWaypoints() {
	for k := range s.dirty.gateways {
		s.touchPolicies(authz.TargetGateway, k)
		for o := range s.views.astray[k] {
			s.dirtyViews.routes[o] = struct{}{}
		}
		s.touchRefining(cluster.GatewayRef(k))
		in := translate.WaypointInput{Gateway: s.bindings.gateways[k], Service: s.services[k], Deployment: s.bindings.deployments[k]}
		if in.Gateway != nil {
			in.Class = s.bindings.classes[in.Gateway.Class]
		}
		was, is := s.bindings.waypoints[k], translate.WaypointOf(s.mesh, in)
		s.report.Gateways = append(s.report.Gateways, Gateway{k, in, is, s.bindings.faults[k]})
		if was.Equal(is) {
			continue
		}
		if is == nil {
			delete(s.bindings.waypoints, k)
		} else {
			s.bindings.waypoints[k] = is
		}
		s.setView(k, is != nil)
		s.bindWorkloads(k, is != nil && is.Takes(api.WaypointForWorkload))
		for o := range s.bindings.users[k] {
			s.touchObject(o)
		}
		for name := range s.bindings.namespaces[k] {
			s.touchInheritors(name)
		}
	}
}

// use enters that an object means another Gateway than before.
func (s *State) use(o object, old, now cluster.WaypointUse) {
	if old == now {
		return
	}
	for _, k := range old.Keys(o.key.Namespace) {
		drop(s.bindings.users, k, o)
	}
	for _, k := range now.Keys(o.key.Namespace) {
		add(s.bindings.users, k, o)
	}
}

// useOfNamespace enters that a namespace, nil for none, says another thing than before of the waypoint of what is in it, or that
// listeners may look at it in another way.
func (s *State) useOfNamespace(name string, old, now *cluster.Namespace) {
	var was, is cluster.WaypointUse
	var before, after cluster.Labels
	var required [2]string
	if old != nil {
		was, before, required[0] = old.Waypoint, old.Labels, old.Required
	}
	if now != nil {
		is, after, required[1] = now.Waypoint, now.Labels, now.Required
	}
	if was != is {
		for _, k := range was.Keys(name) {
			drop(s.bindings.namespaces, k, name)
		}
		for _, k := range is.Keys(name) {
			add(s.bindings.namespaces, k, name)
		}
	}
	if was == is && required[0] == required[1] && (len(s.bindings.gateways) == 0 || before.Equal(after)) {
		return
	}
	s.touchInheritors(name)
}

// touchInheritors marks what is in a namespace and may be bound to a waypoint.
func (s *State) touchInheritors(name string) {
	n := s.namespaces[name]
	if n == nil {
		return
	}
	for k := range n.services {
		s.dirty.services[k] = struct{}{}
	}
	for k := range n.entries {
		s.touchEntry(k)
	}
	for k := range n.pods {
		s.dirty.pods[k] = struct{}{}
	}
	for k := range n.workloadEntries {
		s.dirty.workloadEntries[k] = struct{}{}
	}
}

func (s *State) touchObject(o object) {
	switch o.kind {
	case cluster.KindService:
		s.dirty.services[o.key] = struct{}{}
		if svc := s.services[o.key]; svc != nil && translate.ServiceBind(svc, s.namespaceOf(o.key.Namespace)).Required {
			s.touchEndpoints(cluster.ServiceRef(o.key)) // they obey it
		}
	case cluster.KindPod:
		s.dirty.pods[o.key] = struct{}{}
	case cluster.KindServiceEntry:
		s.touchEntry(o.key)
		if e := s.entries[o.key]; e != nil && translate.EntryBind(e, s.namespaceOf(o.key.Namespace)).Required {
			s.touchMembers(e)
		}
	case cluster.KindWorkloadEntry:
		s.dirty.workloadEntries[o.key] = struct{}{}
	}
}

// tellBound takes note of what an object should say of its waypoint, or a policy of waypoints; most say nothing, and nothing is noted.
func (s *State) tellBound(status translate.Status) {
	o := object{status.Kind, status.Key}
	if _, before := s.bindings.told[o]; !before && status.Gone {
		return
	}
	if status.Gone {
		delete(s.bindings.told, o)
	} else {
		s.bindings.told[o] = struct{}{}
	}
	s.report.Statuses = append(s.report.Statuses, status)
}

// unbound takes note that an object is gone which may have said something of its waypoint.
func (s *State) unbound(o object) {
	s.tellBound(translate.Status{Kind: o.kind, Key: o.key, Type: api.ConditionWaypointBound, Gone: true})
}

// namespaceOf is the object of a namespace, nil if it is not known.
func (s *State) namespaceOf(name string) *cluster.Namespace {
	if n := s.namespaces[name]; n != nil {
		return n.object
	}
	return nil
}

func (s *State) bind(in translate.BindInput) translate.Binding {
	return translate.Bind(s.mesh, in, s.waypoint)
}
