package proxy

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// Causes of the end of a connection that this proxy itself cuts.
var (
	errPolicyChanged = errors.New("closed due to policy change")
	errPodGone       = errors.New("closed because the pod is gone")
	errGraceOver     = errors.New("closed because the node proxy ends")
)

// table holds the connections of a pod. Its methods may be called concurrently.
type table struct {
	mu    sync.Mutex // guards the fields below, and each conn's
	conns map[*conn]bool
	next  uint64
	files int           // descriptors of conns
	ended error         // why there are to be no more connections
	empty chan struct{} // closed when there is none; nil if nobody waits for that
}

// conn is one connection: between the pod's application and a peer, plain or in a tunnel.
type conn struct {
	table  *table
	id     uint64
	ctx    context.Context         // until it is carried
	cancel context.CancelCauseFunc // of ctx, likewise
	abort  func(error)             // of its relay in the background; nil before
	cause  error                   // why it was cut

	// What is relayed once the connection is open, until it is carried: tcp, and either a stream or a second connection.
	tcp, second *net.TCPConn
	stream      *hbone.Stream
	early       *hbone.Early // outbound
	// endpoint, if not nil, is held for balancing until the connection is closed.
	endpoint *directory.Workload

	// counters are live. They are the relay's, whose first side is the client for plain and outbound connections, and the
	// application for tunnels that come in (appFirst).
	counters hbone.Counters
	appFirst bool

	// Set by the goroutine that serves the connection, under the table's lock, as ctx and cancel are; read by it without, by
	// others under it.
	record   telemetry.Connection // Start is immutable
	proof    proof                // of the tunnel's peer
	original netip.AddrPort       // where the client wanted to go
	judged   policy.Connection    // what policy decided on; zero for outbound
	files    int                  // descriptors of its own: streams share theirs
	series   *telemetry.Series    // since it is open
	took     time.Duration        // from the start until then
	reported struct{ sent, received uint64 }
	movedAt  time.Time // when a report last found that something had moved, or it was opened
}

// open registers a connection, once fill has described it. Its context ends with parent and by cut; close must be called.
func (t *table) open(parent context.Context, fill func(*conn)) *conn {
	c := &conn{table: t, files: 1}
	c.record.Start = time.Now()
	c.counters.First = c
	c.ctx, c.cancel = context.WithCancelCause(parent)
	fill(c)
	t.mu.Lock()
	t.files += c.files
	t.next++
	c.id = t.next
	t.conns[c] = true
	ended := t.ended
	t.mu.Unlock()
	if ended != nil {
		c.cut(ended)
	}
	return c
}

// end cuts all connections, and those that are opened from now on.
func (t *table) end(cause error) {
	t.mu.Lock()
	if t.ended == nil {
		t.ended = cause
	}
	all := make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		all = append(all, c)
	}
	t.mu.Unlock()
	for _, c := range all {
		c.cut(cause)
	}
}

// update changes what is known of the connection.
func (c *conn) update(f func(*conn)) {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	f(c)
}

// cut ends the connection, which is reset on both sides.
func (c *conn) cut(cause error) {
	c.table.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	cancel, abort := c.cancel, c.abort
	c.table.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
	if abort != nil {
		abort(cause)
	}
}

// carried has the connection go on in what start starts, which returns how to end that, and lets go of what it needed until then.
func (c *conn) carried(start func() (abort func(error))) {
	c.table.mu.Lock()
	cancel := c.cancel
	c.ctx, c.cancel = nil, nil
	c.tcp, c.stream = nil, nil
	c.table.mu.Unlock()
	cancel(nil)
	abort := start()
	c.table.mu.Lock()
	c.abort = abort
	cause := c.cause
	c.table.mu.Unlock()
	if cause != nil {
		abort(cause)
	}
}

// established counts the connection as open.
func (c *conn) established(n *Node) {
	series := n.Metrics.Series(c.record.Flow)
	took := time.Since(c.record.Start)
	series.Opened(took)
	c.update(func(c *conn) {
		c.series, c.took, c.movedAt = series, took, time.Now()
		if !c.record.MutualTLS {
			c.files++
			c.table.files++
		}
	})
	n.AccessLog.Opened(c.ctx, &c.record)
}

// FirstPayload implements hbone.Watcher: it measures how long the server takes to say something.
func (c *conn) FirstPayload(sent bool) {
	if sent == c.appFirst {
		c.series.FirstByte(time.Since(c.record.Start) - c.took)
	}
}

// close counts and logs the end, and forgets the connection. err is why it could not be opened, or was cut.
func (c *conn) close(n *Node, flag telemetry.Flag, err error) {
	t := c.table
	t.mu.Lock()
	delete(t.conns, c)
	t.files -= c.files
	c.reportLocked()
	cancel := c.cancel
	t.mu.Unlock()
	if cancel != nil {
		cancel(nil)
	}
	defer t.leave()
	c.endpoint.Release()
	if flag == telemetry.FlagRevoked {
		n.Revocations.Rejected(c.record.Reporter)
	}
	if c.series != nil {
		c.series.Closed(flag)
	} else {
		n.Metrics.Series(c.record.Flow).Failed(flag)
	}
	c.record.Sent, c.record.Received = c.bytes()
	c.record.Duration = time.Since(c.record.Start)
	c.record.Flag, c.record.Err = flag, err
	n.AccessLog.Closed(context.Background(), &c.record)
}

// bytes returns what the client has sent and what it has received.
func (c *conn) bytes() (sent, received uint64) {
	if c.appFirst {
		return c.counters.Received.Load(), c.counters.Sent.Load()
	}
	return c.counters.Sent.Load(), c.counters.Received.Load()
}

// leave tells who waits for the end of the last connection.
func (t *table) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.conns) == 0 && t.empty != nil {
		close(t.empty)
		t.empty = nil
	}
}

// none returns a channel that is closed as soon as there is no connection.
func (t *table) none() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	empty := t.empty
	if empty == nil {
		empty = make(chan struct{})
		if len(t.conns) == 0 {
			close(empty)
		} else {
			t.empty = empty
		}
	}
	return empty
}

// reportLocked adds the bytes since the last report to the metrics.
func (c *conn) reportLocked() {
	if c.series == nil {
		return
	}
	sent, received := c.bytes()
	if sent != c.reported.sent || received != c.reported.received {
		c.series.AddBytes(sent-c.reported.sent, received-c.reported.received)
		c.reported.sent, c.reported.received = sent, received
		c.movedAt = time.Now()
	}
}

// report adds what live connections have carried to the metrics.
func (t *table) report() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		c.reportLocked()
	}
}

// load is what there is of a pod's connections.
type load struct{ inbound, outbound, files int }

func (t *table) load() load {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := load{files: t.files}
	for c := range t.conns {
		if c.record.Inbound {
			l.inbound++
		}
	}
	l.outbound = len(t.conns) - l.inbound
	return l
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns)
}

// Connection describes one connection, for the admin endpoint.
type Connection struct {
	ID                  uint64
	Inbound             bool
	Tunnel              bool
	Source              netip.AddrPort
	OriginalDestination netip.AddrPort
	ActualDestination   netip.AddrPort
	// Service is the host name of the service that the client asked for; empty if it is not known.
	Service             string
	SourceIdentity      identity.Identity
	DestinationIdentity identity.Identity
	Sent, Received      uint64
	Opened              time.Time
}

// list returns the connections in the order in which they were opened.
func (t *table) list() []Connection {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Connection, 0, len(t.conns))
	for c := range t.conns {
		sent, received := c.bytes()
		service := ""
		if s := c.record.Service; s != nil {
			service = s.Hostname
		}
		all = append(all, Connection{
			Service: service,
			ID:      c.id, Inbound: c.record.Inbound, Tunnel: c.record.MutualTLS,
			Source: c.record.SourceAddr, OriginalDestination: c.original, ActualDestination: c.record.DestinationAddr,
			SourceIdentity: c.record.SourceIdentity, DestinationIdentity: c.record.DestinationIdentity,
			Sent: sent, Received: received, Opened: c.record.Start,
		})
	}
	slices.SortFunc(all, func(a, b Connection) int { return cmp.Compare(a.ID, b.ID) })
	return all
}
