package state_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/istiod-lite/xds"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
)

var benchMesh = translate.Mesh{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}

// fill makes a mesh of 100 namespaces and 100 nodes with a service for each ten pods.
func fill(pods int) []cluster.Object {
	var out []cluster.Object
	for i := range 100 {
		out = append(out, &cluster.Namespace{Name: fmt.Sprintf("ns-%d", i)},
			&cluster.Node{Name: fmt.Sprintf("node-%d", i), Locality: cluster.Locality{Region: "r", Zone: fmt.Sprintf("z%d", i%3)}})
	}
	for i := range pods / 10 {
		out = append(out, &cluster.Service{
			Key:        cluster.Key{Namespace: fmt.Sprintf("ns-%d", i%100), Name: fmt.Sprintf("svc-%d", i)},
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}, IPv4: true,
			Selector: cluster.LabelsOf(map[string]string{"app": fmt.Sprintf("app-%d", i)}),
			Ports:    []cluster.ServicePort{{Name: "http", Port: 80, Target: 8080}},
		})
	}
	for i := range pods {
		out = append(out, benchPod(i, true))
	}
	return out
}

func benchPod(i int, ready bool) *cluster.Pod {
	svc := i / 10
	return &cluster.Pod{
		Key: cluster.Key{Namespace: fmt.Sprintf("ns-%d", svc%100), Name: fmt.Sprintf("app-%d-5d4f8c7b9d-%05d", svc, i)}, UID: fmt.Sprintf("uid-%036d", i),
		Node: fmt.Sprintf("node-%d", i%100), ServiceAccount: "default", IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
		Ready: ready, Redirected: true, Redirection: "enabled",
		Labels:     cluster.LabelsOf(map[string]string{"app": fmt.Sprintf("app-%d", svc), "pod-template-hash": "5d4f8c7b9d"}),
		Controller: cluster.Controller{Kind: "ReplicaSet", Name: fmt.Sprintf("app-%d-5d4f8c7b9d", svc)},
	}
}

// BenchmarkFirstFlush translates a whole mesh.
func BenchmarkFirstFlush(b *testing.B) {
	objects := fill(10_000)
	for b.Loop() {
		s := state.New(benchMesh)
		for _, o := range objects {
			s.Upsert(o)
		}
		s.Flush()
	}
}

// BenchmarkPodChange translates one changed pod. Its cost must not depend on the size of the mesh.
func BenchmarkPodChange(b *testing.B) {
	for _, size := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := state.New(benchMesh)
			for _, o := range fill(size) {
				s.Upsert(o)
			}
			s.Flush()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.Upsert(benchPod(i%1000, (i/1000)%2 == 1))
				if c := s.Flush(); len(c.Upserts) != 1 {
					b.Fatalf("%d resources changed", len(c.Upserts))
				}
				i++
			}
		})
	}
}

// BenchmarkPodChangePush takes one changed pod from the event to a client's hands over gRPC on loopback, and waits for it
// each time; and then as many as come.
func BenchmarkPodChangePush(b *testing.B) {
	for _, size := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("one-by-one/%d", size), func(b *testing.B) {
			loop, client := pipeline(b, size)
			i := 0
			for b.Loop() {
				p := benchPod(i%1000, (i/1000)%2 == 1)
				loop.Post(cluster.Event{Kind: cluster.KindPod, Op: cluster.Upsert, Key: p.Key, Object: p})
				if r := client.NextAck(); len(r.GetResources()) != 1 {
					b.Fatalf("%d resources came", len(r.GetResources()))
				}
				i++
			}
		})
		b.Run(fmt.Sprintf("burst/%d", size), func(b *testing.B) {
			loop, client := pipeline(b, size)
			last := benchPod(999, true)
			name := translate.PodUID(benchMesh, last.Key)
			for b.Loop() {
				before := client.Resources[resource.Address][name]
				for i := range 1000 {
					p := benchPod(i, !last.Ready)
					loop.Post(cluster.Event{Kind: cluster.KindPod, Op: cluster.Upsert, Key: p.Key, Object: p})
				}
				last.Ready = !last.Ready
				client.Until("the last of the burst", func() bool { return client.Resources[resource.Address][name] != before })
			}
			b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

// pipeline is a loop, a hub and a client that has everything.
func pipeline(b *testing.B, size int) (*state.Loop, *xdstest.Client) {
	b.Helper()
	registry, log := prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	hub := xds.NewHub(xds.NewMetrics(registry))
	loop := state.NewLoop(state.LoopConfig{Namespace: "istio-system", ClusterID: benchMesh.ClusterID, ClusterDomain: benchMesh.ClusterDomain,
		Kinds: []cluster.Kind{cluster.KindPod}, Publish: hub.Publish, Registerer: registry, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); loop.Run(ctx) }()
	server := grpc.NewServer(grpc.ForceServerCodecV2(xds.Codec()))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, &xds.Server{Hub: hub, Log: log, Refusals: auth.NewRefusals(log),
		Identify: func(context.Context) (auth.Caller, error) { return auth.Caller{}, nil }, Admit: func(auth.Caller) error { return nil }})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(ln) }() // its error is that it was stopped
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(); server.Stop(); <-served; cancel(); <-ended })
	var pods []cluster.Object
	for _, o := range fill(size) {
		if o.ObjectKind() == cluster.KindPod {
			pods = append(pods, o)
			continue
		}
		loop.Post(cluster.Event{Kind: o.ObjectKind(), Op: cluster.Upsert, Key: o.ObjectKey(), Object: o})
	}
	loop.Post(cluster.Event{Kind: cluster.KindPod, Op: cluster.Replace, Objects: pods})
	select {
	case <-loop.Ready():
	case <-time.After(time.Minute):
		b.Fatal("the state is not complete after a minute")
	}
	client := xdstest.Open(ctx, b, conn, nil)
	client.Subscribe(resource.Authorization, nil)
	client.Subscribe(resource.Address, nil)
	for range 2 {
		client.NextAck()
	}
	return loop, client
}
