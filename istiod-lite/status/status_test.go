package status_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/status"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const deadline = 30 * time.Second

var gvr = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

// server is an API server that applies patches of status, and hands each over.
type server struct {
	*dynamicfake.FakeDynamicClient
	patches chan map[string]any
	mu      sync.Mutex // guards refuse
	refuse  int        // how many patches are refused, as if somebody else had written meanwhile
}

func serve(objects ...runtime.Object) *server {
	s := &server{patches: make(chan map[string]any, 100)}
	s.FakeDynamicClient = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{gvr: "AuthorizationPolicyList"}, objects...)
	s.PrependReactor("patch", "authorizationpolicies", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchAction)
		var body map[string]any
		if err := json.Unmarshal(patch.GetPatch(), &body); err != nil {
			return true, nil, err
		}
		if patch.GetPatchType() != types.ApplyPatchType || patch.GetSubresource() != "status" {
			return true, nil, apierrors.NewBadRequest("not an apply of status")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.refuse > 0 {
			s.refuse--
			return true, nil, apierrors.NewConflict(gvr.GroupResource(), patch.GetName(), nil)
		}
		o, err := s.Tracker().Get(gvr, patch.GetNamespace(), patch.GetName())
		if err != nil {
			return true, nil, err
		}
		u := o.(*unstructured.Unstructured).DeepCopy()
		u.Object["status"] = runtime.DeepCopyJSONValue(body["status"])
		s.patches <- body
		return true, u, s.Tracker().Update(gvr, u, patch.GetNamespace())
	})
	return s
}

// object is a policy whose status has these conditions.
func object(name string, generation int64, conditions ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": "shop", "name": name, "generation": generation, "resourceVersion": "7"},
		"status":   map[string]any{"conditions": conditions},
	}}
}

func want(name string, generation int64, value string) translate.Status {
	return translate.Status{Kind: cluster.KindAuthorizationPolicy, Key: cluster.Key{Namespace: "shop", Name: name}, Type: "ZtunnelAccepted",
		Want: cluster.Condition{Type: "ZtunnelAccepted", Status: value, Reason: "R", Message: "m", Generation: generation}}
}

// run leads until the returned function is called.
func run(w *status.Writer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

func (s *server) next(t *testing.T) map[string]any {
	t.Helper()
	select {
	case body := <-s.patches:
		return body
	case <-time.After(deadline):
		t.Fatalf("nothing was written within %s", deadline)
		return nil
	}
}

// conditions are those of a patch, without times.
func conditions(body map[string]any) []any {
	list := body["status"].(map[string]any)["conditions"].([]any)
	for _, c := range list {
		delete(c.(map[string]any), "lastTransitionTime")
	}
	return list
}

// TestOnlyOurs: a condition of somebody else stays, and nothing but conditions is written; a time is kept while the status is.
func TestOnlyOurs(t *testing.T) {
	theirs := map[string]any{"type": "WaypointAccepted", "status": "True", "note": "x"}
	old := map[string]any{"type": "ZtunnelAccepted", "status": "False", "reason": "Old", "observedGeneration": "1", "lastTransitionTime": "2020-01-01T00:00:00Z"}
	s := serve(object("p", 2, theirs, old))
	w := status.New(s, slog.New(slog.DiscardHandler))
	defer run(w)()
	w.Update([]translate.Status{want("p", 2, "False")})
	body := s.next(t)
	if got := body["status"].(map[string]any)["conditions"].([]any)[1].(map[string]any)["lastTransitionTime"]; got != "2020-01-01T00:00:00Z" {
		t.Errorf("the time of the last transition is %v", got)
	}
	if len(body) != 4 || len(body["status"].(map[string]any)) != 1 || body["metadata"].(map[string]any)["resourceVersion"] != "7" {
		t.Errorf("the patch is %v", body)
	}
	ours := map[string]any{"type": "ZtunnelAccepted", "status": "False", "reason": "R", "message": "m", "observedGeneration": "2"}
	if diff := cmp.Diff([]any{theirs, ours}, conditions(body)); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
	w.Update([]translate.Status{want("p", 2, "True")})
	if got := s.next(t)["status"].(map[string]any)["conditions"].([]any)[1].(map[string]any)["lastTransitionTime"]; got == "2020-01-01T00:00:00Z" || got == "" {
		t.Errorf("the status changed and the time of the last transition is %v", got)
	}
}

// TestWhatIsNotWritten: nothing without leading, nothing that is there already, nothing about another generation, nothing of
// objects that are gone. What came while another replica led is written when this one leads.
func TestWhatIsNotWritten(t *testing.T) {
	s := serve(object("known", 1, map[string]any{"type": "ZtunnelAccepted", "status": "True", "reason": "R", "message": "m", "observedGeneration": int64(1)}),
		object("newer", 2), object("gone", 1), object("last", 1))
	w := status.New(s, slog.New(slog.DiscardHandler))
	gone := want("gone", 1, "True")
	w.Update([]translate.Status{want("known", 1, "True"), want("newer", 1, "True"), gone, want("missing", 1, "True")})
	gone.Gone = true
	w.Update([]translate.Status{gone, want("last", 1, "True")})
	if len(s.patches) > 0 {
		t.Error("written without leading")
	}
	stop := run(w)
	if body := s.next(t); body["metadata"].(map[string]any)["name"] != "last" {
		t.Errorf("written: %v", body)
	}
	stop()
	if len(s.patches) > 0 {
		t.Errorf("written: %v", <-s.patches)
	}
}

// TestConflict: a write that was refused is tried again.
func TestConflict(t *testing.T) {
	s := serve(object("p", 1))
	s.refuse = 2
	w := status.New(s, slog.New(slog.DiscardHandler))
	defer run(w)()
	w.Update([]translate.Status{want("p", 1, "True")})
	s.next(t)
}
