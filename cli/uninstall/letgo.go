package uninstall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// releaseAnnotation on the agent's DaemonSet tells the agents to let go of all pods and clean their nodes: releaseDrain waits
// for connections to end, releaseNow does not.
const (
	releaseAnnotation = "ambit/release"
	releaseDrain      = "drain"
	releaseNow        = "now"
)

// agentReport is what an agent answers at /release.
type agentReport struct {
	Node string `json:"node"`
	// Phase is serving, draining or clean.
	Phase string `json:"phase"`
	// Pods that have something of the mesh left, and their connections that go through it.
	Pods        int    `json:"pods"`
	Connections int    `json:"connections"`
	Error       string `json:"error"`
}

const phaseClean = "clean"

// errCannotReport says that an agent does not know /release.
var errCannotReport = errors.New("this agent cannot say how far it is")

// askAgent asks one agent.
func (r *remover) askAgent(ctx context.Context, pod string) (agentReport, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var report agentReport
	body, err := r.cluster.Get(ctx, r.namespace, pod, api.PortAgentHealth, "/release")
	var status *kube.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return report, errCannotReport
	}
	if err != nil {
		return report, err
	}
	if err := json.Unmarshal(body, &report); err != nil {
		return report, fmt.Errorf("read its report: %w", err)
	}
	return report, nil
}

// letGo makes the agents un-enrol all pods and clean their nodes, and waits for them. Broken off, it lets them go back to work.
func (r *remover) letGo(ctx context.Context, agent *survey.Part) error {
	if err := r.agentsReady(ctx, agent); err != nil {
		return err
	}
	r.noteStrict(ctx)
	if err := r.annotate(ctx, agent, releaseDrain); err != nil {
		return err
	}
	drainCtx, cancel := context.WithTimeout(ctx, r.timeout)
	state, err := r.awaitClean(drainCtx, agent)
	cancel()
	if err == nil {
		r.clean = state.mute == 0
		return nil
	}
	if ctx.Err() != nil {
		return r.goBack(agent, ctx.Err())
	}
	if errors.Is(err, context.DeadlineExceeded) {
		r.env.Notef("Time is up: cutting %s of %s", console.Plural(state.connections, "connection"), console.Plural(state.pods, "pod"))
		if err := r.annotate(ctx, agent, releaseNow); err != nil {
			return err
		}
		cleanCtx, cancel := context.WithTimeout(ctx, cleanTimeout)
		state, err = r.awaitClean(cleanCtx, agent)
		cancel()
		if err == nil {
			r.clean = state.mute == 0
			return nil
		}
		if ctx.Err() != nil {
			return r.goBack(agent, ctx.Err())
		}
	}
	for _, line := range state.unclean {
		r.env.Notef("  %s", line)
	}
	if r.force {
		r.env.Notef("Going on by force. Where the agent did not clean its node, pods that were captured may have no connection, and")
		r.env.Notef("labelled pods may not start: remove the entry %s from the node's CNI configuration, and restart its pods.", api.PluginName)
		return nil
	}
	return errNotClean
}

// noteStrict warns where mutual TLS is demanded: a pod that was let go of speaks plain, and one that was not yet refuses that.
func (r *remover) noteStrict(ctx context.Context) {
	list, err := r.cluster.Dynamic.Resource(peerAuthentications).List(ctx, metav1.ListOptions{})
	if err != nil {
		return // the kind may not be there
	}
	strict := 0
	for _, object := range list.Items {
		if mode, _, _ := unstructured.NestedString(object.Object, "spec", "mtls", "mode"); mode == "STRICT" {
			strict++
		}
	}
	if strict > 0 {
		r.env.Notef("  %s for STRICT mutual TLS: until all pods are let go of, connections from the first to the last are refused.",
			asks(strict, "PeerAuthentication"))
	}
}

func asks(n int, noun string) string {
	if n == 1 {
		return "1 " + noun + " asks"
	}
	return fmt.Sprintf("%d %ss ask", n, noun)
}

var peerAuthentications = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}

// agentsReady refuses to begin where an agent is away: nobody else can clean its node, and what is left there keeps labelled
// pods from starting.
func (r *remover) agentsReady(ctx context.Context, agent *survey.Part) error {
	if agent.Ready >= agent.Desired {
		return nil
	}
	pods, err := r.agentPods(ctx, agent)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if !podReady(&pod) {
			r.env.Notef("  the agent on %s (pod %s) is not ready", pod.Spec.NodeName, pod.Name)
		}
	}
	if r.force {
		return nil
	}
	return fmt.Errorf("%d of %d agents are ready, and only an agent can clean its node: bring them back, or go on with --force", agent.Ready, agent.Desired)
}

func podReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (r *remover) agentPods(ctx context.Context, agent *survey.Part) ([]corev1.Pod, error) {
	pods, err := r.client().CoreV1().Pods(r.namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(agent.Selector).String()})
	if err != nil {
		return nil, fmt.Errorf("list the agents' pods: %w", err)
	}
	return slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil }), nil
}

// annotate sets releaseAnnotation, or takes it away where the value is empty.
func (r *remover) annotate(ctx context.Context, agent *survey.Part, value string) error {
	var v any
	if value != "" {
		v = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{releaseAnnotation: v}}})
	if err != nil {
		return err
	}
	_, err = r.client().AppsV1().DaemonSets(r.namespace).Patch(ctx, agent.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("annotate DaemonSet %s/%s: %w", r.namespace, agent.Name, err)
	}
	return nil
}

// goBack lets the agents go back to work after the user broke off.
func (r *remover) goBack(agent *survey.Part, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.annotate(ctx, agent, ""); err != nil {
		return fmt.Errorf("broken off, and the agents still let go of their pods: %w", err)
	}
	r.env.Notef("Broken off: the mesh goes back to work.")
	return cause
}

// progress is what all agents together say.
type progress struct {
	pods, connections int
	// unclean says for each agent that is not done where it is.
	unclean []string
	// mute counts agents that cannot report, silent those that do not answer.
	mute, silent int
}

// awaitClean waits until every agent says that its node is clean. Agents that cannot report are not waited for.
func (r *remover) awaitClean(ctx context.Context, agent *survey.Part) (progress, error) {
	ticker := time.NewTicker(r.poll)
	defer ticker.Stop()
	var last progress
	var told string
	for {
		state, err := r.ask(ctx, agent)
		if err == nil {
			last = state
			if len(state.unclean) == 0 {
				if state.mute > 0 {
					r.env.Notef("  %s not report how far they are: what is open is cut when they go", doDoes(state.mute, "agent"))
				}
				return state, nil
			}
			line := fmt.Sprintf("%s left, %s through the mesh", console.Plural(state.pods, "pod"), console.Plural(state.connections, "connection"))
			if state.silent > 0 {
				line += fmt.Sprintf("; %s not answer", doDoes(state.silent, "agent"))
			}
			if line != told {
				told = line
				r.env.Notef("  %s", line)
			}
		}
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-ticker.C:
		}
	}
}

func doDoes(n int, noun string) string {
	if n == 1 {
		return "1 " + noun + " does"
	}
	return fmt.Sprintf("%d %ss do", n, noun)
}

// askAtOnce is how many agents are asked at a time.
const askAtOnce = 16

// ask asks all agents.
func (r *remover) ask(ctx context.Context, agent *survey.Part) (progress, error) {
	pods, err := r.agentPods(ctx, agent)
	if err != nil {
		return progress{}, err
	}
	var (
		mu    sync.Mutex // guards state
		state progress
		group sync.WaitGroup
		slots = make(chan struct{}, askAtOnce)
	)
	for _, pod := range pods {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			report, err := r.report(ctx, pod.Name)
			mu.Lock()
			defer mu.Unlock()
			state.add(pod.Spec.NodeName, report, err)
		})
	}
	group.Wait()
	slices.Sort(state.unclean)
	return state, nil
}

func (p *progress) add(node string, report agentReport, err error) {
	switch {
	case errors.Is(err, errCannotReport):
		p.mute++
		return
	case err != nil:
		p.silent++
		p.unclean = append(p.unclean, fmt.Sprintf("%s: the agent does not answer: %v", node, err))
		return
	}
	p.pods += report.Pods
	p.connections += report.Connections
	if report.Phase == phaseClean {
		return
	}
	line := fmt.Sprintf("%s: %s, %s left, %s", node, report.Phase, console.Plural(report.Pods, "pod"), console.Plural(report.Connections, "connection"))
	if report.Error != "" {
		line += ": " + strings.TrimSpace(report.Error)
	}
	p.unclean = append(p.unclean, line)
}
