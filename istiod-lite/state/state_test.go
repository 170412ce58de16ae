package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unique"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

var mesh = translate.Mesh{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}

// model is what a client knows that takes every change.
type model map[resource.Name]string

func (m model) apply(t *testing.T, c resource.Change) {
	t.Helper()
	seen := map[resource.Name]bool{}
	for _, r := range c.Upserts {
		n := resource.Name{Type: r.Type, Name: r.Name}
		if seen[n] {
			t.Errorf("%v is named twice in one change", n)
		}
		seen[n] = true
		if m[n] == r.Version {
			t.Errorf("%v is sent although it did not change", n)
		}
		m[n] = r.Version
	}
	for _, n := range c.Removed {
		if seen[n] {
			t.Errorf("%v is both sent and removed", n)
		}
		if _, ok := m[n]; !ok {
			t.Errorf("%v is removed although it was not there", n)
		}
		delete(m, n)
	}
}

// want is what translate.All says that a client must know.
func want(t *testing.T, s translate.Snapshot) (model, []translate.Problem) {
	t.Helper()
	cfg := translate.All(s)
	out := model{}
	put := func(typ resource.Type, name string, content proto.Message) {
		r, err := resource.New(typ, name, content)
		if err != nil {
			t.Fatal(err)
		}
		out[resource.Name{Type: typ, Name: name}] = r.Version
	}
	put(resource.Settings, extension.Mesh, cfg.Settings)
	for name, a := range cfg.Addresses {
		put(resource.Address, name, a)
	}
	for name, a := range cfg.Authorizations {
		put(resource.Authorization, name, a)
	}
	return out, cfg.Problems
}

// TestStories feeds the objects of translate's stories in random order, flushing at random, and then takes them away again.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("../translate/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(archive.Files, func(f txtar.File) bool { return f.Name == "in.yaml" })
			objects, err := clustertest.Parse(archive.Files[i].Data)
			if err != nil {
				t.Fatal(err)
			}
			for seed := range uint64(20) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				rnd.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
				s, m := New(mesh), model{}
				for _, o := range objects {
					s.Upsert(o)
					if rnd.IntN(2) == 0 {
						m.apply(t, s.Flush())
					}
				}
				m.apply(t, s.Flush())
				check(t, s, m, objects)
				for _, o := range objects {
					s.Delete(o.ObjectKind(), o.ObjectKey())
				}
				m.apply(t, s.Flush())
				check(t, s, m, nil)
				checkEmpty(t, s)
			}
		})
	}
}

func snapshot(s *State, objects []cluster.Object) translate.Snapshot {
	out := clustertest.Snapshot(s.mesh, objects)
	out.Shortages = s.shortages
	return out
}

func check(t *testing.T, s *State, m model, objects []cluster.Object) {
	t.Helper()
	wanted, problems := want(t, snapshot(s, objects))
	if diff := cmp.Diff(wanted, m); diff != "" {
		t.Fatalf("a client does not know what All says (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(problems, s.Problems()); diff != "" {
		t.Fatalf("problems (-want +got):\n%s", diff)
	}
}

// viewModel is what waypoints know that take every step, by Gateway.
type viewModel map[string]model

func (m viewModel) apply(t *testing.T, views []resource.View) {
	t.Helper()
	for _, v := range views {
		switch {
		case v.Gone:
			if m[v.Gateway] == nil {
				t.Errorf("view of %s goes and was not there", v.Gateway)
			}
			delete(m, v.Gateway)
			continue
		case m[v.Gateway] == nil:
			m[v.Gateway] = model{}
		}
		m[v.Gateway].apply(t, resource.Change{Upserts: v.Upserts, Removed: v.Removed})
	}
}

// checkViews compares with what l7 says of each waypoint.
func checkViews(t *testing.T, m viewModel, s translate.Snapshot) {
	t.Helper()
	wanted := viewModel{}
	for _, g := range s.Gateways {
		if s.Waypoint(g.Key) == nil {
			continue
		}
		out := model{}
		put := func(typ resource.Type, name string, content proto.Message) {
			r, err := resource.New(typ, name, content)
			if err != nil {
				t.Fatal(err)
			}
			if n := (resource.Name{Type: typ, Name: name}); out[n] == "" {
				out[n] = r.Version
			}
		}
		for _, p := range s.Pods {
			for _, a := range translate.All(s).Addresses {
				if w := a.GetWorkload(); p.Namespace == g.Namespace && p.Labels.Get(api.LabelGatewayName) == g.Name && w.GetUid() == translate.PodUID(s.Mesh, p.Key) {
					put(resource.Address, w.Uid, a)
				}
			}
		}
		put(resource.Settings, extension.Mesh, translate.Settings(s.Mesh))
		cfg := l7.For(s, g.Key)
		for _, w := range cfg.Workloads {
			put(resource.Address, w.Uid, address(w))
		}
		for _, l := range cfg.Listeners {
			put(resource.Listener, l.Name, l)
		}
		for _, r := range cfg.Routes {
			put(resource.Routes, r.Name, r)
		}
		for _, c := range cfg.Clusters {
			put(resource.Cluster, c.Name, c)
		}
		for _, a := range cfg.LoadAssignments {
			put(resource.Endpoints, a.ClusterName, a)
		}
		wanted[g.Key.String()] = out
	}
	if diff := cmp.Diff(wanted, m); diff != "" {
		t.Fatalf("waypoints do not know what l7 says (-want +got):\n%s", diff)
	}
}

// checkEmpty looks for what is remembered of objects that are gone.
func checkEmpty(t *testing.T, s *State) {
	t.Helper()
	for what, n := range map[string]int{
		"namespaces": len(s.namespaces), "nodes": len(s.nodes), "pods": len(s.pods), "services": len(s.services),
		"slices": len(s.slices), "policies": len(s.policies), "podsOnNode": len(s.podsOnNode), "podsAt": len(s.podsAt),
		"slicesOf": len(s.slicesOf), "slicesAt": len(s.slicesAt), "slicesNamed": len(s.slicesNamed), "slicesOn": len(s.slicesOn),
		"gateways": len(s.bindings.gateways), "classes": len(s.bindings.classes), "deployments": len(s.bindings.deployments),
		"rules": len(s.views.rules), "found rules": s.views.found.Len(), "virtual": len(s.views.virtual), "traffic": len(s.views.traffic), "bounding": len(s.views.bounding), "routes": len(s.views.routes), "attached": len(s.views.attached), "astray": len(s.views.astray), "referring": len(s.views.referring), "views": len(s.views.of),
		"bound": len(s.views.bound), "fronts": len(s.views.fronts), "backs": len(s.views.backs), "members": len(s.views.members),
		"leaving": len(s.views.leaving), "last": len(s.views.last), "memberOf": len(s.views.memberOf), "refOf": len(s.views.refOf), "residents": len(s.views.residents),
		"users": len(s.bindings.users), "using namespaces": len(s.bindings.namespaces), "waypoints": len(s.bindings.waypoints), "told": len(s.bindings.told),
		"claims": len(s.claims), "authorizations": len(s.authorizations), "authentications": len(s.authentications), "keySets": len(s.keySets),
		"attached authentications": len(s.views.authentications), "keyUsers": len(s.views.keyUsers),
		"entries": len(s.entries), "hosts": len(s.hosts), "entriesAt": len(s.entriesAt),
		"workloadEntries": len(s.workloadEntries), "workloadEntriesAt": len(s.workloadEntriesAt), "problems": len(s.problems), "namespaceObjects": s.namespaceObjects,
	} {
		if n != 0 {
			t.Errorf("%d entries are left in %s", n, what)
		}
	}
	if n := len(s.made); n > 1 { // the static policy
		t.Errorf("%d entries are left in made", n)
	}
}

// world makes random objects out of few names, so that they collide and refer to each other.
type world struct{ *rand.Rand }

func pick[T any](w world, from ...T) T { return from[w.IntN(len(from))] }

func (w world) key() cluster.Key {
	return cluster.Key{Namespace: pick(w, "a", "b", "istio-system"), Name: pick(w, "x", "y", "z", "v", "w")}
}

func (w world) labels() cluster.Labels {
	m := map[string]string{}
	for _, name := range []string{"app", "tier"} {
		if w.IntN(3) > 0 {
			m[name] = pick(w, "1", "2")
		}
	}
	return cluster.LabelsOf(m)
}

func (w world) addr(prefix string) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("%s.%d", prefix, w.IntN(6)))
}

func (w world) created() time.Time { return time.Unix(int64(w.IntN(3)), 0) }

func (w world) node() string { return pick(w, "n1", "n2", "") }

func (w world) object() cluster.Object {
	switch w.IntN(40) {
	case 39:
		return w.backendTraffic()
	case 33, 34:
		return w.virtualService()
	case 31, 32:
		return w.destinationRule()
	case 35, 36:
		return w.requestAuthentication()
	case 37:
		return w.keySet()
	case 38:
		return w.telemetry()
	case 24, 25, 26, 27:
		return w.route()
	case 28, 29:
		return w.backendTLS()
	case 30:
		b := &cluster.Bundle{Key: w.key()}
		if text := pick(w, "", "one", "two"); text != "" {
			b.Certificates = unique.Make(text)
		}
		return b
	case 18, 19, 20:
		return w.gateway()
	case 21, 22:
		return &cluster.Deployment{Key: w.key(), Gateway: pick(w, "x", "y", "z"), Replicas: int32(w.IntN(3)), Ready: int32(w.IntN(2)), Deleting: w.IntN(8) == 0}
	case 23:
		return &cluster.GatewayClass{Name: pick(w, "c1", "c2"), Controller: pick(w, api.ControllerWaypoint, api.ControllerWaypoint, "other"), WaypointFor: pick(w, "", "all")}
	case 14, 15:
		return w.serviceEntry()
	case 16, 17:
		we := &cluster.WorkloadEntry{Key: w.key(), Created: w.created(), Labels: w.labels(), Generation: int64(w.IntN(2))}
		if w.IntN(4) > 0 {
			we.Addr = w.addr(pick(w, "10.1.0", "10.2.0", "10.3.0", "10.4.0"))
		} else {
			we.Host = "vm.example"
		}
		we.Labels, we.Bound = w.withUse(we.Labels), w.bound()
		if w.IntN(2) == 0 {
			we.Ports = []cluster.NamedPort{{Name: "named", Port: 9001}}
		}
		return we
	case 12, 13:
		return w.authorizationPolicy()
	case 0:
		return &cluster.Namespace{Name: pick(w, "a", "b", "istio-system"), Distribution: pick(w, "", "PreferClose", "wrong"), Labels: w.labels(), Waypoint: w.use(), Required: pick(w, "", "", "true")}
	case 1:
		return &cluster.Node{Name: pick(w, "n1", "n2"), Locality: cluster.Locality{Zone: pick(w, "", "z1", "z2")}, Addrs: []netip.Addr{w.addr("10.3.0")}}
	case 2, 3:
		pa := &cluster.PeerAuthentication{Key: w.key(), Created: w.created(), Mode: w.mode()}
		if w.IntN(2) == 0 {
			pa.Selector = w.labels()
		}
		if w.IntN(2) == 0 {
			pa.Ports = []cluster.PortMTLS{{Port: 1, Mode: w.mode()}, {Port: 2, Mode: w.mode()}}
		}
		return pa
	case 4, 5:
		svc := &cluster.Service{
			Key: w.key(), Created: w.created(), Selector: w.labels(), External: w.IntN(6) == 0,
			ClusterIPs: []netip.Addr{w.addr("10.2.0")}, Ports: []cluster.ServicePort{{Name: "p", Port: 80, Target: uint16(80 + w.IntN(2))}, {Name: "q", Port: 81, TargetName: "named"}},
		}
		svc.Waypoint, svc.Bound, svc.Required = w.use(), w.bound(), pick(w, "", "", "true", "false")
		if w.IntN(3) == 0 {
			svc.Gateway = svc.Name
		}
		if w.IntN(2) == 0 {
			svc.LoadBalancerIPs = []netip.Addr{w.addr("10.3.0"), w.addr("10.2.0")}
		}
		return svc
	case 6, 7:
		slice := &cluster.EndpointSlice{Key: w.key(), Service: pick(w, "x", "y", ""), Ports: []cluster.SlicePort{{Name: "p", Port: uint16(7000 + w.IntN(2))}}}
		for range w.IntN(4) {
			e := cluster.Endpoint{Addr: w.addr("10.1.0"), Node: w.node(), Ready: w.IntN(2) == 0}
			if w.IntN(3) == 0 {
				e.Pod = w.key().Name
			}
			slice.Endpoints = append(slice.Endpoints, e)
		}
		return slice
	}
	p := &cluster.Pod{
		Key: w.key(), Node: w.node(), ServiceAccount: pick(w, "s", "t"), Labels: w.labels(), Ready: w.IntN(2) == 0,
		Terminal: w.IntN(8) == 0, Deleting: w.IntN(4) == 0, Created: w.created(), HostNetwork: w.IntN(8) == 0, Redirected: w.IntN(2) == 0, Redirection: pick(w, "enabled", "odd"),
	}
	p.Labels = w.withUse(p.Labels)
	for range w.IntN(3) {
		if a := w.addr("10.1.0"); !slices.Contains(p.IPs, a) {
			p.IPs = append(p.IPs, a)
		}
	}
	if w.IntN(2) == 0 {
		p.Ports = []cluster.NamedPort{{Name: "named", Port: 9000}}
	}
	return p
}

// use is what some say of their waypoint, and others leave unsaid.
func (w world) use() cluster.WaypointUse {
	u := pick(w, cluster.WaypointUse{}, cluster.WaypointUse{}, cluster.WaypointUse{Name: api.UseWaypointNone}, cluster.WaypointUse{Name: pick(w, "x", "y", "z")},
		cluster.WaypointUse{Name: pick(w, "x", "y", "z"), Namespace: pick(w, "a", "b")})
	if w.IntN(3) == 0 {
		u.Canary = cluster.Canary{Name: pick(w, "x", "y", "z"), Namespace: pick(w, "", "a"), Weight: pick(w, "", "30", "100", "101")}
	}
	return u
}

func (w world) withUse(ls cluster.Labels) cluster.Labels {
	m := map[string]string{}
	for _, l := range ls {
		m[l.Name()] = l.Value()
	}
	if use := w.use(); use.Name != "" {
		m[api.LabelUseWaypoint] = use.Name
		if use.Namespace != "" {
			m[api.LabelUseWaypointNamespace] = use.Namespace
		}
	}
	if w.IntN(10) == 0 {
		m[api.LabelGatewayManaged] = api.GatewayManagedWaypoint
	}
	return cluster.LabelsOf(m)
}

func (w world) bound() cluster.Condition {
	return pick(w, cluster.Condition{}, cluster.Condition{Type: api.ConditionWaypointBound, Status: "True", Reason: "WaypointAccepted"})
}

func (w world) ref() cluster.ObjectRef {
	k := w.key()
	k.Name = pick(w, "x", "y")
	return pick(w, cluster.ServiceRef(k), cluster.ServiceRef(k), cluster.ServiceRef(k), cluster.EntryRef(k))
}

func (w world) route() cluster.Object {
	r := &cluster.Route{
		Key: w.key(), Kind: pick(w, cluster.KindHTTPRoute, cluster.KindHTTPRoute, cluster.KindGRPCRoute, cluster.KindTCPRoute, cluster.KindTLSRoute), Created: w.created(), Generation: int64(w.IntN(3)),
	}
	if r.Kind == cluster.KindTLSRoute {
		r.Hostnames = pick(w, nil, []string{"a.example"}, []string{"a.example", "*.example"}, []string{"*.example", "b.example"})
	}
	r.Parents = []cluster.RouteParent{{Ref: cluster.ServiceRef(cluster.Key{Namespace: r.Namespace, Name: pick(w, "x", "y")})}}
	for range w.IntN(2) {
		r.Parents = append(r.Parents, cluster.RouteParent{Ref: pick(w, w.ref(), w.ref(), w.ref(), cluster.GatewayRef(w.key())), Port: pick[uint16](w, 0, 0, 80, 99)})
	}
	rule := cluster.RouteRule{Matches: []cluster.RouteMatch{{}}}
	for range w.IntN(3) {
		rule.Backends = append(rule.Backends, cluster.RouteBackend{BackendRef: cluster.BackendRef{Ref: w.ref(), Port: 80}, Weight: uint32(w.IntN(3))})
	}
	r.Rules = []cluster.RouteRule{rule}
	return r
}

func (w world) virtualService() cluster.Object {
	v := &cluster.VirtualService{
		Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)),
		Hosts: []string{pick(w, "x.a", "y.a", "x.b", "h1.example")},
	}
	if w.IntN(4) > 0 {
		v.Fault = &cluster.Injection{Status: uint32(500 + w.IntN(2)), AbortPerMillion: 10}
	}
	return v
}

func (w world) destinationRule() cluster.Object {
	r := &cluster.DestinationRule{
		Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Selective: w.IntN(6) == 0,
		Host:     pick(w, "x", "y", "x.a.svc.cluster.local", "y.b.svc.cluster.local", "*.a.svc.cluster.local", "*.local", "*", "*.example", "e.example", ""),
		ExportTo: pick(w, nil, nil, []string{"*"}, []string{"."}, []string{"b"}),
	}
	if w.IntN(6) > 0 {
		r.Policy = &cluster.TrafficPolicy{Balancer: pick(w, cluster.BalanceRandom, cluster.BalanceRoundRobin), Pool: cluster.ConnectionPool{MaxRequests: uint32(w.IntN(3))}}
		if w.IntN(3) == 0 {
			r.Ports = []cluster.PortPolicy{{Port: 80, Policy: &cluster.TrafficPolicy{}}}
		}
	}
	return r
}

func (w world) telemetry() cluster.Object {
	t := &cluster.Telemetry{Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Selective: w.IntN(6) == 0}
	for range w.IntN(3) {
		t.Targets = append(t.Targets, authz.Target{Kind: pick(w, authz.TargetService, authz.TargetServiceEntry, authz.TargetGateway, authz.TargetGatewayClass),
			Name: pick(w, w.key().Name, authz.WaypointClass)})
	}
	if w.IntN(6) > 0 {
		sampling := float64(w.IntN(3))
		disabled := w.IntN(4) == 0
		t.Tracing = &cluster.Tracing{Provider: pick(w, "", "otel", "other", "none"), Sampling: pick(w, nil, &sampling), Disabled: pick(w, nil, nil, &disabled)}
	}
	for range w.IntN(3) {
		t.Logging = append(t.Logging, cluster.Logging{Providers: pick(w, nil, []string{"envoy"}, []string{"otel"}), Disabled: w.IntN(4) == 0, Filter: pick(w, "", "response.code >= 400")})
	}
	return t
}

func (w world) backendTLS() cluster.Object {
	p := &cluster.BackendTLSPolicy{Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Hostname: pick(w, "a.example", "b.example"), System: w.IntN(3) == 0}
	for range 1 + w.IntN(2) {
		section := pick(w, "", "", "http", "tcp")
		p.Targets = append(p.Targets, cluster.PolicyTarget{Ref: w.ref(), Section: section})
	}
	for !p.System && len(p.Authorities) < 2 {
		p.Authorities = append(p.Authorities, cluster.Key{Namespace: p.Namespace, Name: w.key().Name})
	}
	if w.IntN(6) == 0 {
		p.Faults = []string{"a fault"}
	}
	return p
}

// followRoutes lets known follow what is to be reported of routes.
func followRoutes(known map[object][]cluster.ParentStatus, told []RouteStatus) {
	for _, status := range told {
		if o := (object{status.Kind, status.Key}); status.Gone {
			delete(known, o)
		} else {
			known[o] = status.Want
		}
	}
}

// checkRoutes compares with what l7 says of all routes and policies.
func checkRoutes(t *testing.T, known map[object][]cluster.ParentStatus, statuses map[said]translate.Status, snapshot translate.Snapshot) {
	t.Helper()
	wanted := map[object][]cluster.ParentStatus{}
	all := l7.All(snapshot)
	policies, knownPolicies := map[said]translate.Status{}, maps.Clone(statuses)
	for _, status := range all.Policies {
		policies[said{object{status.Kind, status.Key}, status.Type}] = status
	}
	maps.DeleteFunc(knownPolicies, func(o said, _ translate.Status) bool { return o.typ != authz.WaypointConditionType })
	if diff := cmp.Diff(policies, knownPolicies, cmp.AllowUnexported(said{}, object{})); diff != "" {
		t.Fatalf("statuses of policies at waypoints (-want +got):\n%s", diff)
	}
	for _, status := range all.Statuses {
		wanted[object{status.Kind, status.Key}] = status.Parents
	}
	if diff := cmp.Diff(wanted, known, cmp.AllowUnexported(object{})); diff != "" {
		t.Fatalf("statuses of routes (-want +got):\n%s", diff)
	}
}

func (w world) gateway() cluster.Object {
	g := &cluster.Gateway{
		Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Deleting: w.IntN(8) == 0, Class: pick(w, "c1", "c2"), Programmed: w.IntN(3) > 0,
		Revision: pick(w, "", "", "default", "other"), WaypointFor: pick(w, "", "", "service", "workload", "all", "none"),
	}
	if w.IntN(6) > 0 {
		selector, err := labels.Parse("app=1")
		if err != nil {
			panic(err)
		}
		g.Listeners = []cluster.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE", From: pick(w, "Same", "All", "Selector"), Selector: selector}}
	}
	if w.IntN(6) == 0 {
		g.Addresses = []cluster.GatewayAddress{{Type: pick(w, "IPAddress", "Hostname", "odd"), Value: pick(w, "10.9.9.9", "far.example")}}
	}
	return g
}

func (w world) serviceEntry() cluster.Object {
	e := &cluster.ServiceEntry{
		Key: w.key(), Created: w.created(), Labels: w.labels(), AutoAddress: w.IntN(2) == 0, Generation: int64(w.IntN(2)),
		Resolution: pick(w, cluster.ResolutionStatic, cluster.ResolutionStatic, cluster.ResolutionDNS, cluster.ResolutionNone),
		Visibility: pick(w, cluster.VisiblePublic, cluster.VisiblePublic, cluster.VisibleNamespace, cluster.VisibleNone),
		Ports:      []cluster.ServicePort{{Name: "p", Port: 80, Target: uint16(80 + w.IntN(2))}}, Distribution: pick(w, "", "PreferClose", "wrong"),
	}
	e.Waypoint, e.Bound, e.Required = w.use(), w.bound(), pick(w, "", "", "true", "false")
	for _, h := range []string{"x.a.svc.cluster.local", "y.b.svc.cluster.local", "h1.example", "h2.example", "*.w.example"} {
		if w.IntN(3) == 0 {
			e.Hosts = append(e.Hosts, h)
		}
	}
	if w.IntN(2) == 0 {
		a := w.addr(pick(w, "10.2.0", "10.3.0"))
		e.Addresses = []netip.Prefix{netip.PrefixFrom(a, 32), netip.MustParsePrefix("10.8.0.0/16")}
	}
	for _, h := range e.Hosts {
		e.Assigned = append(e.Assigned, cluster.HostAddr{Host: h, Addr: w.addr("240.240.0")})
	}
	if w.IntN(2) == 0 {
		e.Selector = w.labels()
		return e
	}
	for range w.IntN(3) {
		ep := cluster.EntryEndpoint{Addr: w.addr(pick(w, "10.1.0", "10.2.0", "10.3.0", "10.4.0"))}
		if w.IntN(2) == 0 {
			ep.Ports = []cluster.NamedPort{{Name: "p", Port: uint16(7000 + w.IntN(2))}}
		}
		e.Endpoints = append(e.Endpoints, ep)
	}
	return e
}

func (w world) authorizationPolicy() cluster.Object {
	key := w.key()
	spec := map[string]any{"action": pick(w, "ALLOW", "DENY", "AUDIT", "CUSTOM", "CUSTOM"), "provider": map[string]any{"name": pick(w, "service", "entry", "none")}, "rules": []any{map[string]any{
		"to": []any{map[string]any{"operation": pick(w, map[string]any{"ports": []any{"80"}}, map[string]any{"methods": []any{"GET"}})}},
	}}}
	if w.IntN(3) > 0 {
		spec["selector"] = map[string]any{"matchLabels": pick(w, map[string]any{"app": "1"}, map[string]any{"app": "2", "tier": "1"})}
	}
	if w.IntN(2) == 0 {
		delete(spec, "selector")
		spec["targetRefs"] = w.targetRefs()
	}
	return cluster.AuthorizationPolicyOf(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": key.Namespace, "name": key.Name, "generation": int64(w.IntN(3))}, "spec": spec,
	}})
}

// providers are external authorizers: a Kubernetes service, and the host of a ServiceEntry.
func providers(service, entry string) []*meshv1alpha1.MeshConfig_ExtensionProvider {
	of := func(name, host string) *meshv1alpha1.MeshConfig_ExtensionProvider {
		return &meshv1alpha1.MeshConfig_ExtensionProvider{Name: name, Provider: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExtAuthzGrpc{
			EnvoyExtAuthzGrpc: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider{Service: host, Port: 80}}}
	}
	tracer := func(name, host string) *meshv1alpha1.MeshConfig_ExtensionProvider {
		return &meshv1alpha1.MeshConfig_ExtensionProvider{Name: name, Provider: &meshv1alpha1.MeshConfig_ExtensionProvider_Opentelemetry{
			Opentelemetry: &meshv1alpha1.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider{Service: host, Port: 80}}}
	}
	return []*meshv1alpha1.MeshConfig_ExtensionProvider{of("service", service), of("entry", entry), tracer("otel", service), tracer("other", entry)}
}

// said is a condition of an object.
type said struct {
	of  object
	typ string
}

// checkStatuses lets known follow what is to be reported, and compares it with what All says.
func checkStatuses(t *testing.T, s *State, told []translate.Status, known map[said]translate.Status, objects []cluster.Object) {
	t.Helper()
	followStatuses(known, told)
	known = maps.Clone(known)
	maps.DeleteFunc(known, func(o said, _ translate.Status) bool { return o.typ == authz.WaypointConditionType }) // l7's to say
	wanted := map[said]translate.Status{}
	for _, status := range translate.All(snapshot(s, objects)).Statuses {
		wanted[said{object{status.Kind, status.Key}, status.Type}] = status
	}
	if diff := cmp.Diff(wanted, known, cmp.AllowUnexported(said{}, object{})); diff != "" {
		t.Fatalf("statuses (-want +got):\n%s", diff)
	}
}

func followStatuses(known map[said]translate.Status, told []translate.Status) {
	for _, status := range told {
		if o := (said{object{status.Kind, status.Key}, status.Type}); status.Gone {
			delete(known, o)
		} else {
			known[o] = status
		}
	}
}

func (w world) mode() cluster.MTLSMode {
	return pick(w, cluster.MTLSUnset, cluster.MTLSDisable, cluster.MTLSPermissive, cluster.MTLSStrict)
}

// TestIncrementalIsAll lets random things happen to a small crowded cluster, and after each step compares what a client
// knows that was told the changes only with what follows from the whole.
func TestIncrementalIsAll(t *testing.T) {
	seeds, steps := uint64(4), 600
	if os.Getenv("AMBIT_SOAK") != "" {
		seeds, steps = 100, 3000
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := world{rand.New(rand.NewPCG(seed, 2))}
			s, m, views, routes := New(mesh), model{}, viewModel{}, map[object][]cluster.ParentStatus{}
			objects, statuses := map[object]cluster.Object{}, map[said]translate.Status{}
			for range steps {
				switch w.IntN(40) {
				default:
					o := w.object()
					objects[object{o.ObjectKind(), o.ObjectKey()}] = o
					s.Upsert(o)
				case 0, 1, 2, 3, 4, 5, 6, 7:
					for id := range objects {
						delete(objects, id)
						s.Delete(id.kind, id.key)
						break
					}
				case 8: // a relist
					kind := pick(w, cluster.KindPod, cluster.KindService, cluster.KindEndpointSlice, cluster.KindPeerAuthentication, cluster.KindAuthorizationPolicy, cluster.KindServiceEntry, cluster.KindWorkloadEntry, cluster.KindNode, cluster.KindNamespace, cluster.KindGateway, cluster.KindGatewayClass, cluster.KindDeployment, cluster.KindHTTPRoute, cluster.KindDestinationRule, cluster.KindVirtualService, cluster.KindBackendTLSPolicy, cluster.KindBundle, cluster.KindTelemetry, cluster.KindRequestAuthentication, cluster.KindKeySet, cluster.KindBackendTraffic)
					maps.DeleteFunc(objects, func(id object, _ cluster.Object) bool { return id.kind == kind && w.IntN(2) == 0 })
					var list []cluster.Object
					for id, o := range objects {
						if id.kind == kind {
							list = append(list, o)
						}
					}
					s.Replace(kind, list)
				case 10: // the range of virtual addresses is exhausted, or no more
					shortages := map[cluster.Key][]cluster.Shortage{}
					for range w.IntN(4) {
						shortages[w.key()] = []cluster.Shortage{{Host: pick(w, "h1.example", "h2.example"), Range: netip.MustParsePrefix("240.240.0.0/16")}}
					}
					s.SetShortages(shortages)
				case 9: // new settings
					changed := s.Mesh()
					changed.TrustDomain = pick(w, "cluster.local", "other.example")
					changed.RegistryOnly = w.IntN(2) == 0
					changed.TrustDomainAliases = pick(w, nil, []string{"old.example"})
					changed.RootNamespace = pick(w, "istio-system", "a")
					changed.Network = pick(w, "", "net1")
					changed.Providers = pick(w, nil, providers("x.a.svc.cluster.local", "h1.example"), providers("y.b.svc.cluster.local", "b/h2.example"))
					changed.DefaultTracers = pick(w, nil, []string{"other"})
					changed.DefaultLoggers = pick(w, nil, nil, []string{"envoy"})
					s.SetMesh(changed)
				}
				if w.IntN(3) == 0 {
					change := s.Flush()
					m.apply(t, change)
					views.apply(t, change.Views)
					check(t, s, m, slices.Collect(maps.Values(objects)))
					report := s.TakeReport()
					followRoutes(routes, report.Routes)
					if w.IntN(4) == 0 { // each waypoint is a whole cluster to l7, so not at every step: what was missed is missing later too
						whole := snapshot(s, slices.Collect(maps.Values(objects)))
						checkViews(t, views, whole)
						followStatuses(statuses, report.Statuses)
						checkRoutes(t, routes, statuses, whole)
					}
					checkStatuses(t, s, report.Statuses, statuses, slices.Collect(maps.Values(objects)))
				}
			}
		})
	}
}
