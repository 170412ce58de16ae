package scenarios

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// rollout: `kubectl rollout restart` of three servers, under 200 new connections a second from both nodes, of which none may
// fail. Servers of one Deployment listen on for 3 s once they are to end; those of the other close their port as soon as they
// hear of it, which is before or after the node proxies do.
func rollout() scenario {
	const ns = "ambit-rollout"
	return scenario{
		name: "16-rollout", manifest: "rollout.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			for _, deployment := range []string{"patient", "abrupt"} {
				w.awaitService(t, deployment)
				l := w.loadService(t, deployment, loadRate)
				start := time.Now()
				w.restart(t, deployment)
				t.Logf("%s rolled in %s", deployment, time.Since(start).Round(100*time.Millisecond))
				l.stop(t, "load over the rollout of "+deployment, limits{})
			}
			onlyTunnels(t, captures, w.addresses(t, ns))
		},
	}
}

// awaitService waits until connections to a service work from both nodes.
func (w *world) awaitService(t *testing.T, service string) {
	t.Helper()
	request := traffic.DialRequest{Attempts: []traffic.Attempt{{
		Target: target(w.clusterIPs(t, w.ns, service)[0], traffic.PortEcho), Protocol: traffic.ProtocolEcho,
	}}}
	until := harness.Until{What: "service " + service + " known on every node", Within: converged, InARow: 3}
	w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
		for _, client := range []string{"client1", "client2"} {
			outcomes, err := w.Dial(ctx, harness.Pod{Namespace: w.ns, Name: client}, request)
			if err != nil {
				return err
			}
			if outcomes[0].Kind != "" {
				return fmt.Errorf("%s: %s", client, outcomes[0].Error)
			}
		}
		return nil
	}))
}

// loadService opens connections to a service's address, half of the rate from each node.
func (w *world) loadService(t *testing.T, service string, rate int) *loads {
	t.Helper()
	l := &loads{began: time.Now()}
	for _, client := range []string{"client1", "client2"} {
		running, err := w.StartLoad(w.ctx, harness.Pod{Namespace: w.ns, Name: client}, traffic.LoadRequest{
			Targets: []string{target(w.clusterIPs(t, w.ns, service)[0], traffic.PortEcho)}, Rate: rate / 2, Label: service,
		})
		w.must(t, err)
		l.running = append(l.running, running)
	}
	return l
}

// restart rolls a deployment, whose pods have its name as their label app, and waits until the new pods are ready and the old ones gone.
func (w *world) restart(t *testing.T, deployment string) {
	t.Helper()
	selector := "app=" + deployment
	before, err := w.Pods(w.ctx, w.ns, selector)
	w.must(t, err)
	old := map[types.UID]bool{}
	for i := range before {
		old[before[i].UID] = true
	}
	w.roll(t, deployment)
	w.must(t, harness.Await(w.ctx, harness.Until{What: "pods of " + deployment + " replaced", Within: rolled}, func(ctx context.Context) error {
		pods, err := w.Pods(ctx, w.ns, selector)
		if err != nil {
			return err
		}
		return replaced(pods, old, len(before))
	}))
}

// roll does what `kubectl rollout restart` does.
func (w *world) roll(t *testing.T, deployment string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`,
		time.Now().Format(time.RFC3339))
	_, err := w.Kube.AppsV1().Deployments(w.ns).Patch(w.ctx, deployment, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	w.must(t, err)
}

// replaced says why pods are not the wanted number of ready ones yet, with none of the old ones among them.
func replaced(pods []corev1.Pod, old map[types.UID]bool, want int) error {
	for i := range pods {
		if old[pods[i].UID] || !harness.PodReady(&pods[i]) {
			return fmt.Errorf("pod %s: %s", pods[i].Name, harness.PodState(&pods[i]))
		}
	}
	if len(pods) != want {
		return fmt.Errorf("%d pods, want %d", len(pods), want)
	}
	return nil
}
