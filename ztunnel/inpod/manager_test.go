package inpod

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// patience is how long a condition may take that should come about at once.
const patience = 30 * time.Second

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// agent is a CNI agent that does as it is told.
type agent struct {
	t  *testing.T
	ln *net.UnixListener
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "zds.sock")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return &agent{t: t, ln: ln}
}

// accept waits for the proxy to connect and reads its hello.
func (a *agent) accept() *agentConn {
	a.t.Helper()
	a.ln.SetDeadline(time.Now().Add(patience))
	c, err := a.ln.AcceptUnix()
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	conn := &agentConn{t: a.t, UnixConn: c}
	hello := &zds.ZdsHello{}
	if err := proto.Unmarshal(conn.read(), hello); err != nil || hello.Version != zds.Version_V1 {
		a.t.Fatalf("hello %v, %v", hello, err)
	}
	return conn
}

type agentConn struct {
	t *testing.T
	*net.UnixConn
}

func (c *agentConn) read() []byte {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		c.t.Fatalf("read from the proxy: %v", err)
	}
	return b[:n]
}

// write sends one packet with descriptors, which stay open here.
func (c *agentConn) write(packet []byte, fds ...int) {
	c.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(packet, oob, nil); err != nil {
		c.t.Fatalf("write to the proxy: %v", err)
	}
}

// answer returns the error text of the next ack.
func (c *agentConn) answer() string {
	c.t.Helper()
	resp := &zds.WorkloadResponse{}
	if err := proto.Unmarshal(c.read(), resp); err != nil || resp.GetAck() == nil {
		c.t.Fatalf("answer %v, %v", resp, err)
	}
	return resp.GetAck().GetError()
}

// ask sends a request and returns the answer's error text.
func (c *agentConn) ask(r *zds.WorkloadRequest, fds ...int) string {
	c.t.Helper()
	b, err := proto.Marshal(r)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(b, fds...)
	return c.answer()
}

// must is ask for what has to succeed.
func (c *agentConn) must(r *zds.WorkloadRequest, fds ...int) {
	c.t.Helper()
	if text := c.ask(r, fds...); text != "" {
		c.t.Fatalf("%v: answered %q", r, text)
	}
}

// closed waits for the proxy to close the connection.
func (c *agentConn) closed() {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 4096)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("connection is open: read %d bytes, %v", n, err)
	}
}

func add(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: uid,
		WorkloadInfo: &zds.WorkloadInfo{Name: "pod-" + uid, Namespace: "ns", ServiceAccount: "sa"}}}}
}

func del(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: uid}}}
}

func keep(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: uid}}}
}

func snapshot() *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}}
}

// fakeProxy records what it is told.
type fakeProxy struct {
	pod  Pod
	id   netns.ID
	done chan struct{}

	mu     sync.Mutex // guards the fields below
	log    []string
	resume error
}

func (p *fakeProxy) setResume(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resume = err
}

func (p *fakeProxy) note(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, s)
}

func (p *fakeProxy) told() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.log, " ")
}

func (p *fakeProxy) Resume() error {
	p.note("resume")
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resume
}

func (p *fakeProxy) Drain()                   { p.note("drain") }
func (p *fakeProxy) Shutdown(context.Context) { p.note("shutdown"); close(p.done) }
func (p *fakeProxy) Stop()                    { p.note("stop"); close(p.done) }
func (p *fakeProxy) Done() <-chan struct{}    { return p.done }

// node is a Manager under test and the proxies that it has started.
type node struct {
	*Manager
	agent *agent

	mu      sync.Mutex // guards the fields below
	proxies []*fakeProxy
	fail    error
}

func (n *node) setFail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = err
}

// proxy returns the newest proxy of a pod, or nil.
func (n *node) proxy(uid string) *fakeProxy {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := len(n.proxies) - 1; i >= 0; i-- {
		if n.proxies[i].pod.UID == uid {
			return n.proxies[i]
		}
	}
	return nil
}

func (n *node) started() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.proxies)
}

func startNode(t *testing.T) *node {
	t.Helper()
	t.Cleanup(func() { leaktest.Check(t) })
	home, err := netns.OpenHome()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { home.Close() })
	n := &node{agent: newAgent(t)}
	n.Manager = NewManager(Config{
		Socket: n.agent.ln.Addr().String(),
		Home:   home,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		Start: func(pod Pod, ns *netns.Namespace) (Proxy, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.fail != nil {
				return nil, n.fail
			}
			p := &fakeProxy{pod: pod, id: ns.ID(), done: make(chan struct{})}
			n.proxies = append(n.proxies, p)
			return p, nil
		},
	})
	before := netnsFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		n.Shutdown(context.Background())
		// What the agent has open is its own; the manager's namespaces must be closed.
		if after := netnsFiles(t); after > before {
			t.Errorf("%d descriptors of network namespaces are open, %d were before", after, before)
		}
	})
	return n
}

// netnsFiles counts the open descriptors of network namespaces.
func netnsFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "net:") {
			n++
		}
	}
	return n
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// netnsFD opens a network namespace: that of the test, which serves as any pod's.
func netnsFD(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestSnapshotAndChanges(t *testing.T) {
	n := startNode(t)
	fd := netnsFD(t)
	c := n.agent.accept()
	if n.Ready() {
		t.Error("ready before the snapshot")
	}
	c.must(add("a"), fd)
	c.must(add("b"), fd)
	c.must(keep("unknown"))
	c.must(snapshot())
	eventually(t, "ready", n.Ready)
	if p := n.proxy("a"); p == nil || p.pod != (Pod{UID: "a", Name: "pod-a", Namespace: "ns", ServiceAccount: "sa"}) {
		t.Errorf("proxy of a: %+v", p)
	}
	// The same pod in the same namespace is nothing new.
	c.must(add("a"), fd)
	if got := n.started(); got != 2 {
		t.Errorf("%d proxies were started, want 2", got)
	}
	// A delete drains, and the pod is forgotten when its proxy has ended.
	c.must(del("a"))
	if got := n.proxy("a").told(); got != "drain" {
		t.Errorf("after delete, a was told %q, want drain", got)
	}
	c.must(del("a"))
	c.must(del("never heard of"))
	// An add while it drains takes it back, and another delete drains it again.
	c.must(add("a"), fd)
	c.must(del("a"))
	if got := n.proxy("a").told(); got != "drain resume drain" {
		t.Errorf("a was told %q", got)
	}
	close(n.proxy("a").done)
	eventually(t, "a is forgotten", func() bool { return len(n.Status()) == 1 })
	c.must(add("a"), fd)
	if got := n.started(); got != 3 {
		t.Errorf("%d proxies were started, want 3", got)
	}
}

func TestNewNamespaceReplacesTheProxy(t *testing.T) {
	n := startNode(t)
	c := n.agent.accept()
	c.must(add("a"), netnsFD(t))
	old := n.proxy("a")
	if os.Getuid() != 0 {
		t.Skip("skipped: making a second network namespace needs root")
	}
	fds := make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
		}
		fds <- fd
	}()
	other := <-fds
	defer unix.Close(other)
	c.must(add("a"), other)
	if got := old.told(); got != "stop" {
		t.Errorf("old proxy was told %q, want stop", got)
	}
	if n.proxy("a") == old || n.proxy("a").id == old.id {
		t.Error("no new proxy in the new namespace")
	}
}

func TestReconnectKeepsWhatIsNamed(t *testing.T) {
	n := startNode(t)
	fd := netnsFD(t)
	c := n.agent.accept()
	for _, uid := range []string{"a", "b", "c"} {
		c.must(add(uid), fd)
	}
	c.must(snapshot())
	c.Close()
	c = n.agent.accept()
	c.must(add("a"), fd)
	c.must(keep("b"))
	for _, uid := range []string{"a", "b", "c"} {
		if got := n.proxy(uid).told(); got != "" {
			t.Errorf("before the snapshot's end, %s was told %q", uid, got)
		}
	}
	c.must(snapshot())
	if got := n.proxy("c").told(); got != "drain" {
		t.Errorf("c, which the second snapshot does not name, was told %q, want drain", got)
	}
	if n.started() != 3 || n.proxy("a").told()+n.proxy("b").told() != "" {
		t.Error("a or b were touched")
	}
	if !n.Ready() {
		t.Error("not ready after a reconnect")
	}
}

func TestFailedStartIsTriedAgain(t *testing.T) {
	n := startNode(t)
	fd := netnsFD(t)
	c := n.agent.accept()
	n.setFail(errors.New("no room"))
	if got := c.ask(add("a"), fd); !strings.Contains(got, "no room") || !strings.Contains(got, "ns/pod-a") {
		t.Errorf("answer %q does not say what failed and why", got)
	}
	c.must(snapshot())
	if n.Ready() {
		t.Error("ready although the only pod is not served")
	}
	if s := n.Status(); len(s) != 1 || s[0].State != StatePending || !strings.Contains(s[0].Err, "no room") {
		t.Errorf("status %+v", s)
	}
	n.setFail(nil)
	eventually(t, "the pod is served", func() bool { return n.proxy("a") != nil })
	eventually(t, "ready", n.Ready)
	// A pending pod that is deleted is gone at once.
	n.setFail(errors.New("no room"))
	c.ask(add("b"), fd)
	c.must(del("b"))
	eventually(t, "b is forgotten", func() bool { return len(n.Status()) == 1 })
}

// TestTooLateToResume adds a pod whose proxy drains and cannot be taken back: the pod gets a new one, and is not left without.
func TestTooLateToResume(t *testing.T) {
	n := startNode(t)
	fd := netnsFD(t)
	c := n.agent.accept()
	c.must(add("a"), fd)
	c.must(snapshot())
	c.must(del("a"))
	old := n.proxy("a")
	old.setResume(errors.New("too late"))
	c.must(add("a"), fd)
	if got := old.told(); got != "drain resume stop" {
		t.Errorf("old proxy was told %q", got)
	}
	eventually(t, "a new proxy", func() bool { return n.proxy("a") != old })
	c.must(add("a"), fd) // the old one's end is known by now, and is not the new one's
	if s := n.Status(); len(s) != 1 || s[0].State != StateUp || n.started() != 2 {
		t.Errorf("status %+v, %d proxies", s, n.started())
	}
	// If the new one cannot start either, it is tried again.
	c.must(del("a"))
	newer := n.proxy("a")
	newer.setResume(errors.New("too late"))
	n.setFail(errors.New("no room"))
	if got := c.ask(add("a"), fd); !strings.Contains(got, "no room") {
		t.Errorf("answer %q", got)
	}
	n.setFail(nil)
	eventually(t, "another proxy", func() bool { return n.proxy("a") != newer })
}

// TestUnexpectedEnd ends a proxy that nobody asked to: the pod gets another.
func TestUnexpectedEnd(t *testing.T) {
	n := startNode(t)
	fd := netnsFD(t)
	c := n.agent.accept()
	c.must(add("a"), fd)
	c.must(snapshot())
	old := n.proxy("a")
	close(old.done)
	eventually(t, "a new proxy", func() bool { return n.proxy("a") != old })
	c.must(add("a"), fd)
	if got := n.started(); got != 2 {
		t.Errorf("%d proxies were started, want 2", got)
	}
}

func TestBrokenProtocolEndsTheConnectionOnly(t *testing.T) {
	n := startNode(t)
	fd := netnsFD(t)
	c := n.agent.accept()
	c.must(add("a"), fd)
	c.must(snapshot())
	marshal := func(r *zds.WorkloadRequest) []byte {
		b, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	noInfo := &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: "b"}}}
	many := make([]int, maxDescriptors+4)
	for i := range many {
		many[i] = fd
	}
	for _, tc := range []struct {
		name   string
		packet []byte
		fds    []int
	}{
		{"garbage", []byte{0xff, 0xff, 0xff}, nil},
		{"add without descriptor", marshal(add("b")), nil},
		{"add with two descriptors", marshal(add("b")), []int{fd, fd}},
		{"add with very many descriptors", marshal(add("b")), many},
		{"add without workload_info", marshal(noInfo), []int{fd}},
		{"add without uid", marshal(add("")), []int{fd}},
		{"delete with descriptor", marshal(del("a")), []int{fd}},
		{"keep after snapshot", marshal(keep("a")), nil},
		{"second snapshot", marshal(snapshot()), nil},
		{"oversized", marshal(del(strings.Repeat("x", 2*maxPacket))), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.t = t
			c.write(tc.packet, tc.fds...)
			if got := c.answer(); !strings.Contains(got, errProtocol.Error()) {
				t.Errorf("answer %q does not say that the protocol was broken", got)
			}
			c.closed()
			c = n.agent.accept()
			c.t = t
			c.must(add("a"), fd)
			c.must(snapshot())
			if got := n.proxy("a").told(); got != "" || n.started() != 1 {
				t.Errorf("the pod that was served was told %q, and %d proxies were started", got, n.started())
			}
		})
	}
	c.t = t
	// What is no breach gets an error and the connection stays.
	c.write([]byte{4<<3 | 2, 0}) // an empty message in field 4, which there is not
	if got := c.answer(); !strings.Contains(got, "unknown kind") {
		t.Errorf("answer to a request of an unknown kind: %q", got)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if got := c.ask(add("b"), int(null.Fd())); !strings.Contains(got, "not a network namespace") {
		t.Errorf("answer to a descriptor of something else: %q", got)
	}
	c.must(del("b"))
}

func TestNoConnectionAfterTheEnd(t *testing.T) {
	n := startNode(t)
	fd := netnsFD(t)
	c := n.agent.accept()
	c.must(add("a"), fd)
	c.must(snapshot())
	ctx, cancel := context.WithCancel(t.Context())
	other := NewManager(n.cfg)
	done := make(chan error)
	go func() { done <- other.Run(ctx) }()
	c2 := n.agent.accept()
	c2.must(add("a"), fd)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c2.closed()
	p := n.proxy("a")
	if got := p.told(); got != "" {
		t.Errorf("the end of Run told the proxy %q", got)
	}
	other.Shutdown(t.Context())
	if got := p.told(); got != "shutdown" {
		t.Errorf("Shutdown told the proxy %q", got)
	}
	n.agent.ln.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if c, err := n.agent.ln.AcceptUnix(); err == nil {
		c.Close()
		t.Error("a manager that has ended connected again")
	}
	c.must(add("b"), fd) // the first one still serves
}
