package l7

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Refining is where hosts find what WaypointPolicies say of them. Its methods have no side effects.
type Refining interface {
	// WaypointPolicies returns the policies of which the object is a target, in any order, each once.
	WaypointPolicies(target cluster.ObjectRef) []*cluster.WaypointPolicy
	// Gateway is the waypoint that is translated for; zero if it is none in particular.
	Gateway() cluster.Key
}

// limits reports whether a policy has a rate limit.
func limits(p *cluster.WaypointPolicy) bool { return p.Limit != nil }

// governs is which policy has the say over a part of what is done on a port, nil if none has: one that names the port before one for
// the whole object, and that before one for the waypoint; then the oldest, then the first by name.
func governs(h *Host, port cluster.ServicePort, ix Refining, says func(*cluster.WaypointPolicy) bool) *cluster.WaypointPolicy {
	all := ix.WaypointPolicies(h.Ref)
	for _, section := range [...]string{port.Name, ""} {
		if p := first(all, h.Ref, section, says); p != nil {
			return p
		}
	}
	gateway := cluster.GatewayRef(ix.Gateway())
	return first(ix.WaypointPolicies(gateway), gateway, "", says)
}

// first is which of the policies of an object counts, of those that have it, or a section of it, as a target and say something.
func first(all []*cluster.WaypointPolicy, ref cluster.ObjectRef, section string, says func(*cluster.WaypointPolicy) bool) *cluster.WaypointPolicy {
	var best *cluster.WaypointPolicy
	for _, p := range all {
		if len(p.Faults) > 0 || !says(p) || best != nil && p.Compare(best) >= 0 {
			continue
		}
		for _, t := range p.Targets {
			if t.Ref == ref && t.Section == section {
				best = p
			}
		}
	}
	return best
}

// limitOf is the rate limit of a port; nil if it has none.
func limitOf(h *Host, port cluster.ServicePort, ix Refining) *cluster.RateLimit {
	if p := governs(h, port, ix, limits); p != nil {
		return p.Limit
	}
	return nil
}

// limitPrefix is that of the statistics of rate limits, which Envoy wants to have.
const limitPrefix = "rate_limit"

// limit has the requests of a virtual host bounded; nil leaves it as it is.
func limit(host *routev3.VirtualHost, l *cluster.RateLimit) {
	if l == nil {
		return
	}
	all := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	if host.TypedPerFilterConfig == nil {
		host.TypedPerFilterConfig = map[string]*anypb.Any{}
	}
	host.TypedPerFilterConfig[filterLimit] = config(&localv3.LocalRateLimit{
		StatPrefix: limitPrefix, FilterEnabled: all, FilterEnforced: all,
		TokenBucket: &typev3.TokenBucket{
			MaxTokens: l.Burst, TokensPerFill: wrapperspb.UInt32(l.Requests), FillInterval: durationpb.New(l.Interval)},
		LocalRateLimitPerDownstreamConnection: l.PerConnection,
		EnableXRatelimitHeaders:               ratelimitv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03,
		EnableRetryAfterHeader:                true,
		RateLimitedAsResourceExhausted:        true,
	})
}

// WaypointPolicyStatus says what became of a policy, for each of its targets. It depends on the targets and the other policies of these.
func WaypointPolicyStatus(p *cluster.WaypointPolicy, ix Index, gateways Gateways) []cluster.ParentStatus {
	var out []cluster.ParentStatus
	for i, t := range p.Targets {
		if twice(p.Targets[:i], t) {
			continue
		}
		c := conditions{generation: p.Generation}
		reason, message := refines(p, t, ix, gateways)
		c.add(gatewayv1.RouteConditionType(gatewayv1.PolicyConditionAccepted), reason == gatewayv1.PolicyReasonAccepted, gatewayv1.RouteConditionReason(reason), message)
		if t.Mesh() && reason != gatewayv1.PolicyReasonTargetNotFound {
			waypoint(&c, "the policy", t.Ref, ix)
		}
		out = append(out, cluster.ParentStatus{Ref: t.Written, Conditions: c.list})
	}
	return out
}

func twice(before []cluster.PolicyTarget, t cluster.PolicyTarget) bool {
	for _, o := range before {
		if o.Ref == t.Ref && o.Section == t.Section {
			return true
		}
	}
	return false
}

// refines says what became of a policy at one of its targets.
func refines(p *cluster.WaypointPolicy, t cluster.PolicyTarget, ix Index, gateways Gateways) (gatewayv1.PolicyConditionReason, string) {
	if len(p.Faults) > 0 {
		return gatewayv1.PolicyReasonInvalid, "nothing of it is in force: " + strings.Join(p.Faults, "; ")
	}
	if t.Ref.IsGateway() {
		switch there, is := gateways(t.Ref.Key); {
		case !there:
			return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("Gateway %s is not there", t.Ref.Key)
		case !is:
			return policyUnbound, fmt.Sprintf("Gateway %s is no waypoint that takes traffic", t.Ref.Key)
		}
		return rivals(p, t, ix, fmt.Sprintf("in force for each service whose traffic takes Gateway %s and that has none of its own", t.Ref.Key))
	}
	h := ix.Host(t.Ref)
	switch {
	case h == nil:
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s is not there", t.Ref)
	case h.Unfit != "":
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s %s", t.Ref, h.Unfit)
	}
	routes, named, spoken := ix.Routes(t.Ref), false, false
	for _, port := range h.Ports {
		if t.Section == "" || t.Section == port.Name {
			named = true
			spoken = spoken || attach(h, port, routes).http
		}
	}
	switch {
	case !named:
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s has no TCP port of the name %q", t.Ref, t.Section)
	case !spoken:
		return gatewayv1.PolicyReasonInvalid, fmt.Sprintf("no port of %s that it means is HTTP", t.Ref)
	}
	return rivals(p, t, ix, fmt.Sprintf("in force for requests to %s", t.Ref))
}

// rivals says whether another policy with the same target has the say; good is said if none has.
func rivals(p *cluster.WaypointPolicy, t cluster.PolicyTarget, ix Index, good string) (gatewayv1.PolicyConditionReason, string) {
	if winner := first(ix.WaypointPolicies(t.Ref), t.Ref, t.Section, limits); winner != nil && winner != p {
		return gatewayv1.PolicyReasonConflicted, fmt.Sprintf("WaypointPolicy %s has the same target, and is older, or the first by name", winner.Key)
	}
	return gatewayv1.PolicyReasonAccepted, good
}
