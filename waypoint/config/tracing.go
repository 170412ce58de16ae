package config

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/ambit-mesh/ambit/waypoint/strict"
	"github.com/ambit-mesh/ambit/waypoint/trace"
)

const typeOpenTelemetry = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"

// Tracing says what requests of a chain leave behind in traces.
type Tracing struct {
	// Collector is where spans go.
	Collector trace.Collector
	// Sampling is the share, 0 to 1, of requests that have no trace yet and are recorded. Others are as their callers say.
	Sampling float64
	// MaxPath bounds the URL in a span, in bytes. 256 unless set, as Envoy's.
	MaxPath int
	// Tags are further attributes of spans.
	Tags []Tag
}

// Tag is an attribute of spans: Value, or what the request's field Header has if there is one.
type Tag struct{ Name, Header, Value string }

// Defaults of tracing, Envoy's.
const (
	defaultMaxPathTag  = 256
	maxMaxPathTag      = 1 << 16
	allPercent         = 100
	defaultSpanService = "unknown_service:envoy"
)

// tracing reads how requests are traced; nil: not at all.
func (d decoder) tracing(m *hcmv3.HttpConnectionManager_Tracing, at *strict.Path) *Tracing {
	if m == nil {
		return nil
	}
	out := &Tracing{
		Sampling: d.percent(m.GetRandomSampling(), at.Field("random_sampling")) * d.percent(m.GetOverallSampling(), at.Field("overall_sampling")),
		MaxPath:  int(d.bounded(m.GetMaxPathTagLength(), at.Field("max_path_tag_length"), defaultMaxPathTag, maxMaxPathTag)),
	}
	if m.GetSpawnUpstreamSpan().GetValue() {
		d.add(at.Field("spawn_upstream_span"), "not supported: false")
	}
	for i, t := range m.GetCustomTags() {
		at := at.Field("custom_tags").Index(i)
		tag := Tag{Name: t.GetTag()}
		switch v := t.GetType().(type) {
		case *tracingv3.CustomTag_Literal_:
			tag.Value = v.Literal.GetValue()
		case *tracingv3.CustomTag_RequestHeader:
			tag.Header, tag.Value = strings.ToLower(v.RequestHeader.GetName()), v.RequestHeader.GetDefaultValue()
		default:
			d.add(at, "only literal and request_header")
		}
		if tag.Name == "" {
			d.add(at.Field("tag"), "required")
		}
		out.Tags = append(out.Tags, tag)
	}
	at = at.Field("provider").Field("typed_config")
	var p tracev3.OpenTelemetryConfig
	switch a := m.GetProvider().GetTypedConfig(); {
	case a.GetTypeUrl() != typeOpenTelemetry:
		d.add(at, "tracer %q (%s) is not supported: only OpenTelemetry", m.GetProvider().GetName(), a.GetTypeUrl())
	case d.unpack(a, &p, at):
		out.Collector = d.collector(&p, at)
	}
	return out
}

// percent is a share, all if there is none.
func (d decoder) percent(p *typev3.Percent, at *strict.Path) float64 {
	if p == nil {
		return 1
	}
	if v := p.GetValue(); v >= 0 && v <= allPercent {
		return v / allPercent
	}
	d.add(at, "0 to 100, not %v", p.GetValue())
	return 0
}

// collector reads where spans go.
func (d decoder) collector(p *tracev3.OpenTelemetryConfig, at *strict.Path) trace.Collector {
	out := trace.Collector{Service: p.GetServiceName()}
	if out.Service == "" {
		out.Service = defaultSpanService
	}
	var timeout time.Duration
	switch grpc, http := p.GetGrpcService(), p.GetHttpService(); {
	case (grpc == nil) == (http == nil):
		d.add(at, "either grpc_service or http_service is required")
	case grpc != nil:
		at := at.Field("grpc_service")
		out.Cluster, out.Authority = grpc.GetEnvoyGrpc().GetClusterName(), grpc.GetEnvoyGrpc().GetAuthority()
		if out.Cluster == "" {
			d.add(at.Field("envoy_grpc").Field("cluster_name"), "required")
		}
		timeout = d.duration(grpc.GetTimeout(), at.Field("timeout"), 0)
	default:
		at := at.Field("http_service").Field("http_uri")
		uri := http.GetHttpUri()
		out.Cluster, out.URL = uri.GetCluster(), uri.GetUri()
		if out.Cluster == "" {
			d.add(at.Field("cluster"), "required")
		}
		if err := trace.CheckURL(out.URL); err != nil {
			d.add(at.Field("uri"), "%v", err)
		}
		timeout = d.duration(uri.GetTimeout(), at.Field("timeout"), 0)
		out.Header = d.spanHeader(http.GetRequestHeadersToAdd(), at)
	}
	out.Timeout = timeout
	return out
}

// spanHeader reads the fields that requests to the collector have.
func (d decoder) spanHeader(all []*corev3.HeaderValueOption, at *strict.Path) string {
	var out strings.Builder
	for _, h := range all {
		name, value := h.GetHeader().GetKey(), h.GetHeader().GetValue()
		if strings.Contains(value, "%") {
			d.add(at, "the field %s has a substitution, which is not supported here", name)
		}
		if strings.ContainsAny(name+value, "\r\n") || name == "" {
			d.add(at, "%q is no field", name)
			continue
		}
		out.WriteString(name + ": " + value + "\n")
	}
	return out.String()
}

// Collectors returns where spans of any chain go; false if that is as it was in an older snapshot, by its chains.
func (s *Snapshot) Collectors(old *Snapshot) (map[trace.Collector]struct{}, bool) {
	if s.inbound == old.inbound {
		return nil, false
	}
	out := map[trace.Collector]struct{}{}
	for _, c := range s.Chains() {
		if c.HTTP != nil && c.HTTP.Tracing != nil {
			out[c.HTTP.Tracing.Collector] = struct{}{}
		}
	}
	return out, true
}
