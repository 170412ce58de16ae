package upstream

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// Bounds of the endpoints of clusters that have none of their own.
const (
	// maxAsked is how many there are at a time. Those that nobody uses make room.
	maxAsked = 4096
	// askedKept is how often those that nobody uses are looked for, at most.
	askedKept = time.Minute
)

// asked are the endpoints of a cluster that are what clients connected to.
type asked struct {
	mu     sync.Mutex // guards what follows; taken after the manager's
	byAddr map[netip.AddrPort]*Endpoint
	tls    *secured
	swept  time.Time
	off    bool // the cluster has endpoints of its own
}

// endpoint returns the one at an address.
func (a *asked) endpoint(c *Cluster, addr netip.AddrPort) (*Endpoint, error) {
	if !addr.IsValid() || special(addr.Addr()) {
		return nil, fmt.Errorf("%w: %v is not an address that a waypoint connects to", ErrRefused, addr)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.byAddr[addr]; e != nil {
		return e, nil
	}
	if a.off {
		return nil, ErrNoEndpoint
	}
	if now := time.Now(); now.Sub(a.swept) > askedKept || len(a.byAddr) >= maxAsked {
		a.sweepLocked()
		a.swept = now
	}
	if len(a.byAddr) >= maxAsked {
		return nil, fmt.Errorf("%w: there are %d addresses in use", ErrOverflow, maxAsked)
	}
	e := newEndpoint(c, endpointKey{addr: addr, tls: a.tls.name()}, a.tls)
	if a.byAddr == nil {
		a.byAddr = map[netip.AddrPort]*Endpoint{}
	}
	a.byAddr[addr] = e
	return e, nil
}

// sweepLocked lets go of what nobody uses. Who has chosen one of them a moment ago has it retired: nothing was sent there, and the next
// choice is another.
func (a *asked) sweepLocked() {
	for addr, e := range a.byAddr {
		if e.Active() == 0 && e.Connections() == 0 {
			delete(a.byAddr, addr)
			e.retire()
		}
	}
}

// keep lets go of endpoints that are not as the settings say any more. The caller holds the manager's lock.
func (a *asked) keep(c *Cluster, s *config.Settings) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.off = s.Discovery != config.Asked || c.cfg.Endpoints == nil
	a.tls = c.direct
	for addr, e := range a.byAddr {
		if a.off || e.key.tls != a.tls.name() {
			delete(a.byAddr, addr)
			e.retire()
		}
	}
}

// all calls f for each.
func (a *asked) all(f func(*Endpoint)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.byAddr {
		f(e)
	}
}
