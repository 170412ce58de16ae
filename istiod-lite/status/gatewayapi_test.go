package status

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

const now = "2026-11-23T12:00:00Z"

func said(conditions []cluster.Condition) map[string]string {
	out := map[string]string{}
	for _, c := range conditions {
		out[c.Type] = c.Status + " " + c.Reason
		if c.Generation != 3 || c.Message == "" {
			out[c.Type] += fmt.Sprintf(" (generation %d, message %q)", c.Generation, c.Message)
		}
	}
	return out
}

// hbone is a waypoint's listener.
var hbone = cluster.Listener{Name: "mesh", Port: 15008, Protocol: "HBONE"}

// gateway is a waypoint that is ready, and has these listeners.
func gateway(ls ...cluster.Listener) state.Gateway {
	return state.Gateway{Key: cluster.Key{Namespace: "shop", Name: "w"}, WaypointInput: translate.WaypointInput{
		Gateway:    &cluster.Gateway{Key: cluster.Key{Namespace: "shop", Name: "w"}, Generation: 3, Listeners: ls},
		Class:      &cluster.GatewayClass{Controller: api.ControllerWaypoint},
		Service:    &cluster.Service{Gateway: "w", ClusterIPs: []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.96.0.1")}},
		Deployment: &cluster.Deployment{Gateway: "w", Replicas: 2, Ready: 1},
	}}
}

func judge(in state.Gateway) *body {
	in.Waypoint = translate.WaypointOf(translate.Mesh{ClusterDomain: "cluster.local"}, in.WaypointInput)
	return gatewayBody(in)
}

// TestGatewayBody: what a waypoint's Gateway and its listeners say.
func TestGatewayBody(t *testing.T) {
	ready := judge(gateway(hbone))
	if diff := cmp.Diff(map[string]string{"Accepted": "True Accepted", "Programmed": "True Programmed", "ResolvedRefs": "True ResolvedRefs"}, said(ready.conditions)); diff != "" {
		t.Errorf("ready (-want +got):\n%s", diff)
	}
	want := []any{
		map[string]any{"type": "Hostname", "value": "w.shop.svc.cluster.local"},
		map[string]any{"type": "IPAddress", "value": "10.96.0.1"}, map[string]any{"type": "IPAddress", "value": "fd00::1"},
	}
	if diff := cmp.Diff(want, ready.addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"Accepted": "True Accepted", "Programmed": "True Programmed", "ResolvedRefs": "True ResolvedRefs", "Conflicted": "False NoConflicts"},
		said(ready.listeners[0].conditions)); diff != "" {
		t.Errorf("listener (-want +got):\n%s", diff)
	}

	with := func(in state.Gateway, change func(*state.Gateway)) state.Gateway {
		change(&in)
		return in
	}
	pending := with(gateway(hbone), func(in *state.Gateway) { in.Deployment = nil })
	odd := func(name string) cluster.Listener { return cluster.Listener{Name: name, Port: 80, Protocol: "HTTP"} }
	parameters := func(in *state.Gateway) {
		in.Fault.Parameters, in.Fault.Message = true, "ConfigMap overlay is not there"
	}
	const good, waits, broken = "True Accepted, True Programmed, True ResolvedRefs, False NoConflicts", "True Accepted, False Pending, True ResolvedRefs, False NoConflicts",
		"False UnsupportedProtocol, False Invalid, True ResolvedRefs, False NoConflicts"
	for name, tc := range map[string]struct {
		in                   state.Gateway
		accepted, programmed string
		listeners            []string // Accepted, Programmed, ResolvedRefs and Conflicted
	}{
		"not deployed yet": {pending, "True Accepted", "False Pending", []string{waits}},
		"cannot be deployed": {with(pending, func(in *state.Gateway) { in.Fault.Message = "Service w is there already" }),
			"True Accepted", "False Invalid", []string{waits}},
		"no address": {with(pending, func(in *state.Gateway) { in.Service = &cluster.Service{Gateway: "w"} }), "True Accepted", "False AddressNotAssigned", []string{waits}},
		"odd kind of traffic": {with(gateway(hbone), func(in *state.Gateway) { in.Gateway.WaypointFor = "services" }),
			"False Invalid", "False Invalid", []string{waits}},
		"cannot be read":            {with(gateway(hbone), func(in *state.Gateway) { in.Gateway.Faults = []string{"spec.tomorrow is not known"} }), "False Invalid", "False Invalid", []string{waits}},
		"bad parameters":            {with(pending, parameters), "False InvalidParameters", "False Invalid", []string{waits}},
		"bad parameters since then": {with(gateway(hbone), parameters), "False InvalidParameters", "True Programmed", []string{good}},
		"no tunnel listener":        {gateway(odd("http")), "False ListenersNotValid", "False Invalid", []string{broken}},
		"one listener is odd":       {gateway(hbone, odd("http")), "True ListenersNotValid", "True Programmed", []string{good, broken}},
		"odd route kinds": {gateway(cluster.Listener{Name: "mesh", Port: 15008, Protocol: "HBONE", Kinds: []string{"example.com/Foo", gatewayv1.GroupName + "/HTTPRoute"}}),
			"True Accepted", "True Programmed", []string{"True Accepted, True Programmed, False InvalidRouteKinds, False NoConflicts"}},
		"two that take tunnels": {gateway(hbone, cluster.Listener{Name: "more", Port: 15008, Protocol: "HBONE"}), "True Accepted", "True Programmed",
			[]string{good, "False PortUnavailable, False Invalid, True ResolvedRefs, True ProtocolConflict"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := judge(tc.in)
			got := said(b.conditions)
			if want := map[string]string{"Accepted": tc.accepted, "Programmed": tc.programmed, "ResolvedRefs": "True ResolvedRefs"}; !maps.Equal(got, want) {
				t.Errorf("says %v, want %v", got, want)
			}
			var listeners []string
			for _, l := range b.listeners {
				is := said(l.conditions)
				listeners = append(listeners, strings.Join([]string{is["Accepted"], is["Programmed"], is["ResolvedRefs"], is["Conflicted"]}, ", "))
			}
			if diff := cmp.Diff(tc.listeners, listeners); diff != "" {
				t.Errorf("listeners (-want +got):\n%s", diff)
			}
			if (len(b.addresses) > 0) != (tc.programmed == "True Programmed") {
				t.Errorf("addresses %v", b.addresses)
			}
		})
	}
}

// TestSupportedKinds: a listener takes all kinds of routes that there are for services, or those of them that it allows.
func TestSupportedKinds(t *testing.T) {
	for kinds, want := range map[string][]string{"": {"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"}, "TLSRoute UDPRoute": {"TLSRoute"}, "UDPRoute": nil} {
		l := hbone
		for kind := range strings.FieldsSeq(kinds) {
			l.Kinds = append(l.Kinds, gatewayv1.GroupName+"/"+kind)
		}
		var got []string
		for _, k := range judge(gateway(l)).listeners[0].kinds {
			got = append(got, k.(map[string]any)["kind"].(string))
		}
		if !slices.Equal(got, want) {
			t.Errorf("a listener for %q supports the kinds %v, want %v", kinds, got, want)
		}
	}
}

// TestOthersGateways: a Gateway for ingress is told that nobody deploys it; one of another controller is none of ours.
func TestOthersGateways(t *testing.T) {
	ingress := gateway(hbone)
	ingress.Class = &cluster.GatewayClass{Controller: api.ControllerIngress}
	if b := judge(ingress); b == nil || !b.yielding || !maps.Equal(said(b.conditions), map[string]string{"Accepted": "False Pending", "Programmed": "False Pending"}) {
		t.Errorf("a Gateway for ingress says %+v", b)
	}
	foreign := gateway(hbone)
	foreign.Class = &cluster.GatewayClass{Controller: "example.com/x"}
	if b := judge(foreign); b != nil {
		t.Errorf("another controller's Gateway is answered: %+v", b)
	}
}

// TestClassAndMesh: what the objects say that stand for the mesh.
func TestClassAndMesh(t *testing.T) {
	class := &cluster.GatewayClass{Name: "c", Generation: 3, Controller: api.ControllerWaypoint}
	for bundle, want := range map[string]string{
		"v1.7.0": "True SupportedVersion", "v1.5.1": "True SupportedVersion", "v1.8.0": "False UnsupportedVersion", "v2.0.0": "False UnsupportedVersion", "": "False UnsupportedVersion",
	} {
		if got := said(classBody(state.Class{Class: class, Bundle: bundle}).conditions); got["SupportedVersion"] != want || got["Accepted"] != "True Accepted" {
			t.Errorf("definitions of %q: %v", bundle, got)
		}
	}
	ingress := &cluster.GatewayClass{Name: "istio", Generation: 3, Controller: api.ControllerIngress}
	if b := classBody(state.Class{Class: ingress}); b == nil || !b.yielding || said(b.conditions)["Accepted"] != "False Unsupported" {
		t.Errorf("the class of ingress gateways says %+v", b)
	}
	class.Parameters = true
	if got := said(classBody(state.Class{Class: class, Bundle: "v1.7.0"}).conditions); got["Accepted"] != "False InvalidParameters" {
		t.Errorf("with parameters: %v", got)
	}
	class.Parameters, class.Faults = false, []string{"spec.tomorrow is not known"}
	if got := said(classBody(state.Class{Class: class, Bundle: "v1.7.0"}).conditions); got["Accepted"] != "False Unsupported" {
		t.Errorf("a class that cannot be read: %v", got)
	}
	asking := meshBody(state.Mesh{Mesh: &cluster.Mesh{Name: "ambit", Generation: 3, Controller: api.ControllerMesh, Parameters: "ConfigMap x/y"}}, Instance{"v9", "istio-system"})
	if diff := cmp.Diff(map[string]string{"Accepted": "False InvalidParameters", "Programmed": "False Invalid"}, said(asking.conditions)); diff != "" {
		t.Errorf("a mesh with parameters (-want +got):\n%s", diff)
	}
	mesh := meshBody(state.Mesh{Mesh: &cluster.Mesh{Name: "ambit", Generation: 3, Controller: api.ControllerMesh}}, Instance{"v9", "istio-system"})
	if diff := cmp.Diff(map[string]string{"Accepted": "True Accepted", "Programmed": "True Programmed"}, said(mesh.conditions)); diff != "" {
		t.Errorf("mesh (-want +got):\n%s", diff)
	}
	for _, word := range []string{"ambit", "v9", "istio-system"} {
		if !slices.ContainsFunc(mesh.conditions, func(c cluster.Condition) bool { return c.Type == "Accepted" && strings.Contains(c.Message, word) }) {
			t.Errorf("the mesh does not name %s", word)
		}
	}
	if !slices.IsSorted(mesh.features) || len(mesh.features) != 17 || !slices.Contains(mesh.features, "MeshConsumerRoute") {
		t.Errorf("features %v", mesh.features)
	}
	for _, m := range []*cluster.Mesh{nil, {Controller: "example.com/other"}} {
		if b := meshBody(state.Mesh{Mesh: m}, Instance{}); b != nil {
			t.Errorf("%+v is answered", m)
		}
	}
}

// TestMerge: what others wrote stays as it is, fields that this release does not know included, and nothing is written twice.
func TestMerge(t *testing.T) {
	const then = "2026-01-01T00:00:00Z"
	theirs := func() map[string]any {
		return map[string]any{"type": "example.com/Mine", "status": "True", "tomorrow": int64(1)}
	}
	ours := func(typ, value, since string) map[string]any {
		return map[string]any{"type": typ, "status": value, "reason": "R", "message": "m", "observedGeneration": int64(3), "lastTransitionTime": since}
	}
	is := func(typ, value string) cluster.Condition {
		return cluster.Condition{Type: typ, Status: value, Reason: "R", Message: "m", Generation: 3}
	}
	group := gatewayv1.Group("")
	port := gatewayv1.PortNumber(80)
	ref := gatewayv1.ParentReference{Group: &group, Name: "web", Port: &port}
	asRef := map[string]any{"group": "", "name": "web", "port": int64(80)}
	for name, tc := range map[string]struct {
		status map[string]any
		body   body
		want   map[string]any
	}{
		"first": {nil, body{conditions: []cluster.Condition{is("Accepted", "True")}}, map[string]any{"conditions": []any{ours("Accepted", "True", now)}}},
		"already there": {map[string]any{"conditions": []any{theirs(), ours("Accepted", "True", then)}},
			body{conditions: []cluster.Condition{is("Accepted", "True")}}, map[string]any{}},
		"another message": {map[string]any{"conditions": []any{theirs(), map[string]any{"type": "Accepted", "status": "True", "lastTransitionTime": then, "tomorrow": "x"}}},
			body{conditions: []cluster.Condition{is("Accepted", "True")}}, map[string]any{"conditions": []any{theirs(), func() map[string]any {
				m := ours("Accepted", "True", then)
				m["tomorrow"] = "x"
				return m
			}()}}},
		"a transition": {map[string]any{"conditions": []any{ours("Accepted", "True", then)}},
			body{conditions: []cluster.Condition{is("Accepted", "False")}}, map[string]any{"conditions": []any{ours("Accepted", "False", now)}}},
		"judged by others": {map[string]any{"conditions": []any{map[string]any{"type": "Accepted", "status": "True", "message": "mine"}}},
			body{yielding: true, conditions: []cluster.Condition{is("Accepted", "False")}}, map[string]any{}},
		"judged by nobody": {map[string]any{"conditions": []any{map[string]any{"type": "Accepted", "status": "Unknown", "message": "Waiting"}}},
			body{yielding: true, conditions: []cluster.Condition{is("Accepted", "False")}}, map[string]any{"conditions": []any{ours("Accepted", "False", now)}}},
		"addresses go": {map[string]any{"addresses": []any{"x"}}, body{addresses: []any{}}, map[string]any{"addresses": []any{}}},
		"a listener": {map[string]any{"listeners": []any{
			map[string]any{"name": "gone"}, map[string]any{"name": "mesh", "attachedRoutes": int64(0), "tomorrow": "x", "conditions": []any{theirs()}}}},
			body{listeners: []listener{{name: "mesh", kinds: []any{}, conditions: []cluster.Condition{is("Accepted", "True")}}}},
			map[string]any{"listeners": []any{map[string]any{"name": "mesh", "attachedRoutes": int64(0), "tomorrow": "x", "supportedKinds": []any{},
				"conditions": []any{theirs(), ours("Accepted", "True", now)}}}}},
		"features": {map[string]any{"supportedFeatures": []any{map[string]any{"name": "B", "tomorrow": "x"}, map[string]any{"name": "C"}}},
			body{features: []string{"A", "B"}}, map[string]any{"supportedFeatures": []any{map[string]any{"name": "A"}, map[string]any{"name": "B", "tomorrow": "x"}}}},
		"parents": {map[string]any{"parents": []any{
			map[string]any{"controllerName": "example.com/edge", "parentRef": asRef},
			map[string]any{"controllerName": "istio.io/mesh-controller", "parentRef": map[string]any{"name": "left"}},
			map[string]any{"controllerName": "istio.io/mesh-controller", "parentRef": asRef, "conditions": []any{ours("PartiallyInvalid", "True", then), theirs()}}}},
			body{controller: "istio.io/mesh-controller", entries: routeEntries, parents: []cluster.ParentStatus{{Ref: ref, Conditions: []cluster.Condition{is("Accepted", "True")}}, {Ref: gatewayv1.ParentReference{Name: "new"}}}},
			map[string]any{"parents": []any{
				map[string]any{"controllerName": "example.com/edge", "parentRef": asRef},
				map[string]any{"controllerName": "istio.io/mesh-controller", "parentRef": asRef, "conditions": []any{theirs(), ours("Accepted", "True", now)}},
				map[string]any{"controllerName": "istio.io/mesh-controller", "parentRef": map[string]any{"name": "new"}, "conditions": []any{}}}}},
		"ancestors": {map[string]any{"ancestors": []any{map[string]any{"controllerName": "example.com/edge", "ancestorRef": asRef}}},
			body{controller: "istio.io/mesh-controller", entries: policyEntries, parents: []cluster.ParentStatus{{Ref: ref, Conditions: []cluster.Condition{is("Accepted", "True")}}}},
			map[string]any{"ancestors": []any{
				map[string]any{"controllerName": "example.com/edge", "ancestorRef": asRef},
				map[string]any{"controllerName": "istio.io/mesh-controller", "ancestorRef": asRef, "conditions": []any{ours("Accepted", "True", now)}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.body.merge(tc.status, now)
			if got == nil {
				got = map[string]any{}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("written (-want +got):\n%s", diff)
			}
		})
	}
}
