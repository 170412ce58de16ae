// Package cluster is what the control plane knows of a Kubernetes cluster: objects reduced to the fields that something is
// computed from. Objects take this form as they enter the process, so that a mesh of 100,000 pods costs what is used of
// them and no more. Values are immutable once made and may be shared. Conversion is pure and total: what is malformed in an
// object becomes a fault of that object, never an error of the stream that it came in.
package cluster

import (
	"cmp"
	"strings"
)

// Key names a namespaced object.
type Key struct{ Namespace, Name string }

// String returns "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders keys by namespace, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Name, o.Name))
}

// Kind is a kind of object that the control plane watches.
type Kind string

// The kinds. The values are what Kubernetes calls them, but for KindBundle.
const (
	KindNamespace           Kind = "Namespace"
	KindNode                Kind = "Node"
	KindPod                 Kind = "Pod"
	KindService             Kind = "Service"
	KindEndpointSlice       Kind = "EndpointSlice"
	KindPeerAuthentication  Kind = "PeerAuthentication"
	KindAuthorizationPolicy Kind = "AuthorizationPolicy"
	KindServiceEntry        Kind = "ServiceEntry"
	KindWorkloadEntry       Kind = "WorkloadEntry"
	KindConfigMap           Kind = "ConfigMap"
	KindGatewayClass        Kind = "GatewayClass"
	KindMesh                Kind = "XMesh"
	KindDeployment          Kind = "Deployment"
	KindHTTPRoute           Kind = "HTTPRoute"
	KindGRPCRoute           Kind = "GRPCRoute"
	KindTLSRoute            Kind = "TLSRoute"
	KindTCPRoute            Kind = "TCPRoute"
	KindGateway             Kind = "Gateway"
	KindDestinationRule     Kind = "DestinationRule"
	KindVirtualService      Kind = "VirtualService"
	KindBackendTLSPolicy    Kind = "BackendTLSPolicy"
	KindBackendTraffic      Kind = "XBackendTrafficPolicy"
	KindTelemetry           Kind = "Telemetry"
	KindWaypointPolicy      Kind = "WaypointPolicy"
	// KindBundle are config maps that say whom to trust.
	KindBundle Kind = "CABundle"

	KindRequestAuthentication Kind = "RequestAuthentication"
	// KindKeySet is none of Kubernetes: see KeySet.
	KindKeySet Kind = "KeySet"
)

// Object is one of the nouns of this package.
type Object interface {
	// ObjectKind is the kind that the object has.
	ObjectKind() Kind
	// ObjectKey is the name under which it is known within its kind; cluster-wide kinds have no namespace.
	ObjectKey() Key
}

// Op is what happened to objects.
type Op uint8

// The operations.
const (
	// Upsert brings a new or changed object.
	Upsert Op = iota
	// Delete takes an object away.
	Delete
	// Replace brings all objects of the kind; others are gone.
	Replace
	// Absent says that the API server does not know the kind: nothing of it is there, for now.
	Absent
)

// Event is something that happened in the cluster.
type Event struct {
	Kind Kind
	Op   Op
	// Key names the object of Upsert and Delete.
	Key Key
	// Object is that of Upsert.
	Object Object
	// Objects are those of Replace.
	Objects []Object
}
