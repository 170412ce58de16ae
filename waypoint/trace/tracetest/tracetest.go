// Package tracetest is a collector of spans, over gRPC and HTTP, for tests. Only tests import it.
package tracetest

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Span is a span as it was sent.
type Span struct {
	*tracev1.Span
	// Attributes are the span's, Resource those of what sent it, as text.
	Attributes, Resource map[string]string
}

// Collector takes spans.
type Collector struct {
	collectorv1.UnimplementedTraceServiceServer

	// GRPC and HTTP are the addresses where it listens.
	GRPC, HTTP string

	mu     sync.Mutex // guards what follows
	spans  []Span
	fields http.Header // of the last request over HTTP
}

// New starts a collector, which ends with the test.
func New(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{}
	var listeners [2]net.Listener
	for i := range listeners {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[i] = ln
	}
	c.GRPC, c.HTTP = listeners[0].Addr().String(), listeners[1].Addr().String()
	over, web := grpc.NewServer(), &http.Server{Handler: c}
	collectorv1.RegisterTraceServiceServer(over, c)
	var served sync.WaitGroup
	served.Go(func() { _ = over.Serve(listeners[0]) })
	served.Go(func() { _ = web.Serve(listeners[1]) })
	t.Cleanup(func() {
		over.Stop()
		_ = web.Close()
		served.Wait()
	})
	return c
}

// Export is of TraceServiceServer.
func (c *Collector) Export(_ context.Context, in *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range in.GetResourceSpans() {
		resource := texts(r.GetResource().GetAttributes())
		for _, s := range r.GetScopeSpans() {
			for _, span := range s.GetSpans() {
				c.spans = append(c.spans, Span{span, texts(span.GetAttributes()), resource})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// ServeHTTP takes spans at /v1/traces.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var in collectorv1.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &in) != nil {
		http.Error(w, "not spans", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.fields = r.Header
	c.mu.Unlock()
	_, _ = c.Export(r.Context(), &in)
}

// Spans returns what has come.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Fields returns the header of the last request over HTTP.
func (c *Collector) Fields() http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fields
}

func texts(attrs []*commonv1.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attrs {
		switch v := a.GetValue().GetValue().(type) {
		case *commonv1.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		default:
			out[a.GetKey()] = strconv.FormatInt(a.GetValue().GetIntValue(), 10)
		}
	}
	return out
}
