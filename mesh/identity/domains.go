package identity

import (
	"slices"
	"strings"
)

// Domains are the names of the mesh's trust domain: its own, and aliases, which mean the same. It is immutable. A nil
// *Domains has no names, so that each trust domain is only itself.
type Domains struct {
	own   string
	names []string // own first
}

// NewDomains returns the names of a trust domain. Empty names and repetitions are left out.
func NewDomains(own string, aliases []string) *Domains {
	d := &Domains{own: own}
	for _, name := range append([]string{own}, aliases...) {
		if name != "" && !slices.Contains(d.names, name) {
			d.names = append(d.names, name)
		}
	}
	return d
}

// Names returns the mesh's own trust domain, then its aliases. The result must not be changed.
func (d *Domains) Names() []string {
	if d == nil {
		return nil
	}
	return d.names
}

// Same reports whether two trust domains are one: equal, or both names of the mesh's.
func (d *Domains) Same(a, b string) bool {
	return a == b || d != nil && slices.Contains(d.names, a) && slices.Contains(d.names, b)
}

// Canonical returns the identity under the mesh's own trust domain if its own is an alias of that, else unchanged.
func (d *Domains) Canonical(id Identity) Identity {
	if d != nil && id.TrustDomain != d.own && d.own != "" && slices.Contains(d.names, id.TrustDomain) {
		id.TrustDomain = d.own
	}
	return id
}

// CanonicalPrincipal is Canonical for an identity without its scheme, or the beginning of one that has its whole trust
// domain and a slash.
func (d *Domains) CanonicalPrincipal(principal string) string {
	if d == nil || len(d.names) < 2 {
		return principal
	}
	domain, rest, whole := strings.Cut(principal, "/")
	if whole && domain != d.own && d.own != "" && slices.Contains(d.names, domain) {
		return d.own + "/" + rest
	}
	return principal
}

// containsSame reports whether id is among ids, whichever name of the mesh's trust domain each uses.
func (d *Domains) containsSame(ids []Identity, id Identity) bool {
	if slices.Contains(ids, id) {
		return true
	}
	if d == nil || len(d.names) < 2 {
		return false
	}
	id = d.Canonical(id)
	return slices.ContainsFunc(ids, func(other Identity) bool { return d.Canonical(other) == id })
}

// withAliases adds to names those that mean the same as one of them, for people.
func (d *Domains) withAliases(names []string) []string {
	for _, name := range d.Names() {
		if !slices.Contains(names, name) && slices.ContainsFunc(names, func(n string) bool { return d.Same(n, name) }) {
			names = append(slices.Clip(names), name)
		}
	}
	return names
}
