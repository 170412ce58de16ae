// Package rollout waits until parts of the mesh run as asked for, tells how far they are whenever that changes, and says
// what keeps them when they do not get there. It changes nothing.
package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/cli/survey"
)

// DefaultPoll is how often the cluster is asked.
const DefaultPoll = 500 * time.Millisecond

// Waiter waits for the parts in one namespace.
type Waiter struct {
	Client    kubernetes.Interface
	Namespace string
	// Note takes a line of progress; it is called by the goroutine that waits.
	Note func(format string, args ...any)
	// Poll is how often the cluster is asked; zero: DefaultPoll.
	Poll time.Duration
}

// NotReadyError says which parts did not become ready, and what keeps their pods.
type NotReadyError struct {
	Parts []survey.Part
	// Troubles are lines for a person.
	Troubles []string
	Cause    error
}

func (e *NotReadyError) Error() string {
	var names []string
	for _, p := range e.Parts {
		names = append(names, fmt.Sprintf("%s (%s %s/%s: %d of %d ready)", p.Component.Title(), p.Kind, p.Namespace, p.Name, p.Ready, p.Desired))
	}
	cause := "not ready in time"
	if !errors.Is(e.Cause, context.DeadlineExceeded) {
		cause = "not ready when the wait was broken off"
	}
	return cause + ": " + strings.Join(names, ", ")
}

func (e *NotReadyError) Unwrap() error { return e.Cause }

// Wait returns when all given components that are installed are ready, or with a *NotReadyError when ctx ends before.
func (w *Waiter) Wait(ctx context.Context, components ...survey.Component) error {
	poll := w.Poll
	if poll == 0 {
		poll = DefaultPoll
	}
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	told := map[survey.Component]string{}
	var last []survey.Part // those that were not ready when last seen
	var lastErr error
	seen := false
	for {
		parts, err := survey.Parts(ctx, w.Client, w.Namespace)
		if err == nil {
			parts = slices.DeleteFunc(parts, func(p survey.Part) bool { return !slices.Contains(components, p.Component) })
			last, lastErr, seen = slices.DeleteFunc(slices.Clone(parts), Ready), nil, true
			for _, p := range parts {
				w.tell(ctx, p, told)
			}
			if len(last) == 0 {
				return nil
			}
		} else if ctx.Err() == nil {
			lastErr = err // the API server may be restarting
		}
		select {
		case <-ctx.Done():
			if !seen {
				return fmt.Errorf("ask how far the parts are: %w", lastErr)
			}
			return w.explain(last, ctx.Err())
		case <-ticker.C:
		}
	}
}

// Ready tells whether a part runs as asked for. A DaemonSet on no node is ready.
func Ready(p survey.Part) bool { return p.Ready >= p.Desired }

func (w *Waiter) tell(ctx context.Context, p survey.Part, told map[survey.Component]string) {
	line := fmt.Sprintf("%-14s %d/%d ready", p.Component.Title(), p.Ready, p.Desired)
	if !Ready(p) {
		// Only what is wrong for good is worth a line; that containers are being made is not.
		if troubles := w.Troubles(ctx, p, false); len(troubles) > 0 {
			line += "  " + troubles[0]
		}
	}
	if told[p.Component] != line {
		told[p.Component] = line
		w.Note("  %s", line)
	}
}

// explainTimeout bounds the requests that find out why something is not ready, after the wait has ended.
const explainTimeout = 10 * time.Second

func (w *Waiter) explain(parts []survey.Part, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), explainTimeout)
	defer cancel()
	e := &NotReadyError{Parts: parts, Cause: cause}
	for _, p := range parts {
		e.Troubles = append(e.Troubles, w.Troubles(ctx, p, true)...)
	}
	return e
}

// Troubles says for each pod of a part that is not ready what keeps it, as far as that can be seen. With events it also
// asks for the last warning about the pod.
func (w *Waiter) Troubles(ctx context.Context, p survey.Part, events bool) []string {
	pods, err := w.Client.CoreV1().Pods(p.Namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(p.Selector).String()})
	if err != nil {
		return nil
	}
	var lines []string
	for i := range pods.Items {
		pod := &pods.Items[i]
		trouble := podTrouble(pod)
		if trouble == "" && events && !podReady(pod) {
			trouble = w.lastWarning(ctx, pod)
			if trouble == "" {
				trouble = "running, but not ready"
			}
			if line := w.lastLogLine(ctx, pod); line != "" {
				trouble += "; its last words: " + line
			}
		}
		if trouble != "" {
			where := pod.Spec.NodeName
			if where == "" {
				where = "no node"
			}
			lines = append(lines, fmt.Sprintf("%s on %s: %s", pod.Name, where, trouble))
		}
	}
	slices.Sort(lines)
	return lines
}

func podReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// podTrouble reads from a pod's status what will not mend by waiting a moment, or "".
func podTrouble(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Message
		}
	}
	for _, s := range append(slices.Clone(pod.Status.InitContainerStatuses), pod.Status.ContainerStatuses...) {
		waiting := s.State.Waiting
		if waiting == nil || waiting.Reason == "ContainerCreating" || waiting.Reason == "PodInitializing" {
			continue
		}
		line := waiting.Reason
		if waiting.Message != "" {
			line += ": " + firstLine(waiting.Message)
		}
		if t := s.LastTerminationState.Terminated; t != nil {
			line += fmt.Sprintf(" (ended with code %d", t.ExitCode)
			if t.Message != "" {
				line += ": " + firstLine(t.Message)
			}
			line += ")"
		}
		return line
	}
	return ""
}

func (w *Waiter) lastWarning(ctx context.Context, pod *corev1.Pod) string {
	selector := fields.Set{"involvedObject.name": pod.Name, "type": corev1.EventTypeWarning}.String()
	events, err := w.Client.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: selector})
	if err != nil || len(events.Items) == 0 {
		return ""
	}
	last := slices.MaxFunc(events.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	return last.Reason + ": " + firstLine(last.Message)
}

// maxLine bounds what is shown of a pod's log line, in bytes.
const maxLine = 300

// lastLogLine returns the last line that a pod logged; of a structured one the message and the cause.
func (w *Waiter) lastLogLine(ctx context.Context, pod *corev1.Pod) string {
	if pod.Status.Phase != corev1.PodRunning {
		return ""
	}
	text, err := w.Client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: new(int64(1))}).DoRaw(ctx)
	if err != nil {
		return ""
	}
	line := firstLine(string(text))
	var fields map[string]any
	if json.Unmarshal([]byte(line), &fields) == nil {
		var words []string
		for _, key := range []string{"message", "msg", "error", "err", "cause"} {
			if s, ok := fields[key].(string); ok {
				words = append(words, s)
			}
		}
		line = strings.Join(words, ": ")
	}
	return line[:min(len(line), maxLine)]
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
