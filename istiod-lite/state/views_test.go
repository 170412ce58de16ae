package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

const shop = `
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
kind: Gateway
metadata: {name: w, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: w}}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: other, namespace: shop, labels: {istio.io/use-waypoint: w}}
spec: {clusterIP: 10.96.0.3, selector: {app: other}, ports: [{name: http, port: 80}]}
---
` + webV2 + `
---
` + webPod + `
---
` + webRoute

const (
	webV2 = `
kind: Service
metadata: {name: web-v2, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web, version: v2}, ports: [{name: http, port: 80}]}
`
	webPod = `
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v2}}
status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: "True"}]}
`
	webRoute = `
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web-v2, port: 80}]}]
`
)

// askFor is a policy that wants somebody outside asked.
const askFor = `
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec: {action: CUSTOM, provider: {name: service}, targetRefs: [{kind: Service, group: "", name: web}], rules: [{}]}
`

// policyOf is a policy that is attached to something.
func policyOf(kind, group, name string) string {
	return fmt.Sprintf(`
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {action: DENY, targetRefs: [{kind: %s, group: %q, name: %s}], rules: [{to: [{operation: {methods: [PUT]}}]}]}
`, kind, group, name)
}

// told renders a step as "Type name" and "-Type name", sorted, without what all hosts share.
func told(c resource.Change) []string {
	var out []string
	for _, v := range c.Views {
		if v.Gone {
			out = append(out, "gone "+v.Gateway)
		}
		for _, r := range v.Upserts {
			out = append(out, fmt.Sprint(r.Type, " ", r.Name))
		}
		for _, n := range v.Removed {
			out = append(out, fmt.Sprint("-", n.Type, " ", n.Name))
		}
	}
	slices.Sort(out)
	return out
}

// TestCanaryViews: a canary is told of what the first waypoint is, for as long as it is named with a weight, whether the service or its
// namespace names it; and what becomes of the canary is seen.
func TestCanaryViews(t *testing.T) {
	s := New(mesh)
	parse := func(text string) {
		t.Helper()
		objects, err := clustertest.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			s.Upsert(o)
		}
		s.Flush()
	}
	const canary = `
kind: Gateway
metadata: {name: v, namespace: shop}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.2}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`
	parse(strings.ReplaceAll(shop, "listeners:", "addresses: [{type: IPAddress, value: 10.9.0.1}], listeners:") + "---" + canary)
	gateway := cluster.Key{Namespace: "shop", Name: "v"}
	expect := func(what string, want bool) {
		t.Helper()
		for _, key := range []cluster.Key{gateway, {Namespace: "shop", Name: "w"}} {
			v := s.views.of[key]
			got := v != nil && v.told[resource.Name{Type: resource.Routes, Name: "inbound-vip|80|http|web.shop.svc.cluster.local"}] != "" &&
				v.told[resource.Name{Type: resource.Endpoints, Name: "outbound|80||web-v2.shop.svc.cluster.local"}] != ""
			if got != (want || key != gateway) {
				t.Errorf("%s: %s knows the service: %t", what, key, got)
			}
		}
	}
	service := func(labels, annotations string) string {
		return fmt.Sprintf("kind: Service\nmetadata: {name: web, namespace: shop, labels: {%s}, annotations: {%s}}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}\n", labels, annotations)
	}
	expect("not named", false)
	parse(service("istio.io/use-waypoint: w, istio.io/use-waypoint-canary: v", `istio.io/use-waypoint-canary-weight: "7"`))
	expect("named", true)
	parse(service("istio.io/use-waypoint: w, istio.io/use-waypoint-canary: v", "istio.io/use-waypoint-canary-weight: much"))
	expect("with a weight that is none", false)
	parse(service("", "") + `---
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-canary: v}}
`)
	expect("named by the namespace", true)
	s.Delete(cluster.KindGateway, gateway)
	s.Flush()
	expect("gone", false)
	parse(canary)
	expect("back", true)
	parse(service("istio.io/use-waypoint: w", ""))
	expect("not the service's own", false)
}

// TestLinger: a service that leaves its waypoint is known there for a while, as it is then, and goes at the second sweep; one that
// comes back stays, and one that goes to another waypoint is known to both.
func TestLinger(t *testing.T) {
	s := New(mesh)
	s.views.linger = true
	objects, err := clustertest.Parse([]byte(shop + `
---
kind: Gateway
metadata: {name: v, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		s.Upsert(o)
	}
	const table = "inbound-vip|80|http|web.shop.svc.cluster.local"
	has := func(gateway string) bool {
		v := s.views.of[cluster.Key{Namespace: "shop", Name: gateway}]
		return v != nil && v.told[resource.Name{Type: resource.Routes, Name: table}] != ""
	}
	i := slices.IndexFunc(objects, func(o cluster.Object) bool {
		return o.ObjectKey().Name == "web" && o.ObjectKind() == cluster.KindService
	})
	use := func(gateway string) {
		web := *objects[i].(*cluster.Service)
		web.Waypoint.Name = gateway
		s.Upsert(&web)
		s.Flush()
	}
	expect := func(what string, w, v, leaving bool) {
		t.Helper()
		if has("w") != w || has("v") != v || s.Leaving() != leaving {
			t.Errorf("%s: known to w %t, want %t; to v %t, want %t; something leaves %t, want %t", what, has("w"), w, has("v"), v, s.Leaving(), leaving)
		}
	}
	use("w")
	expect("bound", true, false, false)
	use("none")
	expect("left", true, false, true)
	s.Sweep()
	s.Flush()
	expect("swept once", true, false, true)
	route, err := clustertest.Parse([]byte(strings.ReplaceAll(webRoute, "rules: [{", "rules: [{matches: [{path: {value: /v2}}], ")))
	if err != nil {
		t.Fatal(err)
	}
	s.Upsert(route[0])
	if step := told(s.Flush()); !slices.Contains(step, "RouteConfiguration "+table) {
		t.Errorf("while it leaves its waypoint is told %q", step)
	}
	use("w")
	s.Sweep()
	s.Flush()
	expect("came back", true, false, false)
	use("v")
	expect("went to another", true, true, true)
	s.Sweep()
	s.Sweep()
	s.Flush()
	expect("swept twice", false, true, false)
	use("none")
	s.Delete(cluster.KindGateway, cluster.Key{Namespace: "shop", Name: "v"})
	s.Flush()
	expect("the waypoint is gone", false, false, false)
}

// TestNameChangesHands: a host that goes from a service to a ServiceEntry, and back, keeps its endpoints in whatever order the two
// are looked at.
func TestNameChangesHands(t *testing.T) {
	objects, err := clustertest.Parse([]byte(shop + `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: w}}
spec: {hosts: [web.shop.svc.cluster.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {app: web}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(objects, func(o cluster.Object) bool {
		return o.ObjectKey().Name == "web" && o.ObjectKind() == cluster.KindService
	})
	for range 20 {
		s, m := New(mesh), viewModel{}
		all := slices.Clone(objects)
		for _, o := range all {
			s.Upsert(o)
		}
		m.apply(t, s.Flush().Views)
		checkViews(t, m, snapshot(s, all))
		for _, external := range []bool{true, false} {
			web := *objects[i].(*cluster.Service)
			web.External = external
			all[i] = &web
			s.Upsert(&web)
			m.apply(t, s.Flush().Views)
			checkViews(t, m, snapshot(s, all))
		}
	}
}

// TestViewSteps: a waypoint is told what hangs on a change and nothing else.
func TestViewSteps(t *testing.T) {
	parse := func(text string) cluster.Object {
		objects, err := clustertest.Parse([]byte(text))
		if err != nil || len(objects) != 1 {
			t.Fatalf("%d objects, error %v", len(objects), err)
		}
		return objects[0]
	}
	s := New(mesh)
	objects, err := clustertest.Parse([]byte(shop))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		s.Upsert(o)
	}
	const v2, web, table = "outbound|80||web-v2.shop.svc.cluster.local", "outbound|80||web.shop.svc.cluster.local", "inbound-vip|80|http|web.shop.svc.cluster.local"
	if first := told(s.Flush()); !slices.Contains(first, "RouteConfiguration "+table) || !slices.Contains(first, "Cluster "+v2) || !slices.Contains(first, "Listener main_internal") {
		t.Fatalf("first told %q", first)
	}
	service, pod, route := cluster.Key{Namespace: "shop", Name: "web-v2"}, cluster.Key{Namespace: "shop", Name: "web-1"}, cluster.Key{Namespace: "shop", Name: "web"}
	for _, step := range []struct {
		what string
		do   func()
		want []string
	}{
		{"an endpoint is not ready", func() { s.Upsert(parse(strings.ReplaceAll(webPod, "True", "False"))) }, []string{"ClusterLoadAssignment " + v2, "ClusterLoadAssignment " + web}},
		{"an endpoint of one backend only", func() { s.Upsert(parse(strings.ReplaceAll(webPod, ", version: v2", ""))) }, []string{"ClusterLoadAssignment " + web}},
		{"a pod of no service", func() { s.Upsert(parse(strings.ReplaceAll(strings.ReplaceAll(webPod, "web", "cron"), "0.1", "0.9"))) }, nil},
		{"a rule of a route", func() {
			s.Upsert(parse(strings.ReplaceAll(webRoute, "rules: [{", "rules: [{matches: [{path: {value: /v2}}], ")))
		}, []string{"RouteConfiguration " + table}},
		{"a backend goes", func() { s.Delete(cluster.KindService, service) }, []string{"-Cluster " + v2, "-ClusterLoadAssignment " + v2, "RouteConfiguration " + table}},
		{"a backend comes", func() { s.Upsert(parse(webV2)) }, []string{"Cluster " + v2, "ClusterLoadAssignment " + v2, "RouteConfiguration " + table}},
		{"an endpoint goes", func() { s.Delete(cluster.KindPod, pod) }, []string{"ClusterLoadAssignment " + web}},
		{"the route goes", func() { s.Delete(cluster.KindHTTPRoute, route) }, []string{"-Cluster " + v2, "-ClusterLoadAssignment " + v2, "RouteConfiguration " + table}},
		{"a policy comes", func() { s.Upsert(parse(policyOf("Service", "", "web"))) }, []string{"Listener main_internal"}},
		{"it is the same", func() { s.Upsert(parse(policyOf("Service", "", "web"))) }, nil},
		{"it is for a service that has no waypoint", func() { s.Upsert(parse(policyOf("Service", "", "web-v2"))) }, []string{"Listener main_internal"}},
		{"it is for one that is not there", func() { s.Upsert(parse(policyOf("Service", "", "none"))) }, nil},
		{"it is for the waypoint", func() { s.Upsert(parse(policyOf("Gateway", "gateway.networking.k8s.io", "w"))) }, []string{"Listener main_internal"}},
		{"it is for another waypoint", func() { s.Upsert(parse(policyOf("Gateway", "gateway.networking.k8s.io", "v"))) }, []string{"Listener main_internal"}},
		{"it is for all waypoints, which it cannot be in its namespace", func() {
			s.Upsert(parse(policyOf("GatewayClass", "gateway.networking.k8s.io", "istio-waypoint")))
		}, nil},
		{"it is for all waypoints", func() {
			s.Upsert(parse(strings.ReplaceAll(policyOf("GatewayClass", "gateway.networking.k8s.io", "istio-waypoint"), "namespace: shop", "namespace: istio-system")))
		}, []string{"Listener main_internal"}},
		{"that goes", func() {
			s.Delete(cluster.KindAuthorizationPolicy, cluster.Key{Namespace: "istio-system", Name: "p"})
		}, []string{"Listener main_internal"}},
		{"a policy wants somebody asked whom nobody knows", func() { s.Upsert(parse(askFor)) }, []string{"Listener main_internal"}},
		{"that is known now", func() {
			m := s.Mesh()
			m.Providers = providers("web-v2.shop.svc.cluster.local", "")
			s.SetMesh(m)
		}, []string{"Cluster " + v2, "ClusterLoadAssignment " + v2, "Listener main_internal"}},
		{"it goes", func() { s.Delete(cluster.KindService, service) }, []string{"-Cluster " + v2, "-ClusterLoadAssignment " + v2, "Listener main_internal"}},
		{"it comes back", func() { s.Upsert(parse(webV2)) }, []string{"Cluster " + v2, "ClusterLoadAssignment " + v2, "Listener main_internal"}},
		{"nobody is asked", func() {
			s.Delete(cluster.KindAuthorizationPolicy, cluster.Key{Namespace: "shop", Name: "ask"})
		}, []string{"-Cluster " + v2, "-ClusterLoadAssignment " + v2, "Listener main_internal"}},
		{"a service leaves", func() { s.Delete(cluster.KindService, route) }, []string{"-Cluster " + web, "-ClusterLoadAssignment " + web, "-RouteConfiguration " + table, "Listener main_internal"}},
		{"the waypoint goes", func() { s.Delete(cluster.KindGateway, cluster.Key{Namespace: "shop", Name: "w"}) }, []string{"gone shop/w"}},
	} {
		step.do()
		if diff := cmp.Diff(step.want, told(s.Flush())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.what, diff)
		}
	}
}

// TestReplicas: a waypoint is told of its own pods, by which its replicas know where they run, and of no others.
func TestReplicas(t *testing.T) {
	s := New(mesh)
	parse := func(text string) []cluster.Object {
		t.Helper()
		objects, err := clustertest.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return objects
	}
	for _, o := range parse(`
kind: Pod
metadata: {name: w-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: w}}
spec: {nodeName: n1}
status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: "True"}]}
---
kind: Pod
metadata: {name: v-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: v}}
spec: {nodeName: n1}
status: {podIP: 10.1.0.2, conditions: [{type: Ready, status: "True"}]}
---
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r1}}
`) {
		s.Upsert(o)
	}
	step := func(what string, want ...string) {
		t.Helper()
		got := slices.DeleteFunc(told(s.Flush()), func(line string) bool { return !strings.Contains(line, "Address") })
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	step("without a waypoint")
	for _, o := range parse(shop) {
		s.Upsert(o)
	}
	step("with one", "Address Kubernetes//Pod/shop/w-1")
	for _, o := range parse(`{kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/region: r2}}}`) {
		s.Upsert(o)
	}
	step("its node is elsewhere", "Address Kubernetes//Pod/shop/w-1")
	s.Delete(cluster.KindPod, cluster.Key{Namespace: "shop", Name: "w-1"})
	step("its pod is gone", "-Address Kubernetes//Pod/shop/w-1")
}

// TestResidents: a waypoint that is for workloads is told of those that are bound to it, also of one that has left, until the second
// sweep; of one that is gone it is told at once.
func TestResidents(t *testing.T) {
	s := New(mesh)
	s.views.linger = true
	parse := func(text string) {
		t.Helper()
		objects, err := clustertest.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			s.Upsert(o)
		}
	}
	step := func(what string, want ...string) {
		t.Helper()
		got := slices.DeleteFunc(told(s.Flush()), func(line string) bool {
			return !strings.Contains(line, "Address") && !strings.Contains(line, "encap") && !strings.Contains(line, "direct-http")
		})
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	gateway := func(traffic string) {
		parse(`{kind: Gateway, metadata: {name: w, namespace: shop, labels: {istio.io/waypoint-for: ` + traffic + `}},
			spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}`)
	}
	pod := func(name, use string) {
		parse(`{kind: Pod, metadata: {name: ` + name + `, namespace: shop, labels: {istio.io/use-waypoint: ` + use + `}}, status: {podIP: 10.1.0.9}}`)
	}
	const at, machine = "Address Kubernetes//Pod/shop/p", "Address Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"
	parse(shop)
	parse(`{kind: WorkloadEntry, metadata: {name: vm, namespace: shop, labels: {istio.io/use-waypoint: w}}, spec: {address: 10.3.0.1}}`)
	gateway("service")
	pod("p", "w")
	step("a waypoint for services")
	gateway("workload")
	step("for workloads", at, machine, "Cluster encap", "RouteConfiguration direct-http")
	pod("p", "none")
	step("left")
	s.Sweep()
	step("swept once")
	pod("p", "w")
	step("back")
	s.Sweep()
	s.Sweep()
	step("swept when nothing leaves")
	pod("p", "none")
	step("left again")
	s.Sweep()
	s.Sweep()
	step("swept twice", "-"+at)
	s.Delete(cluster.KindWorkloadEntry, cluster.Key{Namespace: "shop", Name: "vm"})
	step("gone", "-"+machine)
	gateway("service")
	step("for services again")
	s.Sweep()
	s.Sweep()
	step("and swept", "-Cluster encap", "-RouteConfiguration direct-http")
	if s.Leaving() {
		t.Error("something is still leaving")
	}
}

func (w world) backendTraffic() cluster.Object {
	p := &cluster.BackendTrafficPolicy{Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3))}
	for range 1 + w.IntN(2) {
		p.Targets = append(p.Targets, cluster.PolicyTarget{Ref: w.ref()})
	}
	if w.IntN(6) > 0 {
		p.Retries = &cluster.RetryConstraint{Percent: w.IntN(100), Interval: time.Second, Count: uint32(w.IntN(3)), CountInterval: time.Second}
	}
	if w.IntN(6) == 0 {
		p.Faults = []string{"a fault"}
	}
	return p
}
