package xds

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// serve serves a hub in memory until the test ends.
func serve(t *testing.T, identify func(context.Context) (auth.Caller, error)) (*Hub, *grpc.ClientConn) {
	t.Helper()
	hub, _, conn := serveAll(t, identify)
	return hub, conn
}

// serveAll serves a hub and those of waypoints.
func serveAll(t *testing.T, identify func(context.Context) (auth.Caller, error)) (*Hub, *Waypoints, *grpc.ClientConn) {
	t.Helper()
	metrics := NewMetrics(prometheus.NewRegistry())
	hub, waypoints := NewHub(metrics), NewWaypoints(metrics)
	waypoints.Publish(nil)
	if identify == nil {
		identify = func(context.Context) (auth.Caller, error) { return proxy, nil }
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(Codec()))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, &Server{
		Hub: hub, Waypoints: waypoints, Identify: identify, Admit: NodeProxies([]string{"istio-system/ztunnel"}), Log: slog.New(slog.DiscardHandler), Refusals: auth.NewRefusals(slog.New(slog.DiscardHandler)),
	})
	ln := bufconn.Listen(1 << 20)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ln) }() // its error is that it was stopped
	conn, err := grpc.NewClient("passthrough:hub", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); server.Stop(); <-done })
	return hub, waypoints, conn
}

var proxy = auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Pod: "ztunnel-1", PodUID: "u", Node: "node1"}

var node = &corev3.Node{Id: "ztunnel~10.0.0.1~ztunnel-1.istio-system~istio-system.svc.cluster.local"}

func address(t *testing.T, name, content string) *resource.Resource {
	t.Helper()
	return encode(t, resource.Address, name, &workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{Uid: name, Name: content}}})
}

func policy(t *testing.T, name, content string) *resource.Resource {
	t.Helper()
	return encode(t, resource.Authorization, name, &security.Authorization{Name: content})
}

func encode(t *testing.T, typ resource.Type, name string, m proto.Message) *resource.Resource {
	t.Helper()
	r, err := resource.New(typ, name, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func names(r *discoveryv3.DeltaDiscoveryResponse) []string {
	out := xdstest.Names(r)
	slices.Sort(out)
	return out
}

func upserts(rs ...*resource.Resource) resource.Change { return resource.Change{Upserts: rs} }

func removed(t resource.Type, names ...string) resource.Change {
	var c resource.Change
	for _, n := range names {
		c.Removed = append(c.Removed, resource.Name{Type: t, Name: n})
	}
	return c
}

func expect(t *testing.T, r *discoveryv3.DeltaDiscoveryResponse, typ resource.Type, want ...string) {
	t.Helper()
	if r.GetTypeUrl() != typ.URL() {
		t.Fatalf("response of type %s, want %s (it has %v)", r.GetTypeUrl(), typ.URL(), names(r))
	}
	if diff := cmp.Diff(want, names(r), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s response (-want +got):\n%s", typ, diff)
	}
}

// subscribed opens a stream that has everything there is.
func subscribed(t *testing.T, conn *grpc.ClientConn) *xdstest.Client {
	t.Helper()
	c := xdstest.Open(t.Context(), t, conn, node)
	c.Subscribe(resource.Address, nil)
	c.Subscribe(resource.Authorization, nil)
	for range 2 {
		c.NextAck()
	}
	return c
}

func TestFirstPush(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(upserts(address(t, "a", "1"), address(t, "b", "1"), policy(t, "p", "1")))
	c := xdstest.Open(t.Context(), t, conn, node)
	c.Subscribe(resource.Address, nil)
	c.Subscribe(resource.Authorization, nil)
	expect(t, c.NextAck(), resource.Authorization, "p")
	r := c.NextAck()
	expect(t, r, resource.Address, "a", "b")

	res := r.GetResources()[0]
	var got workload.Address
	if err := res.GetResource().UnmarshalTo(&got); err != nil {
		t.Fatalf("resource does not decode as go-control-plane's: %v", err)
	}
	if got.GetWorkload().GetUid() != res.GetName() || res.GetVersion() == "" {
		t.Errorf("resource %q has version %q and content %v", res.GetName(), res.GetVersion(), &got)
	}
}

// A stream that opens before the state is complete is told nothing of a part of it.
func TestNothingBeforeTheWholeState(t *testing.T) {
	hub, conn := serve(t, nil)
	c := xdstest.Open(t.Context(), t, conn, node)
	c.Subscribe(resource.Authorization, nil)
	await(t, "the stream to be there", func() bool { return subscriptionOf(hub, resource.Authorization) != nil })
	if r := c.Pending(); r != nil {
		t.Fatalf("got %v before the first publish", names(r))
	}
	hub.Publish(resource.Change{})
	expect(t, c.NextAck(), resource.Authorization)
}

func TestReconnectSendsDifferencesOnly(t *testing.T) {
	hub, conn := serve(t, nil)
	same, old := address(t, "same", "1"), address(t, "changed", "1")
	hub.Publish(upserts(same, old, address(t, "gone", "1"), policy(t, "p", "1")))
	c := subscribed(t, conn)
	known := c.Resources
	c.Close()
	hub.Publish(upserts(address(t, "changed", "2"), address(t, "new", "1")))
	hub.Publish(removed(resource.Address, "gone"))

	c = xdstest.Open(t.Context(), t, conn, node)
	c.Subscribe(resource.Authorization, known[resource.Authorization])
	c.Subscribe(resource.Address, known[resource.Address])
	expect(t, c.NextAck(), resource.Authorization) // empty, but it must come: a client is in service after it
	expect(t, c.NextAck(), resource.Address, "-gone", "changed", "new")
}

func TestOrder(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(upserts(address(t, "a", "1")))
	c := subscribed(t, conn)

	hub.Publish(upserts(address(t, "a", "names p"), policy(t, "p", "1")))
	expect(t, c.NextAck(), resource.Authorization, "p")
	expect(t, c.NextAck(), resource.Address, "a")

	hub.Publish(resource.Change{Upserts: []*resource.Resource{address(t, "a", "no more"), policy(t, "q", "1")},
		Removed: []resource.Name{{Type: resource.Authorization, Name: "p"}, {Type: resource.Address, Name: "b"}}})
	expect(t, c.NextAck(), resource.Authorization, "q")
	expect(t, c.NextAck(), resource.Address, "-b", "a")
	expect(t, c.NextAck(), resource.Authorization, "-p")

	// Policies that no workload has to do with: it is said that there are no addresses to come.
	hub.Publish(upserts(policy(t, "q", "0")))
	expect(t, c.NextAck(), resource.Authorization, "q")
	expect(t, c.NextAck(), resource.Address)
	hub.Publish(removed(resource.Authorization, "p"))
	expect(t, c.NextAck(), resource.Authorization, "-p")

	// A trust domain that comes: its peers are let in when policies know it, not before.
	mesh := func(domain string) *resource.Resource {
		return encode(t, resource.Settings, extension.Mesh, &extension.Settings{TrustDomain: domain})
	}
	hub.Publish(upserts(mesh("a.example")))
	c.Subscribe(resource.Settings, nil)
	expect(t, c.NextAck(), resource.Settings, "mesh")
	hub.Publish(upserts(address(t, "a", "2"), mesh("b.example"), policy(t, "q", "2")))
	expect(t, c.NextAck(), resource.Authorization, "q")
	expect(t, c.NextAck(), resource.Settings, "mesh")
	expect(t, c.NextAck(), resource.Address, "a")
}

// While a push is not acknowledged, changes are merged: the last state of each resource, whatever it was between.
func TestMergeWhileInFlight(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(upserts(address(t, "stays", "1")))
	c := subscribed(t, conn)

	hub.Publish(upserts(address(t, "a", "0")))
	inFlight := c.Next()
	expect(t, inFlight, resource.Address, "a")
	for i := range 100 {
		hub.Publish(upserts(address(t, "a", fmt.Sprint(i)), address(t, "b", fmt.Sprint(i))))
	}
	hub.Publish(upserts(address(t, "a", "last")))
	hub.Publish(removed(resource.Address, "stays"))
	hub.Publish(upserts(address(t, "comes and goes", "1")))
	hub.Publish(removed(resource.Address, "comes and goes"))
	if r := c.Pending(); r != nil {
		t.Fatalf("got %v although a push is in flight", names(r))
	}
	c.Ack(inFlight)
	r := c.NextAck()
	expect(t, r, resource.Address, "-comes and goes", "-stays", "a", "b")
	if want := address(t, "a", "last").Version; c.Resources[resource.Address]["a"] != want {
		t.Errorf("version of a is %s, want the last, %s", c.Resources[resource.Address]["a"], want)
	}
}

// Nothing is sent of any type while a response of the push before is not answered.
func TestOnePushInFlight(t *testing.T) {
	hub := NewHub(NewMetrics(prometheus.NewRegistry()))
	hub.Publish(resource.Change{})
	c := newConn(hub, proxy, node, "")
	if !hub.join(c) {
		t.Fatal("not admitted")
	}
	say := func(typ resource.Type, nonce string) {
		t.Helper()
		if _, err := c.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ.URL(), ResponseNonce: nonce}); err != nil {
			t.Fatal(err)
		}
	}
	say(resource.Authorization, "")
	say(resource.Address, "")
	for _, r := range hub.next(c) {
		say(r.typ, r.nonce)
	}
	hub.Publish(upserts(policy(t, "p", "1"), address(t, "a", "1")))
	push := hub.next(c)
	if len(push) != 2 {
		t.Fatalf("%d responses, want one of each type", len(push))
	}
	hub.Publish(upserts(address(t, "a", "2"), address(t, "b", "1")))
	for i, r := range push {
		if more := hub.next(c); more != nil {
			t.Errorf("%d responses while %d are not answered", len(more), len(push)-i)
		}
		say(r.typ, r.nonce)
	}
	more := hub.next(c)
	if len(more) != 1 || len(more[0].resources) != 2 {
		t.Errorf("got %v, want one response with what came meanwhile", more)
	}
}

// A rejection is remembered and ends nothing.
func TestNack(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(upserts(address(t, "a", "1")))
	c := subscribed(t, conn)
	hub.Publish(upserts(address(t, "a", "2")))
	c.Nack(c.Next(), "I do not like it")
	hub.Publish(upserts(address(t, "a", "3")))
	expect(t, c.NextAck(), resource.Address, "a")
	if text := fmt.Sprintf("%+v", hub.Clients()); !strings.Contains(text, "I do not like it") {
		t.Errorf("the rejection is not shown: %s", text)
	}
}

// Later pushes come in pieces of bounded size; the first of a type does not, since a client goes into service on it.
func TestPiecesAreBounded(t *testing.T) {
	const n, size = 64, 128 << 10 // 8 MiB
	big := func(i int, content string) *resource.Resource {
		return address(t, fmt.Sprintf("r%03d", i), strings.Repeat(content, size))
	}
	hub, conn := serve(t, nil)
	var change resource.Change
	for i := range n {
		change.Upserts = append(change.Upserts, big(i, "x"))
	}
	hub.Publish(change)
	c := xdstest.Open(t.Context(), t, conn, node)
	c.Subscribe(resource.Authorization, nil)
	c.NextAck()
	c.Subscribe(resource.Address, nil)
	if got := len(c.NextAck().GetResources()); got != n {
		t.Fatalf("the first response has %d resources, want all %d", got, n)
	}
	for i := range n {
		change.Upserts[i] = big(i, "y")
	}
	hub.Publish(change)
	got, responses := 0, 0
	for got < n {
		r := c.NextAck()
		bytes := 0
		for _, res := range r.GetResources() {
			bytes += len(res.GetResource().GetValue())
		}
		if bytes > maxPush {
			t.Errorf("a response has %d bytes, at most %d", bytes, maxPush)
		}
		got += len(r.GetResources())
		responses++
	}
	if got != n || responses < 2 {
		t.Errorf("%d resources in %d responses, want %d in several", got, responses, n)
	}
}

func TestNamedSubscription(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(upserts(address(t, "a", "1"), address(t, "b", "1"), policy(t, "p", "1")))
	c := xdstest.Open(t.Context(), t, conn, node)
	// As node proxies do that ask on demand: everything, and no.
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.Address.URL(), ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}})
	c.Subscribe(resource.Authorization, nil)
	expect(t, c.NextAck(), resource.Authorization, "p")
	expect(t, c.NextAck(), resource.Address)
	c.Subscribe(resource.Address, nil, "a", "nobody")
	expect(t, c.NextAck(), resource.Address, "-nobody", "a")
	hub.Publish(upserts(address(t, "a", "2"), address(t, "b", "2")))
	expect(t, c.NextAck(), resource.Address, "a")
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.Address.URL(), ResourceNamesUnsubscribe: []string{"a"}, ResourceNamesSubscribe: []string{"b"}})
	expect(t, c.NextAck(), resource.Address, "b")
	hub.Publish(upserts(address(t, "a", "3"), address(t, "b", "3")))
	expect(t, c.NextAck(), resource.Address, "b")
}

func TestAddressesWaitForAuthorizations(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(upserts(address(t, "a", "1"), policy(t, "p", "1")))
	c := xdstest.Open(t.Context(), t, conn, node)
	start := time.Now()
	c.Subscribe(resource.Address, nil)
	expect(t, c.NextAck(), resource.Address, "a") // for a client that never asks for authorisations
	if waited := time.Since(start); waited < patience {
		t.Errorf("addresses came after %s, before the client had its time to ask for authorisations (%s)", waited, patience)
	}
}

// A peer's node proxy, which does not know the type of settings, is never sent one.
func TestSettingsAreSentToWhoAsks(t *testing.T) {
	hub, conn := serve(t, nil)
	mesh := func(domain string) *resource.Resource {
		return encode(t, resource.Settings, extension.Mesh, &extension.Settings{TrustDomain: domain})
	}
	hub.Publish(upserts(mesh("a.example"), address(t, "a", "1")))
	peer := subscribed(t, conn)
	ours := xdstest.Open(t.Context(), t, conn, node)
	ours.Subscribe(resource.Authorization, nil)
	ours.NextAck()
	ours.Subscribe(resource.Settings, nil)
	expect(t, ours.NextAck(), resource.Settings, "mesh")
	hub.Publish(upserts(mesh("b.example")))
	expect(t, ours.NextAck(), resource.Settings, "mesh")
	hub.Publish(upserts(address(t, "a", "2")))
	expect(t, peer.NextAck(), resource.Address, "a")
}

func TestRefusals(t *testing.T) {
	meta := func(pairs ...string) *corev3.Node {
		n := &corev3.Node{Id: node.GetId(), Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{}}}
		for i := 0; i < len(pairs); i += 2 {
			n.Metadata.Fields[pairs[i]] = structpb.NewStringValue(pairs[i+1])
		}
		return n
	}
	for _, tc := range []struct {
		name   string
		caller auth.Caller
		err    error
		node   *corev3.Node
		want   codes.Code
		text   string
	}{
		{name: "nobody", err: status.Error(codes.Unauthenticated, "no credential"), node: node, want: codes.Unauthenticated, text: "no credential"},
		{name: "another account", caller: auth.Caller{Namespace: "shop", ServiceAccount: "web"}, node: node, want: codes.PermissionDenied, text: "shop/web is not a node proxy"},
		{name: "another's name", caller: proxy, node: meta("NAME", "ztunnel-2"), want: codes.PermissionDenied, text: "ztunnel-2"},
		{name: "another namespace", caller: proxy, node: meta("NAMESPACE", "shop"), want: codes.PermissionDenied, text: "shop"},
		{name: "another node", caller: proxy, node: meta("NODE_NAME", "node2"), want: codes.PermissionDenied, text: "node2"},
		{name: "another account in metadata", caller: proxy, node: meta("SERVICE_ACCOUNT", "default"), want: codes.PermissionDenied, text: "default"},
		{name: "another pod in the ID", caller: proxy, node: &corev3.Node{Id: "ztunnel~1.1.1.1~ztunnel-9.istio-system~x"}, want: codes.PermissionDenied, text: "ztunnel-9"},
		{name: "another namespace in the ID", caller: proxy, node: &corev3.Node{Id: "ztunnel~1.1.1.1~ztunnel-1.shop~x"}, want: codes.PermissionDenied, text: "shop"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hub, conn := serve(t, func(context.Context) (auth.Caller, error) { return tc.caller, tc.err })
			hub.Publish(upserts(address(t, "a", "1")))
			c := xdstest.Open(t.Context(), t, conn, tc.node)
			c.Subscribe(resource.Authorization, nil)
			err := c.Err()
			if status.Code(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %s that mentions %q", err, tc.want, tc.text)
			}
		})
	}
}

func TestAgreeingNode(t *testing.T) {
	n := &corev3.Node{Id: node.GetId(), Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"NAME": structpb.NewStringValue("ztunnel-1"), "NAMESPACE": structpb.NewStringValue("istio-system"),
		"NODE_NAME": structpb.NewStringValue("node1"), "INSTANCE_IPS": structpb.NewStringValue("10.0.0.1"),
	}}}
	hub, conn := serve(t, nil)
	hub.Publish(resource.Change{})
	c := xdstest.Open(t.Context(), t, conn, n)
	c.Subscribe(resource.Authorization, nil)
	expect(t, c.NextAck(), resource.Authorization)
}

func TestDrain(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(resource.Change{})
	a, b := subscribed(t, conn), subscribed(t, conn)
	hub.Drain(time.Millisecond)
	for _, c := range []*xdstest.Client{a, b} {
		if err := c.Err(); status.Code(err) != codes.Unavailable {
			t.Errorf("stream ended with %v, want Unavailable", err)
		}
	}
	c := xdstest.Open(t.Context(), t, conn, node)
	c.Subscribe(resource.Authorization, nil)
	if err := c.Err(); status.Code(err) != codes.Unavailable {
		t.Errorf("a new stream ended with %v, want Unavailable", err)
	}
}

// Draining is spread over the time that it is given.
func TestDrainIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub(NewMetrics(prometheus.NewRegistry()))
		start := time.Now()
		var conns []*conn
		for range 5 {
			c := newConn(hub, proxy, node, "")
			if !hub.join(c) {
				t.Fatal("not admitted")
			}
			conns = append(conns, c)
		}
		hub.Drain(10 * time.Second)
		for _, c := range conns {
			<-c.ended
		}
		if took := time.Since(start); took != 8*time.Second {
			t.Errorf("the last of five streams ended after %s, want 8s", took)
		}
	})
}

func TestBounds(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(resource.Change{})
	c := xdstest.Open(t.Context(), t, conn, node)
	c.Subscribe(resource.Authorization, nil, strings.Repeat("x", maxName+1))
	if err := c.Err(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a name of %d bytes: %v, want InvalidArgument", maxName+1, err)
	}
}

// Types that nobody serves, and answers to nothing, disturb nothing.
func TestOddRequests(t *testing.T) {
	hub, conn := serve(t, nil)
	hub.Publish(upserts(policy(t, "p", "1")))
	c := xdstest.Open(t.Context(), t, conn, node)
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/istio.workload.Workload"})
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.Authorization.URL(), ResponseNonce: "nonsense"})
	expect(t, c.NextAck(), resource.Authorization, "p")
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.Authorization.URL(), ResponseNonce: "77"})
	hub.Publish(upserts(policy(t, "p", "2")))
	expect(t, c.NextAck(), resource.Authorization, "p")
}

func subscriptionOf(h *Hub, typ resource.Type) *subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		return c.subs[typ]
	}
	return nil
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), xdstest.Deadline)
	defer cancel()
	for tick := time.NewTicker(time.Millisecond); !holds(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited %s for %s", xdstest.Deadline, what)
		}
	}
}
