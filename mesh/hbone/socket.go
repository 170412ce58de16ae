package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/nowait"
)

// readSizes are the payloads that a source reads at most, by the level that traffic has reached: with an HTTP/2 frame's
// header they fill 1, 4 and 16 TLS records.
var readSizes = [...]int{1<<14 - h2.Headroom, 1<<16 - h2.Headroom, 1<<18 - h2.Headroom}

// source reads a TCP connection. It holds a buffer only while there is something to read.
type source struct {
	raw   syscall.RawConn
	level int // of readSizes
	slack int // reads in a row that a lower level would have done for

	// pause, if set, is called before each wait.
	pause func()

	try  func(fd uintptr) bool // tryRead, made once
	from int                   // where in the buffer to read to
	max  int                   // how much to read at most
	buf  []byte
	n    int
	err  error
}

func (s *source) init(raw syscall.RawConn) {
	s.raw = raw
	s.try = s.tryRead
}

// read waits until something has come, and returns it as buf[from:from+n], in a pooled buffer that the caller must give back.
// It reads at most limit bytes. It returns io.EOF at the end.
func (s *source) read(from, limit int) (buf []byte, n int, err error) {
	s.from, s.max = from, min(readSizes[s.level], limit)
	s.n, s.err = 0, nil
	err = s.raw.Read(s.try)
	if err == nil {
		err = s.err
	}
	buf, s.buf = s.buf, nil
	if err != nil {
		buffer.Put(buf)
		return nil, 0, err
	}
	s.adapt(s.n)
	return buf, s.n, nil
}

// poll is read without waiting: it returns nothing if nothing has come.
func (s *source) poll(from int) (buf []byte, n int, err error) {
	s.from, s.max = from, readSizes[s.level]
	s.n, s.err = 0, nil
	err = s.raw.Read(func(fd uintptr) bool {
		s.try(fd)
		return true
	})
	if err == nil {
		err = s.err
	}
	buf, s.buf = s.buf, nil
	if err != nil {
		buffer.Put(buf)
		return nil, 0, err
	}
	return buf, s.n, nil
}

// tryRead reads once. It returns false, holding no buffer, if there is nothing yet.
func (s *source) tryRead(fd uintptr) bool {
	s.buf = buffer.Get(s.from + s.max)
	n, err := nowait.Read(fd, s.buf[s.from:s.from+s.max])
	switch {
	case err == syscall.EAGAIN:
		buffer.Put(s.buf)
		s.buf = nil
		if s.pause != nil {
			s.pause()
		}
		return false
	case err != nil:
		s.err = os.NewSyscallError("read", err)
	case n == 0:
		s.err = io.EOF
	default:
		s.n = n
	}
	return true
}

// adapt takes the next level when a read was filled, and the one below after a while in which it would have done.
func (s *source) adapt(n int) {
	switch {
	case n == readSizes[s.level] && s.level < len(readSizes)-1:
		s.level++
		s.slack = 0
	case s.level > 0 && n <= readSizes[s.level-1]:
		if s.slack++; s.slack == 16 {
			s.level--
			s.slack = 0
		}
	default:
		s.slack = 0
	}
}

// waitReset blocks, when no more is read from the connection, until it is reset, and returns that error, or until it is
// closed here, and returns nil.
func (s *source) waitReset() error {
	var reset error
	err := s.raw.Read(func(fd uintptr) bool {
		reset = socketError(fd)
		return reset != nil
	})
	if reset == nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return reset
}

// checkReset returns an error if the connection was reset.
func (s *source) checkReset() error {
	var reset error
	if err := s.raw.Control(func(fd uintptr) { reset = socketError(fd) }); err != nil {
		return err
	}
	return reset
}

// socketError returns the error that a socket has, and takes it from it. Reading would not tell after a FIN.
func socketError(fd uintptr) error {
	no, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
	switch {
	case err != nil:
		return os.NewSyscallError("getsockopt", err)
	case no == 0:
		return nil
	case no == int(syscall.EPIPE): // what a reset after a FIN is to Linux
		return syscall.ECONNRESET
	}
	return syscall.Errno(no)
}

// trySink writes to a TCP connection without waiting.
type trySink struct {
	try func(fd uintptr) bool // tryWrite, made once
	p   []byte
	n   int
	err error
}

// write writes what the connection takes of p at once.
func (t *trySink) write(raw syscall.RawConn, p []byte) (int, error) {
	t.p, t.n, t.err = p, 0, nil
	err := raw.Write(t.try)
	t.p = nil
	if err == nil {
		err = t.err
	}
	return t.n, err
}

// tryWrite returns true always: RawConn must not wait.
func (t *trySink) tryWrite(fd uintptr) bool {
	n, err := nowait.Write(fd, t.p)
	switch {
	case err == syscall.EAGAIN:
	case err != nil:
		t.err = os.NewSyscallError("write", err)
	default:
		t.n = n
	}
	return true
}
