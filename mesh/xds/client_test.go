package xds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// server hands each stream that it accepts to the test, which speaks for the control plane.
type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	streams chan *stream
	done    chan struct{}
}

// stream is one client's, in the hands of the test.
type stream struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	requests chan *discoveryv3.DeltaDiscoveryRequest
	end      chan error
}

func (s *server) DeltaAggregatedResources(gs discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	st := &stream{gs, make(chan *discoveryv3.DeltaDiscoveryRequest, 100), make(chan error, 1)}
	select {
	case s.streams <- st:
	case <-s.done:
		return nil
	}
	go func() {
		defer close(st.requests)
		for {
			req, err := gs.Recv()
			if err != nil {
				return
			}
			st.requests <- req
		}
	}()
	select {
	case err := <-st.end:
		return err
	case <-gs.Context().Done():
		return nil
	}
}

// listen serves at addr until the returned function is called.
func (s *server) listen(t *testing.T, addr string, opts ...grpc.ServerOption) (string, func()) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(opts...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, s)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Serve(ln); err != nil {
			t.Error(err)
		}
	}()
	stop := sync.OnceFunc(func() {
		srv.Stop()
		<-ended
	})
	return ln.Addr().String(), stop
}

// next returns the client's next request, which must be of that type.
func (s *stream) next(t *testing.T, typeURL string) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	select {
	case req, ok := <-s.requests:
		if !ok || req.GetTypeUrl() != typeURL {
			t.Fatalf("request %v (stream open: %v), want one for %s", req, ok, typeURL)
		}
		return req
	case <-time.After(patience):
		t.Fatalf("no request for %s", typeURL)
	}
	return nil
}

// push sends resources given as name=version, and removals, and returns the client's answer.
func (s *stream) push(t *testing.T, typeURL, nonce string, resources []string, removed ...string) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: removed}
	for _, r := range resources {
		name, version, _ := strings.Cut(r, "=")
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL}})
	}
	if err := s.Send(resp); err != nil {
		t.Fatal(err)
	}
	ack := s.next(t, typeURL)
	if ack.GetResponseNonce() != nonce {
		t.Fatalf("answer %v, want nonce %s", ack, nonce)
	}
	return ack
}

// store is a handler that keeps names and versions, and rejects names with "bad" in them at versions with "bad" in them.
type store struct {
	mu    sync.Mutex
	known map[string]string
	log   []string
}

func (s *store) apply(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rejected []xds.Rejection
	for _, r := range upserts {
		if strings.Contains(r.GetVersion(), "bad") {
			rejected = append(rejected, xds.Rejection{Name: r.GetName(), Err: errors.New("cannot be used")})
			continue
		}
		s.known[r.GetName()] = r.GetVersion()
		s.log = append(s.log, "+"+r.GetName())
	}
	for _, name := range removed {
		delete(s.known, name)
		s.log = append(s.log, "-"+name)
	}
	return rejected
}

func (s *store) have() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(s.known)) {
		all = append(all, name+"="+s.known[name])
	}
	return strings.Join(all, " ")
}

// fixture is a client with handlers for both types against a scripted server.
type fixture struct {
	server              *server
	addr                string
	stopServer          func()
	client              *xds.Client
	policies, addresses *store
	registry            *prometheus.Registry
	stop                func()
}

func start(t *testing.T, change ...func(*xds.Config)) *fixture {
	t.Helper()
	f := &fixture{
		server:   &server{streams: make(chan *stream), done: make(chan struct{})},
		policies: &store{known: map[string]string{}}, addresses: &store{known: map[string]string{}},
		registry: prometheus.NewRegistry(),
	}
	f.addr, f.stopServer = f.server.listen(t, "127.0.0.1:0")
	cfg := xds.Config{
		Connect: func() (xds.Conn, error) {
			return identity.NewChannel(identity.ChannelConfig{Address: "http://" + f.addr, Headers: map[string]string{"clusterid": "c"}})
		},
		Node:       &corev3.Node{Id: "ztunnel~1.2.3.4~pod.ns~ns.svc.cluster.local"},
		Handlers:   []xds.Handler{{TypeURL: xds.TypeAuthorization, Apply: f.policies.apply}, {TypeURL: xds.TypeAddress, Apply: f.addresses.apply}},
		Logger:     slog.New(slog.DiscardHandler),
		Registerer: f.registry,
	}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if f.client, err = xds.NewClient(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.client.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		f.stop()
		close(f.server.done)
		f.stopServer()
	})
	return f
}

// accept returns the next stream, and its two initial requests, which come in the order of the handlers.
func (f *fixture) accept(t *testing.T) (s *stream, policies, addresses *discoveryv3.DeltaDiscoveryRequest) {
	t.Helper()
	select {
	case s = <-f.server.streams:
	case <-time.After(patience):
		t.Fatal("no stream")
	}
	return s, s.next(t, xds.TypeAuthorization), s.next(t, xds.TypeAddress)
}

func (f *fixture) isSynced() bool {
	select {
	case <-f.client.Synced():
		return true
	default:
		return false
	}
}

func TestSubscribeAndAcknowledge(t *testing.T) {
	f := start(t)
	s, policies, addresses := f.accept(t)
	for _, req := range []*discoveryv3.DeltaDiscoveryRequest{policies, addresses} {
		if req.GetNode().GetId() == "" || len(req.GetResourceNamesSubscribe()) > 0 || len(req.GetInitialResourceVersions()) > 0 || req.GetResponseNonce() != "" {
			t.Errorf("initial request %v", req)
		}
	}
	md, _ := metadata.FromIncomingContext(s.Context())
	if got := md.Get("clusterid"); !slices.Equal(got, []string{"c"}) {
		t.Errorf("headers %v", md)
	}
	if f.isSynced() {
		t.Error("synced before anything came")
	}
	if ack := s.push(t, xds.TypeAddress, "n1", []string{"a=1", "b=1"}); ack.GetErrorDetail() != nil {
		t.Errorf("answer %v", ack)
	}
	if f.isSynced() {
		t.Error("synced before policies came")
	}
	if ack := s.push(t, xds.TypeAuthorization, "n2", nil); ack.GetErrorDetail() != nil {
		t.Errorf("answer %v", ack)
	}
	if !f.isSynced() {
		t.Error("not synced")
	}
	s.push(t, xds.TypeAddress, "n3", []string{"a=2", "c=1"}, "b")
	if got := f.addresses.have(); got != "a=2 c=1" {
		t.Errorf("addresses %s", got)
	}
	if ack := s.push(t, "type.googleapis.com/other", "n4", nil); ack.GetErrorDetail() == nil {
		t.Errorf("a type that nobody asked for was acknowledged: %v", ack)
	}
	if st := f.client.Status(); !st.Connected || len(st.Rejected) != 0 {
		t.Errorf("status %+v", st)
	}
	want := `
# HELP istio_xds_message_total Discovery responses received, by type.
# TYPE istio_xds_message_total counter
istio_xds_message_total{url="type.googleapis.com/istio.security.Authorization"} 1
istio_xds_message_total{url="type.googleapis.com/istio.workload.Address"} 2
`
	if err := testutil.GatherAndCompare(f.registry, strings.NewReader(want), "istio_xds_message_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(f.registry, "istio_xds_message_bytes_total"); n != 2 || err != nil {
		t.Errorf("%d series of bytes, %v", n, err)
	}
}

// TestRejection: a NACK names each rejected resource, the others are in force, and one bad resource does not hold up
// the start.
func TestRejection(t *testing.T) {
	f := start(t)
	s, _, _ := f.accept(t)
	s.push(t, xds.TypeAuthorization, "n1", nil)
	ack := s.push(t, xds.TypeAddress, "n2", []string{"a=1", "x=bad", "b=1", "y=bad"})
	msg := ack.GetErrorDetail().GetMessage()
	if ack.GetErrorDetail().GetCode() != int32(codes.InvalidArgument) || !strings.Contains(msg, "x: cannot be used") || !strings.Contains(msg, "y: cannot be used") || strings.Contains(msg, "a:") {
		t.Errorf("answer %v", ack)
	}
	if got := f.addresses.have(); got != "a=1 b=1" {
		t.Errorf("addresses %s", got)
	}
	if !f.isSynced() {
		t.Error("not synced")
	}
	if got := f.client.Status().Rejected[xds.TypeAddress]; len(got) != 2 || got["x"] != "cannot be used" {
		t.Errorf("status %v", got)
	}
	if ack := s.push(t, xds.TypeAddress, "n3", []string{"x=2"}, "y"); ack.GetErrorDetail() != nil {
		t.Errorf("answer %v", ack)
	}
	if got := f.client.Status().Rejected; len(got) != 0 {
		t.Errorf("status %v", got)
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf("r%d=bad", i))
	}
	if msg := s.push(t, xds.TypeAddress, "n4", many).GetErrorDetail().GetMessage(); len(msg) > 4096 || !strings.HasSuffix(msg, "950 more") {
		t.Errorf("%d bytes of reasons", len(msg))
	}
}

// TestReconnect: known versions are announced; a server that heeds them sends what differs.
func TestReconnect(t *testing.T) {
	var ended []string // what was known of addresses when a stream ended
	var f *fixture
	f = start(t, func(c *xds.Config) {
		c.Handlers[1].Ended = func() { ended = append(ended, f.addresses.have()) }
	})
	s, _, _ := f.accept(t)
	s.push(t, xds.TypeAuthorization, "n1", []string{"p=1"})
	s.push(t, xds.TypeAddress, "n2", []string{"a=1", "b=1", "c=1", "d=1", "x=bad"})
	s.push(t, xds.TypeAddress, "n3", []string{"b=2", "d=bad"})
	s.end <- status.Error(codes.Unavailable, "restart")

	s, policies, addresses := f.accept(t)
	if got := policies.GetInitialResourceVersions(); !maps.Equal(got, map[string]string{"p": "1"}) {
		t.Errorf("policies announced: %v", got)
	}
	if got := addresses.GetInitialResourceVersions(); !maps.Equal(got, map[string]string{"a": "1", "b": "2", "c": "1", "d": "", "x": ""}) {
		t.Errorf("addresses announced: %v", got)
	}
	if got := f.addresses.have(); got != "a=1 b=2 c=1 d=1" {
		t.Errorf("while away: %s", got)
	}
	s.push(t, xds.TypeAddress, "n1", []string{"b=3", "d=3", "e=1"}, "c", "x")
	if got := f.addresses.have(); got != "a=1 b=3 d=3 e=1" {
		t.Errorf("after: %s", got)
	}
	s.push(t, xds.TypeAuthorization, "n2", nil)
	if got := f.policies.have(); got != "p=1" {
		t.Errorf("policies after: %s", got)
	}
	if got := f.client.Status().Rejected; len(got) != 0 {
		t.Errorf("rejected after: %v", got)
	}
	f.stop()
	if want := []string{"a=1 b=2 c=1 d=1"}; !slices.Equal(ended, want) {
		t.Errorf("told of ends of streams with %q known, want %q", ended, want)
	}
}

// TestReconnectToServerThatSendsAll: what the first push leaves out is gone, with and without versions.
func TestReconnectToServerThatSendsAll(t *testing.T) {
	for name, v := range map[string]string{"versions": "1", "no versions": ""} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			s, _, _ := f.accept(t)
			s.push(t, xds.TypeAddress, "n1", []string{"a=" + v, "b=" + v, "x=bad"})
			s.end <- nil
			s, _, _ = f.accept(t)
			s.push(t, xds.TypeAddress, "n1", []string{"b=" + v, "c=" + v})
			if got, want := f.addresses.have(), "b="+v+" c="+v; got != want {
				t.Errorf("addresses %s, want %s", got, want)
			}
			// Only the first push of a stream is taken for everything.
			s.push(t, xds.TypeAddress, "n2", []string{"c=" + v})
			if got, want := f.addresses.have(), "b="+v+" c="+v; got != want {
				t.Errorf("after another push: %s, want %s", got, want)
			}
			if got := f.client.Status().Rejected; len(got) != 0 {
				t.Errorf("rejected: %v", got)
			}
		})
	}
}

// TestTooManyVersions: a server that does not take a request of that size is asked for everything instead.
func TestTooManyVersions(t *testing.T) {
	f := start(t)
	s, _, _ := f.accept(t)
	s.push(t, xds.TypeAddress, "n1", []string{"a=1", "b=1"})
	s.end <- nil
	s, _, addresses := f.accept(t)
	if len(addresses.GetInitialResourceVersions()) != 2 {
		t.Errorf("announced %v", addresses)
	}
	s.end <- status.Error(codes.ResourceExhausted, "received message larger than max")
	s, _, addresses = f.accept(t)
	if len(addresses.GetInitialResourceVersions()) != 0 {
		t.Errorf("announced again: %v", addresses)
	}
	s.push(t, xds.TypeAddress, "n1", []string{"b=7"})
	if got := f.addresses.have(); got != "b=7" {
		t.Errorf("addresses %s", got)
	}
}

// TestServerAway: state is kept and attempts go on while nothing listens.
func TestServerAway(t *testing.T) {
	attempts := make(chan struct{}, 1000)
	f := start(t, func(c *xds.Config) {
		connect := c.Connect
		c.Connect = func() (xds.Conn, error) {
			attempts <- struct{}{}
			return connect()
		}
	})
	s, _, _ := f.accept(t)
	s.push(t, xds.TypeAddress, "n1", []string{"a=1"})
	f.stopServer()
	for range 4 { // the one that is over, and three that fail
		select {
		case <-attempts:
		case <-time.After(patience):
			t.Fatal("no further attempt")
		}
	}
	if got := f.client.Status(); got.Connected || got.LastError == nil {
		t.Errorf("while away: status %+v", got)
	}
	if got := f.addresses.have(); got != "a=1" {
		t.Errorf("while away: %s", got)
	}
	_, f.stopServer = f.server.listen(t, f.addr)
	s, _, addresses := f.accept(t)
	if !maps.Equal(addresses.GetInitialResourceVersions(), map[string]string{"a": "1"}) {
		t.Errorf("announced %v", addresses)
	}
	s.push(t, xds.TypeAddress, "n1", nil, "a")
	if got := f.addresses.have(); got != "" {
		t.Errorf("after: %s", got)
	}
	if got := f.client.Status(); !got.Connected || got.LastError == nil {
		t.Errorf("status %+v", got)
	}
}

// TestPauses: attempts that fail come at longer and longer intervals, up to a quarter of a minute.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts []time.Time
		client, err := xds.NewClient(xds.Config{
			Connect: func() (xds.Conn, error) {
				attempts = append(attempts, time.Now())
				return nil, errors.New("no channel")
			},
			Node: &corev3.Node{}, Logger: slog.New(slog.DiscardHandler),
			Handlers: []xds.Handler{{TypeURL: "a", Apply: (&store{}).apply}},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := client.Run(ctx); err != nil {
			t.Error(err)
		}
		want := 10 * time.Millisecond
		for i := range len(attempts) - 1 {
			if got := attempts[i+1].Sub(attempts[i]); got < want*8/10 || got > want*12/10 {
				t.Errorf("pause %d is %v, want about %v", i+1, got, want)
			}
			want = min(2*want, 15*time.Second)
		}
		if len(attempts) < 25 {
			t.Errorf("%d attempts", len(attempts))
		}
		if got := client.Status(); got.Connected || !strings.Contains(got.LastError.Error(), "no channel") {
			t.Errorf("status %+v", got)
		}
	})
}

// TestLargePush: more than gRPC's default of 4 MiB.
func TestLargePush(t *testing.T) {
	f := start(t)
	s, _, _ := f.accept(t)
	var all []string
	for i := range 40_000 {
		all = append(all, fmt.Sprintf("Kubernetes//Pod/namespace/deployment-7c5ddbdf54-%06d=%064d", i, i))
	}
	if ack := s.push(t, xds.TypeAddress, "n1", all); ack.GetErrorDetail() != nil {
		t.Errorf("answer %v", ack)
	}
	f.addresses.mu.Lock()
	defer f.addresses.mu.Unlock()
	if len(f.addresses.known) != len(all) {
		t.Errorf("%d resources", len(f.addresses.known))
	}
}

// TestOptionalType: a type that the control plane does not serve does not hold up the start.
func TestOptionalType(t *testing.T) {
	f := start(t, func(c *xds.Config) { c.Handlers[0].Optional = true })
	s, _, _ := f.accept(t)
	s.push(t, xds.TypeAddress, "n1", nil)
	select {
	case <-f.client.Synced():
	case <-time.After(patience):
		t.Error("not synced")
	}
}

func TestConfigErrors(t *testing.T) {
	good := xds.Config{
		Connect: func() (xds.Conn, error) { return nil, io.EOF }, Node: &corev3.Node{}, Logger: slog.New(slog.DiscardHandler),
		Handlers: []xds.Handler{{TypeURL: "a", Apply: (&store{}).apply}},
	}
	if _, err := xds.NewClient(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*xds.Config){
		"no connect":      func(c *xds.Config) { c.Connect = nil },
		"no node":         func(c *xds.Config) { c.Node = nil },
		"no logger":       func(c *xds.Config) { c.Logger = nil },
		"no handlers":     func(c *xds.Config) { c.Handlers = nil },
		"handler of none": func(c *xds.Config) { c.Handlers = []xds.Handler{{TypeURL: "a"}} },
		"a type twice":    func(c *xds.Config) { c.Handlers = append(c.Handlers, c.Handlers[0]) },
		"metrics are there": func(c *xds.Config) {
			c.Registerer = prometheus.NewRegistry()
			if _, err := xds.NewClient(*c); err != nil {
				t.Error(err)
			}
		},
	} {
		cfg := good
		change(&cfg)
		if _, err := xds.NewClient(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMain(m *testing.M) { leaktest.Main(m) }
