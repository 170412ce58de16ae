package telemetry

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/puzpuzpuz/xsync/v4"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Reporter is the side that counts.
type Reporter uint8

const (
	ReporterSource Reporter = iota
	ReporterDestination
)

// reporters is the number of reporters.
const reporters = 2

// String is the value of the reporter label.
func (r Reporter) String() string {
	if r == ReporterDestination {
		return "destination"
	}
	return "source"
}

// Flag is the response_flags label: how a connection ended, or failed.
type Flag uint8

const (
	// FlagNone is "-".
	FlagNone Flag = iota
	// FlagDenied: refused by policy.
	FlagDenied
	// FlagConnect: the upstream could not be connected to.
	FlagConnect
	// FlagTLS: the handshake failed.
	FlagTLS
	// FlagH2: the HTTP/2 handshake failed.
	FlagH2
	// FlagNetworkPolicy: connecting to port 15008 timed out.
	FlagNetworkPolicy
	// FlagIdentity: no certificate for the source.
	FlagIdentity
	// FlagRevoked: the peer's certificate was revoked.
	FlagRevoked
	// FlagUnregistered: the mesh does not know the destination, and its settings say REGISTRY_ONLY.
	FlagUnregistered
	// FlagLimit: the pod has as many tunnel connections as it may have.
	FlagLimit
)

// flags are the values of the response_flags label.
var flags = [...]string{
	FlagNone: "-", FlagDenied: "DENY", FlagConnect: "CONNECT", FlagTLS: "TLS_FAILURE", FlagH2: "H2_HANDSHAKE_FAILURE",
	FlagNetworkPolicy: "NETWORK_POLICY", FlagIdentity: "IDENTITY_ERROR", FlagRevoked: "CERT_REVOKED",
	FlagUnregistered: "REGISTRY_ONLY", FlagLimit: "POD_LIMIT",
}

// String is the value of the response_flags label.
func (f Flag) String() string { return flags[f] }

// Flow says between whom connections are counted together.
type Flow struct {
	Reporter Reporter
	// Source and Destination may be nil: unknown.
	Source, Destination *directory.Workload
	// Service that the client asked for; may be nil.
	Service *directory.Service
	// SourceIdentity and DestinationIdentity are the principals, verified or expected; zero: unknown.
	SourceIdentity, DestinationIdentity identity.Identity
	// MutualTLS: the connection is (to be) tunnelled.
	MutualTLS bool
}

// Metrics counts connections. It is safe for concurrent use.
type Metrics struct {
	flows *xsync.Map[flowKey, *Series] // changed under mu only
	open  [reporters]atomic.Int64      // connections

	mu        sync.Mutex                      // guards the fields below
	sets      map[labels]*labelSet            // what is exposed
	latencies map[latencyLabels]*latencies    // of sets
	uses      map[string]map[flowKey]struct{} // flows that a workload takes part in, by uid

	descriptions
}

// flowKey is a Flow by names: what a workload or service is like now does not matter.
type flowKey struct {
	reporter                            Reporter
	mutualTLS                           bool
	source, destination                 string // uid
	service                             directory.ServiceKey
	sourceIdentity, destinationIdentity identity.Identity
}

func keyOf(f *Flow) flowKey {
	k := flowKey{
		reporter: f.Reporter, mutualTLS: f.MutualTLS,
		sourceIdentity: f.SourceIdentity, destinationIdentity: f.DestinationIdentity,
	}
	if f.Source != nil {
		k.source = f.Source.UID
	}
	if f.Destination != nil {
		k.destination = f.Destination.UID
	}
	if f.Service != nil {
		k.service = f.Service.ServiceKey
	}
	return k
}

// Series is the counters of one Flow. It stays valid for as long as it is held.
type Series struct {
	metrics *Metrics
	set     *labelSet
	used    atomic.Bool // since the last Sweep

	idleSince time.Time // of Sweep; guarded by Metrics.mu

	// What the labels were made of.
	source, destination *directory.Workload
	service             *directory.Service
}

// NewMetrics makes Metrics and registers them. It panics if they are registered already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		flows:        xsync.NewMap[flowKey, *Series](),
		sets:         map[labels]*labelSet{},
		latencies:    map[latencyLabels]*latencies{},
		uses:         map[string]map[flowKey]struct{}{},
		descriptions: newDescriptions(),
	}
	reg.MustRegister(m)
	return m
}

// Series returns the counters of a flow; it costs one map look-up if the flow was seen before, and its workloads and
// service have not changed since.
func (m *Metrics) Series(f Flow) *Series {
	key := keyOf(&f)
	if s, ok := m.flows.Load(key); ok && s.source == f.Source && s.destination == f.Destination && s.service == f.Service {
		if !s.used.Load() { // most often it is, and nothing is written that other processors read
			s.used.Store(true)
		}
		return s
	}
	s := &Series{metrics: m, source: f.Source, destination: f.Destination, service: f.Service}
	l := labelsOf(&f)
	m.mu.Lock()
	defer m.mu.Unlock()
	set := m.sets[l]
	if set == nil {
		set = newLabelSet(f.Reporter, &l)
		m.sets[l] = set
		set.latencies = m.latenciesLocked(latencyOf(&l))
		set.latencies.sets++
	}
	s.set = set
	s.used.Store(true)
	set.flows++
	if old, ok := m.flows.Load(key); ok {
		old.set.leave()
	}
	m.flows.Store(key, s)
	for _, uid := range [...]string{key.source, key.destination} {
		if m.uses[uid] == nil {
			m.uses[uid] = map[flowKey]struct{}{}
		}
		m.uses[uid][key] = struct{}{}
	}
	return s
}

func (m *Metrics) latenciesLocked(l latencyLabels) *latencies {
	found := m.latencies[l]
	if found == nil {
		found = newLatencies(l)
		m.latencies[l] = found
	}
	return found
}

// Opened counts a connection that was opened, which took so long since the client had connected or asked for a tunnel.
func (s *Series) Opened(took time.Duration) {
	s.set.latencies.connect.observe(took)
	s.set.opened.Add(1)
	s.set.open.Add(1)
	s.metrics.open[s.set.reporter].Add(1)
}

// FirstByte counts that the first byte of the server came so long after the connection was opened. Call it at most once for
// each connection.
func (s *Series) FirstByte(took time.Duration) { s.set.latencies.firstByte.observe(took) }

// Closed counts the end of a connection that was Opened, as flag.
func (s *Series) Closed(flag Flag) {
	s.set.closed[flag].Add(1)
	s.set.open.Add(-1)
	s.metrics.open[s.set.reporter].Add(-1)
}

// Failed counts a connection that could not be opened, or was refused.
func (s *Series) Failed(flag Flag) { s.set.failed[flag].Add(1) }

// AddBytes counts payload: sent is from the client to the server, received the other way, whatever the reporter. In the
// metrics "sent" is what the reporter's own workload has sent.
func (s *Series) AddBytes(sent, received uint64) {
	if s.set.reporter == ReporterDestination {
		sent, received = received, sent
	}
	s.set.sent.Add(sent)
	s.set.received.Add(received)
}

// NewRegistry makes a registry with process and Go runtime metrics, and istio_build{component, tag}.
func NewRegistry(component, version string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "istio_build", Help: "Version of this program; the value is always 1.",
		ConstLabels: prometheus.Labels{"component": component, "tag": version},
	})
	build.Set(1)
	reg.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// Handler serves a registry as Prometheus text or OpenMetrics, by the Accept header.
func Handler(reg *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range [...]*prometheus.Desc{m.opened, m.closed, m.failed, m.sent, m.received, m.sockets, m.connect, m.firstByte} {
		ch <- d
	}
}

// Collect implements prometheus.Collector, and drops what has expired.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for r := range Reporter(reporters) {
		ch <- prometheus.MustNewConstMetric(m.sockets, prometheus.GaugeValue, float64(m.open[r].Load()), r.String())
	}
	now := time.Now()
	m.mu.Lock()
	histograms := slices.Collect(maps.Values(m.latencies))
	sets := make([]*labelSet, 0, len(m.sets))
	for l, set := range m.sets {
		sets = append(sets, set)
		if set.expired(now) {
			m.deleteLocked(l, set)
		}
	}
	m.mu.Unlock()
	for _, h := range histograms {
		h.collect(&m.descriptions, ch)
	}
	for _, set := range sets {
		set.collect(&m.descriptions, ch)
	}
}

// labelSet is the series with one set of labels, of which flows between many pods may have the same.
type labelSet struct {
	reporter  Reporter
	pairs     [len(flags)]labelPairs // by flag
	latencies *latencies

	opened, sent, received atomic.Uint64
	closed, failed         [len(flags)]atomic.Uint64
	open                   atomic.Int64

	// Guarded by Metrics.mu.
	flows int       // that have this set
	since time.Time // when the last of them left
}

func (s *labelSet) collect(d *descriptions, ch chan<- prometheus.Metric) {
	if n := s.opened.Load(); n > 0 {
		ch <- &counter{d.opened, s.pairs[FlagNone], n}
		ch <- &counter{d.sent, s.pairs[FlagNone], s.sent.Load()}
		ch <- &counter{d.received, s.pairs[FlagNone], s.received.Load()}
	}
	for f := range flags {
		if n := s.closed[f].Load(); n > 0 {
			ch <- &counter{d.closed, s.pairs[f], n}
		}
		if n := s.failed[f].Load(); n > 0 {
			ch <- &counter{d.failed, s.pairs[f], n}
		}
	}
}

func newLabelSet(r Reporter, l *labels) *labelSet {
	set := &labelSet{reporter: r}
	all := l.pairs()
	at, _ := slices.BinarySearchFunc(all, flagLabel, func(p *labelPair, name string) int { return cmp.Compare(p.GetName(), name) })
	for f := range flags {
		set.pairs[f] = slices.Insert(slices.Clone(all), at, flagPairs[f])
	}
	return set
}
