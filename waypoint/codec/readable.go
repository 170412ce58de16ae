package codec

import (
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// awaitReadable waits until a connection has something to read, or has ended: nil then. It is os.ErrDeadlineExceeded if the read
// deadline has passed, or the connection cannot tell without reading.
func awaitReadable(nc net.Conn) error {
	if w, ok := nc.(interface{ WaitReadable() error }); ok {
		return w.WaitReadable()
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return os.ErrDeadlineExceeded
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(peekable)
}

// peekable tells whether a read would not wait.
func peekable(fd uintptr) bool {
	var b [1]byte
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return errno != unix.EAGAIN && errno != unix.EINTR
}

// looker looks at connections on which nothing should come.
type looker struct {
	raw   syscall.RawConn // of a socket
	f     func(fd uintptr) bool
	found bool
}

// ended tells whether a connection has something to read: its end, most likely. It does not wait. False if it cannot tell.
func (l *looker) ended(nc net.Conn) bool {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok { // TLS: what it stands on knows
		nc = t.NetConn()
	}
	if r, ok := nc.(interface{ Readable() bool }); ok {
		return r.Readable()
	}
	if l.raw == nil {
		sc, ok := nc.(syscall.Conn)
		if !ok {
			return false
		}
		raw, err := sc.SyscallConn()
		if err != nil {
			return true
		}
		l.raw = raw
		l.f = func(fd uintptr) bool {
			l.found = peekable(fd)
			return true
		}
	}
	l.found = false
	return l.raw.Read(l.f) != nil || l.found
}
