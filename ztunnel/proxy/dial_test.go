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
	dial := func(ctx context.Context, limit time.Duration) (ok bool, err error) {
		conn, err := new(net.Dialer).DialContext(within(ctx, limit), "tcp", addr)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return err == nil, err
	}
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ok, err := dial(ctx, time.Second)
		if ok {
			continue // there is room in the queue yet
		}
		if !isTimeout(err) {
			t.Fatalf("dial: %v, want a timeout", err)
		}
		time.AfterFunc(10*time.Millisecond, cancel)
		if ok, err = dial(ctx, time.Hour); ok {
			continue
		}
		if ctx.Err() == nil {
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
