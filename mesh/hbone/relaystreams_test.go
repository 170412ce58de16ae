package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
)

// middle is a tunnel through a proxy that joins two: client - RelayStreams - server.
type middle struct {
	client, server *Stream
	counters       Counters
	ended          chan error // what the relay returned
}

func newMiddle(t *testing.T, ctx context.Context, relayer Relayer) *middle {
	t.Helper()
	m := &middle{ended: make(chan error, 1)}
	arrived := make(chan *Stream, 1)
	backend := newWorld(t, func(hctx context.Context, in *Incoming) {
		s, err := in.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		arrived <- s
		<-hctx.Done() // the test closes it
	}, nil)
	onward := backend.pool(nil)
	proxy := newWorld(t, func(_ context.Context, in *Incoming) {
		b := backend.mustOpen(onward)
		a, err := in.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		m.ended <- relayer.RelayStreams(ctx, a, b, &m.counters)
	}, nil)
	m.client = proxy.mustOpen(proxy.pool(nil))
	m.server = <-arrived
	for _, s := range []*Stream{m.client, m.server} {
		_ = s.SetDeadline(time.Now().Add(2 * patience))
	}
	return m
}

func (m *middle) mustEnd(t *testing.T) error {
	t.Helper()
	select {
	case err := <-m.ended:
		return err
	case <-time.After(patience):
		t.Fatal("the relay does not end")
		return nil
	}
}

func TestRelayStreams(t *testing.T) {
	m := newMiddle(t, context.Background(), Relayer{})
	exchangeEnds(t, m.server, m.client, "220 the server speaks first")
	exchangeEnds(t, m.client, m.server, "then the client")

	// One direction ends, the other goes on with more than all windows hold.
	if err := m.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read after the client's end: %v; want EOF", err)
	}
	sent := pattern(24 << 20)
	wrote := make(chan error, 1)
	go func() {
		_, err := m.server.Write(sent)
		if err == nil {
			err = m.server.CloseWrite()
		}
		wrote <- err
	}()
	got, err := io.ReadAll(onlyReader{m.client})
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read %d bytes, %v; want the %d that were written", len(got), err, len(sent))
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if err := m.mustEnd(t); err != nil {
		t.Errorf("the relay ended with %v", err)
	}
	if s, r := m.counters.Sent.Load(), m.counters.Received.Load(); s != 15 || r != 27+24<<20 {
		t.Errorf("counted %d sent, %d received", s, r)
	}
	noBuffers(t)
}

// exchangeEnds writes to one end and wants it at the other.
func exchangeEnds(t *testing.T, from, to *Stream, word string) {
	t.Helper()
	if _, err := io.WriteString(from, word); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != word {
		t.Fatalf("read %q, %v; want %q", got, err, word)
	}
}

// TestRelayStreamsReset: whichever end resets, before or after its clean end, the other sees a reset.
func TestRelayStreamsReset(t *testing.T) {
	for _, tt := range []struct {
		name              string
		byServer, ended   bool
		code              h2.ErrCode
		wantReset, wantOK bool
	}{
		{name: "client", code: h2.ConnectError, wantReset: true},
		{name: "server", byServer: true, code: h2.ConnectError, wantReset: true},
		{name: "client after its end", ended: true, code: h2.ConnectError, wantReset: true},
		{name: "server after its end", byServer: true, ended: true, code: h2.ConnectError, wantReset: true},
		{name: "client gives up", code: h2.Cancel, wantOK: true},
		{name: "client gives up after its end", ended: true, code: h2.Cancel, wantOK: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMiddle(t, context.Background(), Relayer{})
			from, to := m.client, m.server
			if tt.byServer {
				from, to = to, from
			}
			exchangeEnds(t, from, to, "word")
			if tt.ended {
				if err := from.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if _, err := to.Read(make([]byte, 1)); err != io.EOF {
					t.Fatalf("read: %v; want EOF", err)
				}
			}
			from.Reset(tt.code)
			if err := m.mustEnd(t); (err == nil) != tt.wantOK {
				t.Errorf("the relay ended with %v", err)
			}
			err := error(nil)
			await(t, "the other end is told", func() bool {
				_, err = to.Write([]byte("x"))
				return err != nil
			})
			var se *h2.StreamError
			if !errors.As(err, &se) || !se.Remote || (se.Code == h2.ConnectError) != tt.wantReset {
				t.Errorf("the other end sees %v", err)
			}
			noBuffers(t)
		})
	}
}

// TestRelayStreamsPassesOnWhatCameFirst: a server that has said everything, and wants to hear no more, resets its stream with
// NO_ERROR. The client gets all of what was said, however slowly it reads and even if it still writes; of a reset with an
// error it is told.
func TestRelayStreamsPassesOnWhatCameFirst(t *testing.T) {
	for _, tt := range []struct {
		name   string
		writes bool
		code   h2.ErrCode
	}{
		{name: "the client writes", writes: true, code: h2.NoError},
		{name: "the client is slow", code: h2.NoError},
		{name: "an error", code: h2.ConnectError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMiddle(t, context.Background(), Relayer{})
			exchangeEnds(t, m.client, m.server, "word")
			sent := pattern(h2.DefaultStreamWindow * 3 / 2) // more than the client's window, and less than both
			if _, err := m.server.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := m.server.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			m.server.Reset(tt.code)
			if tt.writes {
				if _, err := m.client.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			if tt.code != h2.NoError {
				if err := m.mustEnd(t); !errors.Is(err, errBehind) {
					t.Errorf("the relay ended with %v; want %v", err, errBehind)
				}
				var se *h2.StreamError
				if got, err := io.ReadAll(onlyReader{m.client}); !errors.As(err, &se) || se.Code != h2.ConnectError {
					t.Errorf("read %d bytes, %v; want a reset", len(got), err)
				}
				noBuffers(t)
				return
			}
			select {
			case err := <-m.ended:
				t.Fatalf("the relay ended before everything was passed on, with %v", err)
			case <-time.After(3 * resetGrace / 2):
			}
			got, err := io.ReadAll(onlyReader{m.client})
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("read %d bytes, %v; want the %d that were written", len(got), err, len(sent))
			}
			if err := m.mustEnd(t); err != nil {
				t.Errorf("the relay ended with %v", err)
			}
			m.client.Close()
			noBuffers(t)
		})
	}
}

// TestRelayStreamsHoldsBack: who does not read makes the writer wait, and both ends of the proxy hold no more than windows.
func TestRelayStreamsHoldsBack(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	m := newMiddle(t, ctx, Relayer{})
	_ = m.client.SetWriteDeadline(time.Now().Add(time.Second))
	n, err := m.client.Write(make([]byte, 64<<20))
	if err == nil {
		t.Fatal("64 MiB were taken that nobody reads")
	}
	if most := 3 * h2.DefaultStreamWindow; n > most {
		t.Errorf("%d bytes were taken that nobody reads; want at most %d", n, most)
	}
	if got := buffer.InUse(); got > 64<<20 {
		t.Errorf("%d bytes of buffers are in use", got)
	}
	why := errors.New("the proxy ends")
	cancel(why)
	if err := m.mustEnd(t); !errors.Is(err, why) {
		t.Errorf("the relay ended with %v; want %v", err, why)
	}
	m.server.Close()
	noBuffers(t)
}

func TestRelayStreamsHalfClosedTimeout(t *testing.T) {
	m := newMiddle(t, context.Background(), Relayer{HalfCloseTimeout: time.Millisecond})
	if err := m.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := m.mustEnd(t); !errors.Is(err, ErrHalfCloseTimeout) {
		t.Errorf("the relay ended with %v; want %v", err, ErrHalfCloseTimeout)
	}
}
