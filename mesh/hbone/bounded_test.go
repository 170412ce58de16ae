package hbone

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
)

// TestPoolIsBounded opens tunnels to more targets than there may be connections.
func TestPoolIsBounded(t *testing.T) {
	const most = 3
	w := newWorld(t, echo, nil)
	p := w.pool(func(cfg *PoolConfig) { cfg.MaxConnections = most })
	target := func(i int) Target {
		to := w.target()
		to.UID = fmt.Sprint("uid-", i)
		return to
	}
	var streams []*Stream
	for i := range most {
		s, err := p.Open(t.Context(), target(i), request)
		if err != nil {
			t.Fatalf("open %d: %v", i, err)
		}
		streams = append(streams, s)
	}
	_, err := p.Open(t.Context(), target(most), request)
	if de := new(DialError); !errors.As(err, &de) || de.Stage != StageConnect || !errors.Is(err, ErrTooManyConnections) {
		t.Errorf("open beyond the bound: %v, want %v", err, ErrTooManyConnections)
	}
	if n := p.Size(); n != most || w.dialled() != most {
		t.Errorf("%d connections, and %d were dialled, want %d", n, w.dialled(), most)
	}
	again, err := p.Open(t.Context(), target(0), request)
	if err != nil {
		t.Fatalf("open on a connection that is there: %v", err)
	}
	_ = again.Close()

	// One that is not used any more makes place.
	_ = streams[0].Close()
	s, err := p.Open(t.Context(), target(most), request)
	if err != nil {
		t.Fatalf("open in the place of another: %v", err)
	}
	streams[0] = s
	for _, s := range streams {
		exchange(t, s, "hello")
	}
	await(t, "the one without streams has ended", func() bool { return p.Size() == most && p.Stats().Connections == most })

	// A dial that fails gives its place back, and so does a connection that ends.
	for _, s := range streams {
		_ = s.Close()
	}
	nobody := target(most + 1)
	nobody.Addr = netip.MustParseAddrPort("127.0.0.1:1")
	for range 2 * most {
		if _, err := p.Open(t.Context(), nobody, request); err == nil || errors.Is(err, ErrTooManyConnections) {
			t.Errorf("open to where nobody is: %v", err)
		}
	}
	for i := range most {
		p.Evict(fmt.Sprint("uid-", i))
	}
	p.Evict(fmt.Sprint("uid-", most))
	await(t, "all have ended", func() bool { return p.Size() == 0 })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places != 0 || len(p.peers) != 0 {
		t.Errorf("%d places are taken by nobody, %d targets are left", p.places, len(p.peers))
	}
}

// TestServerIsBounded has more clients come than a server may have connections.
func TestServerIsBounded(t *testing.T) {
	const most = 2
	var full atomic.Int32
	w := newWorld(t, echo, func(cfg *ServerConfig) {
		cfg.MaxConnections = most
		cfg.Full = func() { full.Add(1) }
	})
	first, second, third := w.pool(nil), w.pool(nil), w.pool(nil)
	one, two := w.mustOpen(first), w.mustOpen(second)
	if _, err := third.Open(t.Context(), w.target(), request); err == nil {
		t.Error("a connection beyond the bound was taken")
	}
	if full.Load() == 0 || w.server.Size() != most {
		t.Errorf("%d connections were refused, and there are %d", full.Load(), w.server.Size())
	}
	exchange(t, one, "hello")
	_ = one.Close()
	// It has to be unused for a while.
	await(t, "an unused connection makes place", func() bool {
		s, err := third.Open(t.Context(), w.target(), request)
		if err == nil {
			exchange(t, s, "third")
			_ = s.Close()
		}
		return err == nil
	})
	exchange(t, two, "second")
	await(t, "no more than the bound are left", func() bool { return w.server.Size() <= most })
	for _, p := range []*Pool{first, second, third} {
		_ = p.Close()
	}
	await(t, "none is left", func() bool { return w.server.Size() == 0 })
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	if w.server.leaving != 0 {
		t.Errorf("%d are leaving of none", w.server.leaving)
	}
}
