package netns

import (
	"testing"

	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestPaths calls along every path between captured and other pods, by pod address and by service, in both families.
func TestPaths(t *testing.T) { testPaths(newWorld(t)) }

func testPaths(w *world) {
	n1, n2 := w.node("node1"), w.node("node2")
	client, near, far := w.captured(n1, "client"), w.captured(n1, "near"), w.captured(n2, "far")
	plain := w.pod(n2, "plain")
	stranger, err := n2.AddPod("stranger") // which discovery does not know
	w.must(err)
	for _, p := range []*lab.Pod{client, near, far, plain, stranger} {
		w.listen(p, ":8080", echo)
	}
	services := map[*lab.Pod]*service{
		client: w.serve("client", 1, true, client),
		near:   w.serve("near", 2, true, near),
		far:    w.serve("far", 3, true, far),
		plain:  w.serve("plain", 4, false, plain),
	}
	w.settle()
	w.families(func(t *testing.T, v6 bool) {
		for _, path := range []struct {
			name     string
			from, to *lab.Pod
		}{
			{"captured to captured, other node", client, far},
			{"captured to captured, same node", client, near},
			{"captured to itself", client, client},
			{"captured to plain", client, plain},
		} {
			t.Run(path.name, func(t *testing.T) {
				w := w.in(t)
				w.expect(path.from, addr(path.to, v6, 8080), ip(path.from, v6))
				w.expect(path.from, services[path.to].at(v6, 80), ip(path.from, v6))
			})
		}
		t.Run("plain to captured", func(t *testing.T) {
			w := w.in(t)
			w.expect(plain, addr(client, v6, 8080), ip(plain, v6))
		})
		t.Run("captured to an unknown address and back", func(t *testing.T) {
			w := w.in(t)
			w.expect(client, addr(stranger, v6, 8080), ip(client, v6))
			w.expect(stranger, addr(client, v6, 8080), ip(stranger, v6))
		})
	})
}

// TestEndpoints calls services of which some endpoints are dead, in every way, and one that has none.
func TestEndpoints(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client := w.captured(n1, "client")
	good, refuses := w.captured(n2, "good"), w.captured(n2, "refuses")
	plain, silent := w.pod(n2, "plain"), w.pod(n2, "silent")
	w.listen(good, ":8080", echo)
	w.listen(plain, ":8080", echo)
	// refuses has a proxy and no application; silent is said to have a proxy and has none.
	tunnels := w.serve("tunnels", 1, true, good, refuses, silent)
	mixed := w.serve("mixed", 2, false, plain, w.pod(n2, "closed"))
	none := w.serve("none", 3, true)
	w.settle()
	for range 30 {
		w.expect(client, tunnels.at(false, 80), client.IPv4)
		w.expect(client, mixed.at(true, 80), client.IPv6)
	}
	w.refused(client, none.at(false, 80))
	w.refused(client, tunnels.at(false, 81)) // no such port
	w.logged(w.proxies[0], "default/"+none.host, "no healthy endpoint")
}
