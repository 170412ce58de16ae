package codec

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// benchBody is the size of a response in benchmarks, in bytes.
const benchBody = 70

// benchBackend answers every request of an HTTP/1 connection with the same bytes.
func benchBackend(b *testing.B) string {
	ln := listen(b)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				answer := append([]byte("HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 16:00:00 GMT\r\nserver: bench\r\ncontent-type: text/plain\r\ncontent-length: 70\r\n\r\n"), make([]byte, benchBody)...)
				br := bufio.NewReader(nc)
				for {
					if skipHead(br) != nil {
						return
					}
					if _, err := nc.Write(answer); err != nil {
						return
					}
				}
			})
		}
	})
	b.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// skipHead reads a head.
func skipHead(br *bufio.Reader) error {
	for {
		if line, err := br.ReadSlice('\n'); err != nil || len(line) == 2 {
			return err
		}
	}
}

var benchHeader = f("user-agent", "bench/1.0", "accept", "*/*", "accept-encoding", "gzip", "x-request-id", "0f7a3c1e-7d0c-4b8e-9f0b-2a6f5f8f1b11",
	"x-forwarded-proto", "http", "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")

// BenchmarkHTTP1 is HTTP/1 on both sides on 16 connections: allocations are of the proxy alone, time is of the two peers, too.
func BenchmarkHTTP1(b *testing.B) {
	p := proxy(b, benchBackend(b), message.HTTP11)
	req := "GET /path?query HTTP/1.1\r\nHost: shop.example\r\n"
	for _, f := range benchHeader {
		req += f.Name + ": " + f.Value + "\r\n"
	}
	request := []byte(req + "\r\n")
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			nc, err := net.Dial("tcp", p.addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer nc.Close()
			br := bufio.NewReader(nc)
			for i := w; i < b.N; i += 16 {
				if _, err := nc.Write(request); err != nil {
					b.Error(err)
				}
				if err := skipHead(br); err != nil {
					b.Error(err)
					return
				}
				if _, err := br.Discard(benchBody); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkHTTP2 is HTTP/2 on both sides, by our codec on all four ends: 16 requests at a time on one connection. Allocations are of
// the two peers, too.
func BenchmarkHTTP2(b *testing.B) {
	payload := make([]byte, benchBody)
	header := f("server", "bench", "content-type", "text/plain")
	s := serve(b, nil, func(x *Exchange) {
		_ = x.Respond(&message.Response{Status: 200, Header: header, Body: message.Bytes(payload, nil), Length: benchBody})
	})
	p := proxy(b, s.addr, message.HTTP2)
	nc, err := net.Dial("tcp", p.addr)
	if err != nil {
		b.Fatal(err)
	}
	c := NewClient(nc, message.HTTP2, nil)
	defer func() {
		c.Close()
		<-c.Done()
	}()
	one := func() {
		for !c.Reserve() {
		}
		resp, err := c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/path?query", Authority: "shop.example", Header: benchHeader}, nil)
		if err != nil {
			b.Error(err)
			return
		}
		for {
			if _, err := resp.Body.Next(); err != nil {
				if err != io.EOF {
					b.Error(err)
				}
				break
			}
		}
		resp.Body.Close()
	}
	one()
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < b.N; i += 16 {
				one()
			}
		})
	}
	wg.Wait()
}

// BenchmarkBulk is a long response through server and client, by version on both sides; our codec is on all four ends.
func BenchmarkBulk(b *testing.B) {
	const size = 16 << 20
	for _, proto := range []message.Protocol{message.HTTP11, message.HTTP2} {
		for _, known := range []bool{true, false} {
			name, length := proto.String()+" sized", int64(size)
			if !known {
				name, length = proto.String()+" unsized", message.Unknown
			}
			b.Run(name, func(b *testing.B) {
				s := serve(b, nil, func(x *Exchange) {
					_ = x.Respond(&message.Response{Status: 200, Body: &zeros{left: size}, Length: length})
				})
				p := proxy(b, s.addr, proto)
				c, err := connect(b, p.addr, proto).reserve()
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(size)
				b.ReportAllocs()
				for i := range b.N {
					if i > 0 && !c.Reserve() {
						b.Fatal("no room for a request")
					}
					resp, err := c.RoundTrip(context.Background(), &message.Request{Method: "GET", Path: "/", Authority: "a"}, nil)
					if err != nil {
						b.Fatal(err)
					}
					for n := 0; ; {
						p, err := resp.Body.Next()
						if err == io.EOF && n == size {
							break
						}
						if err != nil {
							b.Fatalf("after %d bytes: %v", n, err)
						}
						n += len(p)
					}
					resp.Body.Close()
				}
			})
		}
	}
}

// zeros is a body of so many bytes.
type zeros struct {
	left  int
	piece [64 << 10]byte
}

func (z *zeros) Next() ([]byte, error) {
	if z.left == 0 {
		return nil, io.EOF
	}
	n := min(z.left, len(z.piece))
	z.left -= n
	return z.piece[:n], nil
}
func (*zeros) Ready() bool              { return true }
func (*zeros) Trailers() message.Fields { return nil }
func (*zeros) Close()                   {}
