package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
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
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// TestMain wants goroutines and sockets back when all tests are done.
func TestMain(m *testing.M) { leaktest.MainWithSockets(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

var (
	clientID   = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "curl"}
	waypointID = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "waypoint"}
	backendID  = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "stock"}
)

// The service that clients connect to.
const (
	webPort = 80 // HTTP
	rawPort = 81 // TCP
)

// world is a waypoint between clients and backends, on loopback.
type world struct {
	t         testing.TB
	ca        *identitytest.CA
	proxy     *Proxy
	clusters  *upstream.Clusters
	store     *config.Store
	registry  *prometheus.Registry
	log       *logBuffer
	addr      netip.AddrPort // of the proxy
	clients   *hbone.Pool
	endpoints map[string][]string // YAML by cluster
	settings  map[string]string   // YAML of protocol options by cluster
	more      map[string]string   // YAML of further fields by cluster
	policy    map[string]string   // how endpoints are chosen, by cluster
	tls       map[string]string   // YAML of TLS by cluster
	refused   map[string]string   // why, by cluster
	within    map[string]string   // in which time retries are always allowed, by cluster
	host      string              // YAML of further fields of the virtual host

	mu     sync.Mutex // guards what follows
	behind map[netip.AddrPort]string
}

// logBuffer is a log that tests may read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	ca, err := identitytest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ca: ca, registry: prometheus.NewRegistry(), log: &logBuffer{}, endpoints: map[string][]string{},
		settings: map[string]string{}, more: map[string]string{}, policy: map[string]string{}, tls: map[string]string{}, refused: map[string]string{}, within: map[string]string{}, behind: map[netip.AddrPort]string{}}
	own := w.svid(waypointID)
	tunnels := hbone.NewPool(hbone.PoolConfig{Dial: w.dialBackend, TLS: func(_ context.Context, target hbone.Target) (*tls.Config, error) {
		return identity.ClientTLS(own, target.Expect), nil
	}})
	w.clusters = upstream.New(upstream.Config{Tunnels: tunnels, Source: waypointID, Dial: w.dialPlain})
	cfg := Config{
		TLS:      func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(own, nil), nil },
		Clusters: w.clusters, Requests: telemetry.NewRequests("waypoint", w.registry),
		AccessLog: slog.New(slog.NewTextHandler(w.log, nil)), Sampling: 1,
		Leave: -1, Wait: -1, Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg)
	}
	w.proxy = New(cfg)
	w.store = config.NewStore(func(_, s *config.Snapshot) {
		w.clusters.Apply(s)
		w.proxy.Apply(s)
	})
	ln := w.listen()
	w.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	served := make(chan error, 1)
	go func() { served <- w.proxy.Serve(context.Background(), ln) }()
	client := w.svid(clientID)
	w.clients = hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { return dial(ctx, w.addr.String()) },
		TLS: func(_ context.Context, target hbone.Target) (*tls.Config, error) {
			return identity.ClientTLS(client, target.Expect), nil
		},
	})
	t.Cleanup(func() {
		_ = w.clients.Close()
		w.proxy.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		w.clusters.Close()
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
	s, err := identity.Request(context.Background(), w.ca, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// dialBackend connects to the node proxy of a pod.
func (w *world) dialBackend(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	to, ok := w.behind[addr]
	w.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("connect to %s: no such pod", addr)
	}
	return dial(ctx, to)
}

// dialPlain connects to a pod outside the mesh.
func (w *world) dialPlain(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	return w.dialBackend(ctx, addr)
}

// streams is a listener for connections that come in tunnels.
type streams struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newStreams() *streams { return &streams{conns: make(chan net.Conn), done: make(chan struct{})} }

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
	c := &tunnelled{Stream: nc.(*hbone.Stream), closed: make(chan struct{})}
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
	*hbone.Stream
	closed chan struct{}
	once   sync.Once
}

func (c *tunnelled) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Stream.Close()
}

// pod makes an endpoint of a cluster, in the mesh, whose connections go to serve, each in a goroutine of its own; it returns the
// node proxy's server. n tells pods apart.
func (w *world) pod(cluster string, n int, id identity.Identity, serve func(net.Conn)) *hbone.Server {
	w.t.Helper()
	svid := w.svid(id)
	ip := netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
	server := hbone.NewServer(hbone.ServerConfig{
		TLS: func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(svid, nil), nil },
		Handler: func(_ context.Context, in *hbone.Incoming) {
			if in.Peer() != waypointID {
				_ = in.Reject(401, "only the waypoint may come here")
				return
			}
			if want := netip.AddrPortFrom(ip, 8080).String(); in.Authority() != want {
				_ = in.Reject(400, "authority "+in.Authority()+", not "+want)
				return
			}
			s, err := in.Accept()
			if err != nil {
				return
			}
			serve(s)
		},
	})
	ln := w.listen()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), ln)
	}()
	w.t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	w.mu.Lock()
	w.behind[netip.AddrPortFrom(ip, 15008)] = ln.Addr().String()
	w.mu.Unlock()
	w.endpoints[cluster] = append(w.endpoints[cluster], configtest.HBONE(netip.AddrPortFrom(ip, 8080), id, fmt.Sprintf("pod-%d;shop;stock;v%d;Kubernetes", n, n)))
	return server
}

// httpPod is a pod in the mesh that serves HTTP/1.1 and HTTP/2.
func (w *world) httpPod(cluster string, n int, handler http.Handler) *hbone.Server {
	w.t.Helper()
	ln := newStreams()
	w.serveHTTP(ln, handler)
	return w.pod(cluster, n, backendID, ln.carry)
}

// plainPod is an endpoint outside the mesh.
func (w *world) plainPod(cluster string, n int, handler http.Handler) {
	w.t.Helper()
	ln := w.listen()
	w.serveHTTP(ln, handler)
	w.plainEndpoint(cluster, n, ln.Addr().String())
}

// plainTCP is an endpoint outside the mesh whose connections go to serve, each in a goroutine of its own.
func (w *world) plainTCP(cluster string, n int, serve func(net.Conn)) {
	w.t.Helper()
	ln := w.listen()
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go serve(nc)
		}
	}()
	w.t.Cleanup(func() { _ = ln.Close(); <-served })
	w.plainEndpoint(cluster, n, ln.Addr().String())
}

// plainEndpoint makes an endpoint outside the mesh that is at addr; "" for nowhere.
func (w *world) plainEndpoint(cluster string, n int, addr string) {
	ip := netip.AddrFrom4([4]byte{10, 1, 0, byte(n)})
	if addr != "" {
		w.mu.Lock()
		w.behind[netip.AddrPortFrom(ip, 8080)] = addr
		w.mu.Unlock()
	}
	w.endpoints[cluster] = append(w.endpoints[cluster], configtest.Plain(netip.AddrPortFrom(ip, 8080), fmt.Sprintf("plain-%d;shop;stock;v0;Kubernetes", n)))
}

func (w *world) serveHTTP(ln net.Listener, handler http.Handler) {
	server := &http.Server{Handler: handler, Protocols: new(http.Protocols), ErrorLog: nil}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	w.t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
}

// apply makes clusters of the endpoints that were made so far, the listener and the routes (a YAML list) the configuration.
func (w *world) apply(routes string) { w.applyWith(routes, configtest.Listener("0s")) }

func (w *world) applyWith(routes, listener string) {
	w.t.Helper()
	w.applyTypes(routes, listener, xds.TypeCluster, xds.TypeEndpoints, xds.TypeListener, xds.TypeRoutes)
}

// applyTypes applies resources of some types only.
func (w *world) applyTypes(routes, listener string, types ...string) {
	w.t.Helper()
	resources := configtest.Resources{Listener: listener, Routes: routes, Host: w.host}
	for name, endpoints := range w.endpoints {
		resources.Clusters = append(resources.Clusters, configtest.Cluster{Name: name, Options: w.settings[name], More: w.more[name], Policy: w.policy[name], TLS: w.tls[name], Refused: w.refused[name], RetriesWithin: w.within[name], Endpoints: endpoints})
	}
	for typeURL, push := range resources.All(w.t) {
		for _, h := range w.store.Handlers() {
			if h.TypeURL != typeURL || !slices.Contains(types, typeURL) {
				continue
			}
			for _, r := range h.Apply(push, nil) {
				w.t.Fatalf("%s %s was rejected: %v", h.TypeURL, r.Name, r.Err)
			}
		}
	}
}

// tunnel opens a client's connection to a port of the service.
func (w *world) tunnel(ctx context.Context, port int) (*hbone.Stream, error) {
	return w.clients.Open(ctx, hbone.Target{Addr: netip.MustParseAddrPort("192.0.2.1:15008"), Source: clientID, Expect: []identity.Identity{waypointID}},
		hbone.Request{Authority: fmt.Sprintf("%s:%d", configtest.Address, port), Forwarded: "for=10.9.9.9",
			Baggage: "k8s.namespace.name=shop,k8s.deployment.name=curl,service.name=curl,service.version=v1"})
}

func (w *world) mustTunnel(port int) *hbone.Stream {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := w.tunnel(ctx, port)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(2 * patience))
	return s
}

// versions are the versions of HTTP that clients speak.
var versions = []string{"HTTP/1.1", "HTTP/2.0"}

// client is an HTTP client in a pod. It speaks one version of HTTP.
func (w *world) client(version string) *http.Client {
	tr := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return w.tunnel(ctx, webPort) },
		Protocols:         new(http.Protocols),
		DisableKeepAlives: false, DisableCompression: true,
	}
	tr.Protocols.SetHTTP1(version == "HTTP/1.1")
	tr.Protocols.SetUnencryptedHTTP2(version == "HTTP/2.0")
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is a response, read to its end.
type answer struct {
	*http.Response
	body string
}

// do sends a request: headers are "name: value".
func do(t testing.TB, c *http.Client, method, url, body string, headers ...string) answer {
	t.Helper()
	a, err := try(c, method, url, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

func try(c *http.Client, method, url, body string, headers ...string) (answer, error) {
	if strings.HasPrefix(url, "/") {
		url = "http://stock.shop" + url
	}
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, url, r)
	if err != nil {
		return answer{}, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "host" {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp, string(b)}, err
}

// await waits for a condition.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}

// name answers with a name and what the request was like.
func name(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		w.Header().Set("x-backend", s)
		w.Header().Set("x-proto", r.Proto)
		fmt.Fprintf(w, "%s %s %s %s %s", s, r.Method, r.Host, r.RequestURI, b)
	})
}
