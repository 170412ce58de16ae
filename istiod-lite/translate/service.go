package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Hostname is the fully qualified name of a Kubernetes service.
func Hostname(m Mesh, s cluster.Key) string {
	return s.Name + "." + s.Namespace + ".svc." + m.ClusterDomain
}

// ServiceName is the key of a service: "namespace/hostname".
func ServiceName(m Mesh, s cluster.Key) string { return s.Namespace + "/" + Hostname(m, s) }

// ServiceInput is a service and what it depends on.
type ServiceInput struct {
	Service *cluster.Service
	// Namespace is the service's, nil while it is not known.
	Namespace *cluster.Namespace
	// Rivals names, for each address of the service that it does not own, who else claims it.
	Rivals map[netip.Addr]Rival
	// Waypoint is the decision on the service's.
	Waypoint Binding
}

// Service translates a service. The result is nil for one of type ExternalName, which is DNS' business.
func Service(m Mesh, in ServiceInput) (*workload.Service, []Problem) {
	s := in.Service
	problems := Faults(s, s.Faults)
	if s.External {
		return nil, problems
	}
	out := &workload.Service{
		Name:      s.Name,
		Namespace: s.Namespace,
		Hostname:  Hostname(m, s.Key),
		// A Kubernetes service wins its host name from everything else that may claim it.
		Canonical:         true,
		IpFamilies:        ipFamilies(s),
		Waypoint:          in.Waypoint.Address,
		WeightedWaypoints: in.Waypoint.Shares,
	}
	for _, claim := range Claims(s) {
		if rival, lost := in.Rivals[claim.Addr]; lost {
			if rival.Key != (cluster.Key{}) {
				problems = append(problems, Problem{s.ObjectKind(), s.Key, fmt.Sprintf("address %s is claimed by service %s too, %s", claim.Addr, rival.Key, rival.Outcome)})
			}
			continue
		}
		out.Addresses = append(out.Addresses, &workload.NetworkAddress{Network: m.Network, Address: claim.Addr.AsSlice()})
	}
	for _, p := range s.Ports {
		port := &workload.Port{ServicePort: uint32(p.Port), TargetPort: uint32(p.Target), AppProtocol: AppProtocol(p)}
		if len(s.Selector) == 0 {
			port.TargetPort = 0 // the slices say which port it is, endpoint by endpoint
		}
		out.Ports = append(out.Ports, port)
	}
	balancing, fault := loadBalancing(s, in.Namespace)
	out.LoadBalancing = balancing
	if fault != "" {
		problems = append(problems, Problem{s.ObjectKind(), s.Key, fault})
	}
	options := &extension.ServiceOptions{PortNames: portNames(s.Ports)}
	if s.Affinity > 0 {
		options.ClientIpAffinity = &extension.ClientIPAffinity{TimeoutSeconds: uint32(s.Affinity / time.Second)}
	}
	extend(out, options)
	return out, problems
}

// extend adds what ambit's data planes are told of a service beyond Istio's protocol, if there is anything. The bytes are the
// same each time, so that a service that is translated again is not sent again.
func extend(out *workload.Service, options *extension.ServiceOptions) {
	if options.ClientIpAffinity == nil && len(options.PortNames) == 0 {
		return
	}
	body := new(anypb.Any)
	if err := anypb.MarshalFrom(body, options, proto.MarshalOptions{Deterministic: true}); err != nil {
		return // it fails on text that is not UTF-8 only, and portNames leaves that out
	}
	out.Extensions = append(out.Extensions, &workload.Extension{Name: extension.ServiceOptionsName, Config: body})
}

// portNames are the names of ports, by port, nil if there are none.
func portNames(ports []cluster.ServicePort) map[uint32]string {
	var out map[uint32]string
	for _, p := range ports {
		if p.Name == "" || !utf8.ValidString(p.Name) {
			continue
		}
		if out == nil {
			out = map[uint32]string{}
		}
		out[uint32(p.Port)] = p.Name
	}
	return out
}

func ipFamilies(s *cluster.Service) workload.IPFamilies {
	switch {
	case s.IPv4 && s.IPv6:
		return workload.IPFamilies_DUAL
	case s.IPv4:
		return workload.IPFamilies_IPV4_ONLY
	case s.IPv6:
		return workload.IPFamilies_IPV6_ONLY
	}
	return workload.IPFamilies_AUTOMATIC
}

// Values of spec.trafficDistribution and of the annotation.
const (
	distributionClose    = "PreferClose"
	distributionSameZone = "PreferSameZone"
	distributionSameNode = "PreferSameNode"
	distributionAny      = "Any"
)

// loadBalancing returns nil where receivers' default is meant. The service's own field beats its annotation, which beats its
// namespace's.
func loadBalancing(s *cluster.Service, ns *cluster.Namespace) (*workload.LoadBalancing, string) {
	type scope = workload.LoadBalancing_Scope
	const (
		network, region, zone    = workload.LoadBalancing_NETWORK, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE
		subzone, node            = workload.LoadBalancing_SUBZONE, workload.LoadBalancing_NODE
		strictMode, failoverMode = workload.LoadBalancing_STRICT, workload.LoadBalancing_FAILOVER
	)
	distribution := cmp.Or(s.Distribution, s.DistributionAnnotation)
	if distribution == "" && ns != nil {
		distribution = ns.Distribution
	}
	out := &workload.LoadBalancing{}
	var fault string
	switch distribution {
	case distributionClose, distributionSameZone:
		out.Mode, out.RoutingPreference = failoverMode, []scope{network, region, zone}
	case distributionSameNode:
		out.Mode, out.RoutingPreference = failoverMode, []scope{network, region, zone, subzone, node}
	case "", distributionAny:
	default:
		fault = fmt.Sprintf("traffic distribution %q is not known; treated as %s", distribution, distributionAny)
	}
	if s.InternalLocal {
		out.Mode, out.RoutingPreference = strictMode, []scope{node}
	}
	if s.PublishNotReady {
		out.HealthPolicy = workload.LoadBalancing_ALLOW_ALL
	}
	if out.Mode == workload.LoadBalancing_UNSPECIFIED_MODE && out.HealthPolicy == workload.LoadBalancing_ONLY_HEALTHY {
		return nil, fault
	}
	return out, fault
}

// appProtocols are the values of a port's appProtocol, and the prefixes of port names, that say what is spoken. Kubernetes'
// own are listed in its documentation of services; the rest are Istio's.
var appProtocols = map[string]workload.AppProtocol{
	"http":              workload.AppProtocol_HTTP11,
	"http2":             workload.AppProtocol_HTTP2,
	"h2c":               workload.AppProtocol_HTTP2,
	"grpc":              workload.AppProtocol_GRPC,
	"grpc-web":          workload.AppProtocol_GRPC,
	"tcp":               workload.AppProtocol_TCP,
	"mongo":             workload.AppProtocol_TCP,
	"mysql":             workload.AppProtocol_TCP,
	"redis":             workload.AppProtocol_TCP,
	"tls":               workload.AppProtocol_TLS,
	"https":             workload.AppProtocol_TLS,
	"kubernetes.io/h2c": workload.AppProtocol_HTTP2,
	"kubernetes.io/ws":  workload.AppProtocol_HTTP11,
	"kubernetes.io/wss": workload.AppProtocol_TLS,
}

// AppProtocol is what the owner of a service says is spoken on a port: by appProtocol, else by the part of its name before the first
// dash. UNKNOWN is for one of whom nothing is said, or something that means nothing here.
func AppProtocol(p cluster.ServicePort) workload.AppProtocol {
	if p.AppProtocol != "" {
		return appProtocols[strings.ToLower(p.AppProtocol)]
	}
	name := strings.ToLower(p.Name)
	if strings.HasPrefix(name, "grpc-web") {
		return workload.AppProtocol_GRPC
	}
	prefix, _, _ := strings.Cut(name, "-")
	return appProtocols[prefix]
}

// ClaimStrength orders claims to an address, strongest first.
type ClaimStrength int

// The claims. A node's own address is not a service's, whatever a load balancer that runs on nodes says.
const (
	ClaimClusterIP ClaimStrength = iota
	ClaimNode
	ClaimLoadBalancer
	// ClaimEntry is a ServiceEntry's, which anybody may write.
	ClaimEntry
)

// Claim says that somebody has an address.
type Claim struct {
	Addr     netip.Addr
	Strength ClaimStrength
	// Service claims the address, a ServiceEntry with ClaimEntry; zero for a node's.
	Service cluster.Key
	Created time.Time
}

// Rival is who keeps a service from an address that it claims. The zero Key is a node.
type Rival struct {
	Key cluster.Key
	// Entry says that Key is a ServiceEntry's.
	Entry bool
	// Outcome says how the conflict was settled.
	Outcome string
}

// Claims lists the addresses that a service asks for, each once.
func Claims(s *cluster.Service) []Claim {
	if s.External {
		return nil
	}
	out := make([]Claim, 0, len(s.ClusterIPs)+len(s.LoadBalancerIPs))
	for _, a := range s.ClusterIPs {
		out = append(out, Claim{a, ClaimClusterIP, s.Key, s.Created})
	}
	for _, a := range s.LoadBalancerIPs {
		if !slices.Contains(s.ClusterIPs, a) {
			out = append(out, Claim{a, ClaimLoadBalancer, s.Key, s.Created})
		}
	}
	return out
}

// NodeClaims lists the claims of a node's own addresses.
func NodeClaims(n *cluster.Node) []Claim {
	var out []Claim
	for _, a := range n.Addrs {
		out = append(out, Claim{Addr: a, Strength: ClaimNode})
	}
	return out
}

// Settle tells whether a service's claim is granted beside all claims to the same address, and if not, who stands in its
// way. A stronger claim wins, then the older service, then the name. An address that several services share at a load
// balancer goes to none: which of them is meant hangs on the port, and kube-proxy knows. ServiceEntries of different
// namespaces may have the same address, each for the clients of its own.
func Settle(claim Claim, all []Claim) (Rival, bool) {
	var rival *Claim
	for i := range all {
		if !all[i].by(claim) && !all[i].aside(claim) && (rival == nil || CompareClaims(all[i], *rival) < 0) {
			rival = &all[i]
		}
	}
	switch {
	case rival == nil || rival.Strength > claim.Strength:
		return Rival{}, true
	case rival.Strength < claim.Strength:
		return Rival{Key: rival.Service, Outcome: "whose claim is stronger"}, false
	case claim.Strength == ClaimLoadBalancer:
		return Rival{Key: rival.Service, Outcome: "so neither has it in the mesh and kube-proxy forwards"}, false
	case CompareClaims(*rival, claim) < 0:
		return Rival{rival.Service, rival.Strength == ClaimEntry, "which is older or the first by name"}, false
	}
	return Rival{}, true
}

// by reports whether both claims are of the same object.
func (c Claim) by(o Claim) bool {
	return c.Service == o.Service && (c.Strength == ClaimEntry) == (o.Strength == ClaimEntry)
}

// aside reports whether both claims may be granted.
func (c Claim) aside(o Claim) bool {
	return c.Strength == ClaimEntry && o.Strength == ClaimEntry && c.Service.Namespace != o.Service.Namespace
}

// CompareClaims is the order in which claims to an address are granted.
func CompareClaims(a, b Claim) int {
	return cmp.Or(cmp.Compare(a.Strength, b.Strength), a.Created.Compare(b.Created), a.Service.Compare(b.Service))
}
