package deployer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// overlays are the keys of a ConfigMap that changes what is made for a Gateway, or for all of a class, and the type that a value is
// merged into, as `kubectl patch` does by default. They are Istio's.
var overlays = map[string]any{
	"deployment": appsv1.Deployment{}, "service": corev1.Service{}, "serviceAccount": corev1.ServiceAccount{},
	"podDisruptionBudget": policyv1.PodDisruptionBudget{}, "horizontalPodAutoscaler": autoscalingv2.HorizontalPodAutoscaler{},
}

// fixed are fields that an overlay must leave as they are: by them the objects belong together.
var fixed = [][]string{
	{"apiVersion"}, {"kind"}, {"metadata", "name"}, {"metadata", "namespace"}, {"metadata", "ownerReferences"}, {"spec", "selector"},
	{"spec", "scaleTargetRef"}, {"spec", "template", "spec", "serviceAccountName"},
}

// patches are the overlays of one ConfigMap.
type patches struct {
	from  cluster.Key // the ConfigMap
	data  map[string]string
	fault string // why it cannot be read; "" if it can
}

func (p patches) equal(o patches) bool {
	return p.from == o.from && p.fault == o.fault && maps.Equal(p.data, o.data)
}

var configMaps = corev1.SchemeGroupVersion.WithResource("configmaps")

func patchesOf(u *unstructured.Unstructured) patches {
	p := patches{from: cluster.Key{Namespace: u.GetNamespace(), Name: u.GetName()}}
	data, _, err := unstructured.NestedStringMap(u.Object, "data")
	if err != nil {
		p.fault = err.Error()
	}
	p.data = data
	return p
}

// parameters reads the overlays that a Gateway itself names, none if it names none. A fault is what the user has to mend.
func (d *Deployer) parameters(ctx context.Context, g *cluster.Gateway) (p patches, fault string, err error) {
	ref := g.Parameters
	if ref == nil {
		return patches{}, "", nil
	}
	if ref.Group != "" || ref.Kind != "ConfigMap" {
		return patches{}, fmt.Sprintf("spec.infrastructure.parametersRef: %s/%s is not supported; there is ConfigMap of the core group", ref.Group, ref.Kind), nil
	}
	u, err := d.cfg.Client.Resource(configMaps).Namespace(g.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return patches{}, fmt.Sprintf("spec.infrastructure.parametersRef: there is no ConfigMap %s/%s", g.Namespace, ref.Name), nil
	} else if err != nil {
		return patches{}, "", fmt.Errorf("read ConfigMap %s/%s: %w", g.Namespace, ref.Name, err)
	}
	return patchesOf(u), "", nil
}

// readDefaults reads the overlays of classes, by class: those of ConfigMaps in the control plane's namespace that say for which. Of two
// for one class the one that is first by name counts.
func (d *Deployer) readDefaults(ctx context.Context) (map[string]patches, error) {
	list, err := d.cfg.Client.Resource(configMaps).Namespace(d.cfg.Settings.Namespace).List(ctx, metav1.ListOptions{LabelSelector: api.LabelDefaultsForClass})
	if err != nil {
		return nil, fmt.Errorf("read the defaults of classes (ConfigMaps with label %s in namespace %s): %w", api.LabelDefaultsForClass, d.cfg.Settings.Namespace, err)
	}
	slices.SortFunc(list.Items, func(a, b unstructured.Unstructured) int { return strings.Compare(a.GetName(), b.GetName()) })
	out := map[string]patches{}
	for i := range list.Items {
		class := list.Items[i].GetLabels()[api.LabelDefaultsForClass]
		if other, twice := out[class]; twice {
			d.cfg.Log.Debug("a ConfigMap of defaults is not in force, since another is for that class", "class", class, "not", list.Items[i].GetName(), "but", other.from.Name)
			continue
		}
		out[class] = patchesOf(&list.Items[i])
	}
	return out, nil
}

// overlay merges overlays into objects, which are its own to change.
func (p patches) overlay(objects []object) error {
	if p.fault != "" {
		return fmt.Errorf("ConfigMap %s: %s", p.from, p.fault)
	}
	for _, key := range slices.Sorted(maps.Keys(p.data)) {
		typ, known := overlays[key]
		if !known {
			return fmt.Errorf("ConfigMap %s: key %q is not known; there are %s", p.from, key, strings.Join(slices.Sorted(maps.Keys(overlays)), ", "))
		}
		i := slices.IndexFunc(objects, func(o object) bool { return strings.EqualFold(o.content.GetKind(), key) })
		if i < 0 {
			return fmt.Errorf("ConfigMap %s: key %q: none is made", p.from, key)
		}
		merged, err := mergeOverlay(objects[i].content, p.data[key], typ)
		if err != nil {
			return fmt.Errorf("ConfigMap %s: key %q: %w", p.from, key, err)
		}
		objects[i].content = merged
	}
	return nil
}

// scales reports whether the overlays make an autoscaler.
func (p patches) scales() bool {
	_, scales := p.data["horizontalPodAutoscaler"]
	return scales
}

func mergeOverlay(base *unstructured.Unstructured, text string, typ any) (*unstructured.Unstructured, error) {
	patch := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &patch); err != nil {
		return nil, err
	}
	original, err := json.Marshal(base.Object)
	if err != nil {
		return nil, err
	}
	change, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	result, err := strategicpatch.StrategicMergePatch(original, change, typ)
	if err != nil {
		return nil, err
	}
	out := &unstructured.Unstructured{}
	if err := json.Unmarshal(result, &out.Object); err != nil {
		return nil, err
	}
	delete(out.Object, "status")
	for _, path := range fixed {
		was, _, _ := unstructured.NestedFieldNoCopy(base.Object, path...)
		is, _, _ := unstructured.NestedFieldNoCopy(out.Object, path...)
		if !reflect.DeepEqual(was, is) {
			return nil, fmt.Errorf("%s cannot be changed", strings.Join(path, "."))
		}
	}
	for name, value := range base.GetLabels() {
		if out.GetLabels()[name] != value {
			return nil, fmt.Errorf("label %s cannot be changed", name)
		}
	}
	// What does not fit its type would be refused as a whole when it is applied; here the message names the field.
	into := reflect.New(reflect.TypeOf(typ)).Interface()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(out.Object, into, true); err != nil {
		return nil, err
	}
	return out, nil
}

// autoscaler is made if an overlay has something for it. It has bounds that leave one pod when another goes.
func (w waypoint) autoscaler() *autoscalingv2.HorizontalPodAutoscaler {
	least := max(w.Replicas, 1)
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"}, ObjectMeta: w.meta(),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: w.gateway.Name},
			MinReplicas:    &least, MaxReplicas: least,
		},
	}
}
