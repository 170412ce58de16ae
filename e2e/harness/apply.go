package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// fieldManager owns what Apply writes.
const fieldManager = "ambit-e2e"

// Objects decodes a manifest of several documents.
func Objects(manifest []byte) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	var objects []*unstructured.Unstructured
	for {
		object := new(unstructured.Unstructured)
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, fmt.Errorf("read a manifest: document %d: %w", len(objects)+1, err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// Apply makes the objects of a manifest what it says, in its order, by server-side apply.
func (c *Cluster) Apply(ctx context.Context, manifest []byte) error {
	objects, err := Objects(manifest)
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err == nil {
			// A pod cannot be created before its namespace's service accounts are.
			err = Await(ctx, Until{What: "apply", Within: 20 * time.Second}, func(ctx context.Context) error {
				_, err := resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
				return err
			})
		}
		if err != nil {
			return fmt.Errorf("apply %s %s/%s: %w", object.GetKind(), object.GetNamespace(), object.GetName(), err)
		}
	}
	return nil
}

// Delete removes the objects of a manifest, last first, and does not wait until they are gone.
func (c *Cluster) Delete(ctx context.Context, manifest []byte) error {
	objects, err := Objects(manifest)
	if err != nil {
		return err
	}
	var failed error
	for i := len(objects) - 1; i >= 0; i-- {
		resource, err := c.resource(objects[i])
		if err == nil {
			background := metav1.DeletePropagationBackground
			err = resource.Delete(ctx, objects[i].GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			failed = errors.Join(failed, fmt.Errorf("delete %s %s: %w", objects[i].GetKind(), objects[i].GetName(), err))
		}
	}
	return failed
}

func (c *Cluster) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // installed since
		mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace()), nil
	}
	return c.Dynamic.Resource(mapping.Resource), nil
}

// AwaitReady waits until every pod of a namespace is Ready, and there is one at least.
func (c *Cluster) AwaitReady(ctx context.Context, namespace string, within time.Duration) error {
	return Await(ctx, Until{What: "pods of " + namespace + " ready", Within: within}, func(ctx context.Context) error {
		pods, err := c.Pods(ctx, namespace, "")
		if err != nil {
			return err
		}
		if len(pods) == 0 {
			return errors.New("there are no pods")
		}
		for i := range pods {
			if !PodReady(&pods[i]) {
				return fmt.Errorf("pod %s is not ready: %s", pods[i].Name, PodState(&pods[i]))
			}
		}
		return nil
	})
}

// AwaitGone waits until a namespace is no more.
func (c *Cluster) AwaitGone(ctx context.Context, namespace string, within time.Duration) error {
	return Await(ctx, Until{What: "namespace " + namespace + " gone", Within: within}, func(ctx context.Context) error {
		_, err := c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = errors.New("it is still there")
		}
		return err
	})
}

// PodReady tells whether a pod is Ready and not being ended.
func PodReady(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// PodState is a pod's state in a few words, as `kubectl get pods` would give it.
func PodState(pod *corev1.Pod) string {
	state := string(pod.Status.Phase)
	for _, container := range pod.Status.ContainerStatuses {
		switch {
		case container.State.Waiting != nil:
			state = container.State.Waiting.Reason + " " + container.State.Waiting.Message
		case container.State.Terminated != nil:
			state = fmt.Sprintf("%s, exit code %d", container.State.Terminated.Reason, container.State.Terminated.ExitCode)
		case !container.Ready:
			state += ", not ready"
		}
		if container.RestartCount > 0 {
			state += fmt.Sprintf(", %d restarts", container.RestartCount)
		}
	}
	if pod.DeletionTimestamp != nil {
		state += ", being ended"
	}
	return state
}
