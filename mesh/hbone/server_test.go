//lint:file-ignore SA1019 the peer of these tests is x/net/http2 itself, whose own types speak CONNECT without net/http between

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

func (w *world) rawDial() net.Conn {
	w.t.Helper()
	nc, err := net.Dial("tcp", w.addr.String())
	if err != nil {
		w.t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	w.t.Cleanup(func() { _ = nc.Close() })
	return nc
}

// tlsDial connects as a client with an SVID.
func (w *world) tlsDial(svid *identity.SVID) *tls.Conn {
	return tls.Client(w.rawDial(), identity.ClientTLS(svid, []identity.Identity{serverID}))
}

func TestGarbageOnThePort(t *testing.T) {
	w := newWorld(t, echo, nil)
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05hello", strings.Repeat("\x00", 5000), "\x16\x03\x01\xff\xff"} {
		nc := w.rawDial()
		if _, err := io.WriteString(nc, garbage); err != nil {
			t.Fatal(err)
		}
		_ = nc.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, nc); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q: %v", garbage[:5], err)
		}
	}
	conn := w.tlsDial(w.clientSVID)
	if _, err := io.WriteString(conn, strings.Repeat("garbage", 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("garbage inside TLS: %v", err)
	}
	exchange(t, w.mustOpen(w.pool(nil)), "others do not notice")
	noBuffers(t)
}

func TestClientsThatAreRefused(t *testing.T) {
	w := newWorld(t, func(context.Context, *Incoming) { t.Error("handler called") }, nil)
	foreign := w.ca.issue(t, identity.Identity{TrustDomain: "elsewhere", Namespace: "shop", ServiceAccount: "cart"})
	otherCA := newCA(t).issue(t, clientID)
	for name, conn := range map[string]*tls.Conn{
		"no certificate": tls.Client(w.rawDial(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}),
		"another CA": func() *tls.Conn {
			cfg := identity.ClientTLS(w.clientSVID, []identity.Identity{serverID}).Clone()
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &otherCA.TLS, nil }
			return tls.Client(w.rawDial(), cfg)
		}(),
		"another trust domain": w.tlsDial(foreign),
		"no ALPN": func() *tls.Conn {
			cfg := identity.ClientTLS(w.clientSVID, []identity.Identity{serverID}).Clone()
			cfg.NextProtos = nil
			return tls.Client(w.rawDial(), cfg)
		}(),
	} {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the server answers", name)
		}
	}
}

func TestSlowHandshakes(t *testing.T) {
	w := newWorld(t, echo, func(cfg *ServerConfig) { cfg.HandshakeTimeout = 100 * time.Millisecond })
	nc := w.rawDial()
	start := time.Now()
	if _, err := io.Copy(io.Discard, nc); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	if took := time.Since(start); took > DefaultHandshakeTimeout {
		t.Errorf("silent client was dropped after %v", took)
	}
}

func TestManySlowHandshakesMakePlace(t *testing.T) {
	w := newWorld(t, echo, func(cfg *ServerConfig) {
		cfg.MaxHandshakes = 4
		cfg.HandshakeTimeout = time.Hour
	})
	for range 10 {
		w.rawDial()
	}
	await(t, "all places are taken", func() bool { return w.server.Stats().Handshakes == 4 })
	start := time.Now()
	exchange(t, w.mustOpen(w.pool(nil)), "hello")
	if took := time.Since(start); took > patience/2 {
		t.Errorf("a good client waited %v", took)
	}
	if n := w.server.Stats().Handshakes; n > 4 {
		t.Errorf("%d handshakes, at most 4", n)
	}
}

// scarce is a listener that runs out of descriptors for a while.
type scarce struct {
	net.Listener
	mu    sync.Mutex
	fails int
	calls int
}

func (s *scarce) Accept() (net.Conn, error) {
	s.mu.Lock()
	s.calls++
	fail := s.calls <= s.fails
	s.mu.Unlock()
	if fail {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return s.Listener.Accept()
}

func TestAcceptPausesWhenDescriptorsAreScarce(t *testing.T) {
	w := newWorld(t, echo, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scarce{Listener: ln, fails: 5}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(ctx, s) }()
	w.addr = addrPort(ln.Addr())
	start := time.Now()
	exchange(t, w.mustOpen(w.pool(nil)), "hello")
	if took := time.Since(start); took < (5+10+20+40+80)*time.Millisecond {
		t.Errorf("accepted after %v: no pauses", took)
	}
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("serve: %v", err)
	}
}

func TestServeConn(t *testing.T) {
	w := newWorld(t, echo, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w.addr = addrPort(ln.Addr())
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		served <- w.server.ServeConn(ctx, nc)
	}()
	s := w.mustOpen(w.pool(nil))
	exchange(t, s, "hello")
	cancel()
	if err := <-served; !errors.Is(err, h2.ErrClosed) {
		t.Errorf("serve: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, new(*h2.ConnError)) {
		t.Errorf("read: %v", err)
	}
}

func TestHandlerLearnsOfReset(t *testing.T) {
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	w := newWorld(t, func(ctx context.Context, in *Incoming) {
		cancel() // the client gives up once it is asked for
		select {
		case <-ctx.Done():
		case <-time.After(patience):
		}
		ended <- ctx.Err()
		if _, err := in.Accept(); err == nil {
			t.Error("accept after the client's reset")
		}
	}, nil)
	p := w.pool(nil)
	if _, err := p.Open(ctx, w.target(), request); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler was not told")
	}
}

func TestContextOutlivesAccept(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld(t, func(ctx context.Context, in *Incoming) {
		s, err := in.Accept()
		if err != nil {
			return
		}
		_, err = io.ReadAll(s)
		if err == nil || ctx.Err() != nil {
			t.Errorf("read %v, context %v", err, ctx.Err())
		}
		ended <- err
	}, nil)
	s := w.mustOpen(w.pool(nil))
	s.Reset(h2.ConnectError)
	<-ended
}

func TestShutdownWaits(t *testing.T) {
	w := newWorld(t, echo, nil)
	s := w.mustOpen(w.pool(nil))
	silent := w.rawDial()
	await(t, "the silent client is there", func() bool { return w.server.Stats().Handshakes == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 connections") {
		t.Errorf("shutdown with a stream open: %v", err)
	}
	exchange(t, s, "still there")
	if _, err := net.Dial("tcp", w.addr.String()); err == nil {
		t.Error("the server still listens")
	}
	_ = silent.Close()
	_ = s.Close()
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.server.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// The peers of a real mesh are of other makes; x/net/http2 is the one at hand.
func TestServerWithNetClient(t *testing.T) {
	w := newWorld(t, echo, nil)
	tr := &http2.Transport{DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) {
		return w.tlsDial(w.clientSVID), nil
	}}
	defer tr.CloseIdleConnections()
	pr, pw := io.Pipe()
	req := &http.Request{Method: "CONNECT", URL: &url.URL{Scheme: "https", Host: "h"}, Host: "10.0.0.1:80", Body: pr, Header: http.Header{}}
	resp, err := tr.RoundTrip(req.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
	for range 100 {
		exchange(t, struct {
			io.Reader
			io.Writer
		}{resp.Body, pw}, strings.Repeat("hello", 2000))
	}
	_ = pw.Close()
	if n, err := resp.Body.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}

	req = &http.Request{Method: "GET", URL: &url.URL{Scheme: "https", Host: "h"}, Header: http.Header{}}
	resp, err = tr.RoundTrip(req.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 400 || !strings.Contains(resp.Header.Get("x-ambit-reason"), "CONNECT") {
		t.Errorf("GET: %d %v", resp.StatusCode, resp.Header)
	}
}

func TestPoolWithNetServer(t *testing.T) {
	w := newWorld(t, echo, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	srv := &http2.Server{MaxConcurrentStreams: 5}
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != "CONNECT" || r.Host != "10.0.0.1:80" || r.Header.Get("Baggage") != "b" {
			t.Errorf("request %s %s %v", r.Method, r.Host, r.Header)
		}
		rc := http.NewResponseController(rw)
		_ = rc.Flush()
		buf := make([]byte, 4096)
		for {
			n, err := r.Body.Read(buf)
			_, _ = rw.Write(buf[:n])
			_ = rc.Flush()
			if err != nil {
				return
			}
		}
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				conn := tls.Server(nc, identity.ServerTLS(w.serverSVID, nil))
				if err := conn.Handshake(); err != nil {
					t.Errorf("handshake: %v", err)
				}
				srv.ServeConn(conn, &http2.ServeConnOpts{Handler: handler})
			})
		}
	}()
	w.addr = addrPort(ln.Addr())
	p := w.pool(nil)
	defer p.Close()
	var streams []*Stream
	for range 12 {
		s, err := p.Open(t.Context(), w.target(), Request{Authority: "10.0.0.1:80", Baggage: "b"})
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	if n := w.dialled(); n != 3 {
		t.Errorf("%d connections for 12 streams of which the server takes 5 on one", n)
	}
	for _, s := range streams {
		for range 20 {
			exchange(t, s, strings.Repeat("hello", 3000))
		}
		_ = s.CloseWrite()
		if n, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read at the end: %d, %v", n, err)
		}
	}
}

// A tunnel in a tunnel, as to another network.
func TestTunnelInATunnel(t *testing.T) {
	inner := newWorld(t, echo, nil)
	outer := newWorld(t, func(ctx context.Context, in *Incoming) {
		nc, err := net.Dial("tcp", inner.addr.String())
		if err != nil {
			_ = in.Reject(503, err.Error())
			return
		}
		s, err := in.Accept()
		if err != nil {
			_ = nc.Close()
			return
		}
		_ = Relay(ctx, nc.(*net.TCPConn), s, nil)
	}, nil)
	outerPool := outer.pool(nil)
	p := inner.pool(func(cfg *PoolConfig) {
		cfg.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return outerPool.Open(ctx, outer.target(), Request{Authority: addr.String()})
		}
	})
	s := inner.mustOpen(p)
	exchange(t, s, "hello")
	noBuffers(t)
	exchange(t, s, strings.Repeat("hello", 100_000))
	_ = s.CloseWrite()
	if n, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	_ = s.Close()
	_ = p.Close()
}
