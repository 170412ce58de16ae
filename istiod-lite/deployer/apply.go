package deployer

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/csaupgrade"
	"k8s.io/client-go/util/retry"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// owned reports whether an object was made for the Gateway of a name: by its labels, which somebody may have copied with the rest of
// it, and by its owner. That may be an earlier Gateway of the name: its waypoint goes on under the new one.
func owned(o *unstructured.Unstructured, gateway string) bool {
	return o.GetLabels()[api.LabelGatewayManaged] == api.GatewayManagedWaypoint && o.GetLabels()[api.LabelGatewayName] == gateway &&
		slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
			return r.Kind == string(cluster.KindGateway) && r.Name == gateway
		})
}

// find reads what is there under an object's name, nil if nothing is. What others own is an error.
func (d *Deployer) find(ctx context.Context, o object, key cluster.Key) (*unstructured.Unstructured, error) {
	there, err := d.cfg.Client.Resource(o.gvr).Namespace(key.Namespace).Get(ctx, o.content.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", o, err)
	case !owned(there, key.Name):
		return nil, foreign(o)
	}
	return there, nil
}

func foreign(o object) error {
	return fmt.Errorf("%s is there already, was not made for this Gateway and is left alone: remove it, or give the Gateway another name", o)
}

// apply makes the object that was found what it is to be, or makes one where none was. What others put in its place since then is left
// alone: an object is created, which fails if there is one, and applied to by its UID alone.
func (d *Deployer) apply(ctx context.Context, o object, there *unstructured.Unstructured, key cluster.Key) error {
	client := d.cfg.Client.Resource(o.gvr).Namespace(key.Namespace)
	if there == nil {
		var err error
		there, err = client.Create(ctx, o.content.DeepCopy(), metav1.CreateOptions{FieldManager: api.GatewayDeployer})
		switch {
		case apierrors.IsAlreadyExists(err):
			return foreign(o)
		case err != nil:
			return fmt.Errorf("create %s: %w", o, err)
		}
	}
	if err := d.takeFields(ctx, o, there, key); err != nil {
		return err
	}
	content := o.content.DeepCopy()
	content.SetUID(there.GetUID())
	_, err := client.Apply(ctx, content.GetName(), content, metav1.ApplyOptions{FieldManager: api.GatewayDeployer, Force: true})
	if err != nil {
		return fmt.Errorf("apply %s: %w", o, err)
	}
	return nil
}

// takeFields makes fields that the deployer created such that it has applied: otherwise one that it does not apply any more would
// stay.
func (d *Deployer) takeFields(ctx context.Context, o object, there *unstructured.Unstructured, key cluster.Key) error {
	client := d.cfg.Client.Resource(o.gvr).Namespace(key.Namespace)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		patch, err := csaupgrade.UpgradeManagedFieldsPatch(there, sets.New(api.GatewayDeployer), api.GatewayDeployer)
		if err != nil || patch == nil {
			return err
		}
		_, err = client.Patch(ctx, there.GetName(), types.JSONPatchType, patch, metav1.PatchOptions{})
		if !apierrors.IsConflict(err) {
			return err
		}
		now, failed := d.find(ctx, o, key) // a controller has written its status meanwhile
		switch {
		case failed != nil:
			return failed
		case now != nil && now.GetUID() == there.GetUID():
			there = now
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("take over the fields of %s: %w", o, err)
	}
	return nil
}
