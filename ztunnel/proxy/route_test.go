package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// newTestNode makes a Node that knows the addresses.
func newTestNode(t *testing.T, addresses ...*workload.Address) *Node {
	t.Helper()
	d := directory.New(directory.Config{Logger: slog.New(slog.DiscardHandler)})
	var resources []*discoveryv3.Resource
	for _, a := range addresses {
		name := a.GetWorkload().GetUid()
		if s := a.GetService(); s != nil {
			name = s.GetNamespace() + "/" + s.GetHostname()
		}
		body, err := proto.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		resources = append(resources, &discoveryv3.Resource{Name: name, Resource: &anypb.Any{TypeUrl: xds.TypeAddress, Value: body}})
	}
	if rejected := d.HandleAddresses(resources, nil); len(rejected) > 0 {
		t.Fatalf("rejected: %v", rejected)
	}
	return NewNode(NodeConfig{Directory: d, Certificates: noCertificates{}, Logger: slog.New(slog.DiscardHandler)})
}

type noCertificates struct{}

func (noCertificates) SVID(context.Context, identity.Identity) (*identity.SVID, error) {
	return nil, errors.New("none")
}
func (noCertificates) Prefetch(identity.Identity) {}
func (noCertificates) Forget(identity.Identity)   {}

// pod is a workload of namespace ns, whose service account has its name.
func pod(name, ip string, change ...func(*workload.Workload)) *workload.Address {
	w := &workload.Workload{Uid: "Kubernetes//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: name,
		Addresses: [][]byte{netip.MustParseAddr(ip).AsSlice()}}
	for _, f := range change {
		f(w)
	}
	return &workload.Address{Type: &workload.Address_Workload{Workload: w}}
}

func tunnelled(w *workload.Workload) { w.TunnelProtocol = workload.TunnelProtocol_HBONE }

func member(host string, ports ...*workload.Port) func(*workload.Workload) {
	return func(w *workload.Workload) {
		w.Services = map[string]*workload.PortList{"ns/" + host: {Ports: ports}}
	}
}

func port(service, target uint32) *workload.Port {
	return &workload.Port{ServicePort: service, TargetPort: target}
}

func svc(host, ip string, change ...func(*workload.Service)) *workload.Address {
	s := &workload.Service{Name: host, Namespace: "ns", Hostname: host, Ports: []*workload.Port{port(80, 8080)}}
	if ip != "" {
		s.Addresses = []*workload.NetworkAddress{{Address: netip.MustParseAddr(ip).AsSlice()}}
	}
	for _, f := range change {
		f(s)
	}
	return &workload.Address{Type: &workload.Address_Service{Service: s}}
}

func gateway(host string) *workload.GatewayAddress {
	return &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Hostname{
		Hostname: &workload.NamespacedHostname{Namespace: "ns", Hostname: host}}}
}

// outcome is a destination in the words of a test.
type outcome struct {
	Workload, Service string
	Addr              string
	Peer, Authority   string // of a tunnel
	Expect            []string
	Waypoint          bool
}

func describe(d destination) outcome {
	o := outcome{Addr: d.addr.String(), Waypoint: d.waypoint}
	if d.workload != nil {
		o.Workload = d.workload.Name
	}
	if d.service != nil {
		o.Service = d.service.Hostname
	}
	if d.tunnel {
		o.Peer, o.Authority = d.target.Addr.String(), d.authority
		for _, id := range d.target.Expect {
			o.Expect = append(o.Expect, id.ServiceAccount)
		}
	}
	return o
}

func TestRoute(t *testing.T) {
	waypointed := func(s *workload.Service) { s.Waypoint = gateway("way") }
	n := newTestNode(t,
		pod("client", "10.0.0.1", tunnelled),
		pod("web", "10.0.0.2", tunnelled, member("web", port(80, 8080))),
		pod("plain", "10.0.0.3", member("plain", port(80, 8080))),
		pod("far", "10.0.0.4", tunnelled, func(w *workload.Workload) { w.Network = "elsewhere" }, member("far", port(80, 80))),
		pod("way", "10.0.0.5", tunnelled, member("way", port(15008, 15008))),
		pod("guarded", "10.0.0.6", tunnelled, func(w *workload.Workload) { w.Waypoint = gateway("way") }),
		pod("lost", "10.0.0.7", tunnelled, func(w *workload.Workload) { w.Waypoint = gateway("nowhere") }),
		svc("web", "10.1.0.1", func(s *workload.Service) {
			s.SubjectAltNames = []string{"spiffe://cluster.local/ns/ns/sa/alias"}
		}),
		svc("plain", "10.1.0.2"), svc("far", "10.1.0.3"), svc("empty", "10.1.0.4"),
		svc("guarded", "10.1.0.5", waypointed),
		svc("way", "10.1.0.6", func(s *workload.Service) { s.Ports = []*workload.Port{port(15008, 15008)} }),
		svc("split", "10.1.0.7", func(s *workload.Service) {
			s.Waypoint = gateway("nowhere")
			s.WeightedWaypoints = []*workload.WeightedWaypoint{{Destination: gateway("nowhere"), Weight: 0}, {Destination: gateway("way"), Weight: 3}}
		}),
		svc("through", "10.1.0.8", func(s *workload.Service) {
			s.LoadBalancing = &workload.LoadBalancing{Mode: workload.LoadBalancing_PASSTHROUGH}
		}),
	)
	self := func(name string) *directory.Workload {
		w := n.Directory.WorkloadByPod("ns", name, name)
		if w == nil {
			t.Fatalf("no workload %s", name)
		}
		return w
	}
	for _, tc := range []struct {
		name string
		from string
		dst  string
		want outcome
		err  error
	}{
		{name: "unknown", from: "client", dst: "192.0.2.1:443", want: outcome{Addr: "192.0.2.1:443"}},
		{name: "pod with HBONE", from: "client", dst: "10.0.0.2:9000", want: outcome{Workload: "web", Addr: "10.0.0.2:9000",
			Peer: "10.0.0.2:15008", Authority: "10.0.0.2:9000", Expect: []string{"web"}}},
		{name: "itself", from: "web", dst: "10.0.0.2:9000", want: outcome{Workload: "web", Addr: "10.0.0.2:9000",
			Peer: "10.0.0.2:15008", Authority: "10.0.0.2:9000", Expect: []string{"web"}}},
		{name: "plain pod", from: "client", dst: "10.0.0.3:9000", want: outcome{Workload: "plain", Addr: "10.0.0.3:9000"}},
		{name: "service with HBONE", from: "client", dst: "10.1.0.1:80", want: outcome{Workload: "web", Service: "web",
			Addr: "10.0.0.2:8080", Peer: "10.0.0.2:15008", Authority: "10.0.0.2:8080", Expect: []string{"alias", "web"}}},
		{name: "plain service", from: "client", dst: "10.1.0.2:80", want: outcome{Workload: "plain", Service: "plain", Addr: "10.0.0.3:8080"}},
		{name: "port that the service has not", from: "client", dst: "10.1.0.1:81", err: directory.ErrNoPort,
			want: outcome{Service: "web", Addr: "10.1.0.1:81"}},
		{name: "no endpoint", from: "client", dst: "10.1.0.4:80", err: directory.ErrNoEndpoint,
			want: outcome{Service: "empty", Addr: "10.1.0.4:80"}},
		{name: "passthrough", from: "client", dst: "10.1.0.8:80", want: outcome{Service: "through", Addr: "10.1.0.8:80"}},
		{name: "service behind a waypoint", from: "client", dst: "10.1.0.5:80", want: outcome{Workload: "way", Service: "guarded",
			Addr: "10.1.0.5:80", Peer: "10.0.0.5:15008", Authority: "10.1.0.5:80", Expect: []string{"way"}, Waypoint: true}},
		{name: "share of a waypoint", from: "client", dst: "10.1.0.7:80", want: outcome{Workload: "way", Service: "split",
			Addr: "10.1.0.7:80", Peer: "10.0.0.5:15008", Authority: "10.1.0.7:80", Expect: []string{"way"}, Waypoint: true}},
		{name: "pod behind a waypoint", from: "client", dst: "10.0.0.6:9000", want: outcome{Workload: "way", Addr: "10.0.0.6:9000",
			Peer: "10.0.0.5:15008", Authority: "10.0.0.6:9000", Expect: []string{"way"}, Waypoint: true}},
		{name: "from the waypoint itself", from: "way", dst: "10.0.0.6:9000", want: outcome{Workload: "guarded", Addr: "10.0.0.6:9000",
			Peer: "10.0.0.6:15008", Authority: "10.0.0.6:9000", Expect: []string{"guarded"}}},
		{name: "waypoint that is not there", from: "client", dst: "10.0.0.7:9000", err: errNoWaypoint,
			want: outcome{Addr: "10.0.0.7:9000", Waypoint: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := n.route(self(tc.from), netip.MustParseAddrPort(tc.dst), nil)
			if !errors.Is(err, tc.err) {
				t.Errorf("error %v, want %v", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, describe(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	// What was tried in vain is not tried again.
	if _, err := n.route(self("client"), netip.MustParseAddrPort("10.1.0.1:80"), []string{"Kubernetes//Pod/ns/web"}); !errors.Is(err, directory.ErrNoEndpoint) {
		t.Errorf("with the only endpoint tried already: %v", err)
	}
}

func TestOtherNetworkIsRefused(t *testing.T) {
	n := newTestNode(t, pod("client", "10.0.0.1", tunnelled),
		pod("far", "10.0.0.4", tunnelled, func(w *workload.Workload) { w.Network = "elsewhere" }))
	far := n.Directory.Workload("Kubernetes//Pod/ns/far")
	self := n.Directory.Workload("Kubernetes//Pod/ns/client")
	_, err := n.direct(self, directory.Endpoint{Workload: far, Addr: netip.MustParseAddrPort("10.0.0.4:80")})
	if !errors.Is(err, errOtherNetwork) {
		t.Errorf("got %v", err)
	}
}

// TestOtherNetworkIsNotChosen: an endpoint of another network, with a gateway as Istio's control plane tells of it or without, takes
// nothing away from those that can be reached.
func TestOtherNetworkIsNotChosen(t *testing.T) {
	elsewhere := func(w *workload.Workload) { w.Network, w.NetworkGateway = "elsewhere", gateway("east-west") }
	n := newTestNode(t, pod("client", "10.0.0.1", tunnelled), svc("web", "10.1.0.1"),
		pod("near", "10.0.0.2", tunnelled, member("web", port(80, 8080))), pod("far", "10.0.0.4", tunnelled, elsewhere, member("web", port(80, 8080))))
	self := n.Directory.Workload("Kubernetes//Pod/ns/client")
	for range 100 {
		d, err := n.route(self, netip.MustParseAddrPort("10.1.0.1:80"), nil)
		if err != nil || d.workload.Name != "near" || d.more {
			t.Fatalf("way to %v, more %v, %v", d.workload, d.more, err)
		}
	}
}

func TestTargetPort(t *testing.T) {
	n := newTestNode(t,
		pod("web", "10.0.0.2", member("web", port(80, 8080), port(81, 9090))),
		svc("web", "10.1.0.1", func(s *workload.Service) { s.Ports = []*workload.Port{port(80, 8000), port(81, 0), port(82, 8002)} }),
		svc("other", "10.1.0.2"))
	w := n.Directory.Workload("Kubernetes//Pod/ns/web")
	web := n.Directory.Service(directory.ServiceKey{Namespace: "ns", Hostname: "web"})
	other := n.Directory.Service(directory.ServiceKey{Namespace: "ns", Hostname: "other"})
	for _, tc := range []struct {
		s          *directory.Service
		port, want uint16
	}{
		{web, 80, 8080}, {web, 81, 9090}, {web, 82, 8002}, {web, 83, 0}, {other, 80, 0}, {nil, 80, 0},
	} {
		if got := targetPort(w, tc.s, tc.port); got != tc.want {
			t.Errorf("%v port %d leads to %d, want %d", tc.s, tc.port, got, tc.want)
		}
	}
}
