package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// TestHostileBaggage: what a client says of itself does not keep anybody's metrics from being scraped.
func TestHostileBaggage(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, name("one"))
	w.apply(all)
	c := w.client("HTTP/1.1")
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return w.clients.Open(ctx, hbone.Target{Addr: netip.MustParseAddrPort("192.0.2.1:15008"), Source: clientID, Expect: []identity.Identity{waypointID}},
			hbone.Request{Authority: fmt.Sprintf("%s:%d", configtest.Address, webPort),
				Baggage: "k8s.deployment.name=curl%FF,service.name=" + strings.Repeat("a", 300)})
	}
	do(t, c, "GET", "/", "")
	await(t, "the request is counted", func() bool {
		n, err := testutil.GatherAndCount(w.registry, "istio_requests_total")
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	})
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, l := range f.GetMetric()[0].GetLabel() {
			if l.GetName() == "source_workload" && l.GetValue() != "curl" || len(l.GetValue()) > maxLabel {
				t.Errorf("%s is %q", l.GetName(), l.GetValue())
			}
		}
	}
}

// TestClaimedCertificate: a backend sees no client certificate that the client itself has made up.
func TestClaimedCertificate(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(rw, "%q %q", r.Header.Values("x-forwarded-client-cert"), r.Header.Values("x-other"))
		}))
		w.apply(all)
		claim := "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/bank/sa/teller"
		if a := do(t, c, "GET", "/", "", claim, claim, "x-other: stays"); a.body != `[] ["stays"]` {
			t.Errorf("the backend got %s", a.body)
		}
	})
}

// TestEndpointLeaves: a request that waits for a connection to an endpoint which is taken away goes to another, even where the route
// asks for no retries: nothing was sent.
func TestEndpointLeaves(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		deaf := w.listen() // never shakes hands
		defer deaf.Close()
		ip := netip.MustParseAddr("10.0.0.9")
		w.mu.Lock()
		w.behind[netip.AddrPortFrom(ip, 15008)] = deaf.Addr().String()
		w.mu.Unlock()
		w.endpoints["c"] = []string{configtest.HBONE(netip.AddrPortFrom(ip, 8080), backendID, "pod-9;shop;stock;v9;Kubernetes")}
		const once = `- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s}}`
		w.apply(once)
		got := make(chan string, 1)
		go func() {
			a, err := try(c, "POST", "/", "body")
			got <- fmt.Sprintf("%d %v %s", statusOf(a), err, a.body)
		}()
		await(t, "the request waits", func() bool { return w.clusters.Lookup("c").Waiting() == 1 })
		w.endpoints["c"] = nil
		w.httpPod("c", 1, name("one"))
		w.apply(once)
		if a := <-got; a != "200 <nil> one POST stock.shop / body" {
			t.Error(a)
		}
	})
}

// TestMirrorsThatHang: copies that nobody answers leave places for copies to others.
func TestMirrorsThatHang(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxMirrors = 8 })
	var hanging, good atomic.Int64
	quit := make(chan struct{})
	defer close(quit)
	w.httpPod("c", 1, name("one"))
	w.httpPod("hang", 2, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		hanging.Add(1)
		select {
		case <-quit:
		case <-r.Context().Done():
		}
	}))
	w.httpPod("good", 3, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { good.Add(1) }))
	w.apply(`
- {name: a, match: {path: /a}, route: {cluster: c, timeout: 0s, request_mirror_policies: [{cluster: hang}]}}
- {name: b, match: {path: /b}, route: {cluster: c, timeout: 0s, request_mirror_policies: [{cluster: good}]}}`)
	c := w.client("HTTP/1.1")
	for range 8 {
		do(t, c, "GET", "/a", "")
	}
	await(t, "a copy hangs", func() bool { return hanging.Load() == 1 })
	do(t, c, "GET", "/b", "")
	await(t, "the other backend has its copy", func() bool { return good.Load() == 1 })
	if n := w.proxy.Counts().MirrorsDropped.Load(); n != 7 {
		t.Errorf("%d copies were dropped, want 7", n)
	}
}
