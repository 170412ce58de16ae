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
			if !deployedByUs(object) {
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
	return nil
}

// deployedByUs tells whether this mesh's control plane applied an object.
func deployedByUs(object *unstructured.Unstructured) bool {
	return slices.ContainsFunc(object.GetManagedFields(), func(entry metav1.ManagedFieldsEntry) bool {
		return entry.Manager == api.GatewayDeployer
	})
}
