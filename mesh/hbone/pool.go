package hbone

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// Defaults of PoolConfig.
const (
	DefaultMaxStreams       = 100
	DefaultIdleTimeout      = 5 * time.Minute
	DefaultSpareTimeout     = 3 * time.Second
	DefaultConnectTimeout   = 10 * time.Second
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultSettingsTimeout  = 10 * time.Second
	DefaultResponseTimeout  = 20 * time.Second
)

// ErrPoolClosed is what Open returns once Drain or Close was called.
var ErrPoolClosed = errors.New("hbone: pool closed")

// errNoCapacity is why an Open fails that waited for a stream as long as all steps of a dial may take together.
var errNoCapacity = errors.New("the peer allows no more streams and no connection was ready in time")

// Pool opens tunnels, and shares connections among those with equal targets. All methods may be called concurrently.
type Pool struct {
	cfg    PoolConfig
	ctx    context.Context // of dials
	cancel context.CancelFunc
	wg     sync.WaitGroup // dials and connections
	slots  chan struct{}  // of dials
	size   atomic.Int64   // conns, and dials under way

	earlyFresh time.Duration // the constant; tests change it

	mu     sync.Mutex // guards what follows and all peers; never held across I/O
	closed bool
	peers  map[peerKey]*peer
	conns  map[*poolConn]struct{} // all that have not ended
	places int                    // dials, and those of conns that have not made place for another
	empty  chan struct{}          // closed when closed is set and conns has become empty
}

// peerKey is a Target as a map key.
type peerKey string

// peer is what the pool knows of one target.
type peer struct {
	key     peerKey
	target  Target
	conns   []*poolConn // that get new streams
	waiters []*waiter   // in the order in which they came
	dials   int         // under way
	evicted bool        // its connections end with their last stream
}

// waiter is an Open without a connection.
type waiter struct {
	ready chan grant // of one
	avoid *poolConn  // refused this request already
}

// grant is one stream reserved on conn, or why there is none.
type grant struct {
	conn *poolConn
	err  error
}

// poolConn is a connection of the pool.
type poolConn struct {
	peer      *peer
	h2        *h2.Conn
	certs     []*x509.Certificate // the peer's
	idleTimer *time.Timer
	idleSince time.Time
	settled   bool // its SETTINGS have come, so that the number of its streams is known
	leaving   bool // it has made place for another
}

// NewPool returns a pool without connections. The caller must Close it.
func NewPool(cfg PoolConfig) *Pool {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = DefaultMaxStreams
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = DefaultIdleTimeout
	}
	if cfg.SpareTimeout == 0 {
		cfg.SpareTimeout = DefaultSpareTimeout
	}
	t := &cfg.Timeouts
	for _, d := range []struct {
		to *time.Duration
		v  time.Duration
	}{
		{&t.Connect, DefaultConnectTimeout},
		{&t.Handshake, DefaultHandshakeTimeout},
		{&t.Settings, DefaultSettingsTimeout},
		{&t.Response, DefaultResponseTimeout},
	} {
		if *d.to == 0 {
			*d.to = d.v
		}
	}
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = DefaultMaxHandshakes
	}
	if party := cfg.Party; party != nil {
		cfg.H2.Worked = func(n int) { party.Did(workPerByte * share.Work(n)) }
	}
	if cfg.Counts == nil {
		cfg.Counts = new(PoolCounts)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.H2.SettingsTimeout = t.Settings
	cfg.H2.MaxSendStreams = uint32(cfg.MaxStreams)
	p := &Pool{
		cfg:   cfg,
		peers: make(map[peerKey]*peer),
		conns: make(map[*poolConn]struct{}),
		empty: make(chan struct{}),
		slots: make(chan struct{}, cfg.MaxHandshakes),

		earlyFresh: earlyFresh,
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// key makes a target comparable.
func (t *Target) key() peerKey {
	var b strings.Builder
	b.Grow(256)
	addr, _ := t.Addr.AppendText(make([]byte, 0, 64))
	b.Write(addr)
	src, _ := t.SourceAddr.AppendText(addr[:0])
	for _, s := range []string{t.UID, t.Source.TrustDomain, t.Source.Namespace, t.Source.ServiceAccount} {
		b.WriteByte(0)
		b.WriteString(s)
	}
	b.WriteByte(0)
	b.Write(src)
	for _, id := range t.Expect {
		for _, s := range []string{id.TrustDomain, id.Namespace, id.ServiceAccount} {
			b.WriteByte(0)
			b.WriteString(s)
		}
	}
	return peerKey(b.String())
}

// Open returns a stream once the peer has answered the request with 200. Errors are *DialError, *StatusError,
// ErrPoolClosed, or the context's. A stream that the peer refused before it looked at it, or whose pooled connection turned
// out to be dead, has been tried once more on another connection, unless that is ErrMayHaveArrived. The caller must Close the stream (Relay does).
//
// A dial is shared among the callers that wait for it and goes on when the context of one of them ends.
func (p *Pool) Open(ctx context.Context, t Target, r Request) (*Stream, error) {
	if t.Addr.Port() == 0 || r.Authority == "" {
		return nil, &DialError{StageConnect, t, errors.New("no address, or no authority")}
	}
	var avoid *poolConn
	for {
		pc, err := p.acquire(ctx, &t, avoid)
		if err != nil {
			return nil, err
		}
		s, err := p.request(ctx, pc, &t, &r)
		if err == nil || avoid != nil || !pc.retryable(err) {
			return s, err
		}
		avoid = pc
	}
}

// retryable tells whether a request that failed on the connection can be sent on another one: the peer has not looked at
// it, or the connection, which was good before, turned out to be dead.
func (pc *poolConn) retryable(err error) bool {
	if errors.Is(err, ErrMayHaveArrived) {
		return false
	}
	var ce *h2.ConnError
	return errors.Is(err, h2.ErrUnprocessed) || errors.Is(err, h2.ErrDraining) || errors.As(err, &ce) && pc.h2.SettingsSeen()
}

// acquire reserves a stream on a connection to the target, other than avoid, and dials if there is none.
func (p *Pool) acquire(ctx context.Context, t *Target, avoid *poolConn) (*poolConn, error) {
	key := t.key()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrPoolClosed
	}
	pe := p.peers[key]
	if pe == nil {
		pe = &peer{key: key, target: *t}
		pe.target.Expect = slices.Clone(t.Expect)
		p.peers[key] = pe
	}
	if len(pe.waiters) == 0 {
		if pc := pe.reserve(avoid); pc != nil {
			p.mu.Unlock()
			p.cfg.Counts.Hits.Add(1)
			return pc, nil
		}
	}
	p.cfg.Counts.Waits.Add(1)
	w := &waiter{ready: make(chan grant, 1), avoid: avoid}
	pe.waiters = append(pe.waiters, w)
	p.dialLocked(pe)
	p.mu.Unlock()

	timer := time.NewTimer(p.patience())
	defer timer.Stop()
	var err error
	select {
	case g := <-w.ready:
		return g.conn, g.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
		err = &DialError{StageSettings, *t, errNoCapacity}
	}
	p.mu.Lock()
	i := slices.Index(pe.waiters, w)
	if i >= 0 {
		pe.waiters = slices.Delete(pe.waiters, i, i+1)
		p.forgetLocked(pe)
	}
	p.mu.Unlock()
	if i < 0 {
		// It was granted at the same moment.
		if g := <-w.ready; g.conn != nil {
			g.conn.h2.Unreserve()
		}
	}
	return nil, err
}

// patience is how long an Open waits for a connection: all the steps of one, twice, since the first may be a failure of
// another kind.
func (p *Pool) patience() time.Duration {
	t := p.cfg.Timeouts
	if t.Connect < 0 || t.Handshake < 0 || t.Settings < 0 {
		return 1<<63 - 1
	}
	return 2 * (t.Connect + 2*t.Handshake + t.Settings)
}

// reserve takes a stream on one of the connections, the oldest that has one, so that those of a burst become idle again.
func (pe *peer) reserve(avoid *poolConn) *poolConn {
	for _, pc := range pe.conns {
		if pc != avoid && pc.h2.Reserve() {
			return pc
		}
	}
	return nil
}

// spare tells whether an older connection has streams to give, so that new ones do not need this one.
func (pe *peer) spare(pc *poolConn) bool {
	for _, older := range pe.conns {
		if older == pc {
			return false
		}
		if older.settled && older.h2.Available() > 0 {
			return true
		}
	}
	return false
}

// serveLocked gives streams to those who wait for them, and dials for the rest.
func (p *Pool) serveLocked(pe *peer) {
	left := pe.waiters[:0]
	for _, w := range pe.waiters {
		if pc := pe.reserve(w.avoid); pc != nil {
			w.ready <- grant{conn: pc}
		} else {
			left = append(left, w)
		}
	}
	clear(pe.waiters[len(left):])
	pe.waiters = left
	p.dialLocked(pe)
}

// dialLocked starts as many dials as those who wait need, beyond what is under way. If there may be none, and none is, it
// fails those who wait.
func (p *Pool) dialLocked(pe *peer) {
	coming := pe.dials
	for _, pc := range pe.conns {
		if !pc.settled {
			coming++
		}
	}
	for !p.closed && (len(pe.waiters) > coming*p.cfg.MaxStreams || pe.stuck(coming)) {
		if !p.placeLocked() {
			if coming == 0 {
				p.refuseLocked(pe)
			}
			return
		}
		pe.dials++
		coming++
		p.size.Add(1)
		p.wg.Go(func() { p.dial(pe) })
	}
}

// placeLocked takes a place for one more connection, if need be that of one without streams, and tells whether there was one.
func (p *Pool) placeLocked() bool {
	most := p.cfg.MaxConnections
	if most <= 0 || p.places < most {
		p.places++
		return true
	}
	looks := 0
	for pc := range p.conns {
		if looks++; looks > placeLooks {
			break
		}
		if !pc.leaving && pc.settled && pc.h2.Idle() {
			pc.leaving = true // and its place is the other's
			pc.peer.conns = slices.DeleteFunc(pc.peer.conns, func(c *poolConn) bool { return c == pc })
			p.wg.Go(pc.h2.Shutdown)
			return true
		}
	}
	return false
}

// refuseLocked fails those who wait for a target, for which nothing may be dialled.
func (p *Pool) refuseLocked(pe *peer) {
	for _, w := range pe.waiters {
		w.ready <- grant{err: &DialError{StageConnect, pe.target, ErrTooManyConnections}}
	}
	pe.waiters = nil
	p.forgetLocked(pe)
}

// Size returns how many connections there are, dials under way included. It takes no lock.
func (p *Pool) Size() int { return int(p.size.Load()) }

// stuck tells whether somebody waits who does not want the only connections that are coming.
func (pe *peer) stuck(coming int) bool {
	if pe.dials > 0 || coming == 0 {
		return false
	}
	for _, w := range pe.waiters {
		if w.avoid != nil && !w.avoid.settled {
			return true
		}
	}
	return false
}

// failLocked gives an error to all who wait, if nothing is coming that could serve them.
func (p *Pool) failLocked(pe *peer, err error) {
	for _, pc := range pe.conns {
		if !pc.settled {
			return
		}
	}
	if pe.dials > 0 {
		return
	}
	for _, w := range pe.waiters {
		w.ready <- grant{err: err}
	}
	pe.waiters = nil
}

// forgetLocked removes a target of which nothing is left.
func (p *Pool) forgetLocked(pe *peer) {
	if len(pe.conns) == 0 && len(pe.waiters) == 0 && pe.dials == 0 && p.peers[pe.key] == pe {
		delete(p.peers, pe.key)
	}
}

// Evict takes the connections to a workload out of use: they get no new streams, and close when the last one ends.
func (p *Pool) Evict(uid string) {
	var out []*poolConn
	p.mu.Lock()
	for key, pe := range p.peers {
		if pe.target.UID == uid {
			pe.evicted = true
			out = append(out, pe.conns...)
			pe.conns = nil
			delete(p.peers, key)
		}
	}
	p.mu.Unlock()
	for _, pc := range out {
		pc.h2.Shutdown()
	}
}

func (p *Pool) revoked(pc *poolConn) bool {
	return p.cfg.Revoked != nil && p.cfg.Revoked(&pc.peer.target, pc.certs) != nil
}

// Recheck ends at once the connections whose peer's certificates are not good any more, and returns how many.
func (p *Pool) Recheck() int {
	p.mu.Lock()
	all := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	n := 0
	for _, pc := range all {
		if p.revoked(pc) {
			pc.h2.Close()
			n++
		}
	}
	return n
}

// Drain lets nothing new be opened, waits until every stream has ended or the context has, and closes the connections.
// It returns the context's error if streams were cut.
func (p *Pool) Drain(ctx context.Context) error {
	for _, c := range p.stop() {
		c.Shutdown()
	}
	select {
	case <-p.empty:
		return nil
	case <-ctx.Done():
		_ = p.Close()
		return fmt.Errorf("drain pool: %w", ctx.Err())
	}
}

// Close ends every connection, with its streams, at once, and waits for the pool's goroutines.
func (p *Pool) Close() error {
	for _, c := range p.stop() {
		c.Close()
	}
	p.wg.Wait()
	return nil
}

// stop lets nothing new begin, and returns the connections.
func (p *Pool) stop() []*h2.Conn {
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.closed
	p.closed = true
	for _, pe := range p.peers {
		for _, w := range pe.waiters {
			w.ready <- grant{err: ErrPoolClosed}
		}
		pe.waiters = nil
	}
	if first && len(p.conns) == 0 {
		close(p.empty)
	}
	all := make([]*h2.Conn, 0, len(p.conns))
	for pc := range p.conns {
		all = append(all, pc.h2)
	}
	return all
}

// PoolStats counts what a pool holds.
type PoolStats struct {
	Connections int // ready for streams, or draining
	Streams     int // open or being opened
	Dials       int // under way
	Waiting     int // calls of Open that wait for a connection
}

// Stats returns a snapshot.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := PoolStats{Connections: len(p.conns)}
	for pc := range p.conns {
		st.Streams += pc.h2.Streams()
	}
	for _, pe := range p.peers {
		st.Dials += pe.dials
		st.Waiting += len(pe.waiters)
	}
	return st
}
