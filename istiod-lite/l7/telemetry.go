package l7

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/meshconfig"
)

const (
	tracerOpenTelemetry = "envoy.tracers.opentelemetry"
	// defaultSampling is the share of requests that are recorded, in percent, unless something says otherwise. Istio's.
	defaultSampling = 1
	// spanTimeout bounds sending spans unless the provider says otherwise. Envoy wants one over HTTP.
	spanTimeout = 10 * time.Second
)

// Telemetry is what is told of the requests to a service at a waypoint.
type Telemetry struct {
	// Gateway is the waypoint.
	Gateway cluster.Key
	// Tracing is nil if requests are not traced.
	Tracing *Tracing
	// Logging is nil if nothing is said of the access log.
	Logging *Logging
}

// Tracing is how requests are traced.
type Tracing struct {
	Provider string
	Tracer   meshconfig.Tracer
	Sampling float64 // in percent
	Tags     []cluster.TraceTag
}

// scope is how narrow the scope of a Telemetry is for a service at a waypoint; narrower ones have more to say.
type scope int

const (
	scopeNone scope = iota
	scopeMesh
	scopeNamespace
	scopeClass
	scopeGateway
	scopeService
)

// scopeOf tells why a Telemetry is for a service at a waypoint.
func scopeOf(m translate.Mesh, t *cluster.Telemetry, service cluster.ObjectRef, gateway cluster.Key) scope {
	if t.Selective {
		return scopeNone
	}
	if len(t.Targets) == 0 {
		switch t.Namespace {
		case gateway.Namespace:
			return scopeNamespace
		case m.RootNamespace:
			return scopeMesh
		}
		return scopeNone
	}
	widest := scopeNone
	for _, target := range t.Targets {
		key := cluster.Key{Namespace: t.Namespace, Name: target.Name}
		switch {
		case target.Kind == authz.TargetGatewayClass && t.Namespace == m.RootNamespace && target.Name == authz.WaypointClass:
			widest = max(widest, scopeClass)
		case target.Kind == authz.TargetGateway && key == gateway:
			widest = max(widest, scopeGateway)
		case target.Kind == authz.TargetService && cluster.ServiceRef(key) == service, target.Kind == authz.TargetServiceEntry && cluster.EntryRef(key) == service:
			widest = max(widest, scopeService)
		}
	}
	return widest
}

// TelemetryFor works out what Telemetry objects, in any order, say of a service at a waypoint: each says what it does over those of
// wider scope. Of the same scope the oldest that says something of traces is in force for those, and so for the access log.
func TelemetryFor(m translate.Mesh, all []*cluster.Telemetry, service cluster.ObjectRef, gateway cluster.Key) Telemetry {
	var tracing, logging [scopeService + 1]*cluster.Telemetry
	for _, t := range all {
		s := scopeOf(m, t, service, gateway)
		if s == scopeNone {
			continue
		}
		if t.Tracing != nil && (tracing[s] == nil || cluster.CompareTelemetries(t, tracing[s]) < 0) {
			tracing[s] = t
		}
		if len(t.Logging) > 0 && (logging[s] == nil || cluster.CompareTelemetries(t, logging[s]) < 0) {
			logging[s] = t
		}
	}
	return Telemetry{Gateway: gateway, Tracing: tracingFor(m, tracing[scopeMesh:]), Logging: loggingFor(m, logging[scopeMesh:])}
}

// tracingFor works out what Telemetries, one of each scope at most and the widest first, say of traces: each says what it does over
// those before. Nil: requests are not traced.
func tracingFor(m translate.Mesh, by []*cluster.Telemetry) *Tracing {
	tracing := Tracing{Sampling: defaultSampling}
	if len(m.DefaultTracers) > 0 {
		tracing.Provider = m.DefaultTracers[0]
	}
	disabled := false
	for _, t := range by {
		if t == nil {
			continue
		}
		tracing.Provider = cmp.Or(t.Tracing.Provider, tracing.Provider)
		if t.Tracing.Sampling != nil {
			tracing.Sampling = *t.Tracing.Sampling
		}
		if t.Tracing.Disabled != nil {
			disabled = *t.Tracing.Disabled
		}
		if t.Tracing.Tags != nil {
			tracing.Tags = t.Tracing.Tags
		}
	}
	var known bool
	if tracing.Tracer, known = tracerNamed(m, tracing.Provider); known && !disabled && tracing.Tracer.Fault == "" {
		return &tracing
	}
	return nil
}

// tracerNamed is an extension provider of spans; false if the mesh settings have none of that name.
func tracerNamed(m translate.Mesh, name string) (meshconfig.Tracer, bool) {
	for _, p := range m.Providers {
		if t, is := meshconfig.TracerOf(p); is && p.GetName() == name {
			return t, true
		}
	}
	return meshconfig.Tracer{}, false
}

// tracing is what an HTTP chain says of traces; nil for none.
func (t Telemetry) tracing(m translate.Mesh, ix Index) *hcmv3.HttpConnectionManager_Tracing {
	if t.Tracing == nil {
		return nil
	}
	tracer := t.Tracing.Tracer
	h, _, err := provided(m, tracer.Service, uint32(tracer.Port), ix)
	if err != nil {
		return nil // TelemetryStatus says so
	}
	name := ClusterName(h, tracer.Port)
	timeout := durationpb.New(cmp.Or(time.Duration(tracer.Timeout), spanTimeout))
	settings := &tracev3.OpenTelemetryConfig{ServiceName: strings.Trim(t.Gateway.Name+"."+t.Gateway.Namespace, ".")}
	if tracer.Path == "" {
		settings.GrpcService = &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: name, Authority: h.Hostname}},
			Timeout:         timeout,
		}
	} else {
		settings.HttpService = &corev3.HttpService{HttpUri: &corev3.HttpUri{
			Uri:              fmt.Sprintf("http://%s:%d%s", h.Hostname, tracer.Port, tracer.Path),
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: name}, Timeout: timeout,
		}}
		for line := range strings.Lines(tracer.Header) {
			field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			settings.HttpService.RequestHeadersToAdd = append(settings.HttpService.RequestHeadersToAdd,
				&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: field, Value: value}})
		}
	}
	out := &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling: &typev3.Percent{Value: 100}, RandomSampling: &typev3.Percent{Value: t.Tracing.Sampling}, OverallSampling: &typev3.Percent{Value: 100},
		Provider: &tracev3.Tracing_Http{Name: tracerOpenTelemetry, ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: config(settings)}},
	}
	if tracer.MaxTag > 0 {
		out.MaxPathTagLength = wrapperspb.UInt32(tracer.MaxTag)
	}
	for _, tag := range t.Tracing.Tags {
		c := &tracingv3.CustomTag{Tag: tag.Name, Type: &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: tag.Value}}}
		if tag.Header != "" {
			c.Type = &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: tag.Header, DefaultValue: tag.Value}}
		}
		out.CustomTags = append(out.CustomTags, c)
	}
	return out
}

// Collector is the service that the waypoint must know for what is told; false if there is none.
func (t Telemetry) Collector(m translate.Mesh, ix Index) (cluster.ObjectRef, bool) {
	if t.Tracing == nil {
		return cluster.ObjectRef{}, false
	}
	h, _, err := provided(m, t.Tracing.Tracer.Service, uint32(t.Tracing.Tracer.Port), ix)
	if err != nil {
		return cluster.ObjectRef{}, false
	}
	return h.Ref, true
}

// TelemetryStatus says what became of a Telemetry at waypoints. It depends on the other ones of its namespace.
func TelemetryStatus(m translate.Mesh, t *cluster.Telemetry, all []*cluster.Telemetry, ix Index) translate.Status {
	out := translate.Status{Kind: t.ObjectKind(), Key: t.Key, Type: authz.WaypointConditionType, Seen: t.Seen}
	c := conditions{generation: t.Generation}
	inForce := t.Tracing != nil || slices.ContainsFunc(t.Logging, func(l cluster.Logging) bool { return len(l.Providers) == 0 || usableLogger(m, l.Providers) })
	faults := slices.Clip(t.Faults)
	if !t.Selective {
		faults = append(faults, targetFaults(m, t)...)
		faults = append(faults, tracingFaults(m, t, ix)...)
		faults = append(faults, loggingFaults(m, t)...)
	}
	older := slices.IndexFunc(all, func(o *cluster.Telemetry) bool {
		return o.Key != t.Key && o.Namespace == t.Namespace && len(o.Targets) == 0 && !o.Selective && cluster.CompareTelemetries(o, t) < 0 &&
			(o.Tracing != nil && t.Tracing != nil || len(o.Logging) > 0 && len(t.Logging) > 0)
	})
	message := strings.Join(faults, "; ")
	switch {
	case t.Selective:
		c.add(authz.WaypointConditionType, false, reasonUnsupported, "spec.selector picks workloads; to be in force at waypoints name a Gateway or a Service in targetRefs, or nothing")
	case len(t.Targets) == 0 && older >= 0:
		c.add(authz.WaypointConditionType, false, reasonConflicted, fmt.Sprintf("Telemetry %s is for the same namespace and older, or the first by name", all[older].Key))
	case message != "" && !inForce:
		c.add(authz.WaypointConditionType, false, reasonUnsupported, "nothing of it is in force: "+message)
	case message != "":
		c.add(authz.WaypointConditionType, false, reasonUnsupported, "all but this is in force: "+message)
	default:
		c.add(authz.WaypointConditionType, true, policyAccepted, "in force at waypoints")
	}
	out.Want = c.list[0]
	return out
}

// targetFaults are those of targetRefs.
func targetFaults(m translate.Mesh, t *cluster.Telemetry) []string {
	var faults []string
	for _, target := range t.Targets {
		if target.Kind == authz.TargetGatewayClass && t.Namespace != m.RootNamespace {
			faults = append(faults, fmt.Sprintf("a Telemetry for GatewayClass %s has to be in namespace %s", target.Name, m.RootNamespace))
		}
	}
	return faults
}

// tracingFaults are what stands in the way of traces, beside what the object itself has wrong.
func tracingFaults(m translate.Mesh, t *cluster.Telemetry, ix Index) []string {
	if t.Tracing == nil || t.Tracing.Provider == "" { // which may come from a wider scope
		return nil
	}
	var faults []string
	provider := t.Tracing.Provider
	tracer, known := tracerNamed(m, provider)
	switch {
	case !known:
		faults = append(faults, fmt.Sprintf("spec.tracing: the mesh settings have no extension provider %q that takes spans", provider))
	case tracer.Fault != "":
		faults = append(faults, fmt.Sprintf("spec.tracing: extension provider %q: %s", provider, tracer.Fault))
	default:
		if _, _, err := provided(m, tracer.Service, uint32(tracer.Port), ix); err != nil {
			faults = append(faults, fmt.Sprintf("spec.tracing: extension provider %q: %v", provider, err))
		}
	}
	return faults
}
