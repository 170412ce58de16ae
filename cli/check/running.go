package check

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/rollout"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/mesh/meshconfig"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (c *checker) part(component survey.Component) *survey.Part {
	i := slices.IndexFunc(c.parts, func(p survey.Part) bool { return p.Component == component })
	if i < 0 {
		return nil
	}
	return &c.parts[i]
}

func (c *checker) controlPlane() {
	p := c.part(survey.ControlPlane)
	if p == nil {
		c.warn("fine if the node parts use another control plane", "no control plane of ambit's is in namespace %s", c.mesh)
		return
	}
	hint := fmt.Sprintf("kubectl -n %s describe pods -l app=istiod", c.mesh)
	switch {
	case p.Ready == 0:
		c.fail(hint, "Deployment %s: none of %s is ready; what runs goes on, but nothing new is learnt and no certificate renewed",
			p.Name, console.Plural(p.Desired, "replica"))
	case !rollout.Ready(*p):
		c.warn(hint, "Deployment %s: %d of %d replicas ready", p.Name, p.Ready, p.Desired)
	default:
		c.ok("Deployment %s: %d of %d replicas ready, version %s", p.Name, p.Ready, p.Desired, p.Version)
	}
	slices, err := c.cluster.Kubernetes.DiscoveryV1().EndpointSlices(c.mesh).List(c.ctx, metav1.ListOptions{
		LabelSelector: "kubernetes.io/service-name=" + api.ControlPlaneService,
	})
	if err != nil {
		c.unseen(fmt.Errorf("list endpoints of Service %s: %w", api.ControlPlaneService, err))
		return
	}
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
				c.ok("Service %s leads to it", api.ControlPlaneService)
				return
			}
		}
	}
	c.fail(hint, "Service %s has no ready endpoint: node proxies cannot reach the control plane", api.ControlPlaneService)
}

func (c *checker) meshSettings() {
	if c.part(survey.ControlPlane) == nil {
		return
	}
	config, err := c.cluster.Kubernetes.CoreV1().ConfigMaps(c.mesh).Get(c.ctx, api.MeshConfigMap, metav1.GetOptions{})
	if err != nil {
		c.fail("ambit upgrade writes it again", "mesh settings: %v", err)
		return
	}
	text := []byte(config.Data[api.MeshConfigKey])
	where := fmt.Sprintf("ConfigMap %s/%s, key %s", c.mesh, api.MeshConfigMap, api.MeshConfigKey)
	if _, err := meshconfig.Parse(text); err != nil {
		c.fail("mend it; until then the control plane goes on with the last good settings", "%s: %v", where, err)
		return
	}
	unsupported, err := meshconfig.FindUnsupported(text)
	if err != nil {
		c.fail("mend it; until then the control plane goes on with the last good settings", "%s: %v", where, err)
		return
	}
	for _, field := range unsupported {
		c.warn("take it out of meshConfig, or do without it", "mesh settings: %s: %s", field.Path, field.Reason)
	}
	if len(unsupported) == 0 {
		c.ok("mesh settings are understood")
	}
}

// trustBundles looks whether every namespace has the trust bundle, and the same one.
func (c *checker) trustBundles() {
	name := c.bundleName()
	list, err := c.cluster.Kubernetes.CoreV1().ConfigMaps("").List(c.ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(),
	})
	if err != nil {
		c.unseen(fmt.Errorf("list ConfigMaps %s: %w", name, err))
		return
	}
	namespaces, err := c.cluster.Kubernetes.CoreV1().Namespaces().List(c.ctx, metav1.ListOptions{})
	if err != nil {
		c.unseen(fmt.Errorf("list namespaces: %w", err))
		return
	}
	bundles := map[string]string{}
	for _, config := range list.Items {
		bundles[config.Namespace] = config.Data[api.RootCertKey]
	}
	var missing, different []string
	for _, ns := range namespaces.Items {
		if ns.Status.Phase == corev1.NamespaceTerminating {
			continue
		}
		switch bundle, there := bundles[ns.Name]; {
		case !there:
			missing = append(missing, ns.Name)
		case bundle != bundles[c.mesh]:
			different = append(different, ns.Name)
		}
	}
	hint := fmt.Sprintf("kubectl -n %s logs -l app=istiod", c.mesh)
	if len(missing) > 0 {
		c.fail(hint, "no trust bundle (ConfigMap %s) in %s", name, few(missing))
	}
	if len(different) > 0 {
		c.fail(hint+"; does another control plane write there too?", "another trust bundle (ConfigMap %s) in %s", name, few(different))
	}
	if len(missing)+len(different) == 0 {
		c.ok("the trust bundle is in every namespace")
	}
	if bundle, there := bundles[c.mesh]; there {
		c.rootExpiry([]byte(bundle), time.Now())
	}
}

// rootWarning is how long before a root certificate expires the check begins to warn: time enough to plan its replacement.
const rootWarning = 90 * 24 * time.Hour

// rootExpiry reads the trust bundle and looks how long its roots are good for.
func (c *checker) rootExpiry(bundle []byte, now time.Time) {
	var last time.Time
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			c.fail("replace it", "the trust bundle has a certificate that cannot be read: %v", err)
			return
		}
		if cert.NotAfter.After(last) {
			last = cert.NotAfter
		}
	}
	date := last.Format(time.DateOnly)
	switch {
	case last.IsZero():
		c.fail(fmt.Sprintf("kubectl -n %s logs -l app=istiod", c.mesh), "the trust bundle has no certificate")
	case now.After(last):
		c.fail("replace the root certificate", "the root certificate expired on %s: no pod can prove who it is", date)
	case now.Add(rootWarning).After(last):
		c.warn("plan its replacement", "the root certificate expires on %s", date)
	default:
		c.ok("the root certificate is good until %s", date)
	}
}

// bundleName is the ConfigMap that the node proxy mounts.
func (c *checker) bundleName() string {
	ds, err := c.daemonSet(survey.NodeProxy)
	if err == nil && ds != nil {
		for _, volume := range ds.Spec.Template.Spec.Volumes {
			if volume.Name == "istiod-ca-cert" && volume.ConfigMap != nil {
				return volume.ConfigMap.Name
			}
		}
	}
	return api.RootCertConfigMap
}

func (c *checker) daemonSet(component survey.Component) (*appsv1.DaemonSet, error) {
	p := c.part(component)
	if p == nil {
		return nil, nil
	}
	return c.cluster.Kubernetes.AppsV1().DaemonSets(p.Namespace).Get(c.ctx, p.Name, metav1.GetOptions{})
}

// nodeParts looks for a ready agent and proxy on every node with Linux.
func (c *checker) nodeParts() {
	nodes, err := c.cluster.Kubernetes.CoreV1().Nodes().List(c.ctx, metav1.ListOptions{LabelSelector: corev1.LabelOSStable + "=linux"})
	if err != nil {
		c.unseen(fmt.Errorf("list nodes: %w", err))
		return
	}
	var unready []string
	for _, node := range nodes.Items {
		if !nodeReady(&node) {
			unready = append(unready, node.Name)
		}
	}
	if len(unready) > 0 {
		c.warn("kubectl describe node NAME", "not Ready, and so not looked at: %s", few(unready))
	}
	for _, component := range []survey.Component{survey.Agent, survey.NodeProxy} {
		p := c.part(component)
		if p == nil {
			c.warn("fine if another mesh's part does its work", "no %s of ambit's is in namespace %s", component.Title(), c.mesh)
			continue
		}
		c.onEveryNode(p, nodes.Items, unready)
	}
}

func (c *checker) onEveryNode(p *survey.Part, nodes []corev1.Node, unready []string) {
	pods, err := c.cluster.Kubernetes.CoreV1().Pods(p.Namespace).List(c.ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(p.Selector).String()})
	if err != nil {
		c.unseen(fmt.Errorf("list pods of DaemonSet %s: %w", p.Name, err))
		return
	}
	ready := map[string]bool{}
	versions := map[string]bool{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil {
				ready[pod.Spec.NodeName] = true
				versions[pod.Labels[api.LabelVersion]] = true
			}
		}
	}
	var without []string
	for _, node := range nodes {
		if !ready[node.Name] && !slices.Contains(unready, node.Name) {
			without = append(without, node.Name)
		}
	}
	if len(without) > 0 {
		consequence := "labelled pods do not start there"
		if p.Component == survey.NodeProxy {
			consequence = "captured pods there have no connection"
		}
		c.fail(fmt.Sprintf("kubectl -n %s describe pods -l %s", p.Namespace, labels.SelectorFromSet(p.Selector)),
			"no ready %s (DaemonSet %s) on %s: %s", p.Component.Title(), p.Name, few(without), consequence)
		return
	}
	if len(versions) > 1 {
		c.warn("wait for the rollout, or ambit upgrade", "%s: several versions run: %s", p.Component.Title(), strings.Join(sortedKeys(versions), ", "))
		return
	}
	c.ok("%s ready on %s, version %s", p.Component.Title(), console.Plural(len(ready), "node"), p.Version)
}

// excluded returns the namespaces that the agent is told never to touch.
func (c *checker) excluded() []string {
	ds, err := c.daemonSet(survey.Agent)
	if err != nil || ds == nil {
		return nil
	}
	for _, container := range ds.Spec.Template.Spec.Containers {
		for _, arg := range container.Args {
			if list, ok := strings.CutPrefix(arg, "--exclude-namespaces="); ok {
				return strings.Split(list, ",")
			}
		}
	}
	return nil
}

// namespaceMissing tells whether the one namespace that is to be looked at is not there.
func (c *checker) namespaceMissing() bool {
	if c.only == "" {
		return false
	}
	_, err := c.cluster.Kubernetes.CoreV1().Namespaces().Get(c.ctx, c.only, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return false // what else is wrong the checks find out
	}
	c.fail("kubectl get namespaces lists those that there are", "there is no namespace %s", c.only)
	return true
}

func (c *checker) enrolment() {
	e, err := survey.Enrolled(c.ctx, c.cluster.Kubernetes, c.only, c.excluded())
	if err != nil {
		c.unseen(err)
		return
	}
	for _, m := range e.Malformed {
		c.warn(fmt.Sprintf("the values are %q and %q", api.DataplaneModeAmbient, api.DataplaneModeNone), "%s", m)
	}
	if len(e.Excluded) > 0 {
		c.warn("take the label off, or the namespace out of the value excludeNamespaces", "labelled, but excluded from the mesh: %s", few(e.Excluded))
	}
	if len(e.Namespaces) == 0 && len(e.Pods) == 0 {
		c.ok("nobody is enrolled yet (kubectl label namespace NAME %s=%s)", api.LabelDataplaneMode, api.DataplaneModeAmbient)
		return
	}
	var captured int
	problems := map[string][]string{}
	for _, pod := range e.Pods {
		switch {
		case pod.Phase != corev1.PodRunning:
			// It is being started: the plugin lets it run only once it is captured.
		case pod.Wanted && pod.Redirection == api.RedirectionEnabled:
			captured++
		case pod.Wanted && pod.Redirection == "":
			problems["running, but not captured"] = append(problems["running, but not captured"], pod.String()+" on "+pod.Node)
		case pod.Wanted:
			problems["capture is pending"] = append(problems["capture is pending"], pod.String()+" on "+pod.Node)
		case !pod.Wanted:
			problems["captured, though no label asks for it"] = append(problems["captured, though no label asks for it"], pod.String()+" on "+pod.Node)
		}
	}
	c.ok("%s labelled, %s captured", console.Plural(len(e.Namespaces), "namespace"), console.Plural(captured, "pod"))
	for _, problem := range sortedKeys(problems) {
		c.fail(fmt.Sprintf("see the agent on that node: kubectl -n %s logs -l k8s-app=%s", c.mesh, api.NodeAgent), "%s: %s", problem, few(problems[problem]))
	}
}
