package l7

import (
	"cmp"
	"fmt"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// Reasons of authz.WaypointConditionType. Istio's.
const (
	policyAccepted  = "Accepted"
	policyInvalid   = "Invalid"
	policyPartially = "PartiallyInvalid"
	policyUnbound   = "AncestorNotBound"
	policyNotFound  = "TargetNotFound"
)

// Gateways tells of a Gateway whether it is there, and whether it is a waypoint.
type Gateways func(cluster.Key) (there, waypoint bool)

// PolicyStatus says what waypoints make of a policy. It depends on what the policy is attached to.
func PolicyStatus(m translate.Mesh, p *cluster.AuthorizationPolicy, ix Index, gateways Gateways) translate.Status {
	out := translate.Status{Kind: p.ObjectKind(), Key: p.Key, Type: authz.WaypointConditionType, Seen: p.SeenWaypoint}
	if !p.Policy.Attached {
		return out
	}
	bound, reason := 0, ""
	var faults []string
	for _, t := range p.Policy.Requests.Targets {
		why, message := attached(m, p.Namespace, t, ix, gateways)
		if why == "" {
			bound++
			continue
		}
		if reason == "" {
			reason = why
		}
		faults = append(faults, message)
	}
	c := conditions{generation: p.Generation}
	verdict := p.Policy.AtWaypoints()
	if verdict.Message != "" {
		faults = append([]string{verdict.Message}, faults...)
	}
	asks := p.Policy.Action == authz.Custom && !p.Policy.DryRun
	if asks && p.Policy.Provider != "" {
		if _, _, err := Provider(m, p.Policy.Provider, ix); err != nil {
			verdict = authz.Verdict{}
			faults = append([]string{err.Error() + ". What the policy matches is refused"}, faults...)
		}
	}
	message := strings.Join(faults, "; ")
	switch {
	case !verdict.Whole && verdict.Some && bound > 0:
		c.add(authz.WaypointConditionType, false, policyPartially, message)
	case !verdict.Whole:
		c.add(authz.WaypointConditionType, false, policyInvalid, message)
	case bound == 0:
		c.add(authz.WaypointConditionType, false, gatewayv1.RouteConditionReason(cmp.Or(reason, policyInvalid)), message)
	case len(faults) > 0:
		c.add(authz.WaypointConditionType, true, policyPartially, message)
	case p.Policy.DryRun && p.Policy.Action == authz.Custom:
		c.add(authz.WaypointConditionType, true, policyAccepted, "dry run: nobody is asked, and nothing is enforced")
	case p.Policy.DryRun:
		c.add(authz.WaypointConditionType, true, policyAccepted, "dry run: waypoints count what the policy would decide, and enforce nothing")
	case asks:
		c.add(authz.WaypointConditionType, true, policyAccepted, "waypoints ask provider "+p.Policy.Provider+"; on ports that are not HTTP what the policy matches is refused")
	default:
		c.add(authz.WaypointConditionType, true, policyAccepted, "enforced by waypoints")
	}
	out.Want = c.list[0]
	return out
}

// attached says why a policy of a namespace has no effect on one of its targets; "" if it has.
func attached(m translate.Mesh, namespace string, t authz.Target, ix Index, gateways Gateways) (reason, message string) {
	key := cluster.Key{Namespace: namespace, Name: t.Name}
	ref := cluster.ServiceRef(key)
	switch t.Kind {
	case authz.TargetGatewayClass:
		if namespace != m.RootNamespace {
			return policyInvalid, fmt.Sprintf("a policy for GatewayClass %s has to be in namespace %s", t.Name, m.RootNamespace)
		}
		return "", ""
	case authz.TargetGateway:
		switch there, waypoint := gateways(key); {
		case !there:
			return policyNotFound, fmt.Sprintf("Gateway %s is not there", key)
		case !waypoint:
			return policyUnbound, fmt.Sprintf("Gateway %s is no waypoint that takes traffic", key)
		}
		return "", ""
	case authz.TargetServiceEntry:
		ref = cluster.EntryRef(key)
	}
	switch h := ix.Host(ref); {
	case h == nil:
		return policyNotFound, fmt.Sprintf("%s is not there", ref)
	case h.Bound:
		return "", ""
	case h.Waypoint == "":
		return policyUnbound, fmt.Sprintf("%s asks for no waypoint (label %s, on it or on its namespace), so nothing enforces the policy", ref, api.LabelUseWaypoint)
	default:
		return policyUnbound, fmt.Sprintf("%s: %s", ref, h.Told)
	}
}
