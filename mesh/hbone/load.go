package hbone

import (
	"net"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// Estimates of work for share.Party.
const (
	// workPerByte is for payload, through TLS or not.
	workPerByte share.Work = 1
	// workPerMessage is for what is read at once, however short.
	workPerMessage = 4096 * workPerByte
	// workPerHandshake is a TLS handshake of either side.
	workPerHandshake share.Work = time.Millisecond

	// workStep is after how much work a party is told.
	workStep = 64 << 10 * workPerByte
)

// load is what a direction of a relay costs its party.
type load struct {
	budget *buffer.Budget
	party  *share.Party
	work   share.Work // that the party was not told of
}

// limit is how much may be read at once, where without a bound it is n.
func (l *load) limit(n int) int {
	if l.budget.Over() {
		return min(n, buffer.Tiny-h2.Headroom)
	}
	return n
}

// did counts n bytes that were passed on, and waits if the party is to hold back.
func (l *load) did(n int) {
	if l.work += workPerMessage + workPerByte*share.Work(n); l.work >= workStep {
		l.party.Did(l.work)
		l.work = 0
	}
}

// probes are the keepalive probes of half-closed TCP connections.
type probes struct {
	every time.Duration // less than zero: none
	begun bool
}

// begin starts them, and returns whether they had not begun yet.
func (p *probes) begin(conns ...*net.TCPConn) bool {
	if p.begun {
		return false
	}
	p.begun = true
	if p.every <= 0 {
		return true
	}
	for _, c := range conns {
		// An error means that the connection has ended.
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: p.every, Interval: max(p.every/deadProbes, time.Second), Count: deadProbes,
		})
	}
	return true
}

func (cfg Relayer) halfCloseProbe() time.Duration {
	if cfg.HalfCloseProbe == 0 {
		return DefaultHalfCloseProbe
	}
	return cfg.HalfCloseProbe
}
