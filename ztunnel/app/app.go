// Package app puts the node proxy together: it reads the settings, makes the rooms from the bottom up, starts them in the
// order in which they need each other, and ends them in the other.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/mesh/admin"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/lookup"
	"github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/mesh/thrift"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/saved"
	"github.com/ambit-mesh/ambit/ztunnel/sockets"
)

const usage = `usage: ztunnel [proxy [ztunnel]] | version | help

proxy (the default) serves the pods of a node that the CNI agent hands to it. Its settings are environment variables, the
same as those of Istio's ztunnel; see docs/settings.md.
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
		if len(args) > 2 || len(args) == 2 && args[1] != "ztunnel" {
			return fmt.Errorf("unknown arguments %q\n%s", args[1:], usage)
		}
		cfg, err := config.Parse(environ)
		if err != nil {
			return err
		}
		signal.Ignore(syscall.SIGPIPE) // if who reads the log dies, connections do not
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
		context.AfterFunc(ctx, stop) // a second signal has its usual effect
		defer stop()
		return serve(ctx, cfg, stderr)
	case "version", "--version", "-version":
		_, err := fmt.Fprintln(stdout, "ztunnel", build.Version())
		return err
	case "help", "--help", "-h":
		_, err := io.WriteString(stdout, usage)
		return err
	default:
		return fmt.Errorf("unknown command %q\n%s", command, usage)
	}
}

// muchGarbage is how many bytes of garbage may wait while much is being allocated: thousands of connections a second should not wait
// for a collection often.
const muchGarbage = 32 << 20

// parts are the rooms of a running proxy.
type parts struct {
	cfg       *config.Config
	levels    *telemetry.Levels
	base      *slog.Logger // without a target
	log       *telemetry.Writer
	before    census // with the log and nothing else
	logger    *slog.Logger
	home      *netns.Home
	directory *directory.Directory
	certs     *identity.Manager
	settings  settings.Holder
	trust     *identity.Trust
	files     *identity.Files
	discovery *xds.Client
	sockets   *sockets.Keeper
	state     state
	saved     *saved.Contents  // until restoreState
	types     []string         // of discovery
	keys      *identity.KeyDir // nil: certificates do not outlive the process
	node      *proxy.Node
	pods      *inpod.Manager
	ready     admin.Readiness

	revocations *telemetry.Trust
	quit        context.CancelCauseFunc

	closers []io.Closer // in order of making
	servers []*admin.Server
}

// serve makes the rooms and runs them until the context ends.
func serve(ctx context.Context, cfg *config.Config, stderr io.Writer) error {
	ctx, quit := context.WithCancelCause(ctx)
	defer quit(nil)
	p := &parts{cfg: cfg, quit: quit}
	defer p.close()
	if err := p.make(stderr); err != nil {
		return err
	}
	return p.run(ctx)
}

// make makes the rooms. What was made when an error comes is closed by close.
func (p *parts) make(stderr io.Writer) error {
	cfg := p.cfg
	registry := telemetry.NewRegistry("ztunnel", build.Version())
	p.log = telemetry.NewWriter(stderr, 0, registry)
	p.before = takeCensus()
	format := telemetry.FormatPlain
	if cfg.LogJSON {
		format = telemetry.FormatJSON
	}
	p.levels = telemetry.NewLevels(cfg.LogFilter, targets[:]...)
	p.base = telemetry.NewLogger(p.log, format, slog.LevelDebug)
	p.logger = p.target("app")
	p.logger.Info("ztunnel starts", "version", build.Version(), "node", cfg.Node.Name, "xds", cfg.XDS.Address,
		"ca", cfg.CA.Address, "zds", cfg.ZDSSocket)
	for _, note := range cfg.Notes {
		p.logger.Warn(note)
	}
	for _, name := range p.levels.Unknown(cfg.LogFilter) {
		p.logger.Warn("RUST_LOG names a target that there is not", "target", name, "targets", p.levels.Targets())
	}
	if cfg.Processors > 0 {
		runtime.GOMAXPROCS(cfg.Processors)
	}

	var err error
	if p.home, err = netns.OpenHome(); err != nil {
		return err
	}
	p.closers = append(p.closers, p.home)
	p.directory = directory.New(directory.Config{
		Network: cfg.Network, Node: cfg.Node.Name, ClusterID: cfg.ClusterID, Logger: p.target("state"),
	})
	if err := p.makeIdentity(registry); err != nil {
		return err
	}
	node, err := xdsNode(cfg.Node)
	if err != nil {
		return err
	}
	// Policies first: a workload must not be known before the policies that it names.
	handlers := p.openState([]xds.Handler{
		{TypeURL: xds.TypeAuthorization, Apply: p.directory.HandleAuthorizations},
		{TypeURL: xds.TypeAddress, Apply: p.directory.HandleAddresses, Ended: p.directory.StreamEnded},
		p.settings.Handler(),
	})
	for _, h := range handlers {
		p.types = append(p.types, h.TypeURL)
	}
	p.discovery, err = xds.NewClient(xds.Config{
		Connect:    func() (xds.Conn, error) { return identity.NewChannel(cfg.XDS) },
		Node:       node,
		Handlers:   handlers,
		Logger:     p.target("xds"),
		Registerer: registry,
	})
	if err != nil {
		return err
	}
	if err := p.makeProxies(registry); err != nil {
		return err
	}
	if err := p.restoreState(registry); err != nil {
		return err
	}
	p.ready.Await("control plane", p.stateKnown)
	p.ready.Remark(p.remark)
	p.ready.Explain("control plane", p.missingDiscovery)
	p.ready.Await("pods", p.pods.Ready)
	p.ready.Explain("pods", p.pendingPods)
	return p.listen(telemetry.Handler(registry))
}

// makeProxies makes what serves pods.
func (p *parts) makeProxies(registry prometheus.Registerer) error {
	cfg := p.cfg
	parker, err := hbone.NewParker()
	if err != nil {
		return err
	}
	p.closers = append(p.closers, parker)
	p.sockets = sockets.New(sockets.Config{
		Path: cfg.HandoverSocket, Depot: cfg.DepotSocket, Name: fmt.Sprintf("ztunnel %s, pod %s", build.Version(), cfg.Node.PodName),
		Logger: p.target("handover"), Registerer: registry,
	})
	p.closers = append(p.closers, p.sockets)
	hosts := lookup.New(lookup.Config{Servers: lookup.File(cfg.ResolvConf)})
	p.closers = append(p.closers, hosts)
	p.node = proxy.NewNode(proxy.NodeConfig{
		Config: proxy.Config{
			Network: cfg.Network, ClusterID: cfg.ClusterID, TrustDomain: cfg.TrustDomain, Mark: cfg.PacketMark,
			IPv6: cfg.IPv6, PortReuse: cfg.PortReuse, OriginalSource: cfg.OriginalSource,
			KeepAlive: cfg.KeepAlive, UserTimeout: cfg.UserTimeout,
			PoolStreams: cfg.PoolStreams, PoolIdle: cfg.PoolIdle, H2: cfg.H2, DrainLimit: cfg.DrainLimit,
			ResponseBaggage: cfg.ResponseBaggage, PolicyInfo: cfg.PolicyInfo,
			Limits: cfg.Limits, Timeouts: cfg.Timeouts, MaxFiles: maxFiles(), MetricsIdle: cfg.MetricsIdle,
		},
		Parker:       parker,
		Directory:    p.directory,
		Certificates: p.certs,
		Trust:        p.trust,
		Revocations:  p.revocations,
		Metrics:      telemetry.NewMetrics(registry),
		Balance:      telemetry.NewBalance(registry, p.directory),
		Policies:     telemetry.NewPolicies(registry, p.directory.HasPolicy),
		Bounds:       telemetry.NewBounds(registry),
		AccessLog:    telemetry.NewAccessLog(p.target(telemetry.TargetAccess), cfg.AccessLogSampling),
		Logger:       p.target("proxy"),
		Sockets:      p.sockets,
		Names:        p.names(registry),
		Settings:     &p.settings,
		Hosts:        hosts,
		Lookups:      telemetry.NewLookups(registry),
	})
	registry.MustRegister(p.node.Collector())
	p.pods = inpod.NewManager(inpod.Config{
		Socket: cfg.ZDSSocket, Home: p.home, Start: p.node.Start, Resolvers: cfg.DNS, Logger: p.target("inpod"),
		Registerer: registry,
	})
	return nil
}

// targets are those of log lines, named as Istio's ztunnel names its modules.
var targets = [...]string{telemetry.TargetAccess, "app", "dns", "handover", "identity", "inpod", "proxy", "state", "xds"}

// target returns the logger of one of targets.
func (p *parts) target(name string) *slog.Logger { return p.levels.Logger(p.base, name) }

// listen opens the proxy's own ports.
func (p *parts) listen(metrics http.Handler) error {
	a := admin.Admin{
		Program: "ztunnel", Levels: p.levels, Ready: &p.ready,
		Pages: []admin.Page{
			{Path: "config_dump", About: "what the proxy knows, as JSON", Write: p.dump},
			{Path: "connections", About: "open connections by pod, as JSON", Write: p.connections},
		},
		Quit:    func() { p.quit(errors.New("asked to by /quitquitquit")) },
		Version: build.Version(),
	}
	port := func(n uint16) string { return strconv.Itoa(int(n)) }
	for _, s := range []struct {
		name    string
		handler http.Handler
		addrs   []string
	}{
		{"admin", a.Handler(), []string{
			net.JoinHostPort("127.0.0.1", port(p.cfg.AdminPort)), net.JoinHostPort("::1", port(p.cfg.AdminPort))}},
		{"metrics", admin.MetricsHandler(metrics), []string{":" + port(p.cfg.StatsPort)}},
		{"readiness", p.ready.Handler(), []string{":" + port(p.cfg.ReadinessPort)}},
	} {
		server, err := admin.Listen(s.handler, s.addrs...)
		if err != nil {
			return fmt.Errorf("%s port: %w", s.name, err)
		}
		p.servers = append(p.servers, server)
	}
	return nil
}

// run starts the rooms and ends them after the context.
func (p *parts) run(ctx context.Context) error {
	// The inner context ends first: pods and their connections. What they stand on ends with the outer one.
	outer, end := context.WithCancel(context.WithoutCancel(ctx))
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
	room("trust", p.watchTrust)
	room("discovery", p.discovery.Run)
	room("state", p.keepState)
	room("keys", p.sweepKeys)
	room("connections", p.node.Run)
	room("processors", func(ctx context.Context) error { return thrift.Processors(ctx, p.node.Late) })
	room("collector", func(ctx context.Context) error { return thrift.Collector(ctx, muchGarbage) })

	// A pod's connections must not be decided on half of the cluster's state.
	if p.awaitState(ctx) == nil {
		room("sockets", p.sockets.Run)
		if err := p.pods.Run(ctx); err != nil {
			p.quit(partError{"pods", err})
		}
	}

	cause := context.Cause(ctx)
	p.logger.Info("ending: no new connections; those that exist may go on", "reason", cause, "grace", p.cfg.Grace)
	p.ready.Await("terminating", func() bool { return false })
	p.sockets.Leave()
	grace, cancel := context.WithTimeout(outer, p.cfg.Grace)
	p.pods.Shutdown(grace)
	cancel()
	end()
	rooms.Wait()
	if failed := (partError{}); errors.As(cause, &failed) {
		return failed
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

// close releases what is left, in the reverse order of making.
func (p *parts) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i].Close()
	}
	if p.log != nil {
		left := p.before.left()
		p.logger.Info("ended", "goroutines_left", left.goroutines, "descriptors_left", left.descriptors)
		p.log.Close()
	}
}

// maxFiles is how many descriptors one pod's connections may have: a pod must leave some to others.
func maxFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt32 {
		return 0
	}
	return max(1, int(limit.Cur/4*3))
}
