package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/puzpuzpuz/xsync/v4"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// ErrNoEndpoint is why there is nothing to connect to: the cluster has no endpoint that is ready.
var ErrNoEndpoint = errors.New("no endpoint of the service is ready")

// ErrRefused is why there is nothing to connect to: the control plane does not let anything be sent to the cluster.
var ErrRefused = errors.New("the backend is not allowed")

// maxConnections bounds the connections of one version of HTTP to one endpoint; requests beyond wait.
const maxConnections = 1024

// Config says how clusters reach endpoints. Tunnels is required.
type Config struct {
	// Tunnels opens tunnels to endpoints in the mesh. It stays the caller's, to be closed after Clusters.
	Tunnels *hbone.Pool
	// Source is the identity that tunnels are opened as.
	Source identity.Identity
	// Baggage describes this proxy's workload to the endpoint's proxy; may be empty.
	Baggage string
	// Dial connects to endpoints outside the mesh. If nil, a net.Dialer does.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Names looks up endpoints that are host names. Required if there are any. It stays the caller's, to be closed after Clusters.
	Names Names
	// Reaches tells which addresses of host names can be connected to; nil: all.
	Reaches func(netip.Addr) bool
}

// Clusters are all clusters of the configuration. Its methods may be called concurrently.
type Clusters struct {
	cfg    Config
	ctx    context.Context // of dials
	cancel context.CancelCauseFunc
	byName *xsync.Map[string, *Cluster]

	ended  sync.WaitGroup // of dials and connections
	system func() *x509.CertPool

	current atomic.Pointer[config.Snapshot] // set with the lock

	mu    sync.Mutex      // guards what follows, and changes of clusters; never held across I/O
	peers map[peerKey]int // how many endpoints a tunnel's peer has
	names map[string]*name
	place Place
}

// peerKey is whom a tunnel leads to.
type peerKey struct {
	addr netip.Addr
	id   identity.Identity
}

// uid is the name under which the tunnel pool knows the peer.
func (k peerKey) uid() string { return k.addr.String() + "/" + k.id.String() }

// New returns Clusters that have none yet. The caller must Close them.
func New(cfg Config) *Clusters {
	if cfg.Dial == nil {
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr.String())
		}
	}
	m := &Clusters{cfg: cfg, byName: xsync.NewMap[string, *Cluster](), peers: map[peerKey]int{}, names: map[string]*name{}, system: sync.OnceValue(systemRoots)}
	m.ctx, m.cancel = context.WithCancelCause(context.Background())
	return m
}

// Lookup returns a cluster by name; nil if it is not known.
func (m *Clusters) Lookup(name string) *Cluster {
	c, _ := m.byName.Load(name)
	return c
}

// All calls f for every cluster, in no order.
func (m *Clusters) All(f func(*Cluster)) {
	for _, c := range m.byName.All() {
		f(c)
	}
}

// Apply makes a snapshot the one in force. Endpoints that are in it as they were keep their connections; those of others end
// with their last request.
func (m *Clusters) Apply(s *config.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.current.Swap(s)
	for name, cfg := range s.ChangedClusters(before) {
		c, known := m.byName.Load(name)
		switch {
		case cfg == nil && known:
			m.leave(c)
		case cfg == nil:
		case known:
			if c.leaving != nil {
				c.leaving.Stop()
				c.leaving = nil
			}
			c.apply(cfg)
		default:
			c = &Cluster{manager: m, name: name, known: map[endpointKey]*Endpoint{}}
			c.apply(cfg)
			m.byName.Store(name, c)
		}
	}
	for w := range s.ChangedDirect(before) {
		for _, c := range m.byName.All() {
			c.leaveBound(w)
		}
	}
}

// leaveFor is how long a cluster that is gone from the configuration is there: clients' connections from before, whose service has
// left this waypoint, may bring requests until they have heard of it.
const leaveFor = 10 * time.Second

// leave lets go of a cluster after a while, unless it comes back. The caller holds the lock.
func (m *Clusters) leave(c *Cluster) {
	if c.leaving != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(leaveFor, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if c.leaving != t || m.ctx.Err() != nil {
			return
		}
		m.byName.Delete(c.name)
		c.apply(&config.Cluster{Name: c.name, Settings: c.state.Load().settings})
		c.leaveAllBound()
	})
	c.leaving = t
}

// Close ends all connections at once and waits for them.
func (m *Clusters) Close() {
	m.cancel(ErrClosed)
	m.ended.Wait()
}

// Cluster is one cluster at run time. Its methods may be called concurrently.
type Cluster struct {
	manager *Clusters
	name    string
	state   atomic.Pointer[state]
	turn    atomic.Uint64 // of round robin

	usage  usage
	budget atomic.Pointer[budget] // nil if there is none of what was lately
	panic  atomic.Int64           // until then so many endpoints are ejected that it does not matter which, in Unix nanoseconds

	// Guarded by the manager's lock.
	cfg     *config.Cluster // that was applied last
	leaving *time.Timer     // ends it; nil while it is in the configuration
	known   map[endpointKey]*Endpoint
	// direct and inner are how endpoints outside the mesh, and in it, are spoken to by TLS; nil for plain. Also guarded by it.
	direct, inner *secured
	// names are those of endpoints, and asked the endpoints that clients named by their addresses. Also guarded by it.
	names map[string]*name
	asked asked
}

// state is what the configuration makes of a cluster. It is immutable.
type state struct {
	settings *config.Settings
	client   codec.ClientConfig
	service  unique.Handle[telemetry.ServiceName]
	levels   []level                             // in the order in which they are used; none is empty
	total    int                                 // endpoints of levels
	here     bool                                // endpoints have come
	none     error                               // why there is no endpoint, if there is none
	unknown  *name                               // nothing is known of it yet; nil: of all names something is
	named    func() map[netip.AddrPort]*Endpoint // of levels; made when it is asked for
	// bound are endpoints that are workloads' own addresses; nil of a cluster that is not config.Bound. It changes with the manager's lock,
	// and goes from state to state.
	bound *xsync.Map[netip.AddrPort, *Endpoint]
}

// Name is the cluster's.
func (c *Cluster) Name() string { return c.name }

// Settings are those in force. They must not be changed.
func (c *Cluster) Settings() *config.Settings { return c.state.Load().settings }

// Service names the cluster's service in metrics.
func (c *Cluster) Service() unique.Handle[telemetry.ServiceName] { return c.state.Load().service }

// maxIdle is how long a connection without requests is kept at most, whatever the settings say: each costs memory here, at the
// endpoint's proxy and at the endpoint.
const maxIdle = 5 * time.Minute

// idleTimeout is how long a connection without requests is kept.
func (c *Cluster) idleTimeout() time.Duration {
	if d := c.Settings().IdleTimeout; d > 0 {
		return min(d, maxIdle)
	}
	return maxIdle
}

// Requests returns how many requests are under way.
func (c *Cluster) Requests() int { return int(c.usage.requests.Load()) }

// Endpoints calls f for each endpoint that may be chosen.
func (c *Cluster) Endpoints(f func(*Endpoint)) {
	for _, l := range c.state.Load().levels {
		for _, e := range l.endpoints {
			f(e)
		}
	}
	c.asked.all(f)
	if bound := c.state.Load().bound; bound != nil {
		for _, e := range bound.All() {
			f(e)
		}
	}
}

// Before prepares a choice: it waits for host names of which nothing is known yet. Where there is nothing to choose, since what the
// client connected to is the endpoint, it returns that; otherwise nil, and Choose or ChooseFor has to follow.
func (c *Cluster) Before(ctx context.Context, asked netip.AddrPort) (*Endpoint, error) {
	s := c.state.Load()
	for s.unknown != nil && len(s.levels) == 0 {
		select {
		case <-s.unknown.first:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.manager.ctx.Done():
			return nil, ErrClosed
		}
		next := c.state.Load()
		if next == s { // it was taken out of the configuration
			break
		}
		s = next
	}
	switch {
	case s.settings.Discovery == config.Asked && s.settings.Refused == "":
		return c.asked.endpoint(c, asked)
	case s.settings.Discovery == config.Bound:
		return c.at(asked)
	}
	return nil, nil
}

// Choose returns an endpoint for a request: the less busy of two of the first priority that has any which were neither tried
// nor failed lately; where there is none such, one that failed, and then one that was tried. It returns ErrNoEndpoint if
// none is ready, and an error that is ErrRefused if none may be used.
func (c *Cluster) Choose(tried []*Endpoint) (*Endpoint, error) {
	s := c.state.Load()
	if e := chooseFrom(s.levels, c.chooser(s), tried, now()); e != nil {
		return e, nil
	}
	return nil, s.none
}

// Named returns the endpoint of an address, if it is one that may be chosen; nil if not.
func (c *Cluster) Named(addr netip.AddrPort) *Endpoint { return c.state.Load().named()[addr] }

// chooser says how the cluster chooses.
func (c *Cluster) chooser(s *state) chooser {
	switch s.settings.Balancer {
	case config.Random:
		return chooser{choices: 1}
	case config.RoundRobin:
		return chooser{choices: 1, turn: &c.turn}
	}
	return chooser{choices: max(2, int(s.settings.Choices))}
}

// apply takes the configuration over. The caller holds the manager's lock.
func (c *Cluster) apply(cfg *config.Cluster) {
	c.cfg = cfg
	c.followBudget(cfg.Settings)
	next := &state{settings: cfg.Settings, here: cfg.Endpoints != nil, client: codec.ClientConfig{
		MaxHeader: cfg.Settings.MaxResponseHeader, MaxFields: cfg.Settings.MaxHeaderFields,
	}}
	next.service = unique.Make(telemetry.ServiceName(cfg.Settings.Service))
	next.client.H2.MaxSendStreams = cfg.Settings.MaxConcurrentStreams
	next.none = ErrNoEndpoint
	if cfg.Settings.Refused != "" {
		next.none = fmt.Errorf("%w to be sent to: %s", ErrRefused, cfg.Settings.Refused)
	}
	c.manager.secure(&c.direct, cfg.Settings.TLS)
	c.manager.secure(&c.inner, cfg.Settings.TunnelTLS)
	seen := map[endpointKey]*Endpoint{}
	c.follow(cfg)
	if cfg.Endpoints != nil && cfg.Settings.Refused == "" {
		endpoints, failed := c.resolved(cfg)
		if failed != nil {
			next.none = fmt.Errorf("%w: %w", ErrNoEndpoint, failed)
		}
		next.levels = c.levels(cfg.Settings, endpoints, seen)
		next.unknown = c.unanswered()
	}
	c.asked.keep(c, cfg.Settings)
	for _, l := range next.levels {
		next.total += len(l.endpoints)
	}
	next.named = sync.OnceValue(func() map[netip.AddrPort]*Endpoint {
		out := make(map[netip.AddrPort]*Endpoint, next.total)
		for _, l := range next.levels {
			for _, e := range l.endpoints {
				out[e.key.addr] = e
			}
		}
		return out
	})
	if before := c.state.Load(); before != nil && before.bound != nil {
		next.bound = before.bound
	} else if cfg.Settings.Discovery == config.Bound {
		next.bound = xsync.NewMap[netip.AddrPort, *Endpoint]()
	}
	old := c.known
	c.known = seen
	c.state.Store(next)
	for key, e := range old {
		if seen[key] == nil {
			c.manager.retire(e)
		}
	}
}

// levels arranges endpoints: the healthy ones of each priority, near ones first if the cluster prefers those, and then the degraded
// ones. Those that are draining or not healthy are known, and not chosen.
func (c *Cluster) levels(settings *config.Settings, all *config.Endpoints, seen map[endpointKey]*Endpoint) []level {
	var out []level
	prefer := settings.Prefer
	if b := settings.Balancer; b == config.RingHash || b == config.Maglev {
		prefer = nil // all waypoints are to find the same endpoint for a key, wherever they are
	}
	for _, health := range [...]config.Health{config.Healthy, config.Degraded} {
		for _, p := range c.manager.place.arrange(prefer, all.Priorities) {
			var endpoints []*Endpoint
			var weights []float64
			for _, l := range p.Localities {
				sum := 0.0
				for _, e := range l.Endpoints {
					if e.Health == health {
						sum += float64(e.Weight)
					}
				}
				for _, e := range l.Endpoints {
					r := c.endpoint(e, seen)
					w := float64(e.Weight)
					if settings.LocalityWeights && sum > 0 {
						w *= float64(l.Weight) / sum
					}
					if e.Health == health && w > 0 {
						endpoints, weights = append(endpoints, r), append(weights, w)
					}
				}
			}
			if len(endpoints) > 0 {
				l := newLevel(endpoints, weights)
				switch settings.Balancer {
				case config.RingHash:
					l.ring = newRing(endpoints, weights, settings.TableSize)
				case config.Maglev:
					l.maglev = newMaglev(endpoints, weights, settings.TableSize)
				}
				out = append(out, l)
			}
		}
	}
	return out
}

// endpoint returns the endpoint at run time, the one that there was if it is the same.
func (c *Cluster) endpoint(cfg *config.Endpoint, seen map[endpointKey]*Endpoint) *Endpoint {
	tls := c.direct
	if cfg.HBONE {
		tls = c.inner
	}
	key := endpointKey{cfg.Address, cfg.HBONE, cfg.Identity, cfg.Workload, tls.name()}
	if e := seen[key]; e != nil {
		return e
	}
	e := c.known[key]
	if e == nil {
		e = newEndpoint(c, key, tls)
		if key.hbone {
			c.manager.peers[e.peer()]++
		}
	}
	seen[key] = e
	return e
}

// retire lets go of an endpoint, and of the tunnels to its peer if that has no other.
func (m *Clusters) retire(e *Endpoint) {
	e.retire()
	if !e.key.hbone {
		return
	}
	peer := e.peer()
	if m.peers[peer]--; m.peers[peer] == 0 {
		delete(m.peers, peer)
		m.cfg.Tunnels.Evict(peer.uid())
	}
}

// now is the time as Endpoint.out has it.
func now() int64 { return time.Now().UnixNano() }
