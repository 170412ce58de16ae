package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/survey"
)

func daemonSet(updated, available int32) *appsv1.DaemonSet {
	labels := map[string]string{"app": "ztunnel"}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "mesh", Name: "ztunnel", Generation: 1, Labels: map[string]string{
			api.LabelPartOf: api.PartOf, "app.kubernetes.io/component": string(survey.NodeProxy)}},
		Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}},
		Status: appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 2, UpdatedNumberScheduled: updated,
			NumberAvailable: available},
	}
}

// TestWait: lines are told when something changes and not otherwise; an API server that is away for a moment is borne.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		asked := 0
		client.PrependReactor("list", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
			asked++
			switch {
			case asked < 3:
				return true, &appsv1.DaemonSetList{Items: []appsv1.DaemonSet{*daemonSet(1, 1)}}, nil
			case asked < 5:
				return true, nil, errors.New("connection refused")
			}
			return true, &appsv1.DaemonSetList{Items: []appsv1.DaemonSet{*daemonSet(2, 2)}}, nil
		})
		var lines []string
		w := &Waiter{Client: client, Namespace: "mesh", Note: func(f string, a ...any) { lines = append(lines, fmt.Sprintf(f, a...)) }}
		if err := w.Wait(t.Context(), survey.Components...); err != nil {
			t.Fatal(err)
		}
		want := []string{"  node proxy     1/2 ready", "  node proxy     2/2 ready"}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
	})
}

// TestWaitEnds: at the deadline the error says which part, and what keeps each of its pods.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		meta := func(name string) metav1.ObjectMeta {
			return metav1.ObjectMeta{Namespace: "mesh", Name: name, Labels: map[string]string{"app": "ztunnel"}}
		}
		ready := corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		client := fake.NewClientset(daemonSet(2, 1), // the client's log is "fake logs"
			&corev1.Pod{ObjectMeta: meta("a"), Spec: corev1.PodSpec{NodeName: "node1"}, Status: ready},
			&corev1.Pod{ObjectMeta: meta("b"), Spec: corev1.PodSpec{NodeName: "node2"}},
			&corev1.Pod{ObjectMeta: meta("c"), Spec: corev1.PodSpec{NodeName: "node3"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}})
		// The fake client knows no field selectors.
		client.PrependReactor("list", "events", func(a clienttesting.Action) (bool, runtime.Object, error) {
			about := fields.Set{"involvedObject.name": "b", "type": corev1.EventTypeWarning}
			events := &corev1.EventList{}
			if a.(clienttesting.ListAction).GetListRestrictions().Fields.Matches(about) {
				events.Items = []corev1.Event{{Reason: "FailedMount", Message: "configmap \"istio-ca-root-cert\" not found\nand more"}}
			}
			return true, events, nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := (&Waiter{Client: client, Namespace: "mesh", Note: func(string, ...any) {}}).Wait(ctx, survey.NodeProxy)
		var notReady *NotReadyError
		if !errors.As(err, &notReady) {
			t.Fatalf("got %v, want a NotReadyError", err)
		}
		if want := "not ready in time: node proxy (DaemonSet mesh/ztunnel: 1 of 2 ready)"; err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
		want := []string{`b on node2: FailedMount: configmap "istio-ca-root-cert" not found`,
			"c on node3: running, but not ready; its last words: fake logs"}
		if diff := cmp.Diff(want, notReady.Troubles); diff != "" {
			t.Errorf("troubles (-want +got):\n%s", diff)
		}
	})
}

func TestPodTrouble(t *testing.T) {
	waiting := func(reason, message string) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}}
	}
	crashed := waiting("CrashLoopBackOff", "back-off 10s restarting")
	crashed[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 2, Message: "flag provided but not defined\nusage"}
	for _, test := range []struct {
		name   string
		status corev1.PodStatus
		want   string
	}{
		{"being made", corev1.PodStatus{ContainerStatuses: waiting("ContainerCreating", "")}, ""},
		{"no image", corev1.PodStatus{ContainerStatuses: waiting("ErrImageNeverPull", "image x is not there")}, "ErrImageNeverPull: image x is not there"},
		{"crashed", corev1.PodStatus{ContainerStatuses: crashed},
			"CrashLoopBackOff: back-off 10s restarting (ended with code 2: flag provided but not defined)"},
		{"no room", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available"}}},
			"0/2 nodes are available"},
	} {
		if got := podTrouble(&corev1.Pod{Status: test.status}); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	if got := firstLine("  a\nb"); strings.Contains(got, "b") {
		t.Errorf("firstLine: %q", got)
	}
}
