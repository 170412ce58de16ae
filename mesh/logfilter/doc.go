// Package logfilter decides which requests and connections are logged, by the expressions that Telemetries have for it: CEL over
// attributes that are called as Envoy calls them. It knows what attributes there are; whoever logs knows their values.
package logfilter
