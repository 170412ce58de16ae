package l7

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// LoadAssignments are the endpoints of each of Clusters, but for those that have them in them. A cluster that is refused has none.
func LoadAssignments(m translate.Mesh, h *Host, port cluster.ServicePort, workloads []*workload.Workload) []*endpointv3.ClusterLoadAssignment {
	if h.Unfit != "" || h.Resolution == cluster.ResolutionNone || named(h, workloads) {
		return nil
	}
	all := LoadAssignment(m, h, port, workloads)
	o := h.TLS[port.Port]
	if o == nil {
		return []*endpointv3.ClusterLoadAssignment{all}
	}
	asIs := &endpointv3.ClusterLoadAssignment{ClusterName: asIsCluster(h, port.Port), Endpoints: all.Endpoints}
	if o.Fault != "" {
		all = &endpointv3.ClusterLoadAssignment{ClusterName: all.ClusterName}
	}
	return []*endpointv3.ClusterLoadAssignment{all, asIs}
}

// named reports whether some endpoints of a host are host names, which waypoints look up.
func named(h *Host, workloads []*workload.Workload) bool {
	return h.Resolution == cluster.ResolutionDNS && slices.ContainsFunc(workloads, func(w *workload.Workload) bool {
		_, ours := w.Services[h.key()]
		return ours && len(w.Addresses) == 0 && w.Hostname != ""
	})
}

// LoadAssignment translates the endpoints of one port of a host. The workloads, in any order, are those that node proxies are told of
// as the host's; the others among them are left out. Only endpoints that may get new requests are in the result: ready ones, or all of
// a service that publishes those that are not. An endpoint that has to be reached by a tunnel is there with the identity that it must
// prove, but not beside host names: Envoy has no cluster for both. Each says where it is; which are near each replica of a waypoint
// works out by itself, by what Clusters say of it.
func LoadAssignment(m translate.Mesh, h *Host, port cluster.ServicePort, workloads []*workload.Workload) *endpointv3.ClusterLoadAssignment {
	type at struct {
		host string
		addr netip.AddrPort
	}
	groups := map[cluster.Locality][]endpoint{}
	seen := map[at]bool{}
	names := named(h, workloads)
	byNode := slices.Contains(h.Balancing.GetRoutingPreference(), workload.LoadBalancing_NODE)
	workloads = slices.Clone(workloads)
	slices.SortFunc(workloads, func(a, b *workload.Workload) int { return strings.Compare(a.Uid, b.Uid) })
	for _, w := range workloads {
		e, ok := endpointOf(m, h, port, w)
		if !ok || seen[at{e.host, e.addr}] || names && e.identity != "" {
			continue
		}
		if byNode {
			e.node = w.Node
		}
		seen[at{e.host, e.addr}] = true
		l := w.GetLocality()
		g := cluster.Locality{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubzone()}
		groups[g] = append(groups[g], e)
	}
	keys := make([]cluster.Locality, 0, len(groups))
	for g := range groups {
		keys = append(keys, g)
	}
	slices.SortFunc(keys, func(a, b cluster.Locality) int {
		return cmp.Or(strings.Compare(a.Region, b.Region), strings.Compare(a.Zone, b.Zone), strings.Compare(a.Subzone, b.Subzone))
	})
	out := &endpointv3.ClusterLoadAssignment{ClusterName: ClusterName(h, port.Port)}
	for _, g := range keys {
		l := &endpointv3.LocalityLbEndpoints{}
		if g != (cluster.Locality{}) {
			l.Locality = &corev3.Locality{Region: g.Region, Zone: g.Zone, SubZone: g.Subzone}
		}
		weight := uint32(0)
		for _, e := range groups[g] {
			weight += e.weight
			l.LbEndpoints = append(l.LbEndpoints, e.translate())
		}
		l.LoadBalancingWeight = wrapperspb.UInt32(weight)
		out.Endpoints = append(out.Endpoints, l)
	}
	return out
}

// endpoint is one of a cluster's.
type endpoint struct {
	// addr has no more than a port if the endpoint is the host name host.
	addr   netip.AddrPort
	host   string
	weight uint32
	// identity is whom the endpoint must be proven to be, "" for one that is reached without a tunnel.
	identity string
	// node is where it runs, if that matters to the service.
	node string
	// labels are what metrics group by, as Istio writes it.
	labels string
}

// endpointOf is what a workload is to a port of a host; false if it is not to get requests there.
func endpointOf(m translate.Mesh, h *Host, port cluster.ServicePort, w *workload.Workload) (endpoint, bool) {
	if w.Status != workload.WorkloadStatus_HEALTHY && h.Balancing.GetHealthPolicy() != workload.LoadBalancing_ALLOW_ALL {
		return endpoint{}, false
	}
	if w.Network != m.Network {
		return endpoint{}, false // nor through its gateway: waypoints do not go through one
	}
	target := uint32(0)
	for _, p := range w.Services[h.key()].GetPorts() {
		if p.ServicePort == uint32(port.Port) {
			target = p.TargetPort
		}
	}
	if target == 0 || target > 65535 {
		return endpoint{}, false
	}
	e := endpoint{weight: 1}
	if h.Resolution == cluster.ResolutionDNS && len(w.Addresses) == 0 && w.Hostname != "" {
		e.host, e.addr = w.Hostname, netip.AddrPortFrom(netip.Addr{}, uint16(target))
	} else {
		addr, ok := addressOf(w, h.Families)
		if !ok || special(addr) {
			return endpoint{}, false
		}
		e.addr = netip.AddrPortFrom(addr, uint16(target))
	}
	if w.Capacity != nil {
		if e.weight = w.Capacity.GetValue(); e.weight == 0 {
			return endpoint{}, false
		}
	}
	e.labels = strings.Join([]string{w.WorkloadName, w.Namespace, w.CanonicalName, w.CanonicalRevision, cmp.Or(w.ClusterId, api.DefaultClusterID)}, ";")
	switch w.TunnelProtocol {
	case workload.TunnelProtocol_NONE:
	case workload.TunnelProtocol_HBONE:
		if w.Namespace == "" || e.host != "" {
			return endpoint{}, false // it would have no identity, or its proxy no address
		}
		e.identity = "spiffe://" + cmp.Or(w.TrustDomain, api.DefaultTrustDomain) + "/ns/" + w.Namespace + "/sa/" + cmp.Or(w.ServiceAccount, "default")
	default:
		return endpoint{}, false // never in plain
	}
	return e, true
}

// addressOf is the workload's first address of a family that the service has.
func addressOf(w *workload.Workload, families workload.IPFamilies) (netip.Addr, bool) {
	for _, raw := range w.Addresses {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok || families == workload.IPFamilies_IPV4_ONLY && !addr.Is4() || families == workload.IPFamilies_IPV6_ONLY && addr.Is4() {
			continue
		}
		return addr, true
	}
	return netip.Addr{}, false
}

// special reports whether an address means somebody else to each who connects to it. To a waypoint it would mean the waypoint itself,
// with its admin port, or its node: nothing that who writes a ServiceEntry may let others reach. Kubernetes refuses the same ones as
// endpoints.
func special(addr netip.Addr) bool {
	addr = addr.Unmap()
	return addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast()
}

// translate makes an endpoint of a cluster.
func (e endpoint) translate() *endpointv3.LbEndpoint {
	metadata := map[string]*structpb.Struct{metadataIstio: fields("workload", e.labels)}
	address := socketAddress(e.host, e.addr)
	if e.identity != "" {
		address = internalAddress(ListenerOriginate, e.addr.String())
		metadata[metadataDst] = fields("local", e.addr.String())
		metadata[metadataSocket] = fields(metadataTunnel, tunnelOverHTTP2)
		metadata[metadataPeer] = fields("identity", e.identity)
	}
	if e.node != "" {
		metadata[metadataNear] = fields("node", e.node)
	}
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
		HealthStatus:        corev3.HealthStatus_HEALTHY,
		Metadata:            &corev3.Metadata{FilterMetadata: metadata},
		LoadBalancingWeight: wrapperspb.UInt32(e.weight),
	}
}

// socketAddress is an address, or a host name with the port of one.
func socketAddress(host string, a netip.AddrPort) *corev3.Address {
	if host == "" {
		host = a.Addr().String()
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())}}}}
}

// internalAddress leads to an internal listener; id tells endpoints that lead there apart.
func internalAddress(listener, id string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
		AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: listener}, EndpointId: id}}}
}
