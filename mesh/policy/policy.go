package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Scope says which workloads a policy selects.
type Scope uint8

const (
	// ScopeGlobal: all of the mesh.
	ScopeGlobal Scope = iota
	// ScopeNamespace: those of the policy's namespace.
	ScopeNamespace
	// ScopeWorkload: those that name the policy.
	ScopeWorkload
)

// Action is what a policy does with the connections that it matches.
type Action uint8

const (
	Allow Action = iota
	Deny
)

// Policy is one compiled policy. It is immutable and safe for concurrent use.
type Policy struct {
	Name      string
	Namespace string
	Scope     Scope
	Action    Action
	// DryRun: decide and tell, do not enforce.
	DryRun bool
	// Invalid is why the policy could not be compiled, nil if it could. An invalid Deny policy denies all that it
	// selects, an invalid Allow policy allows nothing; DryRun stays as it was.
	Invalid error

	rules []rule
}

// Key is "namespace/name", by which workloads name a policy; the name alone if there is no namespace.
func (p *Policy) Key() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// Connection is what a decision is made on.
type Connection struct {
	// Peer is the verified identity of the client; zero if it has none (plaintext).
	Peer identity.Identity
	// Source is the client's address.
	Source netip.Addr
	// Destination is the address and port of the application, behind service ports.
	Destination netip.AddrPort
}

// Matches reports whether the policy applies its action to c. An invalid Deny policy matches all, an invalid Allow policy
// nothing.
func (p *Policy) Matches(c Connection) bool {
	s := newSubject(c)
	return p.matches(&s)
}

func (p *Policy) matches(s *subject) bool {
	if p.Invalid != nil {
		return p.Action == Deny
	}
	for i := range p.rules {
		if p.rules[i].matches(s) {
			return true
		}
	}
	return false
}

// Group is an immutable set of policies that apply together, e.g. all of one namespace. The nil Group is empty.
type Group struct {
	all []*Policy
	// Those that are enforced, and those that only tell, by action.
	deny, allow, dryDeny, dryAllow table
}

// NewGroup makes a Group; it keeps the pointers, not the slice. Their order decides which policy is named where several
// would decide the same. It costs time and memory in proportion to the rules, so that a decision does not: make one when
// policies change, not for a connection.
func NewGroup(policies []*Policy) *Group {
	if len(policies) == 0 {
		return nil
	}
	var parts [2][2][]*Policy // by action and dry run
	for _, p := range policies {
		dry := 0
		if p.DryRun {
			dry = 1
		}
		parts[p.Action][dry] = append(parts[p.Action][dry], p)
	}
	return &Group{
		all:  slices.Clone(policies),
		deny: newTable(parts[Deny][0]), allow: newTable(parts[Allow][0]),
		dryDeny: newTable(parts[Deny][1]), dryAllow: newTable(parts[Allow][1]),
	}
}

// Policies returns the policies in their order. They must not be changed.
func (g *Group) Policies() []*Policy {
	if g == nil {
		return nil
	}
	return g.all
}

// Set is the policies that apply to one workload. It is immutable; the zero Set is empty and allows all.
type Set struct {
	Global    *Group
	Namespace *Group
	// Selected are those that the workload names, Missing the names for which there is none (yet).
	Selected *Group
	Missing  []string
}

// Equal reports whether both hold the same policies, and so decide the same.
func (s Set) Equal(o Set) bool {
	return s.Global == o.Global && s.Namespace == o.Namespace && slices.Equal(s.Missing, o.Missing) &&
		(s.Selected == o.Selected || slices.Equal(s.Selected.Policies(), o.Selected.Policies()))
}

// groups are those that there are.
func (s Set) groups() [3]*Group { return [...]*Group{s.Global, s.Namespace, s.Selected} }

// Verdict is the outcome of a decision.
type Verdict uint8

const (
	// Undecided: no policy that is known denies, but one that the workload names is not known. A new connection must wait
	// or be refused; one that lives may go on.
	Undecided Verdict = iota
	Allowed
	Denied
)

// String is for logs.
func (v Verdict) String() string {
	switch v {
	case Allowed:
		return "allowed"
	case Denied:
		return "denied"
	}
	return "undecided"
}

// Decision is the answer for one connection.
type Decision struct {
	Verdict Verdict
	// Policy is the key of the policy that decided: the Deny policy, the Allow policy, or the missing one. Empty when
	// Allow policies exist and none matched, and when no policy exists.
	Policy string
	// Reason is a sentence for logs; empty if Verdict is Allowed.
	Reason string
	// DryRun is what policies that are not enforced would have decided.
	DryRun []DryRun
}

// DryRun is what one policy that is not enforced would have decided.
type DryRun struct {
	Policy *Policy
	// Verdict is Denied or Allowed: a Deny policy that matches denies; of the Allow policies, one that matches allows, and if
	// none does, enforced or not, each of them denies.
	Verdict Verdict
}

// maxUnmatched bounds how many dry-run Allow policies that did not match a decision names: the first ones.
const maxUnmatched = 8

// Allowed reports whether Verdict is Allowed.
func (d Decision) Allowed() bool { return d.Verdict == Allowed }

// Evaluate decides: a Deny policy that matches denies; otherwise a missing policy leaves it undecided; otherwise, if
// there are Allow policies, one of them must match.
func (s Set) Evaluate(c Connection) Decision {
	subject := newSubject(c)
	allow, some := s.firstAllow(&subject)
	d := Decision{DryRun: s.dryRun(&subject, allow != nil)}
	if p := s.firstDeny(&subject); p != nil {
		d.Verdict, d.Policy = Denied, p.Key()
		d.Reason = "denied by policy " + d.Policy
		if p.Invalid != nil {
			d.Reason += ", which is invalid and so denies all: " + p.Invalid.Error()
		}
		return d
	}
	if len(s.Missing) > 0 {
		d.Policy = s.Missing[0]
		d.Reason = fmt.Sprintf("policy %s selects the workload and is not known yet", d.Policy)
		return d
	}
	switch {
	case allow != nil:
		d.Verdict, d.Policy = Allowed, allow.Key()
	case some:
		d.Verdict, d.Reason = Denied, "no ALLOW policy matches; there are "+s.allowNames()
	default:
		d.Verdict = Allowed
	}
	return d
}

func (s Set) firstDeny(c *subject) *Policy {
	for _, g := range s.groups() {
		if g != nil {
			if p := g.deny.first(c); p != nil {
				return p
			}
		}
	}
	return nil
}

// firstAllow returns the first Allow policy that matches, and whether there are any.
func (s Set) firstAllow(c *subject) (first *Policy, some bool) {
	for _, g := range s.groups() {
		if g == nil {
			continue
		}
		some = some || len(g.allow.policies) > 0
		if p := g.allow.first(c); p != nil {
			return p, true
		}
	}
	return nil, some
}

// dryRun lists what policies that are not enforced would decide; allowed says that an enforced Allow policy matches.
func (s Set) dryRun(c *subject, allowed bool) []DryRun {
	var out []DryRun
	for _, g := range s.groups() {
		if g == nil {
			continue
		}
		for _, p := range g.dryDeny.all(c) {
			out = append(out, DryRun{p, Denied})
		}
		for _, p := range g.dryAllow.all(c) {
			out, allowed = append(out, DryRun{p, Allowed}), true
		}
	}
	if allowed {
		return out
	}
	n := 0
	for _, g := range s.groups() {
		if g == nil {
			continue
		}
		for _, p := range g.dryAllow.policies {
			if n++; n > maxUnmatched {
				return out
			}
			out = append(out, DryRun{p, Denied})
		}
	}
	return out
}

// allowNames lists the enforced Allow policies, for a reason; there may be very many.
func (s Set) allowNames() string {
	const limit = 5
	var names []string
	more := 0
	for _, g := range s.groups() {
		if g == nil {
			continue
		}
		for _, p := range g.allow.policies {
			switch {
			case len(names) == limit:
				more++
			case p.Invalid != nil:
				names = append(names, p.Key()+" (invalid: "+p.Invalid.Error()+")")
			default:
				names = append(names, p.Key())
			}
		}
	}
	out := strings.Join(names, ", ")
	if more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}
