package status

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
)

const (
	groupGateway = "gateway.networking.k8s.io"
	groupMesh    = "gateway.networking.x-k8s.io"
)

// gatewayKinds are the kinds of the Gateway API whose objects the mesh answers, and our own, which says what became of it as those do.
var gatewayKinds = map[cluster.Kind]schema.GroupVersionResource{
	cluster.KindGateway:          {Group: groupGateway, Version: "v1", Resource: "gateways"},
	cluster.KindGatewayClass:     {Group: groupGateway, Version: "v1", Resource: "gatewayclasses"},
	cluster.KindHTTPRoute:        {Group: groupGateway, Version: "v1", Resource: "httproutes"},
	cluster.KindGRPCRoute:        {Group: groupGateway, Version: "v1", Resource: "grpcroutes"},
	cluster.KindTCPRoute:         {Group: groupGateway, Version: "v1", Resource: "tcproutes"},
	cluster.KindTLSRoute:         {Group: groupGateway, Version: "v1", Resource: "tlsroutes"},
	cluster.KindBackendTLSPolicy: {Group: groupGateway, Version: "v1", Resource: "backendtlspolicies"},
	cluster.KindBackendTraffic:   {Group: groupMesh, Version: "v1alpha1", Resource: "xbackendtrafficpolicies"},
	cluster.KindWaypointPolicy:   {Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: v1alpha1.Resource},
	cluster.KindMesh:             {Group: groupMesh, Version: "v1alpha1", Resource: "xmeshes"},
}

// target names an object of the Gateway API.
type target struct {
	kind cluster.Kind
	key  cluster.Key
}

// Objects writes the status of objects of the Gateway API. Their lists hold what is others' beside what is the mesh's, and fields that
// a newer definition has: so an object is read as it is, what is the mesh's is put into its place, and the write is refused if the
// object has changed since. Make one with NewObjects.
type Objects struct {
	client  dynamic.Interface
	version Instance
	log     *slog.Logger

	mu      sync.Mutex // guards the fields below
	want    map[target]body
	pending pending[target]
}

// Instance is the mesh that answers.
type Instance struct {
	// Version and Namespace are those of the control plane.
	Version, Namespace string
}

// NewObjects returns Objects that write nothing until Run.
func NewObjects(client dynamic.Interface, instance Instance, log *slog.Logger) *Objects {
	return &Objects{client: client, version: instance, log: log, want: map[target]body{}}
}

// Update takes what has become of objects. It may be called at any time and does not wait for a write.
func (w *Objects) Update(r state.Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	set := func(kind cluster.Kind, key cluster.Key, b *body) {
		t := target{kind, key}
		if b == nil || gatewayKinds[kind].Empty() {
			delete(w.want, t)
			return
		}
		w.want[t] = *b
		w.pending.add(t)
	}
	for _, route := range r.Routes {
		set(route.Kind, route.Key, routeBody(route))
	}
	for _, g := range r.Gateways {
		set(cluster.KindGateway, g.Key, gatewayBody(g))
	}
	for _, c := range r.Classes {
		set(cluster.KindGatewayClass, c.Key, classBody(c))
	}
	for _, m := range r.Meshes {
		set(cluster.KindMesh, m.Key, meshBody(m, w.version))
	}
}

// Run writes until ctx ends. It may be called again after it returned.
func (w *Objects) Run(ctx context.Context) {
	w.pending.run(ctx, &w.mu, func() []target {
		var out []target
		for t := range w.want {
			out = append(out, t)
		}
		return out
	}, w.write, w.log)
}

func (w *Objects) write(ctx context.Context, t target) error {
	w.mu.Lock()
	b, ok := w.want[t]
	w.mu.Unlock()
	if !ok || b.settled {
		return nil
	}
	client := w.client.Resource(gatewayKinds[t.kind]).Namespace(t.key.Namespace)
	current, err := client.Get(ctx, t.key.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the watch will tell
	} else if err != nil {
		return fmt.Errorf("read %s %s: %w", t.kind, t.key, err)
	}
	if current.GetGeneration() != b.generation || current.GetDeletionTimestamp() != nil {
		return nil // what was judged is not what is there; the watch will tell
	}
	status, _ := current.Object["status"].(map[string]any)
	changed := b.merge(status, time.Now().UTC().Format(time.RFC3339))
	if len(changed) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": current.GetResourceVersion()}, // or somebody wrote meanwhile
		"status":   changed,
	})
	if err != nil {
		return fmt.Errorf("write status of %s %s: %w", t.kind, t.key, err)
	}
	_, err = client.Patch(ctx, t.key.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of %s %s: %w", t.kind, t.key, err)
	}
	return nil
}
