package h2

import (
	"io"
	"os"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// take takes payload from the connection's reader, in whose buffer it is: it goes to the sink or to a reader that waits,
// and what is left into the queue.
func (s *Stream) take(r *reader, h gathered) {
	var p []byte
	if h.to > h.from {
		p = r.buf[h.from:h.to]
	}
	s.rmu.Lock()
	if s.discard {
		s.recvEnd = s.recvEnd || h.end
		s.rmu.Unlock()
		s.c.unbuffer(len(p))
		return
	}
	if s.pushing {
		s.push(r, h, p)
		return
	}
	if n := len(s.into); n > 0 && len(p) > 0 && len(s.queue) == 0 {
		s.intoN = copy(s.into, p)
		s.into = nil
		s.consumedLocked(s.intoN)
		p = p[s.intoN:]
	}
	s.enqueueLocked(r, p, h.to)
	s.recvEnd = s.recvEnd || h.end
	s.rcond.Broadcast()
	readable := s.readableLocked()
	s.rmu.Unlock()
	if readable != nil {
		readable()
	}
}

// readableLocked takes what OnReadable was given, if it is time to call it.
func (s *Stream) readableLocked() func() {
	if s.onReadable == nil || len(s.queue) == 0 && !s.recvEnd && s.rerr == nil {
		return nil
	}
	f := s.onReadable
	s.onReadable = nil
	return f
}

// OnReadable has f called, once, when Read would not wait any more, whatever its deadline: at once if that is so. Nil takes it back. f is
// not called after Reset or Close, and must not block.
func (s *Stream) OnReadable(f func()) {
	s.rmu.Lock()
	s.onReadable = nil
	if !s.discard {
		s.onReadable = f
	}
	readable := s.readableLocked()
	s.rmu.Unlock()
	if readable != nil {
		readable()
	}
}

// push gives payload to the sink. It is called with rmu and unlocks it.
func (s *Stream) push(r *reader, h gathered, p []byte) {
	sink := s.sink
	var n int
	var err error
	if len(p) > 0 {
		s.rmu.Unlock()
		n, err = sink.TryWrite(p)
		s.rmu.Lock()
		s.consumedLocked(n)
	}
	s.recvEnd = s.recvEnd || h.end
	switch {
	case s.discard:
		s.rmu.Unlock()
		s.c.unbuffer(len(p) - n)
	case err != nil:
		s.rmu.Unlock()
		s.c.unbuffer(len(p) - n)
		s.drop(err)
	case n < len(p):
		s.pushing = false
		s.enqueueLocked(r, p[n:], h.to)
		s.rmu.Unlock()
		sink.Behind()
	case h.end:
		s.pushing = false
		s.rmu.Unlock()
		sink.End(io.EOF)
	default:
		s.rmu.Unlock()
	}
}

// enqueueLocked queues p, which ends at position to of the reader's buffer.
func (s *Stream) enqueueLocked(r *reader, p []byte, to int) {
	if len(p) == 0 {
		return
	}
	from := to - len(p)
	if n := len(s.queue); n > 0 {
		last := &s.queue[n-1]
		k := copy(last.buf[last.w:], p)
		last.w += k
		from += k
	}
	if from < to {
		ch := r.donate(from, to)
		if s.queue == nil {
			s.queue = s.firstChunk[:0]
		}
		s.queue = append(s.queue, ch)
		s.c.hold(ch)
	}
}

// dequeueLocked takes the first chunk of the queue.
func (s *Stream) dequeueLocked() chunk {
	ch := s.queue[0]
	s.queue = slices.Delete(s.queue, 0, 1)
	if len(s.queue) == 0 {
		s.queue = nil
	}
	s.consumedLocked(ch.w - ch.r)
	return ch
}

// hold counts a chunk's buffer.
func (c *Conn) hold(ch chunk) {
	c.mu.Lock()
	c.recv.held += int64(cap(ch.buf))
	c.mu.Unlock()
	c.cfg.Budget.Take(cap(ch.buf))
}

// release gives a chunk's buffer back.
func (c *Conn) release(ch chunk) { c.uncount(ch.buf, buffer.Put) }

// uncount gives a chunk's buffer away, and counts it no more.
func (c *Conn) uncount(buf []byte, away func([]byte)) {
	n := cap(buf)
	away(buf)
	c.mu.Lock()
	if c.recv.held -= int64(n); c.recv.held == 0 {
		c.recv.room.Broadcast()
	}
	c.mu.Unlock()
	c.cfg.Budget.Give(n)
}

// How a connection is read when the party's budget is used up: a piece of so many bytes of payload after each pause. A peer
// that has a window of 16 MiB open has sent it after 8 s, and so gets its PINGs answered in time.
const (
	budgetPause = 250 * time.Millisecond
	budgetPiece = 512 << 10
)

// awaitBudget slows the reader down, after n bytes of payload, while the party's budget is used up, if this connection holds
// some of it: those that hold nothing go on. It stops the reader when twice the budget is used up.
func (c *Conn) awaitBudget(n int) {
	b := c.cfg.Budget
	if !b.Over() {
		c.rd.piece = 0
		return
	}
	if c.rd.piece -= n; c.rd.piece > 0 {
		return
	}
	passed := false
	timer := time.AfterFunc(budgetPause, func() {
		c.mu.Lock()
		passed = true
		c.recv.room.Broadcast()
		c.mu.Unlock()
	})
	c.mu.Lock()
	c.recv.waiting = true
	for c.recv.held > 0 && c.cause == nil && b.Await(&c.recv.waiter) {
		if passed && !b.Beyond() {
			break
		}
		if passed {
			passed = false
			timer.Reset(budgetPause)
		}
		c.recv.room.Wait()
	}
	c.recv.waiting = false
	c.mu.Unlock()
	timer.Stop()
	b.Leave(&c.recv.waiter)
	c.rd.piece = budgetPiece
	c.heard.Store(true) // it is this side that was silent
}

// unbuffer notes that n bytes do not wait any more.
func (c *Conn) unbuffer(n int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	c.recv.buffered -= int64(n)
	if c.ended == nil && c.grantLocked() {
		c.kickAsyncLocked(false)
	}
	c.mu.Unlock()
}

// consumedLocked notes that n bytes of payload were read. rmu must be held.
func (s *Stream) consumedLocked(n int) {
	s.c.unbuffer(n)
	s.creditLocked(n)
}

// creditLocked notes that n bytes were read, and gives the peer window on the stream again once it is worth a frame. rmu
// must be held.
func (s *Stream) creditLocked(n int) {
	s.unreturned += int64(n)
	if s.unreturned < int64(s.c.cfg.StreamWindow)/2 || s.recvEnd {
		return
	}
	grant := s.unreturned
	s.unreturned = 0
	s.recvOpen += grant
	c := s.c
	c.mu.Lock()
	if c.streams[s.id] == s && !s.remoteEnd {
		c.mustFrame(c.send.framer.WriteWindowUpdate(s.id, uint32(grant)))
		c.kickAsyncLocked(false)
	}
	c.mu.Unlock()
}

// endRead says that the stream is over, because of err. What is queued can still be read.
func (s *Stream) endRead(err error) {
	s.rmu.Lock()
	if s.discard || s.rerr != nil {
		s.rmu.Unlock()
		return
	}
	s.rerr = err
	sink, onReset := s.sink, s.onReset
	s.pushing, s.onReset = false, nil
	s.rcond.Broadcast()
	readable := s.readableLocked()
	s.rmu.Unlock()
	if readable != nil {
		readable()
	}
	if sink != nil {
		sink.End(err)
	}
	if onReset != nil {
		onReset()
	}
}

// OnReset has f called, once, when the peer resets the stream or the connection ends while the stream is open; at once if
// that has happened. Nil takes it back. f must not block.
func (s *Stream) OnReset(f func()) {
	s.rmu.Lock()
	gone := s.rerr != nil
	if !gone {
		s.onReset = f
	}
	s.rmu.Unlock()
	if gone && f != nil {
		f()
	}
}

// Read is as in io.Reader. It returns io.EOF after the peer's clean end, *StreamError after a reset, *ConnError after the
// end of the connection; payload that came before is returned first.
func (s *Stream) Read(p []byte) (int, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(s.queue) == 0 {
		if err := s.readErrLocked(); err != nil {
			return 0, err
		}
		s.into, s.intoN = p, 0
		s.rcond.Wait()
		s.into = nil
		if s.intoN > 0 {
			return s.intoN, nil
		}
	}
	ch := &s.queue[0]
	n := copy(p, ch.buf[ch.r:ch.w])
	if ch.r+n < ch.w {
		ch.r += n
		s.consumedLocked(n)
		return n, nil
	}
	s.c.release(s.dequeueLocked())
	return n, nil
}

// readErrLocked says why nothing more comes, or that the deadline has passed, or returns nil.
func (s *Stream) readErrLocked() error {
	switch {
	case s.recvEnd && !s.discard: // also if there was an error after it
		return io.EOF
	case s.rerr != nil:
		return s.rerr
	case s.readDeadline.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// WaitReadable blocks until Read would not, so that its caller need not hold a buffer while nothing comes.
func (s *Stream) WaitReadable() error {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	for len(s.queue) == 0 {
		if err := s.readErrLocked(); err != nil {
			return err
		}
		s.rcond.Wait()
	}
	return nil
}

// Next returns the next payload in the buffer where it is. If there is none, and sink is not nil, pushing to sink begins,
// and Next returns false. From the first call with a sink on, that is told of the end. Errors are as in Read, but a reset
// after the peer's clean end goes before that; with a nil sink it waits.
func (s *Stream) Next(sink Sink) (Chunk, bool, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if sink != nil {
		s.sink = sink
	}
	for len(s.queue) == 0 {
		err := s.readErrLocked()
		if err == io.EOF && sink != nil && s.rerr != nil {
			err = s.rerr
		}
		if err != nil {
			return Chunk{}, false, err
		}
		if sink != nil {
			s.pushing = true
			return Chunk{}, false, nil
		}
		s.rcond.Wait()
	}
	return Chunk{s.dequeueLocked(), s.c}, true, nil
}
