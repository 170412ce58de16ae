// Package trace makes a waypoint's requests part of traces: W3C Trace Context is passed on, or begun, and what is sampled becomes a
// span that is sent to a collector (OTLP) by OpenTelemetry's SDK.
//
// Rules of the room: no request waits for a span. What the collector does not take in time is dropped and counted.
package trace
