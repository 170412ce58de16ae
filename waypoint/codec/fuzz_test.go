package codec

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// wireConn is a connection that brings some bytes, and keeps what is written.
type wireConn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *wireConn) Read(p []byte) (int, error)     { return c.in.Read(p) }
func (c *wireConn) Write(p []byte) (int, error)    { return c.out.Write(p) }
func (*wireConn) SetReadDeadline(time.Time) error  { return nil }
func (*wireConn) SetWriteDeadline(time.Time) error { return nil }
func (*wireConn) Close() error                     { return nil }
func (*wireConn) LocalAddr() net.Addr              { return nil }
func (*wireConn) RemoteAddr() net.Addr             { return nil }

// seen1 is what a reader makes of a request.
type seen1 struct {
	Method, Authority, Path, Body string
	Length                        int64
	Fields                        []string
}

// FuzzRequest1: whatever a client sends on HTTP/1, what is passed on is one request that net/http reads as we did, body and all.
func FuzzRequest1(f *testing.F) {
	for _, tc := range smuggled {
		if len(tc.in) < 1000 {
			f.Add([]byte(tc.in))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if bytes.HasPrefix(in, []byte(prior)) {
			return
		}
		var passed [][]byte
		var asked []seen1
		s := NewServer(&wireConn{in: bytes.NewReader(in)}, nil, func(x *Exchange) {
			to := &wireConn{in: strings.NewReader("HTTP/1.1 204 No Content\r\n\r\n")}
			c := NewClient(to, message.HTTP11, nil)
			defer c.Close()
			req := &x.Request
			body, err := readAll(req.Body)
			if err != nil {
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrClient) {
					t.Errorf("the body broke off: %v", err)
				}
				return
			}
			seen := seen1{Method: req.Method, Authority: req.Authority, Path: req.Path, Body: body, Length: req.Length}
			for _, field := range req.Header {
				if !framed(field.Name) {
					seen.Fields = append(seen.Fields, http.CanonicalHeaderKey(field.Name)+": "+field.Value)
				}
			}
			asked = append(asked, seen)
			req.Expect, req.Upgrade = false, ""
			if req.Body != nil {
				req.Body = message.String(body)
			}
			if !c.Reserve() {
				t.Fatal("a new connection takes no request")
			}
			if _, err := c.RoundTrip(x.Context(), req, nil); err != nil {
				t.Fatalf("pass it on: %v", err)
			}
			passed = append(passed, bytes.Clone(to.out.Bytes()))
			_ = x.Respond(&message.Response{Status: 204})
		})
		_ = s.Run(t.Context())
		for i, b := range passed {
			br := bufio.NewReader(bytes.NewReader(b))
			req, err := http.ReadRequest(br)
			if err != nil {
				t.Fatalf("net/http does not read %q: %v", b, err)
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				t.Fatalf("net/http does not read the body of %q: %v", b, err)
			}
			if br.Buffered() > 0 {
				t.Fatalf("net/http sees more than one request in %q", b)
			}
			got := seen1{Method: req.Method, Authority: req.Host, Path: req.RequestURI, Body: string(body), Length: req.ContentLength}
			want := asked[i]
			want.Fields = nil
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("of %q: -we +net/http:\n%s", b, diff)
			}
			for _, field := range asked[i].Fields {
				name, value, _ := strings.Cut(field, ": ")
				if !contains(req.Header.Values(name), value) && name != "Te" {
					t.Errorf("of %q: %s is missing", b, field)
				}
			}
		}
	})
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// FuzzResponse1: whatever a backend says on HTTP/1, what is made of it does not end the program, and a length is kept.
func FuzzResponse1(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: 1\r\n\r\n",
		"HTTP/1.0 200\r\n\r\nabc",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c := NewClient(&wireConn{in: bytes.NewReader(in)}, message.HTTP11, nil)
		defer c.Close()
		if !c.Reserve() {
			t.Fatal("a new connection takes no request")
		}
		resp, err := c.RoundTrip(t.Context(), &message.Request{Method: "GET", Path: "/", Authority: "a", Upgrade: "x"}, nil)
		if err != nil {
			return
		}
		if resp.Tunnel != nil {
			_ = resp.Tunnel.Close()
			return
		}
		body, err := readAll(resp.Body)
		if err == nil && resp.Body != nil && resp.Length >= 0 && int64(len(body)) != resp.Length {
			t.Errorf("a body of %d bytes, and a length of %d", len(body), resp.Length)
		}
		for _, field := range resp.Header {
			if !message.ValidName(field.Name) || !message.ValidValue(field.Value) {
				t.Errorf("field %q: %q", field.Name, field.Value)
			}
		}
	})
}
