package traffic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// LoadRequest describes a steady load on echo servers.
type LoadRequest struct {
	// Targets are host:port of echo servers, taken in turn.
	Targets []string `json:"targets"`
	// Rate is how many connections are opened a second, over all targets, whether or not earlier ones have ended. Each
	// sends a line, ends, and wants the line and the end back. Zero opens none.
	Rate int `json:"rate,omitempty"`
	// Hold is how many connections are opened before Load is ready and held until it ends.
	Hold int `json:"hold,omitempty"`
	// Every is how often a held connection exchanges a line; zero is 100 ms.
	Every time.Duration `json:"every,omitempty"`
	// Timeout bounds each connect and each exchange; zero is DefaultTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Limit ends the load in any case, so that one whose owner is gone does not run on; zero is 20 minutes.
	Limit time.Duration `json:"limit,omitempty"`
	// Label goes into the payload beside Marker.
	Label string `json:"label,omitempty"`
}

// LoadReport is what became of a load.
type LoadReport struct {
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	// Opened is how many new connections were tried, Due how many should have been.
	Opened int `json:"opened"`
	Due    int `json:"due"`
	// Failed counts new connections that failed, by kind; Failures are the first maxFailures of them.
	Failed   map[Kind]int `json:"failed,omitempty"`
	Failures []Failure    `json:"failures,omitempty"`
	// Median, P99 and Slowest are of new connections that did not fail, from connect to the server's end.
	Median  time.Duration `json:"median"`
	P99     time.Duration `json:"p99"`
	Slowest time.Duration `json:"slowest"`
	// Held is how many connections were held, Exchanges how often they exchanged a line.
	Held      int `json:"held"`
	Exchanges int `json:"exchanges"`
	// Cut are the held connections that ended before the load did, or did not end cleanly then.
	Cut []Failure `json:"cut,omitempty"`
	// Stall is the longest that an exchange of a held connection took, and StallAt when it ended.
	Stall   time.Duration `json:"stall"`
	StallAt time.Time     `json:"stallAt"`
}

// FailedTotal is how many new connections failed.
func (r LoadReport) FailedTotal() int {
	n := 0
	for _, count := range r.Failed {
		n += count
	}
	return n
}

// maxFailures bounds the failures that a report lists one by one.
const maxFailures = 100

// maxPending bounds new connections in flight. Whatever is due beyond it is not opened, which the report shows as Opened < Due.
const maxPending = 4000

// load is a running Load.
type load struct {
	req LoadRequest

	mu     sync.Mutex // guards the fields below
	report LoadReport
	took   []time.Duration
}

// Load opens what is to be held, calls ready, and keeps the load up until ctx ends. It fails at once if a connection to be
// held cannot be opened; everything later goes into the report.
func Load(ctx context.Context, req LoadRequest, ready func()) (LoadReport, error) {
	if len(req.Targets) == 0 {
		return LoadReport{}, errors.New("load: no targets")
	}
	req.Every = orDefault(req.Every, 100*time.Millisecond)
	req.Timeout = orDefault(req.Timeout, DefaultTimeout)
	ctx, cancel := context.WithTimeout(ctx, orDefault(req.Limit, 20*time.Minute))
	defer cancel()

	l := &load{req: req, report: LoadReport{Failed: map[Kind]int{}}}
	held, err := l.openHeld(ctx)
	defer func() {
		for _, h := range held {
			h.conn.Close()
		}
	}()
	if err != nil {
		return LoadReport{}, err
	}
	l.report.Started = time.Now()
	ready()

	var wg sync.WaitGroup
	for i, h := range held {
		// Spread the exchanges over the period, as independent clients would.
		offset := req.Every * time.Duration(i) / time.Duration(len(held))
		wg.Go(func() { l.hold(ctx, h, offset) })
	}
	wg.Go(func() { l.open(ctx) })
	wg.Wait()
	l.report.Ended = time.Now()
	l.summarise()
	return l.report, nil
}

type heldConn struct {
	target string
	conn   *net.TCPConn
	opened time.Time
	line   []byte
}

func (l *load) openHeld(ctx context.Context) ([]heldConn, error) {
	var held []heldConn
	for i := range l.req.Hold {
		target := l.req.Targets[i%len(l.req.Targets)]
		conn, err := dial(ctx, target, l.req.Timeout)
		if err != nil {
			return held, fmt.Errorf("load: open connection %d to hold, to %s: %w", i+1, target, err)
		}
		h := heldConn{target: target, conn: conn, opened: time.Now(), line: payload(fmt.Sprintf("%s held %d", l.req.Label, i), 64)}
		held = append(held, h)
		if _, err := l.exchange(h); err != nil {
			return held, fmt.Errorf("load: first exchange of connection %d to hold, to %s: %w", i+1, target, err)
		}
	}
	l.report.Held = len(held)
	return held, nil
}

// exchange sends a held connection's line and wants it back.
func (l *load) exchange(h heldConn) (time.Duration, error) {
	start := time.Now()
	_ = h.conn.SetDeadline(start.Add(l.req.Timeout)) // fails only on a closed connection, and then so does the write
	if _, err := h.conn.Write(h.line); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	back := make([]byte, len(h.line))
	if _, err := io.ReadFull(h.conn, back); err != nil {
		return 0, fmt.Errorf("read the echo: %w", err)
	}
	if !bytes.Equal(back, h.line) {
		return 0, fmt.Errorf("read the echo: %w", errWrong)
	}
	return time.Since(start), nil
}

// hold exchanges a line every period until ctx ends, and then ends the connection and wants the other side's end.
func (l *load) hold(ctx context.Context, h heldConn, offset time.Duration) {
	next := time.Now().Add(offset)
	for pause(ctx, time.Until(next)) {
		took, err := l.exchange(h)
		if err != nil {
			l.cut(h, err)
			return
		}
		l.mu.Lock()
		l.report.Exchanges++
		if took > l.report.Stall {
			l.report.Stall, l.report.StallAt = took, time.Now()
		}
		l.mu.Unlock()
		if next = next.Add(l.req.Every); time.Until(next) < 0 {
			next = time.Now() // late: go on at the pace, do not catch up
		}
	}
	_ = h.conn.SetDeadline(time.Now().Add(l.req.Timeout))
	if err := h.conn.CloseWrite(); err != nil {
		l.cut(h, fmt.Errorf("end: %w", err))
		return
	}
	if n, err := io.Copy(io.Discard, h.conn); err != nil {
		l.cut(h, fmt.Errorf("wait for the other side's end: %w", err))
	} else if n > 0 {
		l.cut(h, fmt.Errorf("%w: %d bytes after the last exchange", errWrong, n))
	}
}

func (l *load) cut(h heldConn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Cut = append(l.report.Cut, failure(h.target, h.conn, err, h.opened))
}

// open opens new connections at the rate until ctx ends, then waits for those in flight.
func (l *load) open(ctx context.Context) {
	if l.req.Rate <= 0 {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	var pending atomic.Int64
	start := time.Now()
	due := 0
	for ; pause(ctx, time.Until(start.Add(time.Duration(due)*time.Second/time.Duration(l.req.Rate)))); due++ {
		if pending.Load() >= maxPending {
			continue
		}
		target := l.req.Targets[due%len(l.req.Targets)]
		line := payload(fmt.Sprintf("%s new %d", l.req.Label, due), 64)
		pending.Add(1)
		// Not ctx: what was opened before the end is to end well.
		wg.Go(func() {
			defer pending.Add(-1)
			l.once(context.WithoutCancel(ctx), target, line)
		})
	}
	l.mu.Lock()
	l.report.Due = due
	l.mu.Unlock()
}

// once opens one new connection and records what became of it.
func (l *load) once(ctx context.Context, target string, line []byte) {
	start := time.Now()
	conn, err := dial(ctx, target, l.req.Timeout)
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(l.req.Timeout))
		err = echoOnce(conn, line)
	}
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Opened++
	if err == nil {
		l.took = append(l.took, took)
		return
	}
	var c net.Conn
	if conn != nil {
		c = conn
	}
	f := failure(target, c, err, start)
	l.report.Failed[f.Kind]++
	if len(l.report.Failures) < maxFailures {
		l.report.Failures = append(l.report.Failures, f)
	}
}

func (l *load) summarise() {
	if len(l.took) == 0 {
		return
	}
	slices.Sort(l.took)
	l.report.Median = l.took[len(l.took)/2]
	l.report.P99 = l.took[len(l.took)*99/100]
	l.report.Slowest = l.took[len(l.took)-1]
}
