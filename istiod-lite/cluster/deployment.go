package cluster

import (
	"encoding/json"

	"github.com/cespare/xxhash/v2"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/api"
)

// Deployment is a Deployment that was made for a Gateway.
type Deployment struct {
	Key
	// Gateway is the name of the Gateway, in the same namespace.
	Gateway string
	// Replicas are those that are wanted, Ready those that are ready.
	Replicas, Ready int32
	Deleting        bool
}

// ObjectKind is KindDeployment.
func (*Deployment) ObjectKind() Kind { return KindDeployment }

// ObjectKey is namespace and name.
func (d *Deployment) ObjectKey() Key { return d.Key }

// Equal reports whether both are the same in every field.
func (d *Deployment) Equal(o *Deployment) bool { return *d == *o }

// DeploymentOf reduces a Deployment.
func DeploymentOf(in *appsv1.Deployment) *Deployment {
	d := &Deployment{
		Key: Key{in.Namespace, in.Name}, Gateway: in.Labels[api.LabelGatewayName], Replicas: 1, Ready: in.Status.ReadyReplicas,
		Deleting: in.DeletionTimestamp != nil,
	}
	if in.Spec.Replicas != nil {
		d.Replicas = *in.Spec.Replicas
	}
	return d
}

// StatusHash stands for the status of an object: it is compared, so that whoever writes there notices what others write.
type StatusHash uint64

func statusHashOf(in *unstructured.Unstructured) StatusHash {
	text, err := json.Marshal(in.Object["status"])
	if err != nil {
		return 0 // it was decoded from JSON
	}
	return StatusHash(xxhash.Sum64(text))
}
