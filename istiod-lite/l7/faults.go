package l7

import (
	"fmt"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// FaultsFor reports whether a VirtualService is for a host: it is in the namespace of the host, and names it.
func FaultsFor(v *cluster.VirtualService, h *Host) bool {
	return v.Namespace == h.Ref.Key.Namespace && slices.Contains(v.Hosts, cluster.ShortHost(h.Hostname, v.Namespace))
}

// FaultOf is the fault that is injected into requests to a host, nil if there is none: of the VirtualServices for it, which may be in any
// order, the oldest that has one.
func FaultOf(all []*cluster.VirtualService, h *Host) *cluster.Injection {
	var first *cluster.VirtualService
	for _, v := range all {
		if v.Fault != nil && FaultsFor(v, h) && (first == nil || cluster.CompareVirtualServices(v, first) < 0) {
			first = v
		}
	}
	if first == nil {
		return nil
	}
	return first.Fault
}

// VirtualServiceStatus says what waypoints make of a VirtualService. Others are all of its namespace, in any order.
func VirtualServiceStatus(v *cluster.VirtualService, others []*cluster.VirtualService) translate.Status {
	say := func(status, reason, format string, args ...any) translate.Status {
		message := fmt.Sprintf(format, args...)
		if len(message) > maxMessage {
			message = strings.ToValidUTF8(message[:maxMessage], "") + "..."
		}
		return translate.Status{Kind: v.ObjectKind(), Key: v.Key, Type: authz.WaypointConditionType, Seen: v.Seen, Want: cluster.Condition{
			Type: authz.WaypointConditionType, Status: status, Reason: reason, Message: message, Generation: v.Generation}}
	}
	var older *cluster.VirtualService
	for _, o := range others {
		if v.Fault != nil && o.Fault != nil && o.Key != v.Key && cluster.CompareVirtualServices(o, v) < 0 &&
			slices.ContainsFunc(o.Hosts, func(name string) bool { return slices.Contains(v.Hosts, name) }) &&
			(older == nil || cluster.CompareVirtualServices(o, older) < 0) {
			older = o
		}
	}
	switch faults := strings.Join(v.Faults, "; "); {
	case len(v.Hosts) == 0:
		return say("False", reasonInvalid, "it is for no service: %s", faults)
	case older != nil:
		return say("False", string(reasonConflicted), "VirtualService %s injects a fault into the same host and is older, or the first by name", older.Key)
	case v.Fault == nil && faults != "":
		return say("False", reasonUnsupported, "nothing of it is in force: %s", faults)
	case v.Fault == nil:
		return say("False", reasonUnsupported, "waypoints take the fault of a VirtualService, and this one has none")
	case faults != "":
		return say("False", reasonUnsupported, "its fault is injected; not in force is: %s", faults)
	}
	return say("True", reasonAccepted, "its fault is injected into requests to %s that a waypoint sends on", strings.Join(v.Hosts, ", "))
}

// injection is a fault in Envoy's words.
func injection(in *cluster.Injection) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	share := func(perMillion uint32) *typev3.FractionalPercent {
		return &typev3.FractionalPercent{Numerator: perMillion, Denominator: typev3.FractionalPercent_MILLION}
	}
	if in.Delay > 0 {
		out.Delay = &faultcommonv3.FaultDelay{
			FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(in.Delay)}, Percentage: share(in.DelayPerMillion)}
	}
	switch {
	case in.GRPC != nil:
		out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_GrpcStatus{GrpcStatus: *in.GRPC}, Percentage: share(in.AbortPerMillion)}
	case in.Status != 0:
		out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: in.Status}, Percentage: share(in.AbortPerMillion)}
	}
	for _, m := range in.Match {
		h := &routev3.HeaderMatcher{Name: m.Name, InvertMatch: m.Not, TreatMissingHeaderAsEmpty: m.Not && m.How != cluster.MatchPresent}
		switch m.How {
		case cluster.MatchPresent:
			h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		case cluster.MatchPrefix:
			h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: m.Value}}}
		default:
			h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatch(m.Value, m.How == cluster.MatchRegex)}
		}
		out.Headers = append(out.Headers, h)
	}
	return out
}

// inject has what routes send on meet a fault, nil for none. What they answer by themselves is nobody's to test.
func inject(routes []*routev3.Route, fault *cluster.Injection) {
	if fault == nil {
		return
	}
	for _, r := range routes {
		if r.GetRoute() != nil {
			setFilter(r, filterFault, injection(fault))
		}
	}
}
