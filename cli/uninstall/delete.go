package uninstall

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// ours selects what the parts made, beside what the chart made.
const ours = api.LabelPartOf + "=" + api.PartOf

// idleGrace is the grace period, in seconds, of pods that have nothing left to carry.
const idleGrace = int64(1)

// deleteDaemonSet deletes a DaemonSet and waits until its pods are gone, so that they end while what they need is there. Idle
// pods have nothing to wait for: what they still hold was cut already.
func (r *remover) deleteDaemonSet(ctx context.Context, p *survey.Part, idle bool) error {
	foreground := metav1.DeletePropagationForeground
	err := r.client().AppsV1().DaemonSets(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{PropagationPolicy: &foreground})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete DaemonSet %s/%s: %w", p.Namespace, p.Name, err)
	}
	if idle {
		pods, err := r.client().CoreV1().Pods(p.Namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(p.Selector).String()})
		if err != nil {
			return fmt.Errorf("list the pods of the %s: %w", p.Component.Title(), err)
		}
		for _, pod := range pods.Items {
			err := r.client().CoreV1().Pods(p.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(idleGrace)})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("end pod %s/%s: %w", p.Namespace, pod.Name, err)
			}
		}
	}
	return r.awaitNoPods(ctx, p)
}

// awaitNoPods waits until a part has no pod left. Pods on nodes that are away never go; with force they are not waited for.
func (r *remover) awaitNoPods(ctx context.Context, p *survey.Part) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	ticker := time.NewTicker(min(r.poll, 500*time.Millisecond))
	defer ticker.Stop()
	selector := labels.SelectorFromSet(p.Selector).String()
	left := "its pods"
	for {
		pods, err := r.client().CoreV1().Pods(p.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err == nil {
			if len(pods.Items) == 0 {
				return nil
			}
			left = fmt.Sprintf("%s on %s", pods.Items[0].Name, pods.Items[0].Spec.NodeName)
		}
		select {
		case <-ctx.Done():
			if r.force {
				r.env.Notef("  not waiting longer for %s", left)
				return nil
			}
			return fmt.Errorf("wait until the pods of the %s are gone: %s is still there: %w", p.Component.Title(), left, ctx.Err())
		case <-ticker.C:
		}
	}
}

// removeMade removes what the control plane made: trust bundles and revocation lists, its CA's keys, the lease of its leader; and the namespace, if
// install made it and nothing of anybody's is left in it.
func (r *remover) removeMade(ctx context.Context) error {
	core := r.client().CoreV1()
	bundles, err := core.ConfigMaps("").List(ctx, metav1.ListOptions{LabelSelector: ours})
	if err != nil {
		return fmt.Errorf("list trust bundles: %w", err)
	}
	for _, bundle := range bundles.Items {
		_, roots := bundle.Data[api.RootCertKey]
		if _, lists := bundle.Data[api.CRLKey]; !roots && !lists {
			continue
		}
		if err := core.ConfigMaps(bundle.Namespace).Delete(ctx, bundle.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete ConfigMap %s/%s: %w", bundle.Namespace, bundle.Name, err)
		}
	}
	for _, name := range []string{api.CASecret, api.CARotationSecret, api.CASignerSecret} {
		secret, err := core.Secrets(r.namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && secret.Labels[api.LabelPartOf] == api.PartOf {
			err = core.Secrets(r.namespace).Delete(ctx, name, metav1.DeleteOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete Secret %s/%s: %w", r.namespace, name, err)
		}
	}
	err = r.client().CoordinationV1().Leases(r.namespace).Delete(ctx, leaderLease, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Lease %s/%s: %w", r.namespace, leaderLease, err)
	}
	return r.removeNamespace(ctx)
}

// leaderLease is the Lease with which the control plane elects who writes.
const leaderLease = "istiod-lite-leader"

// removeNamespace deletes the mesh's namespace if `ambit install` made it and it is empty.
func (r *remover) removeNamespace(ctx context.Context) error {
	ns, err := r.client().CoreV1().Namespaces().Get(ctx, r.namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", r.namespace, err)
	}
	if ns.Labels[install.MadeLabel] != install.MadeValue {
		return nil
	}
	left, err := r.left(ctx)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		r.env.Notef("Namespace %s stays: %s in it is not ambit's.", r.namespace, left[0])
		return nil
	}
	if err := r.client().CoreV1().Namespaces().Delete(ctx, r.namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete namespace %s: %w", r.namespace, err)
	}
	return install.AwaitNoNamespace(ctx, r.client(), r.namespace)
}

// left lists what is in the mesh's namespace beside what Kubernetes puts into every namespace.
func (r *remover) left(ctx context.Context) ([]string, error) {
	lists, err := r.client().Discovery().ServerPreferredNamespacedResources()
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("list kinds: %w", err)
	}
	var names []string
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, resource := range list.APIResources {
			if !slices.Contains(resource.Verbs, "list") || !slices.Contains(resource.Verbs, "delete") || transient[resource.Name] {
				continue
			}
			objects, err := r.cluster.Dynamic.Resource(gv.WithResource(resource.Name)).Namespace(r.namespace).List(ctx, metav1.ListOptions{})
			if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list %s in namespace %s: %w", resource.Name, r.namespace, err)
			}
			for _, object := range objects.Items {
				if !builtIn(resource.Name, object) {
					names = append(names, resource.Kind+" "+object.GetName())
				}
			}
		}
	}
	return names, nil
}

// transient kinds go by themselves.
var transient = map[string]bool{
	"events": true, "endpoints": true, "endpointslices": true, "pods": true, "replicasets": true, "controllerrevisions": true,
}

// builtIn tells whether Kubernetes puts an object into every namespace, or it is going already.
func builtIn(resource string, object unstructured.Unstructured) bool {
	switch {
	case object.GetDeletionTimestamp() != nil:
		return true
	case resource == "serviceaccounts":
		return object.GetName() == "default"
	case resource == "configmaps":
		return object.GetName() == "kube-root-ca.crt"
	}
	return false
}
