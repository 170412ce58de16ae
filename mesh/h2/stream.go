package h2

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// Stream is one request and its response. One goroutine may read and another write at a time; Reset, Close and the
// deadlines may be called by anyone.
type Stream struct {
	c  *Conn
	id uint32

	// Guarded by c.mu.
	wcond         sync.Cond // whatever the writer waits for
	sendWindow    int64     // bytes of payload that the peer takes on the stream
	turn          uint8
	localEnd      bool // END_STREAM sent
	remoteEnd     bool // END_STREAM received, perhaps not read
	headed        bool // the peer's header (a final one) received
	answered      bool // WriteHeaders was called
	detached      bool // it outlives its handler
	werr          error
	writeDeadline deadline

	rmu          sync.Mutex // guards what follows; taken before c.mu
	rcond        sync.Cond  // whatever readers wait for
	blocks       [][]Field  // header blocks that nobody took
	trailers     []Field
	queue        []chunk // payload that nobody took
	recvOpen     int64   // bytes that the peer may still send
	unreturned   int64   // bytes that were read, and are not granted again yet
	recvEnd      bool    // END_STREAM received: nothing comes after queue
	rerr         error   // nothing comes after queue, because of this
	discard      bool    // nobody will read
	into         []byte  // of a reader that waits: payload goes here first
	intoN        int     // how much did
	sink         Sink    // payload goes here while pushing
	pushing      bool
	onReset      func()
	onReadable   func()
	readDeadline deadline

	firstBlock [1][]Field // of blocks, mostly the only one
	firstChunk [1]chunk   // of queue, likewise
}

// chunk is payload in a pooled buffer: buf[r:w].
type chunk struct {
	buf  []byte
	r, w int
}

// Chunk is payload of a stream. Its owner must call Release.
type Chunk struct {
	c    chunk
	conn *Conn // that counts it
}

// Bytes returns the payload, valid until Release.
func (c Chunk) Bytes() []byte { return c.c.buf[c.c.r:c.c.w] }

// Scratch returns the payload with Headroom bytes before it, as WriteScratch and AddScratch take it, or nil if there is no
// such room. What it is written to overwrites it.
func (c Chunk) Scratch() []byte {
	if c.c.r < Headroom {
		return nil
	}
	return c.c.buf[c.c.r-Headroom : c.c.w]
}

// Skip takes n bytes off the beginning.
func (c *Chunk) Skip(n int) { c.c.r += n }

// Release gives the buffer back.
func (c Chunk) Release() { c.conn.release(c.c) }

// Leave is Release of a chunk that somebody may still use: its buffer is lent to nobody else.
func (c Chunk) Leave() { c.conn.uncount(c.c.buf, buffer.Leave) }

// Sink takes a stream's payload from the goroutine that reads the connection, without a detour. Its methods are called one
// at a time and must not block.
type Sink interface {
	// TryWrite takes what it can of p. It returns less than len(p) without an error if it can take no more for now: the rest
	// is queued, and after Behind must be pulled with Next. An error means that the sink is broken: whatever comes later
	// is dropped, and its owner must reset the stream. The sink must not keep p.
	TryWrite(p []byte) (int, error)
	// Behind says that payload is queued: from now on nothing is pushed, until Next has pulled everything.
	Behind()
	// End says that nothing more comes from the peer: io.EOF after its clean end, *StreamError after a reset, *ConnError
	// with the connection. After Behind it is called for errors only, and then perhaps before everything was pulled. An
	// error can also follow io.EOF: then nothing can be written any more.
	End(err error)
}

// deadline is a point in time after which a read or a write fails.
type deadline struct {
	timer  *time.Timer
	passed bool
	gen    int // tells a timer that was replaced
}

// set arms the deadline; mu guards it, and wake is called with mu when it passes.
func (d *deadline) set(t time.Time, mu *sync.Mutex, wake func()) {
	mu.Lock()
	defer mu.Unlock()
	d.gen++
	gen := d.gen
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		wake()
		return
	}
	d.timer = time.AfterFunc(wait, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.gen == gen {
			d.passed = true
			wake()
		}
	})
}

// SetReadDeadline makes Read, Next and Headers return os.ErrDeadlineExceeded from t on; the zero time: never.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.readDeadline.set(t, &s.rmu, s.rcond.Broadcast)
	return nil
}

// SetWriteDeadline makes writes that wait return os.ErrDeadlineExceeded from t on; the zero time: never.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.writeDeadline.set(t, &s.c.mu, s.wcond.Broadcast)
	return nil
}

// ID returns the stream's number.
func (s *Stream) ID() uint32 { return s.id }

// Conn returns the stream's connection.
func (s *Stream) Conn() *Conn { return s.c }

// Leaving tells whether the stream's connection opens no more streams.
func (s *Stream) Leaving() bool { return s.c.Draining() }

// LocalAddr and RemoteAddr are the connection's.
func (s *Stream) LocalAddr() net.Addr { return s.c.LocalAddr() }

// RemoteAddr is the address of the peer.
func (s *Stream) RemoteAddr() net.Addr { return s.c.RemoteAddr() }

// Headers returns the next header block of the peer, waiting for it: at a server the request's header; at a client the
// blocks of informational responses (status 1xx), if there are any, and then the response's. The caller owns it.
func (s *Stream) Headers(ctx context.Context) ([]Field, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if len(s.blocks) == 0 && ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() {
			s.rmu.Lock()
			s.rcond.Broadcast()
			s.rmu.Unlock()
		})
		defer stop()
	}
	for len(s.blocks) == 0 {
		switch {
		case s.rerr != nil:
			return nil, s.rerr
		case s.recvEnd:
			return nil, io.EOF
		case s.readDeadline.passed:
			return nil, os.ErrDeadlineExceeded
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		s.rcond.Wait()
	}
	b := s.blocks[0]
	s.blocks[0] = nil
	s.blocks = s.blocks[1:]
	if len(s.blocks) == 0 {
		s.blocks = nil
	}
	return b, nil
}

// Trailers returns the peer's trailers, once Read has returned io.EOF; nil if there were none.
func (s *Stream) Trailers() []Field {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	return s.trailers
}

// Ready tells whether Read, Next or Headers would return at once.
func (s *Stream) Ready() bool {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	return len(s.queue) > 0 || len(s.blocks) > 0 || s.readErrLocked() != nil
}

// Ended tells whether the peer has ended the stream and all of its payload was read: what is left are trailers.
func (s *Stream) Ended() bool {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	return s.recvEnd && len(s.queue) == 0
}

// takeHeaders takes a header block, from the connection's reader.
func (s *Stream) takeHeaders(fields []Field, header, end bool) {
	s.rmu.Lock()
	if header {
		if s.blocks == nil {
			s.blocks = s.firstBlock[:0]
		}
		s.blocks = append(s.blocks, fields)
	} else {
		s.trailers = fields
	}
	s.rcond.Broadcast()
	s.rmu.Unlock()
	if end {
		s.take(nil, gathered{s: s, end: true})
	}
}

// Reset ends the stream at once in both directions, with RST_STREAM unless both have ended. What was received and not read
// is lost.
func (s *Stream) Reset(code ErrCode) { s.reset(code, true, "") }

// reset: a reset by the owner discards what was received, one by the engine leaves it to be read before the error.
func (s *Stream) reset(code ErrCode, owner bool, reason string) {
	c := s.c
	err := errOver
	c.mu.Lock()
	open := c.streams[s.id] == s
	if open {
		err = &StreamError{Code: code, Reason: reason}
		if s.werr == nil {
			s.werr = err
		}
		s.wcond.Broadcast()
		c.removeLocked(s)
		if c.server && !s.remoteEnd {
			c.closed.add(s.id, false)
		}
		c.mustFrame(c.send.framer.WriteRSTStream(s.id, code))
		c.kickAsyncLocked(false)
	}
	c.mu.Unlock()
	if owner {
		s.drop(err)
	} else {
		s.endRead(err)
	}
	if open {
		c.changed()
	}
}

// Detach lets the stream outlive its handler at a server, which calls it: the stream is not closed when the handler returns,
// and Run does not return before Release. At a client it does nothing.
func (s *Stream) Detach() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server && !s.detached {
		s.detached = true
		c.wg.Add(1)
	}
}

// Detached tells whether Detach was called and Release was not.
func (s *Stream) Detached() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.detached
}

// Release closes the stream and undoes Detach.
func (s *Stream) Release() {
	s.Close()
	c := s.c
	c.mu.Lock()
	detached := s.detached
	s.detached = false
	c.mu.Unlock()
	if detached {
		c.wg.Done()
	}
}

// Close ends the stream: silently if it has ended in both directions, else with RST_STREAM (NO_ERROR if a server has sent
// its response, CANCEL otherwise). What was received and not read is lost. It does not block.
func (s *Stream) Close() {
	s.c.mu.Lock()
	code := http2.ErrCodeCancel
	if s.c.server && s.localEnd {
		code = http2.ErrCodeNo
	}
	s.c.mu.Unlock()
	s.reset(code, true, "")
}

// drop forgets what was received; nobody will read.
func (s *Stream) drop(err error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if s.discard {
		return
	}
	s.discard = true
	s.pushing, s.sink, s.onReadable = false, nil, nil
	if s.rerr == nil {
		s.rerr = err
	}
	n := 0
	for _, ch := range s.queue {
		n += ch.w - ch.r
		s.c.release(ch)
	}
	s.queue = nil
	s.c.unbuffer(n)
	s.rcond.Broadcast()
}

// Done tells whether the stream has ended in both directions, or was reset.
func (s *Stream) Done() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.streams[s.id] != s
}
