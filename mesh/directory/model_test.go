package directory_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// model is the directory said naively: lists that are searched from end to end.
type model struct {
	workloads map[string]*workloadpb.Workload
	services  []*workloadpb.Service // oldest first
}

func randomWorkload(r *rand.Rand) *workloadpb.Workload {
	w := pod(fmt.Sprint("w", r.IntN(30)), "")
	for range r.IntN(3) {
		w.Addresses = append(w.Addresses, []byte{10, 0, 0, byte(r.IntN(12))})
	}
	w.Network = pickOne(r, "", "", "net2")
	w.Node = pickOne(r, "node1", "node2", "node3")
	w.Locality = &workloadpb.Locality{Region: pickOne(r, "r1", "r2"), Zone: pickOne(r, "z1", "z2")}
	w.TunnelProtocol = pickOne(r, workloadpb.TunnelProtocol_HBONE, workloadpb.TunnelProtocol_NONE)
	w.Status = pickOne(r, workloadpb.WorkloadStatus_HEALTHY, workloadpb.WorkloadStatus_HEALTHY, workloadpb.WorkloadStatus_UNHEALTHY)
	w.NetworkMode = pickOne(r, workloadpb.NetworkMode_STANDARD, workloadpb.NetworkMode_STANDARD, workloadpb.NetworkMode_HOST_NETWORK)
	w.Capacity = pickOne(r, nil, wrapperspb.UInt32(0), wrapperspb.UInt32(3), wrapperspb.UInt32(300))
	for range r.IntN(3) {
		serves(fmt.Sprint("s", r.IntN(5)))(w)
	}
	return w
}

func randomService(r *rand.Rand) *workloadpb.Service {
	s := service(fmt.Sprint("s", r.IntN(5)))
	for range r.IntN(3) {
		s.Addresses = append(s.Addresses, vip(fmt.Sprintf("10.1.0.%d", r.IntN(4))))
	}
	if r.IntN(3) == 0 {
		s.Addresses = append(s.Addresses, cidr(fmt.Sprintf("10.1.0.0/%d", 8*(1+r.IntN(3)))))
	}
	s.Canonical = r.IntN(2) == 0
	if r.IntN(2) == 0 {
		balanced(pickOne(r, workloadpb.LoadBalancing_STRICT, workloadpb.LoadBalancing_FAILOVER),
			pickOne(r, []workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_REGION, workloadpb.LoadBalancing_ZONE},
				[]workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_NODE},
				[]workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_NETWORK, workloadpb.LoadBalancing_ZONE})...)(s)
	}
	if r.IntN(4) == 0 {
		if s.LoadBalancing == nil {
			s.LoadBalancing = &workloadpb.LoadBalancing{}
		}
		s.LoadBalancing.HealthPolicy = workloadpb.LoadBalancing_ALLOW_ALL
	}
	return s
}

func pickOne[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

// step changes both in the same way: one push of a few resources.
func (m *model) step(t *testing.T, r *rand.Rand, d *directory.Directory) {
	var upserts []proto.Message
	var removed []string
	seen := map[string]bool{}
	for range 1 + r.IntN(4) {
		switch r.IntN(5) {
		case 0, 1:
			if w := randomWorkload(r); !seen[w.GetUid()] {
				seen[w.GetUid()] = true
				m.workloads[w.GetUid()] = w
				upserts = append(upserts, w)
			}
		case 2:
			s := randomService(r)
			if seen[s.GetHostname()] {
				break
			}
			seen[s.GetHostname()] = true
			upserts = append(upserts, s)
			if i := slices.IndexFunc(m.services, func(o *workloadpb.Service) bool { return o.GetHostname() == s.GetHostname() }); i >= 0 {
				m.services[i] = s
			} else {
				m.services = append(m.services, s)
			}
		case 3:
			uid := fmt.Sprint("Kubernetes//Pod/shop/w", r.IntN(30))
			if !seen[uid] {
				seen[uid] = true
				delete(m.workloads, uid)
				removed = append(removed, uid)
			}
		case 4:
			host := fmt.Sprint("s", r.IntN(5))
			if !seen[host] && r.IntN(3) == 0 {
				seen[host] = true
				m.services = slices.DeleteFunc(m.services, func(s *workloadpb.Service) bool { return s.GetHostname() == host })
				removed = append(removed, "shop/"+host)
			}
		}
	}
	if rejected := d.HandleAddresses(resources(t, upserts...), removed); len(rejected) > 0 {
		t.Fatal(rejected)
	}
}

func (m *model) check(t *testing.T, d *directory.Directory) {
	t.Helper()
	for _, network := range []string{"", "net2"} {
		for i := range 12 {
			m.checkAddr(t, d, network, []byte{10, 0, 0, byte(i)})
		}
	}
	for i := range 4 {
		m.checkService(t, d, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
	}
	for _, s := range m.services {
		for uid := range m.workloads {
			m.checkPick(t, d, s, uid)
		}
		got := map[string]bool{}
		for w := range d.Endpoints(directory.ServiceKey{Namespace: "shop", Hostname: s.GetHostname()}) {
			got[w.UID] = true
		}
		want := map[string]bool{}
		for uid, w := range m.workloads {
			if w.GetServices()["shop/"+s.GetHostname()] != nil {
				want[uid] = true
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("endpoints of %s: %v, want %v", s.GetHostname(), got, want)
		}
	}
}

func (m *model) checkAddr(t *testing.T, d *directory.Directory, network string, addr []byte) {
	t.Helper()
	best := map[workloadpb.TunnelProtocol]bool{}
	var owners []string
	for uid, w := range m.workloads {
		if w.GetNetwork() == network && w.GetNetworkMode() == workloadpb.NetworkMode_STANDARD &&
			slices.ContainsFunc(w.GetAddresses(), func(a []byte) bool { return string(a) == string(addr) }) {
			owners = append(owners, uid)
			best[w.GetTunnelProtocol()] = true
		}
	}
	got := d.WorkloadByAddr(network, netip.AddrFrom4([4]byte(addr)))
	switch {
	case len(owners) == 0 && got != nil:
		t.Fatalf("%v is of %v, want nobody", addr, got)
	case len(owners) > 0 && (got == nil || !slices.Contains(owners, got.UID)):
		t.Fatalf("%v is of %v, want one of %v", addr, got, owners)
	case got != nil && (got.Tunnel == directory.TunnelHBONE) != best[workloadpb.TunnelProtocol_HBONE]:
		t.Fatalf("%v is of %v with %v", addr, got, got.Tunnel)
	}
}

// checkService allows any of those that are equally good: which of them had the address first, the model does not know.
func (m *model) checkService(t *testing.T, d *directory.Directory, addr netip.Addr) {
	t.Helper()
	score := func(s *workloadpb.Service) int {
		n := -1
		for _, a := range s.GetAddresses() {
			na, _ := netip.AddrFromSlice(a.GetAddress())
			switch {
			case a.GetLength() == nil && na == addr:
				n = max(n, 32)
			case a.GetLength() != nil && netip.PrefixFrom(na, int(a.GetLength().GetValue())).Contains(addr):
				n = max(n, int(a.GetLength().GetValue()))
			}
		}
		if n < 0 {
			return -1
		}
		n *= 2
		if s.GetCanonical() {
			n++
		}
		return n
	}
	got, best, gotScore := d.ServiceByAddr("", addr, "elsewhere"), -1, -1
	for _, s := range m.services {
		best = max(best, score(s))
		if got != nil && got.Hostname == s.GetHostname() {
			gotScore = score(s)
		}
	}
	if gotScore != best {
		t.Fatalf("ServiceByAddr(%s) = %v of score %d, the best score is %d", addr, got, gotScore, best)
	}
}

// checkPick picks once, and compares with the best rank by definition.
func (m *model) checkPick(t *testing.T, d *directory.Directory, s *workloadpb.Service, source string) {
	t.Helper()
	src := m.workloads[source]
	lb := s.GetLoadBalancing()
	ranks := map[int][]string{}
	top := -1
	for uid, w := range m.workloads {
		if w.GetServices()["shop/"+s.GetHostname()] == nil || w.GetCapacity() != nil && w.GetCapacity().GetValue() == 0 ||
			w.GetStatus() != workloadpb.WorkloadStatus_HEALTHY && lb.GetHealthPolicy() != workloadpb.LoadBalancing_ALLOW_ALL ||
			len(w.GetAddresses()) == 0 || w.GetNetwork() != src.GetNetwork() {
			continue
		}
		rank := 0
		for i, scope := range lb.GetRoutingPreference() {
			same := false
			switch scope {
			case workloadpb.LoadBalancing_REGION:
				same = w.GetLocality().GetRegion() == src.GetLocality().GetRegion()
			case workloadpb.LoadBalancing_ZONE:
				same = w.GetLocality().GetZone() == src.GetLocality().GetZone()
			case workloadpb.LoadBalancing_NODE:
				same = w.GetNode() == src.GetNode()
			case workloadpb.LoadBalancing_NETWORK:
				same = w.GetNetwork() == src.GetNetwork()
			}
			if !same {
				break
			}
			rank = i + 1
		}
		switch lb.GetMode() {
		case workloadpb.LoadBalancing_STRICT:
			if rank < len(lb.GetRoutingPreference()) {
				continue
			}
		case workloadpb.LoadBalancing_UNSPECIFIED_MODE:
			rank = 0
		}
		ranks[rank] = append(ranks[rank], uid)
		top = max(top, rank)
	}
	e, err := d.Pick(directory.PickRequest{Service: d.Service(directory.ServiceKey{Namespace: "shop", Hostname: s.GetHostname()}), Port: 80, Source: d.Workload(source)})
	switch {
	case top < 0 && !errors.Is(err, directory.ErrNoEndpoint):
		t.Fatalf("pick of %s for %s: %v, %v; want none", s, src, e.Workload, err)
	case top >= 0 && (err != nil || !slices.Contains(ranks[top], e.Workload.UID)):
		t.Fatalf("pick of %s for %s: %v, %v; want one of %v", s, src, e.Workload, err, ranks[top])
	}
}

// TestAgainstModel changes a directory and a naive model of it in the same random way, and compares them.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 0))
		d := newDirectory()
		m := &model{workloads: map[string]*workloadpb.Workload{}}
		for range 60 {
			m.step(t, r, d)
			m.check(t, d)
			if err := d.CheckEndpoints(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		var all []string
		for uid := range m.workloads {
			all = append(all, uid)
		}
		for _, s := range m.services {
			all = append(all, "shop/"+s.GetHostname())
		}
		remove(t, d, all...)
		if left := leftover(d); left != "" {
			t.Fatalf("seed %d: after all is gone, left: %s", seed, left)
		}
	}
}

func leftover(d *directory.Directory) string {
	var left []string
	for name, n := range d.Sizes() {
		if n != 0 {
			left = append(left, fmt.Sprint(name, "=", n))
		}
	}
	return strings.Join(left, " ")
}

// TestConcurrentReaders: look-ups run while everything changes; the race detector watches.
func TestConcurrentReaders(t *testing.T) {
	d := newDirectory()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(rand.Uint64(), 0))
			for {
				select {
				case <-stop:
					return
				default:
				}
				key := directory.ServiceKey{Namespace: "shop", Hostname: fmt.Sprint("s", r.IntN(5))}
				if s := d.Service(key); s != nil {
					e, err := d.Pick(directory.PickRequest{Service: s, Port: 80, Source: d.Workload(fmt.Sprint("Kubernetes//Pod/shop/w", r.IntN(30)))})
					if err == nil && e.Workload.Capacity == 0 {
						t.Error("picked an endpoint without capacity")
					}
					if err == nil {
						e.Workload.Hold()
						if r.IntN(4) == 0 {
							d.Succeeded(key, e.Workload.UID)
						} else {
							d.Failed(key, e.Workload.UID)
						}
						e.Workload.Release()
					}
				}
				for w := range d.Endpoints(key) {
					d.Policies(w)
				}
				d.WorkloadByAddr("", netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(12))}))
				d.ServiceByAddr("", netip.AddrFrom4([4]byte{10, 1, 0, byte(r.IntN(4))}), "x")
				d.WorkloadByPod("shop", "w1", "sa-w1")
				if r.IntN(50) == 0 {
					d.Dump()
					d.Subscribe(func(directory.Change) {})()
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 1))
	m := &model{workloads: map[string]*workloadpb.Workload{}}
	for range 600 {
		m.step(t, r, d)
	}
	close(stop)
	readers.Wait()
	if err := d.CheckEndpoints(); err != nil {
		t.Error(err)
	}
	var all []string
	for uid := range m.workloads {
		all = append(all, uid)
		if n := d.Workload(uid).Held(); n != 0 {
			t.Errorf("%s holds %d after all", uid, n)
		}
	}
	remove(t, d, all...)
	if n := d.Ejected(); n != 0 {
		t.Errorf("%d endpoints are ejected of none", n)
	}
	for _, w := range m.workloads {
		apply(t, d, w) // what failed is forgotten
	}
	m.check(t, d)
}
