package codec

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// trip sends a GET over a connection of the backend, and returns what comes of it.
func trip(t *testing.T, b *backend, ctx context.Context, body message.Body) (*message.Response, *Error) {
	t.Helper()
	c, err := b.reserve()
	if err != nil {
		t.Fatal(err)
	}
	req := &message.Request{Method: "POST", Path: "/", Authority: "a", Body: body, Length: message.Unknown}
	if body == nil {
		req.Length = 0
	}
	resp, err := c.RoundTrip(ctx, req, nil)
	var e *Error
	if err != nil && !errors.As(err, &e) {
		t.Fatalf("an error of type %T: %v", err, err)
	}
	return resp, e
}

// TestStale: a connection that the backend had closed before the request came is told from one that ended on the request.
func TestStale(t *testing.T) {
	for _, after := range []int{0, 1} {
		addr := script(t, func(nc net.Conn, br *bufio.Reader) {
			for range after {
				readHead(br)
				_, _ = io.WriteString(nc, "HTTP/1.1 204 No Content\r\n\r\n")
			}
			readHead(br) // and no answer
		})
		b := connect(t, addr, message.HTTP11)
		for range after {
			if _, e := trip(t, b, context.Background(), nil); e != nil {
				t.Fatal(e)
			}
		}
		_, e := trip(t, b, context.Background(), nil)
		if e == nil || e.Stage != Sent || e.Stale != (after > 0) {
			t.Errorf("after %d: %v, stale %v", after, e, e != nil && e.Stale)
		}
	}
}

// TestIdleEnd1: an idle connection that the backend closes is not used again, and says so on its own after a while.
func TestIdleEnd1(t *testing.T) {
	ended := make(chan struct{}, 10)
	addr := script(t, func(nc net.Conn, br *bufio.Reader) {
		readHead(br)
		_, _ = io.WriteString(nc, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(nc, message.HTTP11, &ClientConfig{OnChange: func() {
		select {
		case ended <- struct{}{}:
		default:
		}
	}})
	defer c.Close()
	if !c.Reserve() {
		t.Fatal("a new connection takes no request")
	}
	if _, err := c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/", Authority: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.After(patience); !c.Draining(); {
		select {
		case <-ended:
		case <-deadline:
			t.Fatal("nobody says that the connection has ended")
		}
	}
	if c.Reserve() {
		t.Error("it can be reserved")
	}
	<-c.Done()
}

// TestIdleReuse: a connection that was looked after while it was idle can be used again.
func TestIdleReuse(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) { ok(x, "hello") })
	b := connect(t, s.addr, message.HTTP11)
	for i := range 2 {
		resp, e := trip(t, b, context.Background(), nil)
		if e != nil {
			t.Fatal(e)
		}
		if body, err := readAll(resp.Body); err != nil || body != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
		if i == 0 {
			c := b.conns[0].(*client1)
			await(t, "somebody waits for the backend's end", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.waiting
			})
		}
	}
	if len(b.conns) != 1 {
		t.Errorf("%d connections, want one", len(b.conns))
	}
}

// telling is a connection that tells when there is something to read, as tunnels do: when the test says so.
type telling struct {
	net.Conn
	asked chan func()
}

func (n *telling) OnReadable(f func()) { n.asked <- f }

// TestIdleTold: over a tunnel nobody waits for the end of an idle connection: it is told of it, unless it is used again.
func TestIdleTold(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) { ok(x, "hello") })
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	over := &telling{nc, make(chan func())}
	c := NewClient(over, message.HTTP11, nil)
	defer c.Close()
	for i := range 2 {
		if !c.Reserve() {
			t.Fatal("it takes no request")
		}
		resp, err := c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/", Authority: "a"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := readAll(resp.Body); err != nil || body != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
		tell := <-over.asked
		if i > 0 {
			tell()
			break
		}
		if !c.Reserve() {
			t.Fatal("it takes no request while it is watched")
		}
		tell() // that the response has come
		c.Unreserve()
	}
	<-c.Done()
	if !c.Draining() || c.Reserve() || c.Err() != nil {
		t.Errorf("it goes on after its end, or ended with %v", c.Err())
	}
}

func TestContext(t *testing.T) {
	for _, proto := range []message.Protocol{message.HTTP11, message.HTTP2} {
		entered := make(chan struct{})
		s := serve(t, nil, func(x *Exchange) {
			close(entered)
			<-x.Context().Done()
		})
		b := connect(t, s.addr, proto)
		because := errors.New("because")
		ctx, cancel := context.WithCancelCause(context.Background())
		go func() {
			<-entered
			cancel(because)
		}()
		_, e := trip(t, b, ctx, nil)
		if e == nil || e.Stage != Sent || !errors.Is(e, because) || e.Stale {
			t.Errorf("%v: %v", proto, e)
		}
		if _, e := trip(t, b, ctx, nil); e == nil || e.Stage != Unsent || !errors.Is(e, because) {
			t.Errorf("%v, a context that is over: %v", proto, e)
		}
	}
}

// TestContextOfBody: the context bounds the response's body as well.
func TestContextOfBody(t *testing.T) {
	for _, proto := range []message.Protocol{message.HTTP11, message.HTTP2} {
		s := serve(t, nil, func(x *Exchange) {
			_ = x.Respond(&message.Response{Status: 200, Body: &stuck{first: []byte("some"), until: x.Context().Done()}, Length: message.Unknown})
		})
		b := connect(t, s.addr, proto)
		because := errors.New("because")
		ctx, cancel := context.WithCancelCause(context.Background())
		resp, e := trip(t, b, ctx, nil)
		if e != nil {
			t.Fatal(e)
		}
		if p, err := resp.Body.Next(); string(p) != "some" || err != nil {
			t.Fatalf("%q, %v", p, err)
		}
		cancel(because)
		_, err := resp.Body.Next()
		if !errors.As(err, &e) || e.Stage != Answered || !errors.Is(err, because) {
			t.Errorf("%v: %v", proto, err)
		}
		resp.Body.Close()
	}
}

// stuck is a body that has one piece, and then nothing for a while.
type stuck struct {
	first []byte
	until <-chan struct{}
}

func (s *stuck) Next() ([]byte, error) {
	if p := s.first; p != nil {
		s.first = nil
		return p, nil
	}
	<-s.until
	return nil, errBroken
}
func (s *stuck) Ready() bool            { return s.first != nil }
func (*stuck) Trailers() message.Fields { return nil }
func (*stuck) Close()                   {}

// TestRequestBodyBreaks: the backend must not take what it got for whole, and the error says whose fault it was.
func TestRequestBodyBreaks(t *testing.T) {
	for _, proto := range []message.Protocol{message.HTTP11, message.HTTP2} {
		over := make(chan error, 1)
		s := serve(t, nil, func(x *Exchange) {
			_, err := readAll(x.Request.Body)
			over <- err
		})
		b := connect(t, s.addr, proto)
		_, e := trip(t, b, context.Background(), breaking{})
		if e == nil || !errors.Is(e, ErrRequestBody) || !errors.Is(e, errBroken) || e.Stale {
			t.Errorf("%v: %v", proto, e)
		}
		select {
		case err := <-over:
			if err == nil {
				t.Errorf("%v: the backend took it for whole", proto)
			}
		case <-time.After(patience):
			t.Fatal("the backend does not notice")
		}
	}
}

// TestRefused: what a backend did not look at is told apart.
func TestRefused(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) { x.w.(*exchange2).s.Reset(7) }) // REFUSED_STREAM
	b := connect(t, s.addr, message.HTTP2)
	if _, e := trip(t, b, context.Background(), nil); e == nil || e.Stage != Refused {
		t.Errorf("%v", e)
	}
}

func TestUpgradeOnHTTP2(t *testing.T) {
	s := serve(t, nil, func(x *Exchange) { ok(x, "") })
	c, err := connect(t, s.addr, message.HTTP2).reserve()
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/", Authority: "a", Upgrade: "websocket"}, nil)
	if !errors.Is(err, ErrUpgrade) {
		t.Errorf("%v", err)
	}
	if n := c.Active(); n != 0 {
		t.Errorf("%d requests under way", n)
	}
}

// TestClientShutdown: what is reserved still goes out, and then the connection ends.
func TestClientShutdown(t *testing.T) {
	for _, proto := range []message.Protocol{message.HTTP11, message.HTTP2} {
		s := serve(t, nil, func(x *Exchange) { ok(x, "served") })
		c, err := connect(t, s.addr, proto).reserve()
		if err != nil {
			t.Fatal(err)
		}
		c.Shutdown()
		resp, err := c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/", Authority: "a"}, nil)
		if err != nil {
			t.Fatalf("%v: %v", proto, err)
		}
		if body, err := readAll(resp.Body); err != nil || body != "served" {
			t.Errorf("%v: %q, %v", proto, body, err)
		}
		select {
		case <-c.Done():
		case <-time.After(patience):
			t.Errorf("%v: the connection does not end", proto)
		}
		if c.Reserve() || c.Err() != nil {
			t.Errorf("%v: usable, or %v", proto, c.Err())
		}
	}
}

// TestDrain2: an HTTP/2 client is told by GOAWAY, and what is under way is served.
func TestDrain2(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := serve(t, nil, func(x *Exchange) {
		close(entered)
		<-leave
		ok(x, "served")
	})
	b := connect(t, s.addr, message.HTTP2)
	go func() {
		<-entered
		s.each((*Server).Shutdown)
		close(leave)
	}()
	resp, e := trip(t, b, context.Background(), nil)
	if e != nil {
		t.Fatal(e)
	}
	if body, err := readAll(resp.Body); err != nil || body != "served" {
		t.Errorf("%q, %v", body, err)
	}
	select {
	case <-b.conns[0].Done():
	case <-time.After(patience):
		t.Error("the connection does not end")
	}
}

// TestClientGone2 wants the context of a request to end when its stream is reset.
func TestClientGone2(t *testing.T) {
	entered, gone := make(chan struct{}), make(chan struct{})
	s := serve(t, nil, func(x *Exchange) {
		close(entered)
		<-x.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-entered
		cancel()
	}()
	if resp, err := caller(t, message.HTTP2).Do(req); err == nil {
		_ = resp.Body.Close()
		t.Error("there is a response")
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the context goes on")
	}
}
