package trace_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/waypoint/trace"
	"github.com/ambit-mesh/ambit/waypoint/trace/tracetest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// spans returns the counter of spans by result.
func spans(t *testing.T, reg *prometheus.Registry, result string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == result {
			return m.GetCounter().GetValue()
		}
	}
	return -1
}

// TestTracers: spans arrive, over gRPC and over HTTP, as of the service and with the resource that they should have.
func TestTracers(t *testing.T) {
	for _, way := range []string{"grpc", "http"} {
		at := tracetest.New(t)
		reg := prometheus.NewRegistry()
		tracers := trace.New(trace.Config{
			Dial: func(ctx context.Context, cluster string) (net.Conn, error) {
				if cluster != "outbound|4317||collector" {
					t.Errorf("dials %q", cluster)
				}
				var d net.Dialer
				if way == "http" {
					return d.DialContext(ctx, "tcp", at.HTTP)
				}
				return d.DialContext(ctx, "tcp", at.GRPC)
			},
			Resource:   []attribute.KeyValue{attribute.String("k8s.pod.name", "waypoint-1")},
			Registerer: reg, Logger: slog.New(slog.DiscardHandler),
		})
		c := trace.Collector{Cluster: "outbound|4317||collector", Service: "waypoint.shop"}
		if way == "http" {
			c.URL, c.Header = "http://collector:4318/v1/traces", "x-token: abc\n"
		}
		tracers.Apply(map[trace.Collector]struct{}{c: {}})
		parent, _ := trace.Parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
		start := time.Now()
		span := tracers.Tracer(c).Start(parent, true, "a=b", "stock:80/*", start)
		ctx := span.Context()
		if !ctx.Sampled() || ctx.Trace != parent.Trace || ctx.Span == parent.Span {
			t.Errorf("%s: the backend is told %v", way, ctx)
		}
		span.End(start.Add(time.Second), true, "it broke", attribute.String("k", "v"))
		root := tracers.Tracer(c).Start(trace.Context{}, false, "", "root", start)
		root.End(start, false, "")
		tracers.Apply(nil) // sends what waits
		tracers.Close()
		got := at.Spans()
		if len(got) != 2 {
			t.Fatalf("%s: %d spans", way, len(got))
		}
		s := got[0]
		if s.GetName() != "stock:80/*" || string(s.GetTraceId()) != string(parent.Trace[:]) || string(s.GetParentSpanId()) != string(parent.Span[:]) ||
			string(s.GetSpanId()) != string(ctx.Span[:]) || s.GetTraceState() != "a=b" || s.GetKind().String() != "SPAN_KIND_SERVER" ||
			s.GetStatus().GetMessage() != "it broke" || s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano() != uint64(time.Second) {
			t.Errorf("%s: %v", way, s.Span)
		}
		if s.Attributes["k"] != "v" || s.Resource["service.name"] != "waypoint.shop" || s.Resource["k8s.pod.name"] != "waypoint-1" {
			t.Errorf("%s: %v of %v", way, s.Attributes, s.Resource)
		}
		if r := got[1]; len(r.GetParentSpanId()) != 0 || string(r.GetTraceId()) == string(parent.Trace[:]) {
			t.Errorf("%s: %v", way, r.Span)
		}
		if way == "http" && at.Fields().Get("x-token") != "abc" {
			t.Errorf("fields %v", at.Fields())
		}
		if n := spans(t, reg, "sent"); n != 2 {
			t.Errorf("%s: %v were sent", way, n)
		}
		if tracers.Tracer(c) != nil {
			t.Errorf("%s: it is still there", way)
		}
	}
}

// TestCollectorAway: while a collector does not answer, spans wait up to a bound and are dropped and counted beyond; nobody waits
// for them, and the end does not take long.
func TestCollectorAway(t *testing.T) {
	reg := prometheus.NewRegistry()
	var dials atomic.Int64
	tracers := trace.New(trace.Config{
		Dial: func(context.Context, string) (net.Conn, error) {
			dials.Add(1)
			return nil, errors.New("nobody is there")
		},
		Registerer: reg, Logger: slog.New(slog.DiscardHandler),
	})
	c := trace.Collector{Cluster: "c", Service: "s"}
	tracers.Apply(map[trace.Collector]struct{}{c: {}})
	tracer := tracers.Tracer(c)
	const more = 3000
	for range more {
		tracer.Start(trace.Context{}, false, "", "n", time.Now()).End(time.Now(), false, "")
	}
	if n := spans(t, reg, "dropped"); n < more-2048-512 || n > more-2048 {
		t.Errorf("%v spans were dropped of %d", n, more)
	}
	tracers.Close()
	if n := spans(t, reg, "sent"); n != 0 || dials.Load() == 0 {
		t.Errorf("%v were sent, %d dials", n, dials.Load())
	}
}
