// Package nowait reads and writes descriptors that never block (O_NONBLOCK), without telling Go's scheduler of it.
//
// The scheduler is told of a system call, so that it can give the processor's other goroutines to another thread if the call
// waits. Where a process is idle between messages that wakes a thread of the runtime each time, which then looks every 20 µs
// whether the call waits: for a small message it costs as much as the message. A call that moves little is over before anybody
// could have taken over. Large ones are told as usual: the same thread also has goroutines take turns.
package nowait

import (
	"syscall"
	"unsafe"
)

// small is the size of a read or write, in bytes, that takes no longer than a few microseconds.
const small = 18 << 10

// Read reads once, as syscall.Read does, and is not interrupted.
func Read(fd uintptr, p []byte) (int, error) {
	for {
		n, err := read(fd, p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

func read(fd uintptr, p []byte) (int, error) {
	if len(p) == 0 || len(p) > small {
		return syscall.Read(int(fd), p)
	}
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if errno == 0 {
		written(p[:n])
	}
	return result(n, errno)
}

// Write writes once, as syscall.Write does, and is not interrupted.
func Write(fd uintptr, p []byte) (int, error) {
	for {
		n, err := write(fd, p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

func write(fd uintptr, p []byte) (int, error) {
	if len(p) == 0 || len(p) > small {
		return syscall.Write(int(fd), p)
	}
	seen(p)
	n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return result(n, errno)
}

func result(n uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
