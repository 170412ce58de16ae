package cluster

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	telemetryv1 "istio.io/api/telemetry/v1"
	telemetryv1alpha1 "istio.io/api/telemetry/v1alpha1"
	typev1beta1 "istio.io/api/type/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/logfilter"
)

// Telemetry says what is told of traffic.
type Telemetry struct {
	Key
	Created    time.Time
	Generation int64
	// Targets are what it is attached to; none: it is for its namespace, or for the mesh if that is the root namespace.
	Targets []authz.Target
	// Selective ones are for workloads that a selector picks, which waypoints are not.
	Selective bool
	// Tracing is nil if it says nothing of that.
	Tracing *Tracing
	// Logging is what it says of the access log, in its order; none: nothing.
	Logging []Logging
	// Faults are the fields that cannot be had; each is a sentence.
	Faults []string
	// Seen is the condition of ours that it has.
	Seen Condition
}

// Tracing is what Telemetry says of traces. What is not said is inherited.
type Tracing struct {
	// Provider is the name of an extension provider; "" if it was not said.
	Provider string
	// Sampling is the share of requests in percent; nil if it was not said.
	Sampling *float64
	// Disabled is whether spans are sent; nil if it was not said.
	Disabled *bool
	// Tags are further attributes of spans, by name.
	Tags []TraceTag
}

// TraceTag is an attribute of spans: Value, or the request's field Header if there is one.
type TraceTag struct{ Name, Header, Value string }

// Logging is what Telemetry says of the access log.
type Logging struct {
	// Providers are names of extension providers; none: what a wider scope names.
	Providers []string
	Disabled  bool
	// Filter is an expression of package logfilter; "" for all.
	Filter string
}

// ObjectKind is KindTelemetry.
func (*Telemetry) ObjectKind() Kind { return KindTelemetry }

// ObjectKey is namespace and name.
func (t *Telemetry) ObjectKey() Key { return t.Key }

// Equal reports whether both are the same in every field.
func (t *Telemetry) Equal(o *Telemetry) bool {
	a, b := *t, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return t.Created.Equal(o.Created) && reflect.DeepEqual(a, b)
}

// CompareTelemetries orders by age: the older first, then the first by name.
func CompareTelemetries(a, b *Telemetry) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	return a.Key.Compare(b.Key)
}

// readTelemetry are the fields that are read, by message.
var readTelemetry = readTable{
	"Telemetry":                 "selector targetRef targetRefs tracing access_logging",
	"WorkloadSelector":          "match_labels",
	"PolicyTargetReference":     "group kind name namespace",
	"Tracing":                   "match providers random_sampling_percentage disable_span_reporting custom_tags",
	"Tracing.TracingSelector":   "mode",
	"AccessLogging":             "match providers disabled filter",
	"AccessLogging.LogSelector": "mode",
	"AccessLogging.Filter":      "expression",
	"ProviderRef":               "name",
}

// TelemetryOf reduces a Telemetry.
func TelemetryOf(in *unstructured.Unstructured) *Telemetry {
	t := &Telemetry{
		Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(),
		Seen: seenBy(in, authz.WaypointConditionType),
	}
	var spec telemetryv1.Telemetry
	f := &fields{}
	if f.read(in, &spec, readTelemetry) {
		t.Selective = spec.GetSelector() != nil
		refs := spec.GetTargetRefs()
		if spec.GetTargetRef() != nil {
			refs = append([]*typev1beta1.PolicyTargetReference{spec.GetTargetRef()}, refs...)
		}
		for i, r := range refs {
			f.target(i, r, t)
		}
		for i, tracing := range spec.GetTracing() {
			f.tracing(i, tracing, t)
		}
		for i, logging := range spec.GetAccessLogging() {
			f.logging(i, logging, t)
		}
	}
	t.Faults = f.faults
	return t
}

// groups are those of targets.
var groups = map[authz.TargetKind]string{
	authz.TargetService: "", authz.TargetServiceEntry: "networking.istio.io",
	authz.TargetGateway: "gateway.networking.k8s.io", authz.TargetGatewayClass: "gateway.networking.k8s.io",
}

func (f *fields) target(i int, r *typev1beta1.PolicyTargetReference, t *Telemetry) {
	kind := authz.TargetKind(r.GetKind())
	group, known := groups[kind]
	if g := r.GetGroup(); !known || g != group && !(kind == authz.TargetService && g == "core") {
		f.add("spec.targetRefs", "[%d]: %s %s/%s is none of Service, ServiceEntry, Gateway, GatewayClass", i, r.GetName(), r.GetGroup(), r.GetKind())
		t.Targets = append(t.Targets, authz.Target{}) // it is not for the whole namespace
		return
	}
	if r.GetNamespace() != "" && r.GetNamespace() != t.Namespace {
		f.add("spec.targetRefs", "[%d]: only objects of namespace %s can be named", i, t.Namespace)
		t.Targets = append(t.Targets, authz.Target{})
		return
	}
	t.Targets = append(t.Targets, authz.Target{Kind: kind, Name: r.GetName()})
}

func (f *fields) tracing(i int, in *telemetryv1alpha1.Tracing, t *Telemetry) {
	if in.GetMatch().GetMode() == telemetryv1alpha1.WorkloadMode_CLIENT {
		return // a waypoint is a server
	}
	if t.Tracing == nil {
		t.Tracing = &Tracing{}
	}
	out := t.Tracing
	switch p := in.GetProviders(); len(p) {
	case 0:
	case 1:
		out.Provider = p[0].GetName()
	default:
		f.add("spec.tracing", "[%d].providers: only one is supported; the first is used", i)
		out.Provider = p[0].GetName()
	}
	if s := in.GetRandomSamplingPercentage(); s != nil {
		share := s.GetValue()
		if !(share >= 0 && share <= 100) {
			f.add("spec.tracing", "[%d].randomSamplingPercentage: %v is not from 0 to 100", i, share)
			share = 0
		}
		out.Sampling = &share
	}
	if d := in.GetDisableSpanReporting(); d != nil {
		disabled := d.GetValue()
		out.Disabled = &disabled
	}
	if len(in.GetCustomTags()) > 0 {
		out.Tags = nil
	}
	for _, name := range slices.Sorted(maps.Keys(in.GetCustomTags())) {
		tag := in.GetCustomTags()[name]
		switch v := tag.GetType().(type) {
		case *telemetryv1alpha1.Tracing_CustomTag_Literal:
			out.Tags = append(out.Tags, TraceTag{Name: name, Value: v.Literal.GetValue()})
		case *telemetryv1alpha1.Tracing_CustomTag_Header:
			out.Tags = append(out.Tags, TraceTag{Name: name, Header: strings.ToLower(v.Header.GetName()), Value: v.Header.GetDefaultValue()})
		default:
			f.add("spec.tracing", "[%d].customTags[%s]: only literal and header are supported", i, name)
		}
	}
}

func (f *fields) logging(i int, in *telemetryv1alpha1.AccessLogging, t *Telemetry) {
	if in.GetMatch().GetMode() == telemetryv1alpha1.WorkloadMode_CLIENT {
		return // a waypoint is a server
	}
	out := Logging{Disabled: in.GetDisabled().GetValue(), Filter: in.GetFilter().GetExpression()}
	for _, p := range in.GetProviders() {
		out.Providers = append(out.Providers, p.GetName())
	}
	if out.Filter != "" {
		if _, err := logfilter.Compile(out.Filter); err != nil {
			f.add("spec.accessLogging", "[%d].filter.expression: %v", i, err)
			return
		}
	}
	t.Logging = append(t.Logging, out)
}
