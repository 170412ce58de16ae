package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
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

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config"
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
	vip     = "10.96.0.1"
	webPort = 80 // HTTP
	rawPort = 81 // TCP
	chain   = "inbound-vip|80|http|stock.shop.svc.cluster.local"
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
	endpoints map[string][]string // lines of YAML by cluster
	settings  map[string]string   // lines of YAML by cluster, beside the usual

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
		settings: map[string]string{}, behind: map[netip.AddrPort]string{}}
	own := w.svid(waypointID)
	tunnels := hbone.NewPool(hbone.PoolConfig{Dial: w.dialBackend, TLS: func(_ context.Context, target hbone.Target) (*tls.Config, error) {
		return identity.ClientTLS(own, target.Expect), nil
	}})
	w.clusters = upstream.New(upstream.Config{Tunnels: tunnels, Source: waypointID, Dial: w.dialPlain})
	cfg := Config{
		TLS:      func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(own, nil), nil },
		Clusters: w.clusters, Requests: telemetry.NewRequests("waypoint", w.registry),
		AccessLog: slog.New(slog.NewTextHandler(w.log, nil)), Sampling: 1,
		Leave: -1, Logger: slog.New(slog.DiscardHandler),
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
	w.endpoints[cluster] = append(w.endpoints[cluster], fmt.Sprintf(`
- endpoint: {address: {envoy_internal_address: {server_listener_name: connect_originate, endpoint_id: "%[1]s:8080"}}}
  load_balancing_weight: 1
  metadata:
    filter_metadata:
      ambit.io/peer: {identity: "%[2]s"}
      envoy.filters.listener.original_dst: {local: "%[1]s:8080"}
      envoy.transport_socket_match: {tunnel: h2}
      istio: {workload: "pod-%[3]d;shop;stock;v%[3]d;Kubernetes"}`, ip, id, n))
	return server
}

// httpPod is a pod in the mesh that serves HTTP/1.1 and HTTP/2.
func (w *world) httpPod(cluster string, n int, handler http.Handler) *hbone.Server {
	w.t.Helper()
	ln := newStreams()
	w.serveHTTP(ln, handler)
	return w.pod(cluster, n, backendID, func(nc net.Conn) {
		c := &tunnelled{Stream: nc.(*hbone.Stream), closed: make(chan struct{})}
		select {
		case ln.conns <- c:
			<-c.closed
		case <-ln.done:
		}
	})
}

// plainPod is an endpoint outside the mesh.
func (w *world) plainPod(cluster string, n int, handler http.Handler) {
	w.t.Helper()
	ln := w.listen()
	w.serveHTTP(ln, handler)
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
	w.endpoints[cluster] = append(w.endpoints[cluster], fmt.Sprintf(`
- endpoint: {address: {socket_address: {address: %s, port_value: 8080}}}
  load_balancing_weight: 1
  metadata: {filter_metadata: {istio: {workload: "plain-%d;shop;stock;v0;Kubernetes"}}}`, ip, n))
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

// cluster is the YAML of a cluster.
func (w *world) cluster(name string) string {
	protocol := w.settings[name]
	if protocol == "" {
		protocol = "use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}"
	}
	return fmt.Sprintf(`
name: "%[1]s"
type: EDS
connect_timeout: 10s
lb_policy: LEAST_REQUEST
eds_cluster_config: {service_name: "%[1]s", eds_config: {ads: {}, resource_api_version: V3}}
metadata: {filter_metadata: {istio: {services: [{host: stock.shop.svc.cluster.local, name: stock, namespace: shop}]}}}
transport_socket_matches:
- name: hbone
  match: {tunnel: h2}
  transport_socket:
    name: envoy.transport_sockets.internal_upstream
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
      passthrough_metadata: [{kind: {host: {}}, name: envoy.filters.listener.original_dst}]
      transport_socket: {name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
- name: plain
  match: {}
  transport_socket: {name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    %[2]s
`, name, protocol)
}

// listener is main_internal, with an HTTP port and a TCP port, whose connections go to the cluster raw.
const listener = `
name: main_internal
internal_listener: {}
filter_chain_matcher:
  matcher_tree:
    input: {name: ip, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput}}
    custom_match:
      name: ip
      typed_config:
        '@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher
        range_matchers:
        - ranges: [{address_prefix: 10.96.0.1, prefix_len: 32}]
          on_match:
            matcher:
              matcher_tree:
                input: {name: port, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput}}
                exact_match_map:
                  map:
                    "80": {action: {name: web, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: "inbound-vip|80|http|stock.shop.svc.cluster.local"}}}
                    "81": {action: {name: raw, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: raw}}}
filter_chains:
- name: inbound-vip|80|http|stock.shop.svc.cluster.local
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      common_http_protocol_options: {idle_timeout: 3600s}
      http_filters:
      - {name: envoy.filters.http.cors, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}
      - {name: envoy.filters.http.router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
      normalize_path: true
      path_with_escaped_slashes_action: KEEP_UNCHANGED
      rds: {config_source: {ads: {}, resource_api_version: V3}, route_config_name: "inbound-vip|80|http|stock.shop.svc.cluster.local"}
      server_header_transformation: PASS_THROUGH
      stat_prefix: web
      stream_idle_timeout: IDLE
      upgrade_configs: [{upgrade_type: websocket}]
      use_remote_address: false
- name: raw
  filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      cluster: raw
      idle_timeout: 3600s
      stat_prefix: raw
`

// apply makes clusters of the endpoints that were made so far, the listener and the routes (a YAML list) the configuration.
func (w *world) apply(routes string) { w.applyWith(routes, strings.ReplaceAll(listener, "IDLE", "0s")) }

func (w *world) applyWith(routes, listener string) {
	w.t.Helper()
	var clusters, assignments []*discoveryv3.Resource
	for name, endpoints := range w.endpoints {
		clusters = append(clusters, w.resource("envoy.config.cluster.v3.Cluster", name, w.cluster(name)))
		assignments = append(assignments, w.resource("envoy.config.endpoint.v3.ClusterLoadAssignment", name, fmt.Sprintf(
			"cluster_name: \"%s\"\nendpoints:\n- lb_endpoints:%s\n", name, strings.ReplaceAll(strings.Join(endpoints, ""), "\n", "\n  "))))
	}
	for _, h := range w.store.Handlers() {
		var push []*discoveryv3.Resource
		switch h.TypeURL {
		case xds.TypeCluster:
			push = clusters
		case xds.TypeEndpoints:
			push = assignments
		case xds.TypeListener:
			push = []*discoveryv3.Resource{w.resource("envoy.config.listener.v3.Listener", "main_internal", listener)}
		case xds.TypeRoutes:
			push = []*discoveryv3.Resource{w.resource("envoy.config.route.v3.RouteConfiguration", chain, fmt.Sprintf(`
name: "%s"
virtual_hosts:
- name: stock
  domains: ["*"]
  routes:
%s`, chain, indent(routes)))}
		}
		for _, r := range h.Apply(push, nil) {
			w.t.Fatalf("%s %s was rejected: %v", h.TypeURL, r.Name, r.Err)
		}
	}
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.Trim(s, "\n"), "\n", "\n  ") + "\n"
}

// resource makes a resource of YAML.
func (w *world) resource(kind, name, text string) *discoveryv3.Resource {
	w.t.Helper()
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(text), &fields); err != nil {
		w.t.Fatalf("%s %s: %v\n%s", kind, name, err, text)
	}
	fields["@type"] = "type.googleapis.com/" + kind
	b, err := json.Marshal(fields)
	if err != nil {
		w.t.Fatal(err)
	}
	var a anypb.Any
	if err := protojson.Unmarshal(b, &a); err != nil {
		w.t.Fatalf("%s %s: %v\n%s", kind, name, err, text)
	}
	return &discoveryv3.Resource{Name: name, Version: "1", Resource: &a}
}

// tunnel opens a client's connection to a port of the service.
func (w *world) tunnel(ctx context.Context, port int) (*hbone.Stream, error) {
	return w.clients.Open(ctx, hbone.Target{Addr: netip.MustParseAddrPort("192.0.2.1:15008"), Source: clientID, Expect: []identity.Identity{waypointID}},
		hbone.Request{Authority: fmt.Sprintf("%s:%d", vip, port), Forwarded: "for=10.9.9.9",
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
