package survey

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/api"
)

func TestWanted(t *testing.T) {
	ambient, none := api.DataplaneModeAmbient, api.DataplaneModeNone
	for _, test := range []struct {
		name, namespace, pod string
		change               func(*corev1.Pod)
		want                 bool
	}{
		{name: "no label"},
		{name: "namespace", namespace: ambient, want: true},
		{name: "pod", pod: ambient, want: true},
		{name: "pod opts out", namespace: ambient, pod: none},
		{name: "pod opts in", namespace: none, pod: ambient, want: true},
		{name: "a pod's label that means nothing changes nothing", namespace: ambient, pod: "ambeint", want: true},
		{name: "nor does it enrol", pod: "ambeint"},
		{name: "host network", namespace: ambient, pod: ambient, change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		{name: "sidecar", namespace: ambient, change: func(p *corev1.Pod) { p.Annotations = map[string]string{api.AnnotationSidecarStatus: "{}"} }},
	} {
		pod := &corev1.Pod{}
		if test.pod != "" {
			pod.Labels = map[string]string{api.LabelDataplaneMode: test.pod}
		}
		if test.change != nil {
			test.change(pod)
		}
		if got := wanted(pod, test.namespace); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestEnrolled(t *testing.T) {
	ns := func(name, mode string) *corev1.Namespace {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		if mode != "" {
			n.Labels[api.LabelDataplaneMode] = mode
		}
		return n
	}
	pod := func(namespace, name, redirection string, phase corev1.PodPhase) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Status: corev1.PodStatus{Phase: phase}}
		if redirection != "" {
			p.Annotations = map[string]string{api.AnnotationRedirection: redirection}
		}
		return p
	}
	client := fake.NewClientset(ns("shop", "ambient"), ns("kube-system", "ambient"), ns("plain", ""), ns("typo", "yes"),
		pod("shop", "web", "enabled", corev1.PodRunning), pod("shop", "job", "", corev1.PodSucceeded), pod("plain", "p", "", corev1.PodRunning),
		pod("plain", "left", "enabled", corev1.PodRunning), pod("kube-system", "dns", "", corev1.PodRunning))
	got, err := Enrolled(t.Context(), client, "", []string{"kube-system"})
	if err != nil {
		t.Fatal(err)
	}
	want := Enrolment{
		Namespaces: []string{"shop"}, Excluded: []string{"kube-system"},
		Malformed: []string{"namespace typo has the label istio.io/dataplane-mode=yes, which means nothing"},
		Pods: []Pod{
			{Namespace: "plain", Name: "left", Redirection: "enabled", Phase: corev1.PodRunning},
			{Namespace: "shop", Name: "web", Wanted: true, Redirection: "enabled", Phase: corev1.PodRunning},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("enrolment (-want +got):\n%s", diff)
	}
}

// TestReady: what counts as ready while a rollout goes on.
func TestReady(t *testing.T) {
	replicas := int32(2)
	deployment := func(generation int64, s appsv1.DeploymentStatus) *appsv1.Deployment {
		return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: generation}, Spec: appsv1.DeploymentSpec{Replicas: &replicas}, Status: s}
	}
	daemonSet := func(generation int64, s appsv1.DaemonSetStatus) *appsv1.DaemonSet {
		return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: generation}, Status: s}
	}
	for _, test := range []struct {
		name           string
		part           Part
		desired, ready int
	}{
		{"all new", DeploymentPart(deployment(2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2})), 2, 2},
		{"not looked at yet", DeploymentPart(deployment(2, appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2})), 2, 0},
		{"old ones still serve", DeploymentPart(deployment(2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 3})), 2, 1},
		{"the new one is not up", DeploymentPart(deployment(2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 2})), 2, 0},
		{"agents", DaemonSetPart(daemonSet(1, appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 2})), 3, 2},
		{"agents of before", DaemonSetPart(daemonSet(2, appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 3})), 3, 0},
		{"just made", DaemonSetPart(daemonSet(1, appsv1.DaemonSetStatus{})), 1, 0},
		{"on no node", DaemonSetPart(daemonSet(1, appsv1.DaemonSetStatus{ObservedGeneration: 1})), 0, 0},
	} {
		if test.part.Desired != test.desired || test.part.Ready != test.ready {
			t.Errorf("%s: %d of %d ready, want %d of %d", test.name, test.part.Ready, test.part.Desired, test.ready, test.desired)
		}
	}
}
