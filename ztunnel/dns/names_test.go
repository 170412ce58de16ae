package dns

import (
	"net/netip"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/miekg/dns"
	"google.golang.org/protobuf/types/known/anypb"
	"log/slog"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// meshOf makes a directory of services and workloads.
func meshOf(t testing.TB, all ...*workload.Address) *directory.Directory {
	t.Helper()
	d := directory.New(directory.Config{Logger: slog.New(slog.DiscardHandler)})
	var resources []*discoveryv3.Resource
	for _, a := range all {
		name := a.GetWorkload().GetUid()
		if s := a.GetService(); s != nil {
			name = s.GetNamespace() + "/" + s.GetHostname()
		}
		body, err := anypb.New(a)
		if err != nil {
			t.Fatal(err)
		}
		resources = append(resources, &discoveryv3.Resource{Name: name, Resource: body})
	}
	if rejected := d.HandleAddresses(resources, nil); len(rejected) > 0 {
		t.Fatal(rejected)
	}
	return d
}

// service makes a service with addresses.
func service(namespace, host string, addrs ...string) *workload.Service {
	s := &workload.Service{Name: host, Namespace: namespace, Hostname: host}
	for _, a := range addrs {
		s.Addresses = append(s.Addresses, &workload.NetworkAddress{Address: netip.MustParseAddr(a).AsSlice()})
	}
	return s
}

func ofService(s *workload.Service) *workload.Address {
	return &workload.Address{Type: &workload.Address_Service{Service: s}}
}

// pod makes a pod that is an endpoint of services, given as namespace/host.
func pod(namespace, name string, healthy bool, addr string, services ...string) *workload.Address {
	w := &workload.Workload{Uid: "Kubernetes//Pod/" + namespace + "/" + name, Name: name, Namespace: namespace,
		Addresses: [][]byte{netip.MustParseAddr(addr).AsSlice()}, Services: map[string]*workload.PortList{}}
	if !healthy {
		w.Status = workload.WorkloadStatus_UNHEALTHY
	}
	for _, s := range services {
		w.Services[s] = &workload.PortList{}
	}
	return &workload.Address{Type: &workload.Address_Workload{Workload: w}}
}

// mesh is the one of these tests.
func mesh(t testing.TB) *directory.Directory {
	hidden := service("shop", "secret.shop.svc.cluster.local", "10.96.0.7")
	hidden.Visibility = workload.Service_NAMESPACE
	notReady := service("shop", "early.shop.svc.cluster.local")
	notReady.LoadBalancing = &workload.LoadBalancing{HealthPolicy: workload.LoadBalancing_ALLOW_ALL}
	return meshOf(t,
		ofService(service("shop", "web.shop.svc.cluster.local", "10.96.0.1", "fd96::1")),
		ofService(service("shop", "db.shop.svc.cluster.local")),
		ofService(notReady),
		ofService(service("shop", "gone.shop.svc.cluster.local")),
		ofService(hidden),
		ofService(service("shop", "api.example.com", "240.240.0.1")),
		ofService(service("shop", "*.wild.example.com", "240.240.0.2")),
		ofService(service("shop", "deep.wild.example.com", "240.240.0.3")),
		ofService(service("shop", "none.example.com")),
		pod("shop", "db-0", true, "10.0.0.10", "shop/db.shop.svc.cluster.local"),
		pod("shop", "db-1", false, "10.0.0.11", "shop/db.shop.svc.cluster.local"),
		pod("shop", "early-0", false, "10.0.0.12", "shop/early.shop.svc.cluster.local"),
		pod("shop", "other-0", true, "10.0.0.13", "shop/none.example.com"),
	)
}

func TestLookUp(t *testing.T) {
	d := mesh(t)
	cluster := clusterSettings("shop", "cluster.local")
	own := NewSettings(nil, []string{"example.com", "shop.svc.cluster.local."}, 2)
	for _, tc := range []struct {
		name, namespace, ask string
		settings             Settings
		want                 string   // the name that has the addresses; empty: not the mesh's
		addrs                []string // sorted
	}{
		{"a service, both families", "shop", "web.shop.svc.cluster.local", cluster, "web.shop.svc.cluster.local", []string{"10.96.0.1", "fd96::1"}},
		{"from another namespace", "food", "web.shop.svc.cluster.local", cluster, "web.shop.svc.cluster.local", []string{"10.96.0.1", "fd96::1"}},
		{"a short name is expanded by the search path", "shop", "web", cluster, "web.shop.svc.cluster.local", []string{"10.96.0.1", "fd96::1"}},
		{"one with two labels", "shop", "web.shop", cluster, "web.shop.svc.cluster.local", []string{"10.96.0.1", "fd96::1"}},
		{"not by a search path that the pod has not", "food", "web", clusterSettings("food", "cluster.local"), "", nil},
		{"no search path, no short names", "shop", "web", NewSettings(nil, nil, 5), "", nil},
		{"the pod's own search path", "shop", "api", own, "api.example.com", []string{"240.240.0.1"}},
		{"ndots: enough dots are not expanded", "shop", "web.shop.svc", NewSettings(nil, []string{"cluster.local"}, 2), "", nil},
		{"ndots: one more", "shop", "web.shop.svc", NewSettings(nil, []string{"cluster.local"}, 3), "web.shop.svc.cluster.local", []string{"10.96.0.1", "fd96::1"}},
		{"a resolver put a search domain behind", "shop", "api.example.com.shop.svc.cluster.local", cluster, "api.example.com", []string{"240.240.0.1"}},
		{"but not behind one with dots enough", "shop", "api.example.com.shop.svc.cluster.local", own, "", nil},
		{"headless: ready endpoints", "shop", "db.shop.svc.cluster.local", cluster, "db.shop.svc.cluster.local", []string{"10.0.0.10"}},
		{"headless: unready ones if it wants that", "shop", "early.shop.svc.cluster.local", cluster, "early.shop.svc.cluster.local", []string{"10.0.0.12"}},
		{"headless without endpoints", "shop", "gone.shop.svc.cluster.local", cluster, "", nil},
		{"a pod of a StatefulSet", "shop", "db-0.db.shop.svc.cluster.local", cluster, "db-0.db.shop.svc.cluster.local", []string{"10.0.0.10"}},
		{"the same, short", "shop", "db-0.db", cluster, "db-0.db.shop.svc.cluster.local", []string{"10.0.0.10"}},
		{"an unready pod", "shop", "db-1.db.shop.svc.cluster.local", cluster, "", nil},
		{"a pod of another service", "shop", "other-0.db.shop.svc.cluster.local", cluster, "", nil},
		{"a pod of a service with an address", "shop", "db-0.web.shop.svc.cluster.local", cluster, "", nil},
		{"a pattern", "shop", "a.wild.example.com", cluster, "a.wild.example.com", []string{"240.240.0.2"}},
		{"a pattern, further down", "shop", "a.b.wild.example.com", cluster, "a.b.wild.example.com", []string{"240.240.0.2"}},
		{"the name itself is not of the pattern", "shop", "wild.example.com", cluster, "", nil},
		{"a name beats a pattern", "shop", "deep.wild.example.com", cluster, "deep.wild.example.com", []string{"240.240.0.3"}},
		{"an entry without addresses", "shop", "none.example.com", cluster, "", nil},
		{"a service that is not for others", "food", "secret.shop.svc.cluster.local", cluster, "", nil},
		{"but for its own", "shop", "secret.shop.svc.cluster.local", cluster, "secret.shop.svc.cluster.local", []string{"10.96.0.7"}},
		{"unknown", "shop", "www.example.org", cluster, "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := names{directory: d, namespace: tc.namespace, clusterID: "Kubernetes", clusterDomain: "cluster.local"}
			f, ok := n.lookUp(tc.ask, dns.TypeA, tc.settings)
			var got []string
			for _, a := range f.addrs {
				got = append(got, a.String())
			}
			slices.Sort(got)
			if ok != (tc.want != "") || ok && (f.name != tc.want || !slices.Equal(got, tc.addrs)) {
				t.Errorf("%v: %q %v, want %q %v", ok, f.name, got, tc.want, tc.addrs)
			}
		})
	}
}

// TestManyEndpoints: of a large service some are chosen, and each has its chance.
func TestManyEndpoints(t *testing.T) {
	d := many{n: 4 * maxEndpoints}
	n := names{directory: d, namespace: "shop", clusterDomain: "cluster.local"}
	seen := map[netip.Addr]bool{}
	for range 50 {
		f, ok := n.exact("db.shop.svc.cluster.local")
		if !ok || len(f.addrs) != maxEndpoints {
			t.Fatalf("%v, %d addresses, want %d", ok, len(f.addrs), maxEndpoints)
		}
		for _, a := range f.addrs {
			seen[a] = true
		}
	}
	if len(seen) < d.n*9/10 {
		t.Errorf("%d of %d endpoints in 50 answers", len(seen), d.n)
	}
}

// many is a directory with one headless service of n endpoints.
type many struct{ n int }

func (m many) ServiceByHost(host, _ string) *directory.Service {
	return &directory.Service{ServiceKey: directory.ServiceKey{Namespace: "shop", Hostname: host}}
}

func (m many) Endpoints(directory.ServiceKey) func(func(*directory.Workload) bool) {
	return func(yield func(*directory.Workload) bool) {
		for i := range m.n {
			if !yield(&directory.Workload{Healthy: true, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}}) {
				return
			}
		}
	}
}

func (m many) Workload(string) *directory.Workload { return nil }
