package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api"
)

// Part is a part of the mesh: a DaemonSet or Deployment in api.DefaultNamespace.
type Part struct {
	// Component is the value of the label app.kubernetes.io/component on its pods.
	Component string
	// Name is the workload's; Deployment tells it from a DaemonSet.
	Name       string
	Deployment bool
}

// Selector matches the part's pods.
func (p Part) Selector() string {
	return api.LabelPartOf + "=" + api.PartOf + ",app.kubernetes.io/component=" + p.Component
}

// Ztunnel is the node proxy, Agent the CNI agent, Control the control plane.
func Ztunnel() Part { return Part{Component: "ztunnel", Name: api.NodeProxy} }

// Agent is the CNI agent.
func Agent() Part { return Part{Component: "cni", Name: api.NodeAgent} }

// Control is the control plane.
func Control() Part {
	return Part{Component: "istiod-lite", Name: api.ControlPlaneDeployment, Deployment: true}
}

// Installed tells whether a mesh is in the cluster.
func (c *Cluster) Installed(ctx context.Context) (bool, error) {
	list, err := c.Kube.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{LabelSelector: api.LabelPartOf + "=" + api.PartOf})
	if err != nil {
		return false, fmt.Errorf("look for a mesh: %w", err)
	}
	return len(list.Items) > 0, nil
}

// AwaitCaptured waits until every pod of a namespace is captured and every node's proxy knows it: only then does a new
// connection between two of them go by the tunnel.
func (c *Cluster) AwaitCaptured(ctx context.Context, namespace string, within time.Duration) error {
	return c.awaitProtocol(ctx, namespace, "", "HBONE", within)
}

// AwaitReleased waits until no pod of a namespace is captured and every node's proxy knows it.
func (c *Cluster) AwaitReleased(ctx context.Context, namespace string, within time.Duration) error {
	return c.awaitProtocol(ctx, namespace, "", "TCP", within)
}

// AwaitCapturedPods is AwaitCaptured for the pods that match a label selector.
func (c *Cluster) AwaitCapturedPods(ctx context.Context, namespace, selector string, within time.Duration) error {
	return c.awaitProtocol(ctx, namespace, selector, "HBONE", within)
}

func (c *Cluster) awaitProtocol(ctx context.Context, namespace, selector, protocol string, within time.Duration) error {
	until := Until{What: "all pods of " + namespace + " known to speak " + protocol, Within: within}
	return Await(ctx, until, func(ctx context.Context) error {
		pods, err := c.Pods(ctx, namespace, selector)
		if err != nil {
			return err
		}
		if len(pods) == 0 {
			return errors.New("there are no pods")
		}
		for i := range pods {
			captured := pods[i].Annotations[api.AnnotationRedirection] == api.RedirectionEnabled
			if captured != (protocol == "HBONE") {
				return fmt.Errorf("pod %s has the annotation %s=%q: %w", pods[i].Name,
					api.AnnotationRedirection, pods[i].Annotations[api.AnnotationRedirection], errNotCaptured)
			}
		}
		proxies, err := c.Pods(ctx, api.DefaultNamespace, Ztunnel().Selector())
		if err != nil {
			return err
		}
		for i := range proxies {
			if proxies[i].DeletionTimestamp != nil {
				continue
			}
			if err := c.proxyKnows(ctx, &proxies[i], pods, protocol); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Cluster) proxyKnows(ctx context.Context, proxy *corev1.Pod, pods []corev1.Pod, protocol string) error {
	raw, err := c.GetFrom(ctx, Pod{proxy.Namespace, proxy.Name}, fmt.Sprintf("127.0.0.1:%d", api.PortAdmin), "/config_dump")
	if err != nil {
		return fmt.Errorf("ask %s what it knows: %w", proxy.Name, err)
	}
	var dump struct {
		Workloads []struct {
			Name, Namespace, Protocol string
		}
	}
	if err := json.Unmarshal(raw, &dump); err != nil {
		return fmt.Errorf("read what %s knows: %w", proxy.Name, err)
	}
	known := map[Pod]string{}
	for _, w := range dump.Workloads {
		known[Pod{w.Namespace, w.Name}] = w.Protocol
	}
	for i := range pods {
		if got := known[Pod{pods[i].Namespace, pods[i].Name}]; got != protocol {
			return fmt.Errorf("%s knows pod %s as speaking %q, want %q", proxy.Name, pods[i].Name, got, protocol)
		}
	}
	return nil
}

// GetFrom asks an HTTP server from inside a pod's network namespace, e.g. one on the pod's loopback.
func (c *Cluster) GetFrom(ctx context.Context, pod Pod, addr, path string) ([]byte, error) {
	inside, err := c.Inside(ctx, pod)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return inside.DialContext(ctx, network, addr)
	}, DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s of %s: %s", path, pod, resp.Status)
	}
	return body, nil
}

// Logs returns what a pod's first container has logged since a moment.
func (c *Cluster) Logs(ctx context.Context, pod Pod, since time.Time) (string, error) {
	options := &corev1.PodLogOptions{}
	if !since.IsZero() {
		options.SinceTime = &metav1.Time{Time: since}
	}
	raw, err := c.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("logs of %s: %w", pod, err)
	}
	return string(raw), nil
}

// Access is one line of a node proxy's access log.
type Access struct {
	// Direction is inbound or outbound.
	Direction                    string
	SourceIdentity, DestIdentity string
	Line                         string
}

// field matches key=value and "key":"value", as text and JSON logs have them.
var field = regexp.MustCompile(`"?([a-z]+\.[a-z_]+|direction)"?[=:]\s?"?([^\s",}]+)`)

// AccessLog returns the lines of the access log of the proxies on a node, since a moment, that carry both identities. Proxies that
// are being ended are included.
func (c *Cluster) AccessLog(ctx context.Context, node string, since time.Time) ([]Access, error) {
	pods, err := c.Pods(ctx, api.DefaultNamespace, Ztunnel().Selector())
	if err != nil {
		return nil, err
	}
	var lines []Access
	for _, pod := range pods {
		if pod.Spec.NodeName != node {
			continue
		}
		text, err := c.Logs(ctx, Pod{pod.Namespace, pod.Name}, since)
		if err != nil {
			return nil, err
		}
		lines = append(lines, ParseAccessLog(text)...)
	}
	return lines, nil
}

// ParseAccessLog finds the lines that carry both identities.
func ParseAccessLog(text string) []Access {
	var found []Access
	for line := range strings.Lines(text) {
		access := Access{Line: strings.TrimSpace(line)}
		for _, match := range field.FindAllStringSubmatch(line, -1) {
			switch match[1] {
			case "direction":
				access.Direction = match[2]
			case "src.identity":
				access.SourceIdentity = match[2]
			case "dst.identity":
				access.DestIdentity = match[2]
			}
		}
		if access.SourceIdentity != "" && access.DestIdentity != "" {
			found = append(found, access)
		}
	}
	return found
}

// Roll restarts every pod of a part, as `kubectl rollout restart` does, and returns when the new ones are ready and the old
// ones are gone.
func (c *Cluster) Roll(ctx context.Context, part Part, within time.Duration) error {
	before, err := c.Pods(ctx, api.DefaultNamespace, part.Selector())
	if err != nil {
		return err
	}
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`,
		time.Now().Format(time.RFC3339Nano))
	if err := c.PatchPart(ctx, part, patch); err != nil {
		return fmt.Errorf("roll %s: %w", part.Name, err)
	}
	return c.AwaitReplaced(ctx, part, before, within)
}

// PatchPart changes a part's DaemonSet or Deployment by a strategic merge patch.
func (c *Cluster) PatchPart(ctx context.Context, part Part, patch string) error {
	var err error
	if part.Deployment {
		_, err = c.Kube.AppsV1().Deployments(api.DefaultNamespace).Patch(ctx, part.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	} else {
		_, err = c.Kube.AppsV1().DaemonSets(api.DefaultNamespace).Patch(ctx, part.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("patch %s: %w", part.Name, err)
	}
	return nil
}

// AwaitReplaced waits until a part has as many ready pods as it had before, and none of those.
func (c *Cluster) AwaitReplaced(ctx context.Context, part Part, before []corev1.Pod, within time.Duration) error {
	old := map[types.UID]bool{}
	for i := range before {
		old[before[i].UID] = true
	}
	return Await(ctx, Until{What: "pods of " + part.Name + " replaced", Within: within}, func(ctx context.Context) error {
		pods, err := c.Pods(ctx, api.DefaultNamespace, part.Selector())
		if err != nil {
			return err
		}
		ready := 0
		for i := range pods {
			if old[pods[i].UID] {
				return fmt.Errorf("old pod %s is still there: %s", pods[i].Name, PodState(&pods[i]))
			}
			if PodReady(&pods[i]) {
				ready++
			}
		}
		if ready != len(before) || len(pods) != len(before) {
			return fmt.Errorf("%d of %d pods are ready, want %d", ready, len(pods), len(before))
		}
		return nil
	})
}

// AwaitMesh waits until every part of the mesh is ready, on every node.
func (c *Cluster) AwaitMesh(ctx context.Context, within time.Duration) error {
	return Await(ctx, Until{What: "mesh ready", Within: within}, func(ctx context.Context) error {
		nodes, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, node := range nodes.Items {
			for _, part := range []Part{Ztunnel(), Agent()} {
				pod, err := c.PodOn(ctx, node.Name, api.DefaultNamespace, part.Selector())
				if err != nil {
					return err
				}
				if !PodReady(pod) {
					return fmt.Errorf("%s on %s is not ready: %s", pod.Name, node.Name, PodState(pod))
				}
			}
		}
		control, err := c.Pods(ctx, api.DefaultNamespace, Control().Selector())
		if err != nil {
			return err
		}
		for i := range control {
			if PodReady(&control[i]) {
				return nil
			}
		}
		return errors.New("no control plane is ready")
	})
}
