package config

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/waypoint/route"
)

// inbound is the listener that tunnels end in, main_internal: which chain serves which destination. It is immutable.
type inbound struct {
	chains []*Chain
	byAddr map[netip.AddrPort]*Chain
	// ranges are prefixes of addresses that are longer than one address, the longest first.
	ranges []addressRange
	// http and tcp serve workloads' own addresses; nil if there are no such chains.
	http, tcp *Chain
	// waiting: a former chain serves a destination until the routes of the new one come.
	waiting bool
}

// addressRange is what serves the addresses of one prefix, by port.
type addressRange struct {
	prefix netip.Prefix
	byPort map[uint16]*Chain
}

// chain returns the chain for a destination; nil if there is none: that of the longest prefix that holds the address and has
// the port.
func (l *inbound) chain(dst netip.AddrPort) *Chain {
	addr := dst.Addr().Unmap()
	if c := l.byAddr[netip.AddrPortFrom(addr, dst.Port())]; c != nil {
		return c
	}
	for i := range l.ranges {
		if r := &l.ranges[i]; r.prefix.Contains(addr) && r.byPort[dst.Port()] != nil {
			return r.byPort[dst.Port()]
		}
	}
	return nil
}

// inForce returns what of l is in force: where a chain has no routes yet, the chain that served the destination in old before,
// if that needs none or has its own, goes on serving it. Without such a chain requests wait for the routes.
func (l *inbound) inForce(old *inbound, routes table[*route.Table]) *inbound {
	if l == nil {
		return nil
	}
	ready := func(c *Chain) bool {
		if c.HTTP == nil {
			return true
		}
		_, ok := routes.get(c.HTTP.Routes)
		return ok
	}
	var kept map[netip.AddrPort]*Chain
	for dst, c := range l.byAddr {
		if old == nil || ready(c) {
			continue
		}
		if before := old.chain(dst); before != nil && before != c && ready(before) {
			if kept == nil {
				kept = map[netip.AddrPort]*Chain{}
			}
			kept[dst] = before
		}
	}
	if kept == nil {
		return l
	}
	out := &inbound{chains: l.chains, byAddr: make(map[netip.AddrPort]*Chain, len(l.byAddr)), ranges: l.ranges, http: l.http, tcp: l.tcp, waiting: true}
	for dst, c := range l.byAddr {
		if before := kept[dst]; before != nil {
			c = before
		}
		out.byAddr[dst] = c
	}
	return out
}
