package nowait

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"
)

// pair returns two connected sockets that do not block.
func pair(t *testing.T) (a, b uintptr) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Close(fds[0])
		syscall.Close(fds[1])
	})
	return uintptr(fds[0]), uintptr(fds[1])
}

func TestReadAndWrite(t *testing.T) {
	for _, size := range []int{1, small, small + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			a, b := pair(t)
			sent := bytes.Repeat([]byte("ambit"), size/5+1)[:size]
			if n, err := Write(a, sent); n != size || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			got := make([]byte, size)
			if n, err := Read(b, got); n != size || err != nil {
				t.Fatalf("Read = %d, %v", n, err)
			}
			if !bytes.Equal(got, sent) {
				t.Error("read something else than was written")
			}
			if n, err := Read(b, got); n > 0 || err != syscall.EAGAIN {
				t.Errorf("Read of nothing = %d, %v, want EAGAIN", n, err)
			}
			syscall.Shutdown(int(a), syscall.SHUT_WR)
			if n, err := Read(b, got); n != 0 || err != nil {
				t.Errorf("Read at the end = %d, %v, want 0", n, err)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	a, _ := pair(t)
	var err error
	for err == nil {
		_, err = Write(a, make([]byte, small))
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("Write to a full socket: %v, want EAGAIN", err)
	}
	const none = 1 << 30
	if n, err := Read(none, make([]byte, 1)); n > 0 || !errors.Is(err, syscall.EBADF) {
		t.Errorf("Read of no descriptor = %d, %v, want EBADF", n, err)
	}
	if n, err := Write(none, nil); n > 0 || !errors.Is(err, syscall.EBADF) {
		t.Errorf("Write of nothing to no descriptor = %d, %v, want EBADF", n, err)
	}
}
