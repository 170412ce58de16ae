package upstream

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// TestNobodysConnection: a connection whose request got another one, and which the backend has ended since then, is given to nobody.
func TestNobodysConnection(t *testing.T) {
	backends, release := make(chan net.Conn, 3), make(chan struct{}, 3)
	release <- struct{}{}
	dials := make(chan struct{}, 3)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	m := New(Config{Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		dials <- struct{}{}
		<-release
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		other, err := ln.Accept()
		backends <- other
		return nc, err
	}})
	t.Cleanup(m.Close)
	c := &Cluster{manager: m, name: "c", known: map[endpointKey]*Endpoint{}}
	c.apply(&config.Cluster{Name: "c", Settings: &config.Settings{ConnectTimeout: time.Minute}, Endpoints: endpointsOf([]*config.Endpoint{plain(1, 1)})})
	e := mustChoose(t, c)
	client := func() codec.Client {
		got, err := e.Client(t.Context(), message.HTTP11)
		if err != nil {
			t.Error(err)
		}
		return got
	}
	first := client()
	<-dials
	defer (<-backends).Close()
	second := make(chan codec.Client)
	go func() { second <- client() }()
	<-dials
	first.Unreserve()
	if <-second != first {
		t.Fatal("the second request did not get the first one's connection")
	}
	release <- struct{}{}
	(<-backends).Close()
	for over := time.After(30 * time.Second); e.http1.dialling() > 0; {
		select {
		case <-time.After(time.Millisecond):
		case <-over:
			t.Fatal("nobody has the second connection")
		}
	}
	release <- struct{}{}
	third := client()
	select {
	case <-dials:
		defer (<-backends).Close()
	default:
		t.Error("the third request got a connection that has ended")
	}
	first.Unreserve()
	third.Unreserve()
}

func (p *pool) dialling() int {
	p.mu.Lock()
	defer p.unlock()
	return p.dials
}

// TestEnds: a connection that its backend ends is forgotten, and counts no more; Close ends the others, and waits for them.
func TestEnds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	m := New(Config{})
	c := &Cluster{manager: m, name: "c", known: map[endpointKey]*Endpoint{}}
	backend := plain(1, 1)
	backend.Address = ln.Addr().(*net.TCPAddr).AddrPort()
	c.apply(&config.Cluster{Name: "c", Settings: &config.Settings{ConnectTimeout: time.Minute}, Endpoints: endpointsOf([]*config.Endpoint{backend})})
	e := mustChoose(t, c)
	ask := func() net.Conn {
		client, err := e.Client(t.Context(), message.HTTP11)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		if _, err := io.WriteString(nc, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := client.RoundTrip(t.Context(), &message.Request{Method: "GET", Authority: "a", Path: "/"}, nil); err != nil {
			t.Fatal(err)
		}
		return nc
	}
	nc := ask()
	if n, used := e.Connections(), c.usage.connections.Load(); n != 1 || used != 1 {
		t.Errorf("%d connections, %d count", n, used)
	}
	_ = nc.Close()
	for over := time.After(30 * time.Second); e.Connections() > 0 || c.usage.connections.Load() > 0; {
		select {
		case <-time.After(time.Millisecond):
		case <-over:
			t.Fatalf("%d connections, %d count", e.Connections(), c.usage.connections.Load())
		}
	}
	ask()
	m.Close()
	if n, used := e.Connections(), c.usage.connections.Load(); n != 0 || used != 0 {
		t.Errorf("after Close: %d connections, %d count", n, used)
	}
}
