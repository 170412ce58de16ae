package l7

import (
	"fmt"
	"math"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Bounding is where hosts find how much of what is sent to them may be retries. Its methods have no side effects.
type Bounding interface {
	// BackendTraffic returns the policies of which the object is a target, in any order, each once.
	BackendTraffic(target cluster.ObjectRef) []*cluster.BackendTrafficPolicy
}

// Bounded returns the host with what policies say of retries.
func (h *Host) Bounded(in Bounding) *Host {
	p := bounds(in.BackendTraffic(h.Ref))
	if p == nil {
		return h
	}
	out := *h
	out.Retries = p.InForce()
	return &out
}

// bounds is which of the policies of an object is in force, nil if none is: the oldest, then the first by name, of those that ask for
// something that can be done.
func bounds(policies []*cluster.BackendTrafficPolicy) *cluster.BackendTrafficPolicy {
	var best *cluster.BackendTrafficPolicy
	for _, p := range policies {
		if p.InForce() != nil && (best == nil || older(p.Created, p.Key, best.Created, best.Key)) {
			best = p
		}
	}
	return best
}

// applyRetries bounds the retries of a cluster, in the place of what a DestinationRule says of them; c may be nil. Envoy knows no rate of
// retries that are always allowed, and takes it for the number of those under way; waypoints are told of its time beside.
func applyRetries(out *clusterv3.Cluster, c *cluster.RetryConstraint) {
	if c == nil {
		return
	}
	if out.CircuitBreakers == nil {
		unlimited := wrapperspb.UInt32(math.MaxUint32)
		out.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: unlimited, MaxPendingRequests: unlimited, MaxRequests: unlimited, MaxRetries: unlimited, TrackRemaining: true,
		}}}
	}
	out.CircuitBreakers.Thresholds[0].RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
		BudgetPercent: &typev3.Percent{Value: float64(c.Percent)}, BudgetInterval: durationpb.New(c.Interval), MinRetryConcurrency: wrapperspb.UInt32(c.Count),
	}
	out.Metadata.FilterMetadata[metadataRetries] = &structpb.Struct{Fields: map[string]*structpb.Value{
		"min_interval": structpb.NewStringValue(c.CountInterval.String()),
	}}
}

// BackendTrafficStatus says what became of a policy, for each of its targets that is a service. It depends on these, and on the other
// policies that they are targets of.
func BackendTrafficStatus(p *cluster.BackendTrafficPolicy, ix Index) []cluster.ParentStatus {
	var out []cluster.ParentStatus
	for i, t := range p.Targets {
		if !t.Mesh() || slices.ContainsFunc(p.Targets[:i], func(o cluster.PolicyTarget) bool { return o.Ref == t.Ref }) {
			continue
		}
		c := conditions{generation: p.Generation}
		reason, message := backendTrafficAccepted(p, t, ix)
		accepted := reason == gatewayv1.PolicyReasonAccepted
		c.add(gatewayv1.RouteConditionType(gatewayv1.PolicyConditionAccepted), accepted, gatewayv1.RouteConditionReason(reason), message)
		if accepted && len(p.Unsupported) > 0 {
			c.add(gatewayv1.RouteConditionPartiallyInvalid, true, gatewayv1.RouteReasonUnsupportedValue, "not in force: "+strings.Join(p.Unsupported, "; "))
		}
		out = append(out, cluster.ParentStatus{Ref: t.Written, Conditions: c.list})
	}
	return out
}

func backendTrafficAccepted(p *cluster.BackendTrafficPolicy, t cluster.PolicyTarget, ix Index) (gatewayv1.PolicyConditionReason, string) {
	h := ix.Host(t.Ref)
	switch {
	case h == nil:
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s is not there", t.Ref)
	case h.Unfit != "":
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s %s", t.Ref, h.Unfit)
	case len(p.Faults) > 0:
		return gatewayv1.PolicyReasonInvalid, "it is not in force: " + strings.Join(p.Faults, "; ")
	case p.Retries == nil && len(p.Unsupported) > 0:
		return gatewayv1.PolicyReasonInvalid, "nothing of it is in force: " + strings.Join(p.Unsupported, "; ")
	case p.Retries == nil:
		return gatewayv1.PolicyReasonInvalid, "it asks for nothing: there is no spec.retryConstraint"
	}
	if first := bounds(ix.BackendTraffic(t.Ref)); first.Key != p.Key {
		return gatewayv1.PolicyReasonConflicted, fmt.Sprintf("XBackendTrafficPolicy %s is in force for %s: it is older, or the first by name", first.Key, t.Ref)
	}
	return gatewayv1.PolicyReasonAccepted, fmt.Sprintf("of what a waypoint sends to a port of %s within %v, at most %d%% are retries; %d within %v are allowed in any case",
		t.Ref, p.Retries.Interval, p.Retries.Percent, p.Retries.Count, p.Retries.CountInterval)
}
