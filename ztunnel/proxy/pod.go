package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/share"
	"github.com/ambit-mesh/ambit/mesh/thrift"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/sockets"
)

// errNoCertificate is wrapped by the error of a tunnel for which there was no certificate of the pod.
var errNoCertificate = errors.New("no certificate for the pod")

// errEnding is why a proxy that ends cannot be resumed.
var errEnding = errors.New("its proxy is ending")

// Pod is the proxy of one pod. It implements inpod.Proxy.
type Pod struct {
	node   *Node
	pod    inpod.Pod
	ns     *netns.Namespace // the caller's, until Done
	logger *slog.Logger
	pool   *hbone.Pool
	server *hbone.Server
	ports  *sourcePorts
	conns  table
	names  *dns.Server      // nil if name queries are not answered
	asked  asked            // of names
	lookup *netns.Conntrack // of names; nil if the kernel cannot be asked

	// The pod's part of the node's proxy: see takeShare.
	party   *share.Party
	budget  *buffer.Budget
	relayer hbone.Relayer
	h2      h2.Config

	// fallbackID is the pod's identity as long as discovery does not know the pod; id is the one in use, guarded by node.mu.
	fallbackID identity.Identity
	id         atomic.Pointer[identity.Identity]
	known      atomic.Pointer[directory.Workload] // by lookUp
	described  atomic.Pointer[description]
	judgedBy   atomic.Pointer[judging]
	judgeMu    sync.Mutex   // serialises what makes judgedBy
	judgedAll  *judged      // by what all connections were judged last; Node.Run's
	fullLogged atomic.Int64 // when it was last said that the pod has too many connections, in Unix seconds

	ctx      context.Context // of the listeners and the tunnel server
	cancel   context.CancelFunc
	work     sync.WaitGroup // accept loops, and connections until they are relayed
	crew     *thrift.Crew   // of work
	handling sync.WaitGroup // tunnel requests, and goroutines that wait for the next
	handlers *thrift.Crew   // of handling
	commands chan command
	ending   chan struct{} // closed when Resume is too late
	done     chan struct{}

	// Owned by the loop of run.
	capture []*listener // outbound and inbound plaintext; none while draining
	tunnels *listener
	shared  *sockets.Share
}

// description is what a workload is described as in headers.
type description struct {
	workload *directory.Workload
	baggage  string
}

// command is a call of a method, on its way to the loop.
type command struct {
	kind  commandKind
	ctx   context.Context // shutdown
	reply chan error      // resume
}

type commandKind uint8

const (
	commandDrain commandKind = iota
	commandResume
	commandShutdown
)

func (n *Node) startPod(pod inpod.Pod, ns *netns.Namespace) (*Pod, error) {
	p := &Pod{
		node:       n,
		pod:        pod,
		ns:         ns,
		logger:     n.Logger.With("pod", pod.String(), "uid", pod.UID),
		conns:      table{conns: map[*conn]bool{}},
		fallbackID: identity.Identity{TrustDomain: n.TrustDomain, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount},
		commands:   make(chan command),
		ending:     make(chan struct{}),
		done:       make(chan struct{}),
	}
	p.id.Store(&p.fallbackID)
	claim := n.Sockets.Claim(ns.ID())
	if err := p.awaitTakeover(claim); err != nil {
		claim.Abandon()
		return nil, err
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.crew = thrift.NewCrew(p.ending, &p.work)
	p.handlers = thrift.NewCrew(p.ending, &p.handling)
	if err := p.openSockets(claim); err != nil {
		p.cancel()
		claim.Abandon()
		return nil, err
	}
	p.takeShare()
	p.tunnels.bounds = n.Bounds
	p.ports = newSourcePorts(ns, p.logger)
	p.serveNames(claim)
	p.pool = hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return p.ns.DialTCP(ctx, n.dialer(), addr)
		},
		TLS: p.clientTLS,
		Revoked: func(t *hbone.Target, peer []*x509.Certificate) error {
			return p.disproved(&proof{peer, t.Expect})
		},
		MaxStreams:  n.PoolStreams,
		IdleTimeout: n.PoolIdle,
		H2:          p.h2,
		Timeouts:    p.timeouts(),
		Violated:    p.violated,
		Party:       p.party,
		Counts:      &n.poolCounts,

		MaxHandshakes:  n.Limits.Handshakes,
		MaxConnections: n.Limits.Tunnels,
		Logger:         p.logger,
	})
	serverH2 := p.h2
	serverH2.Go = p.handlers.Do
	p.server = hbone.NewServer(hbone.ServerConfig{
		TLS:     p.serverTLS,
		Revoked: func(client []*x509.Certificate) error { return p.disproved(&proof{certs: client}) },
		Refused: p.handshakeRefused,
		H2:      serverH2,
		Handler: p.inboundTunnel,

		HandshakeTimeout: orNever(n.Timeouts.Handshake),
		MaxHandshakes:    n.Limits.Handshakes,
		MaxConnections:   n.Limits.Tunnels,
		Full:             func() { p.refused(boundTunnels, n.Limits.Tunnels) },
		Violated:         p.violated,
		Party:            p.party,
		Logger:           p.logger,
	})
	n.enter(p)
	p.work.Go(func() {
		if err := p.server.Serve(p.ctx, p.tunnels); err != nil && !errors.Is(err, hbone.ErrServerClosed) &&
			!errors.Is(err, net.ErrClosed) && p.ctx.Err() == nil {
			p.fail(api.PortHBONE, err)
		}
	})
	p.serveCapture()
	p.share(claim)
	go p.run() // Done says when it has ended
	return p, nil
}

// serveCapture starts the accept loops of openCapture's ports.
func (p *Pod) serveCapture() {
	inbound, outbound := p.capture[0], p.capture[1]
	p.work.Go(func() { p.serve(inbound, p.inboundPlain) })
	p.work.Go(func() { p.serve(outbound, p.outbound) })
}

// closeCapture closes those ports, once what waits in their queues is accepted.
func (p *Pod) closeCapture() {
	for _, l := range p.capture {
		p.shared.Remove(l)
		l.drain()
	}
	p.capture = nil
}

// run owns the listeners until the proxy ends.
func (p *Pod) run() {
	defer close(p.done)
	var since time.Time // when the drain began; zero while serving
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for {
		// One of three things happens: a command, time passes, or all is cut.
		select {
		case c := <-p.commands:
			switch c.kind {
			case commandDrain:
				if since.IsZero() {
					since = time.Now()
					p.endCapture()
				}
			case commandResume:
				c.reply <- p.reopen(&since)
			case commandShutdown:
				p.finish(c.ctx, errGraceOver)
				return
			}
		case <-poll.C:
			if !since.IsZero() && p.drained(since) {
				// Nothing is left, or nothing is left to wait for; streams on their way are served.
				ctx, cancel := context.WithDeadline(context.Background(), since.Add(p.node.DrainLimit))
				p.finish(ctx, errPodGone)
				cancel()
				return
			}
		case <-p.ctx.Done():
			p.finish(p.ctx, errPodGone)
			return
		}
	}
}

// reopen undoes a drain that began at since.
func (p *Pod) reopen(since *time.Time) error {
	if since.IsZero() {
		return nil
	}
	if err := p.openCapture(nil); err != nil {
		return err
	}
	p.serveCapture()
	p.shareAgain()
	*since = time.Time{}
	return nil
}

// drained tells whether a drain may end.
func (p *Pod) drained(since time.Time) bool {
	if alive, err := p.ns.Alive(); err == nil && !alive {
		p.cut(errPodGone) // its connections lead nowhere
		return true
	}
	age := time.Since(since)
	return age >= p.node.DrainLimit || age >= drainMin && p.conns.len() == 0
}

// finish closes the listeners, lets connections end until the context does, and then cuts what is left.
func (p *Pod) finish(ctx context.Context, cause error) {
	close(p.ending)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { p.cut(cause) })()
	defer context.AfterFunc(p.ctx, cancel)()
	p.unshare(cause)
	p.closeCapture()
	p.work.Go(func() { p.closeNames(ctx) })
	p.tunnels.drain()
	select {
	case <-p.tunnels.drained:
	case <-ctx.Done():
	}
	// Tells peers by GOAWAY to open no more tunnels, and waits for those that there are.
	if err := p.server.Shutdown(ctx); err != nil && ctx.Err() == nil {
		p.logger.Error("shut down tunnels", "error", err)
	}
	p.work.Wait()
	<-p.conns.none()
	p.cut(cause)
	p.server.Close()
	p.handling.Wait()
	<-p.conns.none()
	p.pool.Close()
	p.ports.close()
	p.party.Leave()
	p.node.leave(p)
}

// cut ends everything at once.
func (p *Pod) cut(cause error) {
	p.conns.end(cause)
	p.cancel()
}

// fail ends a proxy that cannot take connections on one of its ports any more. Its owner makes another.
func (p *Pod) fail(port int, err error) {
	p.logger.Error("proxy of the pod cannot go on", "port", port, "error", err)
	p.cut(fmt.Errorf("port %d of the proxy failed: %w", port, err))
}

// Drain implements inpod.Proxy.
func (p *Pod) Drain() {
	select {
	case p.commands <- command{kind: commandDrain}:
	case <-p.ending:
	}
}

// Resume implements inpod.Proxy.
func (p *Pod) Resume() error {
	c := command{kind: commandResume, reply: make(chan error, 1)}
	select {
	case p.commands <- c:
		return <-c.reply
	case <-p.ending:
		return errEnding
	}
}

// Shutdown implements inpod.Proxy.
func (p *Pod) Shutdown(ctx context.Context) {
	select {
	case p.commands <- command{kind: commandShutdown, ctx: ctx}:
	case <-p.ending:
		stop := context.AfterFunc(ctx, func() { p.cut(errGraceOver) })
		defer stop()
	}
	<-p.done
}

// Stop implements inpod.Proxy.
func (p *Pod) Stop() {
	p.cut(errPodGone)
	<-p.done
}

// Done implements inpod.Proxy.
func (p *Pod) Done() <-chan struct{} { return p.done }

// Connections lists the pod's connections, in the order in which they were opened.
func (p *Pod) Connections() []Connection { return p.conns.list() }

// lookUp returns what discovery knows of the pod, or what it knew last: a pod that is being deleted may be forgotten before
// its application has ended. It is nil if discovery has never known it.
func (p *Pod) lookUp() *directory.Workload {
	w := p.node.Directory.WorkloadByPod(p.pod.Namespace, p.pod.Name, p.pod.ServiceAccount)
	if w == nil {
		return p.known.Load()
	}
	if p.known.Load() != w {
		p.known.Store(w)
		if *p.id.Load() != w.Identity {
			p.node.adopt(p, w.Identity)
		}
	}
	return w
}

// self is lookUp that waits for the pod to be known.
func (p *Pod) self(ctx context.Context) (*directory.Workload, error) {
	if w := p.lookUp(); w != nil {
		return w, nil
	}
	ctx, cancel := context.WithTimeout(ctx, selfTimeout)
	defer cancel()
	w, err := p.node.Directory.WaitForPod(ctx, p.pod.Namespace, p.pod.Name, p.pod.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("pod %s (service account %s) is not known to the control plane: %w",
			p.pod, p.pod.ServiceAccount, err)
	}
	return p.remember(w), nil
}

// remember is lookUp once w was found: the pod may be forgotten again by now, and w is then what is known of it.
func (p *Pod) remember(w *directory.Workload) *directory.Workload {
	if now := p.lookUp(); now != nil {
		return now
	}
	if p.known.CompareAndSwap(nil, w) && *p.id.Load() != w.Identity {
		p.node.adopt(p, w.Identity)
	}
	return w
}

// identity returns whom the pod is to prove to be.
func (p *Pod) identity() identity.Identity {
	if w := p.lookUp(); w != nil {
		return w.Identity
	}
	return p.fallbackID
}

func (p *Pod) clientTLS(ctx context.Context, t hbone.Target) (*tls.Config, error) {
	svid, err := p.node.Certificates.SVID(ctx, t.Source)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCertificate, err)
	}
	return identity.ClientTLS(svid, t.Expect), nil
}

func (p *Pod) serverTLS(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	svid, err := p.node.Certificates.SVID(hello.Context(), p.identity())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCertificate, err)
	}
	return identity.ServerTLS(svid, nil), nil
}

// baggage describes a workload; the pod's own is remembered.
func (p *Pod) baggage(w *directory.Workload) string {
	if d := p.described.Load(); d != nil && d.workload == w {
		return d.baggage
	}
	d := &description{workload: w, baggage: baggageOf(w)}
	p.described.Store(d)
	return d.baggage
}

// isSelf tells whether an address is the pod's own.
func isSelf(self *directory.Workload, addr netip.Addr) bool {
	return addr.IsLoopback() || slices.Contains(self.Addrs, addr)
}
