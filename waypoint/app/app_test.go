package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// TestMain wants goroutines and sockets back when all tests are done.
func TestMain(m *testing.M) { leaktest.MainWithSockets(m) }

const patience = 30 * time.Second

// plane is a control plane: discovery and CA.
type plane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	ca        *identitytest.CA
	resources map[string][]*discoveryv3.Resource
	server    *grpc.Server
	addr      string

	mu    sync.Mutex // guards what follows
	node  string     // the id of who asks
	label string     // its Gateway
	nacks []string
	push  func(typeURL string, r *discoveryv3.Resource) error // to who is connected
}

func newPlane(t *testing.T, resources configtest.Resources) *plane {
	t.Helper()
	ca, err := identitytest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{ca: ca, resources: map[string][]*discoveryv3.Resource{}}
	for typeURL, list := range resources.All(t) {
		p.resources[typeURL] = list
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = "http://" + ln.Addr().String()
	p.server = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(p.server, p)
	securityv1alpha1.RegisterIstioCertificateServiceServer(p.server, p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.server.Serve(ln)
	}()
	t.Cleanup(func() {
		p.server.Stop()
		<-done
	})
	return p
}

// DeltaAggregatedResources answers the first request of each type with all that there is.
func (p *plane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	var sending sync.Mutex
	send := func(typeURL string, all ...*discoveryv3.Resource) error {
		sending.Lock()
		defer sending.Unlock()
		return s.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: "1", Resources: all})
	}
	p.mu.Lock()
	p.push = func(typeURL string, r *discoveryv3.Resource) error { return send(typeURL, r) }
	p.mu.Unlock()
	for {
		req, err := s.Recv()
		if err != nil {
			return err
		}
		p.mu.Lock()
		if n := req.GetNode(); n != nil {
			p.node = n.GetId()
			p.label = n.GetMetadata().GetFields()["LABELS"].GetStructValue().GetFields()["gateway.networking.k8s.io/gateway-name"].GetStringValue()
		}
		if d := req.GetErrorDetail(); d != nil {
			p.nacks = append(p.nacks, d.GetMessage())
		}
		p.mu.Unlock()
		if req.GetResponseNonce() != "" {
			continue
		}
		if err := send(req.GetTypeUrl(), p.resources[req.GetTypeUrl()]...); err != nil {
			return err
		}
	}
}

// CreateCertificate signs for the waypoint's service account.
func (p *plane) CreateCertificate(ctx context.Context, r *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	if len(r.GetMetadata().GetFields()) > 0 {
		return nil, fmt.Errorf("a waypoint asks for its own certificate, not for others': %v", r.GetMetadata())
	}
	chain, err := p.ca.Issue(ctx, waypointID, []byte(r.GetCsr()))
	return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, err
}

var (
	waypointID = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "waypoint"}
	backendID  = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "stock"}
	clientID   = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "curl"}
)

// pod is a backend behind its node proxy, which answers one request after another; it returns where its node proxy is.
func pod(t *testing.T, ca *identitytest.CA) string {
	t.Helper()
	svid := mustSVID(t, ca, backendID)
	server := hbone.NewServer(hbone.ServerConfig{
		TLS: func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(svid, nil), nil },
		Handler: func(_ context.Context, in *hbone.Incoming) {
			s, err := in.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			for {
				if n, err := s.Read(b); n == 0 || err != nil {
					return
				}
				text := in.Peer().String()
				fmt.Fprintf(s, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(text), text)
			}
		},
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(context.Background(), ln)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return ln.Addr().String()
}

func mustSVID(t *testing.T, ca *identitytest.CA, id identity.Identity) *identity.SVID {
	t.Helper()
	svid, err := identity.Request(context.Background(), ca, id)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// buffer is a log that tests may read.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// get reads a page.
func get(addr, path string) (int, string) {
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := plain.Get("http://" + addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// ports are the addresses of a waypoint's ports, once they are open.
type ports struct {
	mu   sync.Mutex
	open map[string]net.Addr
}

func (p *ports) opened(name string, a net.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[string]net.Addr{}
	}
	p.open[name] = a
}

// addr waits for a port.
func (p *ports) addr(t *testing.T, name string) string {
	t.Helper()
	var found net.Addr
	await(t, "port "+name+" is open", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		found = p.open[name]
		return found != nil
	})
	return found.String()
}

// checkPages wants the ports for people and tools to show what they should.
func checkPages(t *testing.T, p *ports) {
	t.Helper()
	metrics, admin := p.addr(t, "metrics"), p.addr(t, "admin")
	for _, tt := range []struct{ addr, path, want string }{
		{metrics, "/stats/prometheus", "istio_requests_total"},
		{admin, "/config_dump", configtest.Chain},
		{admin, "/clusters", `"identity": "` + backendID.String()},
		{admin, "/clusters", `"health": "healthy"`},
		{admin, "/listeners", `"routes": "ready"`},
		{admin, "/listeners", configtest.Address + ":80"},
		{admin, "/stats", `"connectionsHTTP": 1`},
		{admin, "/logging", "info"},
		{admin, "/debug/pprof/goroutine?debug=1", "goroutine"},
	} {
		if code, body := get(tt.addr, tt.path); code != 200 || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %d without %q:\n%.2000s", tt.path, code, tt.want, body)
		}
	}
}

// await waits for a condition. It counts looks, not time: what is stopped as a whole, as by a debugger or on a machine that pauses,
// has had no time to make the condition true.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	const pause = 5 * time.Millisecond
	for range patience / pause {
		if cond() {
			return
		}
		<-time.After(pause)
	}
	t.Fatalf("not in %v: %s", patience, what)
}

// running is a waypoint that runs, and has one backend.
type running struct {
	plane *plane
	ports *ports
	log   *buffer
	end   func() // has the program end, and wants it to do so in order
}

// runWaypoint runs the program against a control plane, with more in its environment.
func runWaypoint(t *testing.T, environ ...string) *running {
	t.Helper()
	endpoint := netip.MustParseAddrPort("10.0.0.1:8080")
	plane := newPlane(t, configtest.Resources{
		Clusters:  []configtest.Cluster{{Name: "c", Endpoints: []string{configtest.HBONE(endpoint, backendID, "stock-v1;shop;stock;v1;Kubernetes")}}},
		Listener:  configtest.Listener("0s"),
		Terminate: configtest.Terminate,
		Routes:    `- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s}}`,
	})
	behind := pod(t, plane.ca)
	s, _, err := parseSettings(append([]string{
		"POD_NAME=waypoint-1", "POD_NAMESPACE=shop", "SERVICE_ACCOUNT=waypoint", "INSTANCE_IP=10.0.0.9", "AMBIT_GATEWAY=waypoint",
		"XDS_ADDRESS=" + plane.addr, "CA_ADDRESS=" + plane.addr, "AUTH_TOKEN=off", "AMBIT_TRUST_BUNDLE=/nonexistent",
		"MINIMUM_DRAIN_DURATION=1ms", "AMBIT_ACCESS_LOG_SAMPLING=1",
	}, environ...))
	if err != nil {
		t.Fatal(err)
	}
	r := &running{plane: plane, ports: &ports{}, log: &buffer{}}
	any := []string{"127.0.0.1:0"}
	n := network{
		tunnels: any, admin: any, stats: any, healthz: any,
		dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			if addr != netip.MustParseAddrPort("10.0.0.1:15008") {
				return nil, fmt.Errorf("connect to %s: nobody is there", addr)
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", behind)
		},
		listening: r.ports.opened,
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, s, nil, n, r.log) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the waypoint does not end")
		}
	})
	t.Cleanup(r.end)
	await(t, "the waypoint is ready", func() bool {
		code, _ := get(r.ports.addr(t, "readiness"), "/healthz/ready")
		return code == 200
	})
	return r
}

// client opens tunnels under an identity. Its requests go through one tunnel connection as long as that lives.
func (r *running) client(t *testing.T, own *identity.SVID) *http.Client {
	t.Helper()
	addr := netip.MustParseAddrPort(r.ports.addr(t, "tunnels"))
	tunnels := hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", a.String())
		},
		TLS: func(context.Context, hbone.Target) (*tls.Config, error) {
			return identity.ClientTLS(own, []identity.Identity{waypointID}), nil
		},
	})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return tunnels.Open(ctx, hbone.Target{Addr: addr, Source: own.Identity}, hbone.Request{Authority: configtest.Address + ":80"})
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = tunnels.Close()
	})
	return &http.Client{Transport: transport, Timeout: patience}
}

// ask sends a request, whose answer must be the waypoint's identity.
func ask(client *http.Client) error {
	resp, err := client.Get("http://stock.shop/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != waypointID.String() {
		return fmt.Errorf("%d %q; want the waypoint's identity", resp.StatusCode, b)
	}
	return nil
}

// TestWaypoint runs the program against a control plane: it gets a certificate and a configuration, becomes ready, carries a
// request to a pod under its own name, goes on while the control plane is away, and ends in order.
func TestWaypoint(t *testing.T) {
	r := runWaypoint(t)
	plane := r.plane
	plane.mu.Lock()
	if want := "waypoint~10.0.0.9~waypoint-1.shop~shop.svc.cluster.local"; plane.node != want || plane.label != "waypoint" || len(plane.nacks) > 0 {
		t.Errorf("node %q of Gateway %q; rejected: %v", plane.node, plane.label, plane.nacks)
	}
	plane.mu.Unlock()
	client := r.client(t, mustSVID(t, plane.ca, clientID))
	if err := ask(client); err != nil {
		t.Fatal(err)
	}
	plane.server.Stop()
	await(t, "the control plane is missed", func() bool {
		_, body := get(r.ports.addr(t, "readiness"), "/healthz/ready")
		return strings.Contains(body, "away")
	})
	if err := ask(client); err != nil {
		t.Fatal(err)
	}
	checkPages(t, r.ports)
	r.end()
	if got := r.log.String(); !strings.Contains(got, "request complete") || !strings.Contains(got, "msg=ended") {
		t.Errorf("log:\n%s", got)
	}
}

func TestSettings(t *testing.T) {
	if _, _, err := parseSettings([]string{"POD_NAME=x", "AMBIT_ACCESS_LOG_SAMPLING=2", "SECRET_TTL=soon", "ISTIO_METAJSON_LABELS={"}); err == nil {
		t.Fatal("no error")
	} else {
		for _, want := range []string{"POD_NAMESPACE: is not set", "SERVICE_ACCOUNT: is not set", "AMBIT_ACCESS_LOG_SAMPLING", "SECRET_TTL", "ISTIO_METAJSON_LABELS"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not tell of %q:\n%v", want, err)
			}
		}
	}
	s, notes, err := parseSettings([]string{"POD_NAME=w-1", "POD_NAMESPACE=shop", "SERVICE_ACCOUNT=sa", "ISTIO_META_WORKLOAD_NAME=gw",
		"TERMINATION_GRACE_PERIOD_SECONDS=60", "AMBIT_SOMETHING=1"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Gateway != "gw" || s.Grace != 55*time.Second || len(notes) != 1 || s.XDS.Address != "https://istiod.istio-system.svc:15012" {
		t.Errorf("%+v, %v", s, notes)
	}
}

// TestPagesAreDocumented: docs/waypoint.md tells of every page of the loopback endpoint.
func TestPagesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/waypoint.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range new(parts).pages() {
		if !strings.Contains(string(page), "\n| `/"+p.Path+"` |") {
			t.Errorf("docs/waypoint.md does not tell of /%s", p.Path)
		}
	}
}
