package hbone

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// TestChaos runs many connections with random sizes, half-closes, resets, stalls and lost tunnels, with relays that are parked
// at every opportunity. Whatever arrives must be right, what ends cleanly must be complete, and nothing may be left at the end.
func TestChaos(t *testing.T) {
	const workers, rounds = 16, 25
	relayer := Relayer{Parker: newParker(t), ParkAfter: time.Millisecond}
	// It is no WaitGroup: a server's handler may come to its relay when those before have ended, and the wait for them has begun.
	var relays atomic.Int64
	start := func(ctx context.Context, nc *net.TCPConn, s *Stream) {
		relays.Add(1)
		relayer.Start(ctx, nc, s, nil, func(error) { relays.Add(-1) })
	}
	app := appServer(t)
	w := newWorld(t, func(ctx context.Context, in *Incoming) {
		nc, err := net.Dial("tcp", app)
		if err != nil {
			_ = in.Reject(503, err.Error())
			return
		}
		s, err := in.Accept()
		if err != nil {
			_ = nc.Close()
			return
		}
		start(ctx, nc.(*net.TCPConn), s)
	}, func(cfg *ServerConfig) {
		cfg.MaxStreams = 7
		cfg.H2 = h2.Config{StreamWindow: 100_000, ConnWindow: 200_000, MaxBuffered: 400_000}
	})
	p := w.pool(func(cfg *PoolConfig) {
		cfg.IdleTimeout = 20 * time.Millisecond
		cfg.H2 = h2.Config{StreamWindow: 80_000, ConnWindow: 300_000}
	})
	var clean atomic.Int64
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 42))
			for range rounds {
				s, err := p.Open(t.Context(), w.target(), request)
				if err != nil {
					continue // the tunnel may have been lost meanwhile
				}
				nc, proxied := tcpPair(t)
				start(context.Background(), proxied, s)
				if talk(t, rnd, nc, s) {
					clean.Add(1)
				}
				_ = nc.Close()
			}
		})
	}
	all.Wait()
	if n := clean.Load(); n < workers*rounds/3 {
		t.Errorf("%d of %d connections ended cleanly", n, workers*rounds)
	}
	ended := func() bool { return relays.Load() == 0 }
	await(t, "all relays end by themselves", ended)
	_ = p.Close()
	_ = w.server.Close()
	await(t, "those end that handlers were about to start", ended)
	noBuffers(t)
}

// appServer echoes, and closes when the client has ended.
func appServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(struct{ io.Writer }{nc}, nc)
				_ = nc.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// talk does one connection's worth of random things, and returns whether it came to a clean end.
func talk(t *testing.T, rnd *rand.Rand, nc *net.TCPConn, s *Stream) bool {
	_ = nc.SetDeadline(time.Now().Add(patience))
	size := 1 << rnd.IntN(20)
	data := pattern(size)
	fate := rnd.IntN(40)
	writer := make(chan error, 1)
	piece := 1 + rnd.IntN(size)
	pause := rnd.IntN(4) == 0
	go func() {
		for p := data; len(p) > 0; {
			n := min(piece, len(p))
			if _, err := nc.Write(p[:n]); err != nil {
				writer <- err
				return
			}
			if pause && len(p) == len(data) {
				<-time.After(3 * time.Millisecond)
			}
			p = p[n:]
		}
		writer <- nc.CloseWrite()
	}()
	switch {
	case fate == 0:
		s.s.Conn().Close() // the tunnel is lost, with all its streams
	case fate < 5:
		_ = nc.SetLinger(0)
		_ = nc.Close()
		<-writer
		return false
	}
	if pause {
		<-time.After(2 * time.Millisecond)
	}
	got, err := io.ReadAll(nc)
	if !bytes.HasPrefix(data, got) {
		t.Errorf("%d bytes came back wrong", len(got))
	}
	werr := <-writer
	if err == nil && werr == nil && len(got) != size {
		t.Errorf("clean end after %d of %d bytes", len(got), size)
	}
	return err == nil && werr == nil
}
