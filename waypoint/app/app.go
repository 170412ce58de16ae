// Package app puts the waypoint together: it reads the settings, makes the rooms from the bottom up, starts them in the order
// in which they need each other, and ends them in the other.
package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/mesh/admin"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/lookup"
	mesh "github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/mesh/thrift"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/proxy"
	"github.com/ambit-mesh/ambit/waypoint/trace"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

const usage = `usage: waypoint [proxy [waypoint]] | version | help

proxy (the default) serves the services that are bound to a Gateway of class istio-waypoint. Its settings are environment
variables, which the control plane sets in the pods that it makes; see docs/settings.md.
`

// Run is the program. It returns when the context ends or a signal (SIGTERM, SIGINT) comes, and the connections have ended
// or their grace period is over. A second signal ends the process at once.
func Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	command := "proxy"
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "proxy":
		if len(args) > 2 || len(args) == 2 && args[1] != "waypoint" {
			return fmt.Errorf("unknown arguments %q\n%s", args[1:], usage)
		}
		s, notes, err := parseSettings(environ)
		if err != nil {
			return err
		}
		signal.Ignore(syscall.SIGPIPE) // if who reads the log dies, connections do not
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
		context.AfterFunc(ctx, stop) // a second signal has its usual effect
		defer stop()
		return serve(ctx, s, notes, standardNetwork(), stderr)
	case "version", "--version", "-version":
		_, err := fmt.Fprintln(stdout, "waypoint", build.Version())
		return err
	case "help", "--help", "-h":
		_, err := io.WriteString(stdout, usage)
		return err
	default:
		return fmt.Errorf("unknown command %q\n%s", command, usage)
	}
}

// network is where the waypoint listens and how it connects; tests have another than the standard one.
type network struct {
	// tunnels are the addresses of the tunnel port, of which at least one must work.
	tunnels               []string
	admin, stats, healthz []string
	dial                  func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// listening, if set, is told of each port that was opened: "tunnels", "admin", "metrics", "readiness".
	listening func(port string, a net.Addr)
}

func standardNetwork() network {
	at := func(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
	var d net.Dialer
	return network{
		tunnels: []string{at("", api.PortHBONE)},
		admin:   []string{at("127.0.0.1", api.PortAdmin), at("::1", api.PortAdmin)},
		stats:   []string{at("", api.PortStats)}, healthz: []string{at("", api.PortReadiness)},
		dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr.String())
		},
	}
}

// reaches tells which addresses can be connected to from here: those of families that the pod has an address of. Where nothing is known
// of that, it tells nothing: nil.
func reaches() func(netip.Addr) bool {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var has4, has6 bool
	for _, a := range own {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().IsGlobalUnicast() {
			continue
		}
		has4, has6 = has4 || p.Addr().Is4(), has6 || p.Addr().Is6()
	}
	if has4 == has6 {
		return nil
	}
	return func(a netip.Addr) bool { return a.Unmap().Is4() == has4 }
}

// targets are those of log lines.
var targets = [...]string{telemetry.TargetAccess, "app", "identity", "proxy", "xds"}

// MuchGarbage is how many bytes of garbage may wait while much is being allocated, which is so with every load of requests.
const MuchGarbage = 8 << 20

// parts are the rooms of a running waypoint.
type parts struct {
	settings  *settings
	network   network
	quit      context.CancelCauseFunc
	levels    *telemetry.Levels
	base      *slog.Logger // without a target
	log       *telemetry.Writer
	logger    *slog.Logger
	registry  *prometheus.Registry
	trust     *identity.Trust
	certs     *identity.Manager
	files     *identity.Files
	meshwide  mesh.Holder   // what the control plane says of the mesh
	judge     chan struct{} // holds one when tunnels are to be judged again
	tunnels   *hbone.Pool
	clusters  *upstream.Clusters
	tracers   *trace.Tracers
	store     *config.Store
	proxy     *proxy.Proxy
	discovery *xds.Client
	ready     admin.Readiness
	servers   []*admin.Server
	closers   []io.Closer // in order of making
}

// serve makes the rooms and runs them until the context ends.
func serve(ctx context.Context, s *settings, notes []string, n network, stderr io.Writer) error {
	ctx, quit := context.WithCancelCause(ctx)
	defer quit(nil)
	p := &parts{settings: s, network: n, quit: quit}
	defer p.close()
	p.makeLog(stderr, notes)
	if err := p.make(); err != nil {
		return err
	}
	return p.run(ctx)
}

func (p *parts) makeLog(stderr io.Writer, notes []string) {
	s := p.settings
	p.registry = telemetry.NewRegistry("waypoint", build.Version())
	p.log = telemetry.NewWriter(stderr, 0, p.registry)
	format := telemetry.FormatPlain
	if s.LogJSON {
		format = telemetry.FormatJSON
	}
	p.levels = telemetry.NewLevels(s.LogFilter, targets[:]...)
	p.base = telemetry.NewLogger(p.log, format, slog.LevelDebug)
	p.logger = p.target("app")
	p.logger.Info("waypoint starts", "version", build.Version(), "gateway", s.PodNamespace+"/"+s.Gateway, "identity", s.identity().String(),
		"xds", s.XDS.Address, "ca", s.CA.Address)
	for _, note := range notes {
		p.logger.Warn(note)
	}
	for _, name := range p.levels.Unknown(s.LogFilter) {
		p.logger.Warn("AMBIT_LOG names a target that there is not", "target", name, "targets", p.levels.Targets())
	}
}

// target returns the logger of one of targets.
func (p *parts) target(name string) *slog.Logger { return p.levels.Logger(p.base, name) }

// make makes the rooms. What was made when an error comes is closed by close.
func (p *parts) make() error {
	s := p.settings
	if err := p.makeIdentity(); err != nil {
		return err
	}
	own := s.identity()
	p.tunnels = hbone.NewPool(hbone.PoolConfig{
		Dial: p.network.dial,
		TLS: func(ctx context.Context, t hbone.Target) (*tls.Config, error) {
			svid, err := p.certs.SVID(ctx, own)
			if err != nil {
				return nil, err
			}
			return identity.ClientTLS(svid, t.Expect), nil
		},
		Revoked: func(t *hbone.Target, peer []*x509.Certificate) error { return p.trust.StillServer(peer, t.Expect) },
		Logger:  p.target("proxy"),
	})
	p.closers = append(p.closers, p.tunnels)
	names := lookup.New(lookup.Config{Servers: lookup.File(s.ResolvConf)})
	p.closers = append(p.closers, names)
	p.clusters = upstream.New(upstream.Config{
		Tunnels: p.tunnels, Source: own, Baggage: s.baggage(), Dial: p.network.dial, Names: names, Reaches: reaches(),
	})
	p.closers = append(p.closers, closer(p.clusters.Close))
	p.tracers = trace.New(trace.Config{Dial: p.clusters.Dial, Resource: s.resource(), Registerer: p.registry, Logger: p.target("proxy")})
	p.closers = append(p.closers, closer(p.tracers.Close))
	p.proxy = proxy.New(proxy.Config{
		TLS: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			svid, err := p.certs.SVID(hello.Context(), own)
			if err != nil {
				return nil, err
			}
			return identity.ServerTLS(svid, nil), nil
		},
		Revoked:  func(client []*x509.Certificate) error { return p.trust.StillClient(client, own.TrustDomain) },
		Clusters: p.clusters, Requests: telemetry.NewRequests("waypoint", p.registry),
		Policies:  telemetry.NewPolicies(p.registry, func(key string) bool { return p.store.Load().HasPolicy(key) }),
		AccessLog: p.target(telemetry.TargetAccess), Sampling: s.Sampling, Tracers: p.tracers, Leave: s.Leave, Logger: p.target("proxy"),
	})
	p.closers = append(p.closers, closer(p.proxy.Close))
	p.store = config.NewStore(func(old, next *config.Snapshot) {
		p.clusters.Apply(next) // first: no route may lead to a cluster that is not known here yet
		if collectors, changed := next.Collectors(old); changed {
			p.tracers.Apply(collectors)
		}
		p.proxy.Apply(next)
	})
	node, err := s.node()
	if err != nil {
		return err
	}
	p.discovery, err = xds.NewClient(xds.Config{
		Connect:    func() (xds.Conn, error) { return identity.NewChannel(s.XDS) },
		Node:       node,
		Handlers:   append([]xds.Handler{p.meshwide.Handler(), p.workloadHandler()}, p.store.Handlers()...), // who is of the mesh, before what to serve
		Logger:     p.target("xds"),
		Registerer: p.registry,
	})
	if err != nil {
		return err
	}
	p.ready.Await("control plane", p.configured)
	p.ready.Explain("control plane", p.missing)
	p.ready.Await("certificate", p.certified)
	p.ready.Explain("certificate", p.certificateTrouble)
	p.ready.Remark(func() string {
		if p.discovery.Status().Connected {
			return ""
		}
		return "the control plane is away: serving from what it said before"
	})
	return p.listen()
}

// configured tells whether the first of everything has come.
func (p *parts) configured() bool {
	select {
	case <-p.discovery.Synced():
		now := p.store.Load()
		return now.Terminate() != nil && len(now.Missing()) == 0
	default:
		return false
	}
}

// missing says what configured waits for.
func (p *parts) missing() string {
	st := p.discovery.Status()
	now := p.store.Load()
	switch routes := now.Missing(); {
	case !st.Connected && st.LastError != nil:
		return st.LastError.Error()
	case !st.Connected:
		return "no answer yet"
	case now.Terminate() == nil:
		return "no listener for tunnels yet"
	case len(routes) > 0:
		return "no routes yet for " + strings.Join(routes, ", ")
	}
	return ""
}

// certified tells whether there is a certificate.
func (p *parts) certified() bool {
	for _, st := range p.certs.Snapshot() {
		if st.State == identity.StateAvailable {
			return true
		}
	}
	return false
}

func (p *parts) certificateTrouble() string {
	for _, st := range p.certs.Snapshot() {
		if st.Err != nil {
			return st.Err.Error()
		}
	}
	return ""
}

// listen opens the waypoint's ports but for that of tunnels.
func (p *parts) listen() error {
	a := admin.Admin{
		Program: "waypoint", Pages: p.pages(), Levels: p.levels, Ready: &p.ready,
		Quit:    func() { p.quit(errors.New("asked to by /quitquitquit")) },
		Version: build.Version(),
	}
	handler := admin.MetricsHandler(telemetry.Handler(p.registry))
	for _, s := range []struct {
		name  string
		addrs []string
	}{{"admin", p.network.admin}, {"metrics", p.network.stats}, {"readiness", p.network.healthz}} {
		h := handler
		switch s.name {
		case "admin":
			h = a.Handler()
		case "readiness":
			h = p.ready.Handler()
		}
		server, err := admin.Listen(h, s.addrs...)
		if err != nil {
			return fmt.Errorf("%s port: %w", s.name, err)
		}
		if p.network.listening != nil {
			p.network.listening(s.name, server.Addr())
		}
		p.servers = append(p.servers, server)
	}
	return nil
}

// run starts the rooms and ends them after the context.
func (p *parts) run(ctx context.Context) error {
	// The inner context ends first: tunnels. What they stand on ends with the outer one.
	outer, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var rooms sync.WaitGroup
	room := func(name string, run func(context.Context) error) {
		rooms.Go(func() {
			if err := run(outer); err != nil {
				p.quit(partError{name, err})
			}
		})
	}
	for _, s := range p.servers {
		room("http", s.Serve)
	}
	room("certificates", p.certs.Run)
	room("trust", p.files.Run)
	room("revocation", p.judgeTunnels)
	room("discovery", p.discovery.Run)
	room("processors", func(ctx context.Context) error { return thrift.Processors(ctx, nil) })
	room("collector", func(ctx context.Context) error { return thrift.Collector(ctx, MuchGarbage) })
	if err := p.listenTunnels(ctx, room); err != nil {
		p.quit(partError{"tunnel port", err})
	}

	<-ctx.Done()
	cause := context.Cause(ctx)
	p.logger.Info("ending: no new connections soon; those that exist may go on", "reason", cause, "grace", p.settings.Grace.String(), "tunnels", p.proxy.Open())
	p.ready.Await("terminating", func() bool { return false })
	grace, cancel := context.WithTimeout(outer, p.settings.Grace)
	if err := p.proxy.Drain(grace); err != nil {
		p.logger.Warn("the grace period is over: what is open is cut", "tunnels", p.proxy.Open())
	}
	cancel()
	p.proxy.Close()
	end()
	rooms.Wait()
	if failed := (partError{}); errors.As(cause, &failed) {
		return failed
	}
	return nil
}

// listenTunnels opens the tunnel port once it is known what to serve there: until then clients are better served elsewhere.
func (p *parts) listenTunnels(ctx context.Context, room func(string, func(context.Context) error)) error {
	if _, err := p.store.Await(ctx, func(s *config.Snapshot) bool { return s.Terminate() != nil }); err != nil {
		return nil // the end
	}
	var errs []error
	opened := 0
	for _, addr := range p.network.tunnels {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		opened++
		if p.network.listening != nil {
			p.network.listening("tunnels", ln.Addr())
		}
		room("tunnels", func(ctx context.Context) error { return p.proxy.Serve(ctx, ln) })
	}
	if opened == 0 {
		return errors.Join(errs...)
	}
	if err := thrift.Program(); err != nil {
		p.logger.Debug("more memory is held than need be", "error", err)
	}
	return nil
}

// partError is a part's failure, which ends the program with an error.
type partError struct {
	part string
	err  error
}

func (e partError) Error() string { return e.part + ": " + e.err.Error() }
func (e partError) Unwrap() error { return e.err }

// closer makes a Closer of a function.
type closer func()

func (c closer) Close() error {
	c()
	return nil
}

// close releases what is left, in the reverse order of making.
func (p *parts) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		_ = p.closers[i].Close()
	}
	if p.log != nil {
		p.logger.Info("ended")
		_ = p.log.Close()
	}
}
