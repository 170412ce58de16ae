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
	gatewayx "sigs.k8s.io/gateway-api/apisx/v1alpha1"
)

// BackendTrafficPolicy says how much of what is sent to backends may be retries (XBackendTrafficPolicy).
type BackendTrafficPolicy struct {
	Key
	Created    time.Time
	Generation int64
	// Targets are what the policy is for, those that the mesh does not answer for included.
	Targets []PolicyTarget
	// Retries is nil if the policy says nothing of them.
	Retries *RetryConstraint
	// Faults are why the policy cannot be executed, Unsupported what of it is not.
	Faults, Unsupported []string
	// Seen are the entries of status.ancestors that carry the controller name of the mesh.
	Seen []ParentStatus
}

// RetryConstraint bounds retries by a share of what is sent within a time, those that are sent in any case aside.
type RetryConstraint struct {
	// Percent is of what is sent within Interval, retries included: 0 to 100.
	Percent  int
	Interval time.Duration
	// Count retries within CountInterval are always allowed.
	Count         uint32
	CountInterval time.Duration
}

// What a retry constraint is where nothing is said. The Gateway API's.
const (
	retryPercent       = 20
	retryInterval      = 10 * time.Second
	retryCount         = 10
	retryCountInterval = time.Second
)

// Bounds of a retry constraint. The Gateway API's; the least of the interval of a count is ours.
const (
	maxRetryCount         = 1_000_000
	minRetryInterval      = time.Second
	minRetryCountInterval = 10 * time.Millisecond
	maxRetryInterval      = time.Hour
)

// ObjectKind is KindBackendTraffic.
func (*BackendTrafficPolicy) ObjectKind() Kind { return KindBackendTraffic }

// ObjectKey is namespace and name.
func (p *BackendTrafficPolicy) ObjectKey() Key { return p.Key }

// Equal reports whether both are the same in every field.
func (p *BackendTrafficPolicy) Equal(o *BackendTrafficPolicy) bool {
	a, b := *p, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return p.Created.Equal(o.Created) && reflect.DeepEqual(a, b)
}

// InForce is what the policy asks for, nil if that is nothing, or cannot be executed.
func (p *BackendTrafficPolicy) InForce() *RetryConstraint {
	if len(p.Faults) > 0 {
		return nil
	}
	return p.Retries
}

// BackendTrafficPolicyOf reduces an XBackendTrafficPolicy.
func BackendTrafficPolicyOf(in *unstructured.Unstructured) *BackendTrafficPolicy {
	p := &BackendTrafficPolicy{
		Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(), Seen: ancestorsOf(in),
	}
	body, _ := in.Object["spec"].(map[string]any)
	var spec gatewayx.BackendTrafficPolicySpec
	err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(body, &spec, true)
	if strict, unknown := runtime.AsStrictDecodingError(err); unknown {
		for _, e := range strict.Errors() {
			p.Unsupported = append(p.Unsupported, fmt.Sprintf("spec.%s is not known to this release", strings.Trim(strings.TrimPrefix(e.Error(), "unknown field "), `"`)))
		}
	} else if err != nil {
		p.fault("spec: %v", explain(body, &spec, err))
		var targets gatewayx.BackendTrafficPolicySpec // so that they can be told
		if runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"targetRefs": body["targetRefs"]}, &targets) == nil {
			p.readTargets(targets.TargetRefs)
		}
		return p
	}
	p.readTargets(spec.TargetRefs)
	if spec.SessionPersistence != nil {
		p.Unsupported = append(p.Unsupported, "spec.sessionPersistence is not supported: that of a route's rule is")
	}
	if c := spec.RetryConstraint; c != nil {
		p.readRetries(c)
	}
	slices.Sort(p.Unsupported)
	return p
}

func (p *BackendTrafficPolicy) fault(format string, args ...any) {
	p.Faults = append(p.Faults, fmt.Sprintf(format, args...))
}

func (p *BackendTrafficPolicy) readTargets(in []gatewayx.LocalPolicyTargetReference) {
	for _, t := range in {
		group, kind := t.Group, t.Kind
		p.Targets = append(p.Targets, PolicyTarget{
			Ref:     ObjectRef{groupOf(group), Kind(kind), Key{p.Namespace, string(t.Name)}},
			Written: gatewayv1.ParentReference{Group: &group, Kind: &kind, Name: t.Name},
		})
	}
}

func (p *BackendTrafficPolicy) readRetries(in *gatewayx.RetryConstraint) {
	const at = "spec.retryConstraint"
	out := &RetryConstraint{Percent: retryPercent, Interval: retryInterval, Count: retryCount, CountInterval: retryCountInterval}
	if b := in.Budget; b != nil {
		if b.Percent != nil {
			if out.Percent = *b.Percent; out.Percent < 0 || out.Percent > 100 {
				p.fault("%s.budget.percent: 0 to 100, not %d", at, out.Percent)
			}
		}
		p.interval(at+".budget.interval", b.Interval, minRetryInterval, &out.Interval)
	}
	if r := in.MinRetryRate; r != nil {
		if r.Count != nil {
			if *r.Count < 1 || *r.Count > maxRetryCount {
				p.fault("%s.minRetryRate.count: 1 to %d, not %d", at, maxRetryCount, *r.Count)
			} else {
				out.Count = uint32(*r.Count)
			}
		}
		p.interval(at+".minRetryRate.interval", r.Interval, minRetryCountInterval, &out.CountInterval)
	}
	p.Retries = out
}

func (p *BackendTrafficPolicy) interval(at string, in *gatewayv1.Duration, least time.Duration, out *time.Duration) {
	if in == nil {
		return
	}
	d, err := time.ParseDuration(string(*in))
	if err != nil || d < least || d > maxRetryInterval {
		p.fault("%s: %v to %v, not %q", at, least, maxRetryInterval, *in)
		return
	}
	*out = d
}
