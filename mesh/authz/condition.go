package authz

import (
	"fmt"
	"strings"
)

// ConditionType is the status condition that says what node proxies make of a policy. Istio's.
const ConditionType = "ZtunnelAccepted"

// WaypointConditionType is the one that says what waypoints make of a policy with targetRefs. Istio's.
const WaypointConditionType = "WaypointAccepted"

// Reasons of the condition.
const (
	// ReasonAccepted: the policy means at layer 4 what it says.
	ReasonAccepted = "Accepted"
	// ReasonUnsupported: it asks for what layer 4 does not have; see the message for what is in force. Istio's word.
	ReasonUnsupported = "UnsupportedValue"
	// ReasonInvalid: a part of it is malformed; see the message for what is in force.
	ReasonInvalid = "Invalid"
	// ReasonAttached: it is a waypoint's.
	ReasonAttached = "TargetRefs"
)

// Condition is a status condition of type ConditionType.
type Condition struct {
	// Accepted is the condition's status: the policy means to node proxies what it says.
	Accepted bool
	Reason   string
	Message  string
}

// maxNamed is how many problems a message lists: conditions are for people.
const maxNamed = 5

// Condition says what node proxies make of the policy.
func (p *Policy) Condition() Condition {
	switch {
	case p.Attached:
		return Condition{Reason: ReasonAttached,
			Message: "policies with targetRefs are enforced by waypoints; node proxies do not enforce them"}
	case !p.Enforced():
		return Condition{Reason: ReasonUnsupported,
			Message: fmt.Sprintf("action %s cannot be carried out at layer 4, so node proxies do nothing; attach the policy to a waypoint by targetRefs", p.Action)}
	case len(p.Problems) == 0:
		message := "enforced by node proxies"
		if p.DryRun {
			message = "dry run: node proxies count what the policy would decide, and enforce nothing"
		}
		return Condition{Accepted: true, Reason: ReasonAccepted, Message: message}
	}
	c := Condition{Reason: ReasonUnsupported}
	advice := "use ports, principals, namespaces, service accounts and IP blocks here, or attach the policy to a waypoint by targetRefs"
	for _, problem := range p.Problems {
		if problem.Kind == Invalid {
			c.Reason, advice = ReasonInvalid, "mend it"
		}
	}
	c.Message = list(p.Problems)
	if effect := p.Effect(); effect != "" {
		c.Message += ". " + effect
	}
	c.Message += "; " + advice
	return c
}

// list is the first of many.
func list(problems []Problem) string {
	var all []string
	for i, problem := range problems {
		if i == maxNamed {
			all = append(all, fmt.Sprintf("and %d more", len(problems)-maxNamed))
			break
		}
		all = append(all, problem.String())
	}
	return strings.Join(all, "; ")
}

// Effect says in a sentence, without its stop, what an enforced policy with problems does instead of what it says. It is
// empty for others.
func (p *Policy) Effect() string {
	switch {
	case !p.Enforced() || len(p.Problems) == 0 || len(p.Problems) == 1 && p.Problems[0].Where == whereDryRun:
		return ""
	case p.Action == Allow && len(p.rules) == 0:
		return "As it is the policy allows nothing"
	case p.Action == Allow:
		return "Rules with such parts allow nothing"
	case p.deniesAll():
		return "Without such parts the policy denies all traffic of the workloads that it selects"
	}
	return "Without such parts the policy denies more than it says"
}

// deniesAll reports whether one of the rules asks for nothing.
func (p *Policy) deniesAll() bool {
	for _, r := range p.rules {
		if len(r.GetClauses()) == 0 {
			return true
		}
	}
	return false
}
