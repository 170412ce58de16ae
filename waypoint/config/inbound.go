package config

import "net/netip"

// inbound is the listener that tunnels end in, main_internal: which chain serves which destination. It is immutable.
type inbound struct {
	chains []*Chain
	byAddr map[netip.AddrPort]*Chain
	// ranges are prefixes of addresses that are longer than one address, the longest first.
	ranges []addressRange
}

// addressRange is what serves the addresses of one prefix, by port.
type addressRange struct {
	prefix netip.Prefix
	byPort map[uint16]*Chain
}

// chain returns the chain for a destination; nil if there is none. The longest prefix that holds the address decides, whether
// it has the port or not.
func (l *inbound) chain(dst netip.AddrPort) *Chain {
	addr := dst.Addr().Unmap()
	if c := l.byAddr[netip.AddrPortFrom(addr, dst.Port())]; c != nil {
		return c
	}
	for i := range l.ranges {
		if r := &l.ranges[i]; r.prefix.Contains(addr) {
			return r.byPort[dst.Port()]
		}
	}
	return nil
}
