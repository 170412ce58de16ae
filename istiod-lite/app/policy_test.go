package app

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
)

// TestAuthorizationPolicy: a policy reaches node proxies before the workloads that name it, goes after them, and its status
// says what became of it.
func TestAuthorizationPolicy(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"))
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	statuses := make(chan string, 10)
	a.dynamic.PrependReactor("patch", "authorizationpolicies", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchAction)
		statuses <- patch.GetName() + " " + patch.GetSubresource() + " " + string(patch.GetPatch())
		var body map[string]any
		return true, &unstructured.Unstructured{Object: body}, json.Unmarshal(patch.GetPatch(), &body)
	})
	r := a.start()
	r.awaitReady()
	a.awaitWatch(1, "authorizationpolicies")
	c := r.subscribe("node1")

	policies := a.dynamic.Resource(authorizationPolicyGVR).Namespace("shop")
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"name": "gets", "namespace": "shop", "generation": int64(1)},
		"spec": map[string]any{
			"selector": map[string]any{"matchLabels": map[string]any{"app": "web"}},
			"rules":    []any{map[string]any{"to": []any{map[string]any{"operation": map[string]any{"methods": []any{"GET"}}}}}},
		},
	}}
	if _, err := policies.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first, second := c.NextAck(), c.NextAck()
	if got := xdstest.Names(first); first.GetTypeUrl() != resource.Authorization.URL() || !slices.Equal(got, []string{"shop/gets"}) {
		t.Errorf("first comes %s %v", first.GetTypeUrl(), got)
	}
	if got := xdstest.Names(second); second.GetTypeUrl() != resource.Address.URL() || !slices.Equal(got, []string{uid("shop", "web")}) {
		t.Errorf("then comes %s %v", second.GetTypeUrl(), got)
	}
	if text := <-statuses; !strings.HasPrefix(text, "gets status ") || !strings.Contains(text, "UnsupportedValue") || !strings.Contains(text, "methods") {
		t.Errorf("status: %s", text)
	}

	if err := policies.Delete(t.Context(), "gets", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	first, second = c.NextAck(), c.NextAck()
	if got := xdstest.Names(first); first.GetTypeUrl() != resource.Address.URL() || !slices.Equal(got, []string{uid("shop", "web")}) {
		t.Errorf("of the end, first comes %s %v", first.GetTypeUrl(), got)
	}
	if got := xdstest.Names(second); second.GetTypeUrl() != resource.Authorization.URL() || !slices.Equal(got, []string{"-shop/gets"}) {
		t.Errorf("of the end, then comes %s %v", second.GetTypeUrl(), got)
	}
}
