// Package l7 turns services, their endpoints and the routes attached to them into what a waypoint is told (Envoy's v3 resources)
// and into what routes say of themselves: nouns in, resources and conditions out. It does no I/O, keeps no state, has no clock and
// never logs, so equal input gives equal output. Each function takes one object and what it depends on; All puts them together
// for a whole cluster, and is the definition that the incremental state must agree with.
//
// Who may do what. Routes in the namespace of a service (producers) are for all clients, routes in another namespace (consumers)
// for the clients of that namespace only, where they come before the producers' and never mix with them. A service with a route
// has no implicit forwarding any more: what no route matches is answered 404. Backends are endpoints: the routes of a backend
// have no say. What a rule asks for and cannot have is answered 500, on that rule's own matches, and told in a condition.
package l7

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Names of listeners, and of the clusters that lead to them.
const (
	// ListenerTerminate takes tunnels from clients, on api.PortHBONE.
	ListenerTerminate = "connect_terminate"
	// ListenerMain takes the connections inside tunnels.
	ListenerMain = "main_internal"
	// ListenerOriginate puts connections to endpoints into tunnels.
	ListenerOriginate = "connect_originate"
	// ClusterInvalid stands for backends that cannot be used. It is never defined.
	ClusterInvalid = "invalid"
)

// FilterStatePeer is the filter state that has the client's identity, a SPIFFE URI.
const FilterStatePeer = "io.istio.peer_principal"

// Index is where routes find what they refer to. Its methods have no side effects.
type Index interface {
	// Host returns a service; nil if there is none. Of a ServiceEntry with several hosts it is the first.
	Host(ref cluster.ObjectRef) *Host
	// Named returns the host of that name, of a service or else of the first ServiceEntry in the namespace, or in any if that is "".
	// Nil if there is none.
	Named(namespace, hostname string) *Host
	// Routes returns all routes, of any kind and in any order, that name the object as a parent, each once.
	Routes(parent cluster.ObjectRef) []*cluster.Route
	// IsWaypoint reports whether there is a Gateway of that name that is a waypoint of this control plane.
	IsWaypoint(gateway cluster.Key) bool
	// Rule returns the DestinationRule that is in force for a host at the waypoint that is translated for; nil if there is none.
	Rule(h *Host) *cluster.DestinationRule
	// Fault returns what is injected into requests to a host; nil if nothing is.
	Fault(h *Host) *cluster.Injection
	Securing
	Bounding
	Refining
}

// ClusterName is the name of the Cluster, and of the ClusterLoadAssignment, of a port of a service.
func ClusterName(h *Host, port uint16) string {
	return fmt.Sprintf("outbound|%d||%s", port, h.Hostname)
}

// rawClusterName is that of the second cluster of a port that is spoken to by TLS. No subset can be called so.
func rawClusterName(h *Host, port uint16) string {
	return fmt.Sprintf("outbound|%d|.as-is|%s", port, h.Hostname)
}

// asIsCluster is the name of the cluster for bytes that are TLS already.
func asIsCluster(h *Host, port uint16) string {
	if h.TLS[port] != nil {
		return rawClusterName(h, port)
	}
	return ClusterName(h, port)
}

// ChainName is the name of the filter chain that a port of a service has in ListenerMain; that of an HTTP port is the name of
// its RouteConfiguration too.
func ChainName(h *Host, port uint16, http bool) string {
	protocol := "tcp"
	if http {
		protocol = "http"
	}
	return fmt.Sprintf("inbound-vip|%d|%s|%s", port, protocol, h.Hostname)
}

// config packs a message, the same way each time. It fails on text that is not UTF-8 only, which objects of an API server never
// have; data planes refuse what is empty.
func config(m proto.Message) *anypb.Any {
	out := new(anypb.Any)
	_ = anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true})
	return out
}

// SortParts brings parts of ListenerMain into the order in which they are put together.
func SortParts(parts []*Part) {
	slices.SortFunc(parts, func(a, b *Part) int { return a.host.compare(b.host) })
}
