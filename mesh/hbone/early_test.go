package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
)

// earlyCase is a client that says something around the time at which its tunnel is opened.
type earlyCase struct {
	name   string
	said   []byte
	before bool // it is there before the request
	awaits bool // the server answers only once it has it
	reject int  // so many requests are refused, with what came with them
}

func earlyCases() []earlyCase {
	word, much := []byte("ambit"), bytes.Repeat([]byte("ambit"), 50_000)
	return []earlyCase{
		{name: "before the request", said: word, before: true, awaits: true},
		{name: "while the answer is awaited", said: word, awaits: true},
		{name: "after the answer", said: word},
		{name: "much before the request", said: much, before: true, awaits: true},
		{name: "much while the answer is awaited", said: much, awaits: true},
		{name: "refused once, before the request", said: word, before: true, awaits: true, reject: 1},
		{name: "refused twice, while the answer is awaited", said: word, awaits: true, reject: 2},
		{name: "much, refused once", said: much, before: true, awaits: true, reject: 1},
	}
}

// TestEarly wants that what the client says arrives once and whole, and where possible before the answer.
func TestEarly(t *testing.T) {
	for _, c := range earlyCases() {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c earlyCase) run(t *testing.T) {
	lent := buffer.InUse()
	parker := newParker(t)
	relayer := Relayer{Parker: parker}
	proxySide, server := tcpPair(t)
	ended := make(chan error, 2)
	var refused atomic.Int32
	asked := make(chan struct{}, 8)
	w := newWorld(t, func(_ context.Context, in *Incoming) {
		asked <- struct{}{}
		if c.awaits {
			_ = in.s.SetReadDeadline(time.Now().Add(patience))
			if err := in.s.WaitReadable(); err != nil {
				t.Errorf("nothing came with the request: %v", err)
			}
			_ = in.s.SetReadDeadline(time.Time{})
		}
		if int(refused.Add(1)) <= c.reject {
			_ = in.Reject(503, "")
			return
		}
		s, err := in.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		relayer.Start(context.Background(), proxySide, s, nil, func(err error) { ended <- err })
	}, nil)
	p := w.pool(nil)
	p.earlyFresh = time.Hour
	w.warm(p)
	client, proxied := tcpPair(t)
	say := func() {
		if _, err := client.Write(c.said); err != nil {
			t.Errorf("the client writes: %v", err)
		}
		_ = client.CloseWrite()
	}
	var counters Counters
	budget := buffer.NewBudget(1 << 20)
	early := NewEarly(proxied, budget)
	switch {
	case c.before:
		say()
		awaitReadable(t, proxied)
	case c.awaits:
		go func() {
			<-asked // the request is on its way without anything
			say()
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r := request
	r.Early = early
	s, err := p.Open(ctx, w.target(), r)
	for range c.reject {
		var status *StatusError
		if !errors.As(err, &status) {
			t.Fatalf("open: %v, want a refusal", err)
		}
		s, err = p.Open(ctx, w.target(), r)
	}
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	relayer.Start(context.Background(), proxied, s, &counters, func(err error) { ended <- err })
	if !c.before && !c.awaits {
		say()
	}
	_ = server.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, c.said) {
		t.Errorf("the server got %d bytes, %v, want the %d that the client said", len(got), err, len(c.said))
	}
	_ = server.CloseWrite()
	for range 2 {
		if err := <-ended; err != nil {
			t.Errorf("a relay ended: %v", err)
		}
	}
	if n := counters.Sent.Load(); n != uint64(len(c.said)) {
		t.Errorf("counted %d bytes, want %d", n, len(c.said))
	}
	_ = p.Close()
	await(t, "all buffers are given back", func() bool { return buffer.InUse() <= lent })
}

// awaitReadable waits until something can be read from a connection, and leaves it there.
func awaitReadable(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	err = raw.Read(func(fd uintptr) bool {
		n, _, _ := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return n > 0
	})
	_ = c.SetReadDeadline(time.Time{})
	if err != nil {
		t.Fatalf("nothing came: %v", err)
	}
}

// TestEarlyStop wants what was said back, and the connection with the rest.
func TestEarlyStop(t *testing.T) {
	for _, before := range []bool{true, false} {
		w := newWorld(t, func(_ context.Context, in *Incoming) { _ = in.Reject(503, "") }, nil)
		p := w.pool(nil)
		p.earlyFresh = time.Hour
		w.warm(p)
		client, proxied := tcpPair(t)
		say := func(word string) {
			if _, err := io.WriteString(client, word); err != nil {
				t.Fatal(err)
			}
		}
		if before {
			say("am")
			awaitReadable(t, proxied)
		}
		r := request
		r.Early = NewEarly(proxied, nil)
		if _, err := p.Open(context.Background(), w.target(), r); err == nil {
			t.Fatal("the tunnel was opened")
		}
		said, err := r.Early.Stop()
		if want := map[bool]string{true: "am", false: ""}[before]; string(said) != want || err != nil {
			t.Errorf("Stop = %q, %v, want %q", said, err, want)
		}
		say("bit")
		_ = client.CloseWrite()
		_ = proxied.SetDeadline(time.Now().Add(patience))
		if rest, err := io.ReadAll(proxied); string(rest) != "bit" || err != nil {
			t.Errorf("the rest is %q, %v", rest, err)
		}
		client.Close()
		proxied.Close()
	}
}

// TestEarlyIsNotSaidTwice wants that what may have reached an application is not said again: the peer has taken it, and the
// connection dies before the answer comes, or the answer takes too long.
func TestEarlyIsNotSaidTwice(t *testing.T) {
	for _, dies := range []bool{true, false} {
		var w *world
		var handled atomic.Int32
		taken := make(chan string, 8)
		w = newWorld(t, func(ctx context.Context, in *Incoming) {
			if handled.Add(1) == 1 {
				echo(ctx, in)
				return
			}
			word := make([]byte, len("ambit"))
			_, _ = io.ReadFull(in.s, word)
			taken <- string(word)
			if dies {
				w.mu.Lock()
				nc := w.conns[0]
				w.mu.Unlock()
				_ = nc.(*net.TCPConn).SetLinger(0)
				_ = nc.Close()
			}
			<-ctx.Done()
			_ = in.Reject(503, "")
		}, nil)
		p := w.pool(func(cfg *PoolConfig) {
			if !dies {
				cfg.Timeouts.Response = time.Second
			}
		})
		p.earlyFresh = time.Hour
		_ = w.mustOpen(p).Close()
		client, proxied := tcpPair(t)
		if _, err := io.WriteString(client, "ambit"); err != nil {
			t.Fatal(err)
		}
		awaitReadable(t, proxied)
		r := request
		r.Early = NewEarly(proxied, nil)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, err := p.Open(ctx, w.target(), r)
		cancel()
		if !errors.Is(err, ErrMayHaveArrived) {
			t.Errorf("dies %v: open: %v, want %v", dies, err, ErrMayHaveArrived)
		}
		_, _ = r.Early.Stop()
		if got := <-taken; got != "ambit" {
			t.Errorf("dies %v: the peer took %q", dies, got)
		}
		if n := handled.Load(); n != 2 {
			t.Errorf("dies %v: %d requests, want 2", dies, n)
		}
		client.Close()
		proxied.Close()
	}
}

// TestEarlyWaitsOnAnOldConnection wants that a connection that may be dead gets the request alone, which can be sent again.
func TestEarlyWaitsOnAnOldConnection(t *testing.T) {
	var w *world
	var handled atomic.Int32
	w = newWorld(t, func(ctx context.Context, in *Incoming) {
		if handled.Add(1) != 2 {
			echo(ctx, in)
			return
		}
		w.mu.Lock()
		nc := w.conns[0]
		w.mu.Unlock()
		_ = nc.(*net.TCPConn).SetLinger(0)
		_ = nc.Close()
		<-ctx.Done()
		_ = in.Reject(503, "")
	}, nil)
	p := w.pool(nil)
	p.earlyFresh = -1
	_ = w.mustOpen(p).Close()
	client, proxied := tcpPair(t)
	if _, err := io.WriteString(client, "ambit"); err != nil {
		t.Fatal(err)
	}
	awaitReadable(t, proxied)
	_ = client.CloseWrite()
	r := request
	r.Early = NewEarly(proxied, nil)
	s := w.mustOpenWith(p, r)
	ended := make(chan error, 1)
	Relayer{}.Start(context.Background(), proxied, s, nil, func(err error) { ended <- err })
	_ = client.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(client); string(got) != "ambit" || err != nil {
		t.Errorf("the echo is %q, %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the relay ended: %v", err)
	}
	if n := w.dialled(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	client.Close()
}

// warm makes a connection of which the SETTINGS have come, by a request that the server refuses without its handler.
func (w *world) warm(p *Pool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var status *StatusError
	if _, err := p.Open(ctx, w.target(), Request{Authority: "nowhere"}); !errors.As(err, &status) {
		w.t.Fatalf("open: %v, want a refusal", err)
	}
}

// TestEarlyClientLeaves wants that a client's reset ends its connection also while the peer takes no more of what the client said.
func TestEarlyClientLeaves(t *testing.T) {
	for _, n := range []int{5, 10_000} { // along with the request, and after it
		over := make(chan struct{})
		w := newWorld(t, func(ctx context.Context, in *Incoming) {
			if _, err := in.Accept(); err != nil {
				t.Errorf("accept: %v", err)
			}
			<-over // nothing is read
		}, func(cfg *ServerConfig) { cfg.H2.StreamWindow = 2 })
		p := w.pool(nil)
		p.earlyFresh = time.Hour
		w.warm(p)
		lent := buffer.InUse()
		client, proxied := tcpPair(t)
		if _, err := client.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		awaitReadable(t, proxied)
		r := request
		r.Early = NewEarly(proxied, nil)
		s := w.mustOpenWith(p, r)
		ended := make(chan error, 1)
		Relayer{stallCheck: time.Millisecond}.Start(context.Background(), proxied, s, nil, func(err error) { ended <- err })
		_ = client.SetLinger(0)
		_ = client.Close()
		select {
		case err := <-ended:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%d bytes: the relay ended: %v", n, err)
			}
		case <-time.After(patience):
			t.Errorf("%d bytes: the relay does not end", n)
			_ = p.Close()
			<-ended
		}
		close(over)
		_ = p.Close()
		await(t, "all buffers are given back", func() bool { return buffer.InUse() <= lent })
	}
}

// TestEarlyAndReset wants that what was sent with the request is counted, and its buffer given back, if the stream is reset at once.
func TestEarlyAndReset(t *testing.T) {
	lent := buffer.InUse()
	w := newWorld(t, func(_ context.Context, in *Incoming) {
		if s, err := in.Accept(); err == nil {
			s.Reset(h2.ConnectError)
		}
	}, nil)
	p := w.pool(nil)
	p.earlyFresh = time.Hour
	w.warm(p)
	client, proxied := tcpPair(t)
	if _, err := io.WriteString(client, "ambit"); err != nil {
		t.Fatal(err)
	}
	awaitReadable(t, proxied)
	r := request
	r.Early = NewEarly(proxied, nil)
	s := w.mustOpenWith(p, r)
	await(t, "the reset has come", s.s.Done)
	var counters Counters
	ended := make(chan error, 1)
	Relayer{}.Start(context.Background(), proxied, s, &counters, func(err error) { ended <- err })
	if err := <-ended; err == nil {
		t.Error("the relay ended without an error")
	}
	if n := counters.Sent.Load(); n != 5 {
		t.Errorf("counted %d bytes, want 5", n)
	}
	client.Close()
	_ = p.Close()
	_ = w.server.Close()
	await(t, "all buffers are given back", func() bool { return buffer.InUse() <= lent })
}
