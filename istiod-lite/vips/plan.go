// Package vips gives virtual addresses to ServiceEntries that have none, so that connections to their hosts can be told apart. An
// address is kept in the entry's status: it survives restarts, and all replicas serve what is written there. Only the
// leader writes, from a plan that is a pure function of all entries.
package vips

import (
	"cmp"
	"encoding/binary"
	"errors"
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

// ErrExhausted is wrapped by Plan's error when a range has no address left.
var ErrExhausted = errors.New("range of virtual addresses is exhausted")

// Assignment is what an entry's addresses should be, where they are not.
type Assignment struct {
	Key       cluster.Key
	Addresses []cluster.HostAddr
}

// Plan returns the assignments that bring all entries into order, sorted by key: each host of an entry that wants addresses
// has one of each family that nobody else has. What an entry has already it keeps; of two that have the same the older one
// does. A new address follows from the names of entry and host, so that it is the same again if a status is lost. The error
// is about hosts for which there was none left; the assignments are good all the same.
func Plan(entries []*cluster.ServiceEntry) ([]Assignment, error) {
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b *cluster.ServiceEntry) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key))
	})
	p := planner{used: map[netip.Addr]bool{}}
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
	var failed []error
	for i, e := range entries {
		var want []cluster.HostAddr
		switch {
		case len(e.Hosts) == 0:
			continue // it cannot be read at present
		case e.WantsAddresses():
			for _, host := range e.Hosts {
				for _, r := range []netip.Prefix{rangeIPv4, rangeIPv6} {
					addr, ok := kept[i][slot{host, r}]
					if !ok {
						if addr, ok = p.take(e.Key, host, r); !ok {
							failed = append(failed, fmt.Errorf("ServiceEntry %s, host %s: %s: %w", e.Key, host, r, ErrExhausted))
							continue
						}
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
	return out, errors.Join(failed...)
}

// slot is one address of a host.
type slot struct {
	host string
	from netip.Prefix
}

type planner struct {
	used map[netip.Addr]bool
	// written are ranges that people have spelt out.
	written []netip.Prefix
}

// reserve takes what an entry has from elsewhere: nobody is given that.
func (p *planner) reserve(e *cluster.ServiceEntry) {
	for _, prefix := range e.Addresses {
		switch {
		case prefix.IsSingleIP():
			p.used[prefix.Addr()] = true
		case prefix.Overlaps(rangeIPv4) || prefix.Overlaps(rangeIPv6):
			p.written = append(p.written, prefix)
		}
	}
	if len(e.Hosts) == 0 {
		for _, a := range e.Assigned {
			p.used[a.Addr] = true
		}
	}
}

func (p *planner) free(addr netip.Addr) bool {
	return !p.used[addr] && !slices.ContainsFunc(p.written, func(w netip.Prefix) bool { return w.Contains(addr) })
}

// keep takes what an entry has rightly.
func (p *planner) keep(e *cluster.ServiceEntry) map[slot]netip.Addr {
	out := map[slot]netip.Addr{}
	for _, a := range e.Assigned {
		for _, r := range []netip.Prefix{rangeIPv4, rangeIPv6} {
			s := slot{a.Host, r}
			if _, has := out[s]; has || !r.Contains(a.Addr) || !slices.Contains(e.Hosts, a.Host) || !p.free(a.Addr) {
				continue
			}
			out[s], p.used[a.Addr] = a.Addr, true
		}
	}
	return out
}

// size is how many addresses of a range are given out: the low 16 bits, but for the first and the last.
const size = 1<<16 - 2

// take finds the first free address from the place that the names point to.
func (p *planner) take(key cluster.Key, host string, from netip.Prefix) (netip.Addr, bool) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s", key, host)
	start := h.Sum64() % size
	for i := range uint64(size) {
		addr := at(from, uint16((start+i)%size+1))
		if p.free(addr) {
			p.used[addr] = true
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// at returns an address of a range by its low 16 bits.
func at(r netip.Prefix, low uint16) netip.Addr {
	b := r.Addr().AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], low)
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
