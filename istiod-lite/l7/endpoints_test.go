package l7_test

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
)

// TestEndpoints: which workloads are endpoints, and how they are reached. What cannot be reached as it has to be is left out.
func TestEndpoints(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1").AsSlice(), netip.MustParseAddr("fd00::1").AsSlice()
	for _, c := range []struct {
		name     string
		change   func(*workload.Workload, *l7.Host)
		address  string // "" for no endpoint
		identity string
		weight   uint32
	}{
		{"plain", func(w *workload.Workload, h *l7.Host) {}, "10.0.0.1:8080", "", 1},
		{"tunnel", func(w *workload.Workload, h *l7.Host) { w.TunnelProtocol = workload.TunnelProtocol_HBONE }, "10.0.0.1:8080", "spiffe://cluster.local/ns/ns/sa/default", 1},
		{"tunnel to another trust domain", func(w *workload.Workload, h *l7.Host) {
			w.TunnelProtocol, w.TrustDomain, w.ServiceAccount = workload.TunnelProtocol_HBONE, "other.example", "shop"
		}, "10.0.0.1:8080", "spiffe://other.example/ns/ns/sa/shop", 1},
		{"tunnel to nobody", func(w *workload.Workload, h *l7.Host) {
			w.TunnelProtocol, w.Namespace = workload.TunnelProtocol_HBONE, ""
		}, "", "", 0},
		{"tunnel of another kind", func(w *workload.Workload, h *l7.Host) { w.TunnelProtocol = workload.TunnelProtocol_LEGACY_ISTIO_MTLS }, "", "", 0},
		{"not ready", func(w *workload.Workload, h *l7.Host) { w.Status = workload.WorkloadStatus_UNHEALTHY }, "", "", 0},
		{"not ready, but published", func(w *workload.Workload, h *l7.Host) {
			w.Status, h.Balancing = workload.WorkloadStatus_UNHEALTHY, &workload.LoadBalancing{HealthPolicy: workload.LoadBalancing_ALLOW_ALL}
		}, "10.0.0.1:8080", "", 1},
		{"in another network", func(w *workload.Workload, h *l7.Host) { w.Network = "far" }, "", "", 0},
		{"of another service", func(w *workload.Workload, h *l7.Host) {
			w.Services = map[string]*workload.PortList{"ns/b.ns.svc.cluster.local": w.Services[serviceA]}
		}, "", "", 0},
		{"without the port", func(w *workload.Workload, h *l7.Host) { w.Services[serviceA].Ports[0].ServicePort = 81 }, "", "", 0},
		{"whose port has no target", func(w *workload.Workload, h *l7.Host) { w.Services[serviceA].Ports[0].TargetPort = 0 }, "", "", 0},
		{"without an address", func(w *workload.Workload, h *l7.Host) { w.Addresses = nil }, "", "", 0},
		{"on loopback", func(w *workload.Workload, h *l7.Host) { w.Addresses = [][]byte{{127, 0, 0, 1}} }, "", "", 0},
		{"on loopback, mapped", func(w *workload.Workload, h *l7.Host) {
			w.Addresses = [][]byte{netip.MustParseAddr("::ffff:127.0.0.1").AsSlice()}
		}, "", "", 0},
		{"on loopback of IPv6", func(w *workload.Workload, h *l7.Host) { w.Addresses = [][]byte{netip.IPv6Loopback().AsSlice()} }, "", "", 0},
		{"nowhere in particular", func(w *workload.Workload, h *l7.Host) { w.Addresses = [][]byte{{0, 0, 0, 0}} }, "", "", 0},
		{"link-local", func(w *workload.Workload, h *l7.Host) { w.Addresses = [][]byte{{169, 254, 169, 254}} }, "", "", 0},
		{"in a tunnel to loopback", func(w *workload.Workload, h *l7.Host) {
			w.Addresses, w.TunnelProtocol = [][]byte{{127, 0, 0, 1}}, workload.TunnelProtocol_HBONE
		}, "", "", 0},
		{"by the service's family", func(w *workload.Workload, h *l7.Host) {
			w.Addresses, h.Families = [][]byte{v4, v6}, workload.IPFamilies_IPV6_ONLY
		}, "[fd00::1]:8080", "", 1},
		{"of no family of the service's", func(w *workload.Workload, h *l7.Host) { h.Families = workload.IPFamilies_IPV6_ONLY }, "", "", 0},
		{"weighted", func(w *workload.Workload, h *l7.Host) { w.Capacity = wrapperspb.UInt32(7) }, "10.0.0.1:8080", "", 7},
		{"of no weight", func(w *workload.Workload, h *l7.Host) { w.Capacity = wrapperspb.UInt32(0) }, "", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &l7.Host{
				Ref: cluster.ServiceRef(cluster.Key{Namespace: "ns", Name: "a"}), Hostname: "a.ns.svc.cluster.local",
				Ports: []cluster.ServicePort{{Name: "http", Port: 80}},
			}
			w := &workload.Workload{
				Uid: "1", Namespace: "ns", Addresses: [][]byte{v4},
				Services: map[string]*workload.PortList{serviceA: {Ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080}}}},
			}
			c.change(w, h)
			got := l7.LoadAssignment(mesh, h, h.Ports[0], []*workload.Workload{w})
			if len(got.Endpoints) == 0 {
				if c.address != "" {
					t.Error("there is no endpoint")
				}
				return
			}
			e := got.Endpoints[0].LbEndpoints[0]
			address := e.GetEndpoint().GetAddress()
			at := address.GetEnvoyInternalAddress().GetEndpointId()
			if s := address.GetSocketAddress(); s != nil {
				at = netip.AddrPortFrom(netip.MustParseAddr(s.GetAddress()), uint16(s.GetPortValue())).String()
			}
			metadata := e.GetMetadata().GetFilterMetadata()
			identity := metadata["ambit.io/peer"].GetFields()["identity"].GetStringValue()
			if at != c.address || identity != c.identity || e.GetLoadBalancingWeight().GetValue() != c.weight {
				t.Errorf("endpoint at %q of %q with weight %d", at, identity, e.GetLoadBalancingWeight().GetValue())
			}
			tunnel := metadata["envoy.transport_socket_match"].GetFields()["tunnel"].GetStringValue() == "h2"
			if internal := address.GetEnvoyInternalAddress() != nil; internal != (identity != "") || tunnel != internal {
				t.Errorf("tunnel %t to an internal address %t for identity %q", tunnel, internal, identity)
			}
		})
	}
}

const serviceA = "ns/a.ns.svc.cluster.local"
