// Package xds is a client of the aggregated discovery service in its delta form: one stream to the control plane, on
// which each resource type is subscribed as a whole. It keeps versions and names, never resources; what they mean is up
// to its handlers, and one bad resource never holds back a good one.
package xds
