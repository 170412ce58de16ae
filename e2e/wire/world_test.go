package wire_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/proxy"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// TestMain wants goroutines and sockets back when all tests are done.
func TestMain(m *testing.M) { leaktest.MainWithSockets(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// own is the waypoint's identity.
var own = account("waypoint")

// account is the identity of a service account in the namespace of stories.
func account(name string) identity.Identity {
	return identity.Identity{TrustDomain: stories.TrustDomain, Namespace: "ns", ServiceAccount: name}
}

// world is a waypoint that runs what the control plane makes of objects, between clients and pods, on loopback.
type world struct {
	t     *testing.T
	ca    *identitytest.CA
	store *config.Store
	hosts map[string]netip.Addr
	addr  string // of the waypoint
	log   *logged

	mu   sync.Mutex        // guards what follows
	pods map[string]string // where the node proxy of a pod listens, by the pod's address
}

// logged is a log that tests may read.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, err := identitytest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ca: ca, log: &logged{}, pods: map[string]string{}}
	tunnels := hbone.NewPool(w.pool(own, func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		w.mu.Lock()
		to, ok := w.pods[addr.Addr().String()]
		w.mu.Unlock()
		if !ok || addr.Port() != 15008 {
			return nil, fmt.Errorf("connect to %s: no such pod", addr)
		}
		return dial(ctx, to)
	}))
	clusters := upstream.New(upstream.Config{Tunnels: tunnels, Source: own})
	svid := w.svid(own)
	p := proxy.New(proxy.Config{
		TLS:      func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(svid, nil), nil },
		Clusters: clusters, Requests: telemetry.NewRequests("waypoint", prometheus.NewRegistry()),
		AccessLog: slog.New(slog.NewTextHandler(w.log, nil)), Sampling: 1, Leave: -1, Wait: -1, Logger: slog.New(slog.DiscardHandler),
	})
	w.store = config.NewStore(func(_, s *config.Snapshot) {
		clusters.Apply(s)
		p.Apply(s)
	})
	ln := w.listen()
	w.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- p.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		p.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		clusters.Close()
		_ = tunnels.Close()
	})
	return w
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func (w *world) listen() net.Listener {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return ln
}

func (w *world) svid(id identity.Identity) *identity.SVID {
	w.t.Helper()
	s, err := w.ca.SVID(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// pool is how somebody opens tunnels.
func (w *world) pool(id identity.Identity, dial func(context.Context, netip.AddrPort) (net.Conn, error)) hbone.PoolConfig {
	svid := w.svid(id)
	return hbone.PoolConfig{Dial: dial, TLS: func(_ context.Context, target hbone.Target) (*tls.Config, error) {
		return identity.ClientTLS(svid, target.Expect), nil
	}}
}

// apply makes objects, as users write them, what the waypoint runs.
func (w *world) apply(objects string) {
	w.t.Helper()
	w.hosts = load(w.t, w.store, map[string][]byte{"in.yaml": []byte(objects)})
}

// serve is the node proxy of a pod, which proves to be id and takes tunnels of the waypoint only; what comes in them to its port is
// for serve, each in a goroutine of its own.
func (w *world) serve(addr string, id identity.Identity, port int, serve func(net.Conn)) {
	w.t.Helper()
	svid := w.svid(id)
	server := hbone.NewServer(hbone.ServerConfig{
		TLS: func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(svid, nil), nil },
		Handler: func(_ context.Context, in *hbone.Incoming) {
			if want := fmt.Sprintf("%s:%d", addr, port); in.Peer() != own || in.Authority() != want {
				w.t.Errorf("%s came for %s, where only the waypoint may come, for %s", in.Peer(), in.Authority(), want)
				_ = in.Reject(403, "not for you")
				return
			}
			if s, err := in.Accept(); err == nil {
				serve(s)
			}
		},
	})
	ln := w.listen()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), ln)
	}()
	w.t.Cleanup(func() { _ = server.Close(); <-served })
	w.mu.Lock()
	w.pods[addr] = ln.Addr().String()
	w.mu.Unlock()
}

// pod is a pod that serves HTTP on port 8080, as the service account "default".
func (w *world) pod(addr string, handler http.HandlerFunc) {
	w.t.Helper()
	ln := &streams{conns: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	w.t.Cleanup(func() { _ = server.Close(); <-served })
	w.serve(addr, account("default"), 8080, ln.carry)
}

// streams is a listener for connections that come in tunnels.
type streams struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// carry gives a connection to whoever accepts, and returns when it was closed.
func (s *streams) carry(nc net.Conn) {
	c := &tunnelled{Conn: nc, closed: make(chan struct{})}
	select {
	case s.conns <- c:
		<-c.closed
	case <-s.done:
	}
}

func (s *streams) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (s *streams) Addr() net.Addr { return &net.TCPAddr{} }

// tunnelled is a connection that tells when it was closed.
type tunnelled struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *tunnelled) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// dialer connects as a service account to "service.namespace:port", by way of the waypoint.
func (w *world) dialer(id identity.Identity) func(ctx context.Context, addr string) (net.Conn, error) {
	pool := hbone.NewPool(w.pool(id, func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { return dial(ctx, w.addr) }))
	w.t.Cleanup(func() { _ = pool.Close() })
	return func(ctx context.Context, addr string) (net.Conn, error) {
		name, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		ip, ok := w.hosts[name]
		if !ok {
			return nil, errors.New("there is no service " + name)
		}
		return pool.Open(ctx, hbone.Target{Addr: netip.MustParseAddrPort("192.0.2.1:15008"), Source: id, Expect: []identity.Identity{own}},
			hbone.Request{Authority: net.JoinHostPort(ip.String(), port), Forwarded: "for=10.9.9.9"})
	}
}

// client is an HTTP client of a service account, which speaks one version of HTTP and follows no redirects.
func (w *world) client(id identity.Identity, version string) *http.Client {
	dial := w.dialer(id)
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) }}
	tr.Protocols.SetHTTP1(version == "HTTP/1.1")
	tr.Protocols.SetUnencryptedHTTP2(version == "HTTP/2.0")
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is a response, read to its end.
type answered struct {
	*http.Response
	body string
}

// do sends a request: headers are "name: value".
func do(t *testing.T, c *http.Client, method, url, body string, headers ...string) answered {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answered{resp, string(b)}
}

// await waits for a condition.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}
