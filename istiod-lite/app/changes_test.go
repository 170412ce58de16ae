package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/xds"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	meshxds "github.com/ambit-mesh/ambit/mesh/xds"
)

// flow is the whole way of a change, in process: a watch of pods, the control plane, gRPC, and a node proxy's libraries.
type flow struct {
	testing.TB
	watch     *watch.FakeWatcher // has no buffer: who posts waits until it is taken
	debug     string
	directory *directory.Directory

	mu        sync.Mutex // guards the fields below
	changed   chan struct{}
	open      chan struct{}  // closed while the proxy takes pushes
	waiting   bool           // a push waits until it is
	states    int            // pods' states that came
	revisions map[string]int // the last, by resource
	at        map[string]time.Time
	backwards string // the first resource that went back
}

// startFlow starts everything with that many pods in the cluster, and returns when the proxy knows them.
func startFlow(tb testing.TB, pods int) *flow {
	f := &flow{TB: tb, watch: watch.NewFake(), changed: make(chan struct{}), open: make(chan struct{}), revisions: map[string]int{}, at: map[string]time.Time{}}
	close(f.open)
	var objects []runtime.Object
	for i := range pods {
		objects = append(objects, revised(i, 0))
	}
	core := fake.NewClientset(objects...)
	core.PrependWatchReactor("pods", func(clienttesting.Action) (bool, watch.Interface, error) { return true, f.watch, nil })
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), listKinds)
	cfg, err := parseConfig([]string{
		"--monitoring-addr=127.0.0.1:0", "--debug-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--plaintext-addr=127.0.0.1:0", "--drain-delay=0s",
	}, io.Discard)
	if err != nil {
		tb.Fatal(err)
	}
	plain := make(chan string, 1)
	cfg.started = func(w *web, g *grpcServers) {
		f.debug = w.debug.Addr().String()
		plain <- g.plain.Addr().String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	quiet := slog.New(slog.DiscardHandler)
	go func() { done <- serve(ctx, cfg, clients{core: core, dynamic: dynamic, callers: core}, quiet) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("the control plane ended with: %v", err)
		}
	})
	f.directory = directory.New(directory.Config{Node: "node1", Logger: quiet})
	address := "http://" + <-plain
	client, err := meshxds.NewClient(meshxds.Config{
		Connect: func() (meshxds.Conn, error) { return identity.NewChannel(identity.ChannelConfig{Address: address}) },
		Node:    proxyNode("node1"), Logger: quiet,
		Handlers: []meshxds.Handler{
			{TypeURL: meshxds.TypeAuthorization, Apply: f.directory.HandleAuthorizations},
			{TypeURL: meshxds.TypeAddress, Apply: f.apply},
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := client.Run(ctx); err != nil {
			tb.Errorf("client: %v", err)
		}
	})
	tb.Cleanup(func() { cancel(); f.release(); running.Wait() })
	f.await("the proxy knows all pods", func() bool { return f.states >= pods })
	return f
}

// flowName is that of a pod by its number.
func flowName(i int) string { return fmt.Sprint("p", i) }

// revised is a pod that says how often it was changed.
func revised(i, revision int) *corev1.Pod {
	p := pod("shop", flowName(i), "web", "node1", fmt.Sprintf("10.1.%d.%d", i>>8, i&255))
	p.Labels[api.LabelCanonicalRevision] = strconv.Itoa(revision)
	return p
}

// apply is the proxy's.
func (f *flow) apply(upserts []*discoveryv3.Resource, removed []string) []meshxds.Rejection {
	f.mu.Lock()
	open := f.open
	f.waiting = true
	f.tell()
	f.mu.Unlock()
	<-open
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = false
	rejected := f.directory.HandleAddresses(upserts, removed)
	now := time.Now()
	for _, r := range upserts {
		w := f.directory.Workload(r.GetName())
		if w == nil {
			continue
		}
		revision, _ := strconv.Atoi(w.CanonicalRevision)
		if before := f.revisions[r.GetName()]; revision < before && f.backwards == "" {
			f.backwards = fmt.Sprintf("%s: revision %d after %d", r.GetName(), revision, before)
		}
		f.states++
		f.revisions[r.GetName()], f.at[r.GetName()] = revision, now
	}
	f.states += len(removed)
	f.tell()
	return rejected
}

// tell wakes who awaits. It is called with mu held.
func (f *flow) tell() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// hold makes the proxy take no push until release.
func (f *flow) hold() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = make(chan struct{})
}

func (f *flow) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.open:
	default:
		close(f.open)
	}
}

// await waits until the condition, which is called with mu held, holds of what the proxy was told.
func (f *flow) await(what string, holds func() bool) {
	f.Helper()
	limit := time.After(time.Minute)
	for {
		f.mu.Lock()
		ok, changed := holds(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			f.Fatalf("waited a minute until %s", what)
		}
	}
}

// owed is how many resources the control plane keeps for the proxy.
func (f *flow) owed() int {
	res, err := http.Get("http://" + f.debug + "/debug/adsz")
	if err != nil {
		f.Fatal(err)
	}
	defer res.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	var all []xds.ClientStatus
	if err := json.NewDecoder(res.Body).Decode(&all); err != nil || len(all) != 1 {
		f.Fatalf("/debug/adsz has %d clients: %v", len(all), err)
	}
	return all[0].Types["Address"].Owed
}

// history is a random order of changes, in which each pod's revisions follow each other.
func history(pods, from, to int, rnd *rand.Rand) (out []int) {
	for range to - from {
		out = append(out, rnd.Perm(pods)...)
	}
	return out
}

// Changes arrive in order per resource, with bounded memory: of a resource whose proxy is behind one state is kept, the last,
// which always arrives.
func TestManyChangesArriveInOrder(t *testing.T) {
	const pods, rounds = 100, 50
	f := startFlow(t, pods)
	rnd := rand.New(rand.NewPCG(1, 1))
	last := make([]int, pods)
	gone := map[int]bool{}
	change := func(to int) (changes int) {
		for _, i := range history(pods, last[0], to, rnd) {
			last[i]++
			switch {
			case i%10 == 1 && last[i]%7 == 0: // goes, and comes back with the next change
				f.watch.Delete(revised(i, last[i]))
				gone[i] = true
			case gone[i]:
				f.watch.Add(revised(i, last[i]))
				delete(gone, i)
			default:
				f.watch.Modify(revised(i, last[i]))
			}
			changes++
		}
		return changes
	}
	arrived := func() {
		t.Helper()
		f.await("the last state of each pod is there", func() bool {
			for i, revision := range last {
				w := f.directory.Workload(uid("shop", flowName(i)))
				if gone[i] != (w == nil) || w != nil && w.CanonicalRevision != strconv.Itoa(revision) {
					return false
				}
			}
			return true
		})
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.backwards != "" {
			t.Error(f.backwards)
		}
	}

	// A proxy that keeps up.
	changes := change(rounds)
	arrived()
	f.mu.Lock()
	t.Logf("%d changes arrived as %d states", changes, f.states-pods)
	before := f.states
	f.mu.Unlock()

	// One that takes nothing for a while, not even the first of these changes: a mark behind all tells when the control plane has
	// seen them.
	f.hold()
	changes = change(last[0] + 1)
	f.await("a push waits", func() bool { return f.waiting })
	changes += change(3 * rounds)
	f.watch.Add(revised(pods, 1))
	await(t, "the control plane has seen all changes", func() bool {
		owed := f.owed()
		if owed > pods+1 {
			t.Fatalf("%d states are kept of %d resources", owed, pods+1)
		}
		return owed == pods+1
	})
	f.release()
	arrived()
	f.mu.Lock()
	defer f.mu.Unlock()
	states := f.states - before
	t.Logf("%d changes arrived as %d states", changes, states)
	// One push was on its way, with each resource at most once; what came meanwhile is another one.
	if states > 2*(pods+1) {
		t.Errorf("a proxy that was behind got %d states of %d resources", states, pods+1)
	}
}

// BenchmarkChanges takes changes of pods all the way: as many as go, and 1,000 a second, with the time that each takes.
func BenchmarkChanges(b *testing.B) {
	const pods = 1000
	b.Run("as many as go", func(b *testing.B) {
		f := startFlow(b, pods)
		n := 0
		for b.Loop() {
			f.watch.Modify(revised(n%pods, n/pods+1))
			n++
		}
		name := uid("shop", flowName((n-1)%pods))
		f.await("the last change is there", func() bool { return f.revisions[name] == (n-1)/pods+1 })
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "changes/s")
		f.mu.Lock()
		defer f.mu.Unlock()
		b.ReportMetric(float64(f.states-pods)/float64(n), "states/change")
	})
	b.Run("1,000 a second", func(b *testing.B) {
		f := startFlow(b, pods)
		n, next := 0, time.Now()
		var begun [pods]time.Time
		var took []time.Duration
		note := func(i, revision int) { // the change before, of the same pod: it has had a second
			name := uid("shop", flowName(i))
			f.await("a change is there", func() bool { return f.revisions[name] >= revision })
			f.mu.Lock()
			defer f.mu.Unlock()
			took = append(took, f.at[name].Sub(begun[i]))
		}
		for b.Loop() {
			i, revision := n%pods, n/pods+1
			if revision > 1 {
				note(i, revision-1)
			}
			if next = next.Add(time.Millisecond); time.Until(next) > 0 {
				<-time.After(time.Until(next))
			}
			begun[i] = time.Now()
			f.watch.Modify(revised(i, revision))
			n++
		}
		for i := range min(n, pods) {
			note(i, (n-1-i)/pods+1)
		}
		slices.Sort(took)
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "changes/s")
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	})
}
