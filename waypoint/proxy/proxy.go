package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/mesh/thrift"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/jwt"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/trace"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// Defaults of Config.
const (
	// DefaultLeave is how long a proxy that drains still takes new connections.
	DefaultLeave = 5 * time.Second
	// DefaultWait is how long what the control plane may have on its way is waited for.
	DefaultWait = 2 * time.Second
	// DefaultMaxMirrors bounds the copies of requests under way.
	DefaultMaxMirrors = 1024
	// DefaultMaxMirrored bounds what copies hold of requests' bodies, in bytes.
	DefaultMaxMirrored = 16 << 20
)

// Config holds a proxy's settings. TLS, Clusters, Requests and Logger are required.
type Config struct {
	// TLS gives the configuration for the handshake of a tunnel; see hbone.ServerConfig.
	TLS func(*tls.ClientHelloInfo) (*tls.Config, error)
	// Revoked, if set, says why a client's certificates are not good any more.
	Revoked func(client []*x509.Certificate) error
	// Clusters are the backends at run time. They stay the caller's, to be closed after the proxy.
	Clusters *upstream.Clusters
	// Requests counts requests.
	Requests *telemetry.Requests
	// Policies counts decisions of AuthorizationPolicies; nil for none.
	Policies *telemetry.Policies
	// AccessLog takes a line for each request and connection; nil for none. Sampling is the share of those that went well that
	// is logged, 0 to 1.
	AccessLog *slog.Logger
	Sampling  float64
	// MaxStreams is how many tunnels share a client's connection; 0 for hbone's default. H2 are the settings of these connections.
	// What the configuration says of either holds over it.
	MaxStreams int
	H2         h2.Config
	// Leave is how long Drain takes new connections, whose clients have not noticed yet. Zero means DefaultLeave, less than zero:
	// not at all.
	Leave time.Duration
	// Wait is how long a connection to a destination that is not served, and a request whose routes have not come, wait for the
	// control plane, which may have told clients first. Zero means DefaultWait, less than zero: not at all.
	Wait time.Duration
	// MaxMirrors bounds the copies of requests under way, of which those to one cluster may be an eighth, at least one; what is beyond
	// is not copied. Zero means DefaultMaxMirrors.
	MaxMirrors int
	// MaxMirrored bounds what waits of requests' bodies for the backends of all copies together, in bytes; a copy that is in need of more
	// is given up. Zero means DefaultMaxMirrored.
	MaxMirrored int64
	// Tracers send spans; nil: none are. They stay the caller's, to be closed after the proxy.
	Tracers *trace.Tracers
	// Logger takes what concerns the proxy itself.
	Logger *slog.Logger
}

// Proxy serves tunnels. Its methods may be called concurrently.
type Proxy struct {
	cfg      Config
	snapshot atomic.Pointer[config.Snapshot]
	mirrors  mirrors
	watchdog watchdog
	crew     *thrift.Crew   // of handlers
	handlers sync.WaitGroup // goroutines of crew
	ending   chan struct{}  // closed by Close
	tokens   *jwt.Cache     // that were verified
	counts   Counts

	mu       sync.Mutex    // guards what follows; never held across I/O
	server   *hbone.Server // nil until Serve
	draining bool
	closed   bool
	conns    map[*connection]struct{}                // that speak HTTP
	carried  map[*connection]context.CancelCauseFunc // that do not
	tunnels  int                                     // handlers
	news     chan struct{}                           // closed by Apply
}

// Counts is what a proxy has done and does.
type Counts struct {
	// Connections that were served, as HTTP and TCP, and refused since nothing is configured for their destination.
	HTTP, TCP, Refused atomic.Uint64
	// Retries are tries after the first; MirrorsDropped copies that were not sent, or not whole.
	Retries, MirrorsDropped atomic.Uint64
}

// New returns a proxy that serves nothing until Apply and Serve. The caller must Close it.
func New(cfg Config) *Proxy {
	if cfg.Leave == 0 {
		cfg.Leave = DefaultLeave
	}
	if cfg.Wait == 0 {
		cfg.Wait = DefaultWait
	}
	if cfg.MaxMirrors == 0 {
		cfg.MaxMirrors = DefaultMaxMirrors
	}
	if cfg.MaxMirrored == 0 {
		cfg.MaxMirrored = DefaultMaxMirrored
	}
	p := &Proxy{cfg: cfg, conns: map[*connection]struct{}{}, carried: map[*connection]context.CancelCauseFunc{}, news: make(chan struct{}), tokens: jwt.NewCache(0)}
	p.snapshot.Store(&config.Snapshot{})
	p.ending = make(chan struct{})
	p.crew = thrift.NewCrew(p.ending, &p.handlers)
	p.mirrors.init(p)
	p.watchdog.start()
	return p
}

// Counts are live.
func (p *Proxy) Counts() *Counts { return &p.counts }

// Apply makes a snapshot the one in force, for new connections and requests. Connections that speak HTTP to a destination that
// is not served so any more end with the requests that they have. Those that speak something else end if policy denies them now, and so
// do WebSockets and the like, and calls of gRPC.
func (p *Proxy) Apply(s *config.Snapshot) {
	p.snapshot.Store(s)
	var out []*connection
	p.mu.Lock()
	close(p.news)
	p.news = make(chan struct{})
	for c := range p.conns {
		if now := s.Chain(c.destination); now != c.chain && !c.stillServed(now) {
			out = append(out, c)
		}
	}
	p.mu.Unlock()
	for _, c := range out {
		c.server.Shutdown()
	}
	p.rejudge(s)
}

// Serve takes tunnel connections on ln, which it owns, until Drain or Close. It returns nil then. The first call settles how
// tunnels are served, by the listener for them in the snapshot that is in force, if there is one.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener) error {
	p.mu.Lock()
	if p.server == nil {
		p.server = p.newServer(p.snapshot.Load().Terminate())
	}
	server, over := p.server, p.draining || p.closed
	p.mu.Unlock()
	if over {
		return ln.Close()
	}
	err := server.Serve(ctx, ln)
	if errors.Is(err, hbone.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return err
}

// newServer makes the server of tunnels. t may be nil.
func (p *Proxy) newServer(t *config.Terminate) *hbone.Server {
	cfg := hbone.ServerConfig{
		TLS: p.cfg.TLS, Revoked: p.cfg.Revoked, MaxStreams: p.cfg.MaxStreams, H2: p.cfg.H2, Handler: p.tunnel, Logger: p.cfg.Logger,
		Refused: func(nc net.Conn, err error) {
			p.cfg.Logger.Warn("a tunnel connection was refused", "peer", nc.RemoteAddr(), "error", err)
		},
	}
	cfg.H2.Go = p.crew.Do
	if t != nil {
		if t.MaxConcurrentStreams > 0 {
			cfg.MaxStreams = int(min(t.MaxConcurrentStreams, 1<<16))
		}
		cfg.H2.KeepaliveInterval = cmp.Or(t.KeepaliveInterval, cfg.H2.KeepaliveInterval)
		cfg.H2.KeepaliveTimeout = cmp.Or(t.KeepaliveTimeout, cfg.H2.KeepaliveTimeout)
	}
	return hbone.NewServer(cfg)
}

// Recheck ends connections whose clients' certificates are not good any more, and returns how many.
func (p *Proxy) Recheck() int {
	p.mu.Lock()
	server := p.server
	p.mu.Unlock()
	if server == nil {
		return 0
	}
	return server.Recheck()
}

// Drain brings the proxy to its end and loses nothing: clients are told to open no more tunnels here and no more requests in
// those that they have; who has not noticed yet is served for a while. It returns when nothing is open any more, or, with an
// error, when ctx ends; then Close cuts what is left.
func (p *Proxy) Drain(ctx context.Context) error {
	p.mu.Lock()
	p.draining = true
	conns := make([]*connection, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	server := p.server
	p.mu.Unlock()
	if server == nil {
		return nil
	}
	server.GoAway()
	for _, c := range conns {
		c.server.Shutdown()
	}
	if p.cfg.Leave > 0 {
		select {
		case <-time.After(p.cfg.Leave):
		case <-ctx.Done():
		}
	}
	return server.Shutdown(ctx)
}

// Close cuts what is open and waits for it.
func (p *Proxy) Close() {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	server := p.server
	p.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
	p.mirrors.close()
	p.watchdog.close()
	if first {
		close(p.ending)
	}
	p.handlers.Wait()
}

// Open returns how many tunnels are open.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tunnels
}

// tunnel serves one CONNECT.
func (p *Proxy) tunnel(ctx context.Context, in *hbone.Incoming) {
	p.mu.Lock()
	p.tunnels++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.tunnels--
		p.mu.Unlock()
	}()
	authority, err := hbone.ParseAuthority(in.Authority())
	if err != nil {
		_ = in.Reject(400, err.Error())
		return
	}
	destination := authority.AddrPort()
	var chain *config.Chain
	if destination.IsValid() {
		if chain = p.snapshot.Load().Chain(destination); chain == nil {
			chain = p.await(ctx, func(s *config.Snapshot) bool { return s.Chain(destination) != nil }).Chain(destination)
		}
	}
	if chain == nil {
		p.counts.Refused.Add(1)
		reason := fmt.Sprintf("this waypoint does not serve %s: no service that is bound to it has that address and port, and no workload the address", authority)
		p.cfg.Logger.Warn("a connection was refused", "client", in.Peer(), "destination", authority.String(), "reason", reason)
		_ = in.Reject(404, reason)
		return
	}
	c := &connection{
		proxy: p, chain: chain, destination: destination,
		peer: in.Peer(), principal: in.Peer().String(), holder: in.RemoteAddr().Addr().Unmap(), source: unique.Make(sourceOf(in)), client: clientAddr(in),
	}
	switch {
	case chain.Names != nil:
		c.byName(ctx, in)
	case chain.TCP != nil:
		c.tcp(ctx, &caller{in: in})
	default:
		c.http(ctx, in)
	}
}

// connection is a client's connection through its tunnel.
type connection struct {
	proxy       *Proxy
	chain       *config.Chain
	destination netip.AddrPort // what the client connected to
	asked       string         // the server that a client of TLS asks for
	unnamed     bool           // the client is known to ask for none
	peer        identity.Identity
	principal   string     // of the client, as its certificate says
	holder      netip.Addr // whose end of the tunnel's connection is the client's
	source      unique.Handle[telemetry.Party]
	client      netip.AddrPort               // the client's address, as its proxy says
	server      *codec.Server                // of HTTP
	routes      atomic.Pointer[route.Table]  // those that served the last request, or were there when the connection came
	tells       atomic.Pointer[told]         // what is told of it, by the snapshot that was in force last
	judged      atomic.Pointer[config.Chain] // by whose policies
	audits      []*policy.RequestPolicy      // of others
	bucket      atomic.Pointer[connectionBucket]

	mu   sync.Mutex                // guards what follows
	long map[*request]*policy.Head // requests that may take long, as they were judged
}

// stillServed tells whether a connection of HTTP can go on under a chain for its destination.
func (c *connection) stillServed(now *config.Chain) bool {
	return now != nil && now.HTTP != nil && now.Name == c.chain.Name
}

// http serves a connection of HTTP.
func (c *connection) http(ctx context.Context, in *hbone.Incoming) {
	s, err := in.Accept()
	if err != nil {
		return // the client is gone
	}
	c.serveHTTP(ctx, s)
}

// serveHTTP serves HTTP on nc, which it closes.
func (c *connection) serveHTTP(ctx context.Context, nc net.Conn) {
	p, h := c.proxy, c.chain.HTTP
	p.counts.HTTP.Add(1)
	cfg := &codec.ServerConfig{
		MaxHeader: h.MaxRequestHeader, MaxFields: h.MaxHeaderFields, HeaderTimeout: h.RequestHeadersTimeout,
		IdleTimeout: h.IdleTimeout,
	}
	if h.IdleTimeout == 0 {
		cfg.IdleTimeout = -1
	}
	cfg.H2.MaxStreams = h.MaxConcurrentStreams
	cfg.H2.Go = p.crew.Do
	cfg.OnRefuse = c.refused
	c.routes.Store(p.snapshot.Load().Routes(h.Routes))
	c.server = codec.NewServer(nc, cfg, c.serve)
	p.mu.Lock()
	p.conns[c] = struct{}{}
	draining := p.draining
	p.mu.Unlock()
	if draining || !c.stillServed(p.snapshot.Load().Chain(c.destination)) {
		c.server.Shutdown()
	}
	err := c.server.Run(ctx)
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	if err != nil {
		p.cfg.Logger.Debug("a client's connection ended", "client", c.principal, "chain", c.chain.Name, "error", err)
	}
}
