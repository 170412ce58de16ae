package codec

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestEarlyHints(t *testing.T) {
	versions(t, func(t *testing.T, c *http.Client, base string) {
		var hints []string
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, h.Get("link"))
			return nil
		}})
		req, err := http.NewRequestWithContext(ctx, "GET", base+"/hints", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if len(hints) != 1 || hints[0] != "</style.css>" {
			t.Errorf("hints %q", hints)
		}
	})
}

func TestBrokenResponse(t *testing.T) {
	versions(t, func(t *testing.T, c *http.Client, base string) {
		resp, err := c.Get(base + "/break")
		if err != nil {
			return // it broke before the header had left
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%q, and a clean end", b)
		}
	})
}

// script is a backend that speaks by hand: f is called for each connection.
func script(t testing.TB, f func(nc net.Conn, br *bufio.Reader)) string {
	t.Helper()
	ln := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			_ = nc.SetDeadline(time.Now().Add(patience))
			f(nc, bufio.NewReader(nc))
			_ = nc.Close()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// readHead reads a head as it is on the wire.
func readHead(br *bufio.Reader) string {
	var head strings.Builder
	for {
		line, err := br.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String()
		}
	}
}

func TestUpgrade(t *testing.T) {
	addr := script(t, func(nc net.Conn, br *bufio.Reader) {
		head := readHead(br)
		if !strings.Contains(head, "connection: upgrade\r\nupgrade: websocket\r\n") || !strings.Contains(head, "sec-websocket-key: k\r\n") {
			t.Errorf("the backend was asked %q", head)
		}
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nserver first")
		got, err := io.ReadAll(br)
		if err != nil || string(got) != "client first, client last" {
			t.Errorf("the backend got %q, %v", got, err)
		}
		_, _ = io.WriteString(nc, "server last")
	})
	p := proxy(t, addr, message.HTTP11)
	r := dial1(t, p.addr)
	r.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nclient first")
	head := readHead(r.br)
	for _, want := range []string{"HTTP/1.1 101 ", "connection: upgrade\r\n", "upgrade: websocket\r\n", "sec-websocket-accept: x\r\n"} {
		if !strings.Contains(head, want) {
			t.Errorf("no %q in %q", want, head)
		}
	}
	r.want("server first")
	r.send(", client last")
	_ = r.nc.CloseWrite()
	r.want("server last")
	r.end()
}

func TestUpgradeRefused(t *testing.T) {
	addr := script(t, func(nc net.Conn, br *bufio.Reader) {
		for readHead(br) != "" {
			_, _ = io.WriteString(nc, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		}
	})
	p := proxy(t, addr, message.HTTP11)
	r := dial1(t, p.addr)
	for range 2 {
		r.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, body := r.answer("GET"); resp.StatusCode != 403 || body != "no" || resp.Close {
			t.Errorf("%v %q, close %v", resp.Status, body, resp.Close)
		}
	}
}

// TestUpgradeUnasked: a backend that changes the protocol on its own is not believed.
func TestUpgradeUnasked(t *testing.T) {
	addr := script(t, func(nc net.Conn, br *bufio.Reader) {
		readHead(br)
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	})
	p := proxy(t, addr, message.HTTP11)
	r := dial1(t, p.addr)
	r.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := r.answer("GET"); resp.StatusCode != 502 {
		t.Errorf("status %d, want 502", resp.StatusCode)
	}
}

// TestExpectIsPassedOn: the backend decides whether the body is wanted.
func TestExpectIsPassedOn(t *testing.T) {
	addr := script(t, func(nc net.Conn, br *bufio.Reader) {
		for { // the second request may come on a connection of its own
			head := readHead(br)
			switch {
			case head == "":
				return
			case !strings.Contains(head, "expect: 100-continue\r\n"):
				t.Errorf("the backend was asked %q", head)
				return
			case strings.HasPrefix(head, "POST /large "):
				_, _ = io.WriteString(nc, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				return
			}
			_, _ = io.WriteString(nc, "HTTP/1.1 100 Continue\r\n\r\n")
			body := make([]byte, 5)
			_, _ = io.ReadFull(br, body)
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"+string(body))
		}
	})
	p := proxy(t, addr, message.HTTP11)
	r := dial1(t, p.addr)
	r.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if resp, _ := r.answer("POST"); resp.StatusCode != 100 {
		t.Fatalf("status %d, want 100", resp.StatusCode)
	}
	r.send("hello")
	if _, body := r.answer("POST"); body != "hello" {
		t.Errorf("%q", body)
	}
	r.send("POST /large HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if resp, _ := r.answer("POST"); resp.StatusCode != 413 || !resp.Close {
		t.Errorf("status %d, close %v", resp.StatusCode, resp.Close)
	}
}

// unasked is a body that tells whether it was pulled.
type unasked struct {
	pulled atomic.Bool
	closed chan struct{}
}

func (u *unasked) Next() ([]byte, error) {
	u.pulled.Store(true)
	return nil, io.EOF
}
func (*unasked) Ready() bool              { return false }
func (*unasked) Trailers() message.Fields { return nil }
func (u *unasked) Close()                 { close(u.closed) }

// TestUnaskedBody: a response that comes in the place of status 100 ends the wait for that, and the body is left alone: to pull it would
// ask the client for it.
func TestUnaskedBody(t *testing.T) {
	for _, up := range []message.Protocol{message.HTTP11, message.HTTP2} {
		s := serve(t, nil, func(x *Exchange) {
			if x.Request.Path == "/large" {
				_ = x.Respond(&message.Response{Status: 413, Body: message.String("large"), Length: 5})
				return
			}
			body, err := readAll(x.Request.Body)
			if err != nil {
				t.Error(err)
			}
			ok(x, body)
		})
		b := connect(t, s.addr, up)
		do := func(path string, body message.Body) {
			t.Helper()
			c, err := b.reserve()
			if err != nil {
				t.Fatal(err)
			}
			req := &message.Request{Method: "POST", Path: path, Authority: "a", Expect: true, Body: body, Length: message.Unknown}
			resp, err := c.RoundTrip(t.Context(), req, nil)
			if err != nil {
				t.Fatalf("%v: %v", up, err)
			}
			want := map[string]int{"/": 200, "/large": 413}[path]
			if got, err := readAll(resp.Body); err != nil || got != "large" || resp.Status != want {
				t.Errorf("%v %s: status %d, %q, %v", up, path, resp.Status, got, err)
			}
		}
		body := &unasked{closed: make(chan struct{})}
		do("/large", body)
		select {
		case <-body.closed:
		case <-time.After(patience):
			t.Fatalf("%v: the body is not closed", up)
		}
		if body.pulled.Load() {
			t.Errorf("%v: the body is pulled that nobody asked for", up)
		}
		do("/", message.String("large")) // and the backend goes on to serve
		if n := len(b.conns); up == message.HTTP2 && n != 1 {
			t.Errorf("%d connections", n)
		}
	}
}

// endless is a body without an end that counts its pieces.
type endless struct {
	pulled *atomic.Int64
	piece  [16 << 10]byte
}

func (e *endless) Next() ([]byte, error) {
	e.pulled.Add(int64(len(e.piece)))
	return e.piece[:], nil
}
func (*endless) Ready() bool              { return true }
func (*endless) Trailers() message.Fields { return nil }
func (*endless) Close()                   {}

// TestBackPressure wants a response that nobody reads to stop at its source, and what holds it to be given back when the client goes.
func TestBackPressure(t *testing.T) {
	for _, up := range []message.Protocol{message.HTTP11, message.HTTP2} {
		var pulled atomic.Int64
		over := make(chan struct{})
		s := serve(t, nil, func(x *Exchange) {
			defer close(over)
			_ = x.Respond(&message.Response{Status: 200, Body: &endless{pulled: &pulled}, Length: message.Unknown})
		})
		p := proxy(t, s.addr, up)
		r := dial1(t, p.addr)
		_ = r.nc.SetReadBuffer(64 << 10)
		r.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		await(t, "the source stops", func() bool {
			before := pulled.Load()
			<-time.After(200 * time.Millisecond)
			return before > 0 && pulled.Load() == before
		})
		if n := pulled.Load(); n > 64<<20 {
			t.Errorf("%v: %d bytes were pulled that nobody reads", up, n)
		}
		_ = r.nc.Close()
		select {
		case <-over:
		case <-time.After(patience):
			t.Fatal("the source goes on")
		}
	}
	await(t, "buffers are given back", func() bool { return buffer.InUse() < 256<<10 })
}

// await waits for a condition.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}

// TestBothDirections: request and response flow at the same time.
func TestBothDirections(t *testing.T) {
	for _, up := range []message.Protocol{message.HTTP11, message.HTTP2} {
		s := serve(t, nil, func(x *Exchange) {
			_ = x.Respond(&message.Response{Status: 200, Body: x.Request.Body, Length: message.Unknown})
		})
		p := proxy(t, s.addr, up)
		for _, down := range []message.Protocol{message.HTTP11, message.HTTP2} {
			pr, pw := io.Pipe()
			req, err := http.NewRequest("POST", "http://"+p.addr, pr)
			if err != nil {
				t.Fatal(err)
			}
			sent := make(chan error, 1)
			go func() {
				_, err := io.WriteString(pw, "0")
				sent <- err
			}()
			resp, err := caller(t, down).Do(req)
			if err != nil {
				t.Fatalf("%v to %v: %v", down, up, err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			for i := range 5 {
				if i > 0 {
					if _, err := pw.Write([]byte{'0' + byte(i)}); err != nil {
						t.Fatal(err)
					}
				}
				b := make([]byte, 1)
				if _, err := io.ReadFull(resp.Body, b); err != nil || b[0] != '0'+byte(i) {
					t.Fatalf("%v to %v: read %q, %v", down, up, b, err)
				}
			}
			_ = pw.Close()
			if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
				t.Errorf("%v to %v: %q, %v behind the end", down, up, rest, err)
			}
			_ = resp.Body.Close()
		}
	}
}

// TestEarlyAnswer: a backend may answer before it has read a request, which then ends.
func TestEarlyAnswer(t *testing.T) {
	for _, up := range []message.Protocol{message.HTTP11, message.HTTP2} {
		s := serve(t, nil, func(x *Exchange) { ok(x, "enough") })
		p := proxy(t, s.addr, up)
		for _, down := range []message.Protocol{message.HTTP11, message.HTTP2} {
			pr, pw := io.Pipe()
			req, err := http.NewRequest("POST", "http://"+p.addr, pr)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := caller(t, down).Do(req)
			if err != nil {
				t.Fatalf("%v to %v: %v", down, up, err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "enough" {
				t.Errorf("%v to %v: %q, %v", down, up, b, err)
			}
			_ = resp.Body.Close()
			_ = pw.CloseWithError(errors.New("enough"))
		}
	}
}

// pipeTunnel is one end of a pipe as a tunnel.
type pipeTunnel struct{ net.Conn }

func (p pipeTunnel) CloseWrite() error { return p.Close() }

// TestMoved: an exchange shows that something moves, in bodies as in tunnels.
func TestMoved(t *testing.T) {
	moved := make(chan uint64, 1)
	s := serve(t, nil, func(x *Exchange) {
		if x.Request.Upgrade == "" {
			body, err := readAll(x.Request.Body)
			if err != nil || x.Moved() == 0 {
				t.Errorf("%v, moved %d after the request", err, x.Moved())
			}
			before := x.Moved()
			ok(x, body)
			moved <- x.Moved() - before
			return
		}
		near, far := net.Pipe()
		echoed := make(chan struct{})
		go func() {
			defer close(echoed)
			_, _ = io.Copy(far, far)
			_ = far.Close()
		}()
		_ = x.Respond(&message.Response{Status: 101, Upgrade: "echo", Tunnel: pipeTunnel{near}})
		<-echoed
		moved <- x.Moved()
	})
	r := dial1(t, s.addr)
	r.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
	r.answer("POST")
	if n := <-moved; n == 0 {
		t.Error("nothing moved with the response")
	}
	r.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	readHead(r.br)
	r.send("ping")
	r.want("ping")
	_ = r.nc.Close()
	if n := <-moved; n != 8 {
		t.Errorf("%d bytes moved in a tunnel, want 4 each way", n)
	}
}
