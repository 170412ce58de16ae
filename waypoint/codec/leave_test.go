package codec

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// TestLeave: a piece that was left to its sender stays as it is, whoever gets buffers after the body was closed; what comes behind it
// is not lost, and nothing counts as lent in the end.
func TestLeave(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\n"
	for name, request := range map[string]string{
		"length": head + "Content-Length: 2000\r\n\r\n" + strings.Repeat("x", 2000),
		"chunks": head + "Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + strings.Repeat("x", 2000) + "\r\n0\r\n\r\n",
	} {
		before := buffer.InUse()
		client, server := net.Pipe()
		in := &input{nc: server}
		go func() { _, _ = client.Write([]byte(request + "next")) }()
		p := parser1{maxFields: 10}
		raw, err := in.head(1<<10, false, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		var req message.Request
		h, err := p.request(raw, &req)
		if err != nil {
			t.Fatal(err)
		}
		in.take(len(raw))
		b := &body1{in: in, left: h.length, owner: sender1{}, maxHead: 1 << 10, maxFields: 10}
		if h.chunked {
			b.setChunked()
		}
		var body message.Lender = b
		piece, err := body.Next()
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(piece)
		body.Leave()
		others := fill()
		rest := len(piece)
		for {
			p, err := body.Next()
			if rest += len(p); err != nil {
				break
			}
		}
		body.Close()
		others = append(others, fill()...)
		if !bytes.Equal(piece, want) {
			t.Errorf("%s: the piece became %.20q", name, piece)
		}
		if rest != 2000 {
			t.Errorf("%s: %d bytes of 2000 came", name, rest)
		}
		for len(in.bytes()) < len("next") {
			if err := in.fill(buffer.Tiny); err != nil {
				t.Fatal(err)
			}
		}
		if got := string(in.bytes()); got != "next" {
			t.Errorf("%s: behind the body is %q", name, got)
		}
		in.release()
		for _, b := range others {
			buffer.Put(b)
		}
		if n := buffer.InUse() - before; n != 0 {
			t.Errorf("%s: %d bytes of buffers count as lent", name, n)
		}
		_, _ = client.Close(), server.Close()
	}
}

// TestLeave2 is TestLeave with HTTP/2.
func TestLeave2(t *testing.T) {
	done := make(chan struct{})
	s := serve(t, nil, func(x *Exchange) {
		defer close(done)
		body := x.Request.Body.(message.Lender)
		piece, err := body.Next()
		if err != nil {
			t.Error(err)
			return
		}
		want := bytes.Clone(piece)
		body.Leave()
		body.Close()
		others := fill()
		if !bytes.Equal(piece, want) {
			t.Errorf("the piece became %.20q", piece)
		}
		for _, b := range others {
			buffer.Put(b)
		}
		_ = x.Respond(&message.Response{Status: 200})
	})
	b := connect(t, s.addr, message.HTTP2)
	c, err := b.reserve()
	if err != nil {
		t.Fatal(err)
	}
	req := &message.Request{
		Method: "POST", Scheme: "http", Authority: "a", Path: "/", Body: message.String(strings.Repeat("x", 2000)), Length: 2000,
	}
	if resp, err := c.RoundTrip(t.Context(), req, nil); err != nil || resp.Status != 200 {
		t.Errorf("answer: %v, %v", resp, err)
	}
	<-done
}

// fill lends buffers of all sizes, as strangers would, and writes to them.
func fill() [][]byte {
	var out [][]byte
	for _, n := range []int{buffer.Tiny, buffer.Small, buffer.Medium, buffer.Large} {
		for range 4 {
			b := buffer.Get(n)
			for i := range b {
				b[i] = '!'
			}
			out = append(out, b)
		}
	}
	return out
}
