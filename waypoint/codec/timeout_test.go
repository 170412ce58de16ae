package codec

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// piped serves one end of a pipe in a bubble, and returns the other, and a function that waits for the end and says when it came.
func piped(t *testing.T, cfg *ServerConfig, h Handler) (*Server, net.Conn, func() time.Duration) {
	a, b := net.Pipe()
	began, over := time.Now(), make(chan time.Duration, 1)
	s := NewServer(b, cfg, h)
	go func() {
		if err := s.Run(context.Background()); err != nil {
			t.Errorf("Run: %v", err)
		}
		over <- time.Since(began)
	}()
	return s, a, func() time.Duration { return <-over }
}

// ask sends a request and reads the response.
func ask(t *testing.T, nc net.Conn) *http.Response {
	t.Helper()
	if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func hello(x *Exchange) { ok(x, "") }

func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nc, over := piped(t, &ServerConfig{IdleTimeout: time.Minute}, hello)
		time.Sleep(50 * time.Second)
		ask(t, nc)
		if d := over(); d < 100*time.Second || d > 111*time.Second {
			t.Errorf("an idle connection ended after %v, want 50 s and a minute, or an eighth less", d)
		}
		_, _, over = piped(t, &ServerConfig{IdleTimeout: time.Minute}, hello)
		if d := over(); d != time.Minute {
			t.Errorf("one that says nothing ended after %v", d)
		}
	})
}

func TestHeaderTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		over := make(chan error, 1)
		var refused int
		go func() {
			over <- NewServer(b, &ServerConfig{OnRefuse: func(status int, _ string) { refused = status }}, hello).Run(context.Background())
		}()
		var trickle sync.WaitGroup
		defer trickle.Wait()
		trickle.Go(func() {
			for { // a byte a second
				if _, err := io.WriteString(a, "G"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		began := time.Now()
		resp, err := http.ReadResponse(bufio.NewReader(a), nil)
		if err != nil || resp.StatusCode != 408 {
			t.Fatalf("%v, %v, want 408", resp, err)
		}
		if d := time.Since(began); d > DefaultHeaderTimeout+2*time.Second {
			t.Errorf("after %v", d)
		}
		_ = a.Close()
		if err := <-over; err == nil || refused != 408 {
			t.Errorf("Run: %v, refused with %d", err, refused)
		}
	})
}

// TestSlowBody: neither the idle time nor that of the header bounds a body.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := &ServerConfig{IdleTimeout: time.Minute, HeaderTimeout: time.Second}
		_, nc, over := piped(t, cfg, func(x *Exchange) {
			body, err := readAll(x.Request.Body)
			if err != nil {
				t.Error(err)
			}
			ok(x, body)
		})
		go func() {
			_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
			for range 3 {
				time.Sleep(time.Hour)
				_, _ = io.WriteString(nc, "x")
			}
		}()
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil || resp.StatusCode != 200 || resp.ContentLength != 3 {
			t.Errorf("%v, %v", resp, err)
		}
		_ = nc.Close()
		over()
	})
}

func TestDrainIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, nc, over := piped(t, nil, hello)
		ask(t, nc)
		synctest.Wait()
		s.Shutdown()
		if d := over(); d != DefaultDrainIdle {
			t.Errorf("an idle connection ended %v after Shutdown, want %v", d, DefaultDrainIdle)
		}
	})
}

func TestIdleTimeout2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nc, over := piped(t, &ServerConfig{IdleTimeout: time.Minute}, hello)
		c := NewClient(nc, message.HTTP2, nil)
		time.Sleep(30 * time.Second)
		if !c.Reserve() {
			t.Fatal("no room for a request")
		}
		if _, err := c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/", Authority: "a"}, nil); err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		if d := over(); d < 90*time.Second || d > 3*time.Minute {
			t.Errorf("an idle connection ended after %v, want 90 s", d)
		}
	})
}

// TestExpectTimeout: a backend that knows nothing of expectations gets the body after a while.
func TestExpectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go func() {
			br := bufio.NewReader(b)
			readHead(br)
			body := make([]byte, 5)
			_, _ = io.ReadFull(br, body)
			_, _ = io.WriteString(b, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}()
		c := NewClient(a, message.HTTP11, nil)
		c.Reserve()
		began := time.Now()
		req := &message.Request{Method: "POST", Path: "/", Authority: "a", Expect: true, Body: message.String("hello"), Length: 5}
		if _, err := c.RoundTrip(context.Background(), req, nil); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != DefaultExpectTimeout {
			t.Errorf("after %v, want %v", d, DefaultExpectTimeout)
		}
		c.Close()
		<-c.Done()
	})
}
