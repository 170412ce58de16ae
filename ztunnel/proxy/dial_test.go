package proxy

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDialEndsInTime dials a socket that answers nothing: its accept queue is full.
func TestDialEndsInTime(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*unix.SockaddrInet4).Port}).String()
	parent, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 10 {
		conn, err := new(net.Dialer).DialContext(within(parent, 300*time.Millisecond), "tcp", addr)
		if err == nil {
			defer conn.Close()
			continue
		}
		if !isTimeout(err) {
			t.Fatalf("dial: %v, want a timeout", err)
		}
		time.AfterFunc(10*time.Millisecond, cancel)
		if _, err := new(net.Dialer).DialContext(within(parent, time.Hour), "tcp", addr); err == nil || parent.Err() == nil {
			t.Errorf("dial: %v before the context has ended", err)
		}
		return
	}
	t.Error("the queue takes any number")
}

func TestWithinAnEarlierDeadline(t *testing.T) {
	early, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want, _ := early.Deadline()
	if got, ok := within(early, time.Hour).Deadline(); !ok || !got.Equal(want) {
		t.Errorf("deadline %v, want that of the context, %v", got, want)
	}
	if _, ok := within(t.Context(), 0).Deadline(); ok {
		t.Error("a deadline without a limit")
	}
}
