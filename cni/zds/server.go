package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	zdsapi "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// Errors of Server.Add.
var (
	// ErrNoProxy says that no proxy took the pod before the context ended.
	ErrNoProxy = errors.New("no node proxy is connected")
	// ErrRefused wraps what a proxy answered; it goes on trying by itself.
	ErrRefused = errors.New("node proxy refused the pod")
	// ErrSuperseded says that the pod was deleted, or added with another network namespace, meanwhile.
	ErrSuperseded = errors.New("pod was deleted or replaced meanwhile")
)

// errGone ends the requests of a connection that ended.
var errGone = errors.New("connection to the node proxy ended")

const (
	// defaultAckTimeout is what Istio's agent gives a proxy for one request.
	defaultAckTimeout = 5 * time.Second
	// acceptRate bounds new connections per second, so that a proxy in a crash loop does not keep the agent busy.
	acceptRate = 5
)

// Pod is what a proxy is told of a pod.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string
	// NetNS is the pod's network namespace. If nil, the pod is only named in snapshots, so that a proxy which serves it
	// goes on doing so. The server duplicates the descriptor; the caller keeps its own.
	NetNS *os.File
	// Resolver is how the pod resolves names; nil if it is not known. Only proxies that ask for it are told.
	Resolver *zdsapi.Resolver
}

// Config configures a Server.
type Config struct {
	// AckTimeout is how long a proxy may take to answer one request before its connection is closed; 5 s if zero.
	AckTimeout time.Duration
	// Observe, if set, hears of connections that come and go, and of every answer. It must not block or call the Server.
	Observe func(Event)
	// Forgotten, if set, hears of network namespaces that no proxy is to serve any more. It must not block or call the Server.
	Forgotten func(handover.NetNS)
	// Logger must be set.
	Logger *slog.Logger
}

// Event is something that a Server noticed.
type Event struct {
	// Connected is the number of proxies that said hello and are still there.
	Connected int
	// UID is the pod that a proxy answered for; empty for a connection that came or went.
	UID string
	// Err is nil if the proxy serves the pod.
	Err error
}

// Server serves node proxies. Its methods may be called at once.
type Server struct {
	cfg Config

	mu      sync.Mutex // guards the fields below and the queues of connections; never held while reading or writing
	pods    map[string]*pod
	conns   []*conn       // oldest first
	changed chan struct{} // closed, and replaced, when conns changes
}

// pod is a known Pod with a descriptor of the server's own, which is closed when the pod is replaced or forgotten.
type pod struct {
	Pod
	key netnsKey
}

// netnsKey tells one network namespace from another.
type netnsKey = handover.NetNS

// NewServer returns a server that knows no pods.
func NewServer(c Config) *Server {
	if c.AckTimeout == 0 {
		c.AckTimeout = defaultAckTimeout
	}
	if c.Observe == nil {
		c.Observe = func(Event) {}
	}
	if c.Forgotten == nil {
		c.Forgotten = func(handover.NetNS) {}
	}
	return &Server{cfg: c, pods: map[string]*pod{}, changed: make(chan struct{})}
}

// Listen makes the socket at path, in place of one that is there, in a way that a connecting proxy never finds none. The
// listener does not remove it when closed: it may be its successor's by then.
func Listen(path string) (*net.UnixListener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: fresh, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o660), os.Rename(fresh, path)); err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

// Serve accepts proxies until the context ends; it closes the listener and every connection, waits for their goroutines
// and returns nil. The pods stay known. An error means that the listener broke.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	limit := rate.NewLimiter(acceptRate, acceptRate)
	for {
		if err := limit.Wait(ctx); err != nil {
			return nil
		}
		c, err := ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case err != nil:
			return fmt.Errorf("accept node proxy: %w", err)
		}
		handlers.Go(func() { s.handle(ctx, c) })
	}
}

// Close forgets all pods and their descriptors. Call it after Serve has returned.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid := range s.pods {
		s.forgetLocked(uid)
	}
}

// Add makes the pod known and waits until the newest proxy serves it. If that proxy goes away meanwhile, the next one is
// asked, or the next that comes. The pod stays known when Add fails, until Delete. The same UID with another NetNS
// replaces the former.
func (s *Server) Add(ctx context.Context, p Pod) error {
	if p.NetNS == nil {
		return fmt.Errorf("add pod %s: no network namespace", p.UID)
	}
	known, err := s.know(p)
	if err != nil {
		return err
	}
	for {
		request, changed, err := s.request(known)
		switch {
		case err != nil:
			return fmt.Errorf("add pod %s: %w", p.UID, err)
		case request == nil && changed == nil:
			return nil
		case request == nil:
			select {
			case <-changed:
			case <-ctx.Done():
				return fmt.Errorf("add pod %s: %w: %w", p.UID, ErrNoProxy, context.Cause(ctx))
			}
		default:
			select {
			case <-request.done:
			case <-ctx.Done():
				return fmt.Errorf("add pod %s: wait for the node proxy: %w", p.UID, context.Cause(ctx))
			}
			if errors.Is(request.err, errGone) {
				continue
			}
			if request.err != nil {
				return fmt.Errorf("add pod %s: %w", p.UID, request.err)
			}
			return nil
		}
	}
}

// request asks the newest connection to serve the pod. It returns nothing if that one does, and a channel to wait on if
// there is no connection.
func (s *Server) request(p *pod) (*request, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[p.UID] != p {
		return nil, nil, ErrSuperseded
	}
	if len(s.conns) == 0 {
		return nil, s.changed, nil
	}
	c := s.conns[len(s.conns)-1]
	if c.served[p.UID] == p.key {
		return nil, nil, nil
	}
	return c.addLocked(p), nil, nil
}

// Set makes the pod known without telling a connected proxy; later snapshots name it.
func (s *Server) Set(p Pod) error {
	_, err := s.know(p)
	return err
}

// know stores the pod with a descriptor of its own. A pod that is known with the same network namespace stays as it is.
func (s *Server) know(p Pod) (*pod, error) {
	fresh := &pod{Pod: p}
	if p.NetNS != nil {
		if err := fresh.own(); err != nil {
			return nil, fmt.Errorf("add pod %s: %w", p.UID, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.pods[p.UID]; old != nil {
		if old.NetNS != nil && (p.NetNS == nil || old.key == fresh.key) {
			if fresh.NetNS != nil {
				fresh.NetNS.Close()
			}
			return old, nil
		}
		s.forgetLocked(p.UID)
	}
	s.pods[p.UID] = fresh
	return fresh, nil
}

// own replaces the caller's descriptor by a duplicate.
func (p *pod) own() error {
	raw, err := p.NetNS.SyscallConn()
	if err != nil {
		return err
	}
	dup := -1
	if cerr := raw.Control(func(fd uintptr) { dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("duplicate descriptor: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(dup, &st); err != nil {
		unix.Close(dup)
		return fmt.Errorf("stat descriptor: %w", err)
	}
	p.key = netnsKey{Dev: st.Dev, Ino: st.Ino}
	p.NetNS = os.NewFile(uintptr(dup), p.NetNS.Name())
	return nil
}

func (s *Server) forgetLocked(uid string) {
	if p := s.pods[uid]; p != nil && p.NetNS != nil {
		p.NetNS.Close() // waits for a write that is using it
		s.cfg.Forgotten(p.key)
	}
	delete(s.pods, uid)
}

// Delete forgets the pod and waits until every proxy has answered or gone away. Its error is what proxies answered; the
// pod is forgotten anyhow.
func (s *Server) Delete(ctx context.Context, uid string) error {
	s.mu.Lock()
	s.forgetLocked(uid)
	var requests []*request
	for _, c := range s.conns {
		delete(c.served, uid)
		requests = append(requests, c.enqueueLocked(&request{kind: del, uid: uid}))
	}
	s.mu.Unlock()
	var errs []error
	for _, r := range requests {
		select {
		case <-r.done:
			if r.err != nil && !errors.Is(r.err, errGone) {
				errs = append(errs, r.err)
			}
		case <-ctx.Done():
			return fmt.Errorf("delete pod %s: %w", uid, context.Cause(ctx))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete pod %s: %w", uid, err)
	}
	return nil
}

// Connected returns the number of proxies that said hello and are still there.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Known tells whether the server knows a pod of the network namespace.
func (s *Server) Known(ns handover.NetNS) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pods {
		if p.NetNS != nil && p.key == ns {
			return true
		}
	}
	return false
}

// Served tells whether a proxy that is connected has said that it serves the pod of the network namespace.
func (s *Server) Served(ns handover.NetNS) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		for _, key := range c.served {
			if key == ns {
				return true
			}
		}
	}
	return false
}

// Pods returns the UIDs of the pods that are known, sorted.
func (s *Server) Pods() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.pods))
}

func (s *Server) broadcastLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}
