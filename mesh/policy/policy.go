package policy

import (
	"fmt"
	"net/netip"
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
	deny, allow, dryRun []*Policy
}

// NewGroup makes a Group; it keeps the pointers, not the slice. Their order decides which policy is named where several
// would decide the same.
func NewGroup(policies []*Policy) *Group {
	g := &Group{}
	for _, p := range policies {
		switch {
		case p.DryRun:
			g.dryRun = append(g.dryRun, p)
		case p.Action == Deny:
			g.deny = append(g.deny, p)
		default:
			g.allow = append(g.allow, p)
		}
	}
	return g
}

// Set is the policies that apply to one workload. It is immutable; the zero Set is empty and allows all.
type Set struct {
	Global    *Group
	Namespace *Group
	// Selected are those that the workload names, Missing the names for which there is none (yet).
	Selected []*Policy
	Missing  []string
}

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
	// DryRun lists dry-run policies that matched: Deny ones would have denied, Allow ones would have allowed.
	DryRun []*Policy
}

// Allowed reports whether Verdict is Allowed.
func (d Decision) Allowed() bool { return d.Verdict == Allowed }

// Evaluate decides: a Deny policy that matches denies; otherwise a missing policy leaves it undecided; otherwise, if
// there are Allow policies, one of them must match.
func (s Set) Evaluate(c Connection) Decision {
	subject := newSubject(c)
	d := Decision{DryRun: s.dryRun(&subject)}
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
	p, some := s.firstAllow(&subject)
	switch {
	case p != nil:
		d.Verdict, d.Policy = Allowed, p.Key()
	case some:
		d.Verdict, d.Reason = Denied, "no ALLOW policy matches; there are "+s.allowNames()
	default:
		d.Verdict = Allowed
	}
	return d
}

func (s Set) firstDeny(c *subject) *Policy {
	for _, g := range [...]*Group{s.Global, s.Namespace} {
		if g == nil {
			continue
		}
		for _, p := range g.deny {
			if p.matches(c) {
				return p
			}
		}
	}
	for _, p := range s.Selected {
		if p.Action == Deny && !p.DryRun && p.matches(c) {
			return p
		}
	}
	return nil
}

// firstAllow returns the first Allow policy that matches, and whether there are any.
func (s Set) firstAllow(c *subject) (first *Policy, some bool) {
	for _, g := range [...]*Group{s.Global, s.Namespace} {
		if g == nil {
			continue
		}
		some = some || len(g.allow) > 0
		for _, p := range g.allow {
			if p.matches(c) {
				return p, true
			}
		}
	}
	for _, p := range s.Selected {
		if p.Action != Allow || p.DryRun {
			continue
		}
		if some = true; p.matches(c) {
			return p, true
		}
	}
	return nil, some
}

func (s Set) dryRun(c *subject) []*Policy {
	var hits []*Policy
	for _, g := range [...]*Group{s.Global, s.Namespace} {
		if g == nil {
			continue
		}
		for _, p := range g.dryRun {
			if p.matches(c) {
				hits = append(hits, p)
			}
		}
	}
	for _, p := range s.Selected {
		if p.DryRun && p.matches(c) {
			hits = append(hits, p)
		}
	}
	return hits
}

// allowNames lists the enforced Allow policies, for a reason; there may be very many.
func (s Set) allowNames() string {
	const limit = 5
	var names []string
	more := 0
	name := func(p *Policy) {
		switch {
		case p.Action != Allow || p.DryRun:
		case len(names) == limit:
			more++
		case p.Invalid != nil:
			names = append(names, p.Key()+" (invalid: "+p.Invalid.Error()+")")
		default:
			names = append(names, p.Key())
		}
	}
	for _, g := range [...]*Group{s.Global, s.Namespace} {
		if g != nil {
			for _, p := range g.allow {
				name(p)
			}
		}
	}
	for _, p := range s.Selected {
		name(p)
	}
	out := strings.Join(names, ", ")
	if more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}
