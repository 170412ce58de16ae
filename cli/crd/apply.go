package crd

import (
	"context"
	"fmt"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
)

// FieldManager is who applied a definition, by which `ambit uninstall --purge-crds` knows its own.
const FieldManager = "ambit"

// establishTimeout is how long the API server may take until it serves a new kind; it takes about a second.
const establishTimeout = 30 * time.Second

var resource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// Existing returns the definitions of the cluster with the names of ours.
func Existing(ctx context.Context, client dynamic.Interface, ours []*Definition) (map[string]*Definition, error) {
	theirs := map[string]*Definition{}
	for _, our := range ours {
		object, err := client.Resource(resource).Get(ctx, our.Name, metav1.GetOptions{})
		if errors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read custom resource definition %s: %w", our.Name, err)
		}
		d := &Definition{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, d); err != nil {
			return nil, fmt.Errorf("read custom resource definition %s: %w", our.Name, err)
		}
		theirs[our.Name] = d
	}
	return theirs, nil
}

// Apply does what Plan decides, by server-side apply, and waits until the API server serves every kind that it created or
// updated. The returned steps say what was done; on an error they are those done before it.
func Apply(ctx context.Context, client dynamic.Interface, ours []*Definition) ([]Step, error) {
	theirs, err := Existing(ctx, client, ours)
	if err != nil {
		return nil, err
	}
	plan := Plan(ours, theirs)
	var done []Step
	for i, step := range plan {
		if step.Action != LeaveBe {
			changed, err := apply(ctx, client, ours[i], theirs[step.Name])
			if err != nil {
				return done, err
			}
			if !changed {
				step.Action = Unchanged
			}
		}
		done = append(done, step)
	}
	for _, step := range done {
		if step.Action == Create || step.Action == Update {
			if err := established(ctx, client, step.Name); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// apply sends one definition and tells whether that changed anything.
func apply(ctx context.Context, client dynamic.Interface, our, their *Definition) (bool, error) {
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(our)
	if err != nil {
		return false, fmt.Errorf("apply custom resource definition %s: %w", our.Name, err)
	}
	delete(object, "status")
	unstructured.RemoveNestedField(object, "metadata", "creationTimestamp")
	u := &unstructured.Unstructured{Object: object}
	u.SetGroupVersionKind(apiextensions.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
	got, err := client.Resource(resource).Apply(ctx, our.Name, u, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	if err != nil {
		return false, fmt.Errorf("apply custom resource definition %s: %w", our.Name, err)
	}
	return their == nil || their.Generation != got.GetGeneration(), nil
}

func established(ctx context.Context, client dynamic.Interface, name string) error {
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, establishTimeout, true, func(ctx context.Context) (bool, error) {
		object, err := client.Resource(resource).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		d := &Definition{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, d); err != nil {
			return false, err
		}
		for _, condition := range d.Status.Conditions {
			if condition.Type == apiextensions.Established && condition.Status == apiextensions.ConditionTrue {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("wait until the API server serves %s: %w", name, err)
	}
	return nil
}

// Purge deletes those of ours that FieldManager applied, with all objects of their kinds, waits until they are gone, and
// returns their names and, with the reason, those that it left.
func Purge(ctx context.Context, client dynamic.Interface, ours []*Definition) ([]Step, error) {
	theirs, err := Existing(ctx, client, ours)
	if err != nil {
		return nil, err
	}
	var steps []Step
	for _, our := range ours {
		their := theirs[our.Name]
		if their == nil {
			continue
		}
		if !appliedByUs(their) {
			steps = append(steps, Step{Name: our.Name, Action: LeaveBe, Reason: "others applied it"})
			continue
		}
		err := client.Resource(resource).Delete(ctx, our.Name, metav1.DeleteOptions{})
		if err != nil && !errors.IsNotFound(err) {
			return steps, fmt.Errorf("delete custom resource definition %s: %w", our.Name, err)
		}
		steps = append(steps, Step{Name: our.Name, Action: Delete})
	}
	for _, step := range steps {
		if step.Action == Delete {
			if err := gone(ctx, client, step.Name); err != nil {
				return steps, err
			}
		}
	}
	return steps, nil
}

func gone(ctx context.Context, client dynamic.Interface, name string) error {
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, establishTimeout, true, func(ctx context.Context) (bool, error) {
		_, err := client.Resource(resource).Get(ctx, name, metav1.GetOptions{})
		if errors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("wait until custom resource definition %s and its objects are gone: %w", name, err)
	}
	return nil
}

// appliedByUs tells whether ambit, and nobody else but the API server, applied a definition.
func appliedByUs(d *Definition) bool {
	ours := false
	for _, entry := range d.ManagedFields {
		switch {
		case entry.Subresource == "status":
		case entry.Manager == FieldManager:
			ours = true
		default:
			return false
		}
	}
	return ours
}
