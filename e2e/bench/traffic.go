// Package bench measures what a node proxy costs: the same loads between two pods over bare TCP, through two plain TCP
// proxies in a row, and through ztunnel binaries, ours and others that speak the same wires. Machines are shared and
// noisy, so what counts are ratios within one run, never a figure by itself.
package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Ports of the traffic server.
const (
	portSink   = 5001 // reads to the end, then answers with the count of bytes
	portSource = 5002 // reads a time in milliseconds, then sends for so long
	portEcho   = 5003
	portOnce   = 5004 // answers one byte and closes, so that it is the server's side that remembers the connection, not its ports
)

const chunk = 256 << 10 // bytes of one write or read of the bulk loads

// Serve serves traffic on all addresses of the current network namespace until the context ends.
func Serve(ctx context.Context) error {
	handlers := map[int]func(net.Conn) error{portSink: sink, portSource: source, portEcho: echo, portOnce: once}
	var listeners []net.Listener
	for port := range handlers {
		ln, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("serve traffic: %w", err)
		}
		listeners = append(listeners, ln)
		go accept(ln, handlers[port])
	}
	<-ctx.Done()
	for _, ln := range listeners {
		ln.Close()
	}
	return nil
}

// accept serves until the listener is closed; connections end with the process.
func accept(ln net.Listener, handle func(net.Conn) error) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		go func() {
			defer conn.Close()
			_ = handle(conn) // the client counts what failed
		}()
	}
}

// reader hides the conn's other methods, so that bytes pass through user space as they do in a proxy.
type reader struct{ io.Reader }
type writer struct{ io.Writer }

func sink(conn net.Conn) error {
	n, err := io.CopyBuffer(writer{io.Discard}, reader{conn}, make([]byte, chunk))
	if err != nil {
		return err
	}
	return binary.Write(conn, binary.BigEndian, uint64(n))
}

func source(conn net.Conn) error {
	var ms uint64
	if err := binary.Read(conn, binary.BigEndian, &ms); err != nil {
		return err
	}
	buf, end := make([]byte, chunk), time.Now().Add(time.Duration(ms)*time.Millisecond)
	for time.Now().Before(end) {
		if _, err := conn.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func echo(conn net.Conn) error {
	_, err := io.CopyBuffer(writer{conn}, reader{conn}, make([]byte, 4<<10))
	return err
}

func once(conn net.Conn) error {
	buf := make([]byte, 1)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	_, err := conn.Write(buf)
	return err
}

// Load is one kind of traffic.
type Load struct {
	Name string
	// Kind is one of send, receive, pingpong, connect, storm, hold.
	Kind string
	// PerSecond is how many connections a storm opens in a second, whether or not the earlier ones are served.
	PerSecond int
	// Parallel is the number of connections at a time; for hold, how many are opened and kept.
	Parallel int
	// Duration is how long it runs; for hold, how long the connections stay after the last was opened.
	Duration time.Duration
}

// Result is what a load measured. Rate is bytes per second for send and receive, else operations per second.
type Result struct {
	Rate     float64
	Ops      uint64
	Bytes    uint64
	P50, P99 time.Duration
	Failed   uint64
	// FirstError tells why, if something failed.
	FirstError string `json:",omitempty"`
}

// Run runs the load against the host's traffic server. For hold, ready is called once all connections are open.
func (l Load) Run(ctx context.Context, host string, ready func()) (Result, error) {
	addr := func(port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
	r := &run{load: l, end: time.Now().Add(l.Duration)}
	start := time.Now()
	switch l.Kind {
	case "send":
		r.parallel(func() error { return r.send(addr(portSink)) })
	case "receive":
		r.parallel(func() error { return r.receive(addr(portSource)) })
	case "pingpong":
		r.parallel(func() error { return r.pingpong(addr(portEcho)) })
	case "connect":
		r.parallel(func() error { return r.connect(addr(portOnce)) })
	case "storm":
		r.storm(addr(portOnce))
	case "hold":
		return r.hold(ctx, addr(portEcho), ready)
	default:
		return Result{}, fmt.Errorf("load %s: unknown kind %q", l.Name, l.Kind)
	}
	return r.result(time.Since(start)), nil
}

type run struct {
	load  Load
	end   time.Time
	ops   atomic.Uint64
	bytes atomic.Uint64
	fails atomic.Uint64

	mu    sync.Mutex // guards the fields below
	times []time.Duration
	err   error
}

func (r *run) parallel(f func() error) {
	var wg sync.WaitGroup
	for range r.load.Parallel {
		wg.Go(func() { r.fail(f()) })
	}
	wg.Wait()
}

func (r *run) fail(err error) {
	if err == nil {
		return
	}
	r.fails.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

func (r *run) result(took time.Duration) Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Result{Ops: r.ops.Load(), Bytes: r.bytes.Load(), Failed: r.fails.Load()}
	out.Rate = float64(out.Ops) / took.Seconds()
	if r.load.Kind == "send" || r.load.Kind == "receive" {
		out.Rate = float64(out.Bytes) / took.Seconds()
	}
	if r.err != nil {
		out.FirstError = r.err.Error()
	}
	slices.Sort(r.times)
	if n := len(r.times); n > 0 {
		out.P50, out.P99 = r.times[n/2], r.times[n*99/100]
	}
	return out
}

func (r *run) add(times []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = append(r.times, times...)
}

func (r *run) send(addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf, sent := make([]byte, chunk), uint64(0)
	for time.Now().Before(r.end) {
		n, err := conn.Write(buf)
		if err != nil {
			return err
		}
		sent += uint64(n)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	var got uint64
	if err := binary.Read(conn, binary.BigEndian, &got); err != nil {
		return fmt.Errorf("read the server's count: %w", err)
	}
	if got != sent {
		return fmt.Errorf("sent %d bytes, the server got %d", sent, got)
	}
	r.bytes.Add(got)
	return nil
}

func (r *run) receive(addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := binary.Write(conn, binary.BigEndian, uint64(r.load.Duration.Milliseconds())); err != nil {
		return err
	}
	n, err := io.CopyBuffer(writer{io.Discard}, reader{conn}, make([]byte, chunk))
	r.bytes.Add(uint64(n))
	return err
}

func (r *run) pingpong(addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf, times := make([]byte, 1<<10), make([]time.Duration, 0, 1<<16)
	for {
		start := time.Now()
		if !start.Before(r.end) {
			r.add(times)
			return nil
		}
		if _, err := conn.Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			return err
		}
		times = append(times, time.Since(start))
		r.ops.Add(1)
	}
}

func (r *run) connect(addr string) error {
	buf, times := make([]byte, 1), make([]time.Duration, 0, 1<<14)
	for {
		start := time.Now()
		if !start.Before(r.end) {
			r.add(times)
			return nil
		}
		if err := r.once(addr, buf); err != nil {
			r.fail(err)
			continue
		}
		times = append(times, time.Since(start))
		r.ops.Add(1)
	}
}

// stormTick is how often a storm opens what is due.
const stormTick = time.Millisecond

// maxStorm bounds what a storm has open at a time: no more descriptors than any process may have. What is due then is not
// made up for later.
const maxStorm = 900

func (r *run) storm(addr string) {
	var wg sync.WaitGroup
	var open atomic.Int64
	defer wg.Wait()
	tick := time.NewTicker(stormTick)
	defer tick.Stop()
	start, due := time.Now(), 0
	for now := range tick.C {
		if !now.Before(r.end) {
			return
		}
		was := due
		due = int(now.Sub(start).Seconds() * float64(r.load.PerSecond))
		for range due - was {
			if open.Load() >= maxStorm {
				break
			}
			open.Add(1)
			wg.Go(func() {
				defer open.Add(-1)
				if err := r.once(addr, make([]byte, 1)); err != nil {
					r.fail(err)
					return
				}
				r.ops.Add(1)
			})
		}
	}
}

func (r *run) once(addr string, buf []byte) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(buf); err != nil {
		return err
	}
	if _, err = io.ReadFull(conn, buf); err != nil {
		return err
	}
	// The time of the end is not the connection's time to serve, but the next one waits for it.
	_, err = io.Copy(io.Discard, conn)
	return err
}

// openers is how many connections hold opens at a time.
const openers = 16

func (r *run) hold(ctx context.Context, addr string, ready func()) (Result, error) {
	var wg sync.WaitGroup
	conns := make(chan net.Conn, r.load.Parallel)
	start := time.Now()
	for i := range openers {
		wg.Go(func() {
			buf := make([]byte, 1)
			for range (r.load.Parallel + openers - 1 - i) / openers {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					r.fail(err)
					continue
				}
				conns <- conn
				if _, err := conn.Write(buf); err != nil {
					r.fail(err)
					continue
				}
				if _, err := io.ReadFull(conn, buf); err != nil {
					r.fail(err)
					continue
				}
				r.ops.Add(1)
			}
		})
	}
	wg.Wait()
	out := r.result(time.Since(start))
	ready()
	timer := time.NewTimer(r.load.Duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	close(conns)
	for conn := range conns {
		conn.Close()
	}
	return out, nil
}

// Forward is a plain TCP proxy: it accepts on the traffic ports of its namespace and passes bytes on to the same port of
// the host, through user space.
func Forward(ctx context.Context, host string) error {
	buffers := &sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}
	for _, port := range []int{portSink, portSource, portEcho, portOnce} {
		to := net.JoinHostPort(host, strconv.Itoa(port))
		ln, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("forward: %w", err)
		}
		defer ln.Close()
		go accept(ln, func(down net.Conn) error { return forward(down, to, buffers) })
	}
	<-ctx.Done()
	return nil
}

func forward(down net.Conn, to string, buffers *sync.Pool) error {
	up, err := net.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer up.Close()
	done := make(chan error, 1)
	go func() { done <- pass(up, down, buffers) }()
	err = pass(down, up, buffers)
	return errors.Join(err, <-done)
}

func pass(to, from net.Conn, buffers *sync.Pool) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err := io.CopyBuffer(writer{to}, reader{from}, *buf)
	return errors.Join(err, to.(*net.TCPConn).CloseWrite())
}
