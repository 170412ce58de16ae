package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
	"github.com/ambit-mesh/ambit/waypoint/trace"
	"github.com/ambit-mesh/ambit/waypoint/trace/tracetest"
)

// tracingListener is configtest's with tracing for its HTTP port.
func tracingListener(sampling float64) string {
	return strings.Replace(configtest.Listener("0s"), "      stat_prefix: web\n", fmt.Sprintf(`      stat_prefix: web
      tracing:
        random_sampling: {value: %v}
        custom_tags: [{tag: region, literal: {value: north}}, {tag: tenant, request_header: {name: X-Tenant, default_value: none}}]
        provider:
          name: envoy.tracers.opentelemetry
          typed_config:
            '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
            service_name: waypoint.shop
            grpc_service: {envoy_grpc: {cluster_name: collector}}
`, sampling), 1)
}

// tracedWorld is a world whose waypoint sends spans to a collector, which is a backend of its own.
func tracedWorld(t *testing.T) (*world, *tracetest.Collector, *trace.Tracers) {
	at := tracetest.New(t)
	var w *world
	tracers := trace.New(trace.Config{
		Dial:       func(ctx context.Context, cluster string) (net.Conn, error) { return w.clusters.Dial(ctx, cluster) },
		Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(tracers.Close)
	w = newWorld(t, func(c *Config) { c.Tracers = tracers })
	w.plainEndpoint("collector", 9, at.GRPC)
	return w, at, tracers
}

// TestTracing: a request that is recorded, by its caller's decision or by chance, becomes a span, and its backend is told; others
// are passed on as they came, or begin a trace that nobody records.
func TestTracing(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"
	w, at, tracers := tracedWorld(t)
	told := make(chan http.Header, 1)
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/broken" {
			rw.WriteHeader(500)
		}
		told <- r.Header
	}))
	apply := func(listener string) {
		w.applyWith(all, listener)
		wanted, _ := w.store.Load().Collectors(&config.Snapshot{})
		tracers.Apply(wanted)
	}
	c := w.client("HTTP/1.1")
	ask := func(path string, headers ...string) (trace.Context, http.Header) {
		t.Helper()
		do(t, c, "GET", path, "", headers...)
		h := <-told
		ctx, ok := trace.Parse(h.Get("traceparent"))
		if !ok && h.Get("traceparent") != "" {
			t.Errorf("%s: the backend is told %q", path, h.Get("traceparent"))
		}
		return ctx, h
	}
	apply(configtest.Listener("0s"))
	if _, h := ask("/untraced"); h.Get("traceparent") != "" {
		t.Errorf("without tracing the backend is told %v", h)
	}
	if _, h := ask("/passed", "traceparent: "+parent+"1", "tracestate: a=b", "x-b3-traceid: 1"); h.Get("traceparent") != parent+"1" || h.Get("tracestate") != "a=b" || h.Get("x-b3-traceid") != "1" {
		t.Errorf("without tracing the backend is told %v", h)
	}
	apply(tracingListener(0)) // on the same connection
	if ctx, h := ask("/begun", "tracestate: a=b"); ctx.TraceID() == "" || ctx.Sampled() || h.Get("tracestate") != "" {
		t.Errorf("unsampled: %v", h)
	}
	if _, h := ask("/unsampled", "traceparent: "+parent+"0"); h.Get("traceparent") != parent+"0" {
		t.Errorf("unsampled by its caller: %v", h)
	}
	sampled, h := ask("/sampled?q=1", "traceparent: "+parent+"1", "tracestate: a=b", "x-tenant: blue", "user-agent: tests")
	if !sampled.Sampled() || sampled.TraceID() != "4bf92f3577b34da6a3ce929d0e0e4736" || h.Get("tracestate") != "a=b" {
		t.Errorf("sampled by its caller: %v", h)
	}
	apply(tracingListener(100))
	broken, _ := ask("/broken")
	await(t, "both spans are there", func() bool { return len(at.Spans()) >= 2 })
	got := map[string]tracetest.Span{}
	for _, s := range at.Spans() {
		got[s.Attributes["url.path"]] = s
	}
	if len(got) != 2 {
		t.Fatalf("spans of %v", got)
	}
	s := got["/sampled"]
	if s.GetName() != "stock.shop.svc.cluster.local:80/*" || string(s.GetSpanId()) != string(sampled.Span[:]) || s.Resource["service.name"] != "waypoint.shop" {
		t.Errorf("%v of %v", s.Span, s.Resource)
	}
	for name, want := range map[string]string{
		"http.request.method": "GET", "http.response.status_code": "200", "url.query": "q=1", "url.scheme": "http", "server.address": "stock.shop",
		"server.port": "80", "client.address": "10.9.9.9", "network.protocol.version": "1.1", "user_agent.original": "tests",
		"component": "proxy", "http.url": "http://stock.shop/sampled?q=1", "http.status_code": "200", "upstream_cluster": "c", "response_flags": "-",
		"region": "north", "tenant": "blue", "source.principal": clientID.String(), "peer.address": "10.9.9.9",
	} {
		if s.Attributes[name] != want {
			t.Errorf("%s is %q, want %q", name, s.Attributes[name], want)
		}
	}
	s = got["/broken"]
	if s.Attributes["error.type"] != "500" || s.Attributes["tenant"] != "none" || s.GetStatus().GetCode().String() != "STATUS_CODE_ERROR" ||
		len(s.GetParentSpanId()) != 0 || string(s.GetTraceId()) != string(broken.Trace[:]) {
		t.Errorf("%v", s.Span)
	}
}
