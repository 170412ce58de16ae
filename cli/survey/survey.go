// Package survey finds out what of a mesh is in a cluster: our parts, another mesh's parts, and who is enrolled. It reads
// only, and finds things by the labels and names that installers put on them, not by who installed them.
package survey

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api"
)

// ours selects what the chart installs.
const ours = api.LabelPartOf + "=" + api.PartOf

// Component is the part of the mesh that an object belongs to: the value of the label app.kubernetes.io/component.
type Component string

const (
	ControlPlane Component = "istiod-lite"
	Agent        Component = "cni"
	NodeProxy    Component = "ztunnel"
)

// Components are the parts in the order in which they are upgraded: what serves before what asks.
var Components = []Component{ControlPlane, Agent, NodeProxy}

// Title is what a person calls the part.
func (c Component) Title() string {
	switch c {
	case ControlPlane:
		return "control plane"
	case Agent:
		return "node agent"
	case NodeProxy:
		return "node proxy"
	}
	return string(c)
}

// Part is the Deployment or DaemonSet of a component.
type Part struct {
	Component Component
	Namespace string
	Kind      string // Deployment or DaemonSet
	Name      string
	// Version is what its pod template asks for; pods may still be older.
	Version string
	Image   string
	// Selector are the labels of its pods.
	Selector map[string]string
	// Pods that should run, and how many of them are of the current template and ready.
	Desired, Ready int
}

// Parts returns the parts of this mesh's installations, by namespace and upgrade order. Where namespace is not empty, only those in it.
func Parts(ctx context.Context, client kubernetes.Interface, namespace string) ([]Part, error) {
	deployments, err := client.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{LabelSelector: ours})
	if err != nil {
		return nil, fmt.Errorf("list Deployments: %w", err)
	}
	daemonSets, err := client.AppsV1().DaemonSets(namespace).List(ctx, metav1.ListOptions{LabelSelector: ours})
	if err != nil {
		return nil, fmt.Errorf("list DaemonSets: %w", err)
	}
	var parts []Part
	for i := range deployments.Items {
		parts = append(parts, DeploymentPart(&deployments.Items[i]))
	}
	for i := range daemonSets.Items {
		parts = append(parts, DaemonSetPart(&daemonSets.Items[i]))
	}
	parts = slices.DeleteFunc(parts, func(p Part) bool { return !slices.Contains(Components, p.Component) })
	slices.SortStableFunc(parts, func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace),
			slices.Index(Components, a.Component)-slices.Index(Components, b.Component))
	})
	return parts, nil
}

// DeploymentPart reads the state of a Deployment.
func DeploymentPart(d *appsv1.Deployment) Part {
	p := part("Deployment", d.ObjectMeta, d.Spec.Selector, d.Spec.Template)
	if d.Spec.Replicas != nil {
		p.Desired = int(*d.Spec.Replicas)
	} else {
		p.Desired = 1
	}
	// Of the pods that are available some may be of the old template: those beyond what is updated.
	if d.Status.ObservedGeneration >= d.Generation {
		old := int(d.Status.Replicas - d.Status.UpdatedReplicas)
		p.Ready = max(0, min(int(d.Status.UpdatedReplicas), int(d.Status.AvailableReplicas)-old))
	}
	return p
}

// DaemonSetPart reads the state of a DaemonSet.
func DaemonSetPart(d *appsv1.DaemonSet) Part {
	p := part("DaemonSet", d.ObjectMeta, d.Spec.Selector, d.Spec.Template)
	p.Desired = int(d.Status.DesiredNumberScheduled)
	if d.Status.ObservedGeneration >= d.Generation {
		p.Ready = int(min(d.Status.UpdatedNumberScheduled, d.Status.NumberAvailable))
	} else {
		p.Desired = max(p.Desired, 1) // not looked at yet, so surely not done
	}
	return p
}

func part(kind string, meta metav1.ObjectMeta, selector *metav1.LabelSelector, template corev1.PodTemplateSpec) Part {
	p := Part{
		Component: Component(meta.Labels["app.kubernetes.io/component"]),
		Namespace: meta.Namespace, Kind: kind, Name: meta.Name,
		Version: template.Labels[api.LabelVersion],
	}
	if selector != nil {
		p.Selector = selector.MatchLabels
	}
	if len(template.Spec.Containers) > 0 {
		p.Image = template.Spec.Containers[0].Image
	}
	return p
}

// Namespaces returns the namespaces that hold parts of this mesh.
func Namespaces(parts []Part) []string {
	found := map[string]bool{}
	for _, p := range parts {
		found[p.Namespace] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// Foreign is a part of another mesh.
type Foreign struct {
	Kind, Namespace, Name string
	// What it is, in words.
	What string
	// Node says that it captures pods or serves captured ones on the nodes, where there can be only one of its kind.
	Node Component
}

func (f Foreign) String() string {
	if f.Namespace == "" {
		return fmt.Sprintf("%s %s (%s)", f.Kind, f.Name, f.What)
	}
	return fmt.Sprintf("%s %s/%s (%s)", f.Kind, f.Namespace, f.Name, f.What)
}

// Others returns the parts of other meshes: Istio's, and ambit's own in namespaces other than the given one.
func Others(ctx context.Context, client kubernetes.Interface, namespace string) ([]Foreign, error) {
	var found []Foreign
	deployments, err := client.AppsV1().Deployments("").List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return nil, fmt.Errorf("list Deployments: %w", err)
	}
	for _, d := range deployments.Items {
		found = foreign(found, "Deployment", d.ObjectMeta, namespace, "control plane", "")
	}
	for _, node := range []struct {
		selector, what string
		component      Component
	}{
		{"app=ztunnel", "node proxy", NodeProxy},
		{"k8s-app=istio-cni-node", "CNI node agent", Agent},
		{"k8s-app=ambit-cni", "CNI node agent", Agent},
	} {
		daemonSets, err := client.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{LabelSelector: node.selector})
		if err != nil {
			return nil, fmt.Errorf("list DaemonSets: %w", err)
		}
		for _, d := range daemonSets.Items {
			component := node.component
			if component == Agent && !capturesPods(ctx, client, d) {
				component = ""
			}
			found = foreign(found, "DaemonSet", d.ObjectMeta, namespace, node.what, component)
		}
	}
	mutating, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: "app=sidecar-injector"})
	if err != nil {
		return nil, fmt.Errorf("list MutatingWebhookConfigurations: %w", err)
	}
	for _, w := range mutating.Items {
		found = foreign(found, "MutatingWebhookConfiguration", w.ObjectMeta, namespace, "sidecar injector", "")
	}
	validating, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return nil, fmt.Errorf("list ValidatingWebhookConfigurations: %w", err)
	}
	for _, w := range validating.Items {
		found = foreign(found, "ValidatingWebhookConfiguration", w.ObjectMeta, namespace, "configuration validator", "")
	}
	return found, nil
}

func foreign(found []Foreign, kind string, meta metav1.ObjectMeta, namespace, what string, node Component) []Foreign {
	mesh := "Istio"
	if meta.Labels[api.LabelPartOf] == api.PartOf {
		if meta.Namespace == namespace {
			return found
		}
		mesh = "ambit"
	}
	return append(found, Foreign{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, What: mesh + "'s " + what, Node: node})
}

// capturesPods tells whether a CNI agent captures pods for a node proxy, or only prepares pods with sidecars. In doubt it captures.
func capturesPods(ctx context.Context, client kubernetes.Interface, d appsv1.DaemonSet) bool {
	config, err := client.CoreV1().ConfigMaps(d.Namespace).Get(ctx, "istio-cni-config", metav1.GetOptions{})
	return err != nil || config.Data["AMBIENT_ENABLED"] != "false"
}
