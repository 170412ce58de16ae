package codec

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// raw1 is a client that speaks HTTP/1 by hand.
type raw1 struct {
	t  testing.TB
	nc *net.TCPConn
	br *bufio.Reader
}

func dial1(t testing.TB, addr string) *raw1 {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return &raw1{t, nc.(*net.TCPConn), bufio.NewReader(nc)}
}

func (r *raw1) send(s string) {
	r.t.Helper()
	if _, err := io.WriteString(r.nc, s); err != nil {
		r.t.Fatal(err)
	}
}

// answer reads a response's head, and its body unless the status is 1xx.
func (r *raw1) answer(method string) (*http.Response, string) {
	r.t.Helper()
	resp, err := http.ReadResponse(r.br, &http.Request{Method: method})
	if err != nil {
		r.t.Fatalf("read a response: %v", err)
	}
	if resp.StatusCode < 200 {
		return resp, ""
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("read a body: %v", err)
	}
	return resp, string(body)
}

// want reads n bytes and compares.
func (r *raw1) want(s string) {
	r.t.Helper()
	got := make([]byte, len(s))
	if n, err := io.ReadFull(r.br, got); err != nil || string(got) != s {
		r.t.Fatalf("read %q, %v, want %q", got[:n], err, s)
	}
}

// end wants the connection to be over.
func (r *raw1) end() {
	r.t.Helper()
	if n, err := r.br.Read(make([]byte, 1)); n > 0 || err == nil {
		r.t.Fatal("there is more")
	} else if errors.Is(err, context.DeadlineExceeded) {
		r.t.Fatalf("the connection does not end: %v", err)
	}
}

// readAll reads a body to its end.
func readAll(b message.Body) (string, error) {
	if b == nil {
		return "", nil
	}
	defer b.Close()
	var all []byte
	for {
		p, err := b.Next()
		if err == io.EOF {
			return string(all), nil
		}
		if err != nil {
			return string(all), err
		}
		all = append(all, p...)
	}
}

// ok answers with a string.
func ok(x *Exchange, s string) {
	_ = x.Respond(&message.Response{Status: 200, Body: message.String(s), Length: int64(len(s))})
}

func TestPipelining(t *testing.T) {
	first := make(chan struct{})
	s := serve(t, nil, func(x *Exchange) {
		if x.Request.Path == "/1" {
			<-first
		}
		ok(x, x.Request.Path)
	})
	r := dial1(t, s.addr)
	r.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
	r.send(strings.Repeat("x", 100_000) + "GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n")
	close(first)
	for _, want := range []string{"/1", "/2", "/3"} {
		resp, body := r.answer("GET")
		if body != want || resp.Close != (want == "/3") {
			t.Errorf("%q, close %v, want %q", body, resp.Close, want)
		}
	}
	r.end()
}

func TestOldClients(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) {
		if x.Request.Path == "/unknown" {
			_ = x.Respond(&message.Response{Status: 200, Body: message.String("to the end"), Length: message.Unknown})
			return
		}
		_ = x.Inform(&message.Response{Status: 103})
		ok(x, "hello")
	})
	r := dial1(t, s.addr)
	r.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
	if resp, body := r.answer("GET"); body != "hello" || resp.Header.Get("connection") != "keep-alive" {
		t.Errorf("%q %v", body, resp.Header)
	}
	r.send("GET /unknown HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
	if resp, body := r.answer("GET"); body != "to the end" || resp.ContentLength != -1 || len(resp.TransferEncoding) > 0 {
		t.Errorf("%q %v", body, resp)
	}
	r.end()
	r = dial1(t, s.addr)
	r.send("GET / HTTP/1.0\r\n\r\n")
	if resp, _ := r.answer("GET"); !resp.Close {
		t.Error("HTTP/1.0 without keep-alive stays open")
	}
	r.end()
}

// TestUnreadBody: a body that the handler does not want is skipped if it is small and there, else the connection ends, after the answer.
func TestUnreadBody(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) { ok(x, "no, thanks") })
	r := dial1(t, s.addr)
	r.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	r.answer("POST")
	r.answer("GET")
	r.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(r.nc, strings.Repeat("x", 1<<20)) // it may be cut off
	}()
	r.answer("POST")
	r.end()
	_ = r.nc.Close()
	<-sent
}

func TestExpect(t *testing.T) {
	for _, read := range []bool{true, false} {
		s := serve(t, nil, func(x *Exchange) {
			if !x.Request.Expect || x.Request.Header.Has("expect") {
				t.Errorf("expect %v, header %v", x.Request.Expect, x.Request.Header)
			}
			if !read {
				ok(x, "no")
				return
			}
			body, err := readAll(x.Request.Body)
			if err != nil {
				t.Error(err)
			}
			ok(x, body)
		})
		r := dial1(t, s.addr)
		r.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		resp, body := r.answer("POST")
		if !read {
			if resp.StatusCode != 200 || body != "no" || !resp.Close {
				t.Errorf("%v %q, close %v", resp.Status, body, resp.Close)
			}
			continue
		}
		if resp.StatusCode != 100 {
			t.Fatalf("status %d, want 100", resp.StatusCode)
		}
		r.send("hello")
		if _, body := r.answer("POST"); body != "hello" {
			t.Errorf("%q", body)
		}
	}
}

func TestDrain1(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := serve(t, &ServerConfig{DrainIdle: time.Hour}, func(x *Exchange) {
		if x.Request.Path == "/slow" {
			close(entered)
			<-leave
		}
		ok(x, "served")
	})
	busy, idle := dial1(t, s.addr), dial1(t, s.addr)
	idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	idle.answer("GET")
	busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-entered
	s.each((*Server).Shutdown)
	close(leave)
	if resp, body := busy.answer("GET"); body != "served" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	busy.end()
	// One that is on its way to an idle connection is served, too.
	idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, body := idle.answer("GET"); body != "served" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	idle.end()
}

// TestClientGone1 wants the context of a request to end when its client has gone.
func TestClientGone1(t *testing.T) {
	for _, body := range []string{"", "Content-Length: 5\r\n\r\nhello"} {
		entered, gone := make(chan struct{}), make(chan error)
		s := serve(t, nil, func(x *Exchange) {
			_, err := readAll(x.Request.Body)
			if err != nil {
				t.Error(err)
			}
			close(entered)
			select {
			case <-x.Context().Done():
				gone <- nil
			case <-time.After(patience):
				gone <- errors.New("the context goes on")
			}
		})
		r := dial1(t, s.addr)
		if body == "" {
			body = "\r\n"
		}
		r.send("POST / HTTP/1.1\r\nHost: a\r\n" + body)
		<-entered
		_ = r.nc.Close()
		if err := <-gone; err != nil {
			t.Error(err)
		}
	}
}

// TestSlowHandler: looking whether the client is still there does not take the next request away.
func TestSlowHandler(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) {
		select {
		case <-x.Context().Done():
			t.Error("the client has not gone")
		case <-time.After(3 * watchDelay):
		}
		ok(x, x.Request.Path)
	})
	r := dial1(t, s.addr)
	for _, path := range []string{"/1", "/2"} {
		r.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
		if path == "/1" {
			<-time.After(2 * watchDelay) // it is being looked for by now
			r.send("GET /between HTTP/1.1\r\nHost: a\r\n\r\n")
		}
	}
	for _, want := range []string{"/1", "/between", "/2"} {
		if _, body := r.answer("GET"); body != want {
			t.Errorf("%q, want %q", body, want)
		}
	}
}

func TestAbort1(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) {
		if x.Request.Path == "/forget" {
			return
		}
		err := x.Respond(&message.Response{Status: 200, Body: breaking{}, Length: message.Unknown})
		if !errors.Is(err, ErrResponseBody) || !errors.Is(err, errBroken) {
			t.Errorf("Respond: %v", err)
		}
	})
	for _, path := range []string{"/forget", "/break"} {
		r := dial1(t, s.addr)
		r.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
		got, err := io.ReadAll(r.br)
		if err == nil && (path == "/forget" || strings.HasSuffix(string(got), "0\r\n\r\n")) {
			t.Errorf("%s: %q, and a clean end", path, got)
		}
	}
}

var errBroken = errors.New("broken")

// breaking is a body that breaks off.
type breaking struct{}

func (breaking) Next() ([]byte, error)    { return nil, errBroken }
func (breaking) Ready() bool              { return true }
func (breaking) Trailers() message.Fields { return nil }
func (breaking) Close()                   {}
