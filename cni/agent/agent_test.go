package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) {
	leaktest.Main(m)
}

func TestStartingPod(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start().ready(t)
	w.connect()
	w.pod("web")
	s := w.sandbox("web", false)
	if err := w.plugin("web", s, "10.0.0.7", "fd00::7"); err != nil {
		t.Fatal(err)
	}
	// At the moment of the answer everything is in place.
	if !w.isCaptured("web") {
		t.Errorf("answered before it was captured: %+v, %q", s, w.redirection("web"))
	}
	// It may have been verified since.
	if diff := cmp.Diff([]string{"add", "fill", "hook", "put", "annotate=enabled"}, w.steps("web")[:5]); diff != "" {
		t.Error(diff)
	}
	w.with(func() {
		if len(w.sets) != 2 {
			t.Errorf("exempt: %v", w.sets)
		}
	})
	// A new sandbox of the same pod takes the old one's place.
	inode := w.proxy.NetNS("web")
	if err := w.plugin("web", w.sandbox("web", false), "10.0.0.8"); err != nil {
		t.Fatal(err)
	}
	if got := w.proxy.NetNS("web"); got == inode || got == 0 {
		t.Errorf("served in %d, before in %d", got, inode)
	}
}

// TestStartOutsideTheMesh answers at once, without a node proxy.
func TestStartOutsideTheMesh(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start().ready(t)
	w.pod("opted-out", label("none"))
	w.pod("sidecar", annotation(api.AnnotationSidecarStatus, "{}"))
	for _, name := range []string{"opted-out", "sidecar"} {
		if err := w.plugin(name, w.sandbox(name, false)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if steps := w.steps(name); len(steps) > 0 {
			t.Errorf("%s: %v", name, steps)
		}
	}
	if err := w.plugin("unknown", w.sandbox("unknown", false)); !errors.Is(err, agentapi.ErrNoAnswer) {
		t.Errorf("a pod that the API does not know: %v", err)
	}
}

// TestStartFails: whatever step fails, the pod does not start and nothing is left of it; and the next attempt succeeds.
func TestStartFails(t *testing.T) {
	for _, step := range []string{"add", "fill", "hook", "put", "annotate=enabled"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.namespace("shop", "ambient")
			w.start().ready(t)
			w.connect()
			w.pod("web")
			w.failing(step, 1)
			err := w.plugin("web", w.sandbox("web", false), "10.0.0.7")
			if err == nil || errors.Is(err, agentapi.ErrNoAnswer) || !strings.Contains(err.Error(), step+" fails as the test wants") {
				t.Fatalf("answered %v", err)
			}
			eventually(t, "nothing is left", func() bool { return w.isOutside("web") })
			if err := w.plugin("web", w.sandbox("web", false), "10.0.0.7"); err != nil || !w.isCaptured("web") {
				t.Errorf("the next attempt: %v", err)
			}
		})
	}
}

// TestStartWithoutProxy waits for one; and if the plugin gives up, nothing is left.
func TestStartWithoutProxy(t *testing.T) {
	w := newWorld(t)
	w.timing.Verify = time.Hour
	w.namespace("shop", "ambient")
	r := w.start().ready(t)
	w.pod("web")
	s := w.sandbox("web", false)
	answered := make(chan error, 1)
	go func() { answered <- w.plugin("web", s, "10.0.0.7") }()
	eventually(t, "it waits for a proxy", func() bool { return len(w.steps("web")) == 1 })
	p := w.connect()
	if err := <-answered; err != nil || !w.isCaptured("web") {
		t.Fatalf("%v, %+v", err, s)
	}
	p.Close()
	eventually(t, "the proxy is gone", func() bool { return r.server.Connected() == 0 })

	w.pod("other")
	o := w.sandbox("other", false)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := agentapi.Add(ctx, w.dir+"/"+api.AgentSocket, agentapi.AddRequest{Netns: o.file, PodName: "other", PodNamespace: "shop"}); err == nil {
		t.Fatal("started without a proxy")
	}
	eventually(t, "nothing is left", func() bool { return w.isOutside("other") })
	if w.redirection("web") != api.RedirectionEnabled {
		t.Error("the other pod lost its annotation")
	}
}

func TestLiveEnrolmentAndBack(t *testing.T) {
	w := newWorld(t)
	w.timing.Verify = time.Hour
	w.start().ready(t)
	w.connect()
	s := w.running("web", "10.0.0.7")
	never(t, "something is done to it", func() bool { return len(w.steps("web")) > 0 })
	for range 2 {
		w.forgetLog()
		w.namespace("shop", "ambient")
		eventually(t, "captured", func() bool { return w.isCaptured("web") })
		if diff := cmp.Diff([]string{"fill", "add", "put", "exempt", "hook", "annotate=enabled"}, w.steps("web")); diff != "" {
			t.Error(diff)
		}
		never(t, "something else is done", func() bool { return len(w.steps("web")) > 6 })
		w.with(func() { s.use = conntrack.Use{Listening: true, Connections: 1} })
		w.forgetLog()
		w.namespace("shop", "")
		eventually(t, "un-hooked", func() bool { return w.countStep("web", "unput") > 0 })
		if diff := cmp.Diff([]string{"annotate", "unhook", "names-out", "del", "unput"}, w.steps("web")[:5]); diff != "" {
			t.Error(diff)
		}
		never(t, "what carries the connection goes", func() bool { return w.countStep("web", "remove") > 0 })
		eventually(t, "half-closed connections are held while draining", func() bool { return w.countStep("web", "hold") > 0 })
		w.with(func() { s.use = conntrack.Use{} })
		eventually(t, "nothing is left", func() bool { return w.isOutside("web") })
	}
}

func (w *world) countStep(uid, step string) int {
	n := 0
	for _, s := range w.steps(uid) {
		if s == step {
			n++
		}
	}
	return n
}

// TestReEnrolmentWhileDraining takes the pod back without removing what carries its connections.
func TestReEnrolmentWhileDraining(t *testing.T) {
	w := newWorld(t)
	w.start().ready(t)
	w.connect()
	s := w.running("web", "10.0.0.7", label("ambient"))
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	w.with(func() { s.use.Connections = 1 })
	w.update("web", label("none"))
	eventually(t, "draining", func() bool { return w.redirection("web") == "" && !w.serves("web") })
	w.update("web", label("ambient"))
	eventually(t, "captured again", func() bool { return w.isCaptured("web") })
	if w.countStep("web", "remove") > 0 {
		t.Errorf("connections were cut: %v", w.steps("web"))
	}
}

// TestDrainLimit: connections that never end do not keep the rules for ever.
func TestDrainLimit(t *testing.T) {
	w := newWorld(t)
	w.timing.DrainLimit = 50 * time.Millisecond
	w.start().ready(t)
	w.connect()
	s := w.running("web", "10.0.0.7", label("ambient"))
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	w.with(func() { s.use.Connections = 1 })
	w.update("web", label("none"))
	eventually(t, "nothing is left", func() bool { return w.isOutside("web") })
}

func TestNeverCaptured(t *testing.T) {
	w := newWorld(t)
	w.namespace("kube-system", "ambient")
	w.namespace("shop", "ambient")
	w.start().ready(t)
	w.connect()
	w.running("excluded", "10.0.0.1", func(p *corev1.Pod) { p.Namespace = "kube-system" }, label("ambient"))
	w.running("sidecar", "10.0.0.2", annotation(api.AnnotationSidecarStatus, "{}"))
	w.running("ended", "10.0.0.3", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	w.running("elsewhere", "10.0.0.4", func(p *corev1.Pod) { p.Spec.NodeName = "node2" })
	w.running("host", "10.0.0.5", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	w.running("foreign", "10.0.0.6", func(*corev1.Pod) { w.with(func() { w.pods["foreign"].foreign = true }) })
	w.running("web", "10.0.0.7")
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	never(t, "others are hooked", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for name, s := range w.pods {
			if name != "web" && (s.hooked || s.filled) {
				return true
			}
		}
		return false
	})
	eventually(t, "the foreign one says why", func() bool { return w.said("CaptureFailed", "sidecar") })
}

// said looks for an event.
func (w *world) said(words ...string) bool {
	for {
		select {
		case e := <-w.events.Events:
			all := true
			for _, word := range words {
				all = all && strings.Contains(e, word)
			}
			if all {
				return true
			}
		default:
			return false
		}
	}
}

func TestEndedPods(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	r := w.start().ready(t)
	w.connect()
	for _, name := range []string{"job", "deleted"} {
		w.running(name, "10.0.0."+fmt.Sprint(len(name)))
		eventually(t, "captured", func() bool { return w.isCaptured(name) })
	}
	w.update("job", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	w.delete("deleted")
	eventually(t, "nobody serves them", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.proxy.Serves()) == 0 && len(w.sets) == 0
	})
	if pods := r.server.Pods(); len(pods) > 0 {
		t.Errorf("known: %v", pods)
	}
}

func TestMalformedAnnotation(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start().ready(t)
	w.connect()
	w.running("bad", "10.0.0.1", annotation(api.AnnotationBypassInbound, "perhaps"))
	w.running("good", "10.0.0.2")
	for _, name := range []string{"bad", "good"} {
		eventually(t, name+" captured", func() bool { return w.isCaptured(name) })
	}
	eventually(t, "it is said on the pod", func() bool { return w.said("UnknownValue", "perhaps") })
	w.update("good", annotation(api.AnnotationRedirection, "maybe"))
	eventually(t, "a status that somebody changed is put right", func() bool { return w.isCaptured("good") })
}

func (r *running) release(t *testing.T) Report {
	t.Helper()
	rec := httptest.NewRecorder()
	r.Health().ServeHTTP(rec, httptest.NewRequest("GET", "/release", nil))
	var out Report
	if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestReleaseAllPods(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	r := w.start().ready(t)
	w.connect()
	for _, name := range []string{"busy", "idle"} {
		w.running(name, "10.0.0."+fmt.Sprint(len(name)+len(name)%2))
		eventually(t, "captured", func() bool { return w.isCaptured(name) })
	}
	if diff := cmp.Diff(Report{Node: "node1", Phase: "serving"}, r.release(t)); diff != "" {
		t.Error(diff)
	}
	w.with(func() { w.pods["busy"].use = conntrack.Use{Connections: 7} })
	w.order(Drain)
	eventually(t, "one pod drains", func() bool {
		return cmp.Equal(r.release(t), Report{Node: "node1", Phase: "draining", Pods: 1, Connections: 7})
	})
	w.pod("starts")
	if err := w.plugin("starts", w.sandbox("starts", false)); err != nil || len(w.steps("starts")) > 0 {
		t.Errorf("a pod that starts meanwhile: %v, %v", err, w.steps("starts"))
	}
	never(t, "the plugin goes before the last pod", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.entry || !w.host
	})
	w.failing("uninstall", 2)
	w.order(Now)
	eventually(t, "clean", func() bool { return r.release(t).Phase == "clean" })
	w.with(func() {
		if w.entry || w.host || w.pods["busy"].filled {
			t.Errorf("left: entry %v, host %v, rules %v", w.entry, w.host, w.pods["busy"].filled)
		}
	})
	w.order(Serve)
	for _, name := range []string{"busy", "idle"} {
		eventually(t, "captured again", func() bool { return w.isCaptured(name) })
	}
	eventually(t, "installed again", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.entry && w.host
	})
}

// TestDaemonSetDeleted: the agent's last act is to clean the node, whether it still saw the deletion or asks for it.
func TestDaemonSetDeleted(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	r := w.start().ready(t)
	w.connect()
	s := w.running("web", "10.0.0.7")
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	w.with(func() { s.use.Connections = 1 })
	w.daemonSetGone()
	r.stop(t)
	w.with(func() { w.proxy = nil })
	if !w.isOutside("web") || w.entry || w.host {
		t.Errorf("left: %+v, annotation %q, entry %v, host %v", s, w.redirection("web"), w.entry, w.host)
	}
}

// TestDaemonSetMadeAnew: what the API says at the end counts, not that the deletion was seen: the next DaemonSet's agent may be at work on
// the node already. Where the API says nothing, as to an agent whose rights went with the mesh, what was seen counts.
func TestDaemonSetMadeAnew(t *testing.T) {
	for _, tt := range []struct {
		name  string
		deny  bool
		clean bool
	}{{"it is there again", false, false}, {"the agent has no rights", true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.namespace("shop", "ambient")
			r := w.start().ready(t)
			w.connect()
			s := w.running("web", "10.0.0.7")
			eventually(t, "captured", func() bool { return w.isCaptured("web") })
			if tt.deny {
				w.client.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
					return true, nil, apierrors.NewForbidden(appsv1.Resource("daemonsets"), api.NodeAgent, errors.New("no"))
				})
			}
			r.mail.post(orderChanged{gone: true})
			for range 2 { // the loop has taken that when it has gone round
				last := r.beat.Load()
				eventually(t, "the loop goes round", func() bool { return r.beat.Load() != last })
			}
			r.stop(t)
			w.with(func() {
				if there := s.hooked && w.entry && w.host; there == tt.clean {
					t.Errorf("left %+v, entry %v, host %v; want the node cleaned: %v", s, w.entry, w.host, tt.clean)
				}
			})
		})
	}
}

// TestStopLeavesEverything, also in the middle of a start: the plugin then looks for itself, and refuses.
func TestStopLeavesEverything(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	r := w.start().ready(t)
	w.pod("web")
	answered := make(chan error, 1)
	s := w.sandbox("web", false)
	go func() { answered <- w.plugin("web", s) }()
	eventually(t, "it waits for a proxy", func() bool { return w.countStep("web", "add") == 1 })
	r.stop(t)
	if err := <-answered; !errors.Is(err, agentapi.ErrNoAnswer) {
		t.Errorf("answered %v", err)
	}
	w.with(func() {
		if s.filled || s.hooked || !w.entry || !w.host {
			t.Errorf("left %+v, entry %v, host %v", s, w.entry, w.host)
		}
	})
}

// TestStaleInformer: a pod that the API wants captured is started so, though the agent has not heard of the label yet, and
// is not released again by what it has heard.
func TestStaleInformer(t *testing.T) {
	w := newWorld(t)
	w.timing.StartSettle = 10 * time.Second
	w.start().ready(t)
	w.connect()
	w.pod("web")
	w.client.PrependReactor("get", "namespaces", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{api.LabelDataplaneMode: "ambient"}}}, nil
	})
	if err := w.plugin("web", w.sandbox("web", false), "10.0.0.7"); err != nil || !w.isCaptured("web") {
		t.Fatal(err)
	}
	never(t, "released", func() bool { return !w.isCaptured("web") })
	w.namespace("shop", "ambient") // it hears of it
	never(t, "released", func() bool { return !w.isCaptured("web") })
}

func TestHealth(t *testing.T) {
	w := newWorld(t)
	block := make(chan struct{})
	w.client.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { <-block; return false, nil, nil })
	r := w.start()
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		r.Health().ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		return rec.Code, rec.Body.String()
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz while starting: %d", code)
	}
	if code, text := get("/readyz"); code != 503 || !strings.Contains(text, "starting") {
		t.Errorf("readyz while starting: %d %s", code, text)
	}
	close(block)
	r.ready(t)
	eventually(t, "ready", func() bool { code, _ := get("/readyz"); return code == 200 })
	w.with(func() { w.entry = false })
	if code, text := get("/readyz"); code != 503 || !strings.Contains(text, "not installed") {
		t.Errorf("readyz without the plugin: %d %s", code, text)
	}
	r.beat.Store(time.Now().Add(-time.Hour).UnixNano())
	if code, _ := get("/healthz"); code != 200 && code != 503 {
		t.Errorf("healthz: %d", code)
	}
}

func TestPlan(t *testing.T) {
	now := time.Now()
	later, before := now.Add(time.Minute), now.Add(-time.Minute)
	yes := func(s *podState) { s.decided, s.decision.Capture = true, true }
	no := func(s *podState) { s.decided = true }
	ip := Pod{IPs: addrs("10.0.0.1")}
	enabled := Pod{IPs: addrs("10.0.0.1"), Redirection: api.RedirectionEnabled}
	for name, test := range map[string]struct {
		state podState
		wish  func(*podState)
		order Order
		want  action
	}{
		"new":                           {podState{pod: ip}, yes, Serve, enrol},
		"no sandbox yet":                {podState{}, yes, Serve, nothing},
		"captured":                      {podState{pod: enabled, phase: captured, verifyAt: later, holdAt: later}, yes, Serve, nothing},
		"to be verified":                {podState{pod: enabled, phase: captured, verifyAt: before}, yes, Serve, enrol},
		"to be held":                    {podState{pod: enabled, phase: captured, verifyAt: later, holdAt: before}, yes, Serve, hold},
		"annotation lost":               {podState{pod: ip, phase: captured, verifyAt: later}, yes, Serve, enrol},
		"after a failure":               {podState{pod: ip, due: later}, yes, Serve, nothing},
		"namespace unknown":             {podState{pod: enabled, phase: captured}, func(*podState) {}, Serve, nothing},
		"namespace unknown, all go":     {podState{pod: enabled, phase: captured}, func(*podState) {}, Drain, withdraw},
		"not wanted":                    {podState{pod: enabled, phase: captured}, no, Serve, withdraw},
		"not wanted, not looked at":     {podState{pod: ip}, no, Serve, withdraw},
		"not wanted, draining":          {podState{pod: ip, phase: draining}, no, Serve, drain},
		"wanted again":                  {podState{pod: ip, phase: draining}, yes, Serve, enrol},
		"outside":                       {podState{pod: ip, phase: outside}, no, Serve, nothing},
		"outside, says otherwise":       {podState{pod: enabled, phase: outside}, no, Serve, withdraw},
		"says so before it has started": {podState{pod: Pod{Redirection: api.RedirectionEnabled}}, no, Serve, withdraw},
		"ordered to drain":              {podState{pod: enabled, phase: captured, verifyAt: later}, yes, Drain, withdraw},
		"unseen":                        {podState{pod: enabled, phase: captured, verifyAt: later, unseenAt: before}, yes, Serve, confirm},
		"deleted":                       {podState{pod: enabled, phase: captured, deleted: true, due: later}, yes, Serve, forget},
	} {
		t.Run(name, func(t *testing.T) {
			test.wish(&test.state)
			test.state.seen = name != "unseen"
			if got := test.state.plan(now, test.order); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// TestMessagesNameTheRemedy: what a pod that must not start shows.
func TestMessagesNameTheRemedy(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	r := w.start().ready(t)
	w.pod("web")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := r.admit(ctx, agentapi.AddRequest{Netns: w.sandbox("web", false).file, PodName: "web", PodNamespace: "shop"})
	if err == nil || !strings.Contains(err.Error(), "no node proxy is connected") || !strings.Contains(err.Error(), "DaemonSet istio-system/ztunnel") {
		t.Errorf("without a proxy: %v", err)
	}
	w.connect().Refuse("web", "no certificate")
	err = w.plugin("web", w.sandbox("web", false))
	if err == nil || !strings.Contains(err.Error(), "no certificate") || !strings.Contains(err.Error(), "logs daemonset/ztunnel") {
		t.Errorf("refused: %v", err)
	}
}
