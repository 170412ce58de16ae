package keysets

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/mesh/authn"
)

// Config configures a Store. Sink, Registerer and Log are required.
type Config struct {
	// Sink takes the key sets as events of KindKeySet: first a Replace, once there is an answer from each issuer that is asked at the
	// start, or Grace is over; then what changes. It is called by one goroutine.
	Sink       func(cluster.Event)
	Registerer prometheus.Registerer
	Log        *slog.Logger

	// Refresh is how often keys are fetched again; 0 is DefaultRefresh. A new key of an issuer is known that late.
	Refresh time.Duration
	// Retry is how long after the first failure in a row it is tried again, doubled with each until Refresh; 0 is DefaultRetry.
	Retry time.Duration
	// Grace is how long the first Replace waits; 0 is DefaultGrace.
	Grace time.Duration
	// Keep is how long keys count after they could be had last; 0 is DefaultKeep.
	Keep time.Duration
}

// Defaults of a Config.
const (
	// DefaultRefresh: issuers publish a key well before they sign by it; hours, most of them.
	DefaultRefresh = 5 * time.Minute
	DefaultRetry   = time.Second
	DefaultGrace   = 10 * time.Second
	// DefaultKeep is Istio's.
	DefaultKeep = 7 * 24 * time.Hour
)

// Store fetches key sets. Make one with New.
type Store struct {
	cfg     Config
	client  *client
	results chan result
	changed chan struct{} // has an element if wanted is another than before

	mu     sync.Mutex // guards the fields below
	users  map[cluster.Key]map[authn.Source]time.Duration
	listed bool
}

// result is what became of an attempt.
type result struct{ set *cluster.KeySet }

// New returns a Store that fetches nothing until Run.
func New(cfg Config) *Store {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.Refresh, DefaultRefresh}, {&cfg.Retry, DefaultRetry}, {&cfg.Grace, DefaultGrace}, {&cfg.Keep, DefaultKeep}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return &Store{
		cfg: cfg, client: newClient(cfg.Registerer), results: make(chan result), changed: make(chan struct{}, 1),
		users: map[cluster.Key]map[authn.Source]time.Duration{},
	}
}

// Observe takes what happens to RequestAuthentications; other events are nothing to it. It does not wait.
func (s *Store) Observe(e cluster.Event) {
	if e.Kind != cluster.KindRequestAuthentication {
		return
	}
	s.mu.Lock()
	switch e.Op {
	case cluster.Upsert:
		s.use(e.Object)
	case cluster.Delete:
		delete(s.users, e.Key)
	case cluster.Replace:
		clear(s.users)
		for _, o := range e.Objects {
			s.use(o)
		}
	case cluster.Absent:
	}
	s.listed = s.listed || e.Op == cluster.Replace || e.Op == cluster.Absent
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default: // it is noted already
	}
}

// use notes the sources of a policy, if a waypoint can have use for them.
func (s *Store) use(o cluster.Object) {
	p, ok := o.(*cluster.RequestAuthentication)
	if !ok {
		return
	}
	delete(s.users, p.Key)
	sources := map[authn.Source]time.Duration{}
	for _, r := range p.Policy.Rules {
		if !r.Source.IsZero() && !r.Broken && len(p.Policy.Targets) > 0 {
			sources[r.Source] = max(sources[r.Source], r.Timeout)
		}
	}
	if len(sources) > 0 {
		s.users[p.Key] = sources
	}
}

// wanted are all sources, with the longest time that one who names it would wait.
func (s *Store) wanted() (sources map[authn.Source]time.Duration, listed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[authn.Source]time.Duration{}
	for _, sources := range s.users {
		for source, timeout := range sources {
			out[source] = max(out[source], timeout)
		}
	}
	return out, s.listed
}

// follower is the goroutine of a source.
type follower struct {
	timeout time.Duration
	stop    context.CancelFunc
}

// run is what Run keeps.
type run struct {
	*Store
	followers map[authn.Source]follower
	known     map[authn.Source]*cluster.KeySet
	told      bool // the first Replace
	wg        sync.WaitGroup
}

// Run fetches until ctx ends. It may be called once.
func (s *Store) Run(ctx context.Context) {
	r := &run{Store: s, followers: map[authn.Source]follower{}, known: map[authn.Source]*cluster.KeySet{}}
	defer s.client.http.CloseIdleConnections()
	defer r.wg.Wait()
	var grace <-chan time.Time
	for {
		select {
		case <-s.changed:
			wanted, listed := s.wanted()
			r.follow(ctx, wanted)
			if listed && grace == nil {
				grace = time.After(s.cfg.Grace)
			}
			r.tell(listed && len(r.known) == len(wanted))
		case got := <-s.results:
			r.take(got.set)
			wanted, listed := s.wanted()
			r.tell(listed && len(r.known) >= len(wanted))
		case <-grace:
			r.tell(true)
		case <-ctx.Done():
			return
		}
	}
}

// follow begins with sources that are new, and ends with those that are not wanted any more.
func (r *run) follow(ctx context.Context, wanted map[authn.Source]time.Duration) {
	for source, f := range r.followers {
		if timeout, is := wanted[source]; is && timeout == f.timeout {
			continue
		} else if !is {
			if r.known[source] != nil && r.told {
				r.cfg.Sink(cluster.Event{Kind: cluster.KindKeySet, Op: cluster.Delete, Key: cluster.KeySetKey(source)})
			}
			delete(r.known, source)
		}
		f.stop()
		delete(r.followers, source)
	}
	for source, timeout := range wanted {
		if _, is := r.followers[source]; is {
			continue
		}
		own, stop := context.WithCancel(ctx)
		r.followers[source] = follower{timeout, stop}
		before := r.known[source]
		r.wg.Go(func() { r.fetch(own, source, timeout, before) })
	}
}

// take notes what became of a source.
func (r *run) take(set *cluster.KeySet) {
	if _, wanted := r.followers[set.Source]; !wanted {
		return
	}
	before := r.known[set.Source]
	r.known[set.Source] = set
	if before != nil && before.Equal(set) {
		return
	}
	switch {
	case set.Fault != "" && (before == nil || before.Fault != set.Fault):
		r.cfg.Log.Warn("keys of an issuer cannot be had", "source", set.Source.String(), "kept", set.Set.Len(), "cause", set.Fault)
	case set.Fault == "":
		r.cfg.Log.Info("keys of an issuer", "source", set.Source.String(), "keys", set.Set.Len())
	}
	if r.told {
		r.cfg.Sink(cluster.Event{Kind: cluster.KindKeySet, Op: cluster.Upsert, Key: set.ObjectKey(), Object: set})
	}
}

// tell makes the first Replace, once, if it is time.
func (r *run) tell(now bool) {
	if r.told || !now {
		return
	}
	r.told = true
	e := cluster.Event{Kind: cluster.KindKeySet, Op: cluster.Replace}
	for _, set := range r.known {
		e.Objects = append(e.Objects, set)
	}
	r.cfg.Sink(e)
}

// fetch fetches the keys of a source, again and again, until ctx ends.
func (s *Store) fetch(ctx context.Context, source authn.Source, timeout time.Duration, before *cluster.KeySet) {
	last := cluster.KeySet{Source: source}
	if before != nil {
		last = *before
	}
	good := time.Now() // when the set of last was had
	wait := time.Duration(0)
	for {
		set, err := s.client.get(ctx, source, timeout)
		if ctx.Err() != nil {
			return
		}
		next := cluster.KeySet{Source: source, Set: set}
		pause := s.cfg.Refresh
		if err != nil {
			next.Set, next.Fault = last.Set, reason(err)
			if time.Since(good) >= s.cfg.Keep {
				next.Set = nil
			}
			wait = min(max(2*wait, s.cfg.Retry), s.cfg.Refresh)
			pause = wait
		} else {
			good, wait = time.Now(), 0
		}
		last = next
		select {
		case s.results <- result{&next}:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(pause - rand.N(pause/10+1)): // not all at once
		case <-ctx.Done():
			return
		}
	}
}
