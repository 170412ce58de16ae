package proxy

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// TestClientIsFirst: a client that comes before the proxy was told of the destination, and a request before its routes, are
// served once that has come.
func TestClientIsFirst(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Wait = 2 * patience })
	w.httpPod("main", 1, name("one"))
	got := make(chan answer, 1)
	failed := make(chan error, 1)
	client := w.client("HTTP/1.1")
	go func() {
		a, err := try(client, "GET", "/first", "")
		if err != nil {
			failed <- err
			return
		}
		got <- a
	}()
	await(t, "the tunnel is there", func() bool { return w.proxy.Open() == 1 })
	routes := "- {match: {prefix: /}, route: {cluster: main}}"
	w.applyTypes(routes, configtest.Listener("0s"), xds.TypeCluster, xds.TypeEndpoints, xds.TypeListener)
	await(t, "the connection is served", func() bool { return w.proxy.Counts().HTTP.Load() == 1 })
	w.applyTypes(routes, configtest.Listener("0s"), xds.TypeRoutes)
	select {
	case a := <-got:
		if a.StatusCode != 200 || a.Header.Get("x-backend") != "one" {
			t.Errorf("%d %s", a.StatusCode, a.body)
		}
	case err := <-failed:
		t.Error(err)
	}
}

// TestNothingComes: waiting has an end.
func TestNothingComes(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Wait = 1 })
	if _, err := w.tunnel(context.Background(), webPort); err == nil {
		t.Error("a tunnel to nowhere")
	}
	w.applyTypes("- {match: {prefix: /}, route: {cluster: main}}", configtest.Listener("0s"), xds.TypeListener)
	if a := do(t, w.client("HTTP/1.1"), "GET", "/", ""); a.StatusCode != 503 {
		t.Errorf("without routes: %d %s", a.StatusCode, a.body)
	}
}

// TestServiceLeaves: when a service has left the waypoint, a connection from before it serves the request that is on its way, and tells
// the client that it ends; a new one is refused.
func TestServiceLeaves(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, name("one"))
	w.apply(all)
	c := w.client("HTTP/1.1")
	if a := do(t, c, "GET", "/", ""); a.StatusCode != 200 || a.Close {
		t.Fatalf("%d %s, close %t", a.StatusCode, a.body, a.Close)
	}
	for _, h := range w.store.Handlers() {
		h.Apply(nil, map[string][]string{xds.TypeListener: {"main_internal"}, xds.TypeRoutes: {configtest.Chain}, xds.TypeCluster: {"c"}, xds.TypeEndpoints: {"c"}}[h.TypeURL])
	}
	if a := do(t, c, "POST", "/", "late"); a.StatusCode != 200 || !a.Close {
		t.Errorf("%d %s, close %t; want it served, and the end of the connection", a.StatusCode, a.body, a.Close)
	}
	if _, err := w.tunnel(t.Context(), webPort); err == nil {
		t.Error("a new connection is taken")
	}
}

// TestTunnelLeaves: when the node proxy of a backend is replaced, requests leave its tunnels at once, before what is in them is cut.
func TestTunnelLeaves(t *testing.T) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			ln := newStreams()
			w.serveHTTP(ln, name("one"))
			var carried atomic.Int32
			server := w.pod("c", 1, backendID, func(nc net.Conn) {
				carried.Add(1)
				ln.carry(nc)
			})
			w.apply(all)
			c := w.client(version)
			ask := func() {
				if a := do(t, c, "GET", "/", ""); a.StatusCode != 200 {
					t.Fatalf("%d %s", a.StatusCode, a.body)
				}
			}
			ask()
			server.GoAway()
			await(t, "requests come by another tunnel", func() bool {
				ask()
				return carried.Load() > 1
			})
			await(t, "the old tunnel ends", func() bool { return server.Stats().Connections == 1 })
			ask()
		})
	}
}
