package scenarios

import (
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/harness"
)

// plain: without a mesh everything that the stories rely on works, and the links show payload in clear. It proves that the
// other stories' means of proof can tell.
func plain() scenario {
	const ns = "ambit-plain"
	return scenario{
		name: "00-without-a-mesh", manifest: "plain.yaml", namespaces: []string{ns},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			l := w.load(t, "plain", loadRate, loadHeld)
			w.expect(t, w.everyWay(t, ns, ns, w.crossings()))
			for _, capture := range captures {
				flows := capture.Flows(w.addresses(t, ns)...)
				if len(harness.InClear(flows)) == 0 || len(harness.NotTunnelled(flows)) == 0 {
					t.Errorf("the link of %s saw no payload in clear in %d flows", capture.Node, len(flows))
				}
			}
			var wg sync.WaitGroup
			for _, pair := range w.crossings() {
				from := harness.Pod{Namespace: ns, Name: pair.from}
				to := w.ips(t, harness.Pod{Namespace: ns, Name: pair.to})[0].String()
				wg.Go(func() { w.smallShapes(t, from, to) })
			}
			wg.Wait()
			l.stop(t, "load without a mesh", limits{})
			for _, node := range nodes() {
				left, err := w.leftovers(t, node)
				w.must(t, err)
				if len(left) > 0 {
					t.Errorf("on %s, which has never had a mesh or has been left by one, there is:\n%s", node, clip(left, 20))
				}
			}
		},
	}
}
