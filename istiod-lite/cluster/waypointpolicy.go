package cluster

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// WaypointPolicy says what waypoints do with requests.
type WaypointPolicy struct {
	Key
	Created    time.Time
	Generation int64
	// Targets are services, ServiceEntries and Gateways.
	Targets []PolicyTarget
	// Limit is nil if the policy has none.
	Limit *RateLimit
	// Faults are why the policy as a whole is not in force.
	Faults []string
	// Seen are the entries of status.ancestors that carry the controller name of the mesh.
	Seen []ParentStatus
}

// RateLimit bounds requests: Requests come to a bucket in each Interval, which holds Burst.
type RateLimit struct {
	Requests, Burst uint32
	Interval        time.Duration
	// PerConnection: each connection of a client has a bucket, not each waypoint's pod.
	PerConnection bool
}

// ObjectKind is KindWaypointPolicy.
func (*WaypointPolicy) ObjectKind() Kind { return KindWaypointPolicy }

// ObjectKey is namespace and name.
func (p *WaypointPolicy) ObjectKey() Key { return p.Key }

// Equal reports whether both are the same in every field.
func (p *WaypointPolicy) Equal(o *WaypointPolicy) bool {
	a, b := *p, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return p.Created.Equal(o.Created) && reflect.DeepEqual(a, b)
}

// Compare is the order among policies for the same target: the oldest counts, then the first by name.
func (p *WaypointPolicy) Compare(o *WaypointPolicy) int {
	if c := p.Created.Compare(o.Created); c != 0 {
		return c
	}
	return p.Key.Compare(o.Key)
}

// Bounds of a rate limit, of the definition and of Envoy's, which takes no shorter interval.
const (
	defaultLimitInterval = time.Second
	minLimitInterval     = 50 * time.Millisecond
	maxLimitInterval     = 24 * time.Hour
	maxLimit             = 1_000_000
)

// WaypointPolicyOf reduces a WaypointPolicy. The definition may be another release's, so its rules are not relied on.
func WaypointPolicyOf(in *unstructured.Unstructured) *WaypointPolicy {
	p := &WaypointPolicy{
		Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(), Seen: ancestorsOf(in),
	}
	body, _ := in.Object["spec"].(map[string]any)
	var spec v1alpha1.WaypointPolicySpec
	err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(body, &spec, true)
	if strict, unknown := runtime.AsStrictDecodingError(err); unknown {
		for _, e := range strict.Errors() {
			p.fault("spec.%s is not known to this release", strings.Trim(strings.TrimPrefix(e.Error(), "unknown field "), `"`))
		}
	} else if err != nil {
		p.fault("spec: %v", explain(body, &spec, err))
		var loose v1alpha1.WaypointPolicySpec // so that they can be told
		if runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"targetRefs": body["targetRefs"]}, &loose) == nil {
			p.readTargets(loose.TargetRefs)
		}
		return p
	}
	p.readTargets(spec.TargetRefs)
	if spec.RateLimit != nil {
		p.Limit = p.readLimit(spec.RateLimit)
	} else {
		p.fault("spec: rateLimit is required")
	}
	slices.Sort(p.Faults)
	return p
}

func (p *WaypointPolicy) fault(format string, args ...any) {
	p.Faults = append(p.Faults, fmt.Sprintf(format, args...))
}

func (p *WaypointPolicy) readTargets(in []gatewayv1.LocalPolicyTargetReferenceWithSectionName) {
	for i, t := range policyTargets(p.Namespace, in) {
		switch {
		case !t.Mesh() && !t.Ref.IsGateway():
			p.fault("spec.targetRefs[%d]: a %s cannot be one; there are Service, %s/ServiceEntry and %s/Gateway", i, t.Ref.Kind, GroupIstioNetworking, gatewayv1.GroupName)
		case t.Ref.IsGateway() && t.Section != "":
			p.fault("spec.targetRefs[%d].sectionName: of Services and ServiceEntries only", i)
		}
		p.Targets = append(p.Targets, t)
	}
}

func (p *WaypointPolicy) readLimit(in *v1alpha1.RateLimit) *RateLimit {
	out := &RateLimit{Requests: p.count("spec.rateLimit.requests", in.Requests), Interval: defaultLimitInterval}
	out.Burst = out.Requests
	if in.Burst != nil {
		out.Burst = p.count("spec.rateLimit.burst", *in.Burst)
	}
	if in.Interval != nil {
		d, err := time.ParseDuration(string(*in.Interval))
		if err != nil || d < minLimitInterval || d > maxLimitInterval {
			p.fault("spec.rateLimit.interval: %v to %v, not %q", minLimitInterval, maxLimitInterval, *in.Interval)
		}
		out.Interval = d
	}
	if in.Scope != nil {
		switch *in.Scope {
		case v1alpha1.ScopeReplica:
		case v1alpha1.ScopeConnection:
			out.PerConnection = true
		default:
			p.fault("spec.rateLimit.scope: %q is not supported; there are %s and %s", *in.Scope, v1alpha1.ScopeReplica, v1alpha1.ScopeConnection)
		}
	}
	return out
}

func (p *WaypointPolicy) count(at string, n int32) uint32 {
	if n < 1 || n > maxLimit {
		p.fault("%s: 1 to %d, not %d", at, maxLimit, n)
		return 1
	}
	return uint32(n)
}
