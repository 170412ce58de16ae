package upstream

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// ErrClosed is why nothing is opened any more: Clusters.Close was called.
var ErrClosed = errors.New("the proxy ends")

// ErrRetired is why nothing is opened to an endpoint that is none any more. Nothing was sent there: another may be chosen.
var ErrRetired = errors.New("the endpoint is gone")

// pool keeps the connections to one endpoint that speak one version of HTTP.
type pool struct {
	endpoint *Endpoint
	protocol message.Protocol // HTTP11 or HTTP2

	mu      sync.Mutex // guards what follows; never held across I/O; given back by unlock
	conns   map[*conn]struct{}
	ready   []*conn   // HTTP/1: idle ones, the latest last; HTTP/2: all that may take requests, the oldest first
	waiters []*waiter // in the order in which they came
	dials   int       // under way
	closed  bool      // the endpoint is retired: no new connections, and none is kept
	sweeper *time.Timer
	spare   []*conn // memory for changes

	changesMu sync.Mutex // guards what follows; nothing is called with it
	changes   []*conn    // that have told of a change, which nobody has looked at yet
}

func (p *pool) init(e *Endpoint, protocol message.Protocol) {
	p.endpoint, p.protocol = e, protocol
}

// conn is a connection of a pool.
type conn struct {
	client codec.Client
	tunnel *hbone.Stream // that it is in; nil outside the mesh
	stop   func() bool   // the connection no longer ends with the proxy
	parked bool          // it is in pool.ready
	begun  uint32        // requests that were reserved on it
	since  time.Time     // when it was last seen without requests
}

// waiter is a request without a connection.
type waiter struct{ ready chan grant }

// grant is a request reserved on a connection, or why there is none.
type grant struct {
	client codec.Client
	err    error
}

func (p *pool) size() int {
	p.mu.Lock()
	defer p.unlock()
	return len(p.conns)
}

// perDial is for how many requests that wait one connection is made.
func (p *pool) perDial() int {
	if p.protocol == message.HTTP2 {
		return 100
	}
	return 1
}

// acquire reserves a request on a connection, and makes one if there is none.
func (p *pool) acquire(ctx context.Context) (codec.Client, error) {
	p.mu.Lock()
	if p.closed {
		p.unlock()
		return nil, &ConnectError{p.endpoint, ErrRetired}
	}
	if len(p.waiters) == 0 {
		if c := p.takeLocked(); c != nil {
			p.unlock()
			return c, nil
		}
	}
	c := p.endpoint.cluster
	if err := take(&c.usage.pending, c.limits().Pending, "requests that wait for a connection"); err != nil {
		p.unlock()
		return nil, err
	}
	defer c.usage.pending.Add(-1)
	w := &waiter{ready: make(chan grant, 1)}
	p.waiters = append(p.waiters, w)
	p.dialLocked()
	p.unlock()
	select {
	case g := <-w.ready:
		return g.client, g.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.waiters, w)
	if i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
	}
	p.unlock()
	if i < 0 { // it was granted at the same moment
		if g := <-w.ready; g.client != nil {
			g.client.Unreserve()
		}
	}
	return nil, context.Cause(ctx)
}

// tunnelOf is the tunnel that a connection is in.
func tunnelOf(nc net.Conn) *hbone.Stream {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok { // TLS
		nc = t.NetConn()
	}
	s, _ := nc.(*hbone.Stream)
	return s
}

// left tells whether requests leave the connection, and has it end with the last: the node proxy at the other end of its tunnel is going
// away, and cuts in the end what it carries.
func (c *conn) left() bool {
	if c.tunnel == nil || !c.tunnel.Leaving() {
		return false
	}
	go c.client.Shutdown() // it calls changed; await waits for the end
	return true
}

// takeLocked reserves a request on a connection that is there.
func (p *pool) takeLocked() codec.Client {
	if p.protocol == message.HTTP2 {
		for i := 0; i < len(p.ready); {
			c := p.ready[i]
			if c.left() {
				p.unparkLocked(c)
				continue
			}
			if c.client.Reserve() {
				p.begunLocked(c)
				return c.client
			}
			i++
		}
		return nil
	}
	for n := len(p.ready); n > 0; n = len(p.ready) {
		c := p.ready[n-1]
		p.ready[n-1] = nil
		p.ready = p.ready[:n-1]
		c.parked = false
		if c.left() {
			continue
		}
		if c.client.Reserve() {
			p.begunLocked(c)
			return c.client
		}
	}
	return nil
}

// begunLocked counts a request on a connection, which takes no more after as many as the settings allow.
func (p *pool) begunLocked(c *conn) {
	c.begun++
	if most := p.endpoint.cluster.Settings().MaxRequests; most > 0 && c.begun >= most {
		p.unparkLocked(c)
		c.client.Shutdown() // it ends with the last request
	}
}

// serveLocked gives connections to those who wait.
func (p *pool) serveLocked() {
	for len(p.waiters) > 0 {
		c := p.takeLocked()
		if c == nil {
			break
		}
		p.grantLocked(grant{client: c})
	}
	p.dialLocked()
}

func (p *pool) grantLocked(g grant) {
	w := p.waiters[0]
	p.waiters = slices.Delete(p.waiters, 0, 1)
	w.ready <- g
}

// dialLocked makes as many connections as those who wait need, beyond those that are on their way, within the bounds. The
// cluster's bound does not keep an endpoint without connections from getting one: who waits there would wait for ever.
func (p *pool) dialLocked() {
	c := p.endpoint.cluster
	for !p.closed && len(p.waiters) > p.dials*p.perDial() && len(p.conns)+p.dials < maxConnections {
		if err := take(&c.usage.connections, c.limits().Connections, "connections"); err != nil {
			if len(p.conns)+p.dials > 0 {
				return
			}
			c.usage.connections.Add(1)
		}
		p.dials++
		c.manager.ended.Go(p.dial)
	}
}

// dial makes a connection and gives it to those who wait. It does not end with the request for which it was begun: others may
// wait for it by then.
func (p *pool) dial() {
	cluster := p.endpoint.cluster
	nc, err := p.endpoint.dialHTTP(cluster.manager.ctx, p.protocol)
	var c *conn
	var client codec.Client
	if err == nil {
		c = &conn{tunnel: tunnelOf(nc), since: time.Now()}
		cfg := cluster.state.Load().client
		cfg.OnChange = func() { p.changed(c) }
		cfg.Secure = p.endpoint.tls != nil
		client = codec.NewClient(nc, p.protocol, &cfg)
	}
	p.mu.Lock()
	defer p.unlock()
	p.dials--
	if err != nil {
		cluster.usage.connections.Add(-1)
		p.failLocked(err)
		p.dialLocked()
		return
	}
	c.client = client
	if p.conns == nil {
		p.conns = map[*conn]struct{}{}
	}
	p.conns[c] = struct{}{}
	cluster.manager.ended.Add(1)
	c.stop = context.AfterFunc(cluster.manager.ctx, client.Close)
	switch {
	case p.endedLocked(c): // it told of it when nobody knew it yet
	case p.closed:
		go client.Shutdown() // it calls changed; endedLocked is told of the end
		return
	default:
		p.parkLocked(c)
	}
	p.serveLocked()
	// Those for whom it was made may have got another meanwhile. Given back, it is looked after: a backend ends what brings no request.
	if c.parked && p.protocol == message.HTTP11 && client.Reserve() {
		client.Unreserve()
	}
}

// failLocked gives an error to those who waited for a dial that has failed.
func (p *pool) failLocked(err error) {
	n := min(len(p.waiters), p.perDial())
	if p.protocol == message.HTTP2 && p.dials > 0 {
		n = 0
	}
	for range n {
		p.grantLocked(grant{err: err})
	}
}

// endedLocked forgets a connection that has ended, if it has.
func (p *pool) endedLocked(c *conn) bool {
	select {
	case <-c.client.Done():
	default:
		return false
	}
	if _, known := p.conns[c]; !known {
		return true
	}
	delete(p.conns, c)
	c.stop()
	p.endpoint.cluster.usage.connections.Add(-1)
	p.unparkLocked(c)
	p.dialLocked() // there is room for another
	p.endpoint.cluster.manager.ended.Done()
	return true
}

// changed is called by a connection whenever it may take requests again, or none any more: by anyone, also by whoever holds mu
// and asks it for something.
func (p *pool) changed(c *conn) {
	p.changesMu.Lock()
	p.changes = append(p.changes, c)
	p.changesMu.Unlock()
	if p.mu.TryLock() {
		p.unlock()
	} // or else whoever has it looks
}

// unlock gives mu back, and looks at what has changed.
func (p *pool) unlock() {
	for {
		p.lookLocked()
		p.mu.Unlock()
		p.changesMu.Lock()
		none := len(p.changes) == 0
		p.changesMu.Unlock()
		if none || !p.mu.TryLock() {
			return
		}
	}
}

// lookLocked looks at connections that have changed.
func (p *pool) lookLocked() {
	p.changesMu.Lock()
	list := p.changes
	p.changes = p.spare
	p.changesMu.Unlock()
	for _, c := range list {
		switch {
		case c.client == nil: // dial has not got that far
		case p.endedLocked(c):
		case c.client.Draining():
			p.unparkLocked(c)
		case c.client.Available() > 0 && !p.closed:
			c.since = time.Now()
			p.parkLocked(c)
			if len(p.waiters) > 0 {
				p.serveLocked()
			}
		}
	}
	clear(list)
	p.spare = list[:0]
}

// parkLocked makes a connection one that takes requests.
func (p *pool) parkLocked(c *conn) {
	if c.parked {
		return
	}
	c.parked = true
	p.ready = append(p.ready, c)
	if p.sweeper == nil {
		p.sweeper = time.AfterFunc(p.endpoint.cluster.idleTimeout(), p.sweep)
	}
}

func (p *pool) unparkLocked(c *conn) {
	if i := slices.Index(p.ready, c); i >= 0 {
		p.ready = slices.Delete(p.ready, i, i+1)
	}
	c.parked = false
}

// sweep closes connections without requests for the idle time.
func (p *pool) sweep() {
	limit := p.endpoint.cluster.idleTimeout()
	var out []*conn
	p.mu.Lock()
	next := limit
	for _, c := range slices.Clone(p.ready) {
		if c.client.Active() > 0 {
			c.since = time.Now()
			continue
		}
		if left := limit - time.Since(c.since); left > 0 {
			next = min(next, left)
			continue
		}
		p.unparkLocked(c)
		out = append(out, c)
	}
	if len(p.ready) > 0 && !p.closed {
		p.sweeper.Reset(next)
	} else {
		p.sweeper = nil
	}
	p.unlock()
	for _, c := range out {
		c.client.Shutdown()
	}
}

// shutdown lets nothing new begin; connections end with their last request.
func (p *pool) shutdown() {
	p.mu.Lock()
	p.closed = true
	for len(p.waiters) > 0 {
		p.grantLocked(grant{err: &ConnectError{p.endpoint, ErrRetired}})
	}
	if p.sweeper != nil {
		p.sweeper.Stop()
	}
	p.ready = nil
	all := slices.Collect(maps.Keys(p.conns))
	p.unlock()
	for _, c := range all {
		c.client.Shutdown()
	}
}
