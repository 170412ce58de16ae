package scenarios

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// pluginFailsClosed: with node2's agent away, a labelled pod there does not start and says why; an unlabelled one does, and so does
// a labelled one on the other node. With the agent back it starts by itself, captured.
func pluginFailsClosed() scenario {
	const in, out = "ambit-plugin-in", "ambit-plugin-out"
	return scenario{
		name: "06-plugin-fails-closed", manifest: "plugin.yaml", namespaces: []string{in, out}, empty: true,
		tell: func(t *testing.T, w *world) {
			back := w.takeAgentAway(t, "node2")
			w.apply(t, "plugin-in.yaml")
			w.apply(t, "plugin-out.yaml")
			blocked := harness.Pod{Namespace: in, Name: "node2"}
			until := harness.Until{What: "message of the pod that must not start", Within: time.Minute}
			w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error { return w.explained(ctx, blocked) }))
			w.must(t, w.AwaitReady(w.ctx, out, podsReady))
			w.must(t, harness.Await(w.ctx, harness.Until{What: "labelled pod on the other node", Within: podsReady}, func(ctx context.Context) error {
				pod, err := w.Get(ctx, harness.Pod{Namespace: in, Name: "node1"})
				if err == nil && !harness.PodReady(pod) {
					err = errors.New(harness.PodState(pod))
				}
				return err
			}))
			until = harness.Until{What: "labelled pod not started without an agent", Within: time.Minute, InARow: 15, Every: time.Second}
			w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
				pod, err := w.Get(ctx, blocked)
				if err == nil && pod.Status.Phase != corev1.PodPending {
					t.Errorf("the pod has started: %s", harness.PodState(pod))
				}
				return err
			}))
			back()
			w.must(t, w.AwaitReady(w.ctx, in, podsReady))
			w.must(t, w.AwaitCaptured(w.ctx, in, captured))
		},
	}
}

// takeAgentAway replaces a node's agent by one that cannot start, as a bad upgrade would, and returns what undoes it. The other
// nodes keep theirs.
func (w *world) takeAgentAway(t *testing.T, node string) (back func()) {
	t.Helper()
	set, err := w.Kube.AppsV1().DaemonSets(api.DefaultNamespace).Get(w.ctx, api.NodeAgent, metav1.GetOptions{})
	w.must(t, err)
	container := set.Spec.Template.Spec.Containers[0]
	agents := func() []corev1.Pod {
		pods, err := w.Pods(w.ctx, api.DefaultNamespace, harness.Agent().Selector())
		w.must(t, err)
		return slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName != node })
	}
	patch := func(image string, strategy string) {
		w.must(t, w.PatchPart(w.ctx, harness.Agent(), fmt.Sprintf(`{"spec":{"updateStrategy":%s,"template":{"spec":{"containers":[{"name":%q,"image":%q}]}}}}`,
			strategy, container.Name, image)))
	}
	const onDelete = `{"type":"OnDelete","rollingUpdate":null}`
	end := func() {
		for _, pod := range agents() {
			w.must(t, w.Kube.CoreV1().Pods(pod.Namespace).Delete(w.ctx, pod.Name, metav1.DeleteOptions{}))
		}
	}
	restored := false
	restore := func() {
		if restored {
			return
		}
		restored = true
		patch(container.Image, onDelete)
		end()
		w.must(t, w.AwaitMesh(w.ctx, rolled))
		patch(container.Image, `{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":1}}`)
	}
	t.Cleanup(restore)
	patch("docker.io/ambit/no-such-image:dev", onDelete)
	old := agents()
	end()
	w.must(t, harness.Await(w.ctx, harness.Until{What: "agent of " + node + " away", Within: rolled}, func(context.Context) error {
		now := agents()
		if len(now) != 1 || now[0].UID == old[0].UID {
			return fmt.Errorf("%d agents, and the old one may be among them", len(now))
		}
		if !slices.ContainsFunc(now[0].Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.State.Waiting != nil }) {
			return errors.New("the new one has not failed yet")
		}
		return nil
	}))
	return restore
}

// explained wants the pod to be held in ContainerCreating, and what `kubectl describe` shows of it to name ambit, the cause and
// the remedy.
func (w *world) explained(ctx context.Context, name harness.Pod) error {
	pod, err := w.Get(ctx, name)
	if err != nil {
		return err
	}
	waiting := pod.Status.Phase == corev1.PodPending && slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.State.Waiting != nil && s.State.Waiting.Reason == "ContainerCreating"
	})
	if !waiting {
		return fmt.Errorf("the pod is not held in ContainerCreating: %s", harness.PodState(pod))
	}
	events, err := w.Kube.CoreV1().Events(name.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name.Name})
	if err != nil {
		return err
	}
	var messages []string
	for _, event := range events.Items {
		if event.Reason == "FailedCreatePodSandBox" && all(event.Message, "ambit", "agent", api.LabelDataplaneMode, "kubectl") {
			return nil
		}
		messages = append(messages, event.Reason+": "+event.Message)
	}
	return fmt.Errorf("no event names ambit, the cause and the remedy; there are:\n%s", strings.Join(messages, "\n"))
}

// all tells whether a text contains all words.
func all(text string, words ...string) bool {
	return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(text, word) })
}
