// Package standing makes the objects of the Gateway API that stand for the mesh itself: the GatewayClasses of waypoints and of
// Istio's ingress gateways, and an XMesh.
// It makes what is not there, once the definitions are, and never changes or removes what is: people may have made it their own.
package standing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/api"
)

// fieldManager is who has made the objects.
const fieldManager = "istiod-lite"

// retryAfter is the pause after an attempt that failed, and look how often it is looked without being told to: the definitions may
// be replaced by those of another version.
const (
	retryAfter = 2 * time.Second
	look       = time.Minute
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

const (
	classesDefinition = "gatewayclasses.gateway.networking.k8s.io"
	bundleAnnotation  = "gateway.networking.k8s.io/bundle-version"
)

// object is one that stands for the mesh.
type object struct {
	gvr        schema.GroupVersionResource
	apiVersion string
	kind, name string
	controller string
}

// objects are all of them. They have a controller and nothing else.
var objects = []object{
	{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"},
		"gateway.networking.k8s.io/v1", "GatewayClass", api.ClassWaypoint, api.ControllerWaypoint},
	// Its Gateways are told that nobody deploys them, rather than wait for somebody for ever.
	{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"},
		"gateway.networking.k8s.io/v1", "GatewayClass", api.ClassIngress, api.ControllerIngress},
	{schema.GroupVersionResource{Group: "gateway.networking.x-k8s.io", Version: "v1alpha1", Resource: "xmeshes"},
		"gateway.networking.x-k8s.io/v1alpha1", "XMesh", api.MeshName, api.ControllerMesh},
}

// Keeper makes them. Make one with New.
type Keeper struct {
	client dynamic.Interface
	bundle func(context.Context, string)
	log    *slog.Logger

	changed chan struct{}   // has room for one
	foreign map[string]bool // of Run: those that others have, "kind name", as was said
}

// New returns a Keeper that does nothing until Run. bundle takes the version of the Gateway API's definitions.
func New(client dynamic.Interface, bundle func(ctx context.Context, version string), log *slog.Logger) *Keeper {
	return &Keeper{client: client, bundle: bundle, log: log, changed: make(chan struct{}, 1), foreign: map[string]bool{}}
}

// Notify says that objects or their definitions may be there, or gone. It does not wait, and may be called at any time.
func (k *Keeper) Notify() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Run makes what is not there until ctx ends. It may be called again after it returned, but by one goroutine at a time.
func (k *Keeper) Run(ctx context.Context) {
	for {
		pause := look
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("objects of the mesh itself are not made", "cause", err, "retry", retryAfter.String())
			pause = retryAfter
		}
		timer := time.NewTimer(pause)
		select {
		case <-k.changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

func (k *Keeper) look(ctx context.Context) error {
	var errs []error
	for _, o := range objects {
		errs = append(errs, k.make(ctx, o))
	}
	errs = append(errs, k.readBundle(ctx))
	return errors.Join(errs...)
}

// make makes an object if there is none of its name. Without the definition of its kind there is nothing to do.
func (k *Keeper) make(ctx context.Context, o object) error {
	client := k.client.Resource(o.gvr)
	there, err := client.Get(ctx, o.name, metav1.GetOptions{})
	if err == nil {
		controller, _, _ := unstructured.NestedString(there.Object, "spec", "controllerName")
		if foreign := controller != o.controller; foreign != k.foreign[o.kind+" "+o.name] {
			k.foreign[o.kind+" "+o.name] = foreign
			if foreign {
				k.log.Warn("object of the mesh's name is another controller's and is left alone", "kind", o.kind, "name", o.name, "controller", controller)
			}
		}
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read %s %s: %w", o.kind, o.name, err)
	}
	_, err = client.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": o.apiVersion, "kind": o.kind, "metadata": map[string]any{"name": o.name}, "spec": map[string]any{"controllerName": o.controller},
	}}, metav1.CreateOptions{FieldManager: fieldManager})
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("create %s %s: %w", o.kind, o.name, err)
	}
	k.log.Info("created", "kind", o.kind, "name", o.name)
	return nil
}

// readBundle tells of which version the definitions are.
func (k *Keeper) readBundle(ctx context.Context) error {
	crd, err := k.client.Resource(definitions).Get(ctx, classesDefinition, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read CustomResourceDefinition %s: %w", classesDefinition, err)
	}
	k.bundle(ctx, crd.GetAnnotations()[bundleAnnotation])
	return nil
}
