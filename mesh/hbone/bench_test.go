package hbone

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// benchChain relays connections from an address to another one: application - relay - tunnel - relay - application, all
// over loopback. With plain, two relays in a row without a tunnel, as a measure.
type benchChain struct {
	addr string // of the first relay
	w    *world
	pool *Pool

	parker *Parker // of the relays to tunnels
}

func newBenchChain(b *testing.B, plain bool, app string) *benchChain {
	b.Helper()
	c := &benchChain{}
	dialApp := func() *net.TCPConn {
		nc, err := net.Dial("tcp", app)
		if err != nil {
			b.Error(err)
			return nil
		}
		return nc.(*net.TCPConn)
	}
	forward := func(to func() *net.TCPConn) func(*net.TCPConn) {
		return func(nc *net.TCPConn) {
			if other := to(); other != nil {
				_ = RelayTCP(context.Background(), nc, other, nil)
			}
		}
	}
	if plain {
		second := accept(b, forward(dialApp))
		c.addr = accept(b, forward(func() *net.TCPConn {
			nc, err := net.Dial("tcp", second)
			if err != nil {
				b.Error(err)
				return nil
			}
			return nc.(*net.TCPConn)
		}))
		return c
	}
	c.parker = newParker(b)
	relayer := Relayer{Parker: c.parker}
	c.w = newWorld(b, func(ctx context.Context, in *Incoming) {
		nc := dialApp()
		if nc == nil {
			_ = in.Reject(503, "")
			return
		}
		s, err := in.Accept()
		if err != nil {
			_ = nc.Close()
			return
		}
		relayer.Start(ctx, nc, s, nil, func(error) {})
	}, nil)
	c.pool = c.w.pool(nil)
	c.addr = accept(b, func(nc *net.TCPConn) {
		s, err := c.pool.Open(context.Background(), c.w.target(), request)
		if err != nil {
			b.Error(err)
			_ = nc.Close()
			return
		}
		relayer.Start(context.Background(), nc, s, nil, func(error) {})
	})
	return c
}

// accept serves connections to a new address until the end of the benchmark.
func accept(b *testing.B, serve func(*net.TCPConn)) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(nc.(*net.TCPConn)) })
		}
	})
	b.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// discard is a server that reads everything and answers with one byte at the end.
func discard(nc *net.TCPConn) {
	buf := make([]byte, 256<<10)
	for {
		if _, err := nc.Read(buf); err != nil {
			break
		}
	}
	_, _ = nc.Write([]byte("."))
	_ = nc.Close()
}

// echoTCP is a server that sends back what comes.
func echoTCP(nc *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := nc.Read(buf)
		if err != nil {
			break
		}
		if _, err := nc.Write(buf[:n]); err != nil {
			break
		}
	}
	_ = nc.Close()
}

// cpu returns the processor time that the process has used, in nanoseconds: on a busy machine it tells more than the clock.
func cpu() int64 {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return ru.Utime.Nano() + ru.Stime.Nano()
}

// both runs a benchmark through plain relays and through tunnels, and reports the processor time of everything: the
// applications, the relays and the kernel between them.
func both(b *testing.B, app func(*net.TCPConn), run func(b *testing.B, addr string, parked func() int)) {
	for _, plain := range []bool{true, false} {
		name := "tunnel"
		if plain {
			name = "plain"
		}
		b.Run(name, func(b *testing.B) {
			c := newBenchChain(b, plain, accept(b, app))
			var parked func() int
			if c.parker != nil {
				parked = c.parker.Parked
			}
			before := cpu()
			run(b, c.addr, parked)
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

func benchDial(b *testing.B, addr string) *net.TCPConn {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	return nc.(*net.TCPConn)
}

func BenchmarkThroughput(b *testing.B) {
	for _, streams := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(streams), func(b *testing.B) {
			both(b, discard, func(b *testing.B, addr string, _ func() int) {
				const block = 256 << 10
				var conns []*net.TCPConn
				for range streams {
					conns = append(conns, benchDial(b, addr))
				}
				var left atomic.Int64
				left.Store(int64(b.N))
				b.SetBytes(block)
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for _, nc := range conns {
					wg.Go(func() {
						data := make([]byte, block)
						for left.Add(-1) >= 0 {
							if _, err := nc.Write(data); err != nil {
								b.Error(err)
								return
							}
						}
						_ = nc.CloseWrite()
						if _, err := nc.Read(data); err != nil {
							b.Error(err)
						}
						_ = nc.Close()
					})
				}
				wg.Wait()
			})
		})
	}
}

func BenchmarkPingPong(b *testing.B) {
	for _, conns := range []int{1, 64} {
		b.Run(fmt.Sprint(conns), func(b *testing.B) {
			both(b, echoTCP, func(b *testing.B, addr string, _ func() int) {
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				var open []*net.TCPConn
				for range conns {
					open = append(open, benchDial(b, addr))
				}
				b.ReportAllocs()
				b.ResetTimer()
				for _, nc := range open {
					wg.Go(func() {
						defer nc.Close()
						buf := make([]byte, 1024)
						for left.Add(-1) >= 0 {
							if _, err := nc.Write(buf); err != nil {
								b.Error(err)
								return
							}
							if _, err := io.ReadFull(nc, buf); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// BenchmarkConnection is a new connection of the application with one byte there and back, over a pooled tunnel.
func BenchmarkConnection(b *testing.B) {
	for _, parallel := range []int{1, 32} {
		b.Run(fmt.Sprint(parallel), func(b *testing.B) {
			both(b, echoTCP, func(b *testing.B, addr string, _ func() int) {
				benchDial(b, addr).Close()
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				b.ReportAllocs()
				b.ResetTimer()
				for range parallel {
					wg.Go(func() {
						buf := make([]byte, 1)
						for left.Add(-1) >= 0 {
							nc := benchDial(b, addr)
							_, _ = nc.Write(buf)
							if _, err := io.ReadFull(nc, buf); err != nil {
								b.Error(err)
							}
							_ = nc.SetLinger(0) // keeps ports free
							_ = nc.Close()
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// BenchmarkOpen is the opening of a stream on a pooled tunnel, without anything behind it.
func BenchmarkOpen(b *testing.B) {
	w := newWorld(b, func(_ context.Context, in *Incoming) {
		if s, err := in.Accept(); err == nil {
			_ = s.CloseWrite()
			_, _ = io.Copy(io.Discard, s)
		}
	}, nil)
	p := w.pool(nil)
	_ = w.mustOpen(p).Close()
	target := w.target()
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		s, err := p.Open(context.Background(), target, request)
		if err != nil {
			b.Fatal(err)
		}
		_ = s.CloseWrite()
		_, _ = s.Read(make([]byte, 1))
		_ = s.Close()
	}
}

// BenchmarkHandshake is a new tunnel connection with its first stream.
func BenchmarkHandshake(b *testing.B) {
	w := newWorld(b, func(_ context.Context, in *Incoming) {
		if s, err := in.Accept(); err == nil {
			_ = s.CloseWrite()
		}
	}, nil)
	target := w.target()
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		p := NewPool(PoolConfig{Dial: w.dial, TLS: w.pool(nil).cfg.TLS})
		s, err := p.Open(context.Background(), target, request)
		if err != nil {
			b.Fatal(err)
		}
		_ = s.Close()
		_ = p.Close()
	}
}

// BenchmarkIdleMemory reports the bytes of heap and stacks for one idle connection through both ends: four TCP connections
// in all, the applications' included. Between their first byte and the measurement the applications hold nothing.
func BenchmarkIdleMemory(b *testing.B) {
	const n = 2000
	wait := func(nc *net.TCPConn) {
		buf := make([]byte, 1)
		_, _ = nc.Read(buf)
		_, _ = nc.Write(buf)
		_, _ = nc.Read(buf)
		_ = nc.Close()
	}
	both(b, wait, func(b *testing.B, addr string, parked func() int) {
		for b.Loop() {
			heap, stack := memory()
			var conns []*net.TCPConn
			buf := make([]byte, 1)
			for range n {
				nc := benchDial(b, addr)
				_, _ = nc.Write(buf)
				_, _ = io.ReadFull(nc, buf)
				conns = append(conns, nc)
			}
			report := func(when string) {
				h, s := memory()
				b.ReportMetric(float64(h-heap)/n, when+"-heap-B/conn")
				b.ReportMetric(float64(s-stack)/n, when+"-stack-B/conn")
			}
			report("busy")
			await(b, "all are parked", func() bool { return parked == nil || parked() == 2*n })
			report("idle")
			for _, nc := range conns {
				_ = nc.Close()
			}
		}
	})
}

// memory returns the bytes that the heap and the stacks of the process use.
func memory() (heap, stack int64) {
	for range 4 { // stacks shrink by half each time
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse)
}
