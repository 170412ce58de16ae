// Package v1alpha1 is ambit's own kind of object for people to write, beside those of the Gateway API and of Istio that it takes:
// WaypointPolicy, for what neither of them can say. Its definition, of which the chart has a copy, is in the same folder; both say
// the same fields.
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Where the API server has the kind.
const (
	Group    = "ambit.io"
	Version  = "v1alpha1"
	Kind     = "WaypointPolicy"
	Resource = "waypointpolicies"
)

// Definition is the name of the file in this folder that defines the kind.
const Definition = "ambit.io_waypointpolicies.yaml"

// WaypointPolicy says what waypoints do with the requests for a service, or for all services of a waypoint.
type WaypointPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec WaypointPolicySpec `json:"spec"`
	// Status has an ancestor for each target, with the condition Accepted.
	Status gatewayv1.PolicyStatus `json:"status,omitempty"`
}

// WaypointPolicySpec is what is wanted.
type WaypointPolicySpec struct {
	// TargetRefs are what the policy is for, 1 to 16 objects of its namespace: a Service, a ServiceEntry, or one port of either by its
	// name; a Gateway that is a waypoint means each of the services whose traffic takes it. Each field of the policy is decided on
	// its own for each port: by a policy for the port before one for the service, and by that before one for the waypoint; then by the
	// oldest, then by the first by name.
	TargetRefs []gatewayv1.LocalPolicyTargetReferenceWithSectionName `json:"targetRefs"`
	// RateLimit bounds how many requests are let through.
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
}

// RateLimit is a bucket of tokens, of which each request takes one. Who finds it empty is answered 429, those of gRPC
// RESOURCE_EXHAUSTED. Each port has a bucket of its own.
type RateLimit struct {
	// Requests are how many tokens come to the bucket in each Interval, evenly: 1 to 1,000,000.
	Requests int32 `json:"requests"`
	// Interval is 50ms to 24h; 1s unless set.
	Interval *gatewayv1.Duration `json:"interval,omitempty"`
	// Burst is how many tokens the bucket holds, which it does at first: 1 to 1,000,000; Requests unless set.
	Burst *int32 `json:"burst,omitempty"`
	// Scope is whose bucket it is; ScopeReplica unless set.
	Scope *RateLimitScope `json:"scope,omitempty"`
}

// RateLimitScope is whose requests share a bucket.
type RateLimitScope string

// The scopes.
const (
	// ScopeReplica: all requests that one pod of the waypoint is sent. Two pods let through twice as many.
	ScopeReplica RateLimitScope = "Replica"
	// ScopeConnection: the requests of one connection of a client.
	ScopeConnection RateLimitScope = "Connection"
)
