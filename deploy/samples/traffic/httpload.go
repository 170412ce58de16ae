package traffic

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// HTTPLoadRequest describes a steady load on HTTP servers.
type HTTPLoadRequest struct {
	// Targets are host:port of HTTP servers, taken in turn.
	Targets []string `json:"targets"`
	// Clients is how many connections of HTTP/1.1 are kept, and how many of HTTP/2. Each asks by GET and POST in turn, every Every.
	Clients int `json:"clients"`
	// Hold is how many WebSockets are held, and how many streams of HTTP/2. Each exchanges a line every Every. One that ends is in
	// the report as cut, and another is opened.
	Hold int `json:"hold,omitempty"`
	// Every is zero for 100 ms.
	Every time.Duration `json:"every,omitempty"`
	// Timeout bounds each request and each exchange; zero is DefaultTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Limit ends the load in any case; zero is 20 minutes.
	Limit time.Duration `json:"limit,omitempty"`
	// Label goes into the payload beside Marker.
	Label string `json:"label,omitempty"`
}

// upgradeTo is what held connections of HTTP/1.1 speak: the server sends back what it gets.
const upgradeTo = "websocket"

// httpLoad is a running HTTPLoad.
type httpLoad struct {
	load
	req HTTPLoadRequest
}

// HTTPLoad asks, and holds connections, until ctx ends; it calls ready once everything that is held is open. In the report the
// connections that are opened are requests. Whatever status is not 200 is a failure.
func HTTPLoad(ctx context.Context, req HTTPLoadRequest, ready func()) (LoadReport, error) {
	if len(req.Targets) == 0 {
		return LoadReport{}, errors.New("load: no targets")
	}
	req.Every, req.Timeout = orDefault(req.Every, 100*time.Millisecond), orDefault(req.Timeout, DefaultTimeout)
	ctx, cancel := context.WithTimeout(ctx, orDefault(req.Limit, 20*time.Minute))
	defer cancel()
	l := &httpLoad{load: load{report: LoadReport{Failed: map[Kind]int{}}}, req: req}
	var held []*exchanger
	for i := range 2 * req.Hold {
		e, err := l.open(ctx, i)
		if err != nil {
			for _, e := range held {
				e.close()
			}
			return LoadReport{}, err
		}
		held = append(held, e)
	}
	l.report.Held, l.report.Started = len(held), time.Now()
	ready()
	var wg sync.WaitGroup
	for i, e := range held {
		wg.Go(func() { l.keep(ctx, i, e) })
	}
	for i := range 2 * req.Clients {
		wg.Go(func() { l.ask(ctx, i) })
	}
	wg.Wait()
	l.report.Ended = time.Now()
	l.report.Due = l.report.Opened // each waits for its answer
	l.summarise()
	return l.report, nil
}

func (l *httpLoad) target(i int) string { return l.req.Targets[i/2%len(l.req.Targets)] }

// transport keeps one connection; odd ones speak HTTP/2.
func transport(i int) *http.Transport {
	t := &http.Transport{Protocols: new(http.Protocols), MaxConnsPerHost: 1}
	t.Protocols.SetHTTP1(i%2 == 0)
	t.Protocols.SetUnencryptedHTTP2(i%2 == 1)
	return t
}

// ask sends requests until ctx ends. What was begun before is to end well.
func (l *httpLoad) ask(ctx context.Context, i int) {
	t := transport(i)
	defer t.CloseIdleConnections()
	for n := 0; pause(ctx, l.req.Every); n++ {
		method, sent := http.MethodGet, []byte(nil)
		if n%2 == 1 {
			method, sent = http.MethodPost, payload(fmt.Sprintf("%s request %d of %d", l.req.Label, n, i), 1000)
		}
		start := time.Now()
		err := l.once(context.WithoutCancel(ctx), t, method, l.target(i), sent)
		l.record(l.target(i), start, err)
	}
}

func (l *httpLoad) record(target string, start time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.report.Opened++; err == nil {
		l.took = append(l.took, time.Since(start))
		return
	}
	f := failure(target, nil, err, start)
	l.report.Failed[f.Kind]++
	if len(l.report.Failures) < maxFailures {
		l.report.Failures = append(l.report.Failures, f)
	}
}

func (l *httpLoad) once(ctx context.Context, t *http.Transport, method, target string, sent []byte) error {
	ctx, cancel := context.WithTimeout(ctx, l.req.Timeout)
	defer cancel()
	// What is sent is a reader of no known kind: the client cannot send it again by itself, and so hides no failure.
	var body io.Reader
	if sent != nil {
		body = io.MultiReader(bytes.NewReader(sent))
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+target+PathBack, body)
	if err != nil {
		return err
	}
	r.ContentLength = int64(len(sent))
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%w: status %d: %.200s", errWrong, resp.StatusCode, got)
	case !bytes.Equal(got, sent):
		return fmt.Errorf("%w: %d bytes came back for %d", errWrong, len(got), len(sent))
	}
	return nil
}

// exchanger is something that is held: lines go one way and come back the other.
type exchanger struct {
	target string
	opened time.Time
	write  io.Writer
	read   io.Reader
	close  func()
}

// open opens what is held: a WebSocket or, for odd ones, a stream of HTTP/2.
func (l *httpLoad) open(ctx context.Context, i int) (*exchanger, error) {
	e := &exchanger{target: l.target(i), opened: time.Now()}
	open := e.websocket
	if i%2 == 1 {
		open = e.stream
	}
	if err := open(ctx, l.req.Timeout); err != nil {
		return nil, fmt.Errorf("load: open %d to hold, to %s: %w", i, e.target, err)
	}
	return e, nil
}

func (e *exchanger) websocket(ctx context.Context, timeout time.Duration) error {
	conn, err := dial(ctx, e.target, timeout)
	if err != nil {
		return err
	}
	e.close = func() { conn.Close() }
	_ = conn.SetDeadline(time.Now().Add(timeout))
	reader := bufio.NewReader(conn)
	err = func() error {
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
			PathBack, e.target, upgradeTo); err != nil {
			return err
		}
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("%w: status %d", errWrong, resp.StatusCode)
		}
		return nil
	}()
	if err != nil {
		conn.Close()
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	e.read, e.write = reader, conn
	return nil
}

func (e *exchanger) stream(ctx context.Context, timeout time.Duration) error {
	t := transport(1)
	out, in := io.Pipe()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.close = func() {
		cancel()
		in.Close()
		t.CloseIdleConnections()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.target+PathBack, out)
	if err != nil {
		e.close()
		return err
	}
	late := time.AfterFunc(timeout, cancel)
	resp, err := t.RoundTrip(r)
	late.Stop()
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = fmt.Errorf("%w: status %d", errWrong, resp.StatusCode)
	}
	if err != nil {
		e.close()
		return err
	}
	e.read, e.write = resp.Body, in
	return nil
}

// keep exchanges lines until ctx ends. What ends before is cut, and opened again.
func (l *httpLoad) keep(ctx context.Context, i int, e *exchanger) {
	line := payload(fmt.Sprintf("%s held %d", l.req.Label, i), 64)
	for pause(ctx, l.req.Every) {
		if e == nil {
			start := time.Now()
			var err error
			if e, err = l.open(ctx, i); err != nil {
				if ctx.Err() == nil {
					l.record(l.target(i), start, err)
				}
				continue
			}
		}
		took, err := e.exchange(line, l.req.Timeout)
		l.mu.Lock()
		switch {
		case err != nil:
			l.report.Cut = append(l.report.Cut, failure(e.target, nil, err, e.opened))
		default:
			l.report.Exchanges++
			if took > l.report.Stall {
				l.report.Stall, l.report.StallAt = took, time.Now()
			}
		}
		l.mu.Unlock()
		if err != nil {
			e.close()
			e = nil
		}
	}
	if e != nil {
		e.close()
	}
}

// exchange sends a line and wants it back. What takes longer than timeout is closed, and fails.
func (e *exchanger) exchange(line []byte, timeout time.Duration) (time.Duration, error) {
	start := time.Now()
	late := time.AfterFunc(timeout, e.close)
	defer late.Stop()
	if _, err := e.write.Write(line); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	back := make([]byte, len(line))
	if _, err := io.ReadFull(e.read, back); err != nil {
		return 0, fmt.Errorf("read the echo: %w", err)
	}
	if !bytes.Equal(back, line) {
		return 0, fmt.Errorf("read the echo: %w", errWrong)
	}
	return time.Since(start), nil
}

// back sends back what it gets, as it gets it: a body, or what comes after an upgrade.
func back(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	if r.Header.Get("Upgrade") == upgradeTo {
		conn, buffered, err := control.Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", upgradeTo); err != nil {
			return
		}
		if _, err := io.Copy(conn, buffered.Reader); err == nil {
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
		}
		return
	}
	if r.ProtoMajor == 1 { // which takes no more of a request once it has begun to answer
		body, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = w.Write(body) // the client has gone: nobody to tell
		return
	}
	w.WriteHeader(http.StatusOK)
	_ = control.Flush()
	b := make([]byte, 4096)
	for {
		n, err := r.Body.Read(b)
		if n > 0 {
			if _, err := w.Write(b[:n]); err != nil || control.Flush() != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
