package codec

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// recorder is a handler that notes what it is asked, and answers 200, or 400 to a body that breaks off.
type recorder struct {
	mu   sync.Mutex
	seen []string
}

func (r *recorder) handle(x *Exchange) {
	req := &x.Request
	said := fmt.Sprintf("%s %s %q %s", req.Method, req.Scheme, req.Authority, req.Path)
	for _, f := range req.Header {
		said += fmt.Sprintf(" [%s: %s]", f.Name, f.Value)
	}
	status := 200
	if req.Body != nil {
		var all []byte
		for {
			p, err := req.Body.Next()
			if err == nil {
				all = append(all, p...)
				continue
			}
			if err != io.EOF {
				status = 400
				all = append(all, "..."...)
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrClient) {
					all = append(all, err.Error()...)
				}
			}
			break
		}
		for _, f := range req.Body.Trailers() {
			all = append(all, fmt.Sprintf(" {%s: %s}", f.Name, f.Value)...)
		}
		req.Body.Close()
		said += fmt.Sprintf(" %q", all)
	}
	r.mu.Lock()
	r.seen = append(r.seen, said)
	r.mu.Unlock()
	_ = x.Respond(&message.Response{Status: status})
}

// next is a request behind another on the same connection, and seenNext what the handler is asked by it.
const (
	next     = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
	seenNext = `GET http "a" /next`
)

// smuggled are the bytes that a client sends, and what comes of them: what the handler is asked, and then the status of the
// refusal, if there is one.
var smuggled = []struct {
	name, in string
	want     []string
}{
	// Lengths.
	{"length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + next, []string{`POST http "a" / [content-length: 3] "abc"`, seenNext}},
	{"conflicting lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd" + next, []string{"400"}},
	{"the same length twice", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + next, []string{`POST http "a" / [content-length: 3] [content-length: 3] "abc"`, seenNext}},
	{"a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc" + next, []string{"400"}},
	{"a length with a sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc" + next, []string{"400"}},
	{"a negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc" + next, []string{"400"}},
	{"a hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc" + next, []string{"400"}},
	{"a length with an underscore", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n0123456789" + next, []string{"400"}},
	{"an empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n" + next, []string{"400"}},
	{"a length that overflows", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551619\r\n\r\nabc" + next, []string{"400"}},
	{"length and chunks", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG" + next, []string{"400"}},
	{"chunks and length", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG" + next, []string{"400"}},
	{"a body of GET", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + next, []string{`GET http "a" / [content-length: 3] "abc"`, seenNext}},

	// Transfer codings.
	{"chunks", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "abc"`, seenNext}},
	{"chunked in capitals", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "abc"`, seenNext}},
	{"another coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + next, []string{"501"}},
	{"identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc" + next, []string{"501"}},
	{"two codings", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + next, []string{"501"}},
	{"chunked and another", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + next, []string{"501"}},
	{"chunked twice in one", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + next, []string{"501"}},
	{"chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, []string{"400"}},
	{"chunked and a second field", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + next, []string{"501"}},
	{"chunked with a letter before", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + next, []string{"501"}},
	{"chunked with a vertical tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n" + next, []string{"400"}},
	{"chunked in quotes", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + next, []string{"501"}},
	{"chunked with a parameter", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n" + next, []string{"501"}},
	{"an empty coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n" + next, []string{"501"}},
	{"a space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + next, []string{"400"}},
	{"a tab before the colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 3\r\n\r\nabc" + next, []string{"400"}},
	{"a tab behind the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked\t \r\n\r\n0\r\n\r\n" + next, []string{`POST http "a" / ""`, seenNext}},
	{"chunks in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, []string{"400"}},
	{"an underscore for a hyphen", "POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n" + next, []string{`POST http "a" / [transfer_encoding: chunked]`, seenNext}},

	// Chunks.
	{"a chunk extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0;z\r\n\r\n" + next, []string{`POST http "a" / "abc"`, seenNext}},
	{"a chunk extension with LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},
	{"a chunk size with LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},
	{"a chunk that is longer", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n" + next, []string{`POST http "a" / "abc..."`, "400"}},
	{"a chunk with LF at the end", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n" + next, []string{`POST http "a" / "abc..."`, "400"}},
	{"a chunk size of letters", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},
	{"a chunk size with a sign", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},
	{"a chunk size with 0x", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},
	{"a chunk size that overflows", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},
	{"trailers", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n" + next, []string{`POST http "a" / "abc {x-sum: 1}"`, seenNext}},
	{"a trailer that frames", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\nHost: b\r\nTransfer-Encoding: x\r\nX: 1\r\n\r\n" + next, []string{`POST http "a" / " {x: 1}"`, seenNext}},
	{"a folded trailer", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n 2\r\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},
	{"a trailer with LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\n\r\n" + next, []string{`POST http "a" / "..."`, "400"}},

	// Lines.
	{"a folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n" + next, []string{"400"}},
	{"a folded coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + next, []string{"400"}},
	{"a space before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n" + next, []string{"400"}},
	{"LF alone", "GET / HTTP/1.1\nHost: a\n\n" + next, []string{"400"}},
	{"LF in the header", "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n" + next, []string{"400"}},
	{"CR alone", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rContent-Length: 3\r\n\r\n" + next, []string{"400"}},
	{"CR in the start line", "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"CR before CRLF", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n" + next, []string{"400"}},
	{"NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n" + next, []string{"400"}},
	{"NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\x00: 1\r\n\r\n" + next, []string{"400"}},
	{"a name with a space", "GET / HTTP/1.1\r\nHost: a\r\nContent Length: 3\r\n\r\n" + next, []string{"400"}},
	{"a line without a colon", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length\r\n\r\n" + next, []string{"400"}},
	{"an empty name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n" + next, []string{"400"}},
	{"a name beyond ASCII", "GET / HTTP/1.1\r\nHost: a\r\nX\xc3\xa9: 1\r\n\r\n" + next, []string{"400"}},
	{"a value beyond ASCII", "GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa9\r\n\r\n" + next, []string{"GET http \"a\" / [x: \xc3\xa9]", seenNext}},
	{"empty lines before", "\r\n" + next, []string{seenNext}},

	// Start lines.
	{"HTTP/0.9", "GET /\r\n\r\n" + next, []string{"400"}},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n" + next, []string{"505"}},
	{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n" + next, []string{"505"}},
	{"http/1.1", "GET / http/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"HTTP/1.1 with a space behind", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"a tab for a space", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"a space in the path", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"a method that is no token", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"no slash", "GET index HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"a fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"an asterisk", "GET * HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"OPTIONS of all", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{`OPTIONS http "a" *`, seenNext}},
	{"CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n" + next, []string{"501"}},
	{"two slashes", "GET //b/c HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{`GET http "a" //b/c`, seenNext}},

	// Authorities.
	{"no host", "GET / HTTP/1.1\r\n\r\n" + next, []string{"400"}},
	{"no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", []string{`GET http "" /`}},
	{"an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n" + next, []string{"400"}},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + next, []string{"400"}},
	{"the same host twice", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n" + next, []string{"400"}},
	{"a list of hosts", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n" + next, []string{"400"}},
	{"a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n" + next, []string{"400"}},
	{"a host with a user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n" + next, []string{"400"}},
	{"a host in capitals", "GET / HTTP/1.1\r\nHost: A.Example:80\r\n\r\n" + next, []string{`GET http "a.example:80" /`, seenNext}},
	{"absolute form", "GET http://b/c?d HTTP/1.1\r\nHost: b\r\n\r\n" + next, []string{`GET http "b" /c?d`, seenNext}},
	{"absolute form and another host", "GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{`GET http "b" /c`, seenNext}},
	{"absolute form without a path", "GET http://b?c HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{`GET http "b" /?c`, seenNext}},
	{"absolute form with a user", "GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n" + next, []string{"400"}},
	{"another scheme", "GET ftp://b/ HTTP/1.1\r\nHost: b\r\n\r\n" + next, []string{"400"}},
	{"absolute form without a host", "GET http:///c HTTP/1.1\r\nHost: a\r\n\r\n" + next, []string{"400"}},

	// What concerns the connection.
	{"fields of the connection", "GET / HTTP/1.1\r\nHost: a\r\nConnection: x-one, keep-alive\r\nX-One: 1\r\nX-Two: 2\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n\r\n" + next, []string{`GET http "a" / [x-two: 2]`, seenNext}},
	{"the length as one of the connection", "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host\r\nContent-Length: 3\r\n\r\nabc" + next, []string{`POST http "a" / [content-length: 3] "abc"`, seenNext}},
	{"the coding as one of the connection", "POST / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, []string{`POST http "a" / ""`, seenNext}},
	{"h2c by upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + next, []string{`GET http "a" /`, seenNext}},
	{"another expectation", "POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 3\r\n\r\nabc" + next, []string{"417"}},
	{"pseudo-fields", "GET / HTTP/1.1\r\nHost: a\r\n:authority: b\r\n\r\n" + next, []string{"400"}},
	{"te", "GET / HTTP/1.1\r\nHost: a\r\nConnection: te\r\nTE: gzip, trailers\r\n\r\n" + next, []string{`GET http "a" / [te: trailers]`, seenNext}},

	// Bounds.
	{"too many fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("x: 1\r\n", DefaultMaxFields) + "\r\n" + next, []string{"431"}},
	{"a large header", "GET / HTTP/1.1\r\nHost: a\r\nx: " + strings.Repeat("y", DefaultMaxHeader) + "\r\n\r\n" + next, []string{"431"}},
	{"an endless line", "GET /" + strings.Repeat("y", DefaultMaxHeader), []string{"431"}},
}

// TestSmuggling sends what two readers might read in two ways, or what only looks like a request, and wants it refused, or the
// one meaning passed on that there is. After a refusal nothing else is read from the connection.
func TestSmuggling(t *testing.T) {
	for _, tc := range smuggled {
		t.Run(tc.name, func(t *testing.T) {
			var r recorder
			s := serve(t, nil, r.handle)
			statuses := exchange1(t, s.addr, tc.in)
			r.mu.Lock()
			defer r.mu.Unlock()
			got := r.seen
			for _, status := range statuses {
				if status != 200 {
					got = append(got, fmt.Sprint(status))
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// exchange1 sends bytes to a server, ends its direction, and returns the statuses of the answers.
func exchange1(t *testing.T, addr, in string) (statuses []int) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, in); err != nil {
		t.Fatal(err)
	}
	_ = nc.(*net.TCPConn).CloseWrite()
	br := bufio.NewReader(nc)
	for {
		resp, err := http.ReadResponse(br, nil)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return statuses
		}
		if err != nil {
			t.Fatalf("after %v: %v", statuses, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		statuses = append(statuses, resp.StatusCode)
	}
}
