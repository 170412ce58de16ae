package scenarios

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// envUpgradeFrom is the path of another release's `ambit`, whose images are loaded as those of bin/ambit are.
const envUpgradeFrom = "AMBIT_UPGRADE_FROM"

// TestUpgrade goes from another release to this one and back, under load. It needs two releases, which `make upgrade-test` builds.
func TestUpgrade(t *testing.T) {
	from := os.Getenv(envUpgradeFrom)
	if from == "" {
		t.Skipf("skipped: %s names no ambit of another release; make upgrade-test builds one", envUpgradeFrom)
	}
	c := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), installing)
	defer cancel()
	there, err := c.Installed(ctx)
	if err == nil && !there {
		_, err = c.Run(ctx, from, "install")
	}
	if err == nil {
		err = c.AwaitMesh(ctx, installing)
	}
	if err != nil {
		c.Dump(context.WithoutCancel(ctx), t.Output())
		t.Fatal(err)
	}
	play(t, c, upgrade())
}

// upgrade: `ambit upgrade` and `ambit rollback` replace every part, one after the other. What holds for the roll of each holds for all:
// no new connection fails, and a long one ends at the end of its node proxy's grace period or not at all.
func upgrade() scenario {
	return scenario{
		name: "17-upgrade-and-rollback-under-load", manifest: "rolls.yaml", namespaces: []string{rollsNS}, enrolled: []string{rollsNS},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			for _, way := range []string{"upgrade", "rollback"} {
				before := w.versions(t)
				old, err := w.Pods(w.ctx, api.DefaultNamespace, harness.Ztunnel().Selector())
				w.must(t, err)
				l := w.load(t, way, loadRate, loadHeld)
				ended := make(chan map[string]time.Time, 1)
				go func() { ended <- w.watchEnd(old) }()
				start := time.Now()
				out, err := w.Run(w.ctx, filepath.Join(w.Root, "bin", "ambit"), way)
				t.Logf("ambit %s (%s):\n%s", way, time.Since(start).Round(time.Second), out)
				w.must(t, err)
				terms := <-ended
				w.linger(t)
				l.stop(t, "load over the "+way, limits{cut: func(f traffic.Failure) bool { return atEndOfGrace(f.At, terms) }})
				if after := w.versions(t); after == before {
					t.Errorf("%s has changed no version:\n%s", way, after)
				}
			}
			onlyTunnels(t, captures, w.addresses(t, rollsNS))
		},
	}
}

// versions is what `ambit version` says of the parts.
func (w *world) versions(t *testing.T) string {
	t.Helper()
	out, err := w.Run(w.ctx, ambit(w.Cluster), "version")
	w.must(t, err)
	t.Logf("ambit version:\n%s", out)
	_, parts, _ := strings.Cut(out, "\n") // the first line is the client's own
	return parts
}
