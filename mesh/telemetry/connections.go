package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ConnectionLabels say which TCP connections of an L7 proxy are counted together.
type ConnectionLabels struct {
	Ends
	Flag RequestFlag
	// MutualTLS tells whether the client came by a tunnel.
	MutualTLS bool
}

// connectionSeries is what one set of labels counts. Bytes are counted under the flag that a connection has while it is open.
type connectionSeries struct {
	pairs                                  labelPairs
	opened, closed, failed, sent, received atomic.Uint64
	open                                   atomic.Int64 // that would count their bytes here
	use                                    use
}

// LiveConnection is a connection that is open.
type LiveConnection struct {
	requests       *Requests
	labels         ConnectionLabels
	series         *connectionSeries
	sent, received *atomic.Uint64

	mu                 sync.Mutex // guards what follows: how much was counted already
	wasSent, wasGotten uint64
}

func (r *Requests) connection(l ConnectionLabels) *connectionSeries {
	s, ok := r.connections.Load(l)
	if !ok {
		bound(r.connections, &l.Ends)
		s, _ = r.connections.LoadOrCompute(l, func() (*connectionSeries, bool) {
			return &connectionSeries{pairs: l.pairs(r.reporter, connectionNames, []string{securityOf(l.MutualTLS), "tcp", l.Flag.String()})}, false
		})
	}
	return s
}

// Opened counts a connection that was opened; its Flag is ignored. sent and received grow with the payload that the server and the
// client has sent: they are read at each scrape, and for the last time by Closed, which the caller must call.
func (r *Requests) Opened(l ConnectionLabels, sent, received *atomic.Uint64) *LiveConnection {
	l.Flag = RequestOK
	c := &LiveConnection{requests: r, labels: l, series: r.connection(l), sent: sent, received: received}
	c.series.opened.Add(1)
	c.series.open.Add(1)
	r.live.Store(c, struct{}{})
	return c
}

// Closed counts the end of the connection, as flag.
func (c *LiveConnection) Closed(flag RequestFlag) {
	c.requests.live.Delete(c)
	c.count()
	c.labels.Flag = flag
	c.requests.connection(c.labels).closed.Add(1)
	c.series.open.Add(-1)
}

// count adds what was carried since it was called last.
func (c *LiveConnection) count() {
	c.mu.Lock()
	defer c.mu.Unlock()
	sent, received := c.sent.Load(), c.received.Load()
	c.series.sent.Add(sent - c.wasSent)
	c.series.received.Add(received - c.wasGotten)
	c.wasSent, c.wasGotten = sent, received
}

// Failed counts a connection that could not be opened, or was refused.
func (r *Requests) Failed(l ConnectionLabels) { r.connection(l).failed.Add(1) }

func (r *Requests) collectConnections(ch chan<- prometheus.Metric, now time.Time) {
	for c := range r.live.All() {
		c.count()
	}
	for l, s := range r.connections.All() {
		opened, closed, failed, sent, received := s.opened.Load(), s.closed.Load(), s.failed.Load(), s.sent.Load(), s.received.Load()
		if opened > 0 {
			ch <- &counter{r.opened, s.pairs, opened}
			ch <- &counter{r.bytesOut, s.pairs, sent}
			ch <- &counter{r.bytesIn, s.pairs, received}
		}
		if closed > 0 {
			ch <- &counter{r.closed, s.pairs, closed}
		}
		if failed > 0 {
			ch <- &counter{r.failed, s.pairs, failed}
		}
		if s.use.over(opened+closed+failed+sent+received, now) && s.open.Load() == 0 {
			r.connections.Delete(l)
		}
	}
}
