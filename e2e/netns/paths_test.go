package netns

import (
	"testing"

	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestPaths calls along every path between captured and other pods, by pod address and by service, in both families.
func TestPaths(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, near, far := w.captured(n1, "client"), w.captured(n1, "near"), w.captured(n2, "far")
	plain := w.pod(n2, "plain")
	for _, p := range []*lab.Pod{client, near, far, plain} {
		w.listen(p, ":8080", echo)
	}
	services := map[*lab.Pod]*service{
		client: w.serve("client", 1, true, client),
		near:   w.serve("near", 2, true, near),
		far:    w.serve("far", 3, true, far),
		plain:  w.serve("plain", 4, false, plain),
	}
	w.settle()
	families(t, func(t *testing.T, v6 bool) {
		for _, path := range []struct {
			name     string
			from, to *lab.Pod
			tunnel   bool
		}{
			{"captured to captured, other node", client, far, true},
			{"captured to captured, same node", client, near, true},
			{"captured to itself", client, client, true},
			{"captured to plain", client, plain, false},
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
	})
}
