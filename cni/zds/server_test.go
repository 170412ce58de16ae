package zds_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/cni/zds"
	"github.com/ambit-mesh/ambit/cni/zds/zdstest"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// agent is a running server.
type agent struct {
	*zds.Server
	socket string

	mu     sync.Mutex
	events []zds.Event
}

func start(t *testing.T, ack time.Duration) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "zds") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &agent{socket: filepath.Join(dir, "s")}
	a.Server = zds.NewServer(zds.Config{AckTimeout: ack, Logger: slog.New(slog.DiscardHandler), Observe: func(e zds.Event) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.events = append(a.events, e)
	}})
	a.serve(t)
	t.Cleanup(a.Close)
	return a
}

func (a *agent) serve(t *testing.T) {
	t.Helper()
	ln, err := zds.Listen(a.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// netns stands for a network namespace: any file has an inode.
func netns(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "netns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func pod(uid string, f *os.File) zds.Pod {
	return zds.Pod{UID: uid, Name: "pod-" + uid, Namespace: "ns", ServiceAccount: "sa", NetNS: f}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func (a *agent) connected(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d proxies connected", n), func() bool { return a.Connected() == n })
}

func serves(t *testing.T, p *zdstest.Proxy, uids ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("proxy serves %v (log %v, err %v)", uids, p.Log(), p.Err()), func() bool {
		return strings.Join(p.Serves(), " ") == strings.Join(uids, " ")
	})
}

func add(t *testing.T, a *agent, p zds.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := a.Add(ctx, p); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotThenAddAndDelete(t *testing.T) {
	a := start(t, 0)
	f := netns(t)
	for _, p := range []zds.Pod{pod("b", f), pod("a", f), {UID: "unknown-netns"}} {
		if err := a.Set(p); err != nil {
			t.Fatal(err)
		}
	}
	p := zdstest.Connect(t, a.socket)
	serves(t, p, "a", "b")
	g := netns(t)
	add(t, a, pod("c", g))
	if got := p.NetNS("c"); got != inode(t, g) {
		t.Errorf("served in inode %d, want %d", got, inode(t, g))
	}
	if err := a.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	want := []string{"add a ns/pod-a sa", "add b ns/pod-b sa", "keep unknown-netns", "snapshot sent", "add c ns/pod-c sa", "del a"}
	if diff := cmp.Diff(want, p.Log()); diff != "" {
		t.Error(diff)
	}
	if err := p.Err(); err != nil {
		t.Error(err)
	}
}

// TestAddOutlivesTheCallersDescriptor: the agent may close its own at once.
func TestAddOutlivesTheCallersDescriptor(t *testing.T) {
	a := start(t, 0)
	f := netns(t)
	want := inode(t, f)
	if err := a.Set(pod("a", f)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p := zdstest.Connect(t, a.socket)
	serves(t, p, "a")
	if p.NetNS("a") != want {
		t.Error("another file was sent")
	}
}

func TestAddWaitsForAProxy(t *testing.T) {
	a := start(t, 0)
	added := make(chan error, 1)
	go func() { added <- a.Add(t.Context(), pod("a", netns(t))) }()
	eventually(t, "pod known", func() bool { return len(a.Pods()) == 1 })
	zdstest.Connect(t, a.socket)
	if err := <-added; err != nil {
		t.Error(err)
	}
}

func TestAddWithoutProxy(t *testing.T) {
	a := start(t, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Add(ctx, pod("a", netns(t))); !errors.Is(err, zds.ErrNoProxy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// It stays known, so that the proxy that comes serves it.
	serves(t, zdstest.Connect(t, a.socket), "a")
}

func TestUpgrade(t *testing.T) {
	a := start(t, 0)
	old := zdstest.Connect(t, a.socket)
	a.connected(t, 1)
	f := netns(t)
	add(t, a, pod("a", f))
	fresh := zdstest.Connect(t, a.socket)
	a.connected(t, 2)
	serves(t, fresh, "a")
	add(t, a, pod("b", f))
	serves(t, fresh, "a", "b")
	serves(t, old, "a") // a new pod goes to the newest only
	if err := a.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	serves(t, fresh, "b")
	serves(t, old) // a removal goes to all

	// The newest goes away: the old one is told what it missed, without breaking the protocol.
	add(t, a, pod("c", f))
	fresh.Close()
	serves(t, old, "b", "c")
	if err := old.Err(); err != nil {
		t.Error(err)
	}
	add(t, a, pod("d", f))
	serves(t, old, "b", "c", "d")

	// An old one that goes away changes nothing.
	newest := zdstest.Connect(t, a.socket)
	a.connected(t, 2)
	serves(t, newest, "b", "c", "d")
	old.Close()
	a.connected(t, 1)
	log := len(newest.Log())
	add(t, a, pod("e", f))
	if n := len(newest.Log()); n != log+1 {
		t.Errorf("told again: %v", newest.Log()[log:])
	}
}

func TestRefusal(t *testing.T) {
	a := start(t, 0)
	p := zdstest.Connect(t, a.socket)
	a.connected(t, 1)
	p.Refuse("a", "no such workload")
	f := netns(t)
	err := a.Add(t.Context(), pod("a", f))
	if !errors.Is(err, zds.ErrRefused) || !strings.Contains(err.Error(), "no such workload") {
		t.Errorf("got %v", err)
	}
	p.Refuse("a", "")
	add(t, a, pod("a", f)) // asked again, since it was not served
	serves(t, p, "a")
	a.mu.Lock()
	defer a.mu.Unlock()
	var answers []string
	for _, e := range a.events {
		if e.UID != "" {
			answers = append(answers, fmt.Sprint(e.UID, " ", e.Err == nil))
		}
	}
	if diff := cmp.Diff([]string{"a false", "a true"}, answers); diff != "" {
		t.Error(diff)
	}
}

// TestHungProxy: one that does not answer is cut off, and the next one takes the pod.
func TestHungProxy(t *testing.T) {
	a := start(t, 3*time.Second) // the other one must answer in that time, on a busy machine too
	good := zdstest.Connect(t, a.socket)
	a.connected(t, 1)
	hung := zdstest.Connect(t, a.socket)
	a.connected(t, 2)
	eventually(t, "snapshot", func() bool { return len(hung.Log()) == 1 })
	hung.Mute()
	add(t, a, pod("a", netns(t)))
	serves(t, good, "a")
	a.connected(t, 1)
}

// TestDeadProxyIsNoticedAtOnce, without a request.
func TestDeadProxyIsNoticedAtOnce(t *testing.T) {
	a := start(t, time.Hour)
	p := zdstest.Connect(t, a.socket)
	a.connected(t, 1)
	p.Close()
	a.connected(t, 0)
}

func TestNewNetNSReplaces(t *testing.T) {
	a := start(t, 0)
	p := zdstest.Connect(t, a.socket)
	a.connected(t, 1)
	f, g := netns(t), netns(t)
	add(t, a, pod("a", f))
	add(t, a, pod("a", f)) // nothing to tell
	add(t, a, pod("a", g))
	if got := p.NetNS("a"); got != inode(t, g) {
		t.Errorf("served in inode %d, want %d", got, inode(t, g))
	}
	if diff := cmp.Diff([]string{"snapshot sent", "add a ns/pod-a sa", "add a ns/pod-a sa"}, p.Log()); diff != "" {
		t.Error(diff)
	}
}

func TestDeleteWhileAddWaits(t *testing.T) {
	a := start(t, 0)
	added := make(chan error, 1)
	go func() { added <- a.Add(t.Context(), pod("a", netns(t))) }()
	eventually(t, "pod known", func() bool { return len(a.Pods()) == 1 })
	if err := a.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	p := zdstest.Connect(t, a.socket)
	if err := <-added; !errors.Is(err, zds.ErrSuperseded) {
		t.Errorf("got %v", err)
	}
	serves(t, p)
}

// TestReEnrolment: the add behind a removal is told, though the namespace is the same.
func TestReEnrolment(t *testing.T) {
	a := start(t, 0)
	p := zdstest.Connect(t, a.socket)
	a.connected(t, 1)
	f := netns(t)
	add(t, a, pod("a", f))
	if err := a.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	add(t, a, pod("a", f))
	serves(t, p, "a")
}

func TestBadProxies(t *testing.T) {
	for name, messages := range map[string][][]byte{
		"no hello":        {{0xff, 0xff, 0xff}},
		"unknown version": {{0x08, 0x07}},
		"garbage answer":  {{0x08, 0x01}, {0xff}},
		"not an answer":   {{0x08, 0x01}, {0x12, 0x00}},
		"too many":        {{0x08, 0x01}, {0x0a, 0x00}, {0x0a, 0x00}},
		"oversized":       {make([]byte, 70<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, 0)
			bad, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: a.socket, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			defer bad.Close()
			for _, m := range messages {
				bad.Write(m)
			}
			bad.SetReadDeadline(time.Now().Add(30 * time.Second))
			for {
				if n, err := bad.Read(make([]byte, 1024)); n == 0 {
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatal("not cut off")
					}
					break
				}
			}
			// The others do not notice.
			p := zdstest.Connect(t, a.socket)
			add(t, a, pod("a", netns(t)))
			serves(t, p, "a")
		})
	}
}

// TestTakeOver: a new agent's socket replaces the old one's, and the old one's end does not remove it.
func TestTakeOver(t *testing.T) {
	a := start(t, 0)
	first := zdstest.Connect(t, a.socket)
	a.connected(t, 1)
	ln, err := zds.Listen(a.socket)
	if err != nil {
		t.Fatal(err)
	}
	second := zds.NewServer(zds.Config{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- second.Serve(ctx, ln) }()
	zdstest.Connect(t, a.socket)
	eventually(t, "the new agent has the new proxy", func() bool { return second.Connected() == 1 })
	if a.Connected() != 1 || first.Err() != nil {
		t.Error("the old agent lost its proxy")
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(a.socket); err != nil {
		t.Error(err)
	}
}

// TestManyAtOnce adds and deletes from many goroutines while proxies come and go; what is known in the end is served.
func TestManyAtOnce(t *testing.T) {
	a := start(t, 0)
	f := netns(t)
	last := zdstest.Connect(t, a.socket)
	var all sync.WaitGroup
	for i := range 40 {
		uid := fmt.Sprintf("p%02d", i)
		all.Go(func() {
			for range 5 {
				if err := a.Add(t.Context(), pod(uid, f)); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := a.Delete(t.Context(), uid); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 3 {
		next := zdstest.Connect(t, a.socket)
		eventually(t, "snapshot", func() bool { return len(next.Log()) > 0 })
		last.Close()
		last = next
	}
	all.Wait()
	serves(t, last, a.Pods()...)
	if len(a.Pods()) != 20 {
		t.Errorf("known: %v", a.Pods())
	}
	if err := last.Err(); err != nil {
		t.Error(err)
	}
}
