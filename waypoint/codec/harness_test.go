package codec

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// listen returns a listener on loopback that is closed with the test.
func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// serving is a server of connections.
type serving struct {
	addr string
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns []*Server
	ended bool
}

// serve serves the connections of a listener with a handler.
func serve(t testing.TB, cfg *ServerConfig, h Handler) *serving {
	t.Helper()
	ln := listen(t)
	s := &serving{addr: ln.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	s.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			c := NewServer(nc, cfg, h)
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			s.wg.Go(func() { _ = c.Run(ctx) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		cancel()
		s.wg.Wait()
	})
	return s
}

// each calls f for each connection that there was.
func (s *serving) each(f func(*Server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		f(c)
	}
}

// backend is a pool of connections to one address.
type backend struct {
	t     testing.TB
	addr  string
	proto message.Protocol

	mu    sync.Mutex
	conns []Client
}

// connect returns a pool that is closed with the test.
func connect(t testing.TB, addr string, proto message.Protocol) *backend {
	b := &backend{t: t, addr: addr, proto: proto}
	t.Cleanup(func() {
		for _, c := range b.conns {
			c.Close()
			select {
			case <-c.Done():
			case <-time.After(patience):
				t.Error("a connection to a backend does not end")
			}
		}
	})
	return b
}

// reserve returns a connection with room for a request.
func (b *backend) reserve() (Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		if c.Reserve() {
			return c, nil
		}
	}
	nc, err := net.Dial("tcp", b.addr)
	if err != nil {
		return nil, err
	}
	c := NewClient(nc, b.proto, nil)
	b.conns = append(b.conns, c)
	if !c.Reserve() {
		return nil, errors.New("a new connection takes no request")
	}
	return c, nil
}

// forward is a handler that sends requests to the backend.
func (b *backend) forward(x *Exchange) {
	resp, err := b.do(x)
	if err != nil {
		_ = x.Respond(&message.Response{Status: 502, Body: message.String(err.Error()), Length: int64(len(err.Error()))})
		return
	}
	_ = x.Respond(resp)
}

func (b *backend) do(x *Exchange) (*message.Response, error) {
	c, err := b.reserve()
	if err != nil {
		return nil, err
	}
	return c.RoundTrip(x.Context(), &x.Request, func(r *message.Response) { _ = x.Inform(r) })
}

// proxy serves with a handler that forwards everything to addr, and returns its address.
func proxy(t testing.TB, addr string, proto message.Protocol) *serving {
	return serve(t, nil, connect(t, addr, proto).forward)
}
