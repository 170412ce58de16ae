package deploy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/deploy"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// object is a rendered object, with the metadata that all have.
type object struct {
	metav1.Object
	typed runtime.Object
	kind  string
}

func (o object) String() string { return o.kind + " " + o.GetName() }

// render renders the chart as `ambit install --set ...` does.
func render(t *testing.T, set ...string) []object {
	t.Helper()
	vals, err := release.Values{Set: set}.Merge()
	if err != nil {
		t.Fatal(err)
	}
	chart, err := release.Load("v9.9.9", false)
	if err != nil {
		t.Fatal(err)
	}
	text, err := chart.Render(t.Context(), "mesh", vals)
	if err != nil {
		t.Fatal(err)
	}
	var objects []object
	for doc := range strings.SplitSeq(text, "\n---\n") {
		// Strict: a field that Kubernetes does not know is a fault of the chart.
		into, kind, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), into); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		objects = append(objects, object{into.(metav1.Object), into, kind.Kind})
	}
	return objects
}

func find[T runtime.Object](t *testing.T, objects []object, name string) T {
	t.Helper()
	for _, o := range objects {
		if v, ok := o.typed.(T); ok && o.GetName() == name {
			return v
		}
	}
	var zero T
	t.Fatalf("no %T %s", zero, name)
	return zero
}

// templates returns the pod templates by the name of what owns them.
func templates(objects []object) map[string]*corev1.PodTemplateSpec {
	found := map[string]*corev1.PodTemplateSpec{}
	for _, o := range objects {
		switch v := o.typed.(type) {
		case *appsv1.Deployment:
			found[v.Name] = &v.Spec.Template
		case *appsv1.DaemonSet:
			found[v.Name] = &v.Spec.Template
		}
	}
	return found
}

// capabilities are all that each container has. A new line here is a decision.
var capabilities = map[string][]corev1.Capability{
	"istiod-lite": nil,
	"ztunnel":     {"NET_ADMIN", "SYS_ADMIN", "NET_RAW"},
	"ambit-cni":   {"NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE"},
}

// TestPrivileges: nobody is privileged or shares the node's namespaces, nobody has a capability that is not listed, no root
// file system can be written, and every container has a profile of system calls.
func TestPrivileges(t *testing.T) {
	all := templates(render(t))
	if len(all) != len(capabilities) {
		t.Fatalf("%d pod templates, want %d", len(all), len(capabilities))
	}
	for name, template := range all {
		spec := template.Spec
		if spec.HostNetwork || spec.HostPID || spec.HostIPC {
			t.Errorf("%s shares a namespace of the node", name)
		}
		for _, c := range append(slices.Clone(spec.InitContainers), spec.Containers...) {
			s := c.SecurityContext
			if s == nil || s.Capabilities == nil {
				t.Errorf("%s: container %s has no security context", name, c.Name)
				continue
			}
			if s.Privileged != nil && *s.Privileged {
				t.Errorf("%s: container %s is privileged", name, c.Name)
			}
			if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
				t.Errorf("%s: container %s can write its root file system", name, c.Name)
			}
			if diff := cmp.Diff([]corev1.Capability{"ALL"}, s.Capabilities.Drop); diff != "" {
				t.Errorf("%s: dropped capabilities (-want +got):\n%s", name, diff)
			}
			if diff := cmp.Diff(capabilities[name], s.Capabilities.Add); diff != "" {
				t.Errorf("%s: added capabilities (-want +got):\n%s", name, diff)
			}
			// Kubernetes refuses "false" together with SYS_ADMIN.
			escalates := s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation
			if escalates != slices.Contains(capabilities[name], "SYS_ADMIN") {
				t.Errorf("%s: allowPrivilegeEscalation is %v", name, escalates)
			}
		}
		if p := spec.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: the seccomp profile is %v", name, p)
		}
		if root := spec.SecurityContext.RunAsNonRoot == nil || !*spec.SecurityContext.RunAsNonRoot; root == (name == "istiod-lite") {
			t.Errorf("%s: runs as root: %v", name, root)
		}
	}
}

// TestPods: requests, probes, priority, and images from values alone.
func TestPods(t *testing.T) {
	objects := render(t, "hub=registry.example/a/b", "tag=v7", "imagePullPolicy=Always", "imagePullSecrets={s1,s2}")
	for name, template := range templates(objects) {
		spec := template.Spec
		if !strings.HasPrefix(spec.PriorityClassName, "system-") {
			t.Errorf("%s: priority class %q", name, spec.PriorityClassName)
		}
		if len(spec.ImagePullSecrets) != 2 {
			t.Errorf("%s: pull secrets %v", name, spec.ImagePullSecrets)
		}
		for _, c := range spec.Containers {
			if !strings.HasPrefix(c.Image, "registry.example/a/b/") || !strings.HasSuffix(c.Image, ":v7") || c.ImagePullPolicy != corev1.PullAlways {
				t.Errorf("%s: image %s, pulled %s", name, c.Image, c.ImagePullPolicy)
			}
			if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
				t.Errorf("%s: container %s requests %v", name, c.Name, c.Resources.Requests)
			}
			if c.ReadinessProbe == nil {
				t.Errorf("%s: container %s has no readiness probe", name, c.Name)
			}
		}
		if template.Labels["istio.io/dataplane-mode"] != "none" || template.Labels["sidecar.istio.io/inject"] != "false" {
			t.Errorf("%s: its pods could be captured or injected: %v", name, template.Labels)
		}
		if name != "istiod-lite" && !slices.Contains(spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists}) {
			t.Errorf("%s does not run on tainted nodes: %v", name, spec.Tolerations)
		}
	}
}

// TestLabels: everything can be found by its labels and belongs to a part that upgrades know.
func TestLabels(t *testing.T) {
	for _, o := range render(t, "labels.team=net") {
		got := o.GetLabels()
		if got["app.kubernetes.io/part-of"] != "ambit" || got["app.kubernetes.io/version"] != "v9.9.9" || got["team"] != "net" {
			t.Errorf("%s: labels %v", o, got)
		}
		if !slices.Contains([]string{"istiod-lite", "cni", "ztunnel"}, got["app.kubernetes.io/component"]) {
			t.Errorf("%s: component %q", o, got["app.kubernetes.io/component"])
		}
		if cluster := strings.HasPrefix(o.kind, "Cluster"); cluster != (o.GetNamespace() == "") {
			t.Errorf("%s: namespace %q", o, o.GetNamespace())
		} else if cluster && !strings.HasSuffix(o.GetName(), "-mesh") {
			t.Errorf("%s: two meshes would share it", o)
		}
	}
}

// TestSelectors: services, budgets and spreading meet the pods that they are for.
func TestSelectors(t *testing.T) {
	objects := render(t)
	deployment := find[*appsv1.Deployment](t, objects, "istiod-lite")
	pod := labels.Set(deployment.Spec.Template.Labels)
	selectors := map[string]labels.Selector{"service": labels.SelectorFromSet(find[*corev1.Service](t, objects, "istiod").Spec.Selector)}
	add := func(name string, s *metav1.LabelSelector) {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		selectors[name] = selector
	}
	add("deployment", deployment.Spec.Selector)
	add("budget", find[*policyv1.PodDisruptionBudget](t, objects, "istiod-lite").Spec.Selector)
	for _, c := range deployment.Spec.Template.Spec.TopologySpreadConstraints {
		add("spread over "+c.TopologyKey, c.LabelSelector)
	}
	for _, term := range deployment.Spec.Template.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
		add("anti-affinity", term.PodAffinityTerm.LabelSelector)
	}
	for name, selector := range selectors {
		if selector.Empty() || !selector.Matches(pod) {
			t.Errorf("%s: %s does not select %v", name, selector, pod)
		}
		// An Istio beside us has pods with app=istiod too.
		if selector.Matches(labels.Set{"app": "istiod", "istio": "pilot"}) {
			t.Errorf("%s: %s selects another mesh's pods", name, selector)
		}
	}
	for _, name := range []string{"ztunnel", "ambit-cni"} {
		ds := find[*appsv1.DaemonSet](t, objects, name)
		if !labels.SelectorFromSet(ds.Spec.Selector.MatchLabels).Matches(labels.Set(ds.Spec.Template.Labels)) {
			t.Errorf("DaemonSet %s does not select its pods", name)
		}
	}
}

// TestRollouts: nothing is away while it is replaced, but the agent, whose absence running pods do not notice.
func TestRollouts(t *testing.T) {
	objects := render(t, "ztunnel.terminationGracePeriodSeconds=77")
	d := find[*appsv1.Deployment](t, objects, "istiod-lite")
	if *d.Spec.Replicas != 2 || d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 || d.Spec.Strategy.RollingUpdate.MaxSurge.IntValue() != 1 {
		t.Errorf("istiod-lite: %d replicas, %v", *d.Spec.Replicas, d.Spec.Strategy)
	}
	for name, want := range map[string][2]int{"ztunnel": {1, 0}, "ambit-cni": {0, 1}} {
		r := find[*appsv1.DaemonSet](t, objects, name).Spec.UpdateStrategy.RollingUpdate
		surge := 0
		if r.MaxSurge != nil {
			surge = r.MaxSurge.IntValue()
		}
		if surge != want[0] || r.MaxUnavailable.IntValue() != want[1] {
			t.Errorf("%s: %v", name, r)
		}
	}
	// The proxy must know how long Kubernetes lets it drain.
	spec := templates(objects)["ztunnel"].Spec
	i := slices.IndexFunc(spec.Containers[0].Env, func(e corev1.EnvVar) bool { return e.Name == "TERMINATION_GRACE_PERIOD_SECONDS" })
	if *spec.TerminationGracePeriodSeconds != 77 || i < 0 || spec.Containers[0].Env[i].Value != "77" {
		t.Errorf("grace %d, told %v", *spec.TerminationGracePeriodSeconds, spec.Containers[0].Env)
	}
}

// writes are all rights to change something, as "account: verb resource[name]". A new line here is a decision.
var writes = []string{
	"ambit-cni: create events",
	"ambit-cni: create serviceaccounts/token[ambit-cni-plugin]",
	"ambit-cni: patch events",
	"ambit-cni: patch pods/status",
	"istiod-lite: create configmaps",
	"istiod-lite: create deployments",
	"istiod-lite: create gatewayclasses",
	"istiod-lite: create horizontalpodautoscalers",
	"istiod-lite: create leases",
	"istiod-lite: create poddisruptionbudgets",
	"istiod-lite: create secrets",
	"istiod-lite: create serviceaccounts",
	"istiod-lite: create services",
	"istiod-lite: create tokenreviews",
	"istiod-lite: create xmeshes",
	"istiod-lite: delete horizontalpodautoscalers",
	"istiod-lite: delete poddisruptionbudgets",
	"istiod-lite: delete secrets[ambit-ca-rotation]",
	"istiod-lite: patch authorizationpolicies/status",
	"istiod-lite: patch backendtlspolicies/status",
	"istiod-lite: patch deployments",
	"istiod-lite: patch destinationrules/status",
	"istiod-lite: patch gatewayclasses/status",
	"istiod-lite: patch gateways/status",
	"istiod-lite: patch grpcroutes/status",
	"istiod-lite: patch horizontalpodautoscalers",
	"istiod-lite: patch httproutes/status",
	"istiod-lite: patch poddisruptionbudgets",
	"istiod-lite: patch requestauthentications/status",
	"istiod-lite: patch serviceaccounts",
	"istiod-lite: patch serviceentries/status",
	"istiod-lite: patch services",
	"istiod-lite: patch services/status",
	"istiod-lite: patch tcproutes/status",
	"istiod-lite: patch telemetries/status",
	"istiod-lite: patch tlsroutes/status",
	"istiod-lite: patch virtualservices/status",
	"istiod-lite: patch waypointpolicies/status",
	"istiod-lite: patch workloadentries/status",
	"istiod-lite: patch xbackendtrafficpolicies/status",
	"istiod-lite: patch xmeshes/status",
	"istiod-lite: update configmaps[istio-ca-root-cert istio-ca-crl]",
	"istiod-lite: update leases[istiod-lite-leader]",
	"istiod-lite: update secrets[istio-ca-secret ambit-ca-rotation ambit-ca-signer]",
}

// TestRights: no wildcard, no secret of others, no right to write beyond the list, and nothing at all for the node proxy.
func TestRights(t *testing.T) {
	objects := render(t)
	rules := map[string][]rbacv1.PolicyRule{}
	for _, o := range objects {
		switch v := o.typed.(type) {
		case *rbacv1.ClusterRole:
			rules["ClusterRole/"+v.Name] = v.Rules
		case *rbacv1.Role:
			rules["Role/"+v.Name] = v.Rules
		}
	}
	var got []string
	bound := func(ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		for _, subject := range subjects {
			if subject.Namespace != "mesh" || subject.Name == "ztunnel" {
				t.Errorf("%v is bound to %s", subject, ref.Name)
			}
			find[*corev1.ServiceAccount](t, objects, subject.Name)
			if rules[ref.Kind+"/"+ref.Name] == nil {
				t.Errorf("%s is bound to %s, which is not there", subject.Name, ref.Name)
			}
			for _, rule := range rules[ref.Kind+"/"+ref.Name] {
				got = append(got, rights(t, subject.Name, ref.Kind, rule)...)
			}
		}
	}
	for _, o := range objects {
		switch v := o.typed.(type) {
		case *rbacv1.ClusterRoleBinding:
			bound(v.RoleRef, v.Subjects)
		case *rbacv1.RoleBinding:
			bound(v.RoleRef, v.Subjects)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(writes, got); diff != "" {
		t.Errorf("rights to write (-want +got):\n%s", diff)
	}
	if token := find[*corev1.ServiceAccount](t, objects, "ztunnel").AutomountServiceAccountToken; token == nil || *token {
		t.Error("the node proxy's account has a token for the API server")
	}
}

// rights returns the rights to write in a rule.
func rights(t *testing.T, account, kind string, rule rbacv1.PolicyRule) []string {
	var found []string
	for _, list := range [][]string{rule.APIGroups, rule.Resources, rule.Verbs} {
		if slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, "*") }) {
			t.Errorf("%s: a wildcard in %v", account, rule)
		}
	}
	for _, resource := range rule.Resources {
		if len(rule.ResourceNames) > 0 {
			resource += fmt.Sprint(rule.ResourceNames)
		}
		for _, verb := range rule.Verbs {
			switch verb {
			case "get", "list", "watch":
				if strings.HasPrefix(resource, "secrets") && (kind == "ClusterRole" || len(rule.ResourceNames) == 0) {
					t.Errorf("%s may %s %s", account, verb, resource)
				}
			default:
				found = append(found, account+": "+verb+" "+resource)
			}
		}
	}
	return found
}

// TestSwitchedOff: a part that is switched off leaves nothing behind.
func TestSwitchedOff(t *testing.T) {
	for value, component := range map[string]string{"istiod": "istiod-lite", "cni": "cni", "ztunnel": "ztunnel"} {
		for _, o := range render(t, value+".enabled=false") {
			if o.GetLabels()["app.kubernetes.io/component"] == component {
				t.Errorf("%s.enabled=false leaves %s", value, o)
			}
		}
	}
}

// TestBundleName: the names of the trust bundle and of the revocation lists reach all who use them.
func TestBundleName(t *testing.T) {
	for value, flag := range map[string]string{"rootCertConfigMap": "--root-cert-configmap", "crlConfigMap": "--crl-configmap"} {
		objects := render(t, value+"=other")
		all := templates(objects)
		if args := all["istiod-lite"].Spec.Containers[0].Args; !slices.Contains(args, flag+"=other") {
			t.Errorf("istiod-lite: %v", args)
		}
		if !slices.ContainsFunc(all["ztunnel"].Spec.Volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil && v.ConfigMap.Name == "other" }) {
			t.Errorf("ztunnel: %v", all["ztunnel"].Spec.Volumes)
		}
		role := find[*rbacv1.ClusterRole](t, objects, "ambit-istiod-lite-mesh")
		if !slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.ResourceNames, "other") }) {
			t.Errorf("rules: %v", role.Rules)
		}
	}
}

// TestWaypoints: what values say of waypoints reaches the control plane, which deploys them.
func TestWaypoints(t *testing.T) {
	env := map[string]string{}
	objects := render(t, "hub=registry.example/a", "tag=v7", "imagePullSecrets={s1,s2}", "logLevel=warn", "waypoint.replicas=3", "waypoint.resources.limits.memory=1Gi")
	for _, e := range templates(objects)["istiod-lite"].Spec.Containers[0].Env {
		env[e.Name] = e.Value
	}
	for name, want := range map[string]string{
		"WAYPOINT_IMAGE": "registry.example/a/waypoint:v7", "WAYPOINT_IMAGE_PULL_POLICY": "IfNotPresent", "WAYPOINT_IMAGE_PULL_SECRETS": "s1,s2",
		"WAYPOINT_REPLICAS": "3", "WAYPOINT_LOG_LEVEL": "warn", "WAYPOINT_BUILD": "v9.9.9", "WAYPOINT_GRACE_PERIOD": "30",
	} {
		if env[name] != want {
			t.Errorf("%s=%q, want %q", name, env[name], want)
		}
	}
	var resources corev1.ResourceRequirements
	if err := json.Unmarshal([]byte(env["WAYPOINT_RESOURCES"]), &resources); err != nil {
		t.Fatalf("WAYPOINT_RESOURCES=%q: %v", env["WAYPOINT_RESOURCES"], err)
	}
	if resources.Requests.Cpu().String() != "100m" || resources.Limits.Memory().String() != "1Gi" {
		t.Errorf("resources are %v", resources)
	}
}

// TestCommandLines: what each program is started with is a contract with it, shown whole.
func TestCommandLines(t *testing.T) {
	var text strings.Builder
	all := templates(render(t))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, c := range all[name].Spec.Containers {
			fmt.Fprintf(&text, "%s: container %s, image %s\n", name, c.Name, c.Image)
			for _, arg := range c.Args {
				fmt.Fprintf(&text, "  %s\n", arg)
			}
			for _, env := range c.Env {
				value := env.Value
				if env.ValueFrom != nil {
					value = "(" + env.ValueFrom.FieldRef.FieldPath + ")"
				}
				fmt.Fprintf(&text, "  %s=%s\n", env.Name, value)
			}
			for _, m := range c.VolumeMounts {
				fmt.Fprintf(&text, "  mount %s\n", m.MountPath)
			}
		}
	}
	golden := filepath.Join("testdata", "command-lines.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text.String()); diff != "" {
		t.Errorf("command lines (-want +got):\n%s", diff)
	}
}

// TestValuesAndSchema: the schema knows exactly the values that values.yaml shows, so that none is undocumented and a value
// that is misspelt is refused.
func TestValuesAndSchema(t *testing.T) {
	var values map[string]any
	var schema map[string]any
	read := func(name string, into any, unmarshal func([]byte, any) error) {
		text, err := fs.ReadFile(deploy.Chart(), name)
		if err != nil {
			t.Fatal(err)
		}
		if err := unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	read("values.yaml", &values, func(b []byte, v any) error { return yaml.Unmarshal(b, v) })
	read("values.schema.json", &schema, json.Unmarshal)
	values["global"] = map[string]any{} // Helm adds it
	compareSchema(t, "", values, schema)
}

func compareSchema(t *testing.T, path string, values, schema map[string]any) {
	properties, _ := schema["properties"].(map[string]any)
	if properties == nil {
		return // a map of the user's own keys
	}
	if schema["additionalProperties"] != false {
		t.Errorf("%s: the schema takes values that nobody reads", path)
	}
	for name := range properties {
		if _, ok := values[name]; !ok && !optional[path+"."+name] {
			t.Errorf("values.yaml does not show %s.%s", path, name)
		}
	}
	for name, value := range values {
		property, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("the schema does not know %s.%s", path, name)
			continue
		}
		if below, ok := value.(map[string]any); ok {
			compareSchema(t, path+"."+name, below, property)
		}
	}
}

// optional are fields of Kubernetes' own types that values.yaml need not show.
var optional = map[string]bool{
	".cni.updateStrategy.rollingUpdate.maxSurge": true,
	".istiod.resources.claims":                   true, ".ztunnel.resources.claims": true, ".cni.resources.claims": true,
}

// TestCRDs: the definitions are there, one kind a file, and each kind that the control plane reads has one.
func TestCRDs(t *testing.T) {
	texts, err := deploy.CRDs()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, text := range texts {
		var d struct {
			Kind string
			Spec struct{ Names struct{ Kind string } }
		}
		if err := yaml.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		if d.Kind != "CustomResourceDefinition" {
			t.Errorf("a %s is among the definitions", d.Kind)
		}
		kinds[d.Spec.Names.Kind] = true
	}
	for _, kind := range []string{
		"AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "ServiceEntry", "WorkloadEntry", "DestinationRule",
		"Telemetry", "VirtualService", "WaypointPolicy", "Gateway", "GatewayClass", "HTTPRoute", "GRPCRoute", "ReferenceGrant",
	} {
		if !kinds[kind] {
			t.Errorf("no definition of %s", kind)
		}
	}
}
