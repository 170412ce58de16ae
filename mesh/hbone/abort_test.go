package hbone

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// TestAbort ends a relay that has no context by the function that Start returns: both sides are reset, and the cause is what it
// ended with. The context of the handler that accepted the stream has ended when Start returns.
func TestAbort(t *testing.T) {
	cut := errors.New("cut")
	abort, ended := make(chan func(error), 1), make(chan error, 1)
	proxySide, app := tcpPair(t)
	w := newWorld(t, func(ctx context.Context, in *Incoming) {
		s, err := in.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		f := Relayer{Parker: newParker(t)}.Start(context.Background(), proxySide, s, nil, func(err error) { ended <- err })
		if ctx.Err() == nil {
			t.Error("the handler's context has not ended")
		}
		abort <- f
	}, nil)
	s := w.mustOpen(w.pool(nil))
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = app.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(app, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	f := <-abort
	f(cut)
	if err := <-ended; err != cut {
		t.Errorf("the relay ended with %v, want the cause", err)
	}
	f(errors.New("too late")) // nothing is there any more
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the application reads %v, want a reset", err)
	}
	var se *h2.StreamError
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, &se) || se.Code != h2.ConnectError || !se.Remote {
		t.Errorf("the client reads %v, want CONNECT_ERROR", err)
	}
}
