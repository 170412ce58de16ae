package upstream

import (
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// at returns the endpoint that clients connected to, in a cluster that is config.Bound: a workload's own address. The error
// is ErrNoEndpoint if no workload that is served has it.
func (c *Cluster) at(dst netip.AddrPort) (*Endpoint, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	bound := c.state.Load().bound
	if bound == nil {
		return nil, ErrNoEndpoint
	}
	if e, ok := bound.Load(dst); ok {
		return e, nil
	}
	w := c.manager.current.Load().Direct(dst.Addr())
	if w == nil {
		return nil, fmt.Errorf("%w: no workload that is bound to this waypoint has address %s (any more)", ErrNoEndpoint, dst.Addr())
	}
	if !w.SpeaksHTTP(dst.Port()) {
		return newEndpoint(c, directKey(w, dst), nil), nil // one for the connection: clients choose ports as they like
	}
	return c.enter(dst)
}

// enter remembers the endpoint of a port that speaks HTTP, with its connections, for as long as the workload is as it is.
func (c *Cluster) enter(dst netip.AddrPort) (*Endpoint, error) {
	m := c.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	bound := c.state.Load().bound
	if e, ok := bound.Load(dst); ok {
		return e, nil
	}
	w := m.current.Load().Direct(dst.Addr())
	if known, _ := m.byName.Load(c.name); w == nil || known != c {
		return nil, fmt.Errorf("%w: %s is not served any more", ErrNoEndpoint, dst)
	}
	e := newEndpoint(c, directKey(w, dst), nil)
	if w.SpeaksHTTP(dst.Port()) {
		bound.Store(dst, e)
		if e.key.hbone {
			m.peers[e.peer()]++
		}
	}
	return e, nil
}

func directKey(w *config.Direct, dst netip.AddrPort) endpointKey {
	return endpointKey{addr: dst, hbone: w.HBONE, id: w.Identity, workload: w.Workload}
}

// leaveBound lets go of the endpoints of a workload that is not as it was. The caller holds the manager's lock.
func (c *Cluster) leaveBound(w *config.Direct) {
	bound := c.state.Load().bound
	if bound == nil {
		return
	}
	for _, addr := range w.Addresses {
		for _, port := range w.HTTP {
			if e, was := bound.LoadAndDelete(netip.AddrPortFrom(addr, port)); was {
				c.manager.retire(e)
			}
		}
	}
}

// leaveAllBound lets go of all of them. The caller holds the manager's lock.
func (c *Cluster) leaveAllBound() {
	bound := c.state.Load().bound
	if bound == nil {
		return
	}
	for dst, e := range bound.All() {
		bound.Delete(dst)
		c.manager.retire(e)
	}
}
