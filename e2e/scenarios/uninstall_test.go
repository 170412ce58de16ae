package scenarios

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// uninstall: the mesh is removed from under traffic. No new connection fails; held ones may be cut when the time that was given to
// `ambit uninstall` is over, and not before; and nothing of the mesh is left, in the cluster or on the nodes.
func uninstall() scenario {
	const ns = "ambit-uninstall"
	const patience = 20 * time.Second
	return scenario{
		name: "10-uninstall-under-load", manifest: "uninstall.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			for _, name := range nodes() {
				node, err := w.Node(name)
				w.must(t, err)
				if saved, err := os.ReadDir(node.Path(stateDir)); err != nil || len(saved) == 0 {
					t.Errorf("%s has no state of a node proxy that could go: %v, %v", name, saved, err)
				}
			}
			l := w.load(t, "uninstall", loadRate, loadHeld)
			start := time.Now()
			out, err := w.Run(w.ctx, ambit(w.Cluster), "uninstall", "--timeout", patience.String())
			t.Logf("ambit uninstall (%s):\n%s", time.Since(start).Round(time.Second), out)
			w.must(t, err)
			w.linger(t)
			l.stop(t, "load over the uninstall", limits{cut: func(f traffic.Failure) bool { return f.At.Sub(start) > patience }})

			captures := w.capture(t, nodes()...)
			for range 3 {
				w.expect(t, w.everyWay(t, ns, ns, w.crossings()))
			}
			for _, capture := range captures {
				if len(harness.InClear(capture.Flows(w.addresses(t, ns)...))) == 0 {
					t.Errorf("the link of %s saw no payload in clear after the mesh was removed", capture.Node)
				}
			}
			for _, node := range nodes() {
				w.must(t, harness.Await(w.ctx, harness.Until{What: node + " clean", Within: converged}, func(context.Context) error {
					left, err := w.leftovers(t, node)
					if err == nil && len(left) > 0 {
						err = errors.New("left there:\n" + clip(left, 30))
					}
					return err
				}))
			}
			pods, err := w.Pods(w.ctx, api.DefaultNamespace, api.LabelPartOf+"="+api.PartOf)
			if err != nil || len(pods) > 0 {
				t.Errorf("%d pods of the mesh are left, %v", len(pods), err)
			}
		},
	}
}
