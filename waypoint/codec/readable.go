package codec

import (
	"errors"
	"net"
	"os"
	"syscall"

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
	_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
}

// readable tells whether a socket has something to read, or has ended; false if the connection is no socket.
func readable(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	found := false
	err = raw.Read(func(fd uintptr) bool {
		found = peekable(fd)
		return true
	})
	return found || err != nil
}
