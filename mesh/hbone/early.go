package hbone

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
)

// ErrMayHaveArrived is wrapped by the error of a request that has got no answer and of which Early was a part: the peer may
// have answered, and have passed on what the client said, so it must not be said again elsewhere.
var ErrMayHaveArrived = errors.New("what the client said first may have arrived, and is not said twice")

// earlyFresh is how long ago a connection was last heard of at most when Early goes along with a request on it. Where it is
// gone without a word, that is known only after many seconds, and what went along cannot be said elsewhere then.
const earlyFresh = 250 * time.Millisecond

// Early is what a client says while its tunnel is being opened. It is sent along with the request, or after it, without
// waiting for the answer, which spares most connections a round trip; and again with the next request if the peer has refused
// the first one. It is one read at most: no more is read before the tunnel is open.
//
// It reads the client's connection from the first request of which it is a part. Then it must be given to a relay, which Start does
// with the stream of that request, or be ended by Stop. Its other methods are Pool.Open's. One request at a time may have it.
type Early struct {
	conn   *net.TCPConn
	raw    syscall.RawConn
	budget *buffer.Budget
	in     source

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	reading bool       // a goroutine is in run
	writing bool       // and writes
	read    bool       // what follows is there
	buf     []byte     // pooled; payload begins at h2.Headroom
	n       int        // bytes of payload
	err     error      // instead of payload
	s       *h2.Stream // of the request under way, if it may go with that
	sent    *h2.Stream // to which the payload was sent
	sentN   int        // how much of it, at most
	relay   *relay     // to which all this was given
	stopped bool
}

// NewEarly returns what conn, which stays the caller's, will say. The budget, if set, counts what is held meanwhile.
func NewEarly(conn *net.TCPConn, budget *buffer.Budget) *Early {
	e := &Early{conn: conn, budget: budget}
	e.changed.L = &e.mu
	return e
}

// look returns what the client has said so far, without waiting; it is valid until the relay has it. A nil Early has nothing.
func (e *Early) look() []byte {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.raw == nil {
		raw, err := e.conn.SyscallConn()
		if err != nil {
			return nil
		}
		e.raw = raw
		e.in.init(raw)
	}
	if !e.read && !e.reading {
		buf, n, err := e.in.poll(h2.Headroom)
		e.keepLocked(buf, n, err)
	}
	if !e.read || e.err != nil {
		return nil
	}
	return e.buf[h2.Headroom : h2.Headroom+e.n]
}

// keepLocked takes what a read has brought; nothing if n is zero and err nil.
func (e *Early) keepLocked(buf []byte, n int, err error) {
	if n == 0 && err == nil {
		return
	}
	e.read, e.buf, e.n, e.err = true, buf, n, err
	e.budget.Take(cap(buf))
}

// follow has the rest sent on a stream of which the request, with n bytes of what look returned, was sent.
func (e *Early) follow(s *h2.Stream, n int) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.s = s
	if e.read && n > 0 {
		e.sent, e.sentN = s, n
	}
	switch {
	case e.reading:
		e.changed.Broadcast()
	case e.raw != nil && !(e.read && (e.err != nil || e.sent == s)):
		e.reading = true
		go e.run(e.read) // Stop waits for it, or it becomes the relay's
	}
}

// Said tells whether some of it is on its way with the request that is under way, or was with the one that has succeeded.
func (e *Early) Said() bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.saidLocked()
}

func (e *Early) saidLocked() bool { return e.s != nil && e.sent == e.s && e.sentN > 0 }

// leave is the end of a request that has failed, whose stream is closed. It returns what Said would have.
func (e *Early) leave() bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	said := e.saidLocked()
	e.s = nil
	return said
}

// run reads, unless that has happened, sends it on whatever stream is being opened, and then becomes the goroutine of the relay,
// if there is one.
func (e *Early) run(read bool) {
	var buf []byte
	var n int
	var err error
	if !read {
		buf, n, err = e.in.read(h2.Headroom, readSizes[0])
	}
	e.mu.Lock()
	e.keepLocked(buf, n, err)
	for !e.stopped && e.relay == nil {
		if s := e.s; s != nil && s != e.sent && e.err == nil {
			p := e.buf[h2.Headroom : h2.Headroom+e.n]
			e.sent, e.sentN, e.writing = s, e.n, true
			e.mu.Unlock()
			k, _ := s.Write(p) // who waits for the answer hears of the error
			e.mu.Lock()
			if e.writing = false; e.relay != nil {
				_ = e.relay.s.SetWriteDeadline(time.Time{})
			}
			if e.sent == s {
				e.sentN = k
			}
			continue
		}
		e.changed.Wait()
	}
	e.reading = false
	r := e.relay
	e.changed.Broadcast()
	e.mu.Unlock()
	if r != nil {
		e.giveTo(r)
		r.run()
	}
}

// giveTo leaves what was read to the relay. Nobody else may use e any more.
func (e *Early) giveTo(r *relay) {
	if e.read {
		e.budget.Give(cap(e.buf))
		r.first = &firstRead{buf: e.buf, n: e.n, err: e.err}
		if e.sent == r.s {
			r.first.sent = e.sentN
		}
		e.buf = nil
	}
}

// startRelay has the relay go on with what there is, in a goroutine.
func (e *Early) startRelay(r *relay) {
	if e == nil {
		go r.run()
		return
	}
	e.mu.Lock()
	e.relay = r
	reading := e.reading
	if e.writing {
		_ = r.s.SetWriteDeadline(time.Unix(1, 0)) // the relay goes on with the rest, and looks after conn while the peer takes nothing
	}
	e.changed.Broadcast()
	e.mu.Unlock()
	if !reading {
		e.giveTo(r)
		go r.run()
	}
}

// Stop ends it, and returns what the client has said, or the error with which reading ended; nothing if it has not said anything.
// The caller must not have given it to a relay; it may read the connection then. A nil Early has nothing.
func (e *Early) Stop() ([]byte, error) {
	if e == nil {
		return nil, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	if e.reading {
		_ = e.conn.SetReadDeadline(time.Unix(1, 0)) // an error means that it is closed
		e.changed.Broadcast()
		for e.reading {
			e.changed.Wait()
		}
		_ = e.conn.SetReadDeadline(time.Time{})
	}
	if !e.read {
		return nil, nil
	}
	said, err := append([]byte(nil), e.buf[min(h2.Headroom, len(e.buf)):min(h2.Headroom+e.n, len(e.buf))]...), e.err
	e.budget.Give(cap(e.buf))
	buffer.Put(e.buf)
	e.read, e.buf, e.n = false, nil, 0
	if os.IsTimeout(err) {
		err = nil // it was this that ended it
	}
	return said, err
}

// firstRead is what was read before a relay began: payload in buf behind h2.Headroom, or err. So much of it was sent.
type firstRead struct {
	buf  []byte
	n    int
	err  error
	sent int
	told int // how much of that was counted
}
