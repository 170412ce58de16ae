package state

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/meshconfig"
)

// LoopConfig configures a Loop. All fields are required.
type LoopConfig struct {
	// Namespace is the control plane's: its settings are there, and it names the network. It is the root namespace unless
	// the settings say otherwise.
	Namespace string
	// ClusterID and ClusterDomain do not change while the program runs.
	ClusterID, ClusterDomain string
	// Kinds are those that must have been listed, or be absent, before anything is published.
	Kinds []cluster.Kind
	// Publish takes each change, the whole state first. It must not block for long.
	Publish func(resource.Change)
	// Report takes what has become of objects, when it is something else than before. It must not block for long.
	Report     func(Report)
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Loop owns a State: one goroutine takes events, lets the state follow, and publishes how it changed. Make one with NewLoop.
type Loop struct {
	cfg     LoopConfig
	events  chan cluster.Event
	calls   chan func(*State)
	stopped chan struct{} // closed when Run returns

	settings atomic.Pointer[meshconfig.Settings]
	ready    chan struct{} // closed by the first publish
	waiting  atomic.Pointer[string]

	metrics *metrics
}

// maxQueued is how many events wait for the loop before whoever posts waits too; maxBatch is how many are taken in one go.
const (
	maxQueued = 4096
	maxBatch  = 4096
)

// lingerFor is how long at least a waypoint knows a service that is bound to it no more. Node proxies hear of that at once, and have
// connections on the way.
const lingerFor = 5 * time.Second

// NewLoop returns a Loop that takes events once it runs.
func NewLoop(cfg LoopConfig) *Loop {
	l := &Loop{
		cfg: cfg, events: make(chan cluster.Event, maxQueued), calls: make(chan func(*State)), stopped: make(chan struct{}),
		ready: make(chan struct{}),
	}
	settings := meshconfig.Default()
	l.settings.Store(&settings)
	waiting := "the first list of every kind"
	l.waiting.Store(&waiting)
	l.metrics = newMetrics(cfg.Registerer, func() int { return len(l.events) })
	return l
}

// Post hands an event to the loop, and waits while the loop has many. Events are dropped once the loop has stopped.
func (l *Loop) Post(e cluster.Event) {
	select {
	case l.events <- e:
	case <-l.stopped:
	}
}

// Settings are the mesh settings in force.
func (l *Loop) Settings() *meshconfig.Settings { return l.settings.Load() }

// Ready is closed when the whole state was published for the first time.
func (l *Loop) Ready() <-chan struct{} { return l.ready }

// Waiting says what the first publish waits for, "" after it.
func (l *Loop) Waiting() string { return *l.waiting.Load() }

// Do calls f in the loop, between events, and returns when f has. What follows from what f changes is published after that.
func (l *Loop) Do(ctx context.Context, f func(*State)) error {
	done := make(chan struct{})
	select {
	case l.calls <- func(s *State) { defer close(done); f(s) }:
	case <-l.stopped:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	return nil
}

// run is what Run keeps between events.
type run struct {
	*Loop
	state  *State
	synced map[cluster.Kind]bool
	broken string // why the settings cannot be used, "" if they can
}

// Run takes events until ctx ends.
func (l *Loop) Run(ctx context.Context) {
	defer close(l.stopped)
	r := &run{Loop: l, synced: map[cluster.Kind]bool{}}
	r.state = New(r.mesh(""))
	r.state.views.linger = true
	var sweep <-chan time.Time // nil while there is nothing to sweep
	for {
		if sweep == nil && r.state.Leaving() {
			sweep = time.After(lingerFor)
		}
		// One of four things happens at a time: events come, somebody asks, what lingered goes, or the program ends.
		select {
		case e := <-l.events:
			r.take(e)
			for range min(len(l.events), maxBatch) { // whatever came meanwhile is one step
				r.take(<-l.events)
			}
			r.flush()
		case f := <-l.calls:
			f(r.state)
			r.flush()
		case <-sweep:
			sweep = nil
			r.state.Sweep()
			r.flush()
		case <-ctx.Done():
			return
		}
	}
}

func (r *run) mesh(network string) translate.Mesh {
	s := r.Settings()
	m := translate.Mesh{
		ClusterID: r.cfg.ClusterID, ClusterDomain: r.cfg.ClusterDomain, Network: network,
		TrustDomain: s.TrustDomain, TrustDomainAliases: s.TrustDomainAliases, RegistryOnly: s.RegistryOnly,
		RootNamespace: s.RootNamespace, Providers: s.ExtensionProviders, DefaultTracers: s.DefaultTracers, DefaultLoggers: s.DefaultLoggers,
	}
	if m.RootNamespace == "" {
		m.RootNamespace = r.cfg.Namespace
	}
	return m
}

// take lets the state follow one event.
func (r *run) take(e cluster.Event) {
	r.metrics.event(e)
	switch e.Op {
	case cluster.Upsert:
		r.state.Upsert(e.Object)
	case cluster.Delete:
		r.state.Delete(e.Kind, e.Key)
	case cluster.Replace:
		r.state.Replace(e.Kind, e.Objects)
		r.synced[e.Kind] = true
	case cluster.Absent:
		r.synced[e.Kind] = true
	}
	switch e.Kind {
	case cluster.KindConfigMap:
		r.takeSettings(e)
	case cluster.KindNamespace:
		r.state.SetMesh(r.mesh(r.state.Network(r.cfg.Namespace)))
	}
}

// takeSettings reads the settings anew. Settings that cannot be read change nothing; at the start they keep the program
// from being ready, since a trust domain that is guessed would be one that nobody meant.
func (r *run) takeSettings(e cluster.Event) {
	var text string
	found := false
	for _, o := range append(e.Objects, e.Object) {
		if cm, ok := o.(*cluster.ConfigMap); ok && cm.Key == (cluster.Key{Namespace: r.cfg.Namespace, Name: api.MeshConfigMap}) {
			text, found = cm.Data[api.MeshConfigKey], true
		}
	}
	settings := meshconfig.Default()
	var err error
	if found {
		settings, err = meshconfig.Parse([]byte(text))
	}
	if err != nil {
		r.broken = fmt.Sprintf("config map %s/%s: %v", r.cfg.Namespace, api.MeshConfigMap, err)
		r.cfg.Log.Error("mesh settings are not used", "cause", r.broken)
		return
	}
	if r.broken = ""; !found && e.Op != cluster.Replace {
		r.cfg.Log.Warn("mesh settings are gone; defaults apply", "configMap", r.cfg.Namespace+"/"+api.MeshConfigMap)
	}
	r.settings.Store(&settings)
	r.state.SetMesh(r.mesh(r.state.Network(r.cfg.Namespace)))
}

// flush publishes what changed, once everything has been listed.
func (r *run) flush() {
	if r.Waiting() != "" && !r.mayStart() {
		return
	}
	start := time.Now()
	change := r.state.Flush()
	r.metrics.flushes.Observe(time.Since(start).Seconds())
	if first := r.Waiting() != ""; first || !change.Empty() {
		r.cfg.Publish(change)
		if first {
			nothing := ""
			r.waiting.Store(&nothing)
			close(r.ready)
			r.cfg.Log.Info("state is complete", "resources", len(change.Upserts), "took", time.Since(start).Round(time.Millisecond).String())
		}
	}
	if report := r.state.TakeReport(); !report.Empty() {
		r.cfg.Report(report)
	}
	r.metrics.sizes(r.state.Sizes())
	r.report()
}

func (r *run) mayStart() bool {
	var missing []string
	for _, k := range r.cfg.Kinds {
		if !r.synced[k] {
			missing = append(missing, string(k))
		}
	}
	waiting := ""
	switch {
	case len(missing) > 0:
		waiting = fmt.Sprintf("the first list of %v", missing)
	case r.broken != "":
		waiting = r.broken
	default:
		return true
	}
	r.waiting.Store(&waiting)
	return false
}

// report logs problems that are new, and shows how many each object has.
func (r *run) report() {
	for _, c := range r.state.takeFaults() {
		for _, p := range c.now {
			if !slices.Contains(c.before, p) {
				r.cfg.Log.Warn("fault in object", "kind", p.Kind, "object", p.Key.String(), "fault", p.Message)
			}
		}
		r.metrics.fault(c.object, len(c.now))
	}
}

// Network is what the namespace's label says that the network is called.
func (s *State) Network(namespace string) string {
	if n := s.namespaces[namespace]; n != nil && n.object != nil {
		return n.object.Network
	}
	return ""
}
