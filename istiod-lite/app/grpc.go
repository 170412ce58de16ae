package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/ca"
	"github.com/ambit-mesh/ambit/istiod-lite/xds"
)

// Limits of gRPC connections.
const (
	// maxRequest bounds one message from a client. A node proxy that comes back names all that it has: about 80 bytes for
	// each of at most some 200,000 workloads and services.
	maxRequest = 64 << 20
	// maxStreams bounds the calls of one connection; a node proxy makes one stream and a handful of calls.
	maxStreams = 100
	// maxConnectionAge is how long a connection lives, give or take a tenth: long enough to cost nothing, short enough
	// that clients spread over replicas. Streams then have maxConnectionGrace to end.
	maxConnectionAge   = 30 * time.Minute
	maxConnectionGrace = 10 * time.Second
	// Pings find dead clients; clients' own pings are always welcome.
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second
	minPing     = 5 * time.Second
	// handshakeTimeout bounds the time until a connection has spoken HTTP/2.
	handshakeTimeout = 10 * time.Second
	// drainStreams is the time over which clients are sent away, and drainCalls what calls have to end after it.
	drainStreams = 2 * time.Second
	drainCalls   = 5 * time.Second
)

// grpcServers are the listeners for clients: with TLS and authentication, and the plain one if asked for.
type grpcServers struct {
	secure, plain      net.Listener
	secured, unguarded *grpc.Server
}

func (p *program) listenGRPC() (*grpcServers, error) {
	s := &grpcServers{}
	var err error
	if s.secure, err = net.Listen("tcp", p.cfg.GRPCAddr); err != nil {
		return nil, fmt.Errorf("listen for xDS and CA: %w", err)
	}
	if p.cfg.PlaintextAddr != "" {
		if s.plain, err = net.Listen("tcp", p.cfg.PlaintextAddr); err != nil {
			s.secure.Close()
			return nil, fmt.Errorf("listen for xDS in plaintext: %w", err)
		}
	}
	authenticator, refusals := p.authenticator(), auth.NewRefusals(p.log)
	s.secured = newServer(grpc.Creds(credentials.NewTLS(p.tlsConfig())))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.secured, &xds.Server{
		Hub: p.hub, Waypoints: p.waypoints, Identify: authenticator.Caller, Admit: xds.NodeProxies(p.cfg.TrustedNodeAccounts),
		Refusals: refusals, Log: p.log.With("room", "xds"),
	})
	(&ca.Service{
		Authority: p.authority, Identify: authenticator.CallerByToken, Pods: p.roster,
		TrustDomain:  func() string { return p.loop.Settings().TrustDomain },
		NodeAccounts: p.cfg.TrustedNodeAccounts, Metrics: p.caMetrics, Refusals: refusals, Log: p.log.With("room", "ca"), Now: time.Now,
	}).Register(s.secured)
	if s.plain != nil {
		s.unguarded = newServer()
		discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.unguarded, &xds.Server{
			Hub: p.hub, Waypoints: p.waypoints, Unguarded: true,
			Identify: func(context.Context) (auth.Caller, error) { return auth.Caller{}, nil },
			Admit:    func(auth.Caller) error { return nil },
			Refusals: refusals, Log: p.log.With("room", "xds", "plaintext", true),
		})
	}
	return s, nil
}

func newServer(opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts,
		grpc.ForceServerCodecV2(xds.Codec()),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: maxConnectionGrace, Time: pingAfter, Timeout: pingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	)...)
}

// tlsConfig asks for no certificate but verifies one that comes: callers may show a token instead.
func (p *program) tlsConfig() *tls.Config {
	serving := ca.NewServing(p.authority, ca.Names(api.ControlPlaneService, api.ControlPlaneDeployment, p.cfg.Namespace, p.cfg.ClusterDomain), time.Now)
	base := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2"},
		GetCertificate: serving.Certificate,
		ClientAuth:     tls.VerifyClientCertIfGiven,
	}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cfg := base.Clone() // the roots are those of now
		cfg.ClientCAs = p.authority().RootPool()
		return cfg, nil
	}
	return outer
}

// serve starts the servers. Their goroutines end with stop.
func (s *grpcServers) serve(rooms *sync.WaitGroup, failed chan<- error) {
	start := func(server *grpc.Server, ln net.Listener) {
		rooms.Go(func() {
			if err := server.Serve(ln); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- fmt.Errorf("serve %s: %w", ln.Addr(), err)
			}
		})
	}
	start(s.secured, s.secure)
	if s.plain != nil {
		start(s.unguarded, s.plain)
	}
}

// graceful tells clients on all connections to make new ones, lets calls end, and cuts those that take too long.
func (s *grpcServers) graceful() {
	cut := time.AfterFunc(drainStreams+drainCalls, s.stop)
	defer cut.Stop()
	var plain sync.WaitGroup
	if s.unguarded != nil {
		plain.Go(s.unguarded.GracefulStop)
	}
	s.secured.GracefulStop()
	plain.Wait()
}

// stop cuts everything. It may be called more than once.
func (s *grpcServers) stop() {
	s.secured.Stop()
	if s.unguarded != nil {
		s.unguarded.Stop()
	}
}

// drain lets clients move to another replica: this one stops being ready and leading, serves on until the Service has
// noticed, and then sends its clients away.
func (p *program) drain(s *grpcServers, endElection func()) {
	p.status.set(partDrain, "draining")
	p.log.Info("draining", "serving on for", p.cfg.DrainDelay.String())
	endElection()
	time.Sleep(p.cfg.DrainDelay)
	var calls sync.WaitGroup
	calls.Go(s.graceful) // first, so that a client whose stream ends does not open another on the same connection
	var told sync.WaitGroup
	told.Go(func() { p.waypoints.Drain(drainStreams) })
	p.hub.Drain(drainStreams)
	told.Wait()
	calls.Wait()
	p.log.Info("drained")
}
