package standing

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const deadline = 30 * time.Second

// TestKeeper: what is missing is made with a controller and nothing else, also if its definition comes later; what others have is
// left alone.
func TestKeeper(t *testing.T) {
	crd := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": classesDefinition, "annotations": map[string]any{bundleAnnotation: "v1.7.0"}},
	}}
	theirs := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": objects[0].apiVersion, "kind": "GatewayClass", "metadata": map[string]any{"name": "istio-waypoint"}, "spec": map[string]any{"controllerName": "example.com/x"},
	}}
	client := dynamicfake.NewSimpleDynamicClient(runtime.NewScheme(), crd)
	// The fake guesses plurals of its own.
	if err := client.Tracker().Create(objects[0].gvr, theirs, ""); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	defined := false
	client.PrependReactor("*", "xmeshes", func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if defined {
			return false, nil, nil
		}
		return true, nil, apierrors.NewNotFound(objects[2].gvr.GroupResource(), "")
	})
	looked := make(chan string, 100)
	k := New(client, func(_ context.Context, version string) { looked <- version }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { k.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	look := func() {
		t.Helper()
		select {
		case v := <-looked:
			if v != "v1.7.0" {
				t.Errorf("definitions are of %q", v)
			}
		case <-time.After(deadline):
			t.Fatal("it did not look")
		}
	}
	look()
	mu.Lock()
	defined = true
	mu.Unlock()
	k.Notify()
	look()
	mesh, err := client.Resource(objects[2].gvr).Get(ctx, "ambit", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XMesh", "metadata": map[string]any{"name": "ambit"},
		"spec": map[string]any{"controllerName": "ambit.io/mesh-controller"},
	}
	if diff := cmp.Diff(want, mesh.Object); diff != "" {
		t.Errorf("XMesh (-want +got):\n%s", diff)
	}
	ingress, err := client.Resource(objects[1].gvr).Get(ctx, "istio", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if controller, _, _ := unstructured.NestedString(ingress.Object, "spec", "controllerName"); controller != "istio.io/gateway-controller" {
		t.Errorf("class istio has controller %q", controller)
	}
	class, err := client.Resource(objects[0].gvr).Get(ctx, "istio-waypoint", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(theirs.Object, class.Object); diff != "" {
		t.Errorf("another's class was changed:\n%s", diff)
	}
}
