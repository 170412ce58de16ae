package uninstall

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/console"
)

// madeForWaypoints are the kinds of what the control plane makes for a waypoint, in the order in which they go.
var madeForWaypoints = []schema.GroupVersionResource{
	{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Version: "v1", Resource: "services"},
	{Version: "v1", Resource: "serviceaccounts"},
}

// removeWaypoints removes what the control plane made for waypoints. Their Gateways are the users', and stay as labels do. The
// control plane must be gone, since it makes them anew.
func (r *remover) removeWaypoints(ctx context.Context) error {
	background := metav1.DeletePropagationBackground
	gateways := map[string]bool{}
	for _, resource := range madeForWaypoints {
		list, err := r.cluster.Dynamic.Resource(resource).List(ctx, metav1.ListOptions{LabelSelector: api.LabelGatewayManaged + "=" + api.GatewayManagedWaypoint})
		if err != nil {
			return fmt.Errorf("list what was made for waypoints: %s: %w", resource.Resource, err)
		}
		for i := range list.Items {
			object := &list.Items[i]
			if !managedBy(object, api.GatewayDeployer) {
				continue // another mesh's waypoints have the same label
			}
			gateways[object.GetNamespace()+"/"+object.GetLabels()[api.LabelGatewayName]] = true
			err := r.cluster.Dynamic.Resource(resource).Namespace(object.GetNamespace()).Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete %s %s/%s: %w", object.GetKind(), object.GetNamespace(), object.GetName(), err)
			}
		}
	}
	if n := len(gateways); n > 0 {
		r.env.Notef("Removed the pods and services of %s. The Gateways stay, which do nothing without a mesh; a later install makes them work again.",
			console.Plural(n, "waypoint"))
	}
	return r.removeStanding(ctx)
}

// standing are the objects that the control plane makes where they are missing.
var standing = []struct {
	resource schema.GroupVersionResource
	name     string
}{
	{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}, api.ClassWaypoint},
	{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}, api.ClassIngress},
	{schema.GroupVersionResource{Group: "gateway.networking.x-k8s.io", Version: "v1alpha1", Resource: "xmeshes"}, api.MeshName},
}

// removeStanding removes them if the control plane made them; others that have a controller of that name keep theirs.
func (r *remover) removeStanding(ctx context.Context) error {
	for _, s := range standing {
		client := r.cluster.Dynamic.Resource(s.resource)
		object, err := client.Get(ctx, s.name, metav1.GetOptions{})
		if err == nil && managedBy(object, api.ControlPlaneDeployment) {
			err = client.Delete(ctx, s.name, metav1.DeleteOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", s.resource.Resource, s.name, err)
		}
	}
	return nil
}

// managedBy tells whether a field manager made or applied an object.
func managedBy(object *unstructured.Unstructured, manager string) bool {
	return slices.ContainsFunc(object.GetManagedFields(), func(entry metav1.ManagedFieldsEntry) bool {
		return entry.Manager == manager && entry.Subresource == ""
	})
}
