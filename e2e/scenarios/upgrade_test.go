package scenarios

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

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
// no new connection fails, and a long one ends at the end of its proxy's grace period or not at all. Between two releases that have waypoints
// the service is behind one, and no request fails.
func upgrade() scenario {
	return scenario{
		name: "17-upgrade-and-rollback-under-load", manifest: "rolls.yaml", namespaces: []string{rollsNS}, enrolled: []string{rollsNS},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			behind := w.behindWaypoint(t, rollsNS)
			for _, way := range []string{"upgrade", "rollback"} {
				before := w.versions(t)
				old, err := w.Pods(w.ctx, api.DefaultNamespace, harness.Ztunnel().Selector())
				w.must(t, err)
				l := w.load(t, way, loadRate, loadHeld)
				requests, ends, pods := &loads{}, func() map[string]time.Time { return nil }, map[types.UID]bool{}
				if behind {
					requests, ends, pods = w.loadHTTP(t, rollsNS), w.watchWaypoint(t, rollsNS), w.waypointUIDs(t, rollsNS)
				}
				ended := make(chan map[string]time.Time, 1)
				go func() { ended <- w.watchEnd(old) }()
				start := time.Now()
				out, err := w.Run(w.ctx, filepath.Join(w.Root, "bin", "ambit"), way)
				t.Logf("ambit %s (%s):\n%s", way, time.Since(start).Round(time.Second), out)
				w.must(t, err)
				if behind {
					w.awaitWaypoint(t, rollsNS, 2, pods) // which the command has waited for
				}
				terms := <-ended
				w.linger(t)
				cut := func(f traffic.Failure) bool { return atEndOfGrace(f.At, terms) || atEndOfGrace(f.At, ends()) }
				l.stop(t, "load over the "+way, limits{cut: cut})
				// Clients keep connections for their requests, which node proxies carry as they are: when one is cut, a request may be on it.
				requests.stop(t, "requests over the "+way, limits{cut: cut, lost: func(f traffic.Failure) bool { return atEndOfGrace(f.At, terms) }})
				if after := w.versions(t); after == before {
					t.Errorf("%s has changed no version:\n%s", way, after)
				}
			}
			onlyTunnels(t, captures, w.addresses(t, rollsNS))
		},
	}
}

// behindWaypoint binds the services of a namespace to a waypoint, if this release knows any.
func (w *world) behindWaypoint(t *testing.T, ns string) bool {
	t.Helper()
	classes := schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}
	_, err := w.Dynamic.Resource(classes).Get(w.ctx, api.ClassWaypoint, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		t.Log("the first release has no waypoints")
		return false
	}
	w.must(t, err)
	_, err = w.Run(w.ctx, ambit(w.Cluster), "waypoint", "apply", "-n", ns, "--enroll-namespace", "--wait", "--waypoint-timeout", "3m")
	w.must(t, err)
	w.awaitBound(t, ns, true)
	return true
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
