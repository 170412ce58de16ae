package proxy

import (
	"errors"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// errIdle is why a connection was cut on which nothing has moved for the idle time-out.
var errIdle = errors.New("idle time-out")

// workPerConnection is about what opening a connection takes, at either side of a tunnel.
const workPerConnection share.Work = 100 * time.Microsecond

// Bounds of a pod's connections, as they are counted.
const (
	boundConnections = "connections"
	boundDescriptors = "descriptors"
	boundTunnels     = "tunnels"
)

// takeShare makes what bounds the pod's part of the node's proxy.
func (p *Pod) takeShare() {
	n := p.node
	p.party = n.share.Join()
	p.budget = buffer.NewBudget(n.Limits.Buffered)
	p.h2 = n.H2
	p.h2.Budget = p.budget
	p.h2.SettingsTimeout = orNever(n.Timeouts.Settings)
	p.relayer = n.relayer
	p.relayer.Budget, p.relayer.Party = p.budget, p.party
	p.relayer.HalfCloseTimeout = orNever(n.Timeouts.HalfClose)
	p.relayer.HalfCloseProbe = orNever(n.Timeouts.HalfCloseProbe)
}

// Late returns how many moments there were, ever, in which a pod that asks for little waited for others of the node.
func (n *Node) Late() uint64 { return n.share.Late() }

// timeouts are those of tunnels that the pod opens.
func (p *Pod) timeouts() hbone.Timeouts {
	t := p.node.Timeouts
	return hbone.Timeouts{
		Connect: orNever(t.Connect), Handshake: orNever(t.Handshake), Settings: orNever(t.Settings), Response: orNever(t.Response),
	}
}

// orNever is for rooms to which zero means a default, and less than zero no time-out.
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// full tells whether the pod may have no more connections, and says and counts which bound it is.
func (p *Pod) full() bool {
	t := &p.conns
	t.mu.Lock()
	connections, files := len(t.conns), t.files
	t.mu.Unlock()
	files += p.tunnelFiles()
	switch n := p.node; {
	case n.Limits.Connections > 0 && connections >= n.Limits.Connections:
		p.refused(boundConnections, n.Limits.Connections)
	case n.MaxFiles > 0 && files >= n.MaxFiles:
		p.refused(boundDescriptors, n.MaxFiles)
	default:
		return false
	}
	return true
}

// tunnelFiles is how many descriptors the pod's tunnel connections have.
func (p *Pod) tunnelFiles() int { return p.pool.Size() + p.server.Size() }

// fullLogPeriod is how often it is said, in seconds, that a pod has too much.
const fullLogPeriod = 10

// refused counts a connection beyond a bound, and says so now and then.
func (p *Pod) refused(bound string, limit int) {
	p.node.Bounds.Refused(bound)
	now := time.Now().Unix()
	if last := p.fullLogged.Load(); now-last >= fullLogPeriod && p.fullLogged.CompareAndSwap(last, now) {
		p.logger.Error("the pod has as many of what is bounded as one pod may have; new connections are refused (docs/limits.md)",
			"bound", bound, "limit", limit)
	}
}

// violated counts a tunnel connection that a peer lost.
func (p *Pod) violated(cause h2.Cause) { p.node.Bounds.Violated(string(cause)) }

// cutIdle cuts connections on which nothing has moved since before.
func (t *table) cutIdle(before time.Time) (cut int) {
	var idle []*conn
	t.mu.Lock()
	for c := range t.conns {
		if c.series != nil && c.movedAt.Before(before) {
			idle = append(idle, c)
		}
	}
	t.mu.Unlock()
	for _, c := range idle {
		c.cut(errIdle)
	}
	return len(idle)
}

// sweep ends what has been idle for too long. It is called each reportInterval, after the report.
func (n *Node) sweep(now time.Time) {
	pods := n.snapshot()
	if idle := n.Timeouts.Idle; idle > 0 {
		for _, p := range pods {
			for range p.conns.cutIdle(now.Add(-idle)) {
				n.Bounds.TimedOut("idle")
			}
		}
	}
	if idle := n.Timeouts.TunnelIdle; idle > 0 && now.Sub(n.swept) >= idle {
		n.swept = now
		for _, p := range pods {
			p.server.EndIdle()
		}
	}
}
