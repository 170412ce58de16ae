package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// Counters count the payload of a relay while it runs. Sent is what was read from the first connection and written to the
// second one or the stream, Received the other direction.
type Counters struct {
	Sent     atomic.Uint64
	Received atomic.Uint64
	// First, if set before the relay begins, is told of the first payload of each direction.
	First Watcher
}

// Watcher is told of the first payload of each direction of a relay: sent as in Counters.Sent, or received. It is called by
// the goroutine that carried it, perhaps by both directions at once, and must not block.
type Watcher interface{ FirstPayload(sent bool) }

func (c *Counters) addSent(n int)     { c.add(&c.Sent, n, true) }
func (c *Counters) addReceived(n int) { c.add(&c.Received, n, false) }

func (c *Counters) add(to *atomic.Uint64, n int, sent bool) {
	if n > 0 && to.Add(uint64(n)) == uint64(n) && c.First != nil {
		c.First.FirstPayload(sent)
	}
}

// DefaultHalfCloseTimeout is how long a relay of which one direction has ended may move no byte in the other.
const DefaultHalfCloseTimeout = time.Hour

// DefaultHalfCloseProbe is Relayer.HalfCloseProbe's. With probeGrace, and the probes that a dead peer gets, it is less than
// the 60 s after which Linux' connection tracking forgets a half-closed connection on which nothing moves.
const DefaultHalfCloseProbe = 15 * time.Second

// stallCheck is how often a relay whose peer takes nothing looks whether its connection was reset.
const stallCheck = 10 * time.Second

// resetGrace is how long payload that came before a reset may take to be written.
const resetGrace = time.Second

// ErrHalfCloseTimeout is what a relay returns that was half-closed and then silent for too long.
var ErrHalfCloseTimeout = errors.New("hbone: half-closed connection was silent for too long")

// Relayer holds the settings of relays. The zero value is ready to use.
type Relayer struct {
	// HalfCloseTimeout ends a relay of which one direction has ended and the other moves no byte for this long, or up to
	// twice as long or HalfCloseProbe longer. Zero means DefaultHalfCloseTimeout, less than zero: no limit.
	HalfCloseTimeout time.Duration
	// HalfCloseProbe is how long a half-closed TCP connection is silent until its peer is probed (TCP keepalive), and how long
	// that peer may then be silent; the answers also keep connection tracking from forgetting it. Where something was sent, a
	// FIN perhaps, its acknowledgement is waited for two or three times as long. Zero means DefaultHalfCloseProbe, less than
	// zero: whatever the connection has.
	HalfCloseProbe time.Duration
	// Budget, if set, bounds what relays that cannot write hold in buffers: once it is used up they read little at a time.
	Budget *buffer.Budget
	// Party, if set, does the work, and slows relays down that do much of it.
	Party *share.Party
	// Parker, if set, watches the connections of Start that send nothing.
	Parker *Parker
	// ParkAfter is how long a connection sends nothing until it is left to the Parker, or up to twice as long. Zero means
	// DefaultParkAfter.
	ParkAfter time.Duration

	stallCheck time.Duration // for tests; zero means the constant
}

// Relay is Relayer.Relay with the defaults.
func Relay(ctx context.Context, conn *net.TCPConn, s *Stream, counters *Counters) error {
	return Relayer{}.Relay(ctx, conn, s, counters)
}

// RelayTCP is Relayer.RelayTCP with the defaults.
func RelayTCP(ctx context.Context, a, b *net.TCPConn, counters *Counters) error {
	return Relayer{}.RelayTCP(ctx, a, b, counters)
}

// Relay copies between a TCP connection and a stream, in both directions, until both have ended, and closes both. An end of
// one direction is passed on as such (FIN as END_STREAM and back), a reset as a reset; CANCEL and NO_ERROR from the peer are
// clean ends of both directions. It returns nil if both directions ended cleanly, else what ended them: an error of the
// connection, *h2.StreamError, *h2.ConnError, ErrHalfCloseTimeout, or the cause of the context's end, on which both are
// reset. counters may be nil.
//
// It runs in one goroutine while the connection takes what comes: the goroutine that reads the tunnel writes to conn.
func (cfg Relayer) Relay(ctx context.Context, conn *net.TCPConn, s *Stream, counters *Counters) error {
	r, err := cfg.newRelay(conn, s, counters)
	if err != nil {
		return err
	}
	r.begin(ctx)
	r.up()
	return r.finish()
}

// Start is Relay without the caller's goroutine, whose stack is often most of what an idle connection costs: it returns at
// once, and done is called once with what Relay would have returned. With a Parker in the settings a connection that sends
// nothing costs no goroutine at all. The handler that accepted the stream may return before the end. The stream's headers are
// forgotten.
//
// It returns a function that resets both sides because of its argument, at any time, and does nothing after the end. With that
// and a context that never ends (context.Background) it takes less memory; then the handler's context ends at once.
func (cfg Relayer) Start(ctx context.Context, conn *net.TCPConn, s *Stream, counters *Counters, done func(error)) (abort func(error)) {
	s.s.Detach()
	release := s.release
	if release == nil {
		release = func() {}
	}
	if ctx.Done() == nil {
		release()
		release = func() {}
	}
	stream := s.s
	r, err := cfg.newRelay(conn, s, counters)
	if err != nil {
		_, _ = s.early.Stop()
		release()
		stream.Release()
		done(err)
		return func(error) {}
	}
	r.done = func(err error) {
		release()
		done(err)
		stream.Release()
	}
	if cfg.Parker != nil {
		r.parking = &parking{parker: cfg.Parker, after: cfg.parkAfter()}
		r.parking.restart(r)
	}
	r.begin(ctx)
	early := s.early
	s.early, s.header = nil, nil // which live no longer than they are of use
	early.startRelay(r)
	return r.abort
}

func (cfg Relayer) newRelay(conn *net.TCPConn, s *Stream, counters *Counters) (*relay, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		s.Reset(h2.ConnectError)
		_ = conn.Close()
		return nil, fmt.Errorf("relay: %w", err)
	}
	if counters == nil {
		counters = new(Counters)
	}
	r := &relay{conn: conn, raw: raw, s: s.s, counters: counters, stallCheck: cfg.stallCheck}
	r.load = load{cfg.Budget, cfg.Party, 0}
	r.silence = cfg.silence()
	if r.stallCheck == 0 {
		r.stallCheck = stallCheck
	}
	r.idle.L = &r.mu
	r.in.init(raw)
	r.in.pause = r.flush
	r.out.try = r.out.tryWrite
	return r, nil
}

// begin starts the direction from the stream to conn.
func (r *relay) begin(ctx context.Context) {
	if ctx.Done() != nil {
		r.unwatch = context.AfterFunc(ctx, func() { r.abort(context.Cause(ctx)) })
	}
	// Whatever comes is pushed from here on, unless something has come already.
	chunk, ok, err := r.s.Next(r)
	for ok && err == nil {
		n, werr := r.out.write(r.raw, chunk.Bytes())
		r.counters.addReceived(n)
		if werr != nil {
			chunk.Release()
			r.fail(werr)
			return
		}
		if chunk.Skip(n); len(chunk.Bytes()) > 0 {
			break // conn takes no more at once
		}
		chunk.Release()
		chunk, ok, err = r.s.Next(r)
	}
	if ok || err != nil {
		r.mu.Lock()
		r.drainers++
		r.mu.Unlock()
		go r.drain(chunk, err)
	}
}

func (cfg Relayer) silence() silence {
	s := silence{limit: cfg.HalfCloseTimeout, every: cfg.HalfCloseProbe}
	if s.limit == 0 {
		s.limit = DefaultHalfCloseTimeout
	}
	if s.every == 0 {
		s.every = DefaultHalfCloseProbe
	}
	return s
}

// relay is the state of one Relay. It is the stream's sink: payload from the tunnel is written to conn by the goroutine that
// reads the tunnel, as long as conn takes it at once, and else by drain.
type relay struct {
	conn     *net.TCPConn
	raw      syscall.RawConn
	s        *h2.Stream
	counters *Counters
	in       source      // of up
	kept     bool        // of up: what was read last is not flushed yet
	first    *firstRead  // of up: what was read before it began
	out      trySink     // of whoever calls TryWrite
	load     load        // of up
	unwatch  func() bool // the context; nil if that never ends
	done     func(error) // of Start
	parking  *parking    // of Start; may be nil

	stallCheck time.Duration

	mu       sync.Mutex // guards what follows
	drainers int        // goroutines in drain: one, and perhaps one that is done and about to return
	closing  bool       // a goroutine closes conn
	idle     sync.Cond  // drainers has become zero, or closing false
	late     error      // what End said while there were drainers
	waiting  bool       // nothing is read from conn any more
	upDone   bool       // conn has ended, and the stream was told
	downDone bool       // the stream has ended, and conn was told
	over     bool       // whoever set it closes conn
	err      error
	timer    *time.Timer // of silence
	silence  silence
}

// run is what Start starts, and again after each time that the relay was parked.
func (r *relay) run() {
	if r.up() {
		return
	}
	r.done(r.finish())
}

// up copies from conn to the stream until conn ends, and then waits for the end of the other direction or a reset. It
// returns true if the relay was parked instead: somebody else runs then, or will.
func (r *relay) up() (parked bool) {
	r.mu.Lock()
	waiting := r.waiting
	r.mu.Unlock()
	for !waiting {
		window, err := r.waitWritable()
		if err == nil {
			err = r.forward(window)
		}
		switch {
		case err == nil:
			if r.parking != nil && !r.parking.armed {
				r.parking.restart(r)
			}
			continue
		case r.parking.isTime(err):
			if r.park() {
				return true
			}
			continue
		case err == io.EOF:
			if err = r.s.CloseWrite(); err == nil {
				r.ended(&r.upDone)
			}
		}
		if err != nil && !toldByEnd(err) {
			r.fail(err)
			return false
		}
		waiting = true
	}
	return r.awaitEnd()
}

// awaitEnd waits until the relay is over, or conn is reset, when nothing is read from it any more. A connection that was parked
// before is parked at once: thousands of them may end at the same time.
func (r *relay) awaitEnd() (parked bool) {
	r.mu.Lock()
	again := !r.waiting && r.upDone && r.parking != nil && r.parking.known
	r.waiting = true
	r.mu.Unlock()
	for {
		err := r.in.checkReset()
		if err == nil {
			if again && r.leave() {
				return true
			}
			again = false
			r.parking.restart(r)
			err = r.in.waitReset()
		}
		switch {
		case !r.parking.isTime(err):
			r.fail(err)
			return false
		case r.park():
			return true
		}
	}
}

// waitWritable waits for the peer's window. While it is closed nobody reads conn, so a look now and then tells whether it was
// reset.
func (r *relay) waitWritable() (int, error) {
	if r.s.Writable() {
		return r.s.WaitWritable()
	}
	r.flush()
	defer r.s.SetWriteDeadline(time.Time{})
	for {
		_ = r.s.SetWriteDeadline(time.Now().Add(r.stallCheck))
		n, err := r.s.WaitWritable()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := r.in.checkReset(); err != nil {
			return 0, err
		}
	}
}

// toldByEnd tells whether an error of the stream also comes to End or from Next, after what came before it.
func toldByEnd(err error) bool {
	var se *h2.StreamError
	return errors.As(err, &se) && se.Remote || errors.As(err, new(*h2.ConnError))
}

// flush sends what forward has kept.
func (r *relay) flush() {
	if r.kept {
		r.kept = false
		r.s.Conn().Flush()
	}
}

// forward copies once from conn to the stream, up to limit bytes. What comes first leaves, if it is small, when conn has no more for
// the moment, so that the end of a short connection goes with it. Later messages leave at once: most have no end behind them, and
// whoever waits for them would also wait for the read that finds nothing.
func (r *relay) forward(limit int) error {
	if r.first != nil {
		return r.forwardFirst(limit)
	}
	buf, n, err := r.in.read(h2.Headroom, r.load.limit(limit))
	if err != nil {
		return err
	}
	r.load.budget.Take(cap(buf))
	k, kept, err := r.s.AddScratch(buf[:h2.Headroom+n])
	if r.kept = kept; r.counters.Sent.Load() > 0 {
		r.flush()
	}
	r.load.budget.Give(cap(buf))
	buffer.Put(buf)
	r.sent(k)
	return err
}

// sent counts what was sent on the stream, and waits if the party is to hold back.
func (r *relay) sent(n int) {
	r.counters.addSent(n)
	if r.load.due(n) {
		r.flush()
		r.load.tell()
	}
}

// forwardFirst is forward for what was read before up began.
func (r *relay) forwardFirst(limit int) error {
	f := r.first
	if f.err != nil {
		r.first = nil
		return f.err
	}
	k, err := r.s.Write(f.buf[h2.Headroom+f.sent : h2.Headroom+min(f.n, f.sent+limit)])
	f.sent += k
	k, f.told = f.sent-f.told, f.sent
	if f.sent == f.n {
		r.dropFirst()
	}
	r.sent(k)
	return err
}

// dropFirst gives back what was read before up began, once it was sent, or cannot be any more.
func (r *relay) dropFirst() {
	if f := r.first; f != nil {
		r.counters.addSent(f.sent - f.told)
		buffer.Put(f.buf)
		r.first = nil
	}
}

// TryWrite implements h2.Sink. A drainer that is about to return does not write any more.
func (r *relay) TryWrite(p []byte) (int, error) {
	n, err := r.out.write(r.raw, p)
	r.counters.addReceived(n)
	if err != nil {
		r.fail(err)
	}
	return n, err
}

// Behind implements h2.Sink.
func (r *relay) Behind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return // nobody wants it any more
	}
	r.drainers++
	go r.drainQueued()
}

// drainQueued is drain for a goroutine that starts with the queue.
func (r *relay) drainQueued() {
	chunk, ok, err := r.s.Next(r)
	if ok || err != nil {
		r.drain(chunk, err)
		return
	}
	r.drained(nil)
}

// drain writes a chunk, if err is nil, and whatever else is queued, and then lets the rest be pushed.
func (r *relay) drain(chunk h2.Chunk, err error) {
	for err == nil {
		n, werr := r.conn.Write(chunk.Bytes())
		chunk.Release()
		r.counters.addReceived(n)
		if werr != nil {
			r.fail(werr)
			break
		}
		var ok bool
		if chunk, ok, err = r.s.Next(r); !ok && err == nil {
			break
		}
	}
	r.drained(err)
}

// drained is the end of drain, because of err or because nothing is queued any more.
func (r *relay) drained(err error) {
	if err != nil {
		r.down(err)
	}
	r.mu.Lock()
	for r.drainers == 1 && r.late != nil {
		late := r.late
		r.late = nil
		r.mu.Unlock()
		r.down(late)
		r.mu.Lock()
	}
	r.drainers--
	if r.drainers == 0 {
		r.idle.Broadcast()
	}
	r.mu.Unlock()
}

// End implements h2.Sink.
func (r *relay) End(err error) {
	r.mu.Lock()
	if r.drainers > 0 {
		r.late = err
		if err != io.EOF && !cleanReset(err) {
			_ = r.conn.SetWriteDeadline(time.Now().Add(resetGrace))
		}
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.down(err)
}

// cleanReset tells whether err is a reset with which the peer ends a stream that has nothing more to say.
func cleanReset(err error) bool {
	var se *h2.StreamError
	return errors.As(err, &se) && se.Remote && (se.Code == h2.Cancel || se.Code == h2.NoError)
}

// down tells conn of the end of the stream.
func (r *relay) down(err error) {
	if err != io.EOF {
		r.fail(err)
		return
	}
	r.mu.Lock()
	done, last := r.downDone || r.over, r.upDone
	r.mu.Unlock()
	if done {
		return
	}
	if !last { // or else it is closed, which says the same
		if err := r.conn.CloseWrite(); err != nil {
			r.fail(err)
			return
		}
	}
	r.ended(&r.downDone)
}

// ended notes the clean end of one direction. With the second one the connection is closed.
func (r *relay) ended(direction *bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*direction = true
	switch {
	case r.over:
	case r.upDone && r.downDone:
		r.closeLocked(nil)
		r.closeConnLocked()
	case r.timer == nil:
		r.timer = time.AfterFunc(probeGrace, r.checkHalfClosed)
	}
}

// moved is the sum of the counters.
func (r *relay) moved() uint64 { return r.counters.Sent.Load() + r.counters.Received.Load() }

// checkHalfClosed ends a half-closed relay that has been silent for too long.
func (r *relay) checkHalfClosed() {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return
	}
	next, err := r.silence.look(r.moved(), r.conn)
	if err == nil && next > 0 {
		r.timer.Reset(next)
	}
	r.mu.Unlock()
	if err != nil {
		r.abort(err)
	}
}

// close marks the relay as over, because of err, and returns whether it was not yet. The caller must then close conn.
func (r *relay) close(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closeLocked(err)
}

func (r *relay) closeLocked(err error) bool {
	if r.over {
		return false
	}
	r.over = true
	r.err = err
	if r.timer != nil {
		r.timer.Stop()
	}
	return true
}

// fail ends both directions because of an error of either side, and passes it on to the other.
func (r *relay) fail(err error) {
	switch {
	case err == nil:
	case cleanReset(err):
		if r.close(nil) {
			r.closeSoon()
		}
	default:
		r.abort(err)
	}
}

// abort resets both sides.
func (r *relay) abort(err error) {
	if !r.close(err) {
		return
	}
	_ = r.conn.SetLinger(0) // first: the reset wakes up, which closes conn in the end
	r.s.Reset(h2.ConnectError)
	r.closeSoon()
}

// closeSoon is closeConnLocked for those who must not wait for up. A Close waits for the read that is under way, which flushes
// when nothing has come, and so perhaps waits for the peer: and that for whoever reads the tunnel, which may be the caller.
func (r *relay) closeSoon() {
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	go func() { // finish waits for it
		_ = r.conn.Close()
		r.mu.Lock()
		r.closing = false
		r.closeConnLocked()
		r.idle.Broadcast()
		r.mu.Unlock()
	}()
}

// closeConnLocked closes conn, and so wakes up, which does not send any more.
func (r *relay) closeConnLocked() {
	_ = r.conn.Close()
	r.parking.wakeLocked(r)
}

// finish closes both sides, whatever their state, and returns what ended the relay.
func (r *relay) finish() error {
	if r.unwatch != nil {
		r.unwatch()
	}
	r.dropFirst()
	r.s.Close()
	r.close(nil)
	_ = r.conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.drainers > 0 || r.closing {
		r.idle.Wait()
	}
	return r.err
}
