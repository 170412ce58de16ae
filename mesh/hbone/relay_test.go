package hbone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// chain is what a connection through two node proxies looks like: app - relay - tunnel - relay - app.
type chain struct {
	client, server             *net.TCPConn // the two applications' ends
	clientCounters             Counters     // of the relay at the client
	serverCounters             Counters
	clientRelayed, serverEnded chan error // what the relays returned
	tunnel                     *Stream    // the client's end of the tunnel
}

// newChain builds one. The relays' contexts are ctx.
func newChain(t *testing.T, ctx context.Context, relayer Relayer) *chain {
	t.Helper()
	return newChainWith(t, ctx, relayer, func(*chain) {})
}

// newChainWith is newChain with changes before the relays begin.
func newChainWith(t *testing.T, ctx context.Context, relayer Relayer, change func(*chain)) *chain {
	t.Helper()
	c := &chain{clientRelayed: make(chan error, 1), serverEnded: make(chan error, 1)}
	change(c)
	var proxySide *net.TCPConn
	proxySide, c.server = tcpPair(t)
	w := newWorld(t, func(hctx context.Context, in *Incoming) {
		s, err := in.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		if relayer.Parker == nil {
			c.serverEnded <- relayer.Relay(ctx, proxySide, s, &c.serverCounters)
			return
		}
		relayer.Start(ctx, proxySide, s, &c.serverCounters, func(err error) {
			if hctx.Err() == nil {
				t.Error("the handler's context has not ended")
			}
			c.serverEnded <- err
		})
	}, nil)
	p := w.pool(nil)
	var proxied *net.TCPConn
	c.client, proxied = tcpPair(t)
	r := request
	if relayer.Parker != nil {
		p.earlyFresh = time.Hour
		w.warm(p)
		r.Early = NewEarly(proxied, nil)
	}
	c.tunnel = w.mustOpenWith(p, r)
	if relayer.Parker == nil {
		go func() { c.clientRelayed <- relayer.Relay(ctx, proxied, c.tunnel, &c.clientCounters) }()
	} else {
		relayer.Start(ctx, proxied, c.tunnel, &c.clientCounters, func(err error) { c.clientRelayed <- err })
	}
	for _, end := range []*net.TCPConn{c.client, c.server} {
		_ = end.SetDeadline(time.Now().Add(4 * patience))
	}
	return c
}

// relayed waits for both relays and returns what they returned.
func (c *chain) relayed(t *testing.T) (client, server error) {
	t.Helper()
	deadline := time.After(patience)
	for range 2 {
		select {
		case client = <-c.clientRelayed:
		case server = <-c.serverEnded:
		case <-deadline:
			t.Fatal("the relays have not returned")
		}
	}
	return client, server
}

// wantClean wants that both relays end without an error.
func (c *chain) wantClean(t *testing.T) {
	t.Helper()
	if client, server := c.relayed(t); client != nil || server != nil {
		t.Errorf("relays: %v; %v", client, server)
	}
}

// relayTests run with a goroutine for each connection, and with connections that are read while their tunnel is opened and parked
// at every opportunity.
var relayTests = []struct {
	name string
	test func(*testing.T, Relayer)
}{
	{"Half close by the client", relayHalfCloseByTheClient},
	{"Half close by the server", relayHalfCloseByTheServer},
	{"Reset", relayReset},
	{"Reset after half close", relayResetAfterHalfClose},
	{"Ends with context", relayEndsWithContext},
	{"Half close timeout", relayHalfCloseTimeout},
	{"Bulk both ways", relayBulkBothWays},
	{"Slow reader", relaySlowReader},
	{"Reset while stalled", relayResetWhileStalled},
	{"Trickle", relayTrickle},
	{"Loses tunnel", relayLosesTunnel},
	{"Idle holds no buffer", idleRelayHoldsNoBuffer},
}

func TestRelay(t *testing.T) {
	for _, c := range relayTests {
		t.Run(c.name, func(t *testing.T) { c.test(t, Relayer{}) })
	}
}

func TestRelayParked(t *testing.T) {
	for _, after := range []time.Duration{time.Nanosecond, time.Millisecond} {
		for _, c := range relayTests {
			t.Run(fmt.Sprint(c.name, " after ", after), func(t *testing.T) {
				c.test(t, Relayer{Parker: newParker(t), ParkAfter: after})
			})
		}
	}
}

// newParker returns a parker for the test.
func newParker(t testing.TB) *Parker {
	t.Helper()
	p, err := NewParker()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := p.Parked(); n != 0 {
			t.Errorf("%d connections are still parked", n)
		}
		if err := p.Close(); err != nil {
			t.Errorf("close the parker: %v", err)
		}
	})
	return p
}

// Parked connections are woken by whatever may happen to them.
func TestParkedConnectionsWake(t *testing.T) {
	word := func(from, to func(*chain) *net.TCPConn) func(*testing.T, *chain) {
		return func(t *testing.T, c *chain) { exchangeBetween(t, from(c), to(c), "hello") }
	}
	client := func(c *chain) *net.TCPConn { return c.client }
	server := func(c *chain) *net.TCPConn { return c.server }
	for _, c := range []struct {
		name string
		do   func(*testing.T, *chain)
		over bool
	}{
		{"word of the client", word(client, server), false},
		{"word of the server", word(server, client), false},
		{"end of the client", func(t *testing.T, c *chain) {
			_ = c.client.CloseWrite()
			if _, err := c.server.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("server reads: %v", err)
			}
		}, false},
		{"reset by the client", func(t *testing.T, c *chain) {
			_ = c.client.SetLinger(0)
			_ = c.client.Close()
			if _, err := c.server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("server reads: %v", err)
			}
		}, true},
		{"loss of the tunnel", func(t *testing.T, c *chain) { c.tunnel.s.Conn().Close() }, true},
		{"end of both", func(t *testing.T, c *chain) { _ = c.client.Close(); _ = c.server.Close() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newParker(t)
			ch := newChain(t, context.Background(), Relayer{Parker: p, ParkAfter: time.Millisecond})
			exchangeBetween(t, ch.client, ch.server, "hello")
			for range 3 {
				await(t, "both connections are parked", func() bool { return p.Parked() == 2 })
				c.do(t, ch)
				if c.over {
					break
				}
			}
			_ = ch.client.Close()
			_ = ch.server.Close()
			ch.relayed(t)
		})
	}
}

// Connections that end after they were parked hold no goroutine until their other direction ends.
func TestEndsOfParkedConnectionsPark(t *testing.T) {
	p := newParker(t)
	ch := newChain(t, context.Background(), Relayer{Parker: p, ParkAfter: time.Millisecond})
	exchangeBetween(t, ch.client, ch.server, "hello")
	await(t, "both connections are parked", func() bool { return p.Parked() == 2 })
	p.mu.Lock()
	relays := slices.Collect(maps.Values(p.parked))
	p.mu.Unlock()
	for _, r := range relays {
		r.mu.Lock()
		r.parking.after = time.Hour // it is not silence that has it parked again
		r.mu.Unlock()
	}
	_ = ch.client.CloseWrite()
	if _, err := ch.server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("server reads: %v", err)
	}
	await(t, "both connections are parked again", func() bool { return p.Parked() == 2 })
	_ = ch.server.Close()
	ch.relayed(t)
	_ = ch.client.Close()
}

func relayHalfCloseByTheClient(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	exchangeBetween(t, c.client, c.server, "request")
	_ = c.client.CloseWrite()
	if rest, err := io.ReadAll(c.server); len(rest) != 0 || err != nil {
		t.Errorf("server reads %q, %v", rest, err)
	}
	exchangeBetween(t, c.server, c.client, "late response")
	_ = c.server.CloseWrite()
	if rest, err := io.ReadAll(c.client); len(rest) != 0 || err != nil {
		t.Errorf("client reads %q, %v", rest, err)
	}
	c.wantClean(t)
	if sent, received := c.clientCounters.Sent.Load(), c.clientCounters.Received.Load(); sent != 7 || received != 13 {
		t.Errorf("client's relay counted %d, %d", sent, received)
	}
	if sent, received := c.serverCounters.Sent.Load(), c.serverCounters.Received.Load(); sent != 13 || received != 7 {
		t.Errorf("server's relay counted %d, %d", sent, received)
	}
}

func relayHalfCloseByTheServer(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	exchangeBetween(t, c.server, c.client, "banner: the server speaks first")
	_ = c.server.CloseWrite()
	if rest, err := io.ReadAll(c.client); len(rest) != 0 || err != nil {
		t.Errorf("client reads %q, %v", rest, err)
	}
	exchangeBetween(t, c.client, c.server, "late words")
	_ = c.client.Close()
	if rest, err := io.ReadAll(c.server); len(rest) != 0 || err != nil {
		t.Errorf("server reads %q, %v", rest, err)
	}
	c.wantClean(t)
}

// exchangeBetween writes at one end and reads at the other.
func exchangeBetween(t *testing.T, from, to net.Conn, word string) {
	t.Helper()
	if _, err := io.WriteString(from, word); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != word {
		t.Fatalf("read: %q, %v; want %q", got, err, word)
	}
}

func relayReset(t *testing.T, relayer Relayer) {
	for _, c := range []struct {
		name string
		ends func(*chain) (who, other *net.TCPConn)
	}{
		{"by the client", func(c *chain) (*net.TCPConn, *net.TCPConn) { return c.client, c.server }},
		{"by the server", func(c *chain) (*net.TCPConn, *net.TCPConn) { return c.server, c.client }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := newChain(t, context.Background(), relayer)
			who, other := c.ends(ch)
			exchangeBetween(t, who, other, "hello")
			_ = who.SetLinger(0)
			_ = who.Close()
			if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other end reads: %v, want a reset", err)
			}
			near, far := ch.relayed(t)
			if c.name == "by the server" {
				near, far = far, near
			}
			if !errors.Is(near, syscall.ECONNRESET) {
				t.Errorf("relay near the reset: %v", near)
			}
			var se *h2.StreamError
			if !errors.As(far, &se) || se.Code != h2.ConnectError || !se.Remote {
				t.Errorf("relay far from the reset: %v", far)
			}
		})
	}
}

func relayResetAfterHalfClose(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	_ = c.client.CloseWrite()
	if _, err := c.server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("server reads: %v", err)
	}
	_ = c.client.SetLinger(0)
	_ = c.client.Close()
	client, server := c.relayed(t)
	var se *h2.StreamError
	if !errors.Is(client, syscall.ECONNRESET) || !errors.As(server, &se) || se.Code != h2.ConnectError {
		t.Errorf("relays: %v; %v", client, server)
	}
	if _, err := c.server.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server writes: %v, want a reset", err)
	}
}

func TestRelayPeerCancelIsCleanEnd(t *testing.T) {
	// What a peer of another make does whose application's connection broke.
	for _, code := range []h2.ErrCode{h2.Cancel, h2.NoError} {
		ended := make(chan struct{})
		w := newWorld(t, func(_ context.Context, in *Incoming) {
			s, err := in.Accept()
			if err != nil {
				return
			}
			_, _ = s.Write([]byte("last words"))
			s.Reset(code)
			close(ended)
		}, nil)
		p := w.pool(nil)
		s := w.mustOpen(p)
		<-ended
		app, proxied := tcpPair(t)
		if err := Relay(context.Background(), proxied, s, nil); err != nil {
			t.Errorf("%v: relay: %v", code, err)
		}
		if got, err := io.ReadAll(app); err != nil || string(got) != "last words" {
			t.Errorf("%v: application reads %q, %v", code, got, err)
		}
	}
}

func relayEndsWithContext(t *testing.T, relayer Relayer) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := newChain(t, ctx, relayer)
	exchangeBetween(t, c.client, c.server, "hello")
	why := errors.New("closed due to policy change")
	cancel(why)
	for _, end := range []*net.TCPConn{c.client, c.server} {
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("application reads: %v, want a reset", err)
		}
	}
	if client, server := c.relayed(t); !errors.Is(client, why) && !errors.Is(server, why) {
		t.Errorf("relays: %v; %v", client, server)
	}
}

func relayHalfCloseTimeout(t *testing.T, relayer Relayer) {
	t.Parallel()
	relayer.HalfCloseTimeout = 6 * time.Second // much more than a busy machine may stand still
	c := newChain(t, context.Background(), relayer)
	<-time.After(relayer.HalfCloseTimeout * 3 / 2) // not half-closed: no limit
	_ = c.client.CloseWrite()
	for range 8 { // half-closed and not silent: no limit
		<-time.After(relayer.HalfCloseTimeout / 5)
		exchangeBetween(t, c.server, c.client, "tick")
	}
	if _, err := io.ReadAll(c.client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client reads: %v, want a reset", err)
	}
	if client, server := c.relayed(t); !errors.Is(client, ErrHalfCloseTimeout) && !errors.Is(server, ErrHalfCloseTimeout) {
		t.Errorf("relays: %v; %v", client, server)
	}
}

func relayBulkBothWays(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	size := 24 << 20 // more than the connection's window
	if relayer.Parker != nil {
		size = 4 << 20 // what counts is how often it parks, not how much it carries
	}
	data := pattern(size)
	var wg sync.WaitGroup
	for _, end := range []*net.TCPConn{c.client, c.server} {
		wg.Go(func() {
			if _, err := end.Write(data); err != nil {
				t.Errorf("write: %v", err)
			}
			_ = end.CloseWrite()
		})
		wg.Go(func() {
			got, err := io.ReadAll(end)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	c.wantClean(t)
	if n := c.clientCounters.Sent.Load(); n != uint64(len(data)) {
		t.Errorf("counted %d", n)
	}
}

func relaySlowReader(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	data := pattern(24 << 20) // more than all windows and socket buffers
	go func() {
		_, _ = c.client.Write(data)
		_ = c.client.CloseWrite()
	}()
	last := uint64(0)
	await(t, "the flow stops", func() bool {
		<-time.After(100 * time.Millisecond)
		n := c.clientCounters.Sent.Load()
		stopped := n > 0 && n == last
		last = n
		return stopped
	})
	if last == uint64(len(data)) {
		t.Error("everything was taken while nobody reads")
	}
	got, err := io.ReadAll(c.server)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	_ = c.server.CloseWrite()
	c.wantClean(t)
}

func relayResetWhileStalled(t *testing.T, relayer Relayer) {
	relayer.stallCheck = 10 * time.Millisecond
	c := newChain(t, context.Background(), relayer)
	go func() { _, _ = c.client.Write(make([]byte, 24<<20)) }()
	last := uint64(0)
	await(t, "the flow stops", func() bool {
		<-time.After(100 * time.Millisecond)
		n := c.clientCounters.Sent.Load()
		stopped := n > 0 && n == last
		last = n
		return stopped
	})
	_ = c.client.SetLinger(0)
	_ = c.client.Close()
	client, server := c.relayed(t)
	var se *h2.StreamError
	if !errors.Is(client, syscall.ECONNRESET) || !errors.As(server, &se) && !errors.Is(server, os.ErrDeadlineExceeded) {
		t.Errorf("relays: %v; %v", client, server)
	}
}

func relayTrickle(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	data := pattern(2000)
	go func() {
		for i := range data {
			if _, err := c.client.Write(data[i : i+1]); err != nil {
				return
			}
		}
		_ = c.client.CloseWrite()
	}()
	got, err := io.ReadAll(c.server)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	_ = c.server.Close()
	c.wantClean(t)
}

func idleRelayHoldsNoBuffer(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	exchangeBetween(t, c.client, c.server, "hello")
	exchangeBetween(t, c.server, c.client, "hello yourself")
	noBuffers(t)
	_ = c.client.Close()
	_ = c.server.Close()
	c.relayed(t)
}

func relayLosesTunnel(t *testing.T, relayer Relayer) {
	c := newChain(t, context.Background(), relayer)
	exchangeBetween(t, c.client, c.server, "hello")
	c.tunnel.s.Conn().Close()
	for _, end := range []*net.TCPConn{c.client, c.server} {
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("application reads: %v, want a reset", err)
		}
	}
	client, server := c.relayed(t)
	if !errors.As(client, new(*h2.ConnError)) || !errors.As(server, new(*h2.ConnError)) {
		t.Errorf("relays: %v; %v", client, server)
	}
}

// newTCPChain is app - relay - app.
func newTCPChain(t *testing.T, ctx context.Context, relayer Relayer) (client, server *net.TCPConn, counters *Counters, done chan error) {
	t.Helper()
	client, a := tcpPair(t)
	b, server := tcpPair(t)
	counters = new(Counters)
	done = make(chan error, 1)
	go func() { done <- relayer.RelayTCP(ctx, a, b, counters) }()
	for _, end := range []*net.TCPConn{client, server} {
		_ = end.SetDeadline(time.Now().Add(patience))
	}
	return client, server, counters, done
}

func TestRelayTCP(t *testing.T) {
	client, server, counters, done := newTCPChain(t, context.Background(), Relayer{})
	exchangeBetween(t, client, server, "request")
	exchangeBetween(t, server, client, "response")
	noBuffers(t)
	_ = client.CloseWrite()
	if rest, err := io.ReadAll(server); len(rest) != 0 || err != nil {
		t.Errorf("server reads %q, %v", rest, err)
	}
	data := pattern(5 << 20)
	go func() {
		_, _ = server.Write(data)
		_ = server.Close()
	}()
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, data) {
		t.Errorf("client reads %d bytes, %v", len(got), err)
	}
	if err := <-done; err != nil {
		t.Errorf("relay: %v", err)
	}
	if s, r := counters.Sent.Load(), counters.Received.Load(); s != 7 || r != uint64(8+len(data)) {
		t.Errorf("counted %d, %d", s, r)
	}
}

func TestRelayTCPReset(t *testing.T) {
	client, server, _, done := newTCPChain(t, context.Background(), Relayer{})
	exchangeBetween(t, client, server, "hello")
	_ = server.SetLinger(0)
	_ = server.Close()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client reads: %v", err)
	}
	if err := <-done; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("relay: %v", err)
	}
}

// TestRelayTCPResetAfterTheEnd resets a connection that has ended before, on which nothing is read or written any more.
func TestRelayTCPResetAfterTheEnd(t *testing.T) {
	client, server, _, done := newTCPChain(t, context.Background(), Relayer{})
	exchangeBetween(t, client, server, "hello")
	_ = client.CloseWrite()
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("server reads: %v, want the client's end", err)
	}
	_ = client.SetLinger(0)
	_ = client.Close()
	select {
	case err := <-done:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("relay: %v, want connection reset", err)
		}
	case <-time.After(patience):
		t.Fatal("the relay goes on, for a client that has gone")
	}
	if _, err := server.Write([]byte("late")); err == nil {
		await(t, "the server is told", func() bool { _, err := server.Write([]byte("late")); return err != nil })
	}
}

func TestRelayTCPTimeoutAndContext(t *testing.T) {
	client, server, _, done := newTCPChain(t, context.Background(), Relayer{HalfCloseTimeout: 30 * time.Millisecond})
	_ = client.CloseWrite()
	if _, err := io.ReadAll(server); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server reads: %v", err)
	}
	if err := <-done; !errors.Is(err, ErrHalfCloseTimeout) {
		t.Errorf("relay: %v", err)
	}

	why := errors.New("why not")
	ctx, cancel := context.WithCancelCause(context.Background())
	client, server, _, done = newTCPChain(t, ctx, Relayer{})
	exchangeBetween(t, client, server, "hello")
	cancel(why)
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client reads: %v", err)
	}
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("relay: %v", err)
	}
}

// firsts notes first payloads.
type firsts struct {
	mu  sync.Mutex
	all []bool
}

func (f *firsts) FirstPayload(sent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, sent)
}

// TestFirstPayload: of each direction the first payload is told of, once, whoever carries it.
func TestFirstPayload(t *testing.T) {
	talk := func(t *testing.T, a, b *net.TCPConn, f *firsts) {
		t.Helper()
		buf := make([]byte, 8)
		for i, turn := range []struct{ from, to *net.TCPConn }{{b, a}, {b, a}, {a, b}, {b, a}, {a, b}} {
			if _, err := turn.from.Write(buf[:3]); err != nil {
				t.Fatalf("turn %d: %v", i, err)
			}
			if _, err := io.ReadFull(turn.to, buf[:3]); err != nil {
				t.Fatalf("turn %d: %v", i, err)
			}
		}
		a.Close()
		b.Close()
		await(t, "both directions", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Equal(f.all, []bool{false, true})
		})
	}
	t.Run("tunnel", func(t *testing.T) {
		var client, server firsts
		c := newChainWatched(t, &client, &server)
		talk(t, c.client, c.server, &client)
		c.relayed(t)
		if !slices.Equal(server.all, []bool{true, false}) {
			t.Errorf("at the server: %v", server.all)
		}
	})
	t.Run("TCP", func(t *testing.T) {
		var f firsts
		client, a := tcpPair(t)
		b, server := tcpPair(t)
		done := make(chan error, 1)
		go func() { done <- RelayTCP(t.Context(), a, b, &Counters{First: &f}) }()
		talk(t, client, server, &f)
		if err := <-done; err != nil {
			t.Logf("relay: %v", err) // both ends were closed at once
		}
	})
}

// newChainWatched is newChain whose relays tell of first payloads.
func newChainWatched(t *testing.T, client, server Watcher) *chain {
	t.Helper()
	return newChainWith(t, t.Context(), Relayer{}, func(c *chain) {
		c.clientCounters.First, c.serverCounters.First = client, server
	})
}
