package h2

import (
	"encoding/binary"
	"io"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// reader is the state of the one goroutine that reads a connection. The payload of DATA frames is handed on from where it
// was read to; all other frames go through the Framer.
type reader struct {
	c      *Conn
	buf    []byte // pooled; nil while nothing is in it
	r, w   int    // buf[r:w] is not parsed yet
	framer *http2.Framer
	dec    *hpack.Decoder
	fields fieldCollector

	have     gathered
	unworked int // bytes that Worked has not been told of
	piece    int // bytes of payload that awaitBudget lets pass yet

	meter meter
}

// gathered is payload in buf[from:to] that is still to be handed to the stream.
type gathered struct {
	s        *Stream
	from, to int
	end      bool // END_STREAM comes after it
}

const (
	// maxControlFrame bounds SETTINGS, GOAWAY and what else has a length of its own.
	maxControlFrame = 16 << 10

	// workedStep is after how many bytes Worked is told.
	workedStep = 64 << 10

	// mergeLimit is the payload of a frame up to which it is moved next to that of the frame before, to be written in one go.
	mergeLimit = 16 << 10
)

func (r *reader) init(c *Conn) {
	r.meter.init(time.Now())
	r.c = c
	r.framer = http2.NewFramer(nil, r)
	r.framer.SetMaxReadFrameSize(1<<24 - 1) // header checks the size before the Framer sees it
	r.fields.limit = uint64(c.cfg.MaxHeaderList)
	r.dec = hpack.NewDecoder(4096, r.fields.add)
	r.dec.SetMaxStringLength(hardHeaderFactor * int(c.cfg.MaxHeaderList))
}

// Read is for the Framer.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.need(1); err != nil {
		return 0, err
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n, nil
}

// need reads until buf[r:w] has n bytes. Before it waits it hands over what was gathered, and gives an empty buffer back.
func (r *reader) need(n int) error {
	for r.w-r.r < n {
		r.handOver()
		r.worked()
		t := r.c.t
		if r.r == r.w {
			r.release()
			if err := t.WaitReadable(); err != nil {
				return err
			}
			r.buf = buffer.Get(max(t.Buffered(), n))
		} else if len(r.buf)-r.r < n || len(r.buf) == r.w {
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		}
		for {
			k, err := t.Read(r.buf[r.w:])
			r.w += k
			r.unworked += k
			if k > 0 {
				r.c.heard.Store(true)
				r.c.last.Store(int64(time.Since(r.c.begun)))
			} else if err == nil {
				err = io.ErrNoProgress
			}
			if err != nil && r.w-r.r < n {
				return err
			}
			if err != nil || r.w == len(r.buf) || t.Buffered() == 0 {
				break
			}
		}
	}
	return nil
}

// worked tells of what was read. Nothing must be gathered.
func (r *reader) worked() {
	if f := r.c.cfg.Worked; f != nil && r.unworked >= workedStep {
		f(r.unworked)
		r.unworked = 0
	}
}

// release gives the buffer back. Nothing must be in it.
func (r *reader) release() {
	buffer.Put(r.buf)
	r.buf, r.r, r.w = nil, 0, 0
}

// fault resets a stream for what the peer did on it, and says when there were too many of them: each has had a handler.
func (r *reader) fault(s *Stream, code ErrCode, reason string) error {
	s.reset(code, false, reason)
	return r.meter.count(floodFault)
}

// readLoop reads frames until the connection ends, and returns why.
func (c *Conn) readLoop() error {
	r := &c.rd
	if c.server {
		if err := r.readPreface(); err != nil {
			return err
		}
	}
	for {
		h, err := r.header()
		if err != nil {
			return err
		}
		if !c.peer.seen && h.Type != http2.FrameSettings {
			return violated(ProtocolError, "the first frame is not SETTINGS")
		}
		if h.Type == http2.FrameData {
			r.r += Headroom
			if err = c.onData(h); err == nil {
				c.awaitBudget(int(h.Length))
			}
		} else {
			r.handOver()
			if err = c.onFrame(h); err == nil {
				c.awaitAnswersSent()
			}
		}
		if err != nil {
			return err
		}
	}
}

// readPreface reads what a client sends first.
func (r *reader) readPreface() error {
	for i := range len(preface) {
		if err := r.need(1); err != nil {
			return err
		}
		if r.buf[r.r] != preface[i] {
			return violated(ProtocolError, "the client does not speak HTTP/2")
		}
		r.r++
	}
	return nil
}

// header returns the next frame's header without taking it.
func (r *reader) header() (http2.FrameHeader, error) {
	if err := r.need(Headroom); err != nil {
		return http2.FrameHeader{}, err
	}
	b := r.buf[r.r:]
	h := http2.FrameHeader{
		Length:   binary.BigEndian.Uint32(b) >> 8,
		Type:     http2.FrameType(b[3]),
		Flags:    http2.Flags(b[4]),
		StreamID: binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1),
	}
	if h.Length > r.c.cfg.MaxFrameSize {
		return h, violated(FrameSizeError, "a frame is larger than the limit")
	}
	return h, nil
}

// skip reads n bytes and forgets them.
func (r *reader) skip(n int) error {
	for n > 0 {
		if err := r.need(1); err != nil {
			return err
		}
		k := min(n, r.w-r.r)
		r.r += k
		n -= k
	}
	return nil
}

// onData handles a DATA frame, of which the header has been taken.
func (c *Conn) onData(h http2.FrameHeader) error {
	r := &c.rd
	if h.StreamID == 0 {
		return violated(ProtocolError, "DATA on stream 0")
	}
	left, pad, overhead := int(h.Length), 0, 0
	if h.Flags.Has(http2.FlagDataPadded) {
		if left == 0 {
			return violated(FrameSizeError, "padded DATA without a pad length")
		}
		if err := r.need(1); err != nil {
			return err
		}
		pad = int(r.buf[r.r])
		r.r++
		left--
		overhead = pad + 1
		if pad > left {
			return violated(ProtocolError, "padding is longer than the frame")
		}
	}
	end := h.Flags.Has(http2.FlagDataEndStream)
	if err := r.judgeData(h.StreamID, left-pad, end); err != nil {
		return err
	}
	s, err := c.admitData(h.StreamID, int(h.Length), left-pad, end)
	if err != nil {
		return err
	}
	if s == nil {
		return r.skip(left)
	}
	if err := r.payload(s, left-pad, end); err != nil {
		return err
	}
	if overhead > 0 {
		s.rmu.Lock()
		s.creditLocked(overhead)
		s.rmu.Unlock()
	}
	return r.skip(pad)
}

// judgeData counts DATA that costs more than it brings, and forgives PINGs for what brings something: there are peers that
// measure the path with them.
func (r *reader) judgeData(id uint32, payload int, end bool) error {
	switch {
	case payload == 0 && !end:
		return r.meter.count(floodEmptyData)
	case payload < tinyData && !end && r.have.s != nil && r.have.s.id == id:
		// It came in one piece with the frame before, so one frame would have done for both.
		return r.meter.count(floodTinyData)
	case payload >= 1<<10:
		r.meter.forgive(floodPing)
	}
	return nil
}

// admitData accounts for a DATA frame and returns its stream, nil if the payload is for nobody. The payload counts as
// buffered until the stream says otherwise.
func (c *Conn) admitData(id uint32, length, payload int, end bool) (*Stream, error) {
	c.mu.Lock()
	c.recv.open -= int64(length)
	if c.recv.open < 0 {
		c.mu.Unlock()
		return nil, violated(FlowControlError, "more DATA than the connection's window allows")
	}
	s := c.streams[id]
	if s == nil && c.idleLocked(id) {
		c.mu.Unlock()
		return nil, violated(ProtocolError, "DATA on a stream that was never opened")
	}
	var early, late, removed bool
	if s != nil {
		early, late = !c.server && !s.headed, s.remoteEnd
		if !early && !late {
			c.recv.buffered += int64(payload)
			removed = end && c.endRemoteLocked(s)
		}
	}
	if c.grantLocked() {
		c.kickAsyncLocked(false)
	}
	c.mu.Unlock()
	switch {
	case s == nil:
		return nil, c.onEnded(id, payload < 1<<10)
	case early:
		return nil, c.rd.fault(s, ProtocolError, "DATA before the header")
	case late:
		return nil, c.rd.fault(s, StreamClosed, "DATA after the end")
	case removed:
		c.changed()
	}
	s.rmu.Lock()
	s.recvOpen -= int64(length)
	overrun := s.recvOpen < 0
	s.rmu.Unlock()
	if overrun {
		c.unbuffer(payload)
		return nil, c.rd.fault(s, FlowControlError, "more DATA than the stream's window allows")
	}
	return s, nil
}

// endRemoteLocked notes that the peer has ended the stream, and tells whether that was the end of it.
func (c *Conn) endRemoteLocked(s *Stream) bool {
	s.remoteEnd = true
	if s.localEnd {
		c.removeLocked(s)
	}
	return s.localEnd
}

// idleLocked tells whether the stream was never opened.
func (c *Conn) idleLocked(id uint32) bool {
	if c.isOwn(id) {
		return id >= c.nextID
	}
	return id > c.seenID
}

// grantLocked gives the peer window on the connection again once it is worth a frame, and returns whether it did.
func (c *Conn) grantLocked() bool {
	target := min(int64(c.cfg.ConnWindow), int64(c.cfg.MaxBuffered)-c.recv.buffered)
	if left, bounded := c.cfg.Budget.Left(); bounded {
		target = min(target, max(left/4, initialWindow))
	}
	grant := target - c.recv.open
	if grant <= 0 || grant < min(int64(c.cfg.ConnWindow)/4, target/2) {
		return false
	}
	c.recv.open += grant
	c.mustFrame(c.send.framer.WriteWindowUpdate(0, uint32(grant)))
	return true
}

// payload gathers n bytes of a stream's payload as they come, and hands them over when there is no more for the moment.
func (r *reader) payload(s *Stream, n int, end bool) error {
	if n == 0 && end {
		if r.have.s != s {
			r.handOver()
			r.have = gathered{s: s, from: r.r, to: r.r}
		}
		r.have.end = true
		r.handOver()
		return nil
	}
	for n > 0 {
		if err := r.need(1); err != nil {
			return err
		}
		k := min(n, r.w-r.r)
		r.gather(s, k)
		n -= k
	}
	if end {
		r.have.end = true
		r.handOver()
	}
	return nil
}

// gather takes k bytes of payload.
func (r *reader) gather(s *Stream, k int) {
	h := &r.have
	switch {
	case h.s == s && h.to == r.r:
	case h.s == s && k <= mergeLimit:
		copy(r.buf[h.to:], r.buf[r.r:r.r+k])
	default:
		r.handOver()
		*h = gathered{s: s, from: r.r, to: r.r}
	}
	h.to += k
	r.r += k
}

// handOver gives what was gathered to its stream. If the stream keeps it and it is large, the buffer goes with it.
func (r *reader) handOver() {
	h := r.have
	if h.s == nil {
		return
	}
	r.have = gathered{}
	h.s.take(r, h)
}

// donate returns buf[from:to] as a chunk of its own, which the caller owns: the buffer itself if that is sparing, or a copy.
func (r *reader) donate(from, to int) chunk {
	n, rest := to-from, r.w-r.r
	if n < len(r.buf)/4 || n < rest {
		b := buffer.Get(Headroom + n)
		return chunk{b, Headroom, Headroom + copy(b[Headroom:], r.buf[from:to])}
	}
	ch := chunk{r.buf, from, to}
	if rest == 0 {
		r.buf, r.r, r.w = nil, 0, 0
		return ch
	}
	b := buffer.Get(rest)
	r.w = copy(b, r.buf[r.r:r.w])
	r.buf, r.r = b, 0
	return ch
}
