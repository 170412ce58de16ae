package policy

import (
	"errors"
	"fmt"
	"strings"
)

// RequestRule is one rule for requests: both must hold. They are apart since Envoy keeps them so.
type RequestRule struct {
	// Source is about who asks, Operation about what is asked for.
	Source, Operation Expr
}

// RequestPolicy is one policy for requests. It is immutable and safe for concurrent use.
type RequestPolicy struct {
	// Policy names it. Where connections are decided on it is invalid, so that it cannot be weaker there than it is.
	Policy *Policy

	rules []RequestRule
}

// errForRequests is why a RequestPolicy is no policy for connections.
var errForRequests = errors.New("the policy is for requests")

// NewRequestPolicy makes a policy of rules of which one must hold for it to match. Without rules it matches nothing.
func NewRequestPolicy(namespace, name string, action Action, dryRun bool, rules []RequestRule) *RequestPolicy {
	return &RequestPolicy{
		Policy: &Policy{Name: name, Namespace: namespace, Scope: ScopeWorkload, Action: action, DryRun: dryRun, Invalid: errForRequests},
		rules:  rules,
	}
}

// Rules returns the rules in their order. They must not be changed.
func (p *RequestPolicy) Rules() []RequestRule { return p.rules }

// matches reports whether the policy applies to r; doubt is what a test is worth that r cannot answer.
func (p *RequestPolicy) matches(r *Request, doubt bool) bool {
	for _, rule := range p.rules {
		if rule.Source.holds(r, doubt) && rule.Operation.holds(r, doubt) {
			return true
		}
	}
	return false
}

// Matching returns the first of some policies that applies to a request, nil if none does. What cannot be told counts as if it did.
func Matching(all []*RequestPolicy, r *Request) *RequestPolicy { return first(all, r, true) }

// StepKind says what a Step is for.
type StepKind uint8

// StepKinds.
const (
	// StepAudit tells of what its policies match.
	StepAudit StepKind = iota
	// StepDeny denies what one of its policies matches.
	StepDeny
	// StepAllow denies what none of its policies matches.
	StepAllow
)

// String is for people.
func (k StepKind) String() string { return [...]string{"audit", "deny", "allow"}[k] }

// Step is policies that are asked together. Policies are enforced, or tell of audits; Dry only count. A Step that has none of
// either kind is not there; Enforced tells an ALLOW step without policies, which denies all, from one that only has Dry.
type Step struct {
	Kind     StepKind
	Enforced bool
	Policies []*RequestPolicy
	Dry      []*RequestPolicy
}

// Steps are what a waypoint asks before it serves a request, in their order. They are immutable; without steps all is allowed.
type Steps []Step

// RequestDecision is a Decision on a request.
type RequestDecision struct {
	Decision
	// Audits are the policies that ask for what they match to be told.
	Audits []*RequestPolicy
}

// Decide asks one step after the other. The first that denies decides; the policy of a request that is allowed is that of the last
// step that did so. It may fill in r.URI, and keeps nothing of r.
func (s Steps) Decide(r *Request) RequestDecision {
	d := RequestDecision{Decision: Decision{Verdict: Allowed}}
	for i := range s {
		step := &s[i]
		switch step.Kind {
		case StepAudit:
			for _, p := range step.Policies {
				if p.matches(r, true) {
					d.Audits = append(d.Audits, p)
				}
			}
		case StepDeny:
			step.deny(r, &d)
		case StepAllow:
			step.allow(r, &d)
		}
		if d.Verdict != Allowed {
			return d
		}
	}
	return d
}

func first(all []*RequestPolicy, r *Request, doubt bool) *RequestPolicy {
	for _, p := range all {
		if p.matches(r, doubt) {
			return p
		}
	}
	return nil
}

func (s *Step) deny(r *Request, d *RequestDecision) {
	for _, p := range s.Dry {
		if p.matches(r, true) {
			d.DryRun = append(d.DryRun, DryRun{p.Policy, Denied})
		}
	}
	if p := first(s.Policies, r, true); p != nil {
		d.Verdict, d.Policy = Denied, p.Policy.Key()
		d.Reason = "denied by policy " + d.Policy
	}
}

func (s *Step) allow(r *Request, d *RequestDecision) {
	p := first(s.Policies, r, false)
	allowed := p != nil
	for _, dry := range s.Dry {
		if dry.matches(r, false) {
			d.DryRun, allowed = append(d.DryRun, DryRun{dry.Policy, Allowed}), true
		}
	}
	if !allowed {
		for _, dry := range s.Dry[:min(len(s.Dry), maxUnmatched)] {
			d.DryRun = append(d.DryRun, DryRun{dry.Policy, Denied})
		}
	}
	switch {
	case p != nil:
		d.Policy = p.Policy.Key()
	case s.Enforced:
		d.Verdict, d.Policy, d.Reason = Denied, "", "no ALLOW policy matches; there are "+s.names()
	}
}

// names lists the policies, for a reason.
func (s *Step) names() string {
	const limit = 5
	var names []string
	for _, p := range s.Policies[:min(len(s.Policies), limit)] {
		names = append(names, p.Policy.Key())
	}
	out := strings.Join(names, ", ")
	switch more := len(s.Policies) - limit; {
	case len(s.Policies) == 0:
		out = "none that allows anything"
	case more > 0:
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}
