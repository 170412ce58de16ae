package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

func TestTunnel(t *testing.T) {
	got := make(chan *Incoming, 1)
	w := newWorld(t, func(ctx context.Context, in *Incoming) {
		got <- in
		s, err := in.Accept(Header{"baggage", "k8s.pod.name=stock"})
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		if _, err := in.Accept(); err == nil {
			t.Error("second accept")
		}
		if err := in.Reject(503, ""); err == nil {
			t.Error("reject after accept")
		}
		defer s.Close()
		_, _ = io.Copy(s, onlyReader{s})
		_ = s.CloseWrite()
	}, nil)
	p := w.pool(nil)
	s, err := p.Open(t.Context(), w.target(), Request{
		Authority: "[fd00::1]:8080", Baggage: "b", Forwarded: `for="1.2.3.4:5"`, Traceparent: "00-1-2-00", ForwardedNetwork: "net",
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Header("baggage"); got != "k8s.pod.name=stock" {
		t.Errorf("response baggage %q", got)
	}
	in := <-got
	if in.Peer() != clientID || in.PeerCertificates()[0].URIs[0].String() != clientID.String() {
		t.Errorf("peer %v", in.Peer())
	}
	for name, want := range map[string]string{
		":authority": "[fd00::1]:8080", "baggage": "b", "forwarded": `for="1.2.3.4:5"`, "traceparent": "00-1-2-00", "x-forwarded-network": "net", "nothing": "",
	} {
		if got := in.Header(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if in.Authority() != "[fd00::1]:8080" {
		t.Errorf("authority %q", in.Authority())
	}
	if in.LocalAddr() != w.addr || in.RemoteAddr() != addrPort(s.LocalAddr()) {
		t.Errorf("addresses %v, %v", in.LocalAddr(), in.RemoteAddr())
	}
	exchange(t, s, "hello")
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	_ = s.Close()
	await(t, "the stream's place is free", func() bool { return p.Stats().Streams == 0 })
	noBuffers(t)
}

func TestStatuses(t *testing.T) {
	w := newWorld(t, func(_ context.Context, in *Incoming) {
		if in.Header("baggage") == "silent" {
			return // an answer is made for it
		}
		_ = in.Reject(401, "policy shop/deny-all\n")
	}, nil)
	p := w.pool(nil)
	for _, c := range []struct {
		req    Request
		status int
		reason string
	}{
		{Request{Authority: "10.0.0.1:80"}, 401, "policy shop/deny-all?"},
		{Request{Authority: "stock.shop.svc:80"}, 401, "policy shop/deny-all?"},
		{Request{Authority: "10.0.0.1"}, 400, `parse authority "10.0.0.1": no port`},
		{Request{Authority: "10.0.0.1:80", Baggage: "silent"}, 500, "no answer"},
	} {
		_, err := p.Open(t.Context(), w.target(), c.req)
		var se *StatusError
		if !errors.As(err, &se) || se.Status != c.status || se.Reason != c.reason {
			t.Errorf("open %v: %v, want %d %s", c.req, err, c.status, c.reason)
		}
	}
	if n := w.dialled(); n != 1 {
		t.Errorf("%d connections for refusals, want 1", n)
	}
}

func TestStagesOfFailure(t *testing.T) {
	w := newWorld(t, func(ctx context.Context, in *Incoming) { <-ctx.Done() }, nil)
	other := newCA(t)
	dumb := func(serve func(net.Conn)) func(context.Context, netip.AddrPort) (net.Conn, error) {
		return func(context.Context, netip.AddrPort) (net.Conn, error) {
			a, b := tcpPair(t)
			go serve(b)
			return a, nil
		}
	}
	short := 50 * time.Millisecond
	cases := []struct {
		name, stage string
		change      func(*PoolConfig)
		change2     func(*Target)
	}{
		{"refused", StageConnect, nil, func(t *Target) { t.Addr = netip.MustParseAddrPort("127.0.0.1:1") }},
		{"connect time-out", StageConnect, func(c *PoolConfig) {
			c.Timeouts.Connect = short
			c.Dial = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}, nil},
		{"no address", StageConnect, nil, func(t *Target) { t.Addr = netip.AddrPort{} }},
		{"no certificate of ours", StageTLS, func(c *PoolConfig) {
			c.TLS = func(context.Context, Target) (*tls.Config, error) { return nil, errors.New("no certificate") }
		}, nil},
		{"another identity", StageTLS, nil, func(t *Target) { t.Expect = []identity.Identity{clientID} }},
		{"our certificate is not theirs", StageTLS, func(c *PoolConfig) {
			svid := other.issue(t, clientID)
			c.TLS = func(_ context.Context, t Target) (*tls.Config, error) {
				cfg := identity.ClientTLS(w.clientSVID, t.Expect).Clone()
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &svid.TLS, nil }
				return cfg, nil
			}
		}, nil},
		{"handshake time-out", StageTLS, func(c *PoolConfig) {
			c.Timeouts.Handshake = short
			c.Dial = dumb(func(net.Conn) {})
		}, nil},
		{"not TLS", StageTLS, func(c *PoolConfig) {
			c.Dial = dumb(func(nc net.Conn) { _, _ = io.WriteString(nc, "220 smtp.example ready\r\n") })
		}, nil},
		{"no ALPN", StageTLS, func(c *PoolConfig) { c.Dial = dumb(w.serveTLS(nil, nil)) }, nil},
		{"no SETTINGS", StageSettings, func(c *PoolConfig) {
			c.Timeouts.Settings = short
			c.Dial = dumb(w.serveTLS([]string{"h2"}, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) }))
		}, nil},
		{"closed before SETTINGS", StageSettings, func(c *PoolConfig) {
			c.Dial = dumb(w.serveTLS([]string{"h2"}, func(net.Conn) {}))
		}, nil},
		{"no response", StageResponse, func(c *PoolConfig) { c.Timeouts.Response = short }, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := w.pool(c.change)
			target := w.target()
			if c.change2 != nil {
				c.change2(&target)
			}
			_, err := p.Open(t.Context(), target, request)
			var de *DialError
			if !errors.As(err, &de) || de.Stage != c.stage {
				t.Errorf("open: %v, want a DialError at %s", err, c.stage)
			}
			if de != nil && de.Target.Addr != target.Addr {
				t.Errorf("target %v", de.Target)
			}
			await(t, "nothing is left", func() bool { st := p.Stats(); return st.Waiting == 0 && st.Dials == 0 && st.Streams == 0 })
		})
	}
}

// serveTLS does a server's handshake with a protocol list and then something else.
func (w *world) serveTLS(protos []string, then func(net.Conn)) func(net.Conn) {
	return func(nc net.Conn) {
		cfg := identity.ServerTLS(w.serverSVID, nil).Clone()
		cfg.NextProtos = protos
		conn := tls.Server(nc, cfg)
		if conn.Handshake() == nil && then != nil {
			then(conn)
		}
		_ = conn.Close()
	}
}

func TestFailureReachesAllWaiters(t *testing.T) {
	w := newWorld(t, echo, nil)
	w.hold = make(chan struct{})
	var dials atomic.Int32
	p := w.pool(func(c *PoolConfig) {
		c.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) {
			dials.Add(1)
			<-w.hold
			return nil, errors.New("no route")
		}
	})
	const n = 50
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := p.Open(t.Context(), w.target(), request)
			errs <- err
		}()
	}
	await(t, "all wait", func() bool { return p.Stats().Waiting == n })
	close(w.hold)
	for range n {
		var de *DialError
		if err := <-errs; !errors.As(err, &de) || de.Stage != StageConnect {
			t.Errorf("open: %v", err)
		}
	}
	if got := dials.Load(); got != 1 {
		t.Errorf("%d dials, want 1", got)
	}
}

func TestFirstDialerLeaves(t *testing.T) {
	w := newWorld(t, echo, nil)
	w.hold = make(chan struct{})
	p := w.pool(nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := p.Open(ctx, w.target(), request)
		first <- err
	}()
	await(t, "the first waits", func() bool { return p.Stats().Waiting == 1 })
	second := make(chan error, 1)
	go func() {
		s, err := p.Open(t.Context(), w.target(), request)
		if err == nil {
			_ = s.Close()
		}
		second <- err
	}()
	await(t, "both wait", func() bool { return p.Stats().Waiting == 2 })
	why := errors.New("changed my mind")
	cancel(why)
	if err := <-first; !errors.Is(err, why) {
		t.Errorf("first: %v", err)
	}
	close(w.hold)
	if err := <-second; err != nil {
		t.Errorf("second: %v", err)
	}
	if n := w.dialled(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestLimitsAndReuse(t *testing.T) {
	for _, c := range []struct {
		name           string
		client, server int
		want           int // connections for 12 streams
	}{
		{"client's limit", 4, 200, 3},
		{"server's limit", 100, 3, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, echo, func(cfg *ServerConfig) { cfg.MaxStreams = c.server })
			p := w.pool(func(cfg *PoolConfig) { cfg.MaxStreams = c.client })
			var streams []*Stream
			for range 12 {
				streams = append(streams, w.mustOpen(p))
			}
			if n := w.dialled(); n != c.want {
				t.Errorf("%d connections for 12 streams one after another, want %d", n, c.want)
			}
			for _, s := range streams {
				exchange(t, s, "hello")
			}
			// A full connection comes back into use.
			_ = streams[0].Close()
			streams[0] = w.mustOpen(p)
			exchange(t, streams[0], "again")
			if n := w.dialled(); n != c.want {
				t.Errorf("%d connections after one stream was replaced, want %d", n, c.want)
			}
			for _, s := range streams {
				_ = s.Close()
			}
		})
	}
}

func TestBurst(t *testing.T) {
	w := newWorld(t, echo, nil)
	w.hold = make(chan struct{})
	p := w.pool(func(cfg *PoolConfig) { cfg.MaxStreams = 10 })
	const n = 35
	var wg sync.WaitGroup
	streams := make(chan *Stream, n)
	for range n {
		wg.Go(func() {
			s, err := p.Open(t.Context(), w.target(), request)
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			streams <- s
		})
	}
	await(t, "all wait", func() bool { return p.Stats().Waiting == n })
	if d := p.Stats().Dials; d != 4 {
		t.Errorf("%d dials for %d streams of which 10 share a connection, want 4", d, n)
	}
	close(w.hold)
	wg.Wait()
	if d := w.dialled(); d != 4 {
		t.Errorf("%d connections, want 4", d)
	}
	close(streams)
	for s := range streams {
		exchange(t, s, "hello")
		_ = s.Close()
	}
}

func TestNoOversubscription(t *testing.T) {
	// A server that refuses what is above its limit would make retries; there must be none to make.
	var refused atomic.Int32
	w := newWorld(t, echo, func(cfg *ServerConfig) { cfg.MaxStreams = 5 })
	p := w.pool(nil)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			for range 5 {
				s, err := p.Open(t.Context(), w.target(), request)
				if err != nil {
					refused.Add(1)
					t.Errorf("open: %v", err)
					return
				}
				exchange(t, s, "hello")
				_ = s.CloseWrite()
				_, _ = io.Copy(io.Discard, s)
				_ = s.Close()
			}
		})
	}
	wg.Wait()
	if n := w.dialled(); n > 40 {
		t.Errorf("%d connections for 40 at a time", n)
	}
}

func TestEvict(t *testing.T) {
	w := newWorld(t, echo, nil)
	p := w.pool(nil)
	s := w.mustOpen(p)
	p.Evict("another")
	_ = w.mustOpen(p).Close()
	if n := w.dialled(); n != 1 {
		t.Fatalf("%d connections, want 1", n)
	}
	p.Evict("uid")
	s2 := w.mustOpen(p)
	if n := w.dialled(); n != 2 {
		t.Errorf("%d connections after the eviction, want 2", n)
	}
	exchange(t, s, "still there")
	exchange(t, s2, "new")
	_ = s.Close()
	await(t, "the evicted connection is closed", func() bool { return p.Stats().Connections == 1 })
	_ = s2.Close()
}

func TestIdleRelease(t *testing.T) {
	w := newWorld(t, echo, nil)
	p := w.pool(func(c *PoolConfig) { c.IdleTimeout = 30 * time.Millisecond })
	s := w.mustOpen(p)
	exchange(t, s, "hello")
	<-time.After(100 * time.Millisecond) // it must survive this long with a stream
	exchange(t, s, "still there")
	_ = s.Close()
	await(t, "the idle connection is closed", func() bool { return p.Stats().Connections == 0 && w.server.Stats().Connections == 0 })
	_ = w.mustOpen(p).Close()
}

// What a burst leaves behind goes soon, but for one connection whose streams nobody uses.
func TestSpareRelease(t *testing.T) {
	w := newWorld(t, echo, nil)
	p := w.pool(func(c *PoolConfig) { c.MaxStreams, c.SpareTimeout = 1, 30*time.Millisecond })
	var streams []*Stream
	for range 4 {
		s := w.mustOpen(p)
		exchange(t, s, "hello")
		streams = append(streams, s)
	}
	left := func(what string, want int) {
		t.Helper()
		await(t, what, func() bool { return p.Stats().Connections == want && w.server.Stats().Connections == want })
	}
	for _, s := range streams[1:] {
		_ = s.Close()
	}
	left("two of three without streams are closed", 2)
	exchange(t, streams[0], "still there")
	s := w.mustOpen(p)
	exchange(t, s, "on the one that was left")
	if n := w.dialled(); n != 4 {
		t.Errorf("%d connections, want 4", n)
	}
	_ = s.Close()
	_ = streams[0].Close()
	left("the second one is closed when the first has a stream to give", 1)
	_ = w.mustOpen(p).Close()
	if n := w.dialled(); n != 4 {
		t.Errorf("%d connections after all, want 4", n)
	}
}

func TestServerShutdownIsSeamless(t *testing.T) {
	w := newWorld(t, echo, nil)
	p := w.pool(nil)
	old := w.mustOpen(p)
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		down <- w.server.Shutdown(ctx)
	}()
	await(t, "the client knows", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.peers) == 0
	})
	exchange(t, old, "still there")
	if _, err := p.Open(t.Context(), w.target(), request); err == nil {
		t.Error("a server that is down takes new connections")
	}
	_ = old.CloseWrite()
	if _, err := io.ReadAll(old); err != nil {
		t.Errorf("read: %v", err)
	}
	_ = old.Close()
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// TestGoAway: a server that goes on has clients leave the connections that they have, with no stream cut or refused.
func TestGoAway(t *testing.T) {
	w := newWorld(t, echo, nil)
	p := w.pool(nil)
	old := w.mustOpen(p)
	w.server.GoAway()
	await(t, "the client leaves the connection", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.peers) == 0
	})
	s := w.mustOpen(p)
	exchange(t, s, "on another connection")
	exchange(t, old, "still there")
	if n := w.dialled(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	_ = old.Close()
	await(t, "the old connection is closed", func() bool { return p.Stats().Connections == 1 })
	exchange(t, s, "not this one")
	_ = s.Close()
}

func TestRetryOnDeadConnection(t *testing.T) {
	w := newWorld(t, echo, nil)
	var handled atomic.Int32
	w2 := newWorld(t, func(ctx context.Context, in *Incoming) {
		if handled.Add(1) == 2 {
			// The connection dies under the second request, before its answer.
			w.mu.Lock()
			nc := w.conns[0]
			w.mu.Unlock()
			_ = nc.(*net.TCPConn).SetLinger(0)
			_ = nc.Close()
			<-ctx.Done()
			_ = in.Reject(503, "")
			return
		}
		echo(ctx, in)
	}, nil)
	w.addr, w.clientSVID, w.serverSVID = w2.addr, w2.clientSVID, w2.serverSVID
	p := w.pool(nil)
	_ = w.mustOpen(p).Close()
	s := w.mustOpen(p)
	exchange(t, s, "hello")
	_ = s.Close()
	if n := w.dialled(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestRetryOnRefusedStream(t *testing.T) {
	var refuse atomic.Bool
	var handled atomic.Int32
	w := newWorld(t, func(ctx context.Context, in *Incoming) {
		handled.Add(1)
		if refuse.Swap(false) {
			in.answered.Store(true)
			in.s.Reset(h2.RefusedStream)
			return
		}
		echo(ctx, in)
	}, nil)
	p := w.pool(nil)
	_ = w.mustOpen(p).Close()
	refuse.Store(true)
	s := w.mustOpen(p)
	exchange(t, s, "hello")
	_ = s.Close()
	if n := w.dialled(); n != 2 || handled.Load() != 3 {
		t.Errorf("%d connections, %d requests, want 2 and 3", n, handled.Load())
	}
}

func TestDrain(t *testing.T) {
	w := newWorld(t, echo, nil)
	p := w.pool(nil)
	s := w.mustOpen(p)
	drained := make(chan error, 1)
	go func() { drained <- p.Drain(context.Background()) }()
	await(t, "nothing new is opened", func() bool {
		s, err := p.Open(t.Context(), w.target(), request)
		if err == nil {
			_ = s.Close()
		}
		return errors.Is(err, ErrPoolClosed)
	})
	exchange(t, s, "still there")
	_ = s.Close()
	if err := <-drained; err != nil {
		t.Errorf("drain: %v", err)
	}

	p = w.pool(nil)
	s = w.mustOpen(p)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := p.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drain with a stream: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("stream goes on after the drain was over")
	}
}

func TestCloseEndsWaiters(t *testing.T) {
	w := newWorld(t, echo, nil)
	w.hold = make(chan struct{})
	p := w.pool(nil)
	errs := make(chan error, 1)
	go func() {
		_, err := p.Open(t.Context(), w.target(), request)
		errs <- err
	}()
	await(t, "it waits", func() bool { return p.Stats().Waiting == 1 })
	_ = p.Close()
	if err := <-errs; !errors.Is(err, ErrPoolClosed) {
		t.Errorf("open: %v", err)
	}
}

func TestTargetsDoNotShare(t *testing.T) {
	w := newWorld(t, echo, nil)
	p := w.pool(nil)
	base := w.target()
	for i, change := range []func(*Target){
		func(*Target) {},
		func(t *Target) { t.UID = "other" },
		func(t *Target) { t.Source.Namespace = "other" },
		func(t *Target) { t.SourceAddr = netip.MustParseAddr("10.1.1.1") },
		func(t *Target) { t.Expect = []identity.Identity{clientID, serverID} },
	} {
		target := base
		change(&target)
		for range 2 {
			s, err := p.Open(t.Context(), target, request)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
		}
		if n := w.dialled(); n != i+1 {
			t.Errorf("%d connections for %d targets", n, i+1)
		}
	}
}

// TestPoolCounts: what pools that share counts have done.
func TestPoolCounts(t *testing.T) {
	w := newWorld(t, echo, nil)
	var counts PoolCounts
	first, second := w.pool(func(c *PoolConfig) { c.Counts = &counts }), w.pool(func(c *PoolConfig) { c.Counts = &counts })
	for _, p := range []*Pool{first, first, first, second} {
		w.mustOpen(p).Close()
	}
	dead := w.target()
	dead.Addr = netip.MustParseAddrPort("127.0.0.1:1")
	failing := w.pool(func(c *PoolConfig) {
		c.Counts = &counts
		c.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, errors.New("nobody is there") }
	})
	if _, err := failing.Open(t.Context(), dead, Request{Authority: "10.0.0.1:80"}); err == nil {
		t.Error("a tunnel to nobody")
	}
	failed := map[string]uint64{}
	counts.Failures(func(stage string, n uint64) { failed[stage] = n })
	if counts.Hits.Load() != 2 || counts.Waits.Load() != 3 || counts.Dials.Load() != 3 || failed[StageConnect] != 1 || failed[StageTLS] != 0 {
		t.Errorf("hits %d, waits %d, dials %d, failures %v; want 2, 3, 3 and one to connect",
			counts.Hits.Load(), counts.Waits.Load(), counts.Dials.Load(), failed)
	}
}
