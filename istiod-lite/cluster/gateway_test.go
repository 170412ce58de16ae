package cluster_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
)

func parse[T cluster.Object](t *testing.T, text string) T {
	t.Helper()
	objects, err := clustertest.Parse([]byte(text))
	if err != nil || len(objects) != 1 {
		t.Fatalf("%d objects, error %v", len(objects), err)
	}
	return objects[0].(T)
}

// TestGateway: a Gateway of a newer definition is read, and one that cannot be read binds nobody.
func TestGateway(t *testing.T) {
	g := parse[*cluster.Gateway](t, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, generation: 3, labels: {istio.io/waypoint-for: all, istio.io/rev: canary}}
spec:
  gatewayClassName: istio-waypoint
  fieldOfTomorrow: {a: 1}
  infrastructure: {labels: {team: x}, parametersRef: {group: "", kind: ConfigMap, name: overlay}}
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: team, operator: In, values: [a, b]}]}}}}
  - {name: other, port: 80, protocol: HTTP}
status: {addresses: [{type: Hostname, value: x}]}
`)
	if len(g.Faults) > 0 || !g.Programmed || g.Generation != 3 || g.Class != "istio-waypoint" || g.WaypointFor != "all" || g.Revision != "canary" ||
		g.Labels["team"] != "x" || g.Parameters == nil || g.Parameters.Name != "overlay" || len(g.Listeners) != 2 {
		t.Fatalf("read as %+v", g)
	}
	for _, tc := range []struct {
		listener  int
		namespace string
		labels    map[string]string
		want      bool
	}{
		{0, "other", map[string]string{"team": "b"}, true},
		{0, "other", map[string]string{"team": "c"}, false},
		{0, "shop", nil, false},
		{1, "shop", nil, true},
		{1, "other", nil, false},
	} {
		if got := g.Listeners[tc.listener].Admits("shop", tc.namespace, cluster.LabelsOf(tc.labels)); got != tc.want {
			t.Errorf("listener %d admits namespace %s %v: %t, want %t", tc.listener, tc.namespace, tc.labels, got, tc.want)
		}
	}
	if broken := parse[*cluster.Gateway](t, "{kind: Gateway, metadata: {name: g, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: 1}}"); len(broken.Faults) != 1 || len(broken.Listeners) > 0 {
		t.Errorf("a Gateway that cannot be read is read as %+v", broken)
	}
}

// TestWaypointUse: which Gateway an object means.
func TestWaypointUse(t *testing.T) {
	svc := parse[*cluster.Service](t, `
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra}}
status: {conditions: [{type: istio.io/WaypointBound, status: "True", reason: WaypointAccepted, message: m, lastTransitionTime: null}]}
`)
	if key, ok := svc.Waypoint.Key("shop"); !ok || key != (cluster.Key{Namespace: "infra", Name: "w"}) {
		t.Errorf("service means %v, %t", key, ok)
	}
	if diff := cmp.Diff(cluster.Condition{Type: "istio.io/WaypointBound", Status: "True", Reason: "WaypointAccepted", Message: "m"}, svc.Bound); diff != "" {
		t.Error(diff)
	}
	own := cluster.UseOf(cluster.LabelsOf(map[string]string{"istio.io/use-waypoint": "w"}))
	if key, ok := own.Key("shop"); !ok || key != (cluster.Key{Namespace: "shop", Name: "w"}) {
		t.Errorf("pod means %v, %t", key, ok)
	}
	for _, ls := range []map[string]string{{"istio.io/use-waypoint": "none"}, {"istio.io/use-waypoint-namespace": "infra"}} {
		if key, ok := cluster.UseOf(cluster.LabelsOf(ls)).Key("shop"); ok {
			t.Errorf("%v means %v, want none", ls, key)
		}
	}
}

// TestDeployment: what is not said of replicas is one.
func TestDeployment(t *testing.T) {
	d := parse[*cluster.Deployment](t, `
kind: Deployment
metadata: {name: waypoint, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {selector: {}, template: {metadata: {}, spec: {containers: []}}}
status: {readyReplicas: 1}
`)
	want := &cluster.Deployment{Key: cluster.Key{Namespace: "shop", Name: "waypoint"}, Gateway: "waypoint", Replicas: 1, Ready: 1}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
}
