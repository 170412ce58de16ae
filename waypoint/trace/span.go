package trace

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// Begin returns what a request that has no trace and is not recorded says to its backend: one that begins here, so that nobody behind
// it decides anew.
func Begin() Context {
	var c Context
	c.newTrace()
	c.newSpan()
	return c
}

// Span is a request that is recorded. The zero value is one of a request that is not.
type Span struct{ span oteltrace.Span }

// Recorded tells whether there is a span.
func (s Span) Recorded() bool { return s.span != nil }

// Start begins the span of a request, in the trace that the request says, if it has one, or in a new one. The caller must End it.
func (t *Tracer) Start(parent Context, has bool, state, name string, at time.Time) Span {
	ctx := context.Background()
	if has {
		cfg := oteltrace.SpanContextConfig{TraceID: parent.Trace, SpanID: parent.Span, TraceFlags: oteltrace.TraceFlags(parent.Flags), Remote: true}
		cfg.TraceState, _ = oteltrace.ParseTraceState(state) // one that is none is not passed on: section 3.3.1.4
		ctx = oteltrace.ContextWithRemoteSpanContext(ctx, oteltrace.NewSpanContext(cfg))
	}
	_, span := t.tracer.Start(ctx, name, oteltrace.WithTimestamp(at), oteltrace.WithSpanKind(oteltrace.SpanKindServer))
	return Span{span}
}

// Context is what the backend is told.
func (s Span) Context() Context {
	c := s.span.SpanContext()
	return Context{Trace: c.TraceID(), Span: c.SpanID(), Flags: byte(c.TraceFlags()) & FlagSampled}
}

// End ends the span, which goes to the collector at some time. why is of one that failed.
func (s Span) End(at time.Time, failed bool, why string, attrs ...attribute.KeyValue) {
	s.span.SetAttributes(attrs...)
	if failed {
		s.span.SetStatus(codes.Error, strings.ToValidUTF8(why, ""))
	}
	s.span.End(oteltrace.WithTimestamp(at))
}
