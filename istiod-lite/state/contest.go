package state

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// Several objects may ask for one host or one address. Who has it is looked at when changes are flushed, and only what hangs on
// an answer that is another than before is translated again: any number of objects may share what they ask for, and a change of
// one of them costs no more for it.

// hostClaims are the ServiceEntries that anybody sees and that have one host. The lists are in order of precedence.
type hostClaims struct {
	in     map[string][]*cluster.ServiceEntry // by namespace
	public []*cluster.ServiceEntry            // those that clients of other namespaces see

	// owners, by namespace, and canonical are as of the last Flush.
	owners    map[string]cluster.Key
	canonical cluster.Key
}

// insert puts x into its place of a sorted list.
func insert[T any](list []T, x T, compare func(a, b T) int) []T {
	i, _ := slices.BinarySearchFunc(list, x, compare)
	return slices.Insert(list, i, x)
}

// remove takes x out of a sorted list.
func remove[T any](list []T, x T, compare func(a, b T) int) []T {
	i, found := slices.BinarySearchFunc(list, x, compare)
	if !found {
		return list
	}
	return slices.Delete(list, i, i+1)
}

// claimHosts enters an entry that is known now.
func (s *State) claimHosts(e *cluster.ServiceEntry) {
	if e.Visibility == cluster.VisibleNone {
		return
	}
	for _, host := range e.Hosts {
		h := s.hosts[host]
		if h == nil {
			h = &hostClaims{in: map[string][]*cluster.ServiceEntry{}, owners: map[string]cluster.Key{}}
			s.hosts[host] = h
		}
		h.in[e.Namespace] = insert(h.in[e.Namespace], e, translate.CompareEntries)
		if e.Visibility == cluster.VisiblePublic {
			h.public = insert(h.public, e, translate.CompareEntries)
		}
		s.dirty.contests[cluster.Key{Namespace: e.Namespace, Name: host}] = struct{}{}
	}
}

// unclaimHosts takes out an entry as it was.
func (s *State) unclaimHosts(e *cluster.ServiceEntry) {
	if e.Visibility == cluster.VisibleNone {
		return
	}
	for _, host := range e.Hosts {
		h := s.hosts[host]
		if in := remove(h.in[e.Namespace], e, translate.CompareEntries); len(in) > 0 {
			h.in[e.Namespace] = in
		} else {
			delete(h.in, e.Namespace)
		}
		if e.Visibility == cluster.VisiblePublic {
			h.public = remove(h.public, e, translate.CompareEntries)
		}
		if len(h.in) == 0 {
			delete(s.hosts, host)
		}
		s.dirty.contests[cluster.Key{Namespace: e.Namespace, Name: host}] = struct{}{}
	}
}

// served names the Kubernetes service that has a host as its name.
func (s *State) served(host string) (cluster.Key, bool) {
	if key, ok := translate.HostService(s.mesh, host); ok {
		if svc := s.services[key]; svc != nil && !svc.External {
			return key, true
		}
	}
	return cluster.Key{}, false
}

// ownerOf is the entry that has a host in a namespace, nil if none has.
func (s *State) ownerOf(namespace, host string) *cluster.ServiceEntry {
	h := s.hosts[host]
	if h == nil || len(h.in[namespace]) == 0 {
		return nil
	}
	if service, served := s.served(host); served && service.Namespace == namespace {
		return nil
	}
	return h.in[namespace][0]
}

// canonicalOf is the entry that clients of namespaces without one of their own for a host are led to, nil if there is none.
func (s *State) canonicalOf(host string) *cluster.ServiceEntry {
	h := s.hosts[host]
	if h == nil || len(h.public) == 0 {
		return nil
	}
	if _, served := s.served(host); served {
		return nil
	}
	return h.public[0]
}

func keyOf(e *cluster.ServiceEntry) cluster.Key {
	if e == nil {
		return cluster.Key{}
	}
	return e.Key
}

// settle marks what hangs on who has the hosts and the addresses that were asked for, or given up, since the last Flush.
func (s *State) settle() {
	s.settleWaypoints()
	for spot := range s.dirty.contests {
		s.settleHost(spot)
	}
	for spot := range s.dirty.spots {
		s.settleAddress(spot)
	}
}

// settleHost looks at a host in a namespace. Each entry that asks for the host says who has it.
func (s *State) settleHost(spot cluster.Key) {
	h := s.hosts[spot.Name]
	if h == nil {
		return // nobody is left who asks for it
	}
	if was, is := h.owners[spot.Namespace], keyOf(s.ownerOf(spot.Namespace, spot.Name)); was != is {
		if is == (cluster.Key{}) {
			delete(h.owners, spot.Namespace)
		} else {
			h.owners[spot.Namespace] = is
		}
		s.dirty.hosts[spot] = struct{}{}
		for _, e := range h.in[spot.Namespace] {
			s.dirty.entries[e.Key] = struct{}{}
		}
		for _, key := range []cluster.Key{was, is} {
			if e := s.entries[key]; e != nil {
				s.touchMembers(e)
			}
		}
	}
	if was, is := h.canonical, keyOf(s.canonicalOf(spot.Name)); was != is {
		h.canonical = is
		for _, key := range []cluster.Key{was, is} {
			if key != (cluster.Key{}) {
				s.dirty.hosts[cluster.Key{Namespace: key.Namespace, Name: spot.Name}] = struct{}{}
			}
		}
	}
}

// addrClaims are all claims to one address.
type addrClaims struct {
	strong  []translate.Claim            // nodes' and services', in no order
	entries map[string][]translate.Claim // ServiceEntries', by namespace, in order of precedence
	owners  map[string]cluster.Key       // the first of entries, as of the last Flush
}

// addrSpot is an address in a namespace; without one, it is the claims that are stronger than those of ServiceEntries.
type addrSpot struct {
	addr      netip.Addr
	namespace string
}

func spotOf(c translate.Claim) addrSpot {
	if c.Strength == translate.ClaimEntry {
		return addrSpot{c.Addr, c.Service.Namespace}
	}
	return addrSpot{addr: c.Addr}
}

func (s *State) claim(claims []translate.Claim) {
	for _, c := range claims {
		a, spot := s.claims[c.Addr], spotOf(c)
		if a == nil {
			a = &addrClaims{}
			s.claims[c.Addr] = a
			s.touchEntriesAt(c.Addr) // it is virtual now
		}
		if c.Strength == translate.ClaimEntry {
			if a.entries == nil {
				a.entries, a.owners = map[string][]translate.Claim{}, map[string]cluster.Key{}
			}
			a.entries[spot.namespace] = insert(a.entries[spot.namespace], c, translate.CompareClaims)
		} else {
			a.strong = append(a.strong, c)
		}
		s.dirty.spots[spot] = struct{}{}
	}
}

func (s *State) unclaim(claims []translate.Claim) {
	for _, c := range claims {
		a, spot := s.claims[c.Addr], spotOf(c)
		if c.Strength != translate.ClaimEntry {
			if i := slices.Index(a.strong, c); i >= 0 {
				a.strong = slices.Delete(a.strong, i, i+1)
			}
		} else if rest := remove(a.entries[spot.namespace], c, translate.CompareClaims); len(rest) > 0 {
			a.entries[spot.namespace] = rest
		} else {
			delete(a.entries, spot.namespace)
		}
		if len(a.strong)+len(a.entries) == 0 {
			delete(s.claims, c.Addr)
			s.touchEntriesAt(c.Addr)
		}
		s.dirty.spots[spot] = struct{}{}
	}
}

// virtual reports whether somebody claims an address.
func (s *State) virtual(addr netip.Addr) bool { return s.claims[addr] != nil }

// rivals lists the claims to an address that may keep others from it: all but those that one of them keeps from it already.
func (s *State) rivals(c translate.Claim) []translate.Claim {
	a := s.claims[c.Addr]
	if c.Strength != translate.ClaimEntry || len(a.entries[c.Service.Namespace]) == 0 {
		return a.strong
	}
	return append(slices.Clip(a.strong), a.entries[c.Service.Namespace][0])
}

// settleAddress looks at the claims to an address.
func (s *State) settleAddress(spot addrSpot) {
	a := s.claims[spot.addr]
	if a == nil {
		return
	}
	touch := func(namespace string) {
		for _, c := range a.entries[namespace] {
			s.touchEntry(c.Service)
		}
	}
	if spot.namespace == "" {
		for _, c := range a.strong {
			if c.Strength != translate.ClaimNode {
				s.dirty.services[c.Service] = struct{}{}
			}
		}
		for namespace := range a.entries {
			touch(namespace)
		}
		return
	}
	var is cluster.Key
	if in := a.entries[spot.namespace]; len(in) > 0 {
		is = in[0].Service
	}
	if was := a.owners[spot.namespace]; was != is {
		if is == (cluster.Key{}) {
			delete(a.owners, spot.namespace)
		} else {
			a.owners[spot.namespace] = is
		}
		touch(spot.namespace)
	}
}
