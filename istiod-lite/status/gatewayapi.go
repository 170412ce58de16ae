package status

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// Features that the mesh supports, under the Gateway API's names.
var (
	// routeFeatures are those of routes whose parents are services.
	routeFeatures = []string{
		"GRPCRoute", "HTTPRoute", "HTTPRoute303RedirectStatusCode", "HTTPRoute307RedirectStatusCode", "HTTPRoute308RedirectStatusCode",
		"HTTPRouteParentRefPort", "HTTPRouteResponseHeaderModification",
	}
	meshFeatures = []string{
		"Mesh", "MeshClusterIPMatching", "MeshConsumerRoute", "MeshHTTPRouteBackendRequestHeaderModification", "MeshHTTPRouteNamedRouteRule",
		"MeshHTTPRouteQueryParamMatching", "MeshHTTPRouteRedirectPath", "MeshHTTPRouteRedirectPort", "MeshHTTPRouteRewritePath",
		"MeshHTTPRouteSchemeRedirect",
	}
)

// newestBundle is the newest minor version 1.x of the Gateway API's definitions that this release was made for.
const newestBundle = 7

func condition[T, R ~string](typ T, good bool, reason R, generation int64, format string, args ...any) cluster.Condition {
	c := cluster.Condition{Type: string(typ), Status: "False", Reason: string(reason), Message: fmt.Sprintf(format, args...), Generation: generation}
	if good {
		c.Status = "True"
	}
	return c
}

// routeBody is what a route says to its parents that are services, or a policy of its targets; nil if it is gone.
func routeBody(r state.RouteStatus) *body {
	if r.Gone {
		return nil
	}
	names := routeEntries
	switch r.Kind {
	case cluster.KindBackendTLSPolicy, cluster.KindBackendTraffic, cluster.KindWaypointPolicy:
		names = policyEntries
	}
	return &body{
		generation: r.Generation, parents: r.Want, entries: names, controller: api.ControllerWaypoint,
		settled: slices.EqualFunc(r.Want, r.Seen, cluster.ParentStatus.Equal),
	}
}

// gatewayBody is what a Gateway says; nil if the mesh does not answer it.
func gatewayBody(g state.Gateway) *body {
	switch {
	case g.Gateway == nil || g.Gateway.Deleting:
		return nil
	case g.Waypoint != nil:
		return waypointBody(g)
	case g.Class != nil && g.Class.Controller == api.ControllerIngress && (g.Gateway.Revision == "" || g.Gateway.Revision == api.RevisionDefault):
		return ingressBody(g.Gateway)
	}
	return nil
}

// noIngress is what Gateways of Istio's class for ingress are told, and the class itself, in case nobody else deploys them.
const noIngress = "ambit deploys no ingress gateways in this release"

func ingressBody(g *cluster.Gateway) *body {
	return &body{generation: g.Generation, yielding: true, conditions: []cluster.Condition{
		condition(gatewayv1.GatewayConditionAccepted, false, gatewayv1.GatewayReasonPending, g.Generation, noIngress),
		condition(gatewayv1.GatewayConditionProgrammed, false, gatewayv1.GatewayReasonPending, g.Generation, noIngress),
	}}
}

func waypointBody(in state.Gateway) *body {
	g, w := in.Gateway, in.Waypoint
	b := &body{generation: g.Generation, addresses: []any{}, listeners: []listener{}}
	accepted := condition(gatewayv1.GatewayConditionAccepted, true, gatewayv1.GatewayReasonAccepted, g.Generation, "a waypoint for traffic of kind %q", w.For)
	odd := 0
	for _, l := range g.Listeners {
		if !translate.IsWaypointListener(l) {
			odd++
		}
	}
	switch w.For {
	case api.WaypointForService, api.WaypointForWorkload, api.WaypointForAll:
	case api.WaypointForNone:
		accepted.Message = fmt.Sprintf("a waypoint for traffic of kind %q: none is sent to it", w.For)
	default:
		accepted = condition(gatewayv1.GatewayConditionAccepted, false, gatewayv1.GatewayReasonInvalid, g.Generation, "label %s is %q: want %s, %s, %s or %s",
			api.LabelWaypointFor, w.For, api.WaypointForService, api.WaypointForWorkload, api.WaypointForAll, api.WaypointForNone)
	}
	switch {
	case len(g.Faults) > 0:
		accepted = condition(gatewayv1.GatewayConditionAccepted, false, gatewayv1.GatewayReasonInvalid, g.Generation, "%s", strings.Join(g.Faults, "; "))
	case w.Listener == nil:
		accepted = condition(gatewayv1.GatewayConditionAccepted, false, gatewayv1.GatewayReasonListenersNotValid, g.Generation, "%s", w.Unready)
	case in.Fault.Parameters:
		accepted = condition(gatewayv1.GatewayConditionAccepted, false, gatewayv1.GatewayReasonInvalidParameters, g.Generation, "%s", in.Fault.Message)
	case odd > 0:
		accepted = condition(gatewayv1.GatewayConditionAccepted, true, gatewayv1.GatewayReasonListenersNotValid, g.Generation,
			"%d listeners are not a waypoint's: it has one, with protocol HBONE on port %d", odd, api.PortHBONE)
	}
	var programmed cluster.Condition
	switch {
	case accepted.Status == "False" && !(in.Fault.Parameters && w.Unready == ""): // what was deployed before goes on
		programmed = condition(gatewayv1.GatewayConditionProgrammed, false, gatewayv1.GatewayReasonInvalid, g.Generation, "%s", accepted.Message)
	case w.Unready == "":
		programmed = condition(gatewayv1.GatewayConditionProgrammed, true, gatewayv1.GatewayReasonProgrammed, g.Generation, "traffic is sent to it")
		b.addresses = addressesOf(in)
	case in.Fault.Message != "":
		programmed = condition(gatewayv1.GatewayConditionProgrammed, false, gatewayv1.GatewayReasonInvalid, g.Generation, "%s", in.Fault.Message)
	case in.Service != nil && len(in.Service.ClusterIPs) == 0:
		programmed = condition(gatewayv1.GatewayConditionProgrammed, false, gatewayv1.GatewayReasonAddressNotAssigned, g.Generation, "%s", w.Unready)
	default:
		programmed = condition(gatewayv1.GatewayConditionProgrammed, false, gatewayv1.GatewayReasonPending, g.Generation, "%s", w.Unready)
	}
	resolved := condition(gatewayv1.GatewayConditionResolvedRefs, true, gatewayv1.GatewayReasonResolvedRefs, g.Generation, "it refers to nothing that is missing")
	b.conditions = []cluster.Condition{accepted, programmed, resolved}
	seen := false
	for _, l := range g.Listeners {
		b.listeners = append(b.listeners, listenerBody(g, l, programmed, seen))
		seen = seen || translate.IsWaypointListener(l)
	}
	return b
}

// addressesOf is where a waypoint is found.
func addressesOf(in state.Gateway) []any {
	address := func(typ, value string) any { return map[string]any{"type": typ, "value": value} }
	if own := in.Gateway.Addresses; len(own) > 0 {
		return []any{address(own[0].Type, own[0].Value)}
	}
	out := []any{address(string(gatewayv1.HostnameAddressType), in.Waypoint.Host)}
	ips := slices.SortedFunc(slices.Values(in.Service.ClusterIPs), netip.Addr.Compare)
	for _, ip := range ips {
		out = append(out, address(string(gatewayv1.IPAddressType), ip.String()))
	}
	return out
}

// routeKinds are those that a waypoint's listener takes.
var routeKinds = []string{string(cluster.KindHTTPRoute), string(cluster.KindGRPCRoute), string(cluster.KindTLSRoute), string(cluster.KindTCPRoute)}

// listenerBody is what one listener says; taken tells that another one before it takes the tunnels.
func listenerBody(g *cluster.Gateway, l cluster.Listener, gateway cluster.Condition, taken bool) listener {
	out := listener{name: l.Name, kinds: []any{}}
	var odd []string
	if len(l.Kinds) == 0 {
		for _, k := range routeKinds {
			out.kinds = append(out.kinds, map[string]any{"group": gatewayv1.GroupName, "kind": k})
		}
	}
	for _, k := range l.Kinds {
		group, kind, _ := strings.Cut(k, "/")
		if group != gatewayv1.GroupName || !slices.Contains(routeKinds, kind) {
			odd = append(odd, k)
			continue
		}
		out.kinds = append(out.kinds, map[string]any{"group": group, "kind": kind})
	}
	accepted := condition(gatewayv1.ListenerConditionAccepted, true, gatewayv1.ListenerReasonAccepted, g.Generation, "it takes tunnels")
	switch {
	case !translate.IsWaypointListener(l):
		accepted = condition(gatewayv1.ListenerConditionAccepted, false, gatewayv1.ListenerReasonUnsupportedProtocol, g.Generation,
			"a waypoint has one listener, with protocol HBONE on port %d; this one has %s on %d", api.PortHBONE, l.Protocol, l.Port)
	case taken:
		accepted = condition(gatewayv1.ListenerConditionAccepted, false, gatewayv1.ListenerReasonPortUnavailable, g.Generation, "another listener takes the tunnels already")
	}
	programmed := condition(gatewayv1.ListenerConditionProgrammed, true, gatewayv1.ListenerReasonProgrammed, g.Generation, "it takes tunnels")
	switch {
	case accepted.Status == "False":
		programmed = condition(gatewayv1.ListenerConditionProgrammed, false, gatewayv1.ListenerReasonInvalid, g.Generation, "%s", accepted.Message)
	case gateway.Status == "False":
		programmed = condition(gatewayv1.ListenerConditionProgrammed, false, gatewayv1.ListenerReasonPending, g.Generation, "%s", gateway.Message)
	}
	resolved := condition(gatewayv1.ListenerConditionResolvedRefs, true, gatewayv1.ListenerReasonResolvedRefs, g.Generation, "it refers to nothing that is missing")
	if len(odd) > 0 {
		resolved = condition(gatewayv1.ListenerConditionResolvedRefs, false, gatewayv1.ListenerReasonInvalidRouteKinds, g.Generation,
			"allowedRoutes.kinds: %s are not supported; there are %s", strings.Join(odd, ", "), strings.Join(routeKinds, ", "))
	}
	conflicted := condition(gatewayv1.ListenerConditionConflicted, false, gatewayv1.ListenerReasonNoConflicts, g.Generation, "no other listener is in its way")
	if taken && translate.IsWaypointListener(l) {
		conflicted = condition(gatewayv1.ListenerConditionConflicted, true, gatewayv1.ListenerReasonProtocolConflict, g.Generation, "another listener takes the tunnels already")
	}
	out.conditions = []cluster.Condition{accepted, programmed, resolved, conflicted}
	return out
}

// classBody is what a GatewayClass says; nil if it is not one of the mesh's.
func classBody(in state.Class) *body {
	c := in.Class
	switch {
	case c != nil && c.Controller == api.ControllerIngress:
		return &body{generation: c.Generation, yielding: true, conditions: []cluster.Condition{
			condition(gatewayv1.GatewayClassConditionStatusAccepted, false, gatewayv1.GatewayClassReasonUnsupported, c.Generation, noIngress),
		}}
	case c == nil || c.Controller != api.ControllerWaypoint:
		return nil
	}
	accepted := condition(gatewayv1.GatewayClassConditionStatusAccepted, true, gatewayv1.GatewayClassReasonAccepted, c.Generation, "Gateways of this class become waypoints")
	switch {
	case len(c.Faults) > 0:
		accepted = condition(gatewayv1.GatewayClassConditionStatusAccepted, false, gatewayv1.GatewayClassReasonUnsupported, c.Generation, "%s", strings.Join(c.Faults, "; "))
	case c.Parameters:
		accepted = condition(gatewayv1.GatewayClassConditionStatusAccepted, false, gatewayv1.GatewayClassReasonInvalidParameters, c.Generation,
			"spec.parametersRef is not supported: there are no parameters of a class")
	}
	supported := condition(gatewayv1.GatewayClassConditionStatusSupportedVersion, true, gatewayv1.GatewayClassReasonSupportedVersion, c.Generation,
		"the Gateway API's definitions are of %s", in.Bundle)
	if !supports(in.Bundle) {
		supported = condition(gatewayv1.GatewayClassConditionStatusSupportedVersion, false, gatewayv1.GatewayClassReasonUnsupportedVersion, c.Generation,
			"the Gateway API's definitions are of version %q; this release was made for v1.0 to v1.%d, and does what it can", in.Bundle, newestBundle)
	}
	return &body{generation: c.Generation, conditions: []cluster.Condition{accepted, supported}, features: routeFeatures}
}

// supports reports whether this release was made for a version of the Gateway API's definitions, such as v1.7.0.
func supports(bundle string) bool {
	rest, ok := strings.CutPrefix(bundle, "v1.")
	minor, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(minor)
	return ok && err == nil && n >= 0 && n <= newestBundle
}

// meshBody is what an XMesh says; nil if it is another mesh's.
func meshBody(in state.Mesh, who Instance) *body {
	m := in.Mesh
	if m == nil || m.Controller != api.ControllerMesh {
		return nil
	}
	accepted := condition("Accepted", true, "Accepted", m.Generation, "this is ambit %s, whose control plane is in namespace %s", who.Version, who.Namespace)
	programmed := condition("Programmed", true, "Programmed", m.Generation, "data planes are served by ambit %s in namespace %s", who.Version, who.Namespace)
	if m.Parameters != "" {
		accepted = condition("Accepted", false, "InvalidParameters", m.Generation, "spec.parametersRef %s: ambit %s in namespace %s takes no parameters", m.Parameters, who.Version, who.Namespace)
		programmed = condition("Programmed", false, "Invalid", m.Generation, "%s", accepted.Message)
	}
	features := slices.Concat(routeFeatures, meshFeatures)
	slices.Sort(features)
	return &body{generation: m.Generation, conditions: []cluster.Condition{accepted, programmed}, features: features}
}
