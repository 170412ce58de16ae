package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// applyDirect gives the waypoint what one that is for workloads has.
func (w *world) applyDirect() {
	w.t.Helper()
	listener := configtest.Listener("0s")
	chains := listener[strings.Index(listener, "filter_chains:\n")+len("filter_chains:\n"):]
	http, raw, _ := strings.Cut(chains, "- name: raw")
	listener += strings.Replace(http, "- name: "+configtest.Chain, "- name: direct-http", 1) + "- name: direct-tcp" + strings.Replace(raw, "cluster: raw", "cluster: encap", 1)
	w.push(xds.TypeCluster, "encap", &clusterv3.Cluster{
		Name: "encap", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}, LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
	})
	w.applyWith("- {name: r, match: {prefix: /}, route: {cluster: encap, timeout: 0s}}", listener)
}

// push applies one resource.
func (w *world) push(typeURL, name string, content proto.Message) {
	w.t.Helper()
	a, err := anypb.New(content)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range append(w.store.Handlers(), xds.Handler{TypeURL: xds.TypeAddress, Apply: w.store.ApplyWorkloads}) {
		if h.TypeURL != typeURL {
			continue
		}
		for _, r := range h.Apply([]*discoveryv3.Resource{{Name: name, Resource: a}}, nil) {
			w.t.Fatalf("%s was rejected: %v", r.Name, r.Err)
		}
	}
}

// bind tells the waypoint of a pod whose own address it serves.
func (w *world) bind(n byte, account string, protocol workload.AppProtocol) {
	w.t.Helper()
	w.push(xds.TypeAddress, string(rune('a'+n)), &workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{
		Uid: string(rune('a' + n)), Name: "pod", Namespace: "shop", ServiceAccount: account, Addresses: [][]byte{{10, 0, 0, n}}, TunnelProtocol: workload.TunnelProtocol_HBONE,
		Services: map[string]*workload.PortList{"shop/stock": {Ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: protocol}}}},
		Waypoint: &workload.GatewayAddress{HboneMtlsPort: 15008},
	}}})
}

// to opens a client's connection to an address.
func (w *world) to(authority string) (*hbone.Stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return w.clients.Open(ctx, hbone.Target{Addr: netip.MustParseAddrPort("192.0.2.1:15008"), Source: clientID, Expect: []identity.Identity{waypointID}},
		hbone.Request{Authority: authority})
}

// TestDirect: what clients send to a workload's own address goes there and nowhere else, as HTTP where a service says so of the port and
// as bytes elsewhere, so that a server may speak first; and to whom the control plane says that the workload is.
func TestDirect(t *testing.T) {
	w := newWorld(t)
	w.httpPod("unused", 1, name("direct"))
	w.pod("unused", 2, backendID, func(nc net.Conn) {
		defer nc.Close()
		_, _ = io.WriteString(nc, "hello")
		_, _ = io.Copy(io.Discard, nc)
	})
	delete(w.endpoints, "unused")
	w.applyDirect()
	if _, err := w.to("10.0.0.1:8080"); err == nil {
		t.Fatal("a workload is served that is not bound")
	}
	w.bind(1, "stock", workload.AppProtocol_HTTP11)
	w.bind(2, "stock", workload.AppProtocol_TCP)
	client := w.client("HTTP/1.1")
	client.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) { return w.to("10.0.0.1:8080") }
	for range 2 {
		if got := do(t, client, "GET", "/x", ""); got.StatusCode != 200 || !strings.Contains(got.body, "direct") {
			t.Fatalf("%d %q", got.StatusCode, got.body)
		}
	}
	endpoints := func() (all []string) {
		w.clusters.Lookup("encap").Endpoints(func(e *upstream.Endpoint) { all = append(all, e.Addr().String()+" "+e.Identity().ServiceAccount) })
		return all
	}
	if got := endpoints(); len(got) != 1 || got[0] != "10.0.0.1:8080 stock" {
		t.Errorf("endpoints %q", got)
	}
	raw, err := w.to("10.0.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	hello := make([]byte, 5)
	if _, err := io.ReadFull(raw, hello); err != nil || string(hello) != "hello" {
		t.Errorf("%q, %v", hello, err)
	}
	_ = raw.Close()
	if _, err := w.to("10.0.0.3:8080"); err == nil {
		t.Error("an address is served that is no workload's")
	}

	w.bind(1, "somebody", workload.AppProtocol_HTTP11)
	if got := do(t, client, "GET", "/x", ""); got.StatusCode != 503 {
		t.Errorf("who is there is not who should be: %d %q", got.StatusCode, got.body)
	}
	w.store.ApplyWorkloads(nil, []string{string(rune('a' + 1))})
	if got := endpoints(); len(got) != 0 {
		t.Errorf("endpoints %q", got)
	}
	await(t, "its client is not served any more", func() bool {
		_, err := try(client, "GET", "/x", "")
		return err != nil
	})
}
