package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/agentapi"
)

// TestEveryStepMayFail: live enrolment and un-enrolment go on until they have succeeded. What must hold at every moment,
// the fake kernel checks.
func TestEveryStepMayFail(t *testing.T) {
	for _, step := range []string{"inspect", "fill", "add", "put", "exempt", "hook", "annotate=enabled"} {
		t.Run("enrol, "+step, func(t *testing.T) {
			w := newWorld(t)
			w.start().ready(t)
			w.connect()
			s := w.running("web", "10.0.0.7")
			w.failing(step, -1)
			w.namespace("shop", "ambient")
			never(t, "captured, or annotated so", func() bool { return w.redirection("web") != "" })
			if step != "annotate=enabled" {
				w.with(func() {
					if s.hooked {
						t.Error("hooked although a step before it fails")
					}
				})
			}
			w.failing(step, 0)
			eventually(t, "captured", func() bool { return w.isCaptured("web") })
		})
		t.Run("change of mind, "+step, func(t *testing.T) {
			w := newWorld(t)
			w.start().ready(t)
			w.connect()
			w.running("web", "10.0.0.7")
			w.failing(step, -1)
			w.namespace("shop", "ambient")
			never(t, "annotated", func() bool { return w.redirection("web") != "" })
			w.namespace("shop", "")
			if step == "inspect" || step == "add" {
				w.failing(step, 0)
			}
			eventually(t, "nothing is left", func() bool { return w.isOutside("web") })
		})
	}
	for _, step := range []string{"annotate", "unhook", "del", "unput", "remove"} {
		t.Run("withdraw, "+step, func(t *testing.T) {
			w := newWorld(t)
			w.start().ready(t)
			w.connect()
			s := w.running("web", "10.0.0.7", label("ambient"))
			eventually(t, "captured", func() bool { return w.isCaptured("web") })
			w.failing(step, -1)
			w.update("web", label("none"))
			never(t, "hooked without a proxy", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return s.hooked && !w.serves("web")
			})
			w.failing(step, 0)
			eventually(t, "nothing is left", func() bool { return w.isOutside("web") })
		})
	}
}

// TestAgentDiesAtEveryStep: the agent is stopped as a step begins, a new one starts on what is there and ends right,
// whatever is wanted by then.
func TestAgentDiesAtEveryStep(t *testing.T) {
	enrolment := []string{"fill", "add", "put", "exempt", "hook", "annotate=enabled"}
	withdrawal := []string{"annotate", "unhook", "del", "unput", "remove"}
	for _, test := range []struct {
		name   string
		before string // the namespace's mode
		during string // after a change to which the agent dies
		steps  []string
	}{{"enrol", "", "ambient", enrolment}, {"withdraw", "ambient", "", withdrawal}} {
		for _, step := range test.steps {
			for _, then := range []string{"ambient", ""} {
				t.Run(fmt.Sprintf("%s, %s, then %q", test.name, step, then), func(t *testing.T) {
					t.Parallel()
					w := newWorld(t)
					w.namespace("shop", test.before)
					first := w.start().ready(t)
					w.connect()
					w.running("web", "10.0.0.7")
					if test.before != "" {
						eventually(t, "captured", func() bool { return w.isCaptured("web") })
					}
					died := make(chan struct{})
					var once sync.Once
					w.with(func() {
						w.halt = func(name, _ string) {
							if name == step {
								once.Do(func() { first.cancel(); close(died) })
							}
						}
					})
					w.failing(step, -1) // the step itself does not come about
					w.namespace("shop", test.during)
					select {
					case <-died:
					case <-time.After(patience):
						t.Fatal("the step did not come")
					}
					first.stop(t)
					w.with(func() { w.halt = nil })
					w.failing(step, 0)
					w.namespace("shop", then)
					w.start().ready(t)
					w.connect()
					if then == "ambient" {
						eventually(t, "captured", func() bool { return w.isCaptured("web") })
						return
					}
					eventually(t, "nothing is left", func() bool { return w.isOutside("web") })
				})
			}
		}
	}
}

// TestRestart: running pods do not notice, and the new agent's snapshot is complete.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	first := w.start().ready(t)
	w.connect()
	for _, name := range []string{"a", "b", "c"} {
		w.running(name, "10.0.0."+fmt.Sprint(name[0]-'a'+1))
		eventually(t, "captured", func() bool { return w.isCaptured(name) })
	}
	first.stop(t)
	w.with(func() {
		if !w.entry || !w.host || len(w.sets) != 3 {
			t.Errorf("the agent did not leave the node as it was: %v %v %v", w.entry, w.host, w.sets)
		}
		w.pods["b"].right = false // rules were changed meanwhile
		w.pods["c"].filled, w.pods["c"].hooked, w.pods["c"].right, w.pods["c"].exempt = false, false, false, false
	})
	w.forgetLog()
	w.delete("a")
	w.with(func() { w.pods["a"].running = false })
	w.pod("gone", annotation(api.AnnotationRedirection, "enabled"), func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.9"}} })
	w.start().ready(t)
	p := w.connect()
	for _, name := range []string{"b", "c"} {
		eventually(t, name+" captured", func() bool { return w.isCaptured(name) })
	}
	eventually(t, "the proxy has the snapshot", func() bool { return len(p.Log()) >= 4 })
	if diff := cmp.Diff([]string{"add b shop/b sa", "add c shop/c sa", "keep gone", "snapshot sent"}, p.Log()[:4]); diff != "" {
		t.Error(diff)
	}
	// Before the proxy came it was tried, perhaps for so long that the pod was pending.
	steps := slices.DeleteFunc(w.steps("c"), func(s string) bool { return strings.HasPrefix(s, "annotate") })
	if diff := cmp.Diff([]string{"fill", "add", "put", "exempt", "hook"}, slices.Compact(steps)[:5]); diff != "" {
		t.Error(diff)
	}
	eventually(t, "the ended pod's exemption goes", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.sets) == 2
	})
	eventually(t, "a pod that does not run says no longer that it is captured", func() bool { return w.redirection("gone") == api.RedirectionPending })
}

// TestLeftoversAreFound: of a pod that does not want to be captured and says nothing, and of one that says so and is not.
func TestLeftoversAreFound(t *testing.T) {
	w := newWorld(t)
	hooked := w.running("hooked", "10.0.0.1")
	hooked.filled, hooked.hooked, hooked.right = true, true, true
	drained := w.running("drained", "10.0.0.2")
	drained.filled = true
	w.running("lies", "10.0.0.3", annotation(api.AnnotationRedirection, "enabled"))
	host := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	w.running("host", "192.0.2.1", host, annotation(api.AnnotationRedirection, "enabled"), label("ambient")).running = false
	w.running("host-quiet", "192.0.2.1", host, label("ambient"))
	w.running("excluded", "10.0.0.4")
	w.start().ready(t)
	w.connect()
	for _, name := range []string{"hooked", "drained", "lies", "host"} {
		eventually(t, "nothing is left of "+name, func() bool { return w.isOutside(name) })
	}
	never(t, "a pod of the host's network is touched", func() bool { return len(w.steps("host-quiet")) > 0 })
}

// TestProxyGoesAndComes: a captured pod stays captured, says that it is not proved to be served, and is again.
func TestProxyGoesAndComes(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	r := w.start().ready(t)
	p := w.connect()
	s := w.running("web", "10.0.0.7")
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	p.Close()
	eventually(t, "gone", func() bool { return r.server.Connected() == 0 })
	eventually(t, "pending", func() bool { return w.redirection("web") == api.RedirectionPending })
	w.with(func() {
		if !s.hooked {
			t.Error("un-hooked, so its traffic is plain")
		}
	})
	eventually(t, "it is said on the pod", func() bool { return w.said("CaptureFailed") })
	w.connect()
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
}

func TestProxyRefuses(t *testing.T) {
	w := newWorld(t)
	w.start().ready(t)
	p := w.connect()
	p.Refuse("web", "no certificate")
	w.running("web", "10.0.0.7")
	w.running("other", "10.0.0.8")
	w.namespace("shop", "ambient")
	eventually(t, "the other is captured", func() bool { return w.isCaptured("other") })
	eventually(t, "the cause is on the pod", func() bool { return w.said("CaptureFailed", "no certificate") })
	w.with(func() {
		if w.pods["web"].hooked {
			t.Error("hooked though no proxy serves it")
		}
	})
	if v := w.redirection("web"); v != "" {
		t.Errorf("annotated %q: peers would tunnel to nobody", v)
	}
	p.Refuse("web", "")
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
}

// TestCannotBeRepaired: somebody takes a captured pod's rules away and nothing puts them back. The pod keeps an annotation, so
// that peers do not speak to it in plain, but one that does not say that it is captured; why is said on it. Once the repair
// succeeds it says again that it is captured.
func TestCannotBeRepaired(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start().ready(t)
	w.connect()
	s := w.running("web", "10.0.0.7")
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	w.failing("hook", -1)
	w.with(func() { s.hooked, s.right = false, false })
	eventually(t, "pending", func() bool {
		if w.redirection("web") == "" {
			t.Fatal("without the annotation: peers speak to it in plain")
		}
		return w.redirection("web") == api.RedirectionPending
	})
	eventually(t, "the cause is on the pod", func() bool { return w.said("CapturePending", "hook fails") })
	w.failing("hook", 0)
	eventually(t, "captured again", func() bool { return w.isCaptured("web") })
}

// TestPodDeletedInBetween: in the middle of its enrolment, its start and its withdrawal.
func TestPodDeletedInBetween(t *testing.T) {
	for _, step := range []string{"fill", "add", "exempt", "hook", "annotate=enabled", "unhook", "del"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			r := w.start().ready(t)
			w.connect()
			w.running("web", "10.0.0.7", label("none"))
			mode := "ambient"
			if step == "unhook" || step == "del" {
				w.update("web", label("ambient"))
				eventually(t, "captured", func() bool { return w.isCaptured("web") })
				mode = "none"
			}
			var once sync.Once
			w.with(func() {
				w.halt = func(name, _ string) {
					if name == step {
						once.Do(func() { w.delete("web") })
					}
				}
			})
			w.update("web", label(mode))
			eventually(t, "deleted", func() bool { return w.redirection("web") == "gone" })
			eventually(t, "nobody serves it", func() bool {
				return len(r.server.Pods()) == 0 && len(w.proxy.Serves()) == 0
			})
		})
	}
}

// TestAPIAway: what needs the API waits for it, what was started is not half-way forgotten.
func TestAPIAway(t *testing.T) {
	w := newWorld(t)
	w.start().ready(t)
	w.connect()
	s := w.running("web", "10.0.0.7", label("ambient"))
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	away := true
	var mu sync.Mutex
	w.client.PrependReactor("*", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if away && (a.GetVerb() == "patch" || a.GetVerb() == "get") {
			return true, nil, errors.New("connection refused")
		}
		return false, nil, nil
	})
	w.pod("starts", label("ambient"))
	if err := w.plugin("starts", w.sandbox("starts", false)); !errors.Is(err, agentapi.ErrNoAnswer) {
		t.Errorf("a start without the API: %v", err)
	}
	n := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "web", Labels: map[string]string{api.LabelDataplaneMode: "none"},
		Annotations: map[string]string{api.AnnotationRedirection: "enabled"}},
		Spec: corev1.PodSpec{NodeName: "node1", ServiceAccountName: "sa"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}}}}
	if _, err := w.client.CoreV1().Pods("shop").Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	never(t, "un-hooked while peers still tunnel", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !s.hooked || !w.serves("web")
	})
	mu.Lock()
	away = false
	mu.Unlock()
	eventually(t, "nothing is left", func() bool { return w.isOutside("web") })
}

// TestSlowPods: pods on which work takes long keep neither others nor the plugin waiting, and not too many are worked on at
// once.
func TestSlowPods(t *testing.T) {
	w := newWorld(t)
	w.timing.Verify = time.Hour
	w.start().ready(t)
	w.connect()
	const pods = 3 * workers
	for i := range pods {
		w.running(fmt.Sprintf("slow%d", i), fmt.Sprintf("10.0.1.%d", i))
	}
	goOn := make(chan struct{})
	slow, most := 0, 0
	w.with(func() {
		w.halt = func(step, uid string) {
			if step != "fill" || !strings.HasPrefix(uid, "slow") {
				return
			}
			w.with(func() { slow++; most = max(most, slow) })
			<-goOn
			w.with(func() { slow-- })
		}
	})
	at := func(n int) func() bool {
		return func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slow == n
		}
	}
	w.namespace("shop", "ambient")
	eventually(t, "several are worked on at once", at(workers))
	w.pod("starts")
	if err := w.plugin("starts", w.sandbox("starts", false), "10.0.2.1"); err != nil || !w.isCaptured("starts") {
		t.Errorf("a pod that starts meanwhile: %v", err)
	}
	close(goOn)
	for i := range pods {
		eventually(t, "captured", func() bool { return w.isCaptured(fmt.Sprintf("slow%d", i)) })
	}
	if most > workers {
		t.Errorf("%d at once, want at most %d", most, workers)
	}
}

// TestSandboxReplacedBehindOurBack: the pod's sandbox was made anew while the plugin was not in the node's configuration.
func TestSandboxReplacedBehindOurBack(t *testing.T) {
	w := newWorld(t)
	w.timing.Verify = time.Hour
	w.start().ready(t)
	w.connect()
	w.running("web", "10.0.0.7", label("ambient"))
	eventually(t, "captured", func() bool { return w.isCaptured("web") })
	w.sandbox("web", true)
	eventually(t, "captured again", func() bool { return w.isCaptured("web") })
}

// TestInformerNeverTells of a pod that has started: it stays served as long as it exists, and is forgotten when it does not.
func TestInformerNeverTells(t *testing.T) {
	w := newWorld(t)
	w.timing.Unseen = 20 * time.Millisecond
	w.namespace("shop", "ambient")
	w.start().ready(t)
	w.connect()
	exists := true
	w.client.PrependReactor("get", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if a.(clienttesting.GetAction).GetName() != "web" {
			return false, nil, nil
		}
		if !exists {
			return true, nil, apierrors.NewNotFound(corev1.Resource("pods"), "web")
		}
		return true, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "web"}}, nil
	})
	w.client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, &corev1.Pod{}, nil })
	if err := w.plugin("web", w.sandbox("web", false), "10.0.0.7"); err != nil {
		t.Fatal(err)
	}
	never(t, "it is not served", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return !w.serves("web") })
	w.with(func() { exists = false })
	eventually(t, "it is forgotten", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return !w.serves("web") && len(w.sets) == 0 })
}
