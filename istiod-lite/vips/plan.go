// Package vips gives virtual addresses to ServiceEntries that have none, so that connections to their hosts can be told apart. An
// address is kept in the entry's status: it survives restarts, and all replicas serve what is written there. Only the
// leader writes, from a plan that is a pure function of all entries.
package vips

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Ranges that addresses come from: never routed, and Istio's own choice, so that clients which take one of them for their
// own need not learn another.
var (
	rangeIPv4 = netip.MustParsePrefix("240.240.0.0/16")
	rangeIPv6 = netip.MustParsePrefix("2001:2::/48")
)

// Assignment is what an entry's addresses should be, where they are not.
type Assignment struct {
	Key       cluster.Key
	Addresses []cluster.HostAddr
}

// Plan returns the assignments that bring all entries into order, sorted by key: each host of an entry that wants addresses
// has one of each family that nobody else has. What an entry has already it keeps; of two that have the same the older one
// does. A new address follows from the names of entry and host, so that it is the same again if a status is lost. The second
// result names, by entry, the hosts for which a range had none left; the assignments are good all the same. The cost is that of
// sorting the entries, however full the ranges are.
func Plan(entries []*cluster.ServiceEntry) ([]Assignment, map[cluster.Key][]cluster.Shortage) {
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b *cluster.ServiceEntry) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key))
	})
	p := planner{used: map[netip.Addr]bool{}, pools: []*pool{newPool(rangeIPv4), newPool(rangeIPv6)}}
	for _, e := range entries {
		p.reserve(e)
	}
	kept := make([]map[slot]netip.Addr, len(entries))
	for i, e := range entries {
		if e.WantsAddresses() {
			kept[i] = p.keep(e)
		}
	}
	var out []Assignment
	shortages := map[cluster.Key][]cluster.Shortage{}
	for i, e := range entries {
		var want []cluster.HostAddr
		switch {
		case len(e.Hosts) == 0:
			continue // it cannot be read at present
		case e.WantsAddresses():
			for _, host := range e.Hosts {
				for _, from := range p.pools {
					addr, ok := kept[i][slot{host, from.prefix}]
					if !ok {
						addr, ok = from.take(e.Key, host)
					}
					if !ok {
						shortages[e.Key] = append(shortages[e.Key], cluster.Shortage{Host: host, Range: from.prefix})
						continue
					}
					want = append(want, cluster.HostAddr{Host: host, Addr: addr})
				}
			}
		}
		if !slices.Equal(want, e.Assigned) {
			out = append(out, Assignment{e.Key, want})
		}
	}
	slices.SortFunc(out, func(a, b Assignment) int { return a.Key.Compare(b.Key) })
	return out, shortages
}

// slot is one address of a host.
type slot struct {
	host string
	from netip.Prefix
}

type planner struct {
	// used are addresses that somebody has.
	used  map[netip.Addr]bool
	pools []*pool
	// written are ranges that people have spelt out.
	written []netip.Prefix
}

// use takes an address out of what may be given.
func (p *planner) use(addr netip.Addr) {
	p.used[addr] = true
	for _, from := range p.pools {
		from.use(addr)
	}
}

// reserve takes what an entry has from elsewhere: nobody is given that.
func (p *planner) reserve(e *cluster.ServiceEntry) {
	for _, prefix := range e.Addresses {
		if prefix.IsSingleIP() {
			p.use(prefix.Addr())
			continue
		}
		for _, from := range p.pools {
			if prefix.Overlaps(from.prefix) && !slices.Contains(p.written, prefix) {
				p.written = append(p.written, prefix)
				from.useAll(prefix)
			}
		}
	}
	if len(e.Hosts) == 0 {
		for _, a := range e.Assigned {
			p.use(a.Addr)
		}
	}
}

func (p *planner) free(addr netip.Addr) bool {
	for _, from := range p.pools {
		if n, ok := from.number(addr); ok {
			return from.next[n] == n
		}
	}
	return !p.used[addr] && !slices.ContainsFunc(p.written, func(w netip.Prefix) bool { return w.Contains(addr) })
}

// keep takes what an entry has rightly.
func (p *planner) keep(e *cluster.ServiceEntry) map[slot]netip.Addr {
	out := map[slot]netip.Addr{}
	for _, a := range e.Assigned {
		for _, from := range p.pools {
			s := slot{a.Host, from.prefix}
			if _, has := out[s]; has || !from.prefix.Contains(a.Addr) || !slices.Contains(e.Hosts, a.Host) || !p.free(a.Addr) {
				continue
			}
			out[s] = a.Addr
			p.use(a.Addr)
		}
	}
	return out
}

// size is how many addresses of a range are given out: the low 16 bits, but for the first and the last.
const size = 1<<16 - 2

// pool is what is left of a range.
type pool struct {
	prefix netip.Prefix
	// next leads from each number of an address, from 0 to size-1, to the first that is free from there on, in one or more steps:
	// a free one to itself. Ends are round: after the last comes the first.
	next []uint16
	left int
}

func newPool(prefix netip.Prefix) *pool {
	p := &pool{prefix: prefix, next: make([]uint16, size), left: size}
	for i := range p.next {
		p.next[i] = uint16(i)
	}
	return p
}

// find returns the first free number from n on. There must be one.
func (p *pool) find(n uint16) uint16 {
	for p.next[n] != n {
		p.next[n] = p.next[p.next[n]] // halves the way for those who come after
		n = p.next[n]
	}
	return n
}

// drop takes a number that may be free.
func (p *pool) drop(n uint16) {
	if p.next[n] == n {
		p.next[n] = uint16((int(n) + 1) % size)
		p.left--
	}
}

// number returns the number of an address; false if the pool has not got it.
func (p *pool) number(addr netip.Addr) (uint16, bool) {
	if !p.prefix.Contains(addr) {
		return 0, false
	}
	b := addr.AsSlice()
	low := binary.BigEndian.Uint16(b[len(b)-2:])
	return low - 1, low >= 1 && low <= size && addr == at(p.prefix, low)
}

// use takes an address, if it is one of the pool's.
func (p *pool) use(addr netip.Addr) {
	if n, ok := p.number(addr); ok {
		p.drop(n)
	}
}

// useAll takes all addresses of a prefix that overlaps with the pool's.
func (p *pool) useAll(prefix netip.Prefix) {
	first, count := at(p.prefix, 0), 1<<16
	if suffix := prefix.Addr().BitLen() - prefix.Bits(); suffix < 16 {
		first, count = prefix.Masked().Addr(), 1<<suffix
	}
	if !prefix.Contains(first) {
		return // it has none of the numbered ones
	}
	for addr := first; count > 0; count-- {
		p.use(addr)
		addr = addr.Next()
	}
}

// take gives the first free address from the place that the names point to.
func (p *pool) take(key cluster.Key, host string) (netip.Addr, bool) {
	if p.left == 0 {
		return netip.Addr{}, false
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s", key, host)
	n := p.find(uint16(h.Sum64() % size))
	p.drop(n)
	return at(p.prefix, n+1), true
}

// at returns an address of a range by its low 16 bits.
func at(r netip.Prefix, low uint16) netip.Addr {
	b := r.Addr().AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], low)
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
