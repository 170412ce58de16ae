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

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"

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
		"rules": len(s.views.rules), "found rules": s.views.found.Len(), "virtual": len(s.views.virtual), "traffic": len(s.views.traffic), "bounding": len(s.views.bounding), "refining": len(s.views.refining), "refined": len(s.views.refined), "routes": len(s.views.routes), "attached": len(s.views.attached), "astray": len(s.views.astray), "referring": len(s.views.referring), "views": len(s.views.of),
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
					kind := pick(w, cluster.KindPod, cluster.KindService, cluster.KindEndpointSlice, cluster.KindPeerAuthentication, cluster.KindAuthorizationPolicy, cluster.KindServiceEntry, cluster.KindWorkloadEntry, cluster.KindNode, cluster.KindNamespace, cluster.KindGateway, cluster.KindGatewayClass, cluster.KindDeployment, cluster.KindHTTPRoute, cluster.KindDestinationRule, cluster.KindVirtualService, cluster.KindBackendTLSPolicy, cluster.KindBundle, cluster.KindTelemetry, cluster.KindRequestAuthentication, cluster.KindKeySet, cluster.KindBackendTraffic, cluster.KindWaypointPolicy)
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
