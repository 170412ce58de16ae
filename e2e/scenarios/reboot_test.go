package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// reboot: node2 loses its power, once as it is and once with its agent's credentials gone. Everything comes up by itself,
// every labelled pod is captured again, and at no time is there payload in clear. node1's link sees whatever the two nodes exchange.
func reboot() scenario {
	const ns = "ambit-reboot"
	return scenario{
		name: "08-node-reboot", manifest: "reboot.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, "node1")
			for _, how := range []struct {
				name   string
				before func()
			}{
				{"as it is", func() {}},
				{"with the agent's credentials gone", func() { w.invalidateAgent(t, "node2") }},
			} {
				start := time.Now()
				w.must(t, w.drips(t, ns))
				how.before()
				w.must(t, w.Reboot(w.ctx, "node2"))
				t.Logf("%s: node2 is back after %s", how.name, time.Since(start).Round(time.Second))
				w.must(t, w.AwaitMesh(w.ctx, rolled))
				w.must(t, w.awaitRestarted(ns, start))
				w.must(t, w.AwaitCaptured(w.ctx, ns, captured))
				w.must(t, w.drips(t, ns))
				t.Logf("%s: all is well after %s", how.name, time.Since(start).Round(time.Second))
				w.rulesEverywhere(t, ns, "node2")
			}
			// Not by address: pods change theirs, and the mark is only in what these pods send.
			if clear := harness.InClear(captures[0].Flows()); len(clear) > 0 {
				t.Errorf("the link of node1 saw payload in clear:\n%s", harness.Describe(clear, 20))
			}
			if tunnels := slices.DeleteFunc(captures[0].Flows(), func(f harness.Flow) bool { return !f.Tunnel() || f.Bytes == 0 }); len(tunnels) == 0 {
				t.Error("the link of node1 saw no tunnel")
			}
		},
	}
}

// drips waits until both pods' lines arrive, new ones since the call.
func (w *world) drips(t *testing.T, ns string) error {
	t.Helper()
	count := func(ctx context.Context, pod string) (ok int, err error) {
		raw, err := w.GetFrom(ctx, harness.Pod{Namespace: ns, Name: pod}, "127.0.0.1:8080", "/drips")
		if err != nil {
			return 0, err
		}
		var drips struct{ OK, Failed int }
		err = json.Unmarshal(raw, &drips)
		return drips.OK, err
	}
	before := map[string]int{}
	return harness.Await(w.ctx, harness.Until{What: "lines of both servers arrive", Within: captured}, func(ctx context.Context) error {
		for _, pod := range []string{"server1", "server2"} {
			n, err := count(ctx, pod)
			if err != nil {
				return fmt.Errorf("%s: %w", pod, err)
			}
			if first, ok := before[pod]; !ok || n < first+20 {
				if !ok {
					before[pod] = n
				}
				return fmt.Errorf("%s: %d lines have arrived, %d at first", pod, n, before[pod])
			}
		}
		return nil
	})
}

// awaitRestarted waits until the pods of node2 have been started again and are ready.
func (w *world) awaitRestarted(ns string, since time.Time) error {
	return harness.Await(w.ctx, harness.Until{What: "pods of node2 started again", Within: podsReady}, func(ctx context.Context) error {
		pods, err := w.Pods(ctx, ns, "")
		if err != nil {
			return err
		}
		for i := range pods {
			pod := &pods[i]
			if !harness.PodReady(pod) {
				return fmt.Errorf("%s: %s", pod.Name, harness.PodState(pod))
			}
			if running := pod.Status.ContainerStatuses[0].State.Running; pod.Spec.NodeName == "node2" && (running == nil || running.StartedAt.Time.Before(since.Truncate(time.Second))) {
				return fmt.Errorf("%s still looks as before the reboot", pod.Name)
			}
		}
		return nil
	})
}

// rulesEverywhere looks into every labelled pod of a node: what its annotation says must be true in the kernel.
func (w *world) rulesEverywhere(t *testing.T, ns, node string) {
	t.Helper()
	pods, err := w.Pods(w.ctx, ns, "")
	w.must(t, err)
	for _, pod := range pods {
		if pod.Spec.NodeName != node {
			continue
		}
		name := harness.Pod{Namespace: ns, Name: pod.Name}
		rules, err := w.rules(name)
		w.must(t, err)
		if len(rules) == 0 {
			t.Errorf("pod %s has the annotation %q and no rule in its network namespace", name, pod.Annotations[api.AnnotationRedirection])
		}
	}
}

// invalidateAgent makes every token worthless that a node's agent, or its plugin, has left on the disk: those bound to the agent's
// pod, which is removed with no grace, and those of the plugin's account, which is made anew.
func (w *world) invalidateAgent(t *testing.T, node string) {
	t.Helper()
	agent, err := w.PodOn(w.ctx, node, api.DefaultNamespace, harness.Agent().Selector())
	w.must(t, err)
	accounts := w.Kube.CoreV1().ServiceAccounts(api.DefaultNamespace)
	old, err := accounts.Get(w.ctx, "ambit-cni-plugin", metav1.GetOptions{})
	w.must(t, err)
	w.must(t, accounts.Delete(w.ctx, old.Name, metav1.DeleteOptions{}))
	w.must(t, harness.Await(w.ctx, harness.Until{What: "account of the plugin made anew", Within: converged}, func(ctx context.Context) error {
		_, err := accounts.Create(ctx, &corev1.ServiceAccount{
			ObjectMeta:                   metav1.ObjectMeta{Name: old.Name, Namespace: old.Namespace, Labels: old.Labels, Annotations: old.Annotations},
			AutomountServiceAccountToken: old.AutomountServiceAccountToken,
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			if now, getErr := accounts.Get(ctx, old.Name, metav1.GetOptions{}); getErr == nil && now.UID != old.UID {
				return nil
			}
			return errors.New("the old one is still there")
		}
		return err
	}))
	none := int64(0)
	w.must(t, w.Kube.CoreV1().Pods(agent.Namespace).Delete(w.ctx, agent.Name, metav1.DeleteOptions{GracePeriodSeconds: &none}))
}
