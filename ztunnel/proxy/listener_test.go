package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func newTestListener(t *testing.T, ctx context.Context) *listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return newListener(ctx, ln.(*net.TCPListener), slog.New(slog.DiscardHandler))
}

// TestDrainedListenerServesItsQueue connects clients that nobody accepts, and drains: all of them are accepted, and only
// then is the port closed.
func TestDrainedListenerServesItsQueue(t *testing.T) {
	const waiting = 50
	l := newTestListener(t, t.Context())
	var clients []net.Conn
	for range waiting {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	l.drain()
	for i := range waiting {
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("after %d of %d connections: %v", i, waiting, err)
		}
		io.WriteString(c, "x")
		c.Close()
	}
	if c, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("with an empty queue: %v, %v; want net.ErrClosed", c, err)
	}
	<-l.drained
	for i, c := range clients {
		if b, err := io.ReadAll(c); err != nil || string(b) != "x" {
			t.Errorf("client %d got %q, %v", i, b, err)
		}
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
}

// TestDrainWakesAccept drains while Accept waits for a connection.
func TestDrainWakesAccept(t *testing.T) {
	l := newTestListener(t, t.Context())
	done := make(chan error)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	// Whether Accept waits already or not yet, the outcome is the same.
	l.drain()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v, want net.ErrClosed", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("accept still waits")
	}
}

// failing returns errors until they are used up.
type failing struct {
	errs  []error
	calls int
}

func (f *failing) accept() (net.Conn, error) {
	f.calls++
	if f.calls <= len(f.errs) {
		return nil, f.errs[f.calls-1]
	}
	return nil, net.ErrClosed
}

func TestAcceptWaitsForDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{errs: []error{syscall.EMFILE, syscall.ENFILE, os.NewSyscallError("accept4", syscall.ENOBUFS)}}
		l := &listener{ctx: t.Context(), logger: slog.New(slog.DiscardHandler)}
		start := time.Now()
		_, err := l.acceptWith(f.accept)
		if !errors.Is(err, net.ErrClosed) || f.calls != 4 {
			t.Errorf("%v after %d calls", err, f.calls)
		}
		if pause := time.Since(start); pause != 35*time.Millisecond { // 5 + 10 + 20
			t.Errorf("paused for %v", pause)
		}
	})
}
