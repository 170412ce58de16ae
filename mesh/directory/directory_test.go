package directory_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// pod is a workload of node "node1" with one address; change it as the test needs.
func pod(name, addr string, change ...func(*workloadpb.Workload)) *workloadpb.Workload {
	w := &workloadpb.Workload{
		Uid: "Kubernetes//Pod/shop/" + name, Name: name, Namespace: "shop", ServiceAccount: "sa-" + name, Node: "node1",
		TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
	}
	if addr != "" {
		w.Addresses = [][]byte{netip.MustParseAddr(addr).AsSlice()}
	}
	for _, f := range change {
		f(w)
	}
	return w
}

// serves makes a workload an endpoint of shop/<host>, with port mappings service:target.
func serves(host string, ports ...*workloadpb.Port) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) {
		if w.Services == nil {
			w.Services = map[string]*workloadpb.PortList{}
		}
		w.Services["shop/"+host] = &workloadpb.PortList{Ports: ports}
	}
}

func port(service, target uint32) *workloadpb.Port {
	return &workloadpb.Port{ServicePort: service, TargetPort: target}
}

func vip(addr string) *workloadpb.NetworkAddress {
	return &workloadpb.NetworkAddress{Address: netip.MustParseAddr(addr).AsSlice()}
}

func cidr(prefix string) *workloadpb.NetworkAddress {
	p := netip.MustParsePrefix(prefix)
	return &workloadpb.NetworkAddress{Address: p.Addr().AsSlice(), Length: wrapperspb.UInt32(uint32(p.Bits()))}
}

// service is shop/<host> with port 80 to 8080.
func service(host string, change ...func(*workloadpb.Service)) *workloadpb.Service {
	s := &workloadpb.Service{Name: host, Namespace: "shop", Hostname: host, Ports: []*workloadpb.Port{port(80, 8080)}}
	for _, f := range change {
		f(s)
	}
	return s
}

func in(ns string) func(*workloadpb.Service) { return func(s *workloadpb.Service) { s.Namespace = ns } }

func at(addrs ...*workloadpb.NetworkAddress) func(*workloadpb.Service) {
	return func(s *workloadpb.Service) { s.Addresses = addrs }
}

// resource wraps a workload, a service or a policy as the control plane sends it.
func resource(t testing.TB, m proto.Message) *discoveryv3.Resource {
	t.Helper()
	name := ""
	switch v := m.(type) {
	case *workloadpb.Workload:
		name, m = v.GetUid(), &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: v}}
	case *workloadpb.Service:
		name, m = v.GetNamespace()+"/"+v.GetHostname(), &workloadpb.Address{Type: &workloadpb.Address_Service{Service: v}}
	case *security.Authorization:
		name = v.GetNamespace() + "/" + v.GetName()
	}
	body, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return &discoveryv3.Resource{Name: name, Version: "1", Resource: body}
}

func resources[T proto.Message](t testing.TB, list ...T) []*discoveryv3.Resource {
	t.Helper()
	var out []*discoveryv3.Resource
	for _, m := range list {
		out = append(out, resource(t, m))
	}
	return out
}

func newDirectory() *directory.Directory {
	return directory.New(directory.Config{Node: "node1", Logger: slog.New(slog.DiscardHandler)})
}

// apply puts workloads and services, which must not be rejected.
func apply(t testing.TB, d *directory.Directory, list ...proto.Message) {
	t.Helper()
	if rejected := d.HandleAddresses(resources(t, list...), nil); len(rejected) > 0 {
		t.Fatalf("rejected: %v", rejected)
	}
}

func remove(t testing.TB, d *directory.Directory, names ...string) {
	t.Helper()
	if rejected := d.HandleAddresses(nil, names); len(rejected) > 0 {
		t.Fatalf("rejected: %v", rejected)
	}
}

func nameOf(w *directory.Workload) string {
	if w == nil {
		return ""
	}
	return w.Name
}

func serviceOf(s *directory.Service) string {
	if s == nil {
		return ""
	}
	return s.String()
}

func TestWorkloadValue(t *testing.T) {
	d := newDirectory()
	full := pod("a", "10.0.0.1", serves("web", port(80, 8080), port(443, 0)), serves("db"), func(w *workloadpb.Workload) {
		w.Addresses = append(w.Addresses, netip.MustParseAddr("fd00::1").AsSlice(), netip.MustParseAddr("::ffff:10.0.0.2").AsSlice())
		w.Network, w.TrustDomain, w.ClusterId = "net", "td", "c1"
		w.CanonicalName, w.CanonicalRevision = "app", "v1"
		w.WorkloadName, w.WorkloadType = "dep", workloadpb.WorkloadType_JOB
		w.NativeTunnel = true
		w.AuthorizationPolicies = []string{"shop/p"}
		w.Status = workloadpb.WorkloadStatus_UNHEALTHY
		w.Locality = &workloadpb.Locality{Region: "r", Zone: "z", Subzone: "s"}
		w.Capacity = wrapperspb.UInt32(7)
		w.ApplicationTunnel = &workloadpb.ApplicationTunnel{Protocol: workloadpb.ApplicationTunnel_PROXY, Port: 15088}
		w.Waypoint = &workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Address{
			Address: &workloadpb.NetworkAddress{Network: "net", Address: []byte{10, 0, 0, 9}}}, HboneMtlsPort: 15009}
		w.NetworkGateway = &workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Hostname{
			Hostname: &workloadpb.NamespacedHostname{Namespace: "gw", Hostname: "east"}}}
	})
	apply(t, d, full, pod("b", "10.0.0.3", func(w *workloadpb.Workload) {
		w.ServiceAccount, w.TunnelProtocol = "", workloadpb.TunnelProtocol_NONE
	}))

	want := &directory.Workload{
		UID: "Kubernetes//Pod/shop/a", Name: "a", Namespace: "shop",
		Identity: identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "sa-a"},
		Addrs:    []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.2")},
		Network:  "net", Tunnel: directory.TunnelHBONE, NativeTunnel: true,
		Waypoint:       &directory.GatewayAddr{Addr: directory.NetworkAddr{Network: "net", Addr: netip.MustParseAddr("10.0.0.9")}, Port: 15009},
		NetworkGateway: &directory.GatewayAddr{Service: directory.ServiceKey{Namespace: "gw", Hostname: "east"}, Port: 15008},
		AppTunnel:      &directory.AppTunnel{Proxy: true, Port: 15088},
		Node:           "node1", ClusterID: "c1", Locality: directory.Locality{Region: "r", Zone: "z", Subzone: "s"},
		CanonicalName: "app", CanonicalRevision: "v1", WorkloadName: "dep", Kind: directory.KindJob,
		Policies: []string{"shop/p"}, Capacity: 7,
		Services: []directory.Membership{
			{Service: directory.ServiceKey{Namespace: "shop", Hostname: "db"}},
			{Service: directory.ServiceKey{Namespace: "shop", Hostname: "web"}, Ports: []directory.PortMapping{{Service: 80, Target: 8080}, {Service: 443}}},
		},
	}
	byAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, d.Workload(full.GetUid()), byAddr, cmpopts.IgnoreUnexported(directory.Workload{})); diff != "" {
		t.Errorf("workload (-want +got):\n%s", diff)
	}
	b := d.Workload("Kubernetes//Pod/shop/b")
	if b.Identity.String() != "spiffe://cluster.local/ns/shop/sa/default" || b.ClusterID != "Kubernetes" || b.Capacity != 1 ||
		!b.Healthy || b.Tunnel != directory.TunnelNone {
		t.Errorf("defaults: %+v", b)
	}
	for _, a := range []string{"10.0.0.1", "fd00::1", "10.0.0.2", "::ffff:10.0.0.1"} {
		if got := nameOf(d.WorkloadByAddr("net", netip.MustParseAddr(a))); got != "a" {
			t.Errorf("WorkloadByAddr(%s) = %q", a, got)
		}
		if got := nameOf(d.WorkloadByAddr("", netip.MustParseAddr(a))); got != "" {
			t.Errorf("WorkloadByAddr(%s) in another network = %q", a, got)
		}
	}
}

// TestRejections: a resource that cannot be used is rejected by name, what was known under its name stays, and the rest
// of the push is applied.
func TestRejections(t *testing.T) {
	gateway := func(g *workloadpb.GatewayAddress) proto.Message {
		return pod("bad", "10.0.0.1", func(w *workloadpb.Workload) { w.Waypoint = g })
	}
	tests := []struct {
		name string
		msg  proto.Message
		want string
	}{
		{"address of 5 bytes", pod("bad", "", func(w *workloadpb.Workload) { w.Addresses = [][]byte{{1, 2, 3, 4, 5}} }), "5 bytes"},
		{"empty address", pod("bad", "", func(w *workloadpb.Workload) { w.Addresses = [][]byte{{}} }), "0 bytes"},
		{"sidecar", pod("bad", "10.0.0.1", func(w *workloadpb.Workload) { w.TunnelProtocol = workloadpb.TunnelProtocol_LEGACY_ISTIO_MTLS }), "LEGACY_ISTIO_MTLS"},
		{"tunnel of the future", pod("bad", "10.0.0.1", func(w *workloadpb.Workload) { w.TunnelProtocol = 17 }), "tunnel protocol 17"},
		{"status of the future", pod("bad", "10.0.0.1", func(w *workloadpb.Workload) { w.Status = 17 }), "status 17"},
		{"network mode of the future", pod("bad", "10.0.0.1", func(w *workloadpb.Workload) { w.NetworkMode = 17 }), "network mode 17"},
		{"bad identity", pod("bad", "10.0.0.1", func(w *workloadpb.Workload) { w.TrustDomain = "a/b" }), "trust domain"},
		{"service without slash", pod("bad", "10.0.0.1", func(w *workloadpb.Workload) {
			w.Services = map[string]*workloadpb.PortList{"web": nil}
		}), "namespace/hostname"},
		{"endpoint port", pod("bad", "10.0.0.1", serves("web", port(80, 65536))), "65536"},
		{"service port 0", pod("bad", "10.0.0.1", serves("web", port(0, 80))), "port 0"},
		{"application tunnel port", pod("bad", "10.0.0.1", func(w *workloadpb.Workload) {
			w.ApplicationTunnel = &workloadpb.ApplicationTunnel{Port: 70000}
		}), "70000"},
		{"empty waypoint", gateway(&workloadpb.GatewayAddress{}), "neither hostname nor address"},
		{"waypoint address", gateway(&workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Address{}}), "0 bytes"},
		{"waypoint port", gateway(&workloadpb.GatewayAddress{HboneMtlsPort: 1 << 20}), "1048576"},
		{"vip", service("bad", at(&workloadpb.NetworkAddress{Address: []byte{1}})), "1 bytes"},
		{"prefix too long", service("bad", at(&workloadpb.NetworkAddress{Address: []byte{10, 0, 0, 0}, Length: wrapperspb.UInt32(33)})), "33 bits"},
		{"mode of the future", service("bad", func(s *workloadpb.Service) { s.LoadBalancing = &workloadpb.LoadBalancing{Mode: 17} }), "mode 17"},
		{"scope of the future", service("bad", func(s *workloadpb.Service) {
			s.LoadBalancing = &workloadpb.LoadBalancing{RoutingPreference: []workloadpb.LoadBalancing_Scope{17}}
		}), "scope 17"},
		{"no hostname", service(""), "no hostname"},
		{"empty weighted waypoint", service("bad", func(s *workloadpb.Service) {
			s.WeightedWaypoints = []*workloadpb.WeightedWaypoint{{Weight: 1}}
		}), "no destination"},
		{"nothing", &workloadpb.Address{}, "neither workload nor service"},
		{"another type", wrapperspb.String("x"), "mismatched"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDirectory()
			apply(t, d, pod("bad", "10.0.0.7"), service("bad", at(vip("10.1.0.7"))))
			bad := resource(t, tt.msg)
			rejected := d.HandleAddresses(append(resources(t, proto.Message(pod("good", "10.0.0.2"))), bad), nil)
			if len(rejected) != 1 || rejected[0].Name != bad.GetName() || !strings.Contains(rejected[0].Err.Error(), tt.want) {
				t.Errorf("rejected %v, want %q with %q", rejected, bad.GetName(), tt.want)
			}
			if nameOf(d.WorkloadByAddr("", netip.MustParseAddr("10.0.0.2"))) != "good" {
				t.Error("the good one of the push is missing")
			}
			if nameOf(d.WorkloadByAddr("", netip.MustParseAddr("10.0.0.7"))) != "bad" ||
				serviceOf(d.ServiceByAddr("", netip.MustParseAddr("10.1.0.7"), "")) != "shop/bad" {
				t.Error("what was known before is gone")
			}
		})
	}
	t.Run("name of another", func(t *testing.T) {
		d := newDirectory()
		r := resource(t, pod("a", "10.0.0.1"))
		r.Name = "Kubernetes//Pod/shop/b"
		if rejected := d.HandleAddresses([]*discoveryv3.Resource{r, {Name: "x"}}, nil); len(rejected) != 2 {
			t.Errorf("rejected %v", rejected)
		}
	})
}

func TestWorkloadsThatShareAnAddress(t *testing.T) {
	plain := func(w *workloadpb.Workload) { w.TunnelProtocol = workloadpb.TunnelProtocol_NONE }
	entry := func(w *workloadpb.Workload) {
		w.Uid = "Kubernetes/networking.istio.io/WorkloadEntry/shop/" + w.GetName()
	}
	host := func(w *workloadpb.Workload) { w.NetworkMode = workloadpb.NetworkMode_HOST_NETWORK }
	addr := "10.0.0.1"
	steps := []struct {
		put    proto.Message
		remove string
		want   string
	}{
		{put: pod("other", addr, entry, plain), want: "other"},
		{put: pod("hbone", addr, entry), want: "hbone"},
		{put: pod("pod", addr, plain), want: "pod"},
		{put: pod("both", addr), want: "both"},
		{put: pod("newer", addr), want: "newer"},
		{put: pod("both", addr, func(w *workloadpb.Workload) { w.Status = workloadpb.WorkloadStatus_UNHEALTHY }), want: "newer"},
		{put: pod("host", addr, host), want: "newer"},
		{put: pod("newer", addr, host), want: "both"},
		{put: pod("newer", addr), want: "newer"},
		{put: pod("newer", "10.0.0.2"), want: "both"},
		{put: pod("both", addr, plain), want: "both"},
		{remove: "Kubernetes//Pod/shop/both", want: "pod"},
		{remove: "Kubernetes//Pod/shop/pod", want: "hbone"},
		{remove: "Kubernetes/networking.istio.io/WorkloadEntry/shop/hbone", want: "other"},
		{remove: "Kubernetes//Pod/shop/unknown", want: "other"},
		{remove: "Kubernetes//Pod/shop/host", want: "other"},
		{remove: "Kubernetes/networking.istio.io/WorkloadEntry/shop/other", want: ""},
	}
	d := newDirectory()
	for i, s := range steps {
		if s.put != nil {
			apply(t, d, s.put)
		} else {
			remove(t, d, s.remove)
		}
		if got := nameOf(d.WorkloadByAddr("", netip.MustParseAddr(addr))); got != s.want {
			t.Errorf("step %d: %s is of %q, want %q", i, addr, got, s.want)
		}
	}
}

// TestAddressMoves: an address that goes from a pod to its successor in one push is never unknown, and the pod's other
// addresses go.
func TestAddressMoves(t *testing.T) {
	d := newDirectory()
	apply(t, d, pod("old", "10.0.0.1"))
	d.Subscribe(func(c directory.Change) {
		if len(c.Workloads) != 2 {
			t.Errorf("change %+v", c)
		}
	})
	d.HandleAddresses(resources(t, proto.Message(pod("new", "10.0.0.1"))), []string{"Kubernetes//Pod/shop/old"})
	if got := nameOf(d.WorkloadByAddr("", netip.MustParseAddr("10.0.0.1"))); got != "new" {
		t.Errorf("address is of %q", got)
	}
	if d.Workload("Kubernetes//Pod/shop/old") != nil {
		t.Error("old is still there")
	}
}

func TestServiceChoice(t *testing.T) {
	d := newDirectory()
	canonical := func(s *workloadpb.Service) { s.Canonical = true }
	private := func(s *workloadpb.Service) { s.Visibility = workloadpb.Service_NAMESPACE }
	a := at(vip("10.1.0.1"), vip("fd00::1"))
	apply(t, d, service("web", in("one"), a), service("web", in("two"), a, canonical), service("web", in("three"), a, private),
		service("alone", in("three"), at(vip("10.1.0.2")), private))
	for _, tt := range []struct{ addr, ns, want string }{
		{"10.1.0.1", "one", "one/web"},
		{"10.1.0.1", "two", "two/web"},
		{"10.1.0.1", "three", "three/web"},
		{"10.1.0.1", "four", "two/web"},
		{"::ffff:10.1.0.1", "four", "two/web"},
		{"fd00::1", "", "two/web"},
		{"10.1.0.2", "three", "three/alone"},
		{"10.1.0.2", "four", ""},
		{"10.1.0.3", "one", ""},
	} {
		if got := serviceOf(d.ServiceByAddr("", netip.MustParseAddr(tt.addr), tt.ns)); got != tt.want {
			t.Errorf("ServiceByAddr(%s) from %s = %q, want %q", tt.addr, tt.ns, got, tt.want)
		}
	}
	if got := serviceOf(d.ServiceByAddr("other", netip.MustParseAddr("10.1.0.1"), "one")); got != "" {
		t.Errorf("in another network: %q", got)
	}
	if got := serviceOf(d.ServiceByHost("web", "four")); got != "two/web" {
		t.Errorf("by host: %q", got)
	}
	remove(t, d, "two/web")
	if got := serviceOf(d.ServiceByAddr("", netip.MustParseAddr("10.1.0.1"), "four")); got != "one/web" {
		t.Errorf("without the canonical one: %q", got)
	}
	apply(t, d, service("web", in("one"), at(vip("10.1.0.9"))))
	if got := serviceOf(d.ServiceByAddr("", netip.MustParseAddr("10.1.0.1"), "one")); got != "" {
		t.Errorf("after its address moved: %q", got)
	}
	if got := serviceOf(d.ServiceByHost("web", "four")); got != "one/web" {
		t.Errorf("by host: %q", got)
	}
}

func TestRanges(t *testing.T) {
	d := newDirectory()
	apply(t, d,
		service("wide", in("one"), at(cidr("10.0.0.0/8"), cidr("fd00::/16"))),
		service("narrow", in("two"), at(cidr("10.1.2.3/16"))),
		service("canonical", in("three"), at(cidr("10.1.0.0/16")), func(s *workloadpb.Service) { s.Canonical = true }),
		service("exact", in("four"), at(cidr("10.1.0.1/32"))),
		service("mapped", in("four"), at(&workloadpb.NetworkAddress{
			Address: netip.MustParseAddr("::ffff:11.0.0.0").AsSlice(), Length: wrapperspb.UInt32(104)})))
	for _, tt := range []struct{ addr, ns, want string }{
		{"10.1.0.1", "one", "four/exact"},
		{"10.1.0.2", "one", "one/wide"},
		{"10.1.0.2", "two", "two/narrow"},
		{"10.1.0.2", "five", "three/canonical"},
		{"10.2.0.1", "five", "one/wide"},
		{"fd00::7", "five", "one/wide"},
		{"fd01::7", "five", ""},
		{"11.9.9.9", "five", "four/mapped"},
		{"12.0.0.1", "five", ""},
	} {
		if got := serviceOf(d.ServiceByAddr("", netip.MustParseAddr(tt.addr), tt.ns)); got != tt.want {
			t.Errorf("ServiceByAddr(%s) from %s = %q, want %q", tt.addr, tt.ns, got, tt.want)
		}
	}
	remove(t, d, "three/canonical", "two/narrow")
	if got := serviceOf(d.ServiceByAddr("", netip.MustParseAddr("10.1.0.2"), "two")); got != "one/wide" {
		t.Errorf("without the narrow ones: %q", got)
	}
	remove(t, d, "one/wide")
	if got := serviceOf(d.ServiceByAddr("", netip.MustParseAddr("fd00::7"), "")); got != "" {
		t.Errorf("without any: %q", got)
	}
}

func TestPods(t *testing.T) {
	d := directory.New(directory.Config{Node: "node1", ClusterID: "Kubernetes", Logger: slog.New(slog.DiscardHandler)})
	apply(t, d, pod("here", "10.0.0.1"),
		pod("there", "10.0.0.2", func(w *workloadpb.Workload) { w.Node = "node2" }),
		pod("abroad", "10.0.0.3", func(w *workloadpb.Workload) { w.ClusterId = "other" }))
	for name, want := range map[string]string{"here": "here", "there": "", "abroad": ""} {
		if got := nameOf(d.WorkloadByPod("shop", name, "sa-"+name)); got != want {
			t.Errorf("WorkloadByPod(%s) = %q", name, got)
		}
	}
	if d.WorkloadByPod("shop", "here", "other") != nil || d.WorkloadByPod("other", "here", "sa-here") != nil {
		t.Error("found under another service account or namespace")
	}
	apply(t, d, pod("here", "10.0.0.1", func(w *workloadpb.Workload) { w.Node = "node2" }))
	if d.WorkloadByPod("shop", "here", "sa-here") != nil {
		t.Error("still there after it moved away")
	}
}

func TestWaitForPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirectory()
		found := make(chan *directory.Workload, 2)
		for range 2 {
			go func() {
				w, err := d.WaitForPod(t.Context(), "shop", "a", "sa-a")
				if err != nil {
					t.Error(err)
				}
				found <- w
			}()
		}
		synctest.Wait()
		apply(t, d, pod("b", "10.0.0.2"))
		apply(t, d, pod("a", "10.0.0.1", func(w *workloadpb.Workload) { w.ServiceAccount = "other" }))
		synctest.Wait()
		if len(found) > 0 {
			t.Fatal("WaitForPod returned for another pod or service account")
		}
		apply(t, d, pod("a", "10.0.0.1"))
		for range 2 {
			if w := <-found; nameOf(w) != "a" {
				t.Errorf("found %v", w)
			}
		}
		if w, err := d.WaitForPod(t.Context(), "shop", "a", "sa-a"); err != nil || nameOf(w) != "a" {
			t.Errorf("when it is there: %v, %v", w, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := d.WaitForPod(ctx, "shop", "c", "sa-c"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "shop/c") {
			t.Errorf("for a pod that does not come: %v", err)
		}
	})
}

func TestChanges(t *testing.T) {
	d := newDirectory()
	var got []directory.Change
	cancel := d.Subscribe(func(c directory.Change) {
		for _, w := range c.Workloads {
			if w.New != nil && d.Workload(w.New.UID) != w.New {
				t.Error("told before it can be found")
			}
		}
		got = append(got, c)
	})
	one := func() directory.Change {
		t.Helper()
		defer func() { got = nil }()
		if len(got) != 1 {
			t.Fatalf("%d changes: %+v", len(got), got)
		}
		return got[0]
	}
	apply(t, d, pod("a", "10.0.0.1"), pod("b", "10.0.0.2", func(w *workloadpb.Workload) { w.Node = "node2" }), service("web"))
	if c := one(); len(c.Workloads) != 2 || !c.Workloads[0].Local || c.Workloads[1].Local || c.Workloads[0].Old != nil || len(c.Services) != 1 {
		t.Errorf("change %+v", c)
	}
	apply(t, d, pod("a", "10.0.0.1"), service("web"))
	if len(got) != 0 {
		t.Errorf("the same again: %+v", got)
	}
	apply(t, d, pod("a", "10.0.0.9", func(w *workloadpb.Workload) { w.Node = "node2" }))
	if c := one(); c.Workloads[0].Old == nil || c.Workloads[0].New == nil || !c.Workloads[0].Local {
		t.Errorf("change %+v", c)
	}
	remove(t, d, "Kubernetes//Pod/shop/b", "shop/web", "shop/unknown")
	if c := one(); len(c.Workloads) != 1 || c.Workloads[0].New != nil || c.Workloads[0].Local || len(c.Services) != 1 || c.Services[0].New != nil {
		t.Errorf("change %+v", c)
	}
	cancel()
	apply(t, d, pod("c", "10.0.0.3"))
	if len(got) != 0 {
		t.Errorf("after cancel: %+v", got)
	}
}

func TestPolicies(t *testing.T) {
	d := newDirectory()
	deny := func(ns, name string, scope security.Scope, ports ...uint32) *security.Authorization {
		return &security.Authorization{Namespace: ns, Name: name, Scope: scope, Action: security.Action_DENY,
			Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{DestinationPorts: ports}}}}}}}
	}
	var changed []string
	d.Subscribe(func(c directory.Change) { changed = append(changed, c.Policies...) })
	apply(t, d, pod("a", "10.0.0.1", func(w *workloadpb.Workload) { w.AuthorizationPolicies = []string{"shop/sel", "shop/gone"} }))
	a := d.Workload("Kubernetes//Pod/shop/a")
	decide := func(port uint16) policy.Decision {
		return d.Policies(a).Evaluate(policy.Connection{Destination: netip.AddrPortFrom(a.Addrs[0], port)})
	}
	if got := decide(1); got.Verdict != policy.Undecided {
		t.Errorf("with no policy known: %+v", got)
	}
	rejected := d.HandleAuthorizations(resources(t,
		deny("istio-system", "mesh", security.Scope_GLOBAL, 1),
		deny("shop", "ns", security.Scope_NAMESPACE, 2),
		deny("other", "ns", security.Scope_NAMESPACE, 3),
		deny("shop", "sel", security.Scope_WORKLOAD_SELECTOR, 4),
		deny("shop", "unselected", security.Scope_WORKLOAD_SELECTOR, 5),
		deny("shop", "broken", security.Scope_NAMESPACE, 70000)), nil)
	if len(rejected) != 1 || rejected[0].Name != "shop/broken" || !rejected[0].Replaced {
		t.Errorf("rejected %v", rejected)
	}
	if len(changed) != 6 {
		t.Errorf("changed %v", changed)
	}
	if got := decide(9); got.Verdict != policy.Denied || got.Policy != "shop/broken" || !strings.Contains(got.Reason, "70000") {
		t.Errorf("with a broken policy: %+v", got)
	}
	d.HandleAuthorizations(nil, []string{"shop/broken"})
	for port, want := range map[uint16]string{1: "istio-system/mesh", 2: "shop/ns", 4: "shop/sel"} {
		if got := decide(port); got.Verdict != policy.Denied || got.Policy != want {
			t.Errorf("port %d: %+v, want %s", port, got, want)
		}
	}
	for _, port := range []uint16{3, 5} {
		if got := decide(port); got.Verdict != policy.Undecided || got.Policy != "shop/gone" {
			t.Errorf("port %d: %+v", port, got)
		}
	}
	d.HandleAuthorizations(resources(t, deny("shop", "gone", security.Scope_WORKLOAD_SELECTOR, 6),
		deny("shop", "ns", security.Scope_GLOBAL, 7)), []string{"istio-system/mesh"})
	for port, want := range map[uint16]policy.Verdict{1: policy.Allowed, 2: policy.Allowed, 5: policy.Allowed, 6: policy.Denied, 7: policy.Denied} {
		if got := decide(port); got.Verdict != want {
			t.Errorf("port %d: %+v, want %v", port, got, want)
		}
	}
	d.HandleAuthorizations(nil, []string{"shop/ns", "other/ns"})
	if got := decide(7); got.Verdict != policy.Allowed {
		t.Errorf("after all are gone: %+v", got)
	}
	bad := &discoveryv3.Resource{Name: "shop/x", Resource: &anypb.Any{TypeUrl: "type.googleapis.com/istio.security.Authorization", Value: []byte{0xff}}}
	if rejected := d.HandleAuthorizations([]*discoveryv3.Resource{bad, resource(t, &security.Authorization{})}, nil); len(rejected) != 2 || rejected[0].Replaced || rejected[1].Replaced {
		t.Errorf("rejected %v", rejected)
	}
}

func TestEndpoints(t *testing.T) {
	d := newDirectory()
	key := directory.ServiceKey{Namespace: "shop", Hostname: "web"}
	var want []string
	for i := range 300 {
		name := fmt.Sprintf("p%03d", i)
		apply(t, d, pod(name, fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), serves("web")))
		want = append(want, name)
	}
	list := func() []string {
		var got []string
		for w := range d.Endpoints(key) {
			got = append(got, w.Name)
		}
		slices.Sort(got)
		return got
	}
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	for i := 0; len(want) > 0; i = (i + 7) % max(1, len(want)) {
		remove(t, d, "Kubernetes//Pod/shop/"+want[i])
		if i%5 == 0 { // it comes back, and goes again
			apply(t, d, pod(want[i], "10.9.0.1", serves("web")))
			if got := list(); !slices.Equal(got, want) {
				t.Fatalf("after it came back: %v, want %v", got, want)
			}
			remove(t, d, "Kubernetes//Pod/shop/"+want[i])
		}
		want = slices.Delete(want, i, i+1)
		if got := list(); !slices.Equal(got, want) {
			t.Fatalf("after removal: %v, want %v", got, want)
		}
	}
	apply(t, d, pod("last", "10.0.0.1", serves("web")))
	for range d.Endpoints(key) {
		break
	}
	for range d.Endpoints(directory.ServiceKey{}) {
		t.Error("an unknown service has endpoints")
	}
}
