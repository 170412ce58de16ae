// Package proxy carries the connections of pods: what a pod sends (outbound), tunnels that come for it, and plaintext that
// comes for it. One Pod serves one pod of the node.
//
// Rules of the room: who a connection comes from is the pod whose namespace accepted it or the certificate that its peer
// proved, never an address. What is not certainly allowed is refused, with the reason. Every step has a time-out. No lock
// is held while anything waits.
package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/share"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/sockets"
)

// Timing of a connection's steps.
const (
	// selfTimeout is how long a connection waits for its own pod to be known to discovery (Istio's value).
	selfTimeout = 5 * time.Second
)

// Timing of taking a pod over from another process.
const (
	// takeoverTimeout is how long the certificate is waited for; the agent waits 5 s for the whole.
	takeoverTimeout = 3 * time.Second
	takeoverGlance  = 20 * time.Millisecond
	// certificateLoan is how long a certificate is kept that was asked for and not used.
	certificateLoan = 30 * time.Second
)

// Timing of a pod's end.
const (
	// drainMin is how long a deleted pod's tunnel port stays open: peers that have not heard of it yet use it.
	drainMin = 10 * time.Second
	// drainPoll is how often a draining pod is looked at.
	drainPoll = time.Second
)

// reportInterval is how often bytes of connections that live are added to the metrics.
const reportInterval = 5 * time.Second

// sweeps is how often series are looked through in the time after which they are forgotten if nothing uses them.
const sweeps = 4

// When memory is given back to the system.
const (
	tidyInterval = 2 * time.Second
	// tidyLeast is the smallest change in the number of connections that is worth it.
	tidyLeast = 500
	// tidyBurst is how many workloads and services discovery must have changed between two looks to be worth it: the first push of a
	// large mesh needs more memory than what is kept of it.
	tidyBurst = 5000
	tidyTimes = 2
	// tidyShare is the inverse of the share of time that it may take.
	tidyShare = 10
)

// Certificates gives out identities of pods. identity.Manager implements it.
type Certificates interface {
	// SVID blocks until there is one or the context ends.
	SVID(ctx context.Context, id identity.Identity) (*identity.SVID, error)
	// Prefetch has an SVID ready when it is asked for; Forget ends that.
	Prefetch(id identity.Identity)
	Forget(id identity.Identity)
}

// Config holds the settings of all pods' proxies.
type Config struct {
	// Network is the network of the node; empty for the default one. ClusterID is for telemetry.
	Network, ClusterID string
	// TrustDomain is that of pods that discovery does not know yet.
	TrustDomain string
	// Mark is put on packets to upstreams.
	Mark int
	// IPv6 has pods listen on both families.
	IPv6 bool
	// PortReuse lets another process listen on the same ports.
	PortReuse bool
	// OriginalSource has applications see the client's address.
	OriginalSource bool
	// KeepAlive and UserTimeout are TCP's.
	KeepAlive   net.KeepAliveConfig
	UserTimeout time.Duration
	// PoolStreams, PoolIdle and H2 are the settings of tunnels.
	PoolStreams int
	PoolIdle    time.Duration
	H2          h2.Config
	// DrainLimit is how long the connections of a deleted pod may go on.
	DrainLimit time.Duration
	// ResponseBaggage has responses to tunnel requests describe the destination.
	ResponseBaggage bool
	// PolicyInfo logs dry-run policies at info instead of debug.
	PolicyInfo bool
	// MetricsIdle is how long series are kept that nothing has used. Zero: telemetry.DefaultIdle.
	MetricsIdle time.Duration
	// Limits bound what one pod may take, Timeouts the steps and the silence of connections. There zero means none.
	Limits   config.Limits
	Timeouts config.Timeouts
	// MaxFiles bounds the descriptors of one pod's connections, so that it leaves some to its neighbours. Zero: no bound.
	MaxFiles int
}

// Node is what the proxies of all pods share. Make it with NewNode.
type Node struct {
	Config
	Directory    *directory.Directory
	Certificates Certificates
	// Trust is what peers are verified by.
	Trust       *identity.Trust
	Revocations Revocations
	Metrics     *telemetry.Metrics
	Balance     *telemetry.Balance
	Policies    *telemetry.Policies
	AccessLog   *telemetry.AccessLog
	Logger      *slog.Logger
	Bounds      *telemetry.Bounds
	Sockets     *sockets.Keeper
	Names       *dns.Node // nil if name queries are not answered
	Settings    *settings.Holder
	Hosts       Hosts
	Lookups     *telemetry.Lookups

	relayer    hbone.Relayer    // of which each pod has its own
	share      *share.Divider   // of the work among pods
	learnt     atomic.Int64     // workloads and services that discovery has changed
	swept      time.Time        // of Run: when unused tunnels were last ended
	poolCounts hbone.PoolCounts // of all pods' pools, gone ones included

	mu   sync.Mutex // guards the fields below
	pods map[*Pod]bool
	used map[identity.Identity]int // by how many pods and workloads
	// warmed are the identities of the node's workloads that discovery tells of, by uid.
	warmed map[string]identity.Identity
	next   chan struct{} // closed, and made anew, when policies, workloads or the trust domain's names change
	fate   fates         // of workloads, not yet acted upon
	// displaced are the addresses of workloads that are not whom and where they were, since tunnels were last judged.
	displaced map[netip.Addr]bool
	renamed   bool // DomainsChanged was called, and not yet acted upon
	// missed is when a certificate was last waited for in vain.
	missed time.Time

	changed     chan struct{} // next was closed: for Run; capacity 1
	unsubscribe func()        // from the directory
}

// NodeConfig is what a Node is made of. Everything is required but Parker, Balance, Bounds and what says so.
type NodeConfig struct {
	Config
	// Parker watches idle connections. Who made it closes it, after the last pod's end.
	Parker       *hbone.Parker
	Directory    *directory.Directory
	Certificates Certificates
	Trust        *identity.Trust
	Revocations  Revocations
	Metrics      *telemetry.Metrics
	Balance      *telemetry.Balance
	Policies     *telemetry.Policies
	Bounds       *telemetry.Bounds
	AccessLog    *telemetry.AccessLog
	Logger       *slog.Logger
	// Sockets hands sockets over between processes; nil: they are made anew and kept.
	Sockets *sockets.Keeper
	// Names answers pods' name queries; nil: they are not answered.
	Names *dns.Node
	// Settings are the mesh's; nil: Istio's defaults for ever.
	Settings *settings.Holder
	// Hosts looks up workloads that have only a host name, and Lookups counts that; nil: they cannot be reached.
	Hosts   Hosts
	Lookups *telemetry.Lookups
}

// NewNode makes a Node without pods, which hears of changes of the directory until Run ends.
func NewNode(c NodeConfig) *Node {
	if c.MetricsIdle == 0 {
		c.MetricsIdle = telemetry.DefaultIdle
	}
	if c.Sockets == nil {
		c.Sockets = sockets.New(sockets.Config{Logger: c.Logger})
	}
	n := &Node{
		Config:       c.Config,
		Directory:    c.Directory,
		Certificates: c.Certificates,
		Trust:        c.Trust,
		Revocations:  c.Revocations,
		Metrics:      c.Metrics,
		Balance:      c.Balance,
		Policies:     c.Policies,
		Bounds:       c.Bounds,
		share:        share.New(share.Config{Least: c.Limits.Share}),
		AccessLog:    c.AccessLog,
		Logger:       c.Logger,
		Sockets:      c.Sockets,
		Names:        c.Names,
		Settings:     c.Settings,
		Hosts:        c.Hosts,
		Lookups:      c.Lookups,
		relayer:      hbone.Relayer{Parker: c.Parker},
		pods:         map[*Pod]bool{},
		used:         map[identity.Identity]int{},
		warmed:       map[string]identity.Identity{},
		displaced:    map[netip.Addr]bool{},
		next:         make(chan struct{}),
		changed:      make(chan struct{}, 1),
	}
	// From here on, so that nothing of the first push is missed.
	n.unsubscribe = n.Directory.Subscribe(n.onChange)
	return n
}

// Start makes and starts the proxy of a pod. It fits inpod.Config.Start.
func (n *Node) Start(pod inpod.Pod, ns *netns.Namespace) (inpod.Proxy, error) {
	return n.startPod(pod, ns)
}

// Run judges connections again when policies, workloads or the trust domain's names change, evicts tunnels to workloads that are gone, and reports bytes, until
// the context ends.
func (n *Node) Run(ctx context.Context) error {
	defer n.unsubscribe()
	var watch sync.WaitGroup
	watch.Go(func() { _ = n.share.Run(ctx) }) // it has no other end than the context's
	defer watch.Wait()
	report := time.NewTicker(reportInterval)
	defer report.Stop()
	tidy := time.NewTicker(tidyInterval)
	defer tidy.Stop()
	sweep := time.NewTicker(max(n.MetricsIdle/sweeps, time.Second))
	defer sweep.Stop()
	var memory tidier
	changed, rested := n.changed, (<-chan time.Time)(nil)
	for {
		select {
		case <-changed:
			n.actOnFates()
			n.judgeAll()
			changed, rested = nil, time.After(judgeInterval)
		case <-rested:
			changed, rested = n.changed, nil
		case <-report.C:
			for _, p := range n.snapshot() {
				p.conns.report()
			}
			n.sweep(time.Now())
		case <-sweep.C:
			n.Metrics.Sweep(n.MetricsIdle)
		case <-tidy.C:
			if start := time.Now(); memory.due(n.connections(), int(n.learnt.Load()), start) {
				debug.FreeOSMemory()
				memory.took(time.Since(start))
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// tidier says when to give memory back. Go does so by itself, but minutes later, and it shrinks the stacks of goroutines that
// have come to rest only when it collects garbage, which a proxy with idle connections makes none of.
type tidier struct {
	tidied  int // connections when it was last done
	last    int // connections at the last look
	learnt  int // what discovery had changed at the last look
	burst   bool
	most    int // connections at any look since it was last done
	pending int // how often it is to be done yet
	start   time.Time
	pause   time.Time // not before
}

// due takes the present number of connections, and how much discovery has changed since the start. It returns true a few times,
// since a stack shrinks by half at a time, once the number has changed by much, or a burst of changes has come, and all is at rest.
func (t *tidier) due(connections, learnt int, now time.Time) bool {
	t.start = now
	switch came := learnt - t.learnt; {
	case came >= tidyBurst:
		t.burst = true
	case t.burst:
		t.burst, t.pending = false, tidyTimes
	}
	t.learnt = learnt
	rest := abs(connections-t.last) <= connections/20+tidyLeast/10
	t.last = connections
	t.most = max(t.most, connections)
	// A burst that is over leaves as many as before, and its memory.
	if max(abs(connections-t.tidied), t.most-connections) >= max(tidyLeast, t.tidied/5) {
		if !rest {
			return false
		}
		t.tidied, t.most, t.pending = connections, connections, tidyTimes
	}
	if t.pending == 0 || now.Before(t.pause) {
		return false
	}
	t.pending--
	return true
}

// took says how long it was, so that it never takes more than a small share of the time.
func (t *tidier) took(d time.Duration) { t.pause = t.start.Add(d * tidyShare) }

func abs(n int) int { return max(n, -n) }

// connections counts those of all pods.
func (n *Node) connections() int {
	total := 0
	for _, p := range n.snapshot() {
		total += p.conns.len()
	}
	return total
}

// onChange hears what discovery has changed; what is to be done about it, Run does.
func (n *Node) onChange(c directory.Change) {
	n.learnt.Add(int64(len(c.Workloads) + len(c.Services)))
	n.warm(c.Workloads)
	fate, moved := fatesOf(c), displaced(c)
	local := slices.ContainsFunc(c.Workloads, func(w directory.WorkloadChange) bool { return w.Local })
	if fate.empty() && len(moved) == 0 && !local && len(c.Policies) == 0 {
		return
	}
	n.mu.Lock()
	n.fate.add(fate)
	for _, addr := range moved {
		n.displaced[addr] = true
	}
	n.announceLocked()
	n.mu.Unlock()
}

// announceLocked wakes those who wait for nextChange, and Run.
func (n *Node) announceLocked() {
	close(n.next)
	n.next = make(chan struct{})
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// snapshot lists the pods that there are.
func (n *Node) snapshot() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	pods := make([]*Pod, 0, len(n.pods))
	for p := range n.pods {
		pods = append(pods, p)
	}
	return pods
}

// nextChange returns a channel that is closed when policies or the node's workloads change next.
func (n *Node) nextChange() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.next
}

// enter and leave keep the list of pods, and certificates for those that there are.
func (n *Node) enter(p *Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods[p] = true
	n.useLocked(*p.id.Load())
}

func (n *Node) leave(p *Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, p)
	n.disuseLocked(*p.id.Load())
}

// adopt changes a pod's identity, when discovery tells another trust domain than expected.
func (n *Node) adopt(p *Pod, id identity.Identity) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := *p.id.Load(); old != id && n.pods[p] {
		n.useLocked(id)
		p.id.Store(&id)
		n.disuseLocked(old)
	}
}

// awaitCertificate returns once there is a certificate. It waits takeoverTimeout, but after it has waited in vain once, it
// only looks for a while: the control plane seems to be away, and the caller has other pods to serve.
func (n *Node) awaitCertificate(id identity.Identity) error {
	n.mu.Lock()
	n.useLocked(id)
	timeout := takeoverTimeout
	if time.Since(n.missed) < certificateLoan {
		timeout = takeoverGlance
	}
	n.mu.Unlock()
	// The caller will use it soon, or ask again.
	time.AfterFunc(certificateLoan, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.disuseLocked(id)
	})
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := n.Certificates.SVID(ctx, id)
	if err != nil {
		n.mu.Lock()
		n.missed = time.Now()
		n.mu.Unlock()
	}
	return err
}

func (n *Node) useLocked(id identity.Identity) {
	n.used[id]++
	n.Certificates.Prefetch(id)
}

func (n *Node) disuseLocked(id identity.Identity) {
	if n.used[id]--; n.used[id] == 0 {
		delete(n.used, id)
		n.Certificates.Forget(id)
	}
}

// dialer is what all connections to upstreams have in common.
func (n *Node) dialer() netns.Dialer {
	return netns.Dialer{Mark: n.Mark, KeepAlive: n.KeepAlive, UserTimeout: int(n.UserTimeout / time.Millisecond)}
}

// workloadAt returns the workload of an address in the node's network, or nil.
func (n *Node) workloadAt(addr netip.Addr) *directory.Workload {
	return n.Directory.WorkloadByAddr(n.Network, addr)
}
