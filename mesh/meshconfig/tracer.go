package meshconfig

import (
	"cmp"
	"fmt"
	"math"
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// Tracer is an extension provider that takes spans by OTLP. It is comparable.
type Tracer struct {
	// Service is the host name of the collector, with the namespace and "/" before it if the user wrote one.
	Service string
	Port    uint16
	// Path is set for OTLP over HTTP; Header are further fields of its requests, each as "name: value" with a line break behind it.
	Path, Header string
	// Timeout bounds sending, in nanoseconds; 0: not said.
	Timeout int64
	// MaxTag bounds the URL in a span, in bytes; 0: not said.
	MaxTag uint32
	// Fault says what of the provider cannot be had; then none of it is.
	Fault string
}

// defaultPath is where collectors take OTLP over HTTP.
const defaultPath = "/v1/traces"

// TracerOf returns what an extension provider of spans says, of another kind than opentelemetry with its Fault; false for a provider of
// something else.
func TracerOf(p *meshv1alpha1.MeshConfig_ExtensionProvider) (Tracer, bool) {
	switch provider := p.GetProvider().(type) {
	case *meshv1alpha1.MeshConfig_ExtensionProvider_Opentelemetry:
		return tracerOf(provider.Opentelemetry), true
	case *meshv1alpha1.MeshConfig_ExtensionProvider_Zipkin, *meshv1alpha1.MeshConfig_ExtensionProvider_Datadog,
		*meshv1alpha1.MeshConfig_ExtensionProvider_Skywalking, *meshv1alpha1.MeshConfig_ExtensionProvider_Stackdriver,
		*meshv1alpha1.MeshConfig_ExtensionProvider_Lightstep, *meshv1alpha1.MeshConfig_ExtensionProvider_Opencensus:
		return Tracer{Fault: "only providers of kind opentelemetry take spans here; most collectors take OTLP"}, true
	}
	return Tracer{}, false
}

func tracerOf(in *meshv1alpha1.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider) Tracer {
	t := Tracer{Service: in.GetService(), Port: uint16(min(in.GetPort(), math.MaxUint16)), MaxTag: in.GetMaxTagLength()}
	var faults []string
	if t.Service == "" || in.GetPort() == 0 || in.GetPort() > math.MaxUint16 {
		faults = append(faults, "service and port are required")
	}
	if h := in.GetHttp(); h != nil {
		t.Path, t.Timeout = cmp.Or(h.GetPath(), defaultPath), int64(h.GetTimeout().AsDuration())
		if !strings.HasPrefix(t.Path, "/") {
			faults = append(faults, fmt.Sprintf("http.path %q does not begin with /", t.Path))
		}
		for i, f := range h.GetHeaders() {
			switch {
			case f.GetEnvName() != "":
				faults = append(faults, fmt.Sprintf("http.headers[%d].envName is not supported", i))
			case f.GetName() == "" || strings.ContainsAny(f.GetName()+f.GetValue(), "\r\n%"):
				faults = append(faults, fmt.Sprintf("http.headers[%d] is no field, or has a substitution", i))
			default:
				t.Header += f.GetName() + ": " + f.GetValue() + "\n"
			}
		}
	}
	if g := in.GetGrpc(); g != nil {
		t.Timeout = int64(g.GetTimeout().AsDuration())
		if len(g.GetInitialMetadata()) > 0 {
			faults = append(faults, "grpc.initialMetadata is not supported")
		}
	}
	if in.GetSampling() != nil {
		faults = append(faults, "dynatraceSampler is not supported")
	}
	if in.GetResourceDetectors() != nil {
		faults = append(faults, "resourceDetectors is not supported")
	}
	t.Fault = strings.Join(faults, "; ")
	return t
}
