package requests

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Version is a version of HTTP.
type Version string

// Versions.
const (
	HTTP1 Version = "HTTP/1.1"
	HTTP2 Version = "HTTP/2"
)

// bodySize is the size of every response's body, in bytes.
const bodySize = 70

// What every client asks, over either version.
const (
	path      = "/some/path?and=a+query"
	authority = "stock.shop"
)

var requestHeader = message.Fields{
	{Name: "user-agent", Value: "bench/1.0"}, {Name: "accept", Value: "*/*"}, {Name: "accept-encoding", Value: "identity"},
	{Name: "traceparent", Value: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
}

// Load is requests, each after the answer of the one before it on the same stream.
type Load struct {
	Version     Version
	Connections int
	// Streams is how many requests are under way on a connection; 1 for HTTP/1.1.
	Streams  int
	Duration time.Duration
	// Addr is where they go.
	Addr string
}

// Name is how reports name it.
func (l Load) Name() string {
	if l.Version == HTTP1 {
		return fmt.Sprintf("%s, %d connections", l.Version, l.Connections)
	}
	return fmt.Sprintf("%s, %d connections of %d streams", l.Version, l.Connections, l.Streams)
}

// Result is what came of a load.
type Result struct {
	Requests, Failed uint64
	// Rate is requests per second.
	Rate     float64
	P50, P99 time.Duration
	// FirstError tells why, if something failed.
	FirstError string `json:",omitempty"`
}

// Run sends the load. Requests that fail are counted in the result, and end their stream of requests.
func (l Load) Run(ctx context.Context) Result {
	var (
		all   sync.WaitGroup
		mu    sync.Mutex // guards what follows
		out   Result
		times []time.Duration
	)
	start := time.Now()
	end := start.Add(l.Duration)
	for range l.Connections {
		all.Go(func() {
			took, err := l.connection(ctx, end)
			mu.Lock()
			defer mu.Unlock()
			times = append(times, took...)
			if err != nil {
				out.Failed++
				if out.FirstError == "" {
					out.FirstError = err.Error()
				}
			}
		})
	}
	all.Wait()
	out.Requests = uint64(len(times))
	out.Rate = float64(out.Requests) / time.Since(start).Seconds()
	slices.Sort(times)
	if n := len(times); n > 0 {
		out.P50, out.P99 = times[n/2], times[n*99/100]
	}
	return out
}

// connection sends requests on one connection until end, and returns how long each took.
func (l Load) connection(ctx context.Context, end time.Time) ([]time.Duration, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", l.Addr)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	if l.Version == HTTP1 {
		return ask1(nc, end)
	}
	return ask2(ctx, nc, l.Streams, end)
}

// text1 is the request in HTTP/1.1.
func text1() []byte {
	text := "GET " + path + " HTTP/1.1\r\nhost: " + authority + "\r\n"
	for _, f := range requestHeader {
		text += f.Name + ": " + f.Value + "\r\n"
	}
	return []byte(text + "\r\n")
}

// askOnce sends one request and reads its response.
func askOnce(nc net.Conn) error {
	if _, err := nc.Write(text1()); err != nil {
		return err
	}
	return response1(bufio.NewReader(nc))
}

// ask1 speaks HTTP/1.1 with as little as it takes.
func ask1(nc net.Conn, end time.Time) (times []time.Duration, err error) {
	request, br := text1(), bufio.NewReader(nc)
	for {
		start := time.Now()
		if !start.Before(end) {
			return times, nil
		}
		if _, err := nc.Write(request); err != nil {
			return times, err
		}
		if err := response1(br); err != nil {
			return times, err
		}
		times = append(times, time.Since(start))
	}
}

// response1 reads a response.
func response1(br *bufio.Reader) error {
	for first := true; ; first = false {
		line, err := br.ReadSlice('\n')
		switch {
		case err != nil:
			return err
		case first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200")):
			return fmt.Errorf("response %q", line)
		case len(line) == 2:
			_, err := br.Discard(bodySize)
			return err
		}
	}
}

// ask2 speaks HTTP/2, with streams requests at a time.
func ask2(ctx context.Context, nc net.Conn, streams int, end time.Time) (times []time.Duration, err error) {
	var (
		all sync.WaitGroup
		mu  sync.Mutex // guards what follows
	)
	room := make(chan struct{}, 1) // the connection has changed
	c := codec.NewClient(nc, message.HTTP2, &codec.ClientConfig{OnChange: func() {
		select {
		case room <- struct{}{}:
		default:
		}
	}})
	for c.Available() < streams { // until the server's SETTINGS have come
		select {
		case <-room:
		case <-c.Done():
			return nil, fmt.Errorf("the connection ended before it could be used: %w", c.Err())
		}
	}
	for range streams {
		all.Go(func() {
			var took []time.Duration
			var failed error
			for failed == nil {
				start := time.Now()
				if !start.Before(end) {
					break
				}
				if failed = request2(ctx, c); failed == nil {
					took = append(took, time.Since(start))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			times, err = append(times, took...), errors.Join(err, failed)
		})
	}
	all.Wait()
	c.Close()
	<-c.Done()
	return times, err
}

// request2 sends a request and reads its response.
func request2(ctx context.Context, c codec.Client) error {
	if !c.Reserve() {
		return errors.New("the connection takes no more requests")
	}
	resp, err := c.RoundTrip(ctx, &message.Request{Method: "GET", Scheme: "http", Authority: authority, Path: path, Header: requestHeader}, nil)
	if err != nil {
		return err
	}
	if resp.Body == nil {
		return fmt.Errorf("response of status %d without a body", resp.Status)
	}
	defer resp.Body.Close()
	for n := 0; ; {
		p, err := resp.Body.Next()
		n += len(p)
		switch {
		case err == io.EOF && n == bodySize && resp.Status == 200:
			return nil
		case err != nil:
			return fmt.Errorf("response of status %d, %d bytes: %w", resp.Status, n, err)
		}
	}
}
