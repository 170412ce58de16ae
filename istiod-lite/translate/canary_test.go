package translate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// canaries is a cluster with waypoints, and services that want to share their traffic between two of them.
const canaries = `
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
kind: Gateway
metadata: {name: one, namespace: shop}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.1}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Gateway
metadata: {name: two, namespace: shop}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.2}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Gateway
metadata: {name: open, namespace: infra}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.3}], listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}
---
kind: Gateway
metadata: {name: closed, namespace: infra}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.4}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Gateway
metadata: {name: young, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Gateway
metadata: {name: pods, namespace: shop, labels: {istio.io/waypoint-for: workload}}
spec: {gatewayClassName: istio-waypoint, addresses: [{type: IPAddress, value: 10.9.0.5}], listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: one, istio.io/use-waypoint-canary: two}, annotations: {istio.io/use-waypoint-canary-weight: "10"}}
`

// TestCanary: a second waypoint gets its share of what takes the first. One that cannot be used gets nothing, which is told, and the first
// goes on.
func TestCanary(t *testing.T) {
	for _, tc := range []struct{ name, labels, annotations, shares, status string }{
		{"inherits", "", "", "1:90 2:10", "True WaypointAccepted"},
		{"own-primary", "istio.io/use-waypoint: one", "", "", "True WaypointAccepted"},
		{"own-canary", "istio.io/use-waypoint-canary: open, istio.io/use-waypoint-canary-namespace: infra", `istio.io/use-waypoint-canary-weight: "25"`, "1:75 3:25", "True WaypointAccepted"},
		{"all-of-it", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: two", `istio.io/use-waypoint-canary-weight: "100"`, "1:0 2:100", "True WaypointAccepted"},
		{"no-weight", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: two", "", "1:100 2:0", "True WaypointAccepted"},
		{"words", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: two", "istio.io/use-waypoint-canary-weight: ten", "", "False CanaryInvalidWeight"},
		{"too-much", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: two", `istio.io/use-waypoint-canary-weight: "101"`, "", "False CanaryInvalidWeight"},
		{"same", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: one", `istio.io/use-waypoint-canary-weight: "5"`, "", "False CanarySameAsPrimary"},
		{"nobody", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: nobody", `istio.io/use-waypoint-canary-weight: "5"`, "", "False WaypointIsNotReady"},
		{"young", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: young", `istio.io/use-waypoint-canary-weight: "5"`, "", "False WaypointIsNotReady"},
		{"denied", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: closed, istio.io/use-waypoint-canary-namespace: infra", `istio.io/use-waypoint-canary-weight: "5"`, "", "False AttachmentDenied"},
		{"for-pods", "istio.io/use-waypoint: one, istio.io/use-waypoint-canary: pods", `istio.io/use-waypoint-canary-weight: "5"`, "", "False UnsupportedTrafficType"},
		{"none", "istio.io/use-waypoint: none", "", "-", ""},
		{"primary-young", "istio.io/use-waypoint: young, istio.io/use-waypoint-canary: two", `istio.io/use-waypoint-canary-weight: "5"`, "-", "False WaypointIsNotReady"},
	} {
		for _, kind := range []string{
			"kind: Service\nmetadata: {name: web, namespace: shop, labels: {%s}, annotations: {%s}}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}",
			"kind: ServiceEntry\nmetadata: {name: web, namespace: shop, labels: {%s}, annotations: {%s}}\nspec: {hosts: [a.example], addresses: [10.96.0.1], resolution: STATIC, ports: [{name: http, number: 80}]}",
		} {
			objects, err := clustertest.Parse([]byte(canaries + "---\n" + fmt.Sprintf(kind, tc.labels, tc.annotations)))
			if err != nil {
				t.Fatal(err)
			}
			out := translate.All(clustertest.Snapshot(mesh, objects))
			for _, a := range out.Addresses {
				svc := a.GetService()
				if svc == nil {
					continue
				}
				var shares []string
				for _, w := range svc.WeightedWaypoints {
					shares = append(shares, fmt.Sprintf("%d:%d", w.Destination.GetAddress().GetAddress()[3], w.Weight))
				}
				got := strings.Join(shares, " ")
				switch {
				case svc.Waypoint == nil:
					got = "-"
				case !slices.Equal(svc.Waypoint.GetAddress().GetAddress(), []byte{10, 9, 0, 1}):
					t.Errorf("%s: those who know nothing of shares are sent to %v", tc.name, svc.Waypoint)
				}
				if got != tc.shares {
					t.Errorf("%s %.12s: shares %q, want %q", tc.name, kind, got, tc.shares)
				}
			}
			said := ""
			for _, s := range out.Statuses {
				if s.Type == api.ConditionWaypointBound && s.Key.Name == "web" {
					said = s.Want.Status + " " + s.Want.Reason
				}
			}
			if said != tc.status {
				t.Errorf("%s %.12s: said %q, want %q", tc.name, kind, said, tc.status)
			}
		}
	}
}

// TestCanaryRequired: where a waypoint is required, the pods let the canary in too, and nobody else.
func TestCanaryRequired(t *testing.T) {
	objects, err := clustertest.Parse([]byte(canaries + `
---
kind: Service
metadata: {name: web, namespace: shop, annotations: {ambit.io/waypoint-required: "true"}}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range translate.All(clustertest.Snapshot(mesh, objects)).Authorizations {
		if a.Name == "waypoint_required_web" && a.Action == security.Action_DENY {
			for _, p := range a.Rules[0].Clauses[0].Matches[0].NotPrincipals {
				names = append(names, p.GetExact())
			}
		}
	}
	if diff := cmp.Diff([]string{"cluster.local/ns/shop/sa/one", "cluster.local/ns/shop/sa/two"}, names); diff != "" {
		t.Errorf("let in (-want +got):\n%s", diff)
	}
}
