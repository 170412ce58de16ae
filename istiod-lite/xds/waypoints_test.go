package xds

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
)

var waypoint = auth.Caller{Namespace: "shop", ServiceAccount: "waypoint", Pod: "waypoint-1", PodUID: "w", Node: "node1"}

// waypointNode is what a waypoint says of itself.
func waypointNode(gateway string) *corev3.Node {
	return &corev3.Node{
		Id: "waypoint~10.0.0.2~waypoint-1.shop~shop.svc.cluster.local",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAMESPACE": structpb.NewStringValue("shop"), "SERVICE_ACCOUNT": structpb.NewStringValue("waypoint"),
			"LABELS": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{api.LabelGatewayName: structpb.NewStringValue(gateway)}}),
		}},
	}
}

// service is what a waypoint is told of a service; mark makes the content another one.
func service(t *testing.T, name, mark string) []*resource.Resource {
	t.Helper()
	metadata := &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{mark: {}}}
	var out []*resource.Resource
	for typ, content := range map[resource.Type]proto.Message{
		resource.Cluster:   &clusterv3.Cluster{Name: name, Metadata: metadata},
		resource.Endpoints: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{Priority: uint32(len(mark))}}},
		resource.Listener:  &listenerv3.Listener{Name: name, Metadata: metadata},
		resource.Routes:    &routev3.RouteConfiguration{Name: name, Metadata: metadata},
	} {
		out = append(out, encode(t, typ, name, content))
	}
	return out
}

func namesOf(rs []*resource.Resource) []resource.Name {
	var out []resource.Name
	for _, r := range rs {
		out = append(out, resource.Name{Type: r.Type, Name: r.Name})
	}
	return out
}

// TestViewOrder: what is named comes before what names it, and goes after it.
func TestViewOrder(t *testing.T) {
	_, waypoints, conn := serveAll(t, func(context.Context) (auth.Caller, error) { return waypoint, nil })
	a, b := service(t, "a", "1"), service(t, "b", "1")
	waypoints.Publish([]resource.View{{Gateway: "shop/waypoint", Account: "shop/waypoint", Upserts: a}})
	c := xdstest.Open(t.Context(), t, conn, waypointNode("waypoint"))
	envoy := []resource.Type{resource.Cluster, resource.Endpoints, resource.Listener, resource.Routes}
	for _, typ := range envoy {
		c.Subscribe(typ, nil)
	}
	for range envoy {
		if got := xdstest.Names(c.NextAck()); !cmp.Equal(got, []string{"a"}) {
			t.Fatalf("first response has %v, want a", got)
		}
	}
	// One step that brings a service and takes another away.
	waypoints.Publish([]resource.View{{Gateway: "shop/waypoint", Account: "shop/waypoint", Upserts: b, Removed: namesOf(a)}})
	type said struct {
		Type  string
		Names []string
	}
	var got []said
	for len(got) < 7 {
		r := c.NextAck()
		typ, _ := resource.TypeOf(r.GetTypeUrl())
		got = append(got, said{typ.String(), xdstest.Names(r)})
	}
	want := []said{
		{"Cluster", []string{"b"}}, {"ClusterLoadAssignment", []string{"b"}}, {"Listener", []string{"b"}}, {"RouteConfiguration", []string{"b", "-a"}},
		{"Listener", []string{"-a"}}, {"ClusterLoadAssignment", []string{"-a"}}, {"Cluster", []string{"-a"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of responses (-want +got):\n%s", diff)
	}
}

// TestViewsApart: a waypoint is told its own view only, by names as stock Envoys ask for endpoints and routes, and a view that goes
// ends its streams.
func TestViewsApart(t *testing.T) {
	hub, waypoints, conn := serveAll(t, func(context.Context) (auth.Caller, error) { return waypoint, nil })
	shared := service(t, "a", "1")
	waypoints.Publish([]resource.View{
		{Gateway: "shop/waypoint", Account: "shop/waypoint", Upserts: shared},
		{Gateway: "other/waypoint", Account: "other/waypoint", Upserts: append(service(t, "secret", "1"), shared...)},
	})
	hub.Publish(resource.Change{Upserts: []*resource.Resource{address(t, "pod", "x")}})
	c := xdstest.Open(t.Context(), t, conn, waypointNode("waypoint"))
	c.Subscribe(resource.Endpoints, nil, "a", "secret")
	if got := xdstest.Names(c.NextAck()); !cmp.Equal(got, []string{"a", "-secret"}) {
		t.Fatalf("got %v, want a, and that secret is not there", got)
	}
	c.Subscribe(resource.Address, nil)
	if got := xdstest.Names(c.NextAck()); len(got) > 0 {
		t.Fatalf("a waypoint is told the mesh's %v", got)
	}
	waypoints.Publish([]resource.View{{Gateway: "other/waypoint", Account: "other/waypoint", Upserts: service(t, "a", "22")}})
	waypoints.Publish([]resource.View{{Gateway: "shop/waypoint", Account: "shop/waypoint", Upserts: service(t, "a", "333")}})
	r := c.NextAck()
	var told endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(r.GetResources()[0].GetResource().GetValue(), &told); err != nil {
		t.Fatal(err)
	}
	if got := told.GetEndpoints()[0].GetPriority(); got != 3 {
		t.Errorf("told of another view's change: mark %d, want 3", got)
	}
	if n := len(waypoints.Clients()); n != 1 {
		t.Errorf("%d clients, want 1", n)
	}
	waypoints.Publish([]resource.View{{Gateway: "shop/waypoint", Gone: true}})
	if code := status.Code(c.Err()); code != codes.Unavailable {
		t.Errorf("the stream of a view that is gone ended with %s, want %s", code, codes.Unavailable)
	}
	again := xdstest.Open(t.Context(), t, conn, waypointNode("waypoint"))
	again.Subscribe(resource.Cluster, nil)
	if code := status.Code(again.Err()); code != codes.PermissionDenied {
		t.Errorf("a stream for a view that is gone: %s, want %s", code, codes.PermissionDenied)
	}
}

// TestWhoIsWaypoint: a view is told to pods of its Gateway's service account, which say so themselves.
func TestWhoIsWaypoint(t *testing.T) {
	var caller atomic.Pointer[auth.Caller]
	_, waypoints, conn := serveAll(t, func(context.Context) (auth.Caller, error) { return *caller.Load(), nil })
	waypoints.Publish([]resource.View{
		{Gateway: "shop/waypoint", Account: "shop/waypoint"}, {Gateway: "shop/other", Account: "shop/other"},
	})
	for _, tc := range []struct {
		name   string
		caller auth.Caller
		node   *corev3.Node
		want   codes.Code
		text   []string
	}{
		{"another Gateway of its namespace", waypoint, waypointNode("other"), codes.PermissionDenied, []string{"shop/other", "shop/waypoint"}},
		{"no such Gateway", waypoint, waypointNode("missing"), codes.PermissionDenied, []string{"shop/missing"}},
		{"no Gateway named", waypoint, &corev3.Node{Id: waypointNode("").GetId()}, codes.InvalidArgument, []string{api.LabelGatewayName}},
		{"account of no waypoint", auth.Caller{Namespace: "shop", ServiceAccount: "web"}, waypointNode("waypoint"), codes.PermissionDenied, []string{"shop/web", "nor that of a waypoint"}},
		{"node that is another's", waypoint, &corev3.Node{Id: "waypoint~10.0.0.2~waypoint-1.other~other.svc.cluster.local", Metadata: waypointNode("waypoint").GetMetadata()}, codes.PermissionDenied, []string{"other"}},
		{"node proxy that says it is a waypoint", proxy, &corev3.Node{Id: "waypoint~10.0.0.1~ztunnel-1.istio-system~x", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"LABELS": waypointNode("waypoint").GetMetadata().GetFields()["LABELS"]}}}, codes.PermissionDenied, []string{"istio-system/waypoint"}},
		{"a waypoint that says that it is a node proxy", waypoint, &corev3.Node{Id: "ztunnel~10.0.0.2~waypoint-1.shop~x"}, codes.InvalidArgument, []string{api.LabelGatewayName}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			caller.Store(&tc.caller)
			c := xdstest.Open(t.Context(), t, conn, tc.node)
			c.Subscribe(resource.Cluster, nil)
			err := c.Err()
			if status.Code(err) != tc.want {
				t.Errorf("%v, want code %s", err, tc.want)
			}
			for _, text := range tc.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%v does not mention %q", err, text)
				}
			}
		})
	}
}

// TestWaypointsDrain: waypoints are sent to another replica, and views that come later take nobody.
func TestWaypointsDrain(t *testing.T) {
	_, waypoints, conn := serveAll(t, func(context.Context) (auth.Caller, error) { return waypoint, nil })
	waypoints.Publish([]resource.View{{Gateway: "shop/waypoint", Account: "shop/waypoint"}})
	c := xdstest.Open(t.Context(), t, conn, waypointNode("waypoint"))
	c.Subscribe(resource.Cluster, nil)
	c.NextAck()
	waypoints.Drain(time.Millisecond)
	if code := status.Code(c.Err()); code != codes.Unavailable {
		t.Errorf("ended with %s", code)
	}
	waypoints.Publish([]resource.View{{Gateway: "shop/waypoint", Gone: true}, {Gateway: "shop/waypoint", Account: "shop/waypoint"}})
	again := xdstest.Open(t.Context(), t, conn, waypointNode("waypoint"))
	again.Subscribe(resource.Cluster, nil)
	if code := status.Code(again.Err()); code != codes.Unavailable {
		t.Errorf("a draining replica answers %s", code)
	}
}
