package codec

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// f makes a header list of names and values in turns.
func f(nv ...string) []message.Field {
	var l []message.Field
	for i := 0; i < len(nv); i += 2 {
		l = append(l, message.Field{Name: nv[i], Value: nv[i+1]})
	}
	return l
}

// with returns a GET with more fields.
func with(nv ...string) []message.Field {
	return append(f(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"), f(nv...)...)
}

// downgraded are requests of HTTP/2 that would be others as HTTP/1, or none: what the handler is asked, a status, or how the
// stream is reset.
var downgraded = []struct {
	name   string
	header []message.Field
	data   []string // DATA frames; nil: the header ends the stream
	want   string
}{
	{"plain", with("x", "1"), nil, `GET http "a" / [x: 1]`},
	{"CR LF in a value", with("x", "1\r\ny: 2"), nil, "PROTOCOL_ERROR"},
	{"LF in a value", with("x", "1\ny: 2"), nil, "PROTOCOL_ERROR"},
	{"NUL in a value", with("x", "1\x002"), nil, "PROTOCOL_ERROR"},
	{"CR LF in a name", with("x: 1\r\ny", "2"), nil, "PROTOCOL_ERROR"},
	{"a colon in a name", with("x:y", "2"), nil, "PROTOCOL_ERROR"},
	{"a space in a name", with("x y", "2"), nil, "PROTOCOL_ERROR"},
	{"an empty name", with("", "2"), nil, "PROTOCOL_ERROR"},
	{"a name in capitals", with("X", "2"), nil, "PROTOCOL_ERROR"},
	{"CR LF in the path", f(":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1\r\nx: 1", ":authority", "a"), nil, "PROTOCOL_ERROR"},
	{"a space in the path", f(":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1", ":authority", "a"), nil, "400"},
	{"no slash", f(":method", "GET", ":scheme", "http", ":path", "x", ":authority", "a"), nil, "400"},
	{"a path in absolute form", f(":method", "GET", ":scheme", "http", ":path", "http://b/", ":authority", "a"), nil, "400"},
	{"a fragment", f(":method", "GET", ":scheme", "http", ":path", "/#x", ":authority", "a"), nil, "400"},
	{"an asterisk", f(":method", "GET", ":scheme", "http", ":path", "*", ":authority", "a"), nil, "400"},
	{"OPTIONS of all", f(":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a"), nil, `OPTIONS http "a" *`},
	{"an empty path", f(":method", "GET", ":scheme", "http", ":path", "", ":authority", "a"), nil, "PROTOCOL_ERROR"},
	{"a method with a space", f(":method", "GET / HTTP/1.1", ":scheme", "http", ":path", "/", ":authority", "a"), nil, "400"},
	{"a method with CR LF", f(":method", "GET\r\n", ":scheme", "http", ":path", "/", ":authority", "a"), nil, "PROTOCOL_ERROR"},
	{"another scheme", f(":method", "GET", ":scheme", "http://b/x?", ":path", "/", ":authority", "a"), nil, "400"},
	{"no scheme", f(":method", "GET", ":path", "/", ":authority", "a"), nil, "PROTOCOL_ERROR"},
	{"a pseudo-field behind", append(with("x", "1"), f(":path", "/b")...), nil, "PROTOCOL_ERROR"},
	{"a path twice", f(":method", "GET", ":scheme", "http", ":path", "/", ":path", "/b", ":authority", "a"), nil, "PROTOCOL_ERROR"},
	{"an unknown pseudo-field", f(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", ":x", "1"), nil, "PROTOCOL_ERROR"},
	{"a pseudo-field of responses", f(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", ":status", "200"), nil, "PROTOCOL_ERROR"},

	{"host for authority", f(":method", "GET", ":scheme", "http", ":path", "/", "host", "B"), nil, `GET http "b" /`},
	{"the same host", with("host", "A"), nil, `GET http "a" /`},
	{"another host", with("host", "b"), nil, "400"},
	{"two hosts", f(":method", "GET", ":scheme", "http", ":path", "/", "host", "a", "host", "b"), nil, "400"},
	{"an authority twice", f(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", ":authority", "b"), nil, "PROTOCOL_ERROR"},
	{"no authority", f(":method", "GET", ":scheme", "http", ":path", "/"), nil, "400"},
	{"an authority with a user", f(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "u@a"), nil, "400"},
	{"an authority with a path", f(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a/b"), nil, "400"},
	{"an authority with a space", f(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a b"), nil, "400"},
	{"CONNECT", f(":method", "CONNECT", ":authority", "a:443"), nil, "501"},

	{"transfer-encoding", with("transfer-encoding", "chunked"), []string{"0\r\n\r\n"}, "PROTOCOL_ERROR"},
	{"connection", with("connection", "close"), nil, "PROTOCOL_ERROR"},
	{"upgrade", with("upgrade", "websocket"), nil, "PROTOCOL_ERROR"},
	{"keep-alive", with("keep-alive", "5"), nil, "PROTOCOL_ERROR"},
	{"te", with("te", "trailers"), nil, `GET http "a" / [te: trailers]`},
	{"another te", with("te", "gzip"), nil, "PROTOCOL_ERROR"},
	{"cookies", with("cookie", "a=1", "x", "1", "cookie", "b=2"), nil, `GET http "a" / [cookie: a=1; b=2] [x: 1]`},
	{"http2-settings", with("http2-settings", "AAA"), nil, `GET http "a" /`},

	{"a length that is right", with("content-length", "3"), []string{"ab", "c"}, `GET http "a" / [content-length: 3] "abc"`},
	{"a length that is too small", with("content-length", "2"), []string{"ab", "GET /x HTTP/1.1"}, "PROTOCOL_ERROR"},
	{"a length that is too large", with("content-length", "4"), []string{"abc"}, "PROTOCOL_ERROR"},
	{"a length without payload", with("content-length", "4"), nil, "PROTOCOL_ERROR"},
	{"two lengths", with("content-length", "3", "content-length", "4"), []string{"abc"}, "400"},
	{"a length that is no number", with("content-length", "+3"), []string{"abc"}, "400"},
	{"another expectation", with("expect", "x"), nil, "417"},
	{"too many fields", with(f2("x", "1", DefaultMaxFields+1)...), nil, "431"},
	{"a large header", with("x", strings.Repeat("y", DefaultMaxHeader)), nil, "431"},
}

// f2 returns a name and a value n times.
func f2(name, value string, n int) (nv []string) {
	for range n {
		nv = append(nv, name, value)
	}
	return nv
}

// raw2 is a client that speaks HTTP/2 by hand.
type raw2 struct {
	t testing.TB
	*http2.Framer
	nc net.Conn
}

func dial2(t testing.TB, addr string) *raw2 {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	r := &raw2{t, http2.NewFramer(nc, nc), nc}
	r.AllowIllegalWrites = true
	r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, _ = io.WriteString(nc, http2.ClientPreface)
	_ = r.WriteSettings()
	return r
}

// headers sends a header block, in as many frames as it takes.
func (r *raw2) headers(id uint32, header []message.Field, end bool) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range header {
		_ = enc.WriteField(f)
	}
	block := b.Bytes()
	n := min(len(block), 16<<10)
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n], EndStream: end, EndHeaders: n == len(block)})
	for block = block[n:]; len(block) > 0; block = block[n:] {
		n = min(len(block), 16<<10)
		_ = r.WriteContinuation(id, n == len(block), block[:n])
	}
}

// verdict reads until the stream is answered or reset, and says how.
func (r *raw2) verdict(id uint32) string {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.t.Fatalf("no answer: %v", err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id && f.PseudoValue("status") != "100" {
				return f.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return f.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return fmt.Sprintf("GOAWAY %v %s", f.ErrCode, f.DebugData())
		}
	}
}

func TestDowngrade(t *testing.T) {
	for _, tc := range downgraded {
		t.Run(tc.name, func(t *testing.T) {
			var rec recorder
			s := serve(t, nil, rec.handle)
			r := dial2(t, s.addr)
			r.headers(1, tc.header, tc.data == nil)
			for i, d := range tc.data {
				_ = r.WriteData(1, i == len(tc.data)-1, []byte(d))
			}
			got := r.verdict(1)
			rec.mu.Lock()
			if got == "200" {
				got = strings.Join(rec.seen, "; ")
			} else if len(rec.seen) > 0 && got != "PROTOCOL_ERROR" {
				t.Errorf("the handler was asked %q", rec.seen)
			}
			rec.mu.Unlock()
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestDowngradedBytes wants what a backend of HTTP/1 gets of an HTTP/2 request to be one request.
func TestDowngradedBytes(t *testing.T) {
	heads := make(chan string, 1)
	addr := script(t, func(nc net.Conn, br *bufio.Reader) {
		for {
			head := readHead(br)
			if head == "" {
				return
			}
			body := ""
			if strings.Contains(head, "transfer-encoding: chunked") {
				for !strings.HasSuffix(body, "0\r\n\r\n") && !strings.HasSuffix(body, "x-sum: 1\r\n\r\n") {
					b, err := br.ReadByte()
					if err != nil {
						break
					}
					body += string(b)
				}
			}
			heads <- head + body
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	p := proxy(t, addr, message.HTTP11)
	r := dial2(t, p.addr)
	r.headers(1, f(":method", "POST", ":scheme", "https", ":path", "/x?y", ":authority", "A:1", "te", "trailers", "x", "1", "cookie", "a", "cookie", "b"), false)
	_ = r.WriteData(1, false, []byte("abc"))
	r.headers(1, f("x-sum", "1"), true)
	want := "POST /x?y HTTP/1.1\r\nhost: a:1\r\nx: 1\r\ncookie: a; b\r\ntransfer-encoding: chunked\r\nconnection: te\r\nte: trailers\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"
	if diff := cmp.Diff(want, <-heads); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if v := r.verdict(1); v != "200" {
		t.Errorf("%s", v)
	}
	r.headers(3, f(":method", "POST", ":scheme", "https", ":path", "/", ":authority", "a"), true)
	if diff := cmp.Diff("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", <-heads); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestBadResponses: what a backend of HTTP/1 says that can be read in two ways is an error, not a response.
func TestBadResponses(t *testing.T) {
	for _, tc := range []struct{ name, answer, want string }{
		{"right", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", `200 "abc"`},
		{"to the end", "HTTP/1.0 200 OK\r\n\r\nabc", `200 "abc"`},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", `200 "abc"`},
		{"conflicting lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "bad"},
		{"length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "bad"},
		{"another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "bad"},
		{"chunks in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "bad"},
		{"a folded line", "HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 0\r\n\r\n", "bad"},
		{"LF alone", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", "bad"},
		{"CR in a value", "HTTP/1.1 200 OK\r\nX: 1\r2\r\nContent-Length: 0\r\n\r\n", "bad"},
		{"HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "bad"},
		{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", "bad"},
		{"a large header", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", DefaultMaxHeader) + "\r\n\r\n", "bad"},
		{"many fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: 1\r\n", DefaultMaxFields+1) + "\r\n", "bad"},
		{"endless information", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxInformational+1), "bad"},
		{"nothing", "", "no response"},
		{"half a head", "HTTP/1.1 200 OK\r\n", "no response"},
		{"too little payload", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", `200 "abc" broken`},
		{"too few chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", `200 "abc" broken`},
		{"a bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nabc\r\n", `200 "" broken`},
		{"too much payload", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nevil", `200 "abc"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := script(t, func(nc net.Conn, br *bufio.Reader) {
				readHead(br)
				_, _ = io.WriteString(nc, tc.answer)
			})
			b := connect(t, addr, message.HTTP11)
			c, err := b.reserve()
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/", Authority: "a"}, nil)
			got := ""
			var e *Error
			switch {
			case errors.Is(err, ErrBadResponse):
				got = "bad"
			case errors.As(err, &e) && e.Stage == Sent:
				got = "no response"
			case err != nil:
				got = err.Error()
			default:
				body, err := readAll(resp.Body)
				got = fmt.Sprintf("%d %q", resp.Status, body)
				if errors.As(err, &e) && e.Stage == Answered {
					got += " broken"
				} else if err != nil {
					got += err.Error()
				}
			}
			if got != tc.want {
				t.Errorf("got %s, want %s (%v)", got, tc.want, err)
			}
			await(t, "the connection is of no more use", func() bool {
				if c.Reserve() {
					c.Unreserve()
				}
				return c.Draining()
			})
		})
	}
}
