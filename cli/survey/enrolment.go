package survey

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api"
)

// Pod is a pod as the mesh sees it.
type Pod struct {
	Namespace, Name, Node string
	// Wanted says that labels ask for capture and nothing forbids it.
	Wanted bool
	// Redirection is the agent's word: enabled, pending, or empty where the pod is not captured.
	Redirection string
	// Phase and readiness as Kubernetes says.
	Phase corev1.PodPhase
	Ready bool
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Enrolment is who is in the mesh.
type Enrolment struct {
	// Namespaces that are labelled, and those that are although they are excluded.
	Namespaces, Excluded []string
	// Malformed are namespaces and pods whose label has a value that means nothing, in words.
	Malformed []string
	// Pods that are wanted or captured, and have not ended.
	Pods []Pod
}

// Captured returns the pods that carry an agent's annotation, enabled or pending.
func (e Enrolment) Captured() []Pod {
	return slices.DeleteFunc(slices.Clone(e.Pods), func(p Pod) bool { return p.Redirection == "" })
}

// page is how many pods one request asks for.
const page = 500

// Enrolled returns who is in the mesh. Namespaces in excluded are never. Where namespace is not empty, only its pods.
func Enrolled(ctx context.Context, client kubernetes.Interface, namespace string, excluded []string) (Enrolment, error) {
	var e Enrolment
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return e, fmt.Errorf("list Namespaces: %w", err)
	}
	modes := map[string]string{}
	for _, ns := range namespaces.Items {
		mode := ns.Labels[api.LabelDataplaneMode]
		modes[ns.Name] = mode
		if namespace != "" && namespace != ns.Name {
			continue
		}
		e.malformed("namespace "+ns.Name, ns.Labels)
		switch {
		case mode != api.DataplaneModeAmbient:
		case slices.Contains(excluded, ns.Name):
			e.Excluded = append(e.Excluded, ns.Name)
		default:
			e.Namespaces = append(e.Namespaces, ns.Name)
		}
	}
	slices.Sort(e.Namespaces)
	slices.Sort(e.Excluded)
	options := metav1.ListOptions{Limit: page}
	for {
		pods, err := client.CoreV1().Pods(namespace).List(ctx, options)
		if err != nil {
			return e, fmt.Errorf("list Pods: %w", err)
		}
		for i := range pods.Items {
			pod := &pods.Items[i]
			p := Pod{
				Namespace: pod.Namespace, Name: pod.Name, Node: pod.Spec.NodeName,
				Wanted:      !slices.Contains(excluded, pod.Namespace) && wanted(pod, modes[pod.Namespace]),
				Redirection: pod.Annotations[api.AnnotationRedirection],
				Phase:       pod.Status.Phase,
				Ready:       isReady(pod),
			}
			e.malformed("pod "+p.String(), pod.Labels)
			ended := p.Phase == corev1.PodSucceeded || p.Phase == corev1.PodFailed
			if !ended && (p.Wanted || p.Redirection != "") {
				e.Pods = append(e.Pods, p)
			}
		}
		if pods.Continue == "" {
			return e, nil
		}
		options.Continue = pods.Continue
	}
}

func (e *Enrolment) malformed(who string, labels map[string]string) {
	mode, ok := labels[api.LabelDataplaneMode]
	if ok && mode != api.DataplaneModeAmbient && mode != api.DataplaneModeNone {
		e.Malformed = append(e.Malformed, fmt.Sprintf("%s has the label %s=%s, which means nothing", who, api.LabelDataplaneMode, mode))
	}
}

// wanted is the rule of enrolment: the pod's label wins over its namespace's; pods of the host's network and pods with a
// sidecar never are.
func wanted(pod *corev1.Pod, namespaceMode string) bool {
	if pod.Spec.HostNetwork {
		return false
	}
	if _, sidecar := pod.Annotations[api.AnnotationSidecarStatus]; sidecar {
		return false
	}
	if mode, ok := pod.Labels[api.LabelDataplaneMode]; ok {
		return mode == api.DataplaneModeAmbient || (mode != api.DataplaneModeNone && namespaceMode == api.DataplaneModeAmbient)
	}
	return namespaceMode == api.DataplaneModeAmbient
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
