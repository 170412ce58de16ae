package check

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/crd"
	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/cli/stages"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/deploy"
)

// The oldest versions that are supported, as major and minor. Kubernetes: the chart uses fields that came with it. The
// kernel: what is tested; what ambit uses of netfilter is older.
var (
	oldestKubernetes = [2]int{1, 30}
	oldestKernel     = [2]int{5, 4}
)

var majorMinor = regexp.MustCompile(`^v?(\d+)\.(\d+)`)

// atLeast tells whether a version that begins with major.minor is not older than oldest; known is false where it does not.
func atLeast(version string, oldest [2]int) (yes, known bool) {
	m := majorMinor.FindStringSubmatch(version)
	if m == nil {
		return false, false
	}
	major, err1 := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	if err1 != nil || err2 != nil {
		return false, false
	}
	return major > oldest[0] || (major == oldest[0] && minor >= oldest[1]), true
}

func (c *checker) kubernetesVersion() {
	yes, known := atLeast(c.kubernetes, oldestKubernetes)
	switch {
	case !known:
		c.warn("make sure that it is at least 1.30", "Kubernetes says its version is %q", c.kubernetes)
	case !yes:
		c.fail("upgrade the cluster", "Kubernetes is %s, at least %d.%d is needed", c.kubernetes, oldestKubernetes[0], oldestKubernetes[1])
	default:
		c.ok("Kubernetes %s", c.kubernetes)
	}
}

// permissions asks whether the account may make what an install makes.
func (c *checker) permissions() {
	needed := []authorizationv1.ResourceAttributes{
		{Resource: "namespaces"}, {Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
		{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}, {Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
		{Namespace: c.mesh, Group: "rbac.authorization.k8s.io", Resource: "roles"},
		{Namespace: c.mesh, Group: "rbac.authorization.k8s.io", Resource: "rolebindings"},
		{Namespace: c.mesh, Group: "apps", Resource: "deployments"}, {Namespace: c.mesh, Group: "apps", Resource: "daemonsets"},
		{Namespace: c.mesh, Group: "policy", Resource: "poddisruptionbudgets"},
		{Namespace: c.mesh, Resource: "services"}, {Namespace: c.mesh, Resource: "serviceaccounts"},
		{Namespace: c.mesh, Resource: "configmaps"}, {Namespace: c.mesh, Resource: "secrets"},
	}
	var denied []string
	for _, attributes := range needed {
		for _, verb := range []string{"create", "patch"} {
			attributes.Verb = verb
			review, err := c.cluster.Kubernetes.AuthorizationV1().SelfSubjectAccessReviews().Create(c.ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &attributes},
			}, metav1.CreateOptions{})
			if err != nil {
				c.unseen(fmt.Errorf("ask for the account's rights: %w", err))
				return
			}
			if !review.Status.Allowed {
				denied = append(denied, verb+" "+attributes.Resource)
			}
		}
	}
	if len(denied) > 0 {
		c.fail("use an account with the ClusterRole cluster-admin", "the account may not %s", few(denied))
		return
	}
	c.ok("the account may make everything that an install makes")
}

func (c *checker) nodes() {
	list, err := c.cluster.Kubernetes.CoreV1().Nodes().List(c.ctx, metav1.ListOptions{})
	if err != nil {
		c.unseen(fmt.Errorf("list nodes: %w", err))
		return
	}
	var linux, otherOS, oldKernel, unready []string
	for _, node := range list.Items {
		if node.Labels[corev1.LabelOSStable] != "linux" {
			otherOS = append(otherOS, node.Name)
			continue
		}
		linux = append(linux, node.Name)
		info := node.Status.NodeInfo
		if yes, known := atLeast(info.KernelVersion, oldestKernel); known && !yes {
			oldKernel = append(oldKernel, fmt.Sprintf("%s (%s)", node.Name, info.KernelVersion))
		}
		if !nodeReady(&node) {
			unready = append(unready, node.Name)
		}
	}
	if len(linux) == 0 {
		c.fail("add a node that runs Linux", "no node runs Linux")
		return
	}
	c.ok("%s with Linux", console.Plural(len(linux), "node"))
	if len(otherOS) > 0 {
		c.warn("pods there cannot be captured; keep them out of labelled namespaces", "other systems on %s", few(otherOS))
	}
	if len(oldKernel) > 0 {
		c.warn("ambit is tested with newer kernels only", "the kernel is older than %d.%d on %s", oldestKernel[0], oldestKernel[1], few(oldKernel))
	}
	if len(unready) > 0 {
		c.warn("an install waits for its pods there", "not Ready: %s", few(unready))
	}
}

func nodeReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(condition corev1.NodeCondition) bool {
		return condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue
	})
}

// networkPlugin looks for settings of the cluster's network that would undo capture.
func (c *checker) networkPlugin() {
	config, err := c.cluster.Kubernetes.CoreV1().ConfigMaps("kube-system").Get(c.ctx, "cilium-config", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		c.ok("no network plugin with settings that need a change was found")
		return
	}
	if err != nil {
		c.unseen(fmt.Errorf("read the settings of Cilium: %w", err))
		return
	}
	fine := true
	if config.Data["cni-exclusive"] != "false" {
		fine = false
		c.fail("set Cilium's Helm value cni.exclusive=false", "Cilium removes other CNI plugins from the nodes, ambit's too")
	}
	socketLB := config.Data["kube-proxy-replacement"] == "true" || config.Data["bpf-lb-sock"] == "true"
	if socketLB && config.Data["bpf-lb-sock-hostns-only"] != "true" {
		fine = false
		c.fail("set Cilium's Helm value socketLB.hostNamespaceOnly=true",
			"Cilium replaces service addresses inside pods, before ambit sees which service is meant")
	}
	if fine {
		c.ok("Cilium lets other plugins be and leaves service addresses alone")
	}
}

func (c *checker) otherMeshes() {
	others, err := survey.Others(c.ctx, c.cluster.Kubernetes, c.mesh)
	if err != nil {
		c.unseen(err)
		return
	}
	if len(others) > 0 {
		var names []string
		for _, other := range others {
			names = append(names, other.String())
		}
		c.fail("remove it, or install beside it: ambit install --beside -n NAMESPACE", "another mesh is there: %s", few(names))
	} else {
		c.ok("no other mesh is there")
	}
	if len(c.parts) > 0 {
		c.warn("use ambit check --pre-upgrade and ambit upgrade", "ambit %s is installed in namespace %s already", c.parts[0].Version, c.mesh)
	}
}

// podSecurity looks whether the namespace lets pods with capabilities and host paths in.
func (c *checker) podSecurity() {
	ns, err := c.cluster.Kubernetes.CoreV1().Namespaces().Get(c.ctx, c.mesh, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		c.ok("namespace %s will be made", c.mesh)
	case err != nil:
		c.unseen(fmt.Errorf("read namespace %s: %w", c.mesh, err))
	default:
		const enforce = "pod-security.kubernetes.io/enforce"
		if level := ns.Labels[enforce]; level == "baseline" || level == "restricted" {
			c.fail(fmt.Sprintf("kubectl label namespace %s --overwrite %s=privileged", c.mesh, enforce),
				"namespace %s enforces the pod security level %q, which refuses the node parts", c.mesh, level)
			return
		}
		c.ok("namespace %s lets the node parts in", c.mesh)
	}
}

// definitions tells which custom resource definitions an install or upgrade would leave alone.
func (c *checker) definitions() {
	texts, err := deploy.CRDs()
	if err != nil {
		c.unseen(err)
		return
	}
	ours, err := crd.Parse(texts)
	if err != nil {
		c.unseen(err)
		return
	}
	theirs, err := crd.Existing(c.ctx, c.cluster.Dynamic, ours)
	if err != nil {
		c.unseen(err)
		return
	}
	left := map[string][]string{}
	for _, step := range crd.Plan(ours, theirs) {
		if step.Action == crd.LeaveBe {
			left[step.Reason] = append(left[step.Reason], step.Name)
		}
	}
	if len(left) == 0 {
		c.ok("custom resource definitions: %d of %d are there, and none is newer than ours", len(theirs), len(ours))
		return
	}
	for _, reason := range sortedKeys(left) {
		c.warn("nothing is to be done unless you want ours; ambit works with newer ones", "%s will be left alone: %s", few(left[reason]), reason)
	}
}

// installation looks at the record of the installed mesh.
func (c *checker) installation() {
	releases, err := release.Open(c.cluster, c.mesh)
	if err != nil {
		c.unseen(err)
		return
	}
	current, err := releases.Current()
	if err != nil {
		c.fail("wait until it is done, or see helm history "+release.Name, "%v", err)
		return
	}
	if current == nil {
		c.fail("upgrade the mesh with what installed it (GitOps?), or install one: ambit install", "there is no Helm release %q in namespace %s", release.Name, c.mesh)
		return
	}
	switch {
	case current.Status == "failed":
		c.warn("ambit upgrade applies over it; ambit rollback goes back"+command.InMesh(c.mesh), "revision %d (%s) failed: %s",
			current.Number, current.Version, current.Description)
	case !stages.Complete(current):
		c.warn("ambit upgrade goes on; ambit rollback goes back"+command.InMesh(c.mesh), "an earlier upgrade stopped midway: %s", current.Description)
	default:
		c.ok("ambit %s is installed (revision %d)", current.Version, current.Number)
	}
	chart, err := release.Load(c.client, false)
	if err != nil {
		c.unseen(err)
		return
	}
	if _, err := chart.Render(c.ctx, c.mesh, current.Values); err != nil {
		c.fail("give other values: ambit upgrade --reset-values -f values.yaml", "the values of the installation do not fit %s: %v",
			chart.Version(), strings.TrimSpace(err.Error()))
		return
	}
	c.ok("this ambit would install %s with the values of the installation", chart.Version())
}
