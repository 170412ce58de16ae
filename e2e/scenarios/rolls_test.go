package scenarios

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

const rollsNS = "ambit-rolls"

// rollControl: the agent and the control plane are replaced, one after the other, and no connection notices.
func rollControl() scenario {
	return scenario{
		name: "07a-roll-agent-and-control-plane", manifest: "rolls.yaml", namespaces: []string{rollsNS}, enrolled: []string{rollsNS},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			l := w.load(t, "roll control", loadRate, loadHeld)
			for _, part := range []harness.Part{harness.Agent(), harness.Control()} {
				start := time.Now()
				w.must(t, w.Roll(w.ctx, part, rolled))
				t.Logf("%s rolled in %s", part.Name, time.Since(start).Round(time.Second))
			}
			w.linger(t)
			l.stop(t, "load over the rolls of agent and control plane", limits{})
			onlyTunnels(t, captures, w.addresses(t, rollsNS))
		},
	}
}

// rollProxy: the node proxies are replaced. No new connection fails; one that is long may be cut when the grace period of the proxy
// that carries it ends, and not before.
func rollProxy() scenario {
	return scenario{
		name: "07b-roll-node-proxy", manifest: "rolls.yaml", namespaces: []string{rollsNS}, enrolled: []string{rollsNS},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			l := w.load(t, "roll proxy", loadRate, loadHeld)
			start := time.Now()
			old, err := w.Pods(w.ctx, api.DefaultNamespace, harness.Ztunnel().Selector())
			w.must(t, err)
			ended := make(chan map[string]time.Time, 1)
			go func() { ended <- w.watchEnd(old) }()
			w.must(t, w.Roll(w.ctx, harness.Ztunnel(), rolled))
			t.Logf("%s rolled in %s", harness.Ztunnel().Name, time.Since(start).Round(time.Second))
			terms := <-ended
			w.linger(t)
			l.stop(t, "load over the roll of the node proxies", limits{cut: func(f traffic.Failure) bool {
				return atEndOfGrace(f.At, terms)
			}})
			onlyTunnels(t, captures, w.addresses(t, rollsNS))
		},
	}
}

// graceMargin is how much before the end of its grace period a proxy may begin to close what is left, so that it is done with it
// when it is killed.
const graceMargin = 6 * time.Second

// watchEnd returns, for each pod, when its grace period ends, as the API server says once the pod is being ended; and returns
// when all of them are.
func (w *world) watchEnd(pods []corev1.Pod) map[string]time.Time {
	ends := map[string]time.Time{}
	for len(ends) < len(pods) && w.ctx.Err() == nil {
		for i := range pods {
			pod, err := w.Get(w.ctx, harness.Pod{Namespace: pods[i].Namespace, Name: pods[i].Name})
			if err == nil && pod.DeletionTimestamp != nil && ends[pod.Name].IsZero() {
				ends[pod.Name] = pod.DeletionTimestamp.Time
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-w.ctx.Done():
		}
	}
	return ends
}

// atEndOfGrace tells whether a moment is in the last seconds of a pod's grace period, or shortly after it.
func atEndOfGrace(at time.Time, ends map[string]time.Time) bool {
	for _, end := range ends {
		if at.After(end.Add(-graceMargin)) && at.Before(end.Add(graceMargin)) {
			return true
		}
	}
	return false
}

// controlAway: without a control plane for two minutes, connections go on and new ones work.
func controlAway() scenario {
	const ns = "ambit-away"
	return scenario{
		name: "07c-control-plane-away", manifest: "away.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			l := w.load(t, "control plane away", loadRate, loadHeld)
			before, err := w.Pods(w.ctx, api.DefaultNamespace, harness.Control().Selector())
			w.must(t, err)
			scale := func(replicas int) {
				w.must(t, w.PatchPart(w.ctx, harness.Control(), fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)))
			}
			t.Cleanup(func() { scale(len(before)) })
			scale(0)
			w.must(t, w.AwaitReplaced(w.ctx, harness.Control(), nil, rolled))
			t.Logf("control plane away at %s", time.Now().Format(time.TimeOnly))
			w.pass(t, 2*time.Minute)
			scale(len(before))
			w.must(t, w.AwaitMesh(w.ctx, rolled))
			t.Logf("control plane back at %s", time.Now().Format(time.TimeOnly))
			w.linger(t)
			l.stop(t, "load without a control plane", limits{})
			onlyTunnels(t, captures, w.addresses(t, ns))
		},
	}
}
