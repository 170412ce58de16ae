// Package app wires the control plane's rooms from top to bottom. It decides nothing but the order in which they start and
// stop.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/ca"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/deployer"
	"github.com/ambit-mesh/ambit/istiod-lite/keysets"
	"github.com/ambit-mesh/ambit/istiod-lite/leader"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/roots"
	"github.com/ambit-mesh/ambit/istiod-lite/roster"
	"github.com/ambit-mesh/ambit/istiod-lite/source"
	"github.com/ambit-mesh/ambit/istiod-lite/standing"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
	"github.com/ambit-mesh/ambit/istiod-lite/status"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/istiod-lite/vips"
	"github.com/ambit-mesh/ambit/istiod-lite/xds"
)

// Run is the program: it serves until ctx ends, drains, and returns nil then. args are without the program's name.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		_, err := fmt.Fprintln(stdout, "istiod-lite", build.Version())
		return err
	}
	cfg, err := parseConfig(args, stderr)
	if errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	clients, err := connect(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	log := cfg.logger(stderr)
	klog.SetSlogLogger(log) // client-go's own words
	return serve(ctx, cfg, clients, log)
}

// clients reach the API server.
type clients struct {
	core    kubernetes.Interface
	dynamic dynamic.Interface
	// callers asks about callers. Its requests are bounded by themselves: whoever makes many of them with tokens that are
	// none does not keep the control plane from its own.
	callers kubernetes.Interface
}

// Bounds of requests to the API server, by each client. Node proxies that all come back at once need a token review each.
const (
	requestsPerSecond = 200
	requestsAtOnce    = 400
)

func connect(kubeconfig string) (clients, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return clients{}, fmt.Errorf("reach the API server: %w", err)
	}
	cfg.QPS, cfg.Burst = requestsPerSecond, requestsAtOnce
	cfg.UserAgent = "istiod-lite/" + build.Version()
	typed := rest.CopyConfig(cfg)
	typed.ContentType = "application/vnd.kubernetes.protobuf"
	typed.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	var c clients
	if c.core, err = kubernetes.NewForConfig(typed); err != nil {
		return clients{}, fmt.Errorf("reach the API server: %w", err)
	}
	if c.callers, err = kubernetes.NewForConfig(typed); err != nil { // with a limiter of its own
		return clients{}, fmt.Errorf("reach the API server: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfig(cfg); err != nil {
		return clients{}, fmt.Errorf("reach the API server: %w", err)
	}
	return c, nil
}

// program is the running program.
type program struct {
	cfg      Config
	clients  clients
	log      *slog.Logger
	registry *prometheus.Registry

	source    *source.Source
	keySets   *keysets.Store
	roster    *roster.Roster
	loop      *state.Loop
	reports   *status.Writer
	vips      *vips.Writer
	deployer  *deployer.Deployer
	gateways  *status.Objects
	standing  *standing.Keeper
	hub       *xds.Hub
	waypoints *xds.Waypoints
	keeper    *ca.Keeper
	writers   []*roots.Writer
	caMetrics *ca.Metrics
	status    *readiness
}

// serve wires the rooms, and runs them until ctx ends or one of them fails.
func serve(ctx context.Context, cfg Config, c clients, log *slog.Logger) error {
	p := &program{cfg: cfg, clients: c, log: log, registry: prometheus.NewRegistry(), status: newReadiness()}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	p.caMetrics = ca.NewMetrics(p.registry)
	told := xds.NewMetrics(p.registry)
	p.hub, p.waypoints = xds.NewHub(told), xds.NewWaypoints(told)
	p.reports = status.New(c.dynamic, log.With("room", "status"))
	p.vips = vips.New(c.dynamic, entries{p}, log.With("room", "vips"))
	p.deployer = deployer.New(deployer.Config{
		Client: c.dynamic, Settings: cfg.Waypoints, TrustDomain: func() string { return p.loop.Settings().TrustDomain },
		Told: func(ctx context.Context, key cluster.Key, fault state.DeployFault) {
			_ = p.loop.Do(ctx, func(s *state.State) { s.SetDeployFault(key, fault) }) // it fails when the program ends only
		},
		Log: log.With("room", "deployer"),
	})
	p.gateways = status.NewObjects(c.dynamic, status.Instance{Version: build.Version(), Namespace: cfg.Namespace}, log.With("room", "status"))
	p.standing = standing.New(c.dynamic, func(ctx context.Context, version string) {
		_ = p.loop.Do(ctx, func(s *state.State) { s.SetBundle(version) }) // it fails when the program ends only
	}, log.With("room", "standing"))
	p.loop = state.NewLoop(state.LoopConfig{
		Namespace: cfg.Namespace, ClusterID: cfg.ClusterID, ClusterDomain: cfg.ClusterDomain,
		Kinds:   append(slices.Clone(source.Kinds), cluster.KindKeySet),
		Publish: p.publish, Report: p.report, Registerer: p.registry, Log: log.With("room", "state"),
	})
	p.keySets = keysets.New(keysets.Config{Sink: p.loop.Post, Registerer: p.registry, Refresh: cfg.refreshKeys, Log: log.With("room", "keysets")})
	p.roster = roster.New(source.API{Core: c.callers})
	p.source = source.New(source.Config{
		Core: c.core, Dynamic: c.dynamic, Namespace: cfg.Namespace, Log: log.With("room", "source"),
		Sink: p.observe,
	})

	// Rooms run on after ctx has ended, until what they serve is drained.
	running, stop := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), logr.FromSlogHandler(log.Handler())))
	var rooms sync.WaitGroup
	defer rooms.Wait()
	defer stop()
	rooms.Go(func() { p.loop.Run(running) })
	rooms.Go(func() { p.source.Run(running) })
	rooms.Go(func() { p.keySets.Run(running) })

	web, err := p.listenWeb()
	if err != nil {
		return err
	}
	defer web.close()
	failed := make(chan error, 4)
	web.serve(&rooms, failed)
	log.Info("started", "version", build.Version(), "namespace", cfg.Namespace, "monitoring", web.monitoring.Addr().String())

	p.makeCA()
	if !p.loadCA(ctx) {
		return nil // asked to stop before anything was served
	}
	rooms.Go(func() { p.keeper.Run(running) })
	grpc, err := p.listenGRPC()
	if err != nil {
		return err
	}
	defer grpc.stop()
	grpc.serve(&rooms, failed)
	log.Info("serving", "xds", grpc.secure.Addr().String())
	p.status.set(partCA, "")
	if cfg.started != nil {
		cfg.started(web, grpc)
	}

	election, endElection := context.WithCancel(running)
	defer endElection()
	rooms.Go(func() { p.write(election, failed) })

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	p.drain(grpc, endElection)
	return nil
}

// observe passes on what happens in the cluster.
func (p *program) observe(e cluster.Event) {
	p.roster.Observe(e)
	p.loop.Post(e)
	p.keySets.Observe(e)
	if (e.Kind == cluster.KindGatewayClass || e.Kind == cluster.KindMesh) && e.Op != cluster.Upsert {
		p.standing.Notify()
	}
}

// publish tells data planes of a change: waypoints first, so that they know a service before node proxies send them its traffic.
func (p *program) publish(change resource.Change) {
	p.waypoints.Publish(change.Views)
	p.hub.Publish(change)
}

// report passes on what has become of objects.
func (p *program) report(r state.Report) {
	p.reports.Update(r.Statuses)
	p.deployer.Update(r.Gateways)
	p.gateways.Update(r)
	if slices.ContainsFunc(r.Statuses, func(s translate.Status) bool { return s.Kind == cluster.KindServiceEntry }) {
		p.vips.Notify()
	}
}

// entries are the ServiceEntries of the program's state.
type entries struct{ program *program }

func (e entries) All(ctx context.Context) ([]*cluster.ServiceEntry, error) {
	select {
	case <-e.program.loop.Ready():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var out []*cluster.ServiceEntry
	err := e.program.loop.Do(ctx, func(s *state.State) { out = s.ServiceEntries() })
	return out, err
}

func (e entries) SetShortages(ctx context.Context, all map[cluster.Key][]cluster.Shortage) error {
	return e.program.loop.Do(ctx, func(s *state.State) { s.SetShortages(all) })
}

// write keeps what only one replica may write.
func (p *program) write(ctx context.Context, failed chan<- error) {
	election := &leader.Election{
		Client: p.clients.core.CoordinationV1(), Namespace: p.cfg.Namespace, Name: api.ControlPlaneDeployment + "-leader",
		Identity: p.cfg.PodName + "_" + string(uuid.NewUUID()), Log: p.log.With("room", "leader"),
	}
	lead := func(ctx context.Context) {
		var writers sync.WaitGroup
		writers.Go(func() { p.keeper.Lead(ctx) })
		for _, w := range p.writers {
			writers.Go(func() { w.Run(ctx) })
		}
		writers.Go(func() { p.reports.Run(ctx) })
		writers.Go(func() { p.vips.Run(ctx) })
		writers.Go(func() { p.deployer.Run(ctx) })
		writers.Go(func() { p.gateways.Run(ctx) })
		writers.Go(func() { p.standing.Run(ctx) })
		writers.Wait()
	}
	if err := election.Run(ctx, lead); err != nil {
		failed <- err
	}
}

// trustDomains are those that callers may be of: the mesh's first.
func (p *program) trustDomains() []string {
	s := p.loop.Settings()
	return append([]string{s.TrustDomain}, s.TrustDomainAliases...)
}

// authenticator identifies callers.
func (p *program) authenticator() *auth.Authenticator {
	return auth.New(auth.Config{Review: source.API{Core: p.clients.callers}.Review, Pods: p.roster, TrustDomains: p.trustDomains})
}

func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "istio_build", Help: "Build of this program.",
		ConstLabels: prometheus.Labels{"component": "pilot", "tag": build.Version()}}, func() float64 { return 1 })
}
