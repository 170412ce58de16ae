// Package telemetry counts and logs connections under Istio's metric names, labels and log fields. Nothing in it blocks
// the path of a connection: counters are atomic values that are looked up once, and a log line that does not fit into
// the queue is dropped and counted.
package telemetry
