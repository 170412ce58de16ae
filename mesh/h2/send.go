package h2

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"slices"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

const (
	// Headroom is the room that WriteScratch needs before the payload: a frame's header (RFC 9113 section 4.1).
	Headroom = 9

	// smallWrite is the payload up to which it is cheaper to copy it to what others send than to wait for a turn.
	smallWrite = 8 << 10
	// maxPendingData is how much may be pending when payload is added to it.
	maxPendingData = 64 << 10
	// maxPendingAnswers is how much may be pending before the reader waits for it to be sent. It is so far above maxPendingData
	// that only answers fill it, and only where a peer asks without end and does not read.
	maxPendingAnswers = 192 << 10
	// maxQuantum is the payload that a stream sends in one turn; with its header it fills 16 TLS records. While others wait
	// for window it is fairQuantum.
	maxQuantum  = 16*tlsRecord - Headroom
	fairQuantum = 4*tlsRecord - Headroom
	// tlsRecord is the payload of a TLS record. Frames are sized so that with their headers they fill records.
	tlsRecord = 16 << 10
	// gatherProbe is after how many writes one yields to find out whether others have something to add, and gatherTrust how
	// often it may then turn out to be in vain.
	gatherProbe = 16
	gatherTrust = 8
	// maxFlushRounds is how often a writer goes on for others before it hands over to a goroutine.
	maxFlushRounds = 16
)

// pendingWriter lets the Framer write to what is pending. mu must be held.
type pendingWriter struct{ c *Conn }

func (w pendingWriter) Write(p []byte) (int, error) {
	w.c.appendLocked(p)
	return len(p), nil
}

// appendLocked adds bytes to what is pending. If they are too many, somebody makes us answer and does not read what we say:
// the connection ends.
func (c *Conn) appendLocked(p []byte) {
	if c.ended != nil || c.send.closed {
		return
	}
	sd := &c.send
	if len(sd.pend)-sd.pendLen < len(p) {
		if sd.pendLen+len(p) > buffer.Large {
			c.abortLocked(&violation{EnhanceYourCalm, CauseUnread, "more answers are pending than the peer reads"})
			return
		}
		bigger := buffer.Get(sd.pendLen + len(p))
		copy(bigger, sd.pend[:sd.pendLen])
		buffer.Put(sd.pend)
		sd.pend = bigger
	}
	sd.pendLen += copy(sd.pend[sd.pendLen:], p)
}

func (c *Conn) dropPendingLocked() {
	buffer.Put(c.send.pend)
	c.send.pend, c.send.pendLen, c.send.tail = nil, 0, dataFrame{}
}

// waitRoomLocked waits until header blocks may be added to what is pending.
func (c *Conn) waitRoomLocked() error {
	for c.send.pendLen > maxPendingData && c.ended == nil {
		c.kickLocked()
		if c.send.pendLen > maxPendingData && c.ended == nil {
			c.send.room.Wait()
		}
	}
	return c.ended
}

// awaitAnswersSent keeps the reader from reading on while too many answers are pending: a peer that has many questions gets
// all the answers, and one that does not read them is not read either.
func (c *Conn) awaitAnswersSent() {
	c.mu.Lock()
	for c.send.pendLen > maxPendingAnswers && c.send.writing && c.cause == nil {
		c.send.room.Wait()
	}
	c.mu.Unlock()
}

// appendHeadersLocked adds a header block: HEADERS, and CONTINUATION where it does not fit into one frame.
func (c *Conn) appendHeadersLocked(id uint32, fields []Field, end bool) {
	sd := &c.send
	sd.block.Reset()
	for i := range fields {
		c.mustFrame(sd.enc.WriteField(fields[i]))
	}
	block := sd.block.Bytes()
	n := min(len(block), int(c.peer.maxFrame))
	c.mustFrame(sd.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: block[:n], EndStream: end, EndHeaders: n == len(block),
	}))
	for block = block[n:]; len(block) > 0; block = block[n:] {
		n = min(len(block), int(c.peer.maxFrame))
		c.mustFrame(sd.framer.WriteContinuation(id, n == len(block), block[:n]))
	}
	if sd.block.Cap() > buffer.Small {
		sd.block = bytes.Buffer{}
	}
}

// putDataHeader writes the header of a DATA frame to b.
func putDataHeader(b []byte, id uint32, length int, end bool) {
	binary.BigEndian.PutUint32(b, uint32(length)<<8|uint32(http2.FrameData))
	b[4] = 0
	if end {
		b[4] = byte(http2.FlagDataEndStream)
	}
	binary.BigEndian.PutUint32(b[5:], id)
}

// appendDataLocked adds a DATA frame to what is pending.
func (c *Conn) appendDataLocked(id uint32, p []byte, end bool) {
	var h [Headroom]byte
	putDataHeader(h[:], id, len(p), end)
	at := c.send.pendLen
	c.appendLocked(h[:])
	c.appendLocked(p)
	c.send.tail = dataFrame{id, at, at + Headroom + len(p)}
}

// kickLocked sends what is pending, unless somebody is writing, who will. It unlocks mu meanwhile.
func (c *Conn) kickLocked() {
	if c.send.writing || (c.send.pendLen == 0 && !c.send.closing) || c.ended != nil {
		return
	}
	c.send.writing = true
	c.gatherLocked()
	c.passTurnLocked()
}

// gatherLocked lets goroutines that are ready to run go first if some of them have lately added to what is pending: many
// small messages then go out in one write, which saves most of their cost. The caller has the turn.
func (c *Conn) gatherLocked() {
	sd := &c.send
	sd.kicks++
	if sd.gather == 0 && sd.kicks%gatherProbe != 0 || len(c.streams) < 2 {
		return
	}
	before := sd.pendLen
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
	switch {
	case sd.pendLen > before:
		sd.gather = gatherTrust
	case sd.gather > 0:
		sd.gather--
	}
}

// kickAsyncLocked is kickLocked for those who must not block: the reader, timers. With force something happens even if
// nothing is pending.
func (c *Conn) kickAsyncLocked(force bool) {
	if c.send.writing || (c.send.pendLen == 0 && !force) || c.ended != nil {
		return
	}
	c.send.writing = true
	c.wg.Go(c.flusher)
}

// flusher has the turn, and passes it on.
func (c *Conn) flusher() {
	c.mu.Lock()
	c.passTurnLocked()
	c.mu.Unlock()
}

// passTurnLocked is called by whoever has written. It gives the turn to the stream that waits for it, or sends what was
// added meanwhile, until there is nothing.
func (c *Conn) passTurnLocked() {
	sd := &c.send
	for round := 0; ; round++ {
		switch {
		case c.ended != nil || c.cause != nil:
			c.dropPendingLocked()
			sd.writing = false
			sd.room.Broadcast()
			return
		case len(sd.turns) > 0:
			next := sd.turns[0]
			sd.turns = slices.Delete(sd.turns, 0, 1)
			next.turn = turnGranted
			next.wcond.Broadcast()
			return
		case sd.pendLen > 0 && round < maxFlushRounds:
			c.writeLocked(nil, 0, 0, 0)
		case sd.pendLen > 0:
			c.wg.Go(c.flusher)
			return
		case sd.closing && !sd.closed:
			c.closeWriteLocked()
		default:
			sd.writing = false
			sd.room.Broadcast()
			return
		}
	}
}

// writeLocked sends what is pending and then, as DATA of stream id, buf[at:at+n]. The caller has the turn. The Headroom
// bytes before at are overwritten, and payload once it is sent; what is behind is the transport's meanwhile. It unlocks mu while it
// writes.
func (c *Conn) writeLocked(buf []byte, at, n int, id uint32) {
	sd := &c.send
	pend, pendLen := sd.pend, sd.pendLen
	sd.pend, sd.pendLen, sd.tail = nil, 0, dataFrame{}
	frame := c.framePayload()
	sd.writes++
	sd.room.Broadcast()
	c.mu.Unlock()

	var err error
	if pendLen > 0 {
		_, err = c.t.Write(pend[:pendLen])
	}
	buffer.Put(pend)
	for n > 0 && err == nil {
		k := min(n, frame)
		putDataHeader(buf[at-Headroom:], id, k, false)
		_, err = c.t.Write(buf[at-Headroom : at+k])
		at, n = at+k, n-k
	}
	if err == nil {
		err = c.t.Flush()
	}

	c.mu.Lock()
	sd.writes++
	if err != nil {
		c.abortLocked(err)
	}
}

// framePayload is how much payload of a large write goes into one frame: as many whole TLS records as the peer's limit
// allows, with the frame's header.
func (c *Conn) framePayload() int {
	n := (int(c.peer.maxFrame) + Headroom) / tlsRecord * tlsRecord
	return min(n-Headroom, int(c.peer.maxFrame))
}

const (
	turnNone = iota
	turnWaiting
	turnGranted
)

// takeTurnLocked waits until the stream may write to the transport. The caller must then write, and pass the turn.
func (c *Conn) takeTurnLocked(s *Stream) error {
	if !c.send.writing {
		c.send.writing = true
		return nil
	}
	s.turn = turnWaiting
	c.send.turns = append(c.send.turns, s)
	for s.turn == turnWaiting {
		if err := s.writeErrLocked(); err != nil {
			c.send.turns = without(c.send.turns, s)
			s.turn = turnNone
			return err
		}
		s.wcond.Wait()
	}
	s.turn = turnNone
	if err := s.writeErrLocked(); err != nil {
		c.passTurnLocked()
		return err
	}
	return nil
}

// writeErrLocked says why the stream cannot be written, or returns nil.
func (s *Stream) writeErrLocked() error {
	switch {
	case s.werr != nil:
		return s.werr
	case s.localEnd:
		return ErrWriteAfterEnd
	case s.writeDeadline.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// reserveLocked takes window for up to want bytes and returns for how many. It waits while there is none. Streams that wait
// for the connection's window get it in the order in which they came.
func (s *Stream) reserveLocked(want int) (int, error) {
	sd := &s.c.send
	queued := false
	for {
		err := s.writeErrLocked()
		if err == nil && s.sendWindow > 0 && sd.window > 0 && (len(sd.windowq) == 0 || sd.windowq[0] == s) {
			if queued {
				sd.windowq = slices.Delete(sd.windowq, 0, 1)
			}
			n := min(int64(want), s.sendWindow, sd.window, maxQuantum)
			if len(sd.windowq) > 0 {
				n = min(n, fairQuantum)
			}
			s.sendWindow -= n
			sd.window -= n
			s.c.wakeWindowLocked()
			return int(n), nil
		}
		if (err != nil || s.sendWindow <= 0) && queued {
			sd.windowq = without(sd.windowq, s)
			queued = false
			s.c.wakeWindowLocked()
		}
		if err != nil {
			return 0, err
		}
		if s.sendWindow > 0 && !queued {
			sd.windowq = append(sd.windowq, s)
			queued = true
		}
		s.wcond.Wait()
	}
}

// wakeWindowLocked wakes the stream that has waited longest for the connection's window, if there is any.
func (c *Conn) wakeWindowLocked() {
	if c.send.window > 0 && len(c.send.windowq) > 0 {
		c.send.windowq[0].wcond.Broadcast()
	}
}

// without returns q without s.
func without(q []*Stream, s *Stream) []*Stream {
	if i := slices.Index(q, s); i >= 0 {
		return slices.Delete(q, i, i+1)
	}
	return q
}

// Writable tells whether WaitWritable would return at once.
func (s *Stream) Writable() bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.writableLocked()
}

func (s *Stream) writableLocked() bool {
	sd := &s.c.send
	return s.writeErrLocked() != nil || s.sendWindow > 0 && sd.window > 0 && len(sd.windowq) == 0
}

// WaitWritable blocks until a write would find the peer's windows open, so that its caller need not hold payload meanwhile,
// and returns how much a write could send at once.
func (s *Stream) WaitWritable() (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.reserveLocked(maxQuantum)
	s.sendWindow += int64(n)
	s.c.send.window += int64(n)
	s.c.wakeWindowLocked()
	return n, err
}

// WriteScratch writes buf[Headroom:] and overwrites buf, so that nothing is copied. It returns how many bytes of payload
// were sent. Otherwise it is like Write.
func (s *Stream) WriteScratch(buf []byte) (int, error) {
	n, kept, err := s.AddScratch(buf)
	if kept {
		s.c.Flush()
	}
	return n, err
}

// AddScratch is WriteScratch that may keep a small write until Conn.Flush, so that it goes out together with what follows: it
// says so by kept. The caller must then call Flush before it waits for anything.
func (s *Stream) AddScratch(buf []byte) (n int, kept bool, err error) {
	c := s.c
	at := Headroom
	c.mu.Lock()
	defer c.mu.Unlock()
	for at < len(buf) {
		if !s.writableLocked() {
			c.kickLocked()
			kept = false
		}
		n, err := s.reserveLocked(len(buf) - at)
		if err != nil {
			return at - Headroom, kept, err
		}
		if n <= smallWrite && c.send.pendLen+n <= maxPendingData {
			c.appendDataLocked(s.id, buf[at:at+n], false)
			kept = true
		} else {
			if err := c.takeTurnLocked(s); err != nil {
				c.send.window += int64(n)
				c.wakeWindowLocked()
				return at - Headroom, kept, err
			}
			c.writeLocked(buf, at, n, s.id)
			c.passTurnLocked()
			kept = false
		}
		at += n
	}
	return at - Headroom, kept, nil
}

// Add is Write that may keep what it is given until Conn.Flush, as AddScratch does.
func (s *Stream) Add(p []byte) (kept bool, err error) {
	if len(p) > smallWrite {
		_, err := s.Write(p)
		return false, err
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 {
		if !s.writableLocked() {
			c.kickLocked()
			kept = false
		}
		n, err := s.reserveLocked(len(p))
		if err != nil {
			return kept, err
		}
		if err := s.waitPendingLocked(n); err != nil {
			c.send.window += int64(n)
			c.wakeWindowLocked()
			return kept, err
		}
		c.appendDataLocked(s.id, p[:n], false)
		kept, p = true, p[n:]
	}
	return kept, nil
}

// Write sends p as DATA. It blocks while the peer's flow-control windows are closed, and may return before the bytes have
// left the process. It returns *StreamError after a reset, *ConnError after the end of the connection, ErrWriteAfterEnd
// after CloseWrite. At most one goroutine at a time may be in Write, WriteScratch, WriteHeaders or CloseWrite.
func (s *Stream) Write(p []byte) (int, error) {
	c := s.c
	done := 0
	for len(p) > smallWrite {
		n := min(len(p), maxQuantum)
		buf := buffer.Get(Headroom + n)
		copy(buf[Headroom:], p[:n])
		k, err := s.WriteScratch(buf[:Headroom+n])
		buffer.Put(buf)
		done += k
		if err != nil {
			return done, err
		}
		p = p[n:]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 {
		n, err := s.reserveLocked(len(p))
		if err != nil {
			return done, err
		}
		if err := s.waitPendingLocked(n); err != nil {
			c.send.window += int64(n)
			c.wakeWindowLocked()
			return done, err
		}
		c.appendDataLocked(s.id, p[:n], false)
		c.kickLocked()
		done, p = done+n, p[n:]
	}
	return done, nil
}

// waitPendingLocked waits until n bytes may be added to what is pending.
func (s *Stream) waitPendingLocked(n int) error {
	for s.c.send.pendLen+n > maxPendingData {
		if err := s.c.takeTurnLocked(s); err != nil {
			return err
		}
		s.c.writeLocked(nil, 0, 0, 0)
		s.c.passTurnLocked()
	}
	return nil
}

// CloseWrite ends the stream in the direction to the peer. It does nothing if that has happened.
func (s *Stream) CloseWrite() error {
	c := s.c
	c.mu.Lock()
	if s.werr != nil || s.localEnd {
		err := s.werr
		c.mu.Unlock()
		return err
	}
	if !c.send.endLast(s.id) {
		c.appendDataLocked(s.id, nil, true)
	}
	c.endLocalLocked(s)
	c.kickLocked()
	c.mu.Unlock()
	c.changed()
	return nil
}

// endLast makes what is pending end the stream, if the last of it is the stream's DATA.
func (sd *sender) endLast(id uint32) bool {
	if sd.pendLen == 0 || sd.tail.id != id || sd.tail.end != sd.pendLen {
		return false
	}
	sd.pend[sd.tail.at+4] |= byte(http2.FlagDataEndStream)
	return true
}

// endLocalLocked notes that this side has ended the stream.
func (c *Conn) endLocalLocked(s *Stream) {
	s.localEnd = true
	if s.remoteEnd {
		c.removeLocked(s)
	}
}

// WriteHeaders sends a header block: a server's response header (or one of 1xx before it), or trailers with end.
func (s *Stream) WriteHeaders(fields []Field, end bool) error {
	err := s.AddHeaders(fields, end)
	if err == nil {
		s.c.Flush()
	}
	return err
}

// AddHeaders is WriteHeaders that keeps the block until Conn.Flush, so that it goes out together with what follows. The
// caller must call Flush before it waits for anything.
func (s *Stream) AddHeaders(fields []Field, end bool) error {
	c := s.c
	c.mu.Lock()
	err := c.waitRoomLocked()
	if err == nil {
		err = s.writeErrLocked()
	}
	if err == nil && listSize(fields) > uint64(c.peer.maxHeaderList) {
		err = ErrTooLarge
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.appendHeadersLocked(s.id, fields, end)
	s.answered = true
	if end {
		c.endLocalLocked(s)
	}
	c.mu.Unlock()
	if end {
		c.changed()
	}
	return nil
}
