package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// BenchmarkRequest is the proxy in plain: client, proxy and backend on loopback, 70 bytes of body. The CPU time of all three
// together is reported; client and backend do as little as they can.
func BenchmarkRequest(b *testing.B) {
	for _, version := range versions {
		b.Run(version, func(b *testing.B) {
			w := newWorld(b, func(c *Config) { c.AccessLog = nil })
			ln := w.listen()
			b.Cleanup(func() { _ = ln.Close() })
			if version == "HTTP/2.0" {
				go echoing2(ln)
			} else {
				go echoing1(ln)
			}
			w.plainEndpoint("c", 1, ln.Addr().String())
			w.apply(all)
			front := w.plainFront()
			const conns = 8
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu(b)
			var wg sync.WaitGroup
			for i := range conns {
				n := b.N / conns
				if i == 0 {
					n += b.N % conns
				}
				wg.Go(func() {
					if version == "HTTP/2.0" {
						asking2(b, front, n)
					} else {
						asking1(b, front, n)
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/1000, "µs-cpu/op")
		})
	}
}

func cpu(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// plainFront serves the web port's connections without tunnels, and returns where.
func (w *world) plainFront() string {
	ln := w.listen()
	var served sync.WaitGroup
	served.Go(func() {
		if err := w.proxy.ServePlain(context.Background(), ln, netip.MustParseAddrPort(configtest.Address+":80")); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() {
		_ = ln.Close()
		served.Wait()
	})
	return ln.Addr().String()
}

const (
	benchRequest  = "GET /some/path HTTP/1.1\r\nhost: stock.shop\r\nuser-agent: bench/1.0\r\naccept: */*\r\n\r\n"
	benchResponse = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 70\r\ndate: Mon, 23 Nov 2026 16:00:00 GMT\r\n\r\n" +
		"0123456789012345678901234567890123456789012345678901234567890123456789"
)

// echoing1 is a backend of HTTP/1.1.
func echoing1(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer nc.Close()
			b := make([]byte, 4096)
			for {
				if _, err := nc.Read(b); err != nil {
					return
				}
				if _, err := io.WriteString(nc, benchResponse); err != nil {
					return
				}
			}
		}()
	}
}

// asking1 is a client of HTTP/1.1.
func asking1(b *testing.B, addr string, n int) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Error(err)
		return
	}
	defer nc.Close()
	buf := make([]byte, 4096)
	for range n {
		if _, err := io.WriteString(nc, benchRequest); err != nil {
			b.Error(err)
			return
		}
		got := 0
		for got == 0 || !strings.HasSuffix(string(buf[:got]), "0123456789") {
			k, err := nc.Read(buf[got:])
			if err != nil {
				b.Error(err)
				return
			}
			got += k
		}
		if !strings.HasPrefix(string(buf[:got]), "HTTP/1.1 200") {
			b.Errorf("%s", buf[:got])
			return
		}
	}
}

// echoing2 is a backend of HTTP/2.
func echoing2(ln net.Listener) {
	body := []byte("0123456789012345678901234567890123456789012345678901234567890123456789")
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			_ = h2.NewServer(h2.NetTransport(nc), h2.Config{}, func(s *h2.Stream) {
				if _, err := s.Headers(context.Background()); err != nil {
					return
				}
				if s.WriteHeaders([]h2.Field{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "text/plain"}, {Name: "content-length", Value: "70"}}, false) == nil {
					_, _ = s.Write(body)
					_ = s.CloseWrite()
				}
			}).Run()
		}()
	}
}

// asking2 is a client of HTTP/2, with 16 requests at a time on its connection.
func asking2(b *testing.B, addr string, n int) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Error(err)
		return
	}
	c := codec.NewClient(nc, message.HTTP2, &codec.ClientConfig{})
	defer func() {
		c.Close()
		<-c.Done()
	}()
	var wg sync.WaitGroup
	const at = 16
	for i := range at {
		k := n / at
		if i == 0 {
			k += n % at
		}
		wg.Go(func() {
			for range k {
				if err := get2(c); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// get2 sends a request, once the connection has room for one.
func get2(c codec.Client) error {
	for !c.Reserve() {
		runtime.Gosched() // the first streams wait for SETTINGS
	}
	req := message.Request{Method: "GET", Scheme: "http", Authority: "stock.shop", Path: "/some/path",
		Header: message.Fields{{Name: "user-agent", Value: "bench/1.0"}, {Name: "accept", Value: "*/*"}}}
	resp, err := c.RoundTrip(context.Background(), &req, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n := 0
	for {
		p, err := resp.Body.Next()
		n += len(p)
		if err != nil {
			if n != 70 || resp.Status != 200 {
				return fmt.Errorf("status %d, %d bytes, %w", resp.Status, n, err)
			}
			return nil
		}
	}
}
