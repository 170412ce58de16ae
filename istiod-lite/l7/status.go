package l7

import (
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// target is what a reference to a backend led to.
type target struct {
	// cluster is ClusterInvalid if there is a fault, and so is asIs, which is for bytes that are TLS already.
	cluster, asIs string
	reason        gatewayv1.RouteConditionReason
	fault         string
}

// resolve finds a backend. Routes of the mesh may refer to any namespace: whoever can send to a service directly can do so by a
// route.
func resolve(b cluster.BackendRef, ix Index) target {
	bad := func(reason gatewayv1.RouteConditionReason, format string, args ...any) target {
		return target{ClusterInvalid, ClusterInvalid, reason, fmt.Sprintf(format, args...)}
	}
	if !b.Ref.IsService() && !b.Ref.IsEntry() {
		kind := string(b.Ref.Kind)
		if b.Ref.Group != "" {
			kind = b.Ref.Group + "/" + kind
		}
		return bad(gatewayv1.RouteReasonInvalidKind, "backend %s is of kind %s; there are Service and %s/ServiceEntry", b.Ref.Key, kind, cluster.GroupIstioNetworking)
	}
	h := ix.Host(b.Ref)
	if h == nil {
		return bad(gatewayv1.RouteReasonBackendNotFound, "%s is not there", b.Ref)
	}
	if h.Unfit != "" {
		return bad(gatewayv1.RouteReasonInvalidKind, "%s %s", b.Ref, h.Unfit)
	}
	if b.Port == 0 {
		return bad(gatewayv1.RouteReasonBackendNotFound, "%s: which port is not said", b.Ref)
	}
	if _, ok := h.Port(b.Port); !ok {
		return bad(gatewayv1.RouteReasonBackendNotFound, "%s has no TCP port %d", b.Ref, b.Port)
	}
	return target{cluster: ClusterName(h, b.Port), asIs: asIsCluster(h, b.Port)}
}

// What a route says of the waypoint of a parent: without one nothing executes the route. Istio's names.
const (
	conditionWaypoints gatewayv1.RouteConditionType   = "ResolvedWaypoints"
	reasonWaypoints    gatewayv1.RouteConditionReason = "ResolvedWaypoints"
	reasonUnlabelled   gatewayv1.RouteConditionReason = "MissingUseWaypointLabel"
)

// waypoint adds ResolvedWaypoints to what an object says of a service, if that is there.
func waypoint(c *conditions, what string, ref cluster.ObjectRef, ix Index) {
	h := ix.Host(ref)
	switch {
	case h == nil:
	case h.Bound:
		c.add(conditionWaypoints, true, reasonWaypoints, h.Told)
	case h.Waypoint == "":
		c.add(conditionWaypoints, false, reasonUnlabelled,
			fmt.Sprintf("%s has no effect: %s asks for no waypoint (label %s, on it or on its namespace)", what, ref, api.LabelUseWaypoint))
	default:
		c.add(conditionWaypoints, false, gatewayv1.RouteConditionReason(h.Waypoint), h.Told)
	}
}

// maxMessage bounds the message of a condition, in bytes; Kubernetes' own limit is 32 KiB.
const maxMessage = 1024

// conditions collects the conditions of one parent.
type conditions struct {
	generation int64
	list       []cluster.Condition
}

func (c *conditions) add(typ gatewayv1.RouteConditionType, good bool, reason gatewayv1.RouteConditionReason, message string) {
	status := "False"
	if good {
		status = "True"
	}
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "..."
	}
	c.list = append(c.list, cluster.Condition{Type: string(typ), Status: status, Reason: string(reason), Message: message, Generation: c.generation})
}

// Status says what became of a route, for each of its parents that is a service or a waypoint. Other Gateways have their own controllers. It
// depends on the route's parents, the other routes of these, and on what the route refers to.
func Status(r *cluster.Route, ix Index) []cluster.ParentStatus {
	var out []cluster.ParentStatus
	for _, p := range r.Parents {
		c := conditions{generation: r.Generation}
		switch {
		case p.Mesh():
			acceptance(&c, r, p, ix)
			references(&c, r, ix)
			waypoint(&c, "the route", p.Ref, ix)
		case p.Ref.IsGateway() && ix.IsWaypoint(p.Ref.Key):
			c.add(gatewayv1.RouteConditionAccepted, false, gatewayv1.RouteReasonNotAllowedByListeners, fmt.Sprintf(
				"%s is a waypoint, which executes the routes of the services that are bound to it: name the Service or ServiceEntry in parentRefs", p.Ref))
			references(&c, r, ix)
		default:
			continue
		}
		slices.SortFunc(c.list, func(a, b cluster.Condition) int { return strings.Compare(a.Type, b.Type) })
		out = append(out, cluster.ParentStatus{Ref: p.Written, Conditions: c.list})
	}
	return out
}

// acceptance adds Accepted and, if it is so, PartiallyInvalid.
func acceptance(c *conditions, r *cluster.Route, p cluster.RouteParent, ix Index) {
	won, lost := place(r, p, ix)
	if !won {
		c.add(gatewayv1.RouteConditionAccepted, false, lost.reason, lost.message)
		return
	}
	faulty, reason := 0, gatewayv1.RouteReasonUnsupportedValue
	var messages []string
	for i := range r.Rules {
		faults := faultsOf(r, i)
		if len(faults) == 0 {
			continue
		}
		if faulty == 0 && faults[0].Incompatible {
			reason = gatewayv1.RouteReasonIncompatibleFilters
		}
		faulty++
		for _, f := range faults {
			messages = append(messages, f.Message)
		}
	}
	if faulty > 0 && faulty == len(r.Rules) {
		c.add(gatewayv1.RouteConditionAccepted, false, reason, "what it matches is "+refusal(r)+": "+strings.Join(messages, "; "))
		return
	}
	message := "attached to " + p.Ref.String()
	if lost.message != "" {
		message += "; not everywhere: " + lost.message
	}
	c.add(gatewayv1.RouteConditionAccepted, true, gatewayv1.RouteReasonAccepted, message)
	if faulty > 0 {
		c.add(gatewayv1.RouteConditionPartiallyInvalid, true, gatewayv1.RouteReasonUnsupportedValue,
			"Dropped Rule: what it matches is "+refusal(r)+": "+strings.Join(messages, "; "))
	}
}

// refusal is what is done with what a rule matches that cannot be executed.
func refusal(r *cluster.Route) string {
	if isHTTP(r.Kind) {
		return "answered 500"
	}
	return "refused"
}

// place reports whether a route has one of the ports that its parent means. The loss is why it does not have one of them, zero
// if it has all. Several TCPRoutes may have a port, of which the first gets the connections, and several TLSRoutes, of which each gets
// those for its names.
func place(r *cluster.Route, p cluster.RouteParent, ix Index) (bool, loss) {
	none := func(format string, args ...any) (bool, loss) {
		return false, loss{gatewayv1.RouteReasonNoMatchingParent, fmt.Sprintf(format, args...)}
	}
	h := ix.Host(p.Ref)
	switch {
	case h == nil:
		return none("%s is not there", p.Ref)
	case h.Unfit != "":
		return none("%s %s", p.Ref, h.Unfit)
	case len(h.Addresses) == 0:
		return none("%s has no virtual address (it is headless, or another has its address): routes act on those who ask for it by one", p.Ref)
	}
	won, picked := false, false
	var first loss
	note := func(l loss) {
		if first.message == "" {
			first = l
		}
	}
	routes := ix.Routes(p.Ref)
	for _, port := range h.Ports {
		if !means(r, p, port) {
			continue
		}
		picked = true
		at := attach(h, port, routes)
		l, lost := at.lost[r]
		if lost {
			note(l)
			continue
		}
		won = true
		switch {
		case r.Kind == cluster.KindTCPRoute && at.producers[0] != r:
			note(loss{reasonConflicted, fmt.Sprintf("connections to port %d are those of TCPRoute %s, which is older or the first by name", port.Port, at.producers[0].Key)})
		case r.Kind == cluster.KindTLSRoute:
			if others := outdone(r, at.producers); others != "" {
				note(loss{reasonConflicted, fmt.Sprintf("connections to port %d %s, which is older or the first by name", port.Port, others)})
			}
		}
	}
	if !picked {
		if p.Port == 0 && p.Section == "" {
			return none("%s has no TCP port that is not declared to be something else than a %s is for: give port or sectionName", p.Ref, r.Kind)
		}
		return none("%s has no TCP port that the parentRef means", p.Ref)
	}
	return won, first
}

// references adds ResolvedRefs.
func references(c *conditions, r *cluster.Route, ix Index) {
	var reason gatewayv1.RouteConditionReason
	var messages []string
	for _, b := range r.Backends() {
		t := resolve(b, ix)
		if t.fault == "" {
			continue
		}
		if reason == "" {
			reason = t.reason
		}
		messages = append(messages, t.fault)
	}
	if reason != "" {
		c.add(gatewayv1.RouteConditionResolvedRefs, false, reason, strings.Join(messages, "; "))
		return
	}
	c.add(gatewayv1.RouteConditionResolvedRefs, true, gatewayv1.RouteReasonResolvedRefs, "all backends are there")
}
