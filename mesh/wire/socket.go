package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/nowait"
)

// TLS record sizes (RFC 8446 section 5.2).
const (
	recordHeader     = 5
	maxRecordPayload = 16384
	maxCiphertext    = maxRecordPayload + 256
)

// maxCorked is how many bytes of records wait for Flush before they are sent anyway.
const maxCorked = buffer.Large - recordHeader - maxCiphertext

// socket is the connection beneath the records. To crypto/tls it hands them out one by one, so that that never holds more than
// the one it works on and the rest can be counted; ours are opened where they were read to. It gathers records that are
// written until Flush.
//
// One goroutine at a time reads. Several may write.
type socket struct {
	nc     net.Conn
	raw    syscall.RawConn // nil: nc has none, or its descriptor does not do non-blocking reads
	waiter readWaiter      // nil: nc has none

	// Of the reader.
	in     []byte // pooled; nil while r == w
	r, w   int    // in[r:w] is unread
	inSize int    // how much the next read may take, by what came lately
	left   int    // bytes of the current record that are not handed out yet
	fill1  func(fd uintptr) bool
	fillN  int
	fillE  error

	// Of who is in flush.
	send1   func(fd uintptr) bool
	sending []byte // what is left
	sendE   error

	mu       sync.Mutex // guards what follows; not held across I/O
	out      []byte     // pooled; nil while empty
	outLen   int
	corked   bool      // out waits for flush
	shaking  bool      // what is written is the handshake's
	owed     bool      // the handshake's last flight is in out
	flushing bool      // somebody is in flush and will take out what comes
	sent     sync.Cond // out was taken to be sent, or will not be
	outErr   error
}

// readWaiter is a connection that can wait for data without a buffer.
type readWaiter interface{ WaitReadable() error }

func newSocket(nc net.Conn) *socket {
	s := &socket{nc: nc, inSize: buffer.Small, shaking: true}
	s.sent.L = &s.mu
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw = raw
			s.fill1, s.send1 = s.tryFill, s.trySend
		}
	}
	s.waiter, _ = nc.(readWaiter)
	return s
}

// Read hands out bytes of one record at most.
func (s *socket) Read(p []byte) (int, error) {
	if s.left == 0 {
		if s.w-s.r < recordHeader {
			if err := s.flushOwed(); err != nil {
				return 0, err
			}
		}
		for s.w-s.r < recordHeader {
			if err := s.fill(); err != nil {
				return 0, err
			}
		}
		s.left = recordHeader + int(binary.BigEndian.Uint16(s.in[s.r+3:]))
	}
	if s.r == s.w {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.in[s.r:min(s.w, s.r+s.left)])
	s.r += n
	s.left -= n
	s.release()
	return n, nil
}

// buffered returns how many bytes of whole records can be read without blocking.
func (s *socket) buffered() int {
	if s.left > s.w-s.r {
		return 0
	}
	at := s.r + s.left
	for s.w-at >= recordHeader {
		next := at + recordHeader + int(binary.BigEndian.Uint16(s.in[at+3:]))
		if next > s.w {
			break
		}
		at = next
	}
	return at - s.r
}

// recordReady tells whether a whole record, or a broken one, could be read without blocking.
func (s *socket) recordReady() bool {
	if s.left > 0 {
		return s.left <= s.w-s.r
	}
	if s.w-s.r < recordHeader {
		return false
	}
	n := int(binary.BigEndian.Uint16(s.in[s.r+3:]))
	return n > maxCiphertext || recordHeader+n <= s.w-s.r
}

// waitReadable blocks until recordReady. While nothing has come it holds no buffer.
func (s *socket) waitReadable() error {
	for !s.recordReady() {
		if err := s.fill(); err != nil {
			return err
		}
	}
	return nil
}

// fill reads at least one byte more. The buffer has room for a whole record from r on when it returns.
func (s *socket) fill() error {
	switch {
	case s.in == nil:
	case len(s.in) < s.inSize:
		bigger := buffer.Get(s.inSize)
		s.w = copy(bigger, s.in[s.r:s.w])
		s.r = 0
		buffer.Put(s.in)
		s.in = bigger
	case len(s.in)-s.r < recordHeader+maxCiphertext:
		s.w = copy(s.in, s.in[s.r:s.w])
		s.r = 0
	}
	var n int
	var err error
	if s.raw != nil {
		s.fillN, s.fillE = 0, nil
		if err = s.raw.Read(s.fill1); err == nil {
			n, err = s.fillN, s.fillE
		}
	} else {
		if s.in == nil {
			if s.waiter != nil {
				if err := s.waiter.WaitReadable(); err != nil {
					return err
				}
			}
			s.in = buffer.Get(s.inSize)
		}
		n, err = s.nc.Read(s.in[s.w:])
	}
	s.adapt(n)
	s.w += n
	if n > 0 {
		return nil
	}
	s.release()
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// tryFill is fill's read of a descriptor. It returns false, holding no buffer, if there is nothing yet.
func (s *socket) tryFill(fd uintptr) bool {
	if s.in == nil {
		s.in = buffer.Get(s.inSize)
	}
	n, err := nowait.Read(fd, s.in[s.w:])
	switch {
	case err == syscall.EAGAIN:
		s.release()
		return false
	case err != nil:
		s.fillE = os.NewSyscallError("read", err)
	case n == 0:
		s.fillE = io.EOF
	default:
		s.fillN = n
	}
	return true
}

// adapt chooses the next buffer by what one read brought: more where there was no room for all, less where there was far
// too much.
func (s *socket) adapt(n int) {
	switch {
	case s.in != nil && n == len(s.in)-s.w && len(s.in) >= s.inSize:
		s.inSize = min(4*s.inSize, buffer.Large)
	case n < s.inSize/16:
		s.inSize = max(s.inSize/4, buffer.Small)
	}
}

// cut tells an end in the middle of a record from one between two.
func (s *socket) cut(err error) error {
	if err == io.EOF && s.w > s.r {
		return io.ErrUnexpectedEOF
	}
	return err
}

// release gives the buffer back if nothing is in it.
func (s *socket) release() {
	if s.r == s.w && s.in != nil {
		buffer.Put(s.in)
		s.in, s.r, s.w = nil, 0, 0
	}
}

// Write takes p, and sends it unless the socket is corked.
func (s *socket) Write(p []byte) (int, error) {
	n := len(p)
	for {
		if err := s.lockRoom(min(len(p), 1), len(p)); err != nil {
			return 0, err
		}
		k := copy(s.out[s.outLen:], p)
		s.outLen += k
		s.owed = s.owed || s.shaking
		p = p[k:]
		flush := !s.corked || s.outLen > maxCorked || len(p) > 0
		s.mu.Unlock()
		if flush {
			if err := s.flush(); err != nil {
				return 0, err
			}
		}
		if len(p) == 0 {
			return n, nil
		}
	}
}

// lockRoom returns with mu held and room for n bytes in out, at most buffer.Large, or with an error. There is room for all
// bytes if they are not too many. It sends what is in the way.
func (s *socket) lockRoom(n, all int) error {
	s.mu.Lock()
	for s.outErr == nil {
		room := s.roomLocked()
		switch {
		case room >= n && (room >= all || len(s.out) == buffer.Large) && s.out != nil:
			return nil
		case s.out == nil:
			s.out = buffer.Get(max(n, all))
		case s.outLen+n <= buffer.Large:
			bigger := buffer.Get(max(min(4*len(s.out), buffer.Large), s.outLen+max(n, all)))
			copy(bigger, s.out[:s.outLen])
			buffer.Put(s.out)
			s.out = bigger
		case s.flushing:
			s.sent.Wait()
		default:
			_ = s.flushLocked()
		}
	}
	defer s.mu.Unlock()
	return s.outErr
}

func (s *socket) roomLocked() int { return len(s.out) - s.outLen }

// flush sends what Write has taken. If another goroutine is already in it, that one sends it.
func (s *socket) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushLocked()
}

// flushOwed is for a reader that is about to wait: the peer may wait for the handshake's last flight. What came later is its
// writer's business. A reader that sent that would wait until the peer reads, which may do the same.
func (s *socket) flushOwed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.owed {
		return s.outErr
	}
	return s.flushLocked()
}

// shaken says that the handshake is over.
func (s *socket) shaken() {
	s.mu.Lock()
	s.shaking = false
	s.mu.Unlock()
}

func (s *socket) flushLocked() error {
	if s.flushing {
		return s.outErr
	}
	s.flushing = true
	for s.outLen > 0 && s.outErr == nil {
		b, n := s.out, s.outLen
		s.out, s.outLen, s.owed = nil, 0, false
		s.sent.Broadcast()
		s.mu.Unlock()
		err := s.send(b[:n])
		buffer.Put(b)
		s.mu.Lock()
		if err != nil && s.outErr == nil {
			s.outErr = err
		}
	}
	s.flushing = false
	s.sent.Broadcast()
	return s.outErr
}

// send sends all of p.
func (s *socket) send(p []byte) error {
	if s.raw == nil {
		_, err := s.nc.Write(p)
		return err
	}
	s.sending, s.sendE = p, nil
	err := s.raw.Write(s.send1)
	s.sending = nil
	if err == nil {
		err = s.sendE
	}
	return err
}

// trySend is send's write to a descriptor. It returns false if it takes no more for now.
func (s *socket) trySend(fd uintptr) bool {
	for len(s.sending) > 0 {
		n, err := nowait.Write(fd, s.sending)
		switch {
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			s.sendE = os.NewSyscallError("write", err)
			return true
		}
		s.sending = s.sending[n:]
	}
	return true
}

// drain flushes, and waits until what another goroutine sends is gone.
func (s *socket) drain() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.flushing && s.outErr == nil {
		s.sent.Wait()
	}
	return s.flushLocked()
}

// cork makes Write wait for flush, or no more.
func (s *socket) cork(on bool) {
	s.mu.Lock()
	s.corked = on
	s.mu.Unlock()
}

// drop gives back the buffers. Neither Read nor Write may be under way or come after it.
func (s *socket) drop() {
	s.mu.Lock()
	buffer.Put(s.out)
	s.out, s.outLen = nil, 0
	if s.outErr == nil {
		s.outErr = net.ErrClosed
	}
	s.sent.Broadcast()
	s.mu.Unlock()
	buffer.Put(s.in)
	s.in, s.r, s.w = nil, 0, 0
}

func (s *socket) Close() error { return s.nc.Close() }

// closeWrite ends the direction to the peer, where the connection beneath can do that.
func (s *socket) closeWrite() error {
	if cw, ok := s.nc.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (s *socket) LocalAddr() net.Addr                { return s.nc.LocalAddr() }
func (s *socket) RemoteAddr() net.Addr               { return s.nc.RemoteAddr() }
func (s *socket) SetDeadline(t time.Time) error      { return s.nc.SetDeadline(t) }
func (s *socket) SetReadDeadline(t time.Time) error  { return s.nc.SetReadDeadline(t) }
func (s *socket) SetWriteDeadline(t time.Time) error { return s.nc.SetWriteDeadline(t) }
