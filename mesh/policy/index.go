package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// table is policies of one action. It finds those that match without looking at the others: each rule is filed under what a
// connection must have for the rule to match, the rarest such thing of the rule, and a look-up takes what is filed under
// what the connection has. Only rules that ask for nothing but what a connection must not have are looked at one by one.
type table struct {
	policies []*Policy // by rank

	byPrincipal             map[identity.Identity][]entry
	byAccount               map[account][]entry
	principals, namespaces  textIndex
	byPort                  map[uint16][]entry
	sources, destinations   prefixIndex
	identified, plain, rest []entry // of peers with an identity, of those without, of any
}

// entry is one rule, and which of the policies it is of.
type entry struct {
	rank int
	rule rule // one without clauses always matches
}

// key is something that a connection has. Only one of the fields besides kind is set.
type key struct {
	kind    keyKind
	id      identity.Identity
	account account
	text    string
	prefix  netip.Prefix
	port    uint16
}

// keyKind is what a key is about. Of two that are as rare, the smaller is the cheaper.
type keyKind uint8

const (
	keyPort keyKind = iota
	keyPrincipal
	keyAccount
	keyNamespace
	keySource
	keyDestination
	keyNamespacePrefix
	keyNamespaceSuffix
	keyPrincipalPrefix
	keyPrincipalSuffix
	keyPlain
	keyIdentified
)

func newTable(policies []*Policy) table {
	t := table{policies: policies}
	if len(policies) == 0 {
		return t
	}
	// First count how many rules ask for each thing, then file each rule under its rarest.
	count := map[key]int{}
	for _, p := range policies {
		for _, r := range p.rules {
			r.keys(func(k key) { count[k]++ })
		}
	}
	for rank, p := range policies {
		if p.Invalid != nil {
			if p.Action == Deny {
				t.rest = append(t.rest, entry{rank: rank})
			}
			continue
		}
		for _, r := range p.rules {
			t.file(entry{rank, r}, count)
		}
	}
	t.principals.finish()
	t.namespaces.finish()
	t.sources.finish()
	t.destinations.finish()
	return t
}

// keys calls f for everything that could be asked for first in r.
func (r rule) keys(f func(key)) {
	for _, c := range r {
		for i := range c {
			for _, option := range c[i].options() {
				for _, k := range option {
					f(k)
				}
			}
		}
	}
}

// file puts a rule where it is found.
func (t *table) file(e entry, count map[key]int) {
	var best []key
	bestCost, found := 0, false
	for _, c := range e.rule {
		keys, cost, possible, indexable := c.choose(count)
		if !possible {
			return // never matches
		}
		if indexable && (!found || cost < bestCost) {
			best, bestCost, found = keys, cost, true
		}
	}
	if !found {
		t.rest = append(t.rest, e)
		return
	}
	slices.SortFunc(best, compareKeys)
	for _, k := range slices.Compact(best) {
		t.fileUnder(k, e)
	}
}

// compareKeys brings equal keys together.
func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.text, b.text), cmp.Compare(a.port, b.port),
		cmp.Compare(a.id.TrustDomain, b.id.TrustDomain), cmp.Compare(a.id.Namespace, b.id.Namespace), cmp.Compare(a.id.ServiceAccount, b.id.ServiceAccount),
		cmp.Compare(a.account.namespace, b.account.namespace), cmp.Compare(a.account.name, b.account.name),
		a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
}

// choose returns the keys of which a connection must have one for the clause to hold, and how many rules share them. The clause
// is not possible if it never holds, and not indexable if there are no such keys.
func (c clause) choose(count map[key]int) (keys []key, cost int, possible, indexable bool) {
	if len(c) == 0 {
		return nil, 0, true, false
	}
	indexable = true
	for i := range c {
		m := &c[i]
		if !m.names && !m.empty {
			continue // never holds
		}
		possible = true
		var best []key
		bestCost := 0
		for _, option := range m.options() {
			most := 0
			for _, k := range option {
				most = max(most, count[k])
			}
			if best == nil || most < bestCost || most == bestCost && option[0].kind < best[0].kind {
				best, bestCost = option, most
			}
		}
		if best == nil {
			indexable = false
		}
		keys, cost = append(keys, best...), cost+bestCost
	}
	return keys, cost, possible, indexable
}

// options lists sets of keys of each of which a connection must have one for the match to hold.
func (m *match) options() [][]key {
	var out [][]key
	add := func(n int, make func(i int) key) {
		if n > 0 {
			option := []key{}
			for i := range n {
				option = append(option, make(i))
			}
			out = append(out, option)
		}
	}
	add(len(m.ports), func(i int) key { return key{kind: keyPort, port: m.ports[i]} })
	add(len(m.principals), func(i int) key {
		if id := m.principals[i].id; !id.IsZero() {
			return key{kind: keyPrincipal, id: id}
		}
		return textKey(m.principals[i], keyPrincipalPrefix, keyPrincipalPrefix, keyPrincipalSuffix)
	})
	add(len(m.accounts), func(i int) key { return key{kind: keyAccount, account: m.accounts[i]} })
	add(len(m.namespaces), func(i int) key {
		return textKey(m.namespaces[i], keyNamespace, keyNamespacePrefix, keyNamespaceSuffix)
	})
	add(len(m.sources), func(i int) key { return key{kind: keySource, prefix: m.sources[i]} })
	add(len(m.destinations), func(i int) key { return key{kind: keyDestination, prefix: m.destinations[i]} })
	present := func(t text) bool { return t.kind == textPresence }
	if slices.ContainsFunc(m.notPrincipals, present) || slices.ContainsFunc(m.notNamespaces, present) {
		out = append(out, []key{{kind: keyPlain}})
	}
	return out
}

func textKey(t text, exact, prefix, suffix keyKind) key {
	switch t.kind {
	case textPresence:
		return key{kind: keyIdentified}
	case textPrefix:
		return key{kind: prefix, text: t.value}
	case textSuffix:
		return key{kind: suffix, text: t.value}
	}
	return key{kind: exact, text: t.value}
}

func (t *table) fileUnder(k key, e entry) {
	switch k.kind {
	case keyPort:
		put(&t.byPort, k.port, e)
	case keyPrincipal:
		put(&t.byPrincipal, k.id, e)
	case keyAccount:
		put(&t.byAccount, k.account, e)
	case keyNamespace:
		put(&t.namespaces.exact, k.text, e)
	case keyNamespacePrefix:
		put(&t.namespaces.prefixes, k.text, e)
	case keyNamespaceSuffix:
		put(&t.namespaces.suffixes, k.text, e)
	case keyPrincipalPrefix:
		put(&t.principals.prefixes, k.text, e)
	case keyPrincipalSuffix:
		put(&t.principals.suffixes, k.text, e)
	case keySource:
		put(&t.sources.entries, k.prefix, e)
	case keyDestination:
		put(&t.destinations.entries, k.prefix, e)
	case keyPlain:
		t.plain = append(t.plain, e)
	case keyIdentified:
		t.identified = append(t.identified, e)
	}
}

func put[K comparable](m *map[K][]entry, k K, e entry) {
	if *m == nil {
		*m = map[K][]entry{}
	}
	(*m)[k] = append((*m)[k], e)
}

// look hands all entries that may match to f, in lists that are sorted by rank.
func (t *table) look(s *subject, f func([]entry)) {
	f(t.rest)
	if t.byPort != nil {
		f(t.byPort[s.Destination.Port()])
	}
	t.sources.look(s.Source, f)
	t.destinations.look(s.Destination.Addr(), f)
	if s.Peer.IsZero() {
		f(t.plain)
		return
	}
	f(t.identified)
	if t.byPrincipal != nil {
		f(t.byPrincipal[s.Peer])
	}
	if t.byAccount != nil {
		f(t.byAccount[account{s.Peer.Namespace, s.Peer.ServiceAccount}])
	}
	if !t.namespaces.empty() {
		t.namespaces.look(s.Peer.Namespace, f)
	}
	if !t.principals.empty() {
		t.principals.look(s.text(), f)
	}
}

// first returns the first policy that matches, or nil.
func (t *table) first(s *subject) *Policy {
	if len(t.policies) == 0 {
		return nil
	}
	best := len(t.policies)
	t.look(s, func(entries []entry) {
		for _, e := range entries {
			if e.rank >= best {
				return
			}
			if e.rule.matches(s) {
				best = e.rank
				return
			}
		}
	})
	if best == len(t.policies) {
		return nil
	}
	return t.policies[best]
}

// all returns every policy that matches, in order.
func (t *table) all(s *subject) []*Policy {
	if len(t.policies) == 0 {
		return nil
	}
	var ranks []int
	t.look(s, func(entries []entry) {
		for _, e := range entries {
			if e.rule.matches(s) {
				ranks = append(ranks, e.rank)
			}
		}
	})
	slices.Sort(ranks)
	var out []*Policy
	for _, rank := range slices.Compact(ranks) {
		out = append(out, t.policies[rank])
	}
	return out
}

// textIndex finds entries by a text, its beginning or its end: a look-up costs a step for each length that is in use.
type textIndex struct {
	exact, prefixes, suffixes    map[string][]entry
	prefixLengths, suffixLengths []int
}

func (x *textIndex) empty() bool { return x.exact == nil && x.prefixes == nil && x.suffixes == nil }

func (x *textIndex) finish() {
	x.prefixLengths, x.suffixLengths = lengths(x.prefixes), lengths(x.suffixes)
}

func lengths(m map[string][]entry) []int {
	seen := map[int]bool{}
	for text := range m {
		seen[len(text)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func (x *textIndex) look(value string, f func([]entry)) {
	if x.exact != nil {
		f(x.exact[value])
	}
	for _, n := range x.prefixLengths {
		if n > len(value) {
			break
		}
		f(x.prefixes[value[:n]])
	}
	for _, n := range x.suffixLengths {
		if n > len(value) {
			break
		}
		f(x.suffixes[value[len(value)-n:]])
	}
}

// prefixIndex finds entries by the ranges that an address is in: a look-up costs a step for each length that is in use.
type prefixIndex struct {
	entries map[netip.Prefix][]entry
	bits4   []int
	bits6   []int
}

func (x *prefixIndex) finish() {
	four, six := map[int]bool{}, map[int]bool{}
	for p := range x.entries {
		if p.Addr().Is4() {
			four[p.Bits()] = true
		} else {
			six[p.Bits()] = true
		}
	}
	x.bits4, x.bits6 = slices.Sorted(maps.Keys(four)), slices.Sorted(maps.Keys(six))
}

func (x *prefixIndex) look(addr netip.Addr, f func([]entry)) {
	bits := x.bits6
	if addr.Is4() {
		bits = x.bits4
	}
	for _, n := range bits {
		if p, err := addr.WithZone("").Prefix(n); err == nil {
			f(x.entries[p])
		}
	}
}
