package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// rule matches if each of its clauses does.
type rule []clause

// clause matches if any of its matches does, or if it has none.
type clause []match

// match holds if every kind of attribute that it names does: one of the positive values, if there are any, and none of
// the negative ones.
type match struct {
	namespaces, notNamespaces     []text
	principals, notPrincipals     []text
	accounts, notAccounts         []account
	sources, notSources           []netip.Prefix
	destinations, notDestinations []netip.Prefix
	ports, notPorts               []uint16

	// empty is what the match is worth if it names nothing at all: see compileMatch.
	empty, names bool
}

// text is a test of a string.
type text struct {
	kind  textKind
	value string
	// id is the identity that an exact principal stands for, if it is one, so that no string has to be made of the peer's.
	id identity.Identity
}

type textKind uint8

const (
	textExact textKind = iota
	textPrefix
	textSuffix
	textPresence
)

// account is a service account of any trust domain.
type account struct{ namespace, name string }

// subject is a Connection while it is tested.
type subject struct {
	Connection
	principal string // made when it is first needed
}

func newSubject(c Connection) subject {
	c.Source = c.Source.Unmap()
	c.Destination = netip.AddrPortFrom(c.Destination.Addr().Unmap(), c.Destination.Port())
	return subject{Connection: c}
}

func (r rule) matches(s *subject) bool {
	for _, c := range r {
		if !c.matches(s) {
			return false
		}
	}
	return true
}

func (c clause) matches(s *subject) bool {
	for i := range c {
		if c[i].matches(s) {
			return true
		}
	}
	return len(c) == 0
}

func (m *match) matches(s *subject) bool {
	if !m.names {
		return m.empty
	}
	// The cheapest first.
	return holds(m.ports, m.notPorts, func(p uint16) bool { return p == s.Destination.Port() }) &&
		holds(m.sources, m.notSources, func(p netip.Prefix) bool { return p.Contains(s.Source) }) &&
		holds(m.destinations, m.notDestinations, func(p netip.Prefix) bool { return p.Contains(s.Destination.Addr()) }) &&
		holds(m.namespaces, m.notNamespaces, s.namespaceIs) &&
		holds(m.accounts, m.notAccounts, s.accountIs) &&
		holds(m.principals, m.notPrincipals, s.principalIs)
}

func holds[T any](positive, negative []T, is func(T) bool) bool {
	if len(positive) > 0 && !slices.ContainsFunc(positive, is) {
		return false
	}
	return len(negative) == 0 || !slices.ContainsFunc(negative, is)
}

// A peer without an identity has no namespace, no account and no principal: no test of them succeeds.

func (s *subject) namespaceIs(t text) bool {
	return !s.Peer.IsZero() && t.is(s.Peer.Namespace)
}

func (s *subject) accountIs(a account) bool {
	return !s.Peer.IsZero() && s.Peer.ServiceAccount == a.name && s.Peer.Namespace == a.namespace
}

func (s *subject) principalIs(t text) bool {
	if s.Peer.IsZero() {
		return false
	}
	if !t.id.IsZero() {
		return t.id == s.Peer
	}
	if t.kind == textPresence {
		return true
	}
	return t.is(s.text())
}

// text is the peer's principal.
func (s *subject) text() string {
	if s.principal == "" {
		s.principal = s.Peer.Principal()
	}
	return s.principal
}

func (t text) is(value string) bool {
	switch t.kind {
	case textPrefix:
		return strings.HasPrefix(value, t.value)
	case textSuffix:
		return strings.HasSuffix(value, t.value)
	case textPresence:
		return value != ""
	}
	return value == t.value
}
