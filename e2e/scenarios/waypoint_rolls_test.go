package scenarios

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// Under load through a waypoint, in each client: so many connections of each version of HTTP that ask all the time, and so many
// WebSockets and streams that are held.
const (
	httpClients = 6
	httpHeld    = 2
)

// waypointRolls: a waypoint is rolled, evicted, changed, un-bound and bound, and at last deleted under requests of both versions of HTTP, and
// none is lost. WebSockets and streams go on until the grace period of their pod is over.
func waypointRolls() scenario {
	const ns = "ambit-waypoint-rolls"
	return scenario{
		name: "19-waypoint-rolls", manifest: "waypoint-rolls.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			_, err := w.Run(w.ctx, ambit(w.Cluster), "waypoint", "apply", "-n", ns, "--enroll-namespace", "--wait", "--waypoint-timeout", "3m")
			w.must(t, err)
			w.awaitBound(t, ns, true)
			ends := w.watchWaypoint(t, ns)
			l := w.loadHTTP(t, ns)
			for _, event := range []struct {
				what string
				do   func()
			}{
				{"rolled", func() { w.awaitWaypoint(t, ns, 2, w.rollWaypoint(t, ns)) }},
				{"a pod is evicted", func() { w.awaitWaypoint(t, ns, 2, w.evictWaypoint(t, ns)) }},
				{"changed, to one pod", func() { w.apply(t, "waypoint-one.yaml"); w.awaitWaypoint(t, ns, 1, nil) }},
				{"un-bound", func() { w.bind(t, ns, api.UseWaypointNone); w.awaitBound(t, ns, false) }},
				{"bound", func() { w.bind(t, ns, "waypoint"); w.awaitBound(t, ns, true) }},
				{"deleted", func() {
					_, err := w.Run(w.ctx, ambit(w.Cluster), "waypoint", "delete", "-n", ns, "--all")
					w.must(t, err)
					w.awaitBound(t, ns, false)
				}},
			} {
				start := time.Now()
				event.do()
				t.Logf("%s in %s, at %s", event.what, time.Since(start).Round(100*time.Millisecond), time.Now().Format("15:04:05.0"))
			}
			w.linger(t)
			l.stop(t, "requests while the waypoint changes", limits{cut: func(f traffic.Failure) bool { return atEndOfGrace(f.At, ends()) }})
		},
	}
}

// loadHTTP asks the service of the quartet from both nodes.
func (w *world) loadHTTP(t *testing.T, ns string) *loads {
	t.Helper()
	l := &loads{began: time.Now()}
	for _, client := range []string{"client1", "client2"} {
		running, err := w.StartHTTPLoad(w.ctx, harness.Pod{Namespace: ns, Name: client}, traffic.HTTPLoadRequest{
			Targets: []string{target(w.clusterIPs(t, ns, "server")[0], traffic.PortHTTP)}, Clients: httpClients, Hold: httpHeld, Label: "waypoint",
		})
		w.must(t, err)
		l.running = append(l.running, running)
	}
	return l
}

// bind says for a namespace which waypoint it uses.
func (w *world) bind(t *testing.T, ns, name string) {
	t.Helper()
	w.must(t, w.LabelNamespace(w.ctx, ns, api.LabelUseWaypoint, name))
}

// awaitBound waits until new requests of both clients pass the waypoint, or none does: the server sees from where they come.
func (w *world) awaitBound(t *testing.T, ns string, bound bool) {
	t.Helper()
	until := harness.Until{What: fmt.Sprintf("requests pass the waypoint: %t", bound), Within: converged, InARow: 3}
	w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
		pods, err := w.Pods(ctx, ns, api.LabelGatewayName+"=waypoint")
		if err != nil {
			return err
		}
		waypoints := map[string]bool{}
		for i := range pods {
			for _, ip := range pods[i].Status.PodIPs {
				waypoints[ip.IP] = true
			}
		}
		for _, client := range []string{"client1", "client2"} {
			replies, err := w.askFrom(ctx, harness.Pod{Namespace: ns, Name: client}, traffic.HTTPRequest{URL: "http://server:8080/who"})
			if err != nil {
				return err
			}
			if replies[0].Status != 200 {
				return fmt.Errorf("%s: %+v", client, replies[0])
			}
			from, err := netip.ParseAddrPort(replies[0].Who.Client)
			if err != nil {
				return err
			}
			if waypoints[from.Addr().Unmap().String()] != bound {
				return fmt.Errorf("the server sees %s as %s", client, from)
			}
		}
		return nil
	}))
}

// watchWaypoint follows when the grace periods of a namespace's waypoint pods end, until the test does. What it returns tells those that
// are known.
func (w *world) watchWaypoint(t *testing.T, ns string) func() map[string]time.Time {
	t.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	var mu sync.Mutex
	ends, done := map[string]time.Time{}, make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			pods, err := w.Pods(ctx, ns, api.LabelGatewayName+"=waypoint")
			for i := range pods {
				if at := pods[i].DeletionTimestamp; err == nil && at != nil {
					mu.Lock()
					ends[pods[i].Name] = at.Time
					mu.Unlock()
				}
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func() map[string]time.Time {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(ends)
	}
}

// waypointPods are those of the waypoint that are not on their way out.
func (w *world) waypointPods(ctx context.Context, ns string) ([]corev1.Pod, error) {
	pods, err := w.Pods(ctx, ns, api.LabelGatewayName+"=waypoint")
	return slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil }), err
}

// awaitWaypoint waits until the waypoint has that many pods, all ready, and none of those that are to go.
func (w *world) awaitWaypoint(t *testing.T, ns string, want int, old map[types.UID]bool) {
	t.Helper()
	w.must(t, harness.Await(w.ctx, harness.Until{What: fmt.Sprintf("%d pods of the waypoint", want), Within: rolled}, func(ctx context.Context) error {
		pods, err := w.waypointPods(ctx, ns)
		if err != nil {
			return err
		}
		return replaced(pods, old, want)
	}))
}

// rollWaypoint begins a rollout and returns the pods that are to go.
func (w *world) rollWaypoint(t *testing.T, ns string) map[types.UID]bool {
	t.Helper()
	old := w.waypointUIDs(t, ns)
	w.roll(t, "waypoint")
	return old
}

// waypointUIDs tells the waypoint's pods of now from those of later.
func (w *world) waypointUIDs(t *testing.T, ns string) map[types.UID]bool {
	t.Helper()
	pods, err := w.waypointPods(w.ctx, ns)
	w.must(t, err)
	uids := map[types.UID]bool{}
	for i := range pods {
		uids[pods[i].UID] = true
	}
	return uids
}

// evictWaypoint does to one pod of the waypoint what `kubectl drain` does, and returns it.
func (w *world) evictWaypoint(t *testing.T, ns string) map[types.UID]bool {
	t.Helper()
	pods, err := w.waypointPods(w.ctx, ns)
	w.must(t, err)
	if len(pods) == 0 {
		t.Fatal("the waypoint has no pod")
	}
	name := pods[0].Name
	// The disruption budget refuses until enough pods are ready.
	w.must(t, harness.Await(w.ctx, harness.Until{What: "eviction of " + name, Within: rolled}, func(ctx context.Context) error {
		return w.Kube.CoreV1().Pods(ns).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}))
	return map[types.UID]bool{pods[0].UID: true}
}
