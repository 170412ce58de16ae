package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Timing of requests. The values are Istio's ztunnel's, but for the shorter pause while somebody waits.
const (
	// defaultConcurrency bounds requests in flight.
	defaultConcurrency = 8
	// defaultRequestTimeout bounds one request.
	defaultRequestTimeout = 10 * time.Second
	// retryFirst is the pause after a first failure; it doubles with each further one, up to retryMax.
	retryFirst = 500 * time.Millisecond
	retryMax   = 150 * time.Second
	// retryWaited is the longest pause for an identity that a call of SVID waits for.
	retryWaited = 5 * time.Second
	// retryJitter and renewJitter spread pauses and renewals by this share, up and down.
	retryJitter = 0.2
	renewJitter = 0.1
	// renewSoonest keeps a CA that grants moments from being asked without pause.
	renewSoonest = time.Second
)

// ErrForgotten is wrapped by Manager.SVID when the identity was forgotten while the call waited.
var ErrForgotten = errors.New("identity was forgotten")

// ErrStopped is wrapped by Manager.SVID when the manager's Run has ended.
var ErrStopped = errors.New("certificate manager has stopped")

// ManagerConfig configures a Manager.
type ManagerConfig struct {
	// Issuer signs. Required.
	Issuer Issuer
	// Concurrency bounds the requests in flight. Zero means 8.
	Concurrency int
	// RequestTimeout bounds one request. Zero means 10 s.
	RequestTimeout time.Duration
	// Trust is what SVIDs verify peers by. Their roots are added to it, and withdrawn when an identity is forgotten. If nil,
	// each SVID trusts its own roots only.
	Trust *Trust
	// Keep, if set, has SVIDs outlive the process: what it has is used before the CA is asked. What is not needed any more
	// is its owner's to sweep.
	Keep *KeyDir
	// Logger takes failures and renewals. Required.
	Logger *slog.Logger
	// OnChange, if set, is called by Run's goroutine for each SVID that was issued or renewed; it must not block.
	OnChange func(*SVID)
}

// Manager keeps a valid SVID for each identity that it was asked for: it renews at about half of the lifetime, repeats
// what fails after 0.5 s and then twice as long up to 150 s, and keeps the old SVID as long as it is valid. Its methods
// are safe for concurrent use.
type Manager struct {
	cfg     ManagerConfig
	entries *xsync.Map[Identity, *entry] // changed under mu only
	poke    chan struct{}                // tells Run that something may be due; capacity 1
	stopped chan struct{}                // closed when Run ends

	issued, failed atomic.Uint64 // requests by their end

	mu sync.Mutex // guards the fields of every entry but svid; never held across a request
}

// entry is one identity.
type entry struct {
	id   Identity
	svid atomic.Pointer[SVID] // newest; read without a lock

	ready     chan struct{} // closed, and made anew, when svid is replaced; closed for good when forgotten
	waiters   int           // calls of SVID that wait
	inFlight  bool
	forgotten bool
	due       time.Time // of the next request
	last      time.Time // when the last request ended
	failures  int       // in a row
	err       error     // of the last request
}

// result is how a request ended.
type result struct {
	entry *entry
	svid  *SVID
	err   error
}

// NewManager makes a Manager, which issues nothing until Run is called.
func NewManager(cfg ManagerConfig) *Manager {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = defaultConcurrency
	}
	if cfg.RequestTimeout <= 0 {
		cfg.RequestTimeout = defaultRequestTimeout
	}
	return &Manager{
		cfg:     cfg,
		entries: xsync.NewMap[Identity, *entry](),
		poke:    make(chan struct{}, 1),
		stopped: make(chan struct{}),
	}
}

// Run issues and renews until ctx ends, and returns nil once its last request has returned. Call it once.
func (m *Manager) Run(ctx context.Context) error {
	results := make(chan result, m.cfg.Concurrency)
	var requests sync.WaitGroup
	defer close(m.stopped)
	defer requests.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	timer := time.NewTimer(0)
	defer timer.Stop()
	inFlight := 0
	for {
		start, next := m.takeDue(m.cfg.Concurrency - inFlight)
		for _, e := range start {
			inFlight++
			requests.Go(func() { results <- m.request(ctx, e) })
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		// One of four things happens: the end, a call that asks for something, a request's end, or the next due time.
		select {
		case <-ctx.Done():
			return nil
		case <-m.poke:
		case r := <-results:
			inFlight--
			if ctx.Err() == nil {
				m.settle(r)
			}
		case <-timer.C:
		}
	}
}

// takeDue marks up to n entries as in flight, and returns them with the time when the next one is due; zero if none is,
// or if n was too small for those that are due now, so that a request's end has to come first. What somebody waits for
// comes first, then what has no certificate yet, then what has been due for longest.
func (m *Manager) takeDue(n int) (start []*entry, next time.Time) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries.All() {
		switch {
		case e.inFlight:
		case !e.due.After(now):
			start = append(start, e)
		case next.IsZero() || e.due.Before(next):
			next = e.due
		}
	}
	slices.SortFunc(start, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.urgency(now), b.urgency(now)), a.due.Compare(b.due))
	})
	if len(start) > n {
		start = start[:n]
	}
	for _, e := range start {
		e.inFlight = true
	}
	return start, next
}

// urgency is 0 for the most urgent.
func (e *entry) urgency(now time.Time) int {
	switch {
	case e.waiters > 0:
		return 0
	case !valid(e.svid.Load(), now):
		return 1
	}
	return 2
}

func valid(s *SVID, now time.Time) bool { return s != nil && now.Before(s.NotAfter) }

func (m *Manager) request(ctx context.Context, e *entry) result {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.RequestTimeout)
	defer cancel()
	svid, err := Request(ctx, m.cfg.Issuer, e.id)
	return result{entry: e, svid: svid, err: err}
}

// settle takes a request's outcome into its entry. It is the outermost place that sees a failure, so it logs it.
func (m *Manager) settle(r result) {
	now := time.Now()
	e := r.entry
	m.mu.Lock()
	e.inFlight, e.last, e.err = false, now, r.err
	forgotten := e.forgotten
	if r.err != nil {
		m.failed.Add(1)
		e.failures++
		e.due = now.Add(e.pause())
	} else if !forgotten {
		m.issued.Add(1)
		e.failures = 0
		e.due = now.Add(max(renewSoonest, spread(r.svid.NotAfter.Sub(now)/2, renewJitter)))
		m.adoptLocked(e, r.svid)
		close(e.ready)
		e.ready = make(chan struct{})
		m.retryUnreachedLocked(now)
	}
	due, failures := e.due, e.failures
	m.mu.Unlock()

	switch {
	case forgotten:
	case r.err != nil:
		m.cfg.Logger.Warn("certificate request failed", "identity", e.id.String(), "failures", failures,
			"retry_in", due.Sub(now).Round(time.Millisecond).String(), "error", r.err)
	default:
		m.cfg.Logger.Debug("certificate issued", "identity", e.id.String(), "expires", r.svid.NotAfter, "renewal", due)
		if m.cfg.Keep != nil {
			m.cfg.Keep.Save(r.svid)
		}
		if m.cfg.OnChange != nil {
			m.cfg.OnChange(r.svid)
		}
	}
}

// adoptLocked makes an SVID its entry's; m.mu is held.
func (m *Manager) adoptLocked(e *entry, s *SVID) {
	if m.cfg.Trust != nil {
		// Peers may be verified by new roots before anyone proves to be this identity with them.
		m.cfg.Trust.setRoots(e.id, s.roots)
		s.withTrust(m.cfg.Trust)
	}
	e.svid.Store(s)
}

// recallLocked uses what an earlier process has kept for an entry; m.mu is held, over the reading of a small file in memory.
func (m *Manager) recallLocked(e *entry) {
	if m.cfg.Keep == nil {
		return
	}
	if s, now := m.cfg.Keep.Load(e.id), time.Now(); valid(s, now) {
		m.adoptLocked(e, s)
		e.due = s.NotBefore.Add(spread(s.NotAfter.Sub(s.NotBefore)/2, renewJitter))
	}
}

// pause is how long to wait after the failures so far.
func (e *entry) pause() time.Duration {
	d := retryMax
	if shift := e.failures - 1; shift < 10 {
		d = min(retryMax, retryFirst<<shift)
	}
	if e.waiters > 0 {
		d = min(d, retryWaited)
	}
	return spread(d, retryJitter)
}

// spread returns d, more or less by up to share of it.
func spread(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + share*(2*rand.Float64()-1)))
}

// retryUnreachedLocked brings forward the identities whose request did not reach the CA, once it has answered another:
// it is back. m.mu is held.
func (m *Manager) retryUnreachedLocked(now time.Time) {
	for _, e := range m.entries.All() {
		if e.failures > 0 && e.due.After(now) && unreached(e.err) {
			e.due = now
		}
	}
}

func unreached(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}

// SVID returns the valid SVID of id. If there is none yet, it asks for one, before all that Prefetch has asked for,
// and blocks until it is issued or ctx ends; failed requests are repeated meanwhile, and the error at the end names the
// last cause. Concurrent calls share one request.
func (m *Manager) SVID(ctx context.Context, id Identity) (*SVID, error) {
	if e, ok := m.entries.Load(id); ok {
		if s := e.svid.Load(); valid(s, time.Now()) {
			return s, nil
		}
	}
	e, ready, err := m.await(id)
	if err != nil {
		return nil, err
	}
	defer m.unawait(e)
	for {
		if s := e.svid.Load(); valid(s, time.Now()) {
			return s, nil
		}
		select {
		case <-ready:
		case <-m.stopped:
			return nil, fmt.Errorf("certificate of %s: %w", id, ErrStopped)
		case <-ctx.Done():
			return nil, m.gaveUp(ctx, e)
		}
		m.mu.Lock()
		forgotten := e.forgotten
		ready = e.ready
		m.mu.Unlock()
		if forgotten {
			return nil, fmt.Errorf("certificate of %s: %w", id, ErrForgotten)
		}
	}
}

func (m *Manager) gaveUp(ctx context.Context, e *entry) error {
	m.mu.Lock()
	cause := e.err
	m.mu.Unlock()
	if cause == nil {
		return fmt.Errorf("certificate of %s: no answer from the CA: %w", e.id, context.Cause(ctx))
	}
	return fmt.Errorf("certificate of %s: %w; last failure: %w", e.id, context.Cause(ctx), cause)
}

// await joins those who wait for id, and brings its request forward.
func (m *Manager) await(id Identity) (*entry, <-chan struct{}, error) {
	if err := id.Validate(); err != nil {
		return nil, nil, fmt.Errorf("certificate of %q: %w", id.String(), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entryLocked(id)
	e.waiters++
	if soonest := e.last.Add(retryWaited); e.failures > 0 && e.due.After(soonest) {
		e.due = soonest
	}
	m.wake()
	return e, e.ready, nil
}

func (m *Manager) unawait(e *entry) {
	m.mu.Lock()
	e.waiters--
	m.mu.Unlock()
}

// entryLocked returns the entry of id, which it makes if need be; m.mu is held.
func (m *Manager) entryLocked(id Identity) *entry {
	e, ok := m.entries.Load(id)
	if !ok {
		e = &entry{id: id, ready: make(chan struct{}), due: time.Now()}
		m.recallLocked(e)
		m.entries.Store(id, e)
	}
	return e
}

func (m *Manager) wake() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// Prefetch asks for an SVID of id without waiting, and keeps it renewed until Forget. An identity that is none is
// ignored; SVID says what is wrong with it.
func (m *Manager) Prefetch(id Identity) {
	if id.Validate() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entryLocked(id)
	m.wake()
}

// Forget drops the SVID and key of id, and its renewal; calls that wait for it fail. Connections that use it go on.
func (m *Manager) Forget(id Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries.LoadAndDelete(id)
	if !ok {
		return
	}
	e.forgotten = true
	close(e.ready)
	if m.cfg.Trust != nil {
		m.cfg.Trust.setRoots(id, nil)
	}
}

// RenewBetween brings the renewals of all identities forward, to be spread evenly between two times from now: the CA signs
// with another key, or hands out other roots.
func (m *Manager) RenewBetween(first, last time.Duration) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries.All() {
		if due := now.Add(first + time.Duration(rand.Float64()*float64(last-first))); e.failures == 0 && e.due.After(due) {
			e.due = due
		}
	}
	m.wake()
}

// Requests returns how many requests for certificates have succeeded and failed so far.
func (m *Manager) Requests() (issued, failed uint64) { return m.issued.Load(), m.failed.Load() }

// State is where an identity's certificate stands.
type State string

const (
	// StateInitializing: no certificate was issued yet.
	StateInitializing State = "Initializing"
	// StateAvailable: a valid certificate is there.
	StateAvailable State = "Available"
	// StateUnavailable: there is no valid certificate and the last request failed.
	StateUnavailable State = "Unavailable"
)

// Status describes one identity.
type Status struct {
	Identity Identity
	State    State
	// SVID is the newest that was issued, perhaps expired; nil if none was.
	SVID *SVID
	// Err is why the last request failed; nil if it did not.
	Err error
	// Failures counts requests that failed in a row.
	Failures int
	// Next is when the next request is due.
	Next time.Time
}

// Snapshot lists all identities, sorted.
func (m *Manager) Snapshot() []Status {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Status
	for _, e := range m.entries.All() {
		s := Status{Identity: e.id, State: StateInitializing, SVID: e.svid.Load(), Err: e.err, Failures: e.failures, Next: e.due}
		if valid(s.SVID, now) {
			s.State = StateAvailable
		} else if s.Err != nil {
			s.State = StateUnavailable
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Identity.String(), b.Identity.String()) })
	return all
}
