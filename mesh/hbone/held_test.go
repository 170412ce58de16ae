package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// heldParty returns a party that is held back for a second before each connection, until the test ends. It is for tests in a
// bubble, where nobody is ever woken late, so that any time counts as late.
func heldParty(t *testing.T) *share.Party {
	d := share.New(share.Config{Late: -1, Least: 1e-6})
	ctx, cancel := context.WithCancel(t.Context())
	heavy, light := d.Join(), d.Join()
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	for p, work := range map[*share.Party]share.Work{heavy: time.Second, light: time.Millisecond} {
		wg.Go(func() {
			for ctx.Err() == nil {
				p.Did(work)
				time.Sleep(time.Millisecond)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	time.Sleep(2 * time.Second)
	return heavy
}

// slowReader is a connection on which everything takes 5 ms to arrive.
type slowReader struct{ net.Conn }

func (s slowReader) Read(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return s.Conn.Read(p)
}

// pipes is a listener of connections in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestHeldHandshakesAreNotSlow holds a server's handshakes back for as long as those may last that must make place for others.
func TestHeldHandshakesAreNotSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		client, own := ca.issue(t, clientID), ca.issue(t, serverID)
		var connected, refused atomic.Int32
		s := NewServer(ServerConfig{
			TLS:           func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(own, nil), nil },
			Handler:       echo,
			MaxHandshakes: 1,
			Party:         heldParty(t),
			Refused:       func(net.Conn, error) { refused.Add(1) },
		})
		ln := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Serve(t.Context(), ln) })
		const clients = 5
		for range clients {
			a, b := net.Pipe()
			defer a.Close()
			wg.Go(func() {
				ln.conns <- b
				conn := tls.Client(slowReader{a}, identity.ClientTLS(client, []identity.Identity{serverID}))
				if err := conn.Handshake(); err != nil {
					t.Errorf("handshake: %v", err)
					return
				}
				// The server's first words tell that it took the client's certificate.
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					t.Errorf("read: %v", err)
				}
				connected.Add(1)
			})
		}
		time.Sleep(3 * clients * time.Second)
		if n := connected.Load(); n != clients {
			t.Errorf("%d of %d clients were served, %d handshakes were refused", n, clients, refused.Load())
		}
		_ = s.Close()
		wg.Wait()
	})
}

// TestPeersAreNotKeptWaiting has dials that are held back, wait for the certificate and for each other: all before there is a
// connection, since its peer counts from then on.
func TestPeersAreNotKeptWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svid := newCA(t).issue(t, clientID)
		spoke := make(chan time.Duration, 2)
		var wg sync.WaitGroup
		p := NewPool(PoolConfig{
			Dial: func(context.Context, netip.AddrPort) (net.Conn, error) {
				a, b := net.Pipe()
				began := time.Now()
				wg.Go(func() {
					if _, err := b.Read(make([]byte, 1)); err == nil {
						spoke <- time.Since(began)
					}
					<-time.After(time.Second)
					_ = b.Close()
				})
				return a, nil
			},
			TLS: func(_ context.Context, t Target) (*tls.Config, error) {
				time.Sleep(time.Second)
				return identity.ClientTLS(svid, t.Expect), nil
			},
			MaxHandshakes: 1,
			Party:         heldParty(t),
		})
		for _, addr := range []string{"10.0.0.1:15008", "10.0.0.2:15008"} {
			wg.Go(func() {
				if _, err := p.Open(t.Context(), Target{Addr: netip.MustParseAddrPort(addr)}, request); err == nil {
					t.Errorf("open to %s: no error from a peer that hangs up", addr)
				}
			})
		}
		for range 2 {
			if waited := <-spoke; waited != 0 {
				t.Errorf("the peer waited for %v", waited)
			}
		}
		_ = p.Close()
		wg.Wait()
	})
}
