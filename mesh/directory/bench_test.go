package directory_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// benchSize is the mesh of the benchmarks: workloads; a service has ten of them, a node a hundred.
const benchSize = 100_000

func benchAddr(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|uint32(i+1))
	return netip.AddrFrom4(b)
}

func benchWorkload(i int) *workloadpb.Workload {
	ns := fmt.Sprintf("namespace-%d", i/10%100)
	name := fmt.Sprintf("deployment-%d-7c5ddbdf54-%05d", i/10, i)
	return &workloadpb.Workload{
		Uid: "Kubernetes//Pod/" + ns + "/" + name, Name: name, Namespace: ns, ServiceAccount: "default",
		Addresses: [][]byte{benchAddr(i).AsSlice()}, Node: fmt.Sprintf("node-%d", i/100),
		TunnelProtocol: workloadpb.TunnelProtocol_HBONE, WorkloadName: fmt.Sprintf("deployment-%d", i/10),
		CanonicalName: fmt.Sprintf("app-%d", i/10), CanonicalRevision: "latest", ClusterId: "Kubernetes",
		Locality: &workloadpb.Locality{Region: "region", Zone: fmt.Sprintf("zone-%d", i%3)},
		Services: map[string]*workloadpb.PortList{
			fmt.Sprintf("%s/service-%d.%s.svc.cluster.local", ns, i/10, ns): {Ports: []*workloadpb.Port{port(80, 8080)}},
		},
	}
}

// benchDirectory is made once for all benchmarks; those that change it change it back.
var benchDirectory = sync.OnceValues(func() (*directory.Directory, uint64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	d := newDirectory()
	for start := 0; start < benchSize; start += 1000 {
		var push []*discoveryv3.Resource
		for i := start; i < start+1000; i++ {
			push = append(push, resource(&testing.B{}, benchWorkload(i)))
		}
		d.HandleAddresses(push, nil)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	return d, after.HeapAlloc - before.HeapAlloc
})

func BenchmarkLookup100k(b *testing.B) {
	d, heap := benchDirectory()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if d.WorkloadByAddr("", benchAddr(i%benchSize)) == nil {
			b.Fatal("not found")
		}
		i += 7919
	}
	b.ReportMetric(float64(heap)/benchSize, "heap-B/workload")
}

// BenchmarkUpdate100k changes one workload's health to and fro.
func BenchmarkUpdate100k(b *testing.B) {
	d, _ := benchDirectory()
	w := benchWorkload(4711)
	push := [2][]*discoveryv3.Resource{resources(b, w)}
	w.Status = workloadpb.WorkloadStatus_UNHEALTHY
	push[1] = resources(b, w)
	b.ReportAllocs()
	i := 1
	for b.Loop() {
		d.HandleAddresses(push[i%2], nil)
		i++
	}
	d.HandleAddresses(push[0], nil)
}

// BenchmarkAddRemove100k adds a workload and removes it.
func BenchmarkAddRemove100k(b *testing.B) {
	d, _ := benchDirectory()
	w := benchWorkload(benchSize + 1)
	push := resources(b, w)
	b.ReportAllocs()
	for b.Loop() {
		d.HandleAddresses(push, nil)
		d.HandleAddresses(nil, []string{w.GetUid()})
	}
}

func benchService(b *testing.B, n int) (*directory.Directory, directory.PickRequest) {
	d := newDirectory()
	apply(b, d, service("web", balanced(workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_REGION, workloadpb.LoadBalancing_ZONE, workloadpb.LoadBalancing_NODE)),
		pod("client", "10.200.0.1", place("r1", "z1", "node1")))
	for i := range n {
		w := pod(fmt.Sprint("p", i), "", serves("web"), place("r1", "z1", fmt.Sprint("node", 2+i%50)))
		w.Addresses = [][]byte{benchAddr(i).AsSlice()}
		apply(b, d, w)
	}
	return d, directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, "client"), Addr: netip.MustParseAddr("10.1.0.1")}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d, r := benchService(b, n)
			if _, err := d.Pick(r); err != nil { // makes the view
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Pick(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFirstPick is what the first client of a locality pays.
func BenchmarkFirstPick(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d, r := benchService(b, n)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				client := *r.Source
				client.Locality.Zone = fmt.Sprint("z", i)
				r.Source = &client
				if _, err := d.Pick(r); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkEndpointUpdate changes one of n endpoints of a service that is in use.
func BenchmarkEndpointUpdate(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d, r := benchService(b, n)
			if _, err := d.Pick(r); err != nil {
				b.Fatal(err)
			}
			w := pod("p5", "10.3.0.1", serves("web"), place("r1", "z1", "node9"))
			push := [2][]*discoveryv3.Resource{resources(b, w)}
			unhealthy(w)
			push[1] = resources(b, w)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				d.HandleAddresses(push[i%2], nil)
				i++
			}
		})
	}
}
