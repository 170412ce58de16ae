package translate_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// TestWaypointBound: what objects of the story say of their waypoint.
func TestWaypointBound(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/waypoints.txtar")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := clustertest.Parse(archive.Files[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range translate.All(clustertest.Snapshot(mesh, objects)).Statuses {
		if s.Type == api.ConditionWaypointBound {
			got[s.Key.Name] = s.Want.Status + " " + s.Want.Reason
		}
	}
	want := map[string]string{
		"a-inherits": "True WaypointAccepted", "c-means-young": "False WaypointIsNotReady", "d-means-open": "True WaypointAccepted",
		"e-is-not-allowed": "False AttachmentDenied", "h-inherits": "True WaypointAccepted",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}

// TestWorkloadsBound: pods and WorkloadEntries take a waypoint that is for workloads, and where they themselves mean one that is not, they
// say so; a waypoint's own pods take none.
func TestWorkloadsBound(t *testing.T) {
	objects, err := clustertest.Parse([]byte(`
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
kind: Gateway
metadata: {name: w, namespace: shop, labels: {istio.io/waypoint-for: workload}}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.1}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Gateway
metadata: {name: s, namespace: shop}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.2}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: w}}
---
kind: Pod
metadata: {name: inherits, namespace: shop}
status: {podIP: 10.1.0.1}
---
kind: Pod
metadata: {name: free, namespace: shop, labels: {istio.io/use-waypoint: none}}
status: {podIP: 10.1.0.2}
---
kind: Pod
metadata: {name: of-services, namespace: shop, labels: {istio.io/use-waypoint: s}}
status: {podIP: 10.1.0.3}
---
kind: Pod
metadata: {name: waypoints-own, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: w}}
status: {podIP: 10.1.0.4}
---
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec: {address: 10.1.0.5}
---
kind: WorkloadEntry
metadata: {name: vm-of-services, namespace: shop, labels: {istio.io/use-waypoint: s}}
spec: {address: 10.1.0.6}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	out := translate.All(clustertest.Snapshot(mesh, objects))
	got := map[string]bool{}
	for _, a := range out.Addresses {
		if w := a.GetWorkload(); w != nil {
			got[w.Name] = slices.Equal(w.GetWaypoint().GetAddress().GetAddress(), []byte{10, 9, 0, 1})
		} else if a.GetService().GetWaypoint() != nil {
			t.Errorf("a service takes a waypoint for workloads: %v", a)
		}
	}
	want := map[string]bool{"inherits": true, "free": false, "of-services": false, "waypoints-own": false, "vm": true, "vm-of-services": false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bound (-want +got):\n%s", diff)
	}
	said := map[string]string{}
	for _, s := range out.Statuses {
		if s.Type == api.ConditionWaypointBound {
			said[s.Key.Name] = s.Want.Status + " " + s.Want.Reason
		}
	}
	if diff := cmp.Diff(map[string]string{"vm": "True WaypointAccepted", "vm-of-services": "False UnsupportedTrafficType"}, said); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}

// TestWaypointRequired: traffic of a service that requires its waypoint goes there whatever it is, and its pods admit that waypoint
// only, by each name that the mesh has.
func TestWaypointRequired(t *testing.T) {
	objects, err := clustertest.Parse([]byte(`
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: missing}, annotations: {ambit.io/waypoint-required: "true"}}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}
---
kind: Service
metadata: {name: lax, namespace: shop, annotations: {ambit.io/waypoint-required: "false"}}
spec: {clusterIP: 10.96.0.2, selector: {app: lax}, ports: [{port: 80}]}
---
kind: Service
metadata: {name: free, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {clusterIP: 10.96.0.3, selector: {app: free}, ports: [{port: 80}]}
---
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIP: 10.1.0.1}
---
kind: Pod
metadata: {name: lax, namespace: shop, labels: {app: lax}}
status: {podIP: 10.1.0.2}
---
kind: Pod
metadata: {name: free, namespace: shop, labels: {app: free}}
status: {podIP: 10.1.0.3}
---
kind: Service
metadata: {name: thief, namespace: other, labels: {istio.io/use-waypoint: w}, annotations: {ambit.io/waypoint-required: "true"}}
spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: thief, namespace: other, labels: {kubernetes.io/service-name: thief}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.1.0.2]}]
`))
	if err != nil {
		t.Fatal(err)
	}
	m := mesh
	m.TrustDomainAliases = []string{"old.example"}
	out := translate.All(clustertest.Snapshot(m, objects))
	for name, bound := range map[string]bool{"web": true, "lax": false, "free": false} {
		svc := out.Addresses["shop/"+name+".shop.svc.cluster.local"].GetService()
		if got := svc.GetWaypoint().GetHostname().GetHostname() == "missing.shop.svc.cluster.local"; got != bound {
			t.Errorf("%s has waypoint %v", name, svc.GetWaypoint())
		}
		w := out.Addresses["Kubernetes//Pod/shop/"+name].GetWorkload()
		if got := slices.Contains(w.GetAuthorizationPolicies(), translate.RequiredName(cluster.ServiceRef(cluster.Key{Namespace: "shop", Name: name}))); got != bound {
			t.Errorf("pod %s obeys %q", name, w.GetAuthorizationPolicies())
		}
	}
	compiled := out.Authorizations[translate.RequiredName(cluster.ServiceRef(cluster.Key{Namespace: "shop", Name: "web"}))]
	if w := out.Addresses["Kubernetes//Pod/shop/lax"].GetWorkload(); len(w.GetServices()) != 2 || len(w.GetAuthorizationPolicies()) > 0 {
		t.Errorf("a service of another namespace decides who reaches a pod: %v", w)
	}
	if compiled == nil || len(out.Authorizations) != 3 { // the static one and the thief's
		t.Fatalf("authorisations %v", out.Authorizations)
	}
	if fault := peerRefuses(compiled); fault != "" {
		t.Errorf("Istio's node proxy refuses it: %s", fault)
	}
	var admitted []string
	for _, p := range compiled.Rules[0].Clauses[0].Matches[0].NotPrincipals {
		admitted = append(admitted, p.GetExact())
	}
	if diff := cmp.Diff([]string{"cluster.local/ns/shop/sa/missing", "old.example/ns/shop/sa/missing"}, admitted); diff != "" {
		t.Errorf("admitted (-want +got):\n%s", diff)
	}
	for _, s := range out.Statuses {
		if s.Key.Name == "web" && (s.Want.Reason != "WaypointIsNotReady" || !strings.Contains(s.Want.Message, "traffic is refused")) {
			t.Errorf("web says %+v", s.Want)
		}
	}
}

// TestWaypointRequiredEntry: a ServiceEntry requires its waypoint as a service does, of those that are captured among its endpoints too.
func TestWaypointRequiredEntry(t *testing.T) {
	objects, err := clustertest.Parse([]byte(`
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: w}, annotations: {ambit.io/waypoint-required: "true"}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec: {hosts: [web.example], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: web}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: lax, namespace: shop, annotations: {ambit.io/waypoint-required: "false"}}
spec: {hosts: [lax.example], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: lax}}}
---
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIP: 10.1.0.1}
---
kind: Pod
metadata: {name: lax, namespace: shop, labels: {app: lax}}
status: {podIP: 10.1.0.2}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop, labels: {app: web}}
spec: {address: 10.2.0.1, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: thief, namespace: other, labels: {istio.io/use-waypoint: w}, annotations: {ambit.io/waypoint-required: "true"}}
spec: {hosts: [thief.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.1.0.2}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	out := translate.All(clustertest.Snapshot(mesh, objects))
	required := translate.RequiredName(cluster.EntryRef(cluster.Key{Namespace: "shop", Name: "web"}))
	if out.Authorizations[required] == nil {
		t.Errorf("authorisations %v", out.Authorizations)
	}
	for uid, want := range map[string][]string{
		"Kubernetes//Pod/shop/web": {required}, "Kubernetes//Pod/shop/lax": nil,
		translate.WorkloadEntryUID(mesh, cluster.Key{Namespace: "shop", Name: "vm"}): {required},
	} {
		w := out.Addresses[uid].GetWorkload()
		if w == nil || !slices.Equal(w.GetAuthorizationPolicies(), want) {
			t.Errorf("%s obeys %q, want %q", uid, w.GetAuthorizationPolicies(), want)
		}
	}
	for host, want := range map[string]string{"web.example": "w.shop.svc.cluster.local", "lax.example": ""} {
		if got := out.Addresses["shop/"+host].GetService().GetWaypoint().GetHostname().GetHostname(); got != want {
			t.Errorf("%s has waypoint %q, want %q", host, got, want)
		}
	}
}

// TestWaypointReady: traffic is sent to a waypoint from the first ready replica on, waits while all of them are away, and goes on
// without it when it is being taken away.
func TestWaypointReady(t *testing.T) {
	key := cluster.Key{Namespace: "shop", Name: "w"}
	base := func() translate.WaypointInput {
		return translate.WaypointInput{
			Gateway:    &cluster.Gateway{Key: key, Class: "c", Listeners: []cluster.Listener{{Port: 15008, Protocol: "HBONE"}}},
			Class:      &cluster.GatewayClass{Name: "c", Controller: api.ControllerWaypoint},
			Service:    &cluster.Service{Key: key, Gateway: "w", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}},
			Deployment: &cluster.Deployment{Key: key, Gateway: "w", Replicas: 2, Ready: 1},
		}
	}
	for name, tc := range map[string]struct {
		change func(*translate.WaypointInput)
		why    string
	}{
		"ready":                   {func(*translate.WaypointInput) {}, ""},
		"no replica yet":          {func(in *translate.WaypointInput) { in.Deployment.Ready = 0 }, "no replica"},
		"no replica for a while":  {func(in *translate.WaypointInput) { in.Deployment.Ready = 0; in.Gateway.Programmed = true }, ""},
		"scaled to zero":          {func(in *translate.WaypointInput) { in.Deployment.Replicas = 0; in.Gateway.Programmed = true }, "scaled to zero"},
		"Deployment is going":     {func(in *translate.WaypointInput) { in.Deployment.Deleting = true; in.Gateway.Programmed = true }, "Deployment"},
		"Deployment of another":   {func(in *translate.WaypointInput) { in.Deployment.Gateway = "v" }, "Deployment"},
		"Gateway is going":        {func(in *translate.WaypointInput) { in.Gateway.Deleting = true }, "deleted"},
		"Service of another":      {func(in *translate.WaypointInput) { in.Service.Gateway = "" }, "Service"},
		"no listener for tunnels": {func(in *translate.WaypointInput) { in.Gateway.Listeners[0].Port = 80 }, "listener"},
	} {
		t.Run(name, func(t *testing.T) {
			in := base()
			tc.change(&in)
			w := translate.WaypointOf(mesh, in)
			if w == nil || (tc.why == "") != (w.Unready == "") || !strings.Contains(w.Unready, tc.why) {
				t.Errorf("got %+v, want it unready for %q", w, tc.why)
			}
		})
	}
	for name, change := range map[string]func(*translate.WaypointInput){
		"another controller": func(in *translate.WaypointInput) { in.Class.Controller = "example.com/other" },
		"class not known":    func(in *translate.WaypointInput) { in.Class = nil },
		"another revision":   func(in *translate.WaypointInput) { in.Gateway.Revision = "canary" },
	} {
		in := base()
		change(&in)
		if w := translate.WaypointOf(mesh, in); w != nil {
			t.Errorf("%s: got %+v, want none", name, w)
		}
	}
}
