// Package status writes status conditions on objects that people wrote: what became of each. One replica writes at a time; it
// runs while it leads, and begins by looking at everything. It writes conditions of its own types and nothing else of an object.
package status

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// fieldManager owns the fields that are written.
const fieldManager = "istiod-lite-status"

// Retries of a write that fails.
const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 30 * time.Second
)

// writers is how many objects are written at the same time.
const writers = 4

// kinds are those whose objects have conditions of ours.
var kinds = map[cluster.Kind]schema.GroupVersionResource{
	cluster.KindAuthorizationPolicy:   {Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"},
	cluster.KindServiceEntry:          {Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"},
	cluster.KindWorkloadEntry:         {Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"},
	cluster.KindVirtualService:        {Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"},
	cluster.KindDestinationRule:       {Group: "networking.istio.io", Version: "v1", Resource: "destinationrules"},
	cluster.KindTelemetry:             {Group: "telemetry.istio.io", Version: "v1", Resource: "telemetries"},
	cluster.KindService:               {Version: "v1", Resource: "services"},
	cluster.KindRequestAuthentication: {Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"},
}

// byType are kinds whose definition keeps conditions apart by type: of those, only what is ours is applied.
var byType = map[cluster.Kind]bool{cluster.KindService: true}

// object names a condition of an object.
type object struct {
	kind cluster.Kind
	key  cluster.Key
	typ  string
}

// Writer writes. Make one with New.
type Writer struct {
	client dynamic.Interface
	log    *slog.Logger

	mu      sync.Mutex // guards the fields below
	want    map[object]translate.Status
	pending pending[object]
}

// New returns a Writer that writes nothing until Run.
func New(client dynamic.Interface, log *slog.Logger) *Writer {
	return &Writer{client: client, log: log, want: map[object]translate.Status{}}
}

// Update takes what objects should say, and what they do. It may be called at any time and does not wait for a write.
func (w *Writer) Update(statuses []translate.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range statuses {
		o := object{s.Kind, s.Key, s.Type}
		if s.Gone || kinds[s.Kind].Empty() {
			delete(w.want, o)
			continue
		}
		w.want[o] = s
		if s.Want != s.Seen {
			w.pending.add(o)
		}
	}
}

// Run writes until ctx ends. It may be called again after it returned.
func (w *Writer) Run(ctx context.Context) {
	w.pending.run(ctx, &w.mu, func() []object {
		var out []object
		for o, s := range w.want {
			if s.Want != s.Seen {
				out = append(out, o)
			}
		}
		return out
	}, w.write, w.log)
}

// write makes the condition of an object what it should be. In Istio's definitions conditions are one list, which is applied
// as a whole: so the others are read and left as they are, and the write is refused if the object has changed since. It is so for
// every kind that is not in byType.
func (w *Writer) write(ctx context.Context, o object) error {
	w.mu.Lock()
	s, ok := w.want[o]
	w.mu.Unlock()
	if !ok || s.Want == s.Seen {
		return nil
	}
	client := w.client.Resource(kinds[o.kind]).Namespace(o.key.Namespace)
	current, err := client.Get(ctx, o.key.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the watch will tell
	} else if err != nil {
		return fmt.Errorf("read %s %s: %w", o.kind, o.key, err)
	}
	if s.Want.Type != "" && current.GetGeneration() != s.Want.Generation || current.GetDeletionTimestamp() != nil {
		return nil // what was judged is not what is there; the watch will tell
	}
	conditions, changed := merge(current, s.Type, s.Want)
	if !changed {
		return nil
	}
	if byType[o.kind] {
		conditions = slices.DeleteFunc(conditions, func(c any) bool { m, ok := c.(map[string]any); return !ok || m["type"] != s.Type })
	}
	patch := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": current.GetAPIVersion(), "kind": current.GetKind(),
		"metadata": map[string]any{"name": o.key.Name, "namespace": o.key.Namespace, "resourceVersion": current.GetResourceVersion()},
		"status":   map[string]any{"conditions": conditions},
	}}
	_, err = client.ApplyStatus(ctx, o.key.Name, patch, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("write status of %s %s: %w", o.kind, o.key, err)
	}
	return nil
}

// merge puts a condition into the place of that of its type, or takes that out if the condition is zero, and leaves all others as
// they are.
func merge(in *unstructured.Unstructured, typ string, want cluster.Condition) (conditions []any, changed bool) {
	list, _, err := unstructured.NestedSlice(in.Object, "status", "conditions")
	if err != nil {
		list = nil // no list of conditions, so nobody's conditions
	}
	ours := map[string]any{
		"type": want.Type, "status": want.Status, "reason": want.Reason, "message": want.Message,
		"observedGeneration": strconv.FormatInt(want.Generation, 10), // as Istio writes it
		"lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
	}
	for _, c := range cluster.ConditionsOf(in) {
		if c == want {
			return nil, false
		}
	}
	if in.GetKind() == string(cluster.KindService) {
		ours["observedGeneration"] = want.Generation
	}
	for i, v := range list {
		m, ok := v.(map[string]any)
		if !ok || m["type"] != typ {
			continue
		}
		if want.Type == "" {
			return slices.Delete(list, i, i+1), true
		}
		if since, ok := m["lastTransitionTime"]; ok && m["status"] == want.Status {
			ours["lastTransitionTime"] = since
		}
		list[i] = ours
		return list, true
	}
	if want.Type == "" {
		return nil, false
	}
	return append(list, ours), true
}
