package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/zds"
	"github.com/ambit-mesh/ambit/cni/zds/zdstest"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// patience bounds every wait for what must come.
const patience = 30 * time.Second

// world is a node with pods and an API, and what happened there. It outlives agents: a test stops one and starts the next.
type world struct {
	t      *testing.T
	dir    string
	client *fake.Clientset
	events *record.FakeRecorder
	timing Timings
	depot  *handover.Depot // nil for none

	mu    sync.Mutex // guards the fields below
	log   []string
	fail  map[string]int // step -> how many times it fails, -1 for ever
	pods  map[string]*sandbox
	sets  map[netip.Addr]string
	host  bool // the host's chain and sets are there
	entry bool // the plugin is installed
	// broken collects what must never be.
	broken []string
	proxy  *zdstest.Proxy
	dns    bool                   // the proxy takes name queries
	halt   func(step, uid string) // called before every step
}

// sandbox is the network namespace of a pod: a file stands for it, by its inode.
type sandbox struct {
	uid     string
	file    string
	running bool // processes of the pod run there
	filled  bool
	hooked  bool
	right   bool // as the set says
	foreign bool
	exempt  bool
	names   bool // its rules redirect name queries
	use     conntrack.Use
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{
		t: t, dir: dir, client: fake.NewClientset(), events: record.NewFakeRecorder(1000),
		fail: map[string]int{}, pods: map[string]*sandbox{}, sets: map[netip.Addr]string{},
		timing: Timings{Tick: 5 * time.Millisecond, Verify: 50 * time.Millisecond, Hold: time.Hour, Names: 10 * time.Millisecond, Host: 20 * time.Millisecond,
			DrainLook: 10 * time.Millisecond, RetryMin: 5 * time.Millisecond, RetryMax: 20 * time.Millisecond,
			StartSettle: 20 * time.Millisecond, Grace: 30 * time.Millisecond, Unseen: time.Second, Cleanup: patience},
	}
	w.create(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.NodeAgent}})
	w.namespace("shop", "")
	t.Cleanup(func() {
		for _, b := range w.broken {
			t.Error(b)
		}
	})
	return w
}

func (w *world) create(o any) {
	w.t.Helper()
	var err error
	ctx := context.Background()
	switch o := o.(type) {
	case *corev1.Pod:
		_, err = w.client.CoreV1().Pods(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	case *corev1.Namespace:
		_, err = w.client.CoreV1().Namespaces().Create(ctx, o, metav1.CreateOptions{})
	case *appsv1.DaemonSet:
		_, err = w.client.AppsV1().DaemonSets(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// namespace makes or changes a namespace; an empty mode means no label.
func (w *world) namespace(name, mode string) {
	w.t.Helper()
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if mode != "" {
		n.Labels = map[string]string{api.LabelDataplaneMode: mode}
	}
	if _, err := w.client.CoreV1().Namespaces().Update(context.Background(), n, metav1.UpdateOptions{}); err != nil {
		w.create(n)
	}
}

// pod makes a pod of the node with the given name, which is its UID, too. It has no sandbox yet.
func (w *world) pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{NodeName: "node1", ServiceAccountName: "sa"},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, f := range change {
		f(p)
	}
	w.create(p)
	return p
}

func label(mode string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{api.LabelDataplaneMode: mode} }
}

func annotation(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[key] = value
	}
}

// sandbox makes a network namespace for the pod; the path is what a runtime would tell the plugin.
func (w *world) sandbox(uid string, running bool) *sandbox {
	w.t.Helper()
	f, err := os.CreateTemp(w.dir, "netns")
	if err != nil {
		w.t.Fatal(err)
	}
	f.Close()
	s := &sandbox{uid: uid, file: f.Name(), running: running}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pods[uid] = s
	return s
}

// running makes a pod that runs with a sandbox of its own and the address.
func (w *world) running(name, addr string, change ...func(*corev1.Pod)) *sandbox {
	w.t.Helper()
	s := w.sandbox(name, true)
	w.pod(name, append([]func(*corev1.Pod){func(p *corev1.Pod) {
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: addr}}}
	}}, change...)...)
	return s
}

func (w *world) update(name string, change func(*corev1.Pod)) {
	w.t.Helper()
	ctx := context.Background()
	p, err := w.client.CoreV1().Pods("shop").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	change(p)
	if _, err := w.client.CoreV1().Pods("shop").Update(ctx, p, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(name string) {
	w.t.Helper()
	if err := w.client.CoreV1().Pods("shop").Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) redirection(name string) string {
	p, err := w.client.CoreV1().Pods("shop").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return "gone"
	}
	return p.Annotations[api.AnnotationRedirection]
}

// order changes the annotation on the agent's DaemonSet.
func (w *world) order(o Order) {
	w.t.Helper()
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.NodeAgent}}
	if o != Serve {
		d.Annotations = map[string]string{AnnotationRelease: string(o)}
	}
	if _, err := w.client.AppsV1().DaemonSets(d.Namespace).Update(context.Background(), d, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) daemonSetGone() {
	w.t.Helper()
	if err := w.client.AppsV1().DaemonSets(api.DefaultNamespace).Delete(context.Background(), api.NodeAgent, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// step logs what is done to a pod, or fails as the test wants.
func (w *world) step(name, uid string) error {
	w.mu.Lock()
	halt := w.halt
	w.mu.Unlock()
	if halt != nil {
		halt(name, uid)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.fail[name]; n != 0 {
		if n > 0 {
			w.fail[name]--
		}
		return fmt.Errorf("%s fails as the test wants", name)
	}
	w.log = append(w.log, name+" "+uid)
	return nil
}

func (w *world) failing(step string, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[step] = times
}

// steps are what was done to one pod.
func (w *world) steps(uid string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, l := range w.log {
		if step, of, _ := strings.Cut(l, " "); of == uid {
			out = append(out, step)
		}
	}
	return out
}

func (w *world) forgetLog() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = nil
}

// with reads or changes the world.
func (w *world) with(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// connect makes the node proxy, in place of the one before.
func (w *world) connect() *zdstest.Proxy {
	w.t.Helper()
	w.with(func() { w.proxy = zdstest.Connect(w.t, filepath.Join(w.dir, "zds")) }) // who looks for it meanwhile waits
	return w.proxy
}

func (w *world) serves(uid string) bool {
	return w.proxy != nil && slices.Contains(w.proxy.Serves(), uid)
}

// proxies is the real server, with every call a step.
type proxies struct {
	*zds.Server
	w *world
}

func (p proxies) Add(ctx context.Context, pod zds.Pod) error {
	if err := p.w.step("add", pod.UID); err != nil {
		return err
	}
	return p.Server.Add(ctx, pod)
}

func (p proxies) Delete(ctx context.Context, uid string) error {
	if err := p.w.step("del", uid); err != nil {
		return err
	}
	return p.Server.Delete(ctx, uid)
}

// cluster is the real one, with every write a step.
type cluster struct {
	Cluster
	w *world
}

func (c cluster) Annotate(ctx context.Context, p Pod, value string) error {
	if err := c.w.step(strings.TrimSuffix("annotate="+value, "="), p.UID); err != nil {
		return err
	}
	return c.Cluster.Annotate(ctx, p, value)
}

// agent starts an agent on the world.
type running struct {
	*Agent
	server *zds.Server
	cancel context.CancelFunc
	done   chan error
}

func (w *world) start() *running {
	w.t.Helper()
	r := &running{done: make(chan error, 1)}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	r.server = zds.NewServer(zds.Config{Logger: log, Observe: func(e zds.Event) { r.ProxyEvent(e) }})
	r.Agent = New(Config{
		NodeName: "node1", Namespace: api.DefaultNamespace, ExcludeNamespaces: []string{"kube-system"}, IPv6: true, DNS: true, RunDir: w.dir, ZDSSocket: filepath.Join(w.dir, "zds"),
		Cluster: cluster{Cluster{Client: w.client, NodeName: "node1", Namespace: api.DefaultNamespace, DaemonSet: api.NodeAgent, Events: w.events}, w},
		Kernel:  kernel{w}, Connections: connections{w}, Probes: probeSets{w}, Node: node{w}, Proxies: proxies{r.server, w}, Depot: w.depot,
		Installation: installation{w}, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: log, Timings: w.timing,
	})
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() { r.done <- r.Run(ctx) }()
	w.t.Cleanup(func() { r.stop(w.t) })
	return r
}

// stop ends the agent as SIGTERM does, and waits for it.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if r.done == nil {
		return
	}
	select {
	case err := <-r.done:
		if err != nil && !errors.Is(err, errNotSynced) {
			t.Errorf("agent: %v", err)
		}
	case <-time.After(patience):
		t.Errorf("agent did not end within %v", patience)
	}
	r.done = nil
	r.server.Close()
}

// ready waits until the agent answers.
func (r *running) ready(t *testing.T) *running {
	t.Helper()
	eventually(t, "agent serves", func() bool { return r.serving.Load() })
	return r
}

// plugin asks the agent to start the pod in the sandbox, as the plugin does.
func (w *world) plugin(name string, s *sandbox, addrs ...string) error {
	r := agentapi.AddRequest{Netns: s.file, PodName: name, PodNamespace: "shop", PodUID: name}
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		r.IPs = append(r.IPs, agentapi.IP{})
		r.IPs[len(r.IPs)-1].Address.IP = addr.AsSlice()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return agentapi.Add(ctx, filepath.Join(w.dir, api.AgentSocket), r)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !condition(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// never checks that something does not come about while the agent goes round some times.
func never(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for enough := time.After(100 * time.Millisecond); ; {
		if condition() {
			t.Fatalf("must not be: %s", what)
		}
		select {
		case <-tick.C:
		case <-enough:
			return
		}
	}
}

// isCaptured says whether all of capture is in place.
func (w *world) isCaptured(name string) bool {
	annotated := w.redirection(name) == api.RedirectionEnabled
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.pods[name]
	return annotated && s.filled && s.hooked && s.right && w.serves(name)
}

// isOutside says whether nothing is left.
func (w *world) isOutside(name string) bool {
	value := w.redirection(name)
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.pods[name]
	for _, uid := range w.sets {
		if uid == name {
			return false
		}
	}
	return (value == "" || value == "gone") && !s.filled && !s.hooked && !w.serves(name)
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}
