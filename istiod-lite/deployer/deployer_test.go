package deployer

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

var update = flag.Bool("update", false, "rewrite the wanted results")

func TestMain(m *testing.M) { leaktest.Main(m) }

const deadline = 30 * time.Second

func settings(t *testing.T, env map[string]string) Settings {
	t.Helper()
	s, err := ReadSettings(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	s.Namespace, s.ClusterID, s.ClusterDomain = "istio-system", "Kubernetes", "cluster.local"
	s.Version = "v1.2.3"
	s.RootCertConfigMap, s.CRLConfigMap = "istio-ca-root-cert", "istio-ca-crl"
	return s
}

func gateway() *cluster.Gateway {
	return &cluster.Gateway{
		Key: cluster.Key{Namespace: "shop", Name: "waypoint"}, UID: "u1", Class: api.ClassWaypoint,
		Labels: map[string]string{"team": "x", api.LabelGatewayName: "not for the user to say"}, Annotations: map[string]string{"note": "y"},
	}
}

// TestObjects compares with testdata/objects.yaml what is made for a Gateway.
func TestObjects(t *testing.T) {
	s := settings(t, map[string]string{
		"WAYPOINT_IMAGE": "registry.example/waypoint:v1", "WAYPOINT_IMAGE_PULL_SECRETS": "s1, s2", "WAYPOINT_BUILD": "b1", "WAYPOINT_LOG_LEVEL": "info",
		"WAYPOINT_GRACE_PERIOD": "45",
	})
	objects, err := waypoint{s, "cluster.local", gateway(), false}.objects()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, o := range objects {
		text, err := yaml.Marshal(o.content.Object)
		if err != nil {
			t.Fatal(err)
		}
		got.WriteString("---\n")
		got.Write(text)
	}
	const file = "testdata/objects.yaml"
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	// One replica is let go without a budget: with one it could never be.
	s.Replicas = 1
	if objects, err = (waypoint{s, "cluster.local", gateway(), false}).objects(); err != nil || len(objects) != 3 {
		t.Errorf("%d objects for one replica, error %v; want 3", len(objects), err)
	}
}

// server is an API server that applies.
type server struct {
	*dynamicfake.FakeDynamicClient
	mu      sync.Mutex                            // guards what follows
	applied []string                              // "Kind name", in order
	created int                                   // objects
	appears map[string]*unstructured.Unstructured // what somebody else creates, by kind, just before the deployer does
}

func serve(objects ...runtime.Object) *server {
	s := &server{}
	s.FakeDynamicClient = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		appsv1.SchemeGroupVersion.WithResource("deployments"): "DeploymentList", configMaps: "ConfigMapList"}, objects...)
	s.PrependReactor("create", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		create := action.(clienttesting.CreateActionImpl)
		u := create.GetObject().(*unstructured.Unstructured).DeepCopy()
		if create.CreateOptions.FieldManager != api.GatewayDeployer {
			return true, nil, apierrors.NewBadRequest("not created as the deployer's")
		}
		s.mu.Lock()
		s.created++
		u.SetUID(types.UID(fmt.Sprint("object-", s.created)))
		appears := s.appears[u.GetKind()]
		s.mu.Unlock()
		if appears != nil {
			if err := s.Tracker().Create(action.GetResource(), appears, action.GetNamespace()); err != nil {
				return true, nil, err
			}
		}
		u.SetResourceVersion("1")
		u.SetManagedFields([]metav1.ManagedFieldsEntry{{
			Manager: api.GatewayDeployer, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: u.GetAPIVersion(), FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:labels":{".":{},"f:team":{}}}}`),
		}})
		return true, u, s.Tracker().Create(action.GetResource(), u, action.GetNamespace())
	})
	s.PrependReactor("patch", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchAction)
		if patch.GetPatchType() == types.JSONPatchType {
			return false, nil, nil // the tracker's own
		}
		u := &unstructured.Unstructured{}
		if err := json.Unmarshal(patch.GetPatch(), &u.Object); err != nil {
			return true, nil, err
		}
		options := action.(clienttesting.PatchActionImpl).PatchOptions
		if patch.GetPatchType() != types.ApplyPatchType || options.FieldManager != api.GatewayDeployer {
			return true, nil, apierrors.NewBadRequest("not an apply of the deployer's")
		}
		o, err := s.Tracker().Get(action.GetResource(), action.GetNamespace(), u.GetName())
		if err != nil {
			return true, nil, apierrors.NewConflict(action.GetResource().GroupResource(), u.GetName(), err)
		}
		there := o.(*unstructured.Unstructured)
		if there.GetUID() != u.GetUID() {
			return true, nil, apierrors.NewInvalid(u.GroupVersionKind().GroupKind(), u.GetName(), nil)
		}
		u.SetManagedFields(there.GetManagedFields())
		s.mu.Lock()
		s.applied = append(s.applied, u.GetKind()+" "+u.GetName())
		s.mu.Unlock()
		return true, u, s.Tracker().Update(action.GetResource(), u, action.GetNamespace())
	})
	return s
}

func (s *server) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.applied
	s.applied = nil
	return out
}

// run leads until the test ends, and returns the deployer and what it tells of Gateways.
func run(t *testing.T, s *server, env map[string]string) (*Deployer, chan string) {
	t.Helper()
	told := make(chan string, 100)
	d := New(Config{
		Client: s, Settings: settings(t, env), TrustDomain: func() string { return "cluster.local" }, Log: slog.New(slog.DiscardHandler),
		Told: func(_ context.Context, key cluster.Key, fault state.DeployFault) {
			if fault.Parameters {
				fault.Message = "parameters: " + fault.Message
			}
			told <- key.String() + ": " + fault.Message
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { d.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return d, told
}

func next(t *testing.T, told chan string) string {
	t.Helper()
	select {
	case s := <-told:
		return s
	case <-time.After(deadline):
		t.Fatalf("nothing was told within %s", deadline)
		return ""
	}
}

var class = &cluster.GatewayClass{Name: api.ClassWaypoint, Controller: api.ControllerWaypoint}

func known(g *cluster.Gateway) state.Gateway {
	return state.Gateway{Key: g.Key, WaypointInput: translate.WaypointInput{Gateway: g, Class: class}}
}

var image = map[string]string{"WAYPOINT_IMAGE": "waypoint:dev"}

// TestDeploy: a Gateway gets what it needs, once, and again when something of it is gone or it is another.
func TestDeploy(t *testing.T) {
	s := serve()
	d, told := run(t, s, image)
	in := known(gateway())
	d.Update([]state.Gateway{in})
	if got := next(t, told); got != "shop/waypoint: " {
		t.Fatalf("told %q", got)
	}
	all := []string{"ServiceAccount waypoint", "Service waypoint", "Deployment waypoint", "PodDisruptionBudget waypoint"}
	if diff := cmp.Diff(all, s.took()); diff != "" {
		t.Fatalf("applied (-want +got):\n%s", diff)
	}
	in.Service, in.Deployment = &cluster.Service{}, &cluster.Deployment{}
	for _, step := range []struct {
		what   string
		change func()
		want   []string
	}{
		{"its Deployment is ready", func() {}, nil},
		{"its Service is gone", func() { in.Service = nil }, all},
		{"its labels are others", func() {
			in.Service = &cluster.Service{}
			g := gateway()
			g.Labels["team"] = "z"
			in.Gateway = g
		}, all},
	} {
		step.change()
		d.Update([]state.Gateway{in})
		next(t, told)
		if diff := cmp.Diff(step.want, s.took()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.what, diff)
		}
	}
}

// TestLeftAlone: Gateways that somebody else deploys, that are not of this control plane's, or that cannot be deployed.
func TestLeftAlone(t *testing.T) {
	s := serve()
	d, told := run(t, s, image)
	addressed, other, going, foreign := gateway(), gateway(), gateway(), gateway()
	addressed.Addresses = []cluster.GatewayAddress{{Type: "IPAddress", Value: "10.0.0.1"}}
	other.Revision, going.Deleting, foreign.Class = "canary", true, "x"
	strange := gateway()
	strange.Name = "9.waypoint"
	ingress := known(foreign)
	ingress.Class = &cluster.GatewayClass{Name: "x", Controller: "example.com/x"}
	d.Update([]state.Gateway{known(addressed), known(other), known(going), ingress, known(strange)})
	if got := next(t, told); !strings.HasPrefix(got, "shop/9.waypoint: its Service is to have the name of the Gateway") {
		t.Errorf("told %q", got)
	}
	if got := s.took(); len(got) > 0 {
		t.Errorf("applied %q", got)
	}
	none, told := run(t, s, nil)
	none.Update([]state.Gateway{known(gateway())})
	if got := next(t, told); !strings.Contains(got, "WAYPOINT_IMAGE") || len(s.took()) > 0 {
		t.Errorf("without an image: told %q", got)
	}
}

// TestForeign: what was not made for the Gateway is not adopted, and nothing is made beside it.
func TestForeign(t *testing.T) {
	for name, labels := range map[string]map[string]any{
		"without labels":     nil,
		"of another Gateway": {api.LabelGatewayManaged: api.GatewayManagedWaypoint, api.LabelGatewayName: "other"},
		"of nobody":          {api.LabelGatewayManaged: api.GatewayManagedWaypoint, api.LabelGatewayName: "waypoint"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(&unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"namespace": "shop", "name": "waypoint", "labels": labels},
			}})
			d, told := run(t, s, image)
			d.Update([]state.Gateway{known(gateway())})
			if got := next(t, told); !strings.Contains(got, "Deployment waypoint is there already") {
				t.Errorf("told %q", got)
			}
			if got := s.took(); len(got) > 0 {
				t.Errorf("applied %q", got)
			}
			// Tried again by itself once it is gone.
			if err := s.Tracker().Delete(appsv1.SchemeGroupVersion.WithResource("deployments"), "shop", "waypoint"); err != nil {
				t.Fatal(err)
			}
			for got := next(t, told); got != "shop/waypoint: "; got = next(t, told) {
			}
			if got := s.took(); len(got) != 4 {
				t.Errorf("applied %q", got)
			}
		})
	}
}

// TestRace: what others put there while the deployer works is not taken over either.
func TestRace(t *testing.T) {
	theirs := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"namespace": "shop", "name": "waypoint", "uid": "theirs"},
	}}
	services := corev1.SchemeGroupVersion.WithResource("services")
	untouched := func(t *testing.T, s *server, told chan string, want string) {
		t.Helper()
		if got := next(t, told); !strings.Contains(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		o, err := s.Tracker().Get(services, "shop", "waypoint")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(theirs, o); diff != "" {
			t.Errorf("their Service (-was +is):\n%s", diff)
		}
	}
	t.Run("where nothing was", func(t *testing.T) {
		s := serve()
		s.appears = map[string]*unstructured.Unstructured{"Service": theirs.DeepCopy()}
		d, told := run(t, s, image)
		d.Update([]state.Gateway{known(gateway())})
		untouched(t, s, told, "Service waypoint is there already")
	})
	t.Run("instead of what was", func(t *testing.T) {
		s := serve()
		d, told := run(t, s, image)
		d.Update([]state.Gateway{known(gateway())})
		if got := next(t, told); got != "shop/waypoint: " {
			t.Fatalf("told %q", got)
		}
		var once sync.Once
		s.PrependReactor("get", "poddisruptionbudgets", func(clienttesting.Action) (bool, runtime.Object, error) {
			once.Do(func() { // the last that is looked at
				if err := s.Tracker().Update(services, theirs.DeepCopy(), "shop"); err != nil {
					t.Error(err)
				}
			})
			return false, nil, nil
		})
		g := gateway()
		g.Labels["team"] = "z"
		d.Update([]state.Gateway{known(g)})
		untouched(t, s, told, "apply Service waypoint")
	})
}

// TestFields: what the deployer creates is its to apply, so that what it does not apply any more goes.
func TestFields(t *testing.T) {
	s := serve()
	d, told := run(t, s, image)
	d.Update([]state.Gateway{known(gateway())})
	if got := next(t, told); got != "shop/waypoint: " {
		t.Fatalf("told %q", got)
	}
	o, err := s.Tracker().Get(corev1.SchemeGroupVersion.WithResource("services"), "shop", "waypoint")
	if err != nil {
		t.Fatal(err)
	}
	if all := o.(*unstructured.Unstructured).GetManagedFields(); len(all) != 1 || all[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("fields are managed by %+v", all)
	}
}

// TestReadSettings: what cannot be read is named.
func TestReadSettings(t *testing.T) {
	for name, value := range map[string]string{
		"WAYPOINT_IMAGE_PULL_POLICY": "Sometimes", "WAYPOINT_REPLICAS": "-1", "WAYPOINT_RESOURCES": "{", "WAYPOINT_GRACE_PERIOD": "30s",
	} {
		_, err := ReadSettings(func(n string) string {
			if n == name {
				return value
			}
			return ""
		})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: error %v", name, value, err)
		}
	}
}

// withOverlay is a Gateway with parameters, and the ConfigMap that they name.
func withOverlay(data map[string]string) (state.Gateway, *unstructured.Unstructured) {
	g := gateway()
	g.Parameters = &gatewayv1.LocalParametersReference{Kind: "ConfigMap", Name: "overlay"}
	values := map[string]any{}
	for k, v := range data {
		values[k] = v
	}
	return known(g), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"namespace": "shop", "name": "overlay"}, "data": values,
	}}
}

// TestOverlay: lists are merged by name, an autoscaler takes the number of replicas over, and goes with its key.
func TestOverlay(t *testing.T) {
	in, cm := withOverlay(map[string]string{
		"deployment":              "metadata: {annotations: {note: z}}\nspec: {template: {spec: {priorityClassName: high, containers: [{name: istio-proxy, resources: {limits: {cpu: '2'}}}, {name: more, image: x}]}}}",
		"service":                 "spec: {ports: [{port: 15008, appProtocol: hbone}]}",
		"horizontalPodAutoscaler": "spec: {maxReplicas: 7}",
	})
	s := serve(cm)
	d, told := run(t, s, image)
	d.Update([]state.Gateway{in})
	if got := next(t, told); got != "shop/waypoint: " {
		t.Fatalf("told %q", got)
	}
	read := func(gvr schema.GroupVersionResource, into any) {
		t.Helper()
		o, err := s.Tracker().Get(gvr, "shop", "waypoint")
		if err != nil {
			t.Fatal(err)
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.(*unstructured.Unstructured).Object, into); err != nil {
			t.Fatal(err)
		}
	}
	var deployment appsv1.Deployment
	read(appsv1.SchemeGroupVersion.WithResource("deployments"), &deployment)
	spec := deployment.Spec.Template.Spec
	if deployment.Spec.Replicas != nil || deployment.Annotations["note"] != "z" || spec.PriorityClassName != "high" || len(spec.Containers) != 2 {
		t.Errorf("Deployment is %+v", deployment)
	}
	i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == Container })
	if c := spec.Containers[i]; c.Image != "waypoint:dev" || c.Resources.Limits.Cpu().String() != "2" || c.Resources.Requests.Cpu().String() != "100m" {
		t.Errorf("container is %+v", c)
	}
	var service corev1.Service
	read(corev1.SchemeGroupVersion.WithResource("services"), &service)
	if p := service.Spec.Ports; len(p) != 2 || !slices.ContainsFunc(p, func(p corev1.ServicePort) bool { return p.AppProtocol != nil && p.Name == "mesh" }) {
		t.Errorf("ports are %+v", p)
	}
	var scaler autoscalingv2.HorizontalPodAutoscaler
	read(autoscalers, &scaler)
	if scaler.Spec.MaxReplicas != 7 || *scaler.Spec.MinReplicas != 2 || scaler.Spec.ScaleTargetRef.Name != "waypoint" {
		t.Errorf("autoscaler is %+v", scaler.Spec)
	}
	in.Gateway = gateway() // without parameters
	d.Update([]state.Gateway{in})
	next(t, told)
	if _, err := s.Tracker().Get(autoscalers, "shop", "waypoint"); !apierrors.IsNotFound(err) {
		t.Errorf("the autoscaler is still there: %v", err)
	}
}

// classDefaults is a ConfigMap of the control plane's namespace that changes what is made for a class.
func classDefaults(name, class string, data map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"namespace": "istio-system", "name": name, "labels": map[string]any{api.LabelDefaultsForClass: class}}, "data": data,
	}}
}

// TestClassDefaults: what a ConfigMap says for a class holds for all of its Gateways, where a Gateway's own does not say otherwise; of two
// the first by name counts, and what cannot be merged is told with its name.
func TestClassDefaults(t *testing.T) {
	in, own := withOverlay(map[string]string{"deployment": "spec: {template: {spec: {priorityClassName: own}}}"})
	s := serve(own,
		classDefaults("b", api.ClassWaypoint, map[string]any{"service": "metadata: {annotations: {late: x}}"}),
		classDefaults("a", api.ClassWaypoint, map[string]any{
			"deployment": "metadata: {annotations: {from: class}}\nspec: {template: {spec: {priorityClassName: of-the-class}}}", "horizontalPodAutoscaler": "spec: {maxReplicas: 7}",
		}),
		classDefaults("c", "other", map[string]any{"service": "metadata: {annotations: {other: x}}"}))
	d, told := run(t, s, image)
	plain := gateway()
	plain.Name = "plain"
	d.Update([]state.Gateway{in, known(plain)})
	for range 2 {
		if got := next(t, told); !strings.HasSuffix(got, ": ") {
			t.Fatalf("told %q", got)
		}
	}
	for name, priority := range map[string]string{"waypoint": "own", "plain": "of-the-class"} {
		o, err := s.Tracker().Get(appsv1.SchemeGroupVersion.WithResource("deployments"), "shop", name)
		if err != nil {
			t.Fatal(err)
		}
		u := o.(*unstructured.Unstructured)
		if got, _, _ := unstructured.NestedString(u.Object, "spec", "template", "spec", "priorityClassName"); got != priority || u.GetAnnotations()["from"] != "class" {
			t.Errorf("%s: priority %q, want %q; annotations %v", name, got, priority, u.GetAnnotations())
		}
		if _, err := s.Tracker().Get(autoscalers, "shop", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		service, err := s.Tracker().Get(corev1.SchemeGroupVersion.WithResource("services"), "shop", name)
		if err != nil {
			t.Fatal(err)
		}
		if a := service.(*unstructured.Unstructured).GetAnnotations(); a["late"] != "" || a["other"] != "" {
			t.Errorf("%s: annotations %v", name, a)
		}
	}
	d, told = run(t, serve(classDefaults("bad", api.ClassWaypoint, map[string]any{"pod": "{}"})), image)
	d.Update([]state.Gateway{known(gateway())})
	if got := next(t, told); !strings.HasPrefix(got, `shop/waypoint: parameters: ConfigMap istio-system/bad: key "pod" is not known`) {
		t.Errorf("told %q", got)
	}
}

// TestDefaultsChange: what changes for a class is rolled out to its Gateways, and waypoints are not made before it is known.
func TestDefaultsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve()
		failing := true
		s.PrependReactor("list", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return failing, nil, apierrors.NewInternalError(errors.New("not now"))
		})
		d, told := run(t, s, image)
		d.Update([]state.Gateway{known(gateway())})
		time.Sleep(5 * retryMost)
		synctest.Wait()
		if got := s.took(); len(got) > 0 {
			t.Fatalf("applied %q without knowing the defaults", got)
		}
		s.mu.Lock()
		failing = false
		s.mu.Unlock()
		time.Sleep(retryMost)
		if got := next(t, told); got != "shop/waypoint: " {
			t.Fatalf("told %q", got)
		}
		if err := s.Tracker().Create(configMaps, classDefaults("a", api.ClassWaypoint, map[string]any{"service": "metadata: {annotations: {late: x}}"}), "istio-system"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(look + time.Second)
		synctest.Wait()
		o, err := s.Tracker().Get(corev1.SchemeGroupVersion.WithResource("services"), "shop", "waypoint")
		if err != nil {
			t.Fatal(err)
		}
		if a := o.(*unstructured.Unstructured).GetAnnotations(); a["late"] != "x" {
			t.Errorf("annotations %v", a)
		}
	})
}

// TestBadOverlay: what cannot be merged is told, by its key, and nothing is applied.
func TestBadOverlay(t *testing.T) {
	for name, tc := range map[string]struct {
		data map[string]string
		want string
	}{
		"unknown key":      {map[string]string{"pod": "{}"}, `key "pod" is not known`},
		"no YAML":          {map[string]string{"service": "{"}, `key "service"`},
		"unknown field":    {map[string]string{"deployment": "spec: {replicaz: 3}"}, "replicaz"},
		"wrong type":       {map[string]string{"deployment": "spec: {replicas: many}"}, `key "deployment"`},
		"another name":     {map[string]string{"serviceAccount": "metadata: {name: other}"}, "metadata.name cannot be changed"},
		"another selector": {map[string]string{"deployment": "spec: {selector: {matchLabels: {a: b}}}"}, "spec.selector cannot be changed"},
		"label of ours":    {map[string]string{"service": "metadata: {labels: {gateway.istio.io/managed: x}}"}, "gateway.istio.io/managed cannot be changed"},
	} {
		t.Run(name, func(t *testing.T) {
			in, cm := withOverlay(tc.data)
			s := serve(cm)
			d, told := run(t, s, image)
			d.Update([]state.Gateway{in})
			if got := next(t, told); !strings.HasPrefix(got, "shop/waypoint: parameters: ConfigMap shop/overlay: ") || !strings.Contains(got, tc.want) {
				t.Errorf("told %q, want %q", got, tc.want)
			}
			if got := s.took(); len(got) > 0 {
				t.Errorf("applied %q", got)
			}
		})
	}
	in, _ := withOverlay(nil)
	d, told := run(t, serve(), image)
	d.Update([]state.Gateway{in})
	if got := next(t, told); !strings.Contains(got, "there is no ConfigMap shop/overlay") {
		t.Errorf("without its ConfigMap: told %q", got)
	}
}
