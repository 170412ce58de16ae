package ztunnel

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/console"
)

// proxyLabel selects the node proxies, ours and Istio's.
const proxyLabel = "app=ztunnel"

// target is what a command is about: a node proxy, and perhaps one of its pods.
type target struct {
	proxy corev1.Pod
	pod   *corev1.Pod // nil: all of its pods
	// beside: another proxy serves the node. During a roll this one may carry connections still.
	beside bool
}

func (t *target) String() string {
	return fmt.Sprintf("%s/%s (node %s)", t.proxy.Namespace, t.proxy.Name, t.proxy.Spec.NodeName)
}

// proxies lists the node proxies in the mesh's namespace, or, where there is none, in all, by node.
func proxies(ctx context.Context, client kubernetes.Interface, namespace string) ([]corev1.Pod, error) {
	for _, ns := range []string{namespace, metav1.NamespaceAll} {
		list, err := client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: proxyLabel})
		if err != nil {
			return nil, fmt.Errorf("list Pods: %w", err)
		}
		if len(list.Items) > 0 {
			slices.SortFunc(list.Items, func(a, b corev1.Pod) int {
				return strings.Compare(a.Spec.NodeName+"/"+a.Name, b.Spec.NodeName+"/"+b.Name)
			})
			return list.Items, nil
		}
	}
	return nil, fmt.Errorf("no ztunnel runs in this cluster: no pod has the label %s", proxyLabel)
}

// onNode picks the proxy that serves a node: of several, during a rollout, the newest that is ready.
func onNode(all []corev1.Pod, node string) (*corev1.Pod, bool) {
	var best *corev1.Pod
	for i := range all {
		p := &all[i]
		if p.Spec.NodeName == node && (best == nil || better(p, best)) {
			best = p
		}
	}
	return best, best != nil
}

func better(a, b *corev1.Pod) bool {
	if ready(a) != ready(b) {
		return ready(a)
	}
	return b.CreationTimestamp.Before(&a.CreationTimestamp)
}

func ready(p *corev1.Pod) bool {
	if p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// perNode picks one proxy for each node.
func perNode(all []corev1.Pod) []target {
	var out []target
	for i := range all {
		if best, _ := onNode(all, all[i].Spec.NodeName); best == &all[i] {
			out = append(out, target{proxy: all[i]})
		}
	}
	return out
}

// withBeside adds, behind the proxy that serves a node, those that run beside it: until it ends, one that was replaced carries
// the connections that were opened through it.
func withBeside(targets []target, all []corev1.Pod) []target {
	var out []target
	for _, t := range targets {
		out = append(out, t)
		for i := range all {
			p := &all[i]
			if p.Spec.NodeName == t.proxy.Spec.NodeName && p.Status.Phase == corev1.PodRunning &&
				(p.Namespace != t.proxy.Namespace || p.Name != t.proxy.Name) {
				out = append(out, target{proxy: *p, pod: t.pod, beside: true})
			}
		}
	}
	return out
}

// byNode finds the proxy of a node.
func byNode(ctx context.Context, client kubernetes.Interface, all []corev1.Pod, node string) (target, error) {
	if p, ok := onNode(all, node); ok {
		return target{proxy: *p}, nil
	}
	_, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return target{}, fmt.Errorf("there is no node %s", node)
	}
	// Who may not read nodes still learns that there is no proxy.
	return target{}, fmt.Errorf("no ztunnel runs on node %s: look at `kubectl get pods -A -l %s -o wide`", node, proxyLabel)
}

// byPod finds the proxy that is meant by the name of a pod: the pod itself, or the one on its node.
func byPod(ctx context.Context, client kubernetes.Interface, all []corev1.Pod, namespace, name string) (target, error) {
	for i := range all {
		if all[i].Name == name && (namespace == "" || all[i].Namespace == namespace) {
			return target{proxy: all[i]}, nil
		}
	}
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return target{}, fmt.Errorf("there is no pod %s in namespace %s (name another by -n or as pod.namespace)", name, namespace)
	} else if err != nil {
		return target{}, fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
	}
	if pod.Spec.NodeName == "" {
		return target{}, fmt.Errorf("pod %s/%s has no node yet", namespace, name)
	}
	p, ok := onNode(all, pod.Spec.NodeName)
	if !ok {
		return target{}, fmt.Errorf("no ztunnel runs on node %s, where pod %s/%s is", pod.Spec.NodeName, namespace, name)
	}
	return target{proxy: *p, pod: pod}, nil
}

// isPending tells whether a pod is captured, or about to be, and cannot be proved to be.
func isPending(pod *corev1.Pod) bool {
	return pod.Annotations[api.AnnotationRedirection] == api.RedirectionPending
}

// notCaptured tells why a pod's traffic does not go through its node proxy, or perhaps does not; nil if it does.
func notCaptured(pod *corev1.Pod) error {
	name := pod.Namespace + "/" + pod.Name
	switch {
	case pod.Annotations[api.AnnotationRedirection] == api.RedirectionEnabled:
		return nil
	case isPending(pod):
		return fmt.Errorf("pod %s cannot be proved captured (%s=%s): see its events and the node agent's log", name,
			api.AnnotationRedirection, api.RedirectionPending)
	case pod.Spec.HostNetwork:
		return fmt.Errorf("pod %s is not captured: it uses its node's network, which is never captured", name)
	case pod.Annotations[api.AnnotationSidecarStatus] != "":
		return fmt.Errorf("pod %s is not captured: it has a sidecar", name)
	case pod.Labels[api.LabelDataplaneMode] == api.DataplaneModeNone:
		return fmt.Errorf("pod %s is not captured: its label %s is %s", name, api.LabelDataplaneMode, api.DataplaneModeNone)
	}
	return fmt.Errorf("pod %s is not captured: label it or its namespace with %s=%s", name, api.LabelDataplaneMode, api.DataplaneModeAmbient)
}

// splitPod reads an argument: [pod/]name[.namespace]. A namespace in it wins over the flag.
func splitPod(arg, namespace string) (ns, name string, err error) {
	if kind, rest, found := strings.Cut(arg, "/"); found {
		switch kind {
		case "pod", "pods", "po":
			arg = rest
		default:
			return "", "", console.Usagef("%s: name a pod, as pod, pod.namespace or pod/name", arg)
		}
	}
	if i := strings.LastIndexByte(arg, '.'); i > 0 && i < len(arg)-1 {
		arg, namespace = arg[:i], arg[i+1:]
	}
	if arg == "" {
		return "", "", console.Usagef("the name of the pod is empty")
	}
	return namespace, arg, nil
}
