package harness

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
)

// Bounds of what Dump writes of each pod, namespace and log.
const (
	dumpEvents   = 25
	dumpLogLines = 40
	dumpLogWidth = 600
)

// Dump writes what helps to understand a failure: the nodes, the pods of the mesh and of the given namespaces, the latest
// events of those that are not well, and the ends of the mesh's logs. It never fails; what cannot be had is named.
func (c *Cluster) Dump(ctx context.Context, w io.Writer, namespaces ...string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c.dumpNodes(ctx, w)
	namespaces = append(slices.Clone(namespaces), api.DefaultNamespace)
	for _, namespace := range namespaces {
		pods, err := c.Pods(ctx, namespace, "")
		if err != nil {
			fmt.Fprintf(w, "--- pods of %s: %v\n", namespace, err)
			continue
		}
		fmt.Fprintf(w, "--- pods of %s\n", namespace)
		for i := range pods {
			pod := &pods[i]
			fmt.Fprintf(w, "%-32s %-6s %-16s redirection=%-8q ready=%-5t %s\n", pod.Name, pod.Spec.NodeName, pod.Status.PodIP,
				pod.Annotations[api.AnnotationRedirection], PodReady(pod), PodState(pod))
		}
		c.dumpEvents(ctx, w, namespace)
		if namespace != api.DefaultNamespace {
			continue
		}
		for i := range pods {
			c.dumpLog(ctx, w, &pods[i], false)
			if slices.ContainsFunc(pods[i].Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.RestartCount > 0 }) {
				c.dumpLog(ctx, w, &pods[i], true)
			}
		}
	}
}

func (c *Cluster) dumpNodes(ctx context.Context, w io.Writer) {
	nodes, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintf(w, "--- nodes: %v\n", err)
		return
	}
	for _, node := range nodes.Items {
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady {
				fmt.Fprintf(w, "--- node %s: ready %s since %s: %s\n", node.Name, condition.Status, condition.LastTransitionTime.Format(time.TimeOnly), condition.Message)
			}
		}
	}
}

func (c *Cluster) dumpEvents(ctx context.Context, w io.Writer, namespace string) {
	events, err := c.Kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintf(w, "events: %v\n", err)
		return
	}
	warnings := slices.DeleteFunc(events.Items, func(e corev1.Event) bool { return e.Type == corev1.EventTypeNormal })
	slices.SortFunc(warnings, func(a, b corev1.Event) int { return eventTime(a).Compare(eventTime(b)) })
	for _, e := range warnings[max(0, len(warnings)-dumpEvents):] {
		fmt.Fprintf(w, "event %s %s/%s %s (%d times): %s\n", eventTime(e).Format(time.TimeOnly), e.InvolvedObject.Kind, e.InvolvedObject.Name,
			e.Reason, max(e.Count, 1), clip(e.Message, dumpLogWidth))
	}
}

func eventTime(e corev1.Event) time.Time {
	if !e.LastTimestamp.IsZero() {
		return e.LastTimestamp.Time
	}
	return e.EventTime.Time
}

func (c *Cluster) dumpLog(ctx context.Context, w io.Writer, pod *corev1.Pod, previous bool) {
	tail := int64(dumpLogLines)
	name := pod.Name
	if previous {
		name += " (before its restart)"
	}
	raw, err := c.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: &tail, Previous: previous}).DoRaw(ctx)
	if err != nil {
		fmt.Fprintf(w, "--- log of %s: %v\n", name, err)
		return
	}
	fmt.Fprintf(w, "--- log of %s\n", name)
	for line := range strings.Lines(string(raw)) {
		fmt.Fprintln(w, clip(strings.TrimRight(line, "\n"), dumpLogWidth))
	}
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "..."
}
