// Package inpod learns from the node's CNI agent which pods to serve (ZDS), and keeps a proxy for each.
//
// Rules of the room: one loop owns the set of pods. Every request of the agent is answered. Whatever the agent sends, or
// its going away, ends no proxy but those that it names: a breach of the protocol ends the connection, which is made anew.
package inpod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// Timing. The values of the first three are those of Istio's ztunnel.
const (
	// reconnectFirst is the pause after a first failure to reach the agent; it doubles with each further one.
	reconnectFirst = 10 * time.Millisecond
	reconnectMax   = 15 * time.Second
	// retryInterval is how often proxies are tried again that could not start.
	retryInterval = 5 * time.Second
	// readyDespite is how long pods whose proxies cannot start hold readiness back, if others can.
	readyDespite = time.Minute
)

// Pod is what the agent says of a pod. It is comparable.
type Pod struct {
	UID            string
	Name           string
	Namespace      string
	ServiceAccount string
	// Resolver is how the pod resolves names; zero if the agent did not say.
	Resolver Resolver
}

// Resolver is what a pod's resolv.conf says. It is comparable: lists are words with blanks between.
type Resolver struct {
	Servers, Search string
	NDots           int
}

func resolverOf(r *zds.Resolver) Resolver {
	return Resolver{Servers: strings.Join(r.GetServers(), " "), Search: strings.Join(r.GetSearch(), " "), NDots: int(r.GetNdots())}
}

// same tells whether both are the same pod. How it resolves names does not matter: its connections are not to be cut for
// that, and an agent of another release may not say it.
func (p Pod) same(o Pod) bool {
	p.Resolver, o.Resolver = Resolver{}, Resolver{}
	return p == o
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Proxy serves one pod. Its methods are called from one goroutine, but for Done.
type Proxy interface {
	// Drain takes nothing new on behalf of the pod that Resume would not take again, lets what exists go on, and ends the
	// proxy when that has ended. It returns at once; a second call does nothing.
	Drain()
	// Resume undoes Drain. An error leaves the proxy draining.
	Resume() error
	// Shutdown is Drain for the end of the process: it takes nothing new at all, and returns when the proxy has ended, which
	// it does at the latest with the context.
	Shutdown(ctx context.Context)
	// Stop ends the proxy and all its connections, and returns when that is done.
	Stop()
	// Done is closed when the proxy has ended.
	Done() <-chan struct{}
}

// Config configures a Manager.
type Config struct {
	// Socket is the path of the agent's socket. Required.
	Socket string
	// Home is the process's own network namespace. Required.
	Home *netns.Home
	// Start makes a proxy for a pod. The namespace stays the manager's, who closes it after the proxy's end. It must return
	// soon: the agent waits. Required.
	Start func(Pod, *netns.Namespace) (Proxy, error)
	// Resolvers has the agent asked how pods resolve names.
	Resolvers bool
	// Logger takes what the agent says and failures. Required.
	Logger *slog.Logger
	// Registerer takes the workload_manager_* metrics; nil for none.
	Registerer prometheus.Registerer
}

// Manager keeps the proxies of the node's pods.
type Manager struct {
	cfg     Config
	metrics metrics

	// Owned by the loop of Run, and by Shutdown after it.
	entries  map[string]*entry // by uid
	named    map[string]bool   // pods of the snapshot that is being received; nil after it
	firstTry time.Time         // when the first snapshot was complete

	ended    chan ending
	watchers sync.WaitGroup // goroutines that wait for a proxy's Done
	stopped  chan struct{}  // closed when nobody receives from ended any more

	ready     atomic.Bool
	connected atomic.Bool
	published atomic.Pointer[[]Status] // what Status returns
}

// entry is a pod and its proxy.
type entry struct {
	pod      Pod
	ns       *netns.Namespace
	proxy    Proxy // nil while it could not be started
	err      error // why it could not
	draining bool
}

// ending says that a proxy has ended, which may not be its pod's any more.
type ending struct {
	entry *entry
	proxy Proxy
}

// State is what the manager does about a pod.
type State string

// The states of a pod.
const (
	StatePending  State = "Pending" // its proxy cannot start; tried again every 5 s
	StateUp       State = "Up"
	StateDraining State = "Draining"
)

// Status describes one pod.
type Status struct {
	Pod   Pod
	State State
	Err   string // why it is pending
	NetNS netns.ID
	Proxy Proxy // nil while pending
}

// NewManager makes a Manager, which does nothing until Run is called.
func NewManager(cfg Config) *Manager {
	m := &Manager{
		cfg:     cfg,
		metrics: newMetrics(cfg.Registerer),
		entries: map[string]*entry{},
		ended:   make(chan ending),
		stopped: make(chan struct{}),
	}
	m.publish()
	return m
}

// Ready tells whether the pods of a first snapshot are served. If some cannot be, it becomes true all the same after a
// minute, so that one broken pod does not hold up a node. It stays true when the agent goes away.
func (m *Manager) Ready() bool { return m.ready.Load() }

// Connected tells whether the agent is there.
func (m *Manager) Connected() bool { return m.connected.Load() }

// Status lists the pods, sorted by uid. It may be called concurrently with Run.
func (m *Manager) Status() []Status { return *m.published.Load() }

// event is one request of the agent, on its way to the loop and back.
type event struct {
	begin   bool // a new connection; req is nil
	req     *request
	outcome chan outcome
}

// outcome is what the loop made of an event: text goes into the answer; err ends the connection.
type outcome struct {
	text string
	err  error
}

// Run serves the agent until the context ends. Proxies go on after it; Shutdown ends them.
func (m *Manager) Run(ctx context.Context) error {
	events := make(chan event)
	var connector sync.WaitGroup
	connector.Go(func() { m.connect(ctx, events) })
	defer connector.Wait()
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	for {
		// One of four things happens: the agent says something, a proxy ends, it is time to try again, or it is all over.
		select {
		case ev := <-events:
			ev.outcome <- m.handle(ev)
		case e := <-m.ended:
			m.remove(e)
		case <-retry.C:
			m.retry()
		case <-ctx.Done():
			return nil
		}
		m.updateReady()
		m.publish()
	}
}

// connect keeps a connection to the agent until the context ends.
func (m *Manager) connect(ctx context.Context, events chan<- event) {
	pause := reconnectFirst
	for ctx.Err() == nil {
		progress, err := m.session(ctx, events)
		m.connected.Store(false)
		if ctx.Err() != nil {
			return
		}
		// A connection on which a whole snapshot came was a good one.
		if progress {
			pause = reconnectFirst
		}
		level := slog.LevelWarn
		if errors.Is(err, io.EOF) {
			level = slog.LevelInfo
		}
		m.cfg.Logger.Log(ctx, level, "no connection to the CNI agent; running proxies go on",
			"socket", m.cfg.Socket, "error", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, reconnectMax)
	}
}

// session serves one connection. It tells whether a whole snapshot came, and why the connection ended.
func (m *Manager) session(ctx context.Context, events chan<- event) (snapshot bool, err error) {
	var features []zds.Feature
	if m.cfg.Resolvers {
		features = append(features, zds.Feature_RESOLVER)
	}
	w, stop, err := dialZDS(ctx, m.cfg.Socket, features...)
	if err != nil {
		return false, err
	}
	defer w.conn.Close()
	defer stop()
	m.cfg.Logger.Info("connected to the CNI agent", "socket", m.cfg.Socket)
	m.connected.Store(true)
	if _, err := post(ctx, events, event{begin: true}); err != nil {
		return false, err
	}
	for {
		req, err := w.receive()
		if err != nil {
			if errors.Is(err, errProtocol) {
				// The agent may be waiting for an answer; what it asked for was not done.
				return snapshot, errors.Join(err, w.ack(err.Error()))
			}
			return snapshot, err
		}
		out, err := post(ctx, events, event{req: req})
		req.close()
		if err != nil {
			return snapshot, err
		}
		if err := w.ack(out.text); err != nil {
			return snapshot, fmt.Errorf("answer: %w", err)
		}
		if out.err != nil {
			return snapshot, out.err
		}
		if _, ok := req.Payload.(*zds.WorkloadRequest_SnapshotSent); ok {
			snapshot = true
		}
	}
}

// post has the loop handle an event.
func post(ctx context.Context, events chan<- event, ev event) (outcome, error) {
	ev.outcome = make(chan outcome, 1)
	select {
	case events <- ev:
		return <-ev.outcome, nil
	case <-ctx.Done():
		return outcome{}, context.Cause(ctx)
	}
}

// handle does what the agent asks for.
func (m *Manager) handle(ev event) outcome {
	if ev.begin {
		m.named = map[string]bool{}
		return outcome{}
	}
	breach := func(text string) outcome {
		err := fmt.Errorf("%w: %s", errProtocol, text)
		return outcome{text: err.Error(), err: err}
	}
	var err error
	switch p := ev.req.Payload.(type) {
	case *zds.WorkloadRequest_Add:
		err = m.add(ev.req, p.Add)
	case *zds.WorkloadRequest_Keep:
		if m.named == nil {
			return breach("keep after the snapshot")
		}
		m.named[p.Keep.GetUid()] = true
		if e := m.entries[p.Keep.GetUid()]; e != nil {
			err = m.resume(e)
		}
	case *zds.WorkloadRequest_Del:
		m.delete(p.Del.GetUid())
	case *zds.WorkloadRequest_SnapshotSent:
		if m.named == nil {
			return breach("second snapshot")
		}
		m.endSnapshot()
	default:
		// A later version of the protocol, which our hello did not ask for.
		err = fmt.Errorf("request of an unknown kind: %v", ev.req.WorkloadRequest)
	}
	if err != nil {
		m.cfg.Logger.Error("CNI agent's request failed", "error", err)
		return outcome{text: err.Error()}
	}
	return outcome{}
}

// add starts a proxy for a pod, unless the pod has one in the same namespace.
func (m *Manager) add(req *request, a *zds.AddWorkload) error {
	i := a.GetWorkloadInfo()
	pod := Pod{UID: a.GetUid(), Name: i.GetName(), Namespace: i.GetNamespace(), ServiceAccount: i.GetServiceAccount(),
		Resolver: resolverOf(i.GetResolver())}
	if m.named != nil {
		m.named[pod.UID] = true
	}
	ns, err := m.cfg.Home.Namespace(req.takeFD())
	if err != nil {
		return fmt.Errorf("add pod %s: %w", pod, err)
	}
	e := m.entries[pod.UID]
	if e != nil && e.ns.ID() == ns.ID() && e.pod.same(pod) && e.proxy != nil {
		ns.Close()
		return m.resume(e)
	}
	if e != nil {
		m.drop(e)
	}
	e = &entry{pod: pod, ns: ns}
	m.entries[pod.UID] = e
	return m.start(e)
}

// start makes an entry's proxy; on failure the entry stays, to be tried again.
func (m *Manager) start(e *entry) error {
	proxy, err := m.cfg.Start(e.pod, e.ns)
	if err != nil {
		e.err = fmt.Errorf("start proxy of pod %s: %w", e.pod, err)
		return e.err
	}
	e.proxy, e.err = proxy, nil
	m.metrics.started.Inc()
	m.cfg.Logger.Info("pod is served", "pod", e.pod, "uid", e.pod.UID, "netns", e.ns.ID())
	m.watchers.Go(func() {
		<-proxy.Done()
		select {
		case m.ended <- ending{e, proxy}:
		case <-m.stopped:
		}
	})
	return nil
}

// resume makes a draining proxy serve again, or, if it is too late for that, makes a new one.
func (m *Manager) resume(e *entry) error {
	if !e.draining {
		return nil
	}
	e.draining = false
	err := e.proxy.Resume()
	if err == nil {
		m.cfg.Logger.Info("pod is served again", "pod", e.pod, "uid", e.pod.UID)
		return nil
	}
	m.cfg.Logger.Info("pod gets a new proxy", "pod", e.pod, "uid", e.pod.UID, "reason", err)
	m.stop(e)
	return m.start(e)
}

// stop ends an entry's proxy at once.
func (m *Manager) stop(e *entry) {
	e.proxy.Stop()
	e.proxy = nil
	m.metrics.stopped.Inc()
}

// delete drains a pod's proxy. To delete a pod that there is not is no error.
func (m *Manager) delete(uid string) {
	e := m.entries[uid]
	switch {
	case e == nil || e.draining:
	case e.proxy == nil:
		m.drop(e)
	default:
		e.draining = true
		e.proxy.Drain()
		m.cfg.Logger.Info("pod is drained", "pod", e.pod, "uid", uid)
	}
}

// endSnapshot drains what the agent did not name.
func (m *Manager) endSnapshot() {
	for uid := range m.entries {
		if !m.named[uid] {
			m.delete(uid)
		}
	}
	m.named = nil
	if m.firstTry.IsZero() {
		m.firstTry = time.Now()
	}
}

// drop ends a pod's proxy at once and forgets the pod.
func (m *Manager) drop(e *entry) {
	delete(m.entries, e.pod.UID)
	if e.proxy != nil {
		m.stop(e)
	}
	e.ns.Close()
}

// remove forgets a pod whose proxy has ended by itself.
func (m *Manager) remove(end ending) {
	e := end.entry
	if e.proxy != end.proxy {
		return // it was stopped, and perhaps replaced
	}
	e.proxy = nil
	m.metrics.stopped.Inc()
	if !e.draining {
		// Nobody asked it to: its pod must not be without.
		e.err = errors.New("its proxy ended unexpectedly")
		m.cfg.Logger.Error("pod's proxy ended unexpectedly; starting another", "pod", e.pod, "uid", e.pod.UID)
		if err := m.start(e); err != nil {
			m.cfg.Logger.Error("pod is not served", "error", err)
		}
		return
	}
	delete(m.entries, e.pod.UID)
	e.ns.Close()
	m.cfg.Logger.Info("pod is no longer served", "pod", e.pod, "uid", e.pod.UID)
}

// retry tries to start what could not start.
func (m *Manager) retry() {
	for _, e := range m.entries {
		if e.proxy != nil {
			continue
		}
		if err := m.start(e); err != nil {
			m.cfg.Logger.Error("pod is still not served", "error", err)
		}
	}
}

func (m *Manager) updateReady() {
	if m.ready.Load() || m.firstTry.IsZero() {
		return
	}
	served, pending := 0, 0
	for _, e := range m.entries {
		if e.proxy == nil {
			pending++
		} else {
			served++
		}
	}
	if pending == 0 || served > 0 && time.Since(m.firstTry) >= readyDespite {
		m.ready.Store(true)
	}
}

// publish makes the entries visible to Status and metrics.
func (m *Manager) publish() {
	all := make([]Status, 0, len(m.entries))
	pending := 0
	for _, e := range m.entries {
		s := Status{Pod: e.pod, State: StateUp, NetNS: e.ns.ID(), Proxy: e.proxy}
		switch {
		case e.proxy == nil:
			s.State, s.Err = StatePending, e.err.Error()
			pending++
		case e.draining:
			s.State = StateDraining
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Pod.UID, b.Pod.UID) })
	m.published.Store(&all)
	m.metrics.active.Set(float64(len(all) - pending))
	m.metrics.pending.Set(float64(pending))
}

// Shutdown ends all proxies once their connections have ended, or with the context. Run must have returned before. Call it
// once.
func (m *Manager) Shutdown(ctx context.Context) {
	close(m.stopped)
	var proxies sync.WaitGroup
	for _, e := range m.entries {
		if e.proxy != nil {
			proxies.Go(func() { e.proxy.Shutdown(ctx) })
		}
	}
	proxies.Wait()
	m.watchers.Wait()
	for _, e := range m.entries {
		e.ns.Close()
	}
	clear(m.entries)
	m.publish()
}

// metrics are Istio's names.
type metrics struct {
	active, pending  prometheus.Gauge
	started, stopped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{Name: "workload_manager_active_proxy_count",
			Help: "Pods that are served."}),
		pending: prometheus.NewGauge(prometheus.GaugeOpts{Name: "workload_manager_pending_proxy_count",
			Help: "Pods that the CNI agent asked for and whose proxy could not start."}),
		started: prometheus.NewCounter(prometheus.CounterOpts{Name: "workload_manager_proxies_started_total",
			Help: "Proxies of pods that were started."}),
		stopped: prometheus.NewCounter(prometheus.CounterOpts{Name: "workload_manager_proxies_stopped_total",
			Help: "Proxies of pods that have ended."}),
	}
	if reg != nil {
		reg.MustRegister(m.active, m.pending, m.started, m.stopped)
	}
	return m
}
