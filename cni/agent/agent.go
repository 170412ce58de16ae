package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/resolver"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/cni/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// Kernel brings pods' network namespaces to rules and away from them; see rules.Kernel.
type Kernel interface {
	Fill(ctx context.Context, netns ns.NetNS, s rules.Set) error
	Hook(ctx context.Context, netns ns.NetNS, s rules.Set) error
	Unhook(ctx context.Context, netns ns.NetNS) error
	Remove(ctx context.Context, netns ns.NetNS) error
	Inspect(ctx context.Context, netns ns.NetNS, s rules.Set) (rules.State, error)
}

// Connections reads and writes connection tracking; see package conntrack.
type Connections interface {
	Exempt(netns ns.NetNS) (int, error)
	Hold(netns ns.NetNS) error
	NamesServed(netns ns.NetNS) (bool, error)
	ForgetNames(netns ns.NetNS, redirected bool) (int, error)
	Usage(netns ns.NetNS) (conntrack.Use, error)
}

// Probes is the host's exemption of kubelet's probes; see probes.Host.
type Probes interface {
	Ensure(ctx context.Context) error
	Put(uid string, addrs []netip.Addr) error
	Delete(uid string) error
	Entries() (map[netip.Addr]string, error)
	Remove(ctx context.Context) error
}

// Node finds pods' network namespaces. The caller closes what Find and Open return.
type Node interface {
	// Find returns the network namespace in which a pod's processes run and that has one of its addresses;
	// discover.ErrNotRunning if there is none.
	Find(kubeletUID string, addrs []netip.Addr) (ns.NetNS, error)
	// Open opens a path that the plugin told. It refuses the host's network namespace.
	Open(path string) (ns.NetNS, error)
	// All opens the network namespaces of all pods that run, by UID, for Cleanup.
	All() (map[string][]ns.NetNS, error)
	// Resolver returns how the containers of a pod that runs resolve names.
	Resolver(kubeletUID string) (resolver.Settings, error)
	// Running returns the inodes of the network namespaces of all pods that run, by UID.
	Running() (map[string][]uint64, error)
}

// Proxies is what node proxies are told through; see zds.Server.
type Proxies interface {
	Add(ctx context.Context, p zds.Pod) error
	Set(p zds.Pod) error
	Delete(ctx context.Context, uid string) error
	Connected() int
	Serve(ctx context.Context, ln *net.UnixListener) error
}

// Installation is the plugin on the node.
type Installation interface {
	// Run keeps the plugin and its credential installed until the context ends, and leaves them.
	Run(ctx context.Context) error
	Installed() bool
	// Uninstall takes both away.
	Uninstall() error
}

// API is the Kubernetes API as far as the agent uses it; see Cluster.
type API interface {
	Watch(ctx context.Context, mail *mailbox) error
	Look(ctx context.Context, namespace, name string) (Pod, map[string]string, error)
	Annotate(ctx context.Context, p Pod, value string) error
	Warn(p Pod, reason, message string)
	Doomed(ctx context.Context, seen bool) bool
}

// Timings are how often and how long. Zero values mean the defaults.
type Timings struct {
	Tick        time.Duration // how often due work is looked for; 250 ms
	Verify      time.Duration // how often a captured pod is compared with its rules; 2 min
	Hold        time.Duration // conntrack.HoldPeriod
	Names       time.Duration // after a node proxy came or went, when it is looked for who takes name queries; 1 s
	Host        time.Duration // how often the probe exemption is compared, and replaced sandboxes are looked for; 1 min
	DrainLook   time.Duration // how often a draining pod is looked at; 2 s
	DrainLimit  time.Duration // after which a draining pod's leftovers go, connections or not; 1 h
	RetryMin    time.Duration // 500 ms
	RetryMax    time.Duration // 15 s
	Grace       time.Duration // after which a failure is told on the pod, which then no longer says that it is captured; 20 s
	StartSettle time.Duration // how long after its start a pod is not un-enrolled by what informers say; 3 s
	Unseen      time.Duration // after which the API is asked about a pod that started and that no informer has told of; 1 min
	Cleanup     time.Duration // what a clean-up at the end of the agent may take; 20 s
}

func (t Timings) withDefaults() Timings {
	for field, value := range map[*time.Duration]time.Duration{
		&t.Tick: 250 * time.Millisecond, &t.Verify: 2 * time.Minute, &t.Hold: conntrack.HoldPeriod, &t.Names: time.Second, &t.Host: time.Minute,
		&t.DrainLook: 2 * time.Second, &t.DrainLimit: time.Hour, &t.RetryMin: 500 * time.Millisecond, &t.RetryMax: 15 * time.Second,
		&t.Grace: 20 * time.Second, &t.StartSettle: 3 * time.Second, &t.Unseen: time.Minute, &t.Cleanup: 20 * time.Second,
	} {
		if *field == 0 {
			*field = value
		}
	}
	return t
}

// Config is what an Agent is made of. All fields but Depot and Timings must be set.
type Config struct {
	// NodeName is this node's, Namespace the mesh's own.
	NodeName, Namespace string
	// ExcludeNamespaces are never captured.
	ExcludeNamespaces []string
	// IPv6 captures IPv6, too, where a pod has it.
	IPv6 bool
	// DNS has name queries of pods go to the node proxy, where it takes them, unless the pod says otherwise.
	DNS bool
	// Resolvers is what kubelet gives this node's pods to resolve names.
	Resolvers resolver.Node
	// RunDir holds the socket for the plugin, ZDSSocket is the one for node proxies.
	RunDir, ZDSSocket string
	// StateDir is where node proxies save their configuration, which goes with the mesh; other files there stay. Empty: nothing is to be removed.
	StateDir string

	Cluster      API
	Kernel       Kernel
	Connections  Connections
	Probes       Probes
	Node         Node
	Proxies      Proxies
	Installation Installation
	// Depot keeps the node proxies' sockets; nil: nobody does.
	Depot   *handover.Depot
	Metrics *Metrics
	Logger  *slog.Logger
	Timings Timings
}

// Agent is a running agent.
type Agent struct {
	cfg     Config
	mail    *mailbox
	report  atomic.Pointer[Report]
	serving atomic.Bool
	beat    atomic.Int64  // when the loop last went round, in Unix nanoseconds; 0 before it runs
	stopped chan struct{} // closed when the loop has ended
}

// New returns an Agent that does nothing before Run. Its ProxyEvent is to be the Observe of the zds.Server.
func New(c Config) *Agent {
	c.Timings = c.Timings.withDefaults()
	a := &Agent{cfg: c, mail: newMailbox(), stopped: make(chan struct{})}
	a.report.Store(&Report{Node: c.NodeName, Phase: phaseServing})
	return a
}

// ProxyEvent tells the agent what a zds.Server noticed. It does not block.
func (a *Agent) ProxyEvent(e zds.Event) {
	a.cfg.Metrics.Connected(e.Connected)
	if e.UID == "" {
		a.mail.post(proxiesChanged{connected: e.Connected})
	}
}

// Run does the agent's work until the context ends. It then leaves everything on the node as it is, for the next agent,
// unless the agent's own DaemonSet has been deleted: then it cleans the node.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.cfg.Cluster.Watch(ctx, a.mail); err != nil {
		return err
	}
	l := newLoop(a)
	defer l.close()
	l.receive()
	a.cfg.Logger.Info("pods of this node", "count", len(l.pods))
	if err := a.cfg.Probes.Ensure(ctx); err != nil {
		a.cfg.Logger.Error("probe exemption", "error", err) // the loop tries again
	}
	l.seed(ctx)
	if err := a.serve(ctx, l); err != nil {
		return err
	}
	if !a.doomed(l) {
		return nil
	}
	a.cfg.Logger.Info("the agent's DaemonSet is deleted: cleaning the node")
	return a.cleanNode(l)
}

// serve runs the servers and the loop until the context ends or one of them fails.
func (a *Agent) serve(ctx context.Context, l *loop) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	proxies, err := zds.Listen(a.cfg.ZDSSocket)
	if err != nil {
		return err
	}
	plugin, err := listenPlugin(filepath.Join(a.cfg.RunDir, api.AgentSocket))
	if err != nil {
		proxies.Close()
		return err
	}
	depot, err := a.listenDepot()
	if err != nil {
		proxies.Close()
		plugin.Close()
		return err
	}
	// The loop's context ends first; the plugin's server then waits for answers, which jobs that end give.
	server := &http.Server{Handler: agentapi.Handler(a.admit, a.cfg.Metrics.PluginRequest), ReadHeaderTimeout: 5 * time.Second}
	var all sync.WaitGroup
	errs := make(chan error, 4)
	run := func(name string, f func() error) {
		all.Go(func() {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				errs <- fmt.Errorf("%s: %w", name, err)
				cancel()
			}
		})
	}
	proxiesCtx, stopProxies := context.WithCancel(context.WithoutCancel(ctx))
	run("serve node proxies", func() error { return a.cfg.Proxies.Serve(proxiesCtx, proxies) })
	run("serve the plugin", func() error { return server.Serve(plugin) })
	run("keep sockets", func() error { return a.keepSockets(proxiesCtx, depot) })
	a.serving.Store(true)
	l.run(ctx)
	a.serving.Store(false)
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer stop()
	if err := server.Shutdown(last); err != nil {
		server.Close()
	}
	stopProxies()
	all.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// listenDepot takes the depot's socket, if there is a depot.
func (a *Agent) listenDepot() (*net.UnixListener, error) {
	if a.cfg.Depot == nil {
		return nil, nil
	}
	return handover.Listen(a.cfg.ZDSSocket + api.DepotSuffix)
}

// keepSockets serves the depot until the context ends.
func (a *Agent) keepSockets(ctx context.Context, ln *net.UnixListener) error {
	if ln == nil {
		return nil
	}
	var sweeper sync.WaitGroup
	defer sweeper.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sweeper.Go(func() { a.cfg.Depot.Run(ctx) })
	s := handover.Server{Name: "cni-agent " + build.Version(), Holder: a.cfg.Depot, Logger: a.cfg.Logger}
	return s.Serve(ctx, ln)
}

// listenPlugin takes the plugin's socket in one step; the listener does not remove it, which may be its successor's.
func listenPlugin(path string) (net.Listener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for the plugin: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the plugin: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen for the plugin: %w", err)
	}
	return ln, nil
}

// mailbox takes messages for the loop without ever blocking the sender.
type mailbox struct {
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	queue []message // guarded by mu
}

// message is one of podChanged, podDeleted, namespaceChanged, orderChanged, startPod, jobDone, proxiesChanged, hostDone.
type message any

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

func (m *mailbox) post(msg message) {
	m.mu.Lock()
	m.queue = append(m.queue, msg)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []message {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queue
	m.queue = nil
	return q
}

type (
	podChanged       struct{ pod Pod }
	podDeleted       struct{ uid string }
	namespaceChanged struct {
		name    string
		labels  map[string]string
		deleted bool
	}
	orderChanged struct {
		order Order
		gone  bool // the DaemonSet itself is deleted
	}
	proxiesChanged struct{ connected int }
	startPod       struct {
		ctx      context.Context
		pod      Pod
		labels   map[string]string // of the namespace
		bypass   bool
		dns      bool // name queries are wanted
		path     string
		addrs    []netip.Addr
		answered chan<- error // capacity 1
	}
	jobDone struct {
		uid    string
		action action
		result result
	}
	hostDone struct {
		begun   time.Time
		entries map[netip.Addr]string
		running map[string][]uint64
		err     error
	}
)
