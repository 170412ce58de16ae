package agent

import (
	"errors"
	"net/http"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
)

// TestNotFound: that something is gone is believed of the API alone, not of whoever answers in its place with 404, such as a load
// balancer while the API starts. Else the end of an agent would take the mesh from its node.
func TestNotFound(t *testing.T) {
	daemonSets, pods := appsv1.Resource("daemonsets"), appsv1.Resource("pods")
	for _, tt := range []struct {
		name string
		err  error
		gone bool
	}{
		{"the API says so", apierrors.NewNotFound(daemonSets, api.NodeAgent), true},
		{"another's 404", apierrors.NewGenericServerResponse(http.StatusNotFound, "get", daemonSets, api.NodeAgent, "404 page not found", 0, true), false},
		{"forbidden", apierrors.NewForbidden(pods, api.NodeAgent, errors.New("no")), false},
		{"no answer", errors.New("connection refused"), false},
	} {
		client := fake.NewClientset()
		client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, tt.err })
		c := Cluster{Client: client, NodeName: "node1", Namespace: api.DefaultNamespace, DaemonSet: api.NodeAgent}
		if got := c.Doomed(t.Context(), false); got != tt.gone {
			t.Errorf("%s: the DaemonSet is deleted: %v", tt.name, got)
		}
		if _, _, err := c.Look(t.Context(), "shop", "web"); errors.Is(err, ErrPodGone) != tt.gone {
			t.Errorf("%s: looked for a pod: %v", tt.name, err)
		}
		if err := c.Annotate(t.Context(), Pod{Namespace: "shop", Name: "web"}, ""); errors.Is(err, ErrPodGone) != tt.gone {
			t.Errorf("%s: annotated a pod: %v", tt.name, err)
		}
	}
}
