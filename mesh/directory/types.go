package directory

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Tunnel is how a workload is to be spoken to.
type Tunnel uint8

const (
	// TunnelNone: plain TCP.
	TunnelNone Tunnel = iota
	// TunnelHBONE: through its port 15008.
	TunnelHBONE
)

// Kind is what a workload was made by.
type Kind uint8

const (
	KindDeployment Kind = iota
	KindCronJob
	KindPod
	KindJob
)

// Workload is one pod, or another thing that traffic goes to or comes from.
type Workload struct {
	// UID is <cluster>/<group>/<kind>/<namespace>/<name>, and the key.
	UID       string
	Name      string
	Namespace string
	// Identity is what the workload shows in a handshake.
	Identity identity.Identity
	// Addrs are its addresses, unmapped; none for a workload that has only Hostname.
	Addrs    []netip.Addr
	Network  string
	Hostname string
	Tunnel   Tunnel
	// NativeTunnel: the workload itself speaks HBONE, not its node's proxy.
	NativeTunnel bool
	// HostNetwork: it shares its addresses with its node, and is not found by them.
	HostNetwork bool
	Healthy     bool
	// Waypoint is where traffic that is addressed to the workload goes first; nil for none.
	Waypoint *GatewayAddr
	// NetworkGateway leads to the workload from other networks; nil for none.
	NetworkGateway *GatewayAddr
	AppTunnel      *AppTunnel
	Node           string
	ClusterID      string
	Locality       Locality
	// Canonical* and WorkloadName are for telemetry.
	CanonicalName     string
	CanonicalRevision string
	WorkloadName      string
	Kind              Kind
	// Policies are the keys of the policies that select this workload.
	Policies []string
	// Services are those that it is an endpoint of, sorted by key.
	Services []Membership
	// Capacity is its weight in balancing; 1 by default, 0 for no traffic.
	Capacity uint32

	load *load // shared by all values of this uid; nil for one that no Directory made
}

// Membership makes a workload an endpoint of a service.
type Membership struct {
	Service ServiceKey
	Ports   []PortMapping
}

// PortMapping leads from a port of a service to one of a workload. Target 0 stands for a named port, which each endpoint
// maps itself.
type PortMapping struct {
	Service, Target uint16
	App             AppProtocol
}

// AppProtocol is what is said to be spoken on a port; for information.
type AppProtocol uint8

const (
	AppUnknown AppProtocol = iota
	AppHTTP11
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

// AppTunnel is a further tunnel, inside the pod: PROXY protocol to Port, or, with Port 0, to the port that was asked for.
type AppTunnel struct {
	Proxy bool
	Port  uint16
}

// Locality is where a workload runs; empty parts are unknown.
type Locality struct{ Region, Zone, Subzone string }

// ServiceKey names a service.
type ServiceKey struct{ Namespace, Hostname string }

// String is namespace/hostname, the key on the wire.
func (k ServiceKey) String() string { return k.Namespace + "/" + k.Hostname }

// NetworkAddr is an address in a network.
type NetworkAddr struct {
	Network string
	Addr    netip.Addr
}

// NetworkPrefix is a range of addresses in a network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// GatewayAddr is a waypoint or a gateway to another network: a service, or an address.
type GatewayAddr struct {
	// Service is set if the gateway is named by host name; otherwise Addr is.
	Service ServiceKey
	Addr    NetworkAddr
	// Port is where it takes HBONE.
	Port uint16
}

// Service is a host name, mostly with virtual addresses, before a set of workloads.
type Service struct {
	ServiceKey
	Name string
	// Addrs are its virtual addresses, CIDRs those that are ranges. None of both for a headless service.
	Addrs []NetworkAddr
	CIDRs []NetworkPrefix
	// Ports are sorted by service port.
	Ports []PortMapping
	// PortNames are the names of ports that have one, sorted by port; none under a control plane that does not tell.
	PortNames []PortName
	// SANs are identities that an endpoint may show besides its own.
	SANs     []identity.Identity
	Waypoint *GatewayAddr
	// WeightedWaypoints share traffic instead of Waypoint; weight 0 gets none.
	WeightedWaypoints []WeightedGateway
	Balancing         Balancing
	// Affinity is how long after its last connection a client gets the same endpoint; zero for no such thing.
	Affinity time.Duration
	Families Families
	// Canonical: the winner among services of the same host name.
	Canonical bool
	// NamespaceOnly: only clients of the same namespace see it.
	NamespaceOnly bool
}

// PortName names a port of a service, in lower case.
type PortName struct {
	Port uint16
	Name string
}

// WeightedGateway is one share of a service's traffic.
type WeightedGateway struct {
	GatewayAddr
	Weight uint32
}

// Balancing says how endpoints are chosen.
type Balancing struct {
	// Preference is in order of importance: how much of this prefix source and endpoint share is the endpoint's rank.
	Preference []Scope
	Mode       Mode
	// AllowUnhealthy: endpoints are taken whatever their health.
	AllowUnhealthy bool
}

// Scope is one thing that a source and an endpoint may share.
type Scope uint8

const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// Mode is what Balancing.Preference means.
type Mode uint8

const (
	// ModeStandard: nothing.
	ModeStandard Mode = iota
	// ModeStrict: only endpoints that share all of it.
	ModeStrict
	// ModeFailover: the best rank that has an endpoint.
	ModeFailover
	// ModePassthrough: no choice; the address that the client asked for.
	ModePassthrough
)

// Families restricts the addresses of endpoints.
type Families uint8

const (
	FamiliesAny Families = iota
	FamiliesIPv4
	FamiliesIPv6
)

// PortNamed returns the port of that name, which is given in lower case, and whether the service has it.
func (s *Service) PortNamed(name string) (uint16, bool) {
	for _, p := range s.PortNames {
		if p.Name == name {
			return p.Port, true
		}
	}
	return 0, false
}

// EndpointOf tells whether w is an endpoint of a service.
func (w *Workload) EndpointOf(key ServiceKey) bool { return w.membership(key) != nil }
