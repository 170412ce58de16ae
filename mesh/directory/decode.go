package directory

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/extension"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// defaultServiceAccount is Kubernetes' for pods that name none.
const defaultServiceAccount = "default"

// decoder makes values of protobufs. Strings that many values share (namespaces, nodes, ...) are kept once. It is not
// safe for concurrent use.
type decoder struct {
	strings map[string]string
}

// maxInterned bounds what a decoder remembers; beyond it, it begins anew, and only later values share less.
const maxInterned = 1 << 16

func (d *decoder) intern(s string) string {
	if s == "" {
		return ""
	}
	if shared, ok := d.strings[s]; ok {
		return shared
	}
	if d.strings == nil || len(d.strings) >= maxInterned {
		d.strings = map[string]string{}
	}
	d.strings[s] = s
	return s
}

// workload makes a Workload, or says why the resource must be rejected.
func (d *decoder) workload(w *workloadpb.Workload) (*Workload, error) {
	if w.GetUid() == "" {
		return nil, errors.New("no uid")
	}
	out := &Workload{
		UID:       w.GetUid(),
		Name:      w.GetName(),
		Namespace: d.intern(w.GetNamespace()),
		Identity: identity.Identity{
			TrustDomain:    d.intern(cmp.Or(w.GetTrustDomain(), api.DefaultTrustDomain)),
			Namespace:      d.intern(w.GetNamespace()),
			ServiceAccount: d.intern(cmp.Or(w.GetServiceAccount(), defaultServiceAccount)),
		},
		Network:      d.intern(w.GetNetwork()),
		Hostname:     w.GetHostname(),
		NativeTunnel: w.GetNativeTunnel(),
		Node:         d.intern(w.GetNode()),
		ClusterID:    d.intern(cmp.Or(w.GetClusterId(), api.DefaultClusterID)),
		Locality: Locality{
			Region:  d.intern(w.GetLocality().GetRegion()),
			Zone:    d.intern(w.GetLocality().GetZone()),
			Subzone: d.intern(w.GetLocality().GetSubzone()),
		},
		CanonicalName:     d.intern(w.GetCanonicalName()),
		CanonicalRevision: d.intern(w.GetCanonicalRevision()),
		WorkloadName:      d.intern(w.GetWorkloadName()),
		Kind:              workloadKind(w.GetWorkloadType()),
		Capacity:          1,
	}
	if strings.HasSuffix(out.UID, "/"+out.Name) {
		out.Name = out.UID[len(out.UID)-len(out.Name):] // the same bytes
	}
	if w.GetCapacity() != nil {
		out.Capacity = w.GetCapacity().GetValue()
	}
	for _, p := range w.GetAuthorizationPolicies() {
		out.Policies = append(out.Policies, d.intern(p))
	}
	if err := d.workloadModes(w, out); err != nil {
		return nil, err
	}
	return out, d.workloadAddresses(w, out)
}

func workloadKind(t workloadpb.WorkloadType) Kind {
	switch t {
	case workloadpb.WorkloadType_CRONJOB:
		return KindCronJob
	case workloadpb.WorkloadType_POD:
		return KindPod
	case workloadpb.WorkloadType_JOB:
		return KindJob
	}
	return KindDeployment // it is for telemetry only, so an unknown one does no harm
}

// workloadModes takes over what decides how the workload is spoken to; a value that is not known is no reason to guess.
func (d *decoder) workloadModes(w *workloadpb.Workload, out *Workload) error {
	switch w.GetTunnelProtocol() {
	case workloadpb.TunnelProtocol_NONE:
	case workloadpb.TunnelProtocol_HBONE:
		out.Tunnel = TunnelHBONE
		if err := out.Identity.Validate(); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	case workloadpb.TunnelProtocol_LEGACY_ISTIO_MTLS:
		return errors.New("tunnel protocol LEGACY_ISTIO_MTLS is not supported: the workload has a sidecar, or its endpoint settings ask for it")
	default:
		return fmt.Errorf("tunnel protocol %d is not known", w.GetTunnelProtocol())
	}
	switch w.GetStatus() {
	case workloadpb.WorkloadStatus_HEALTHY:
		out.Healthy = true
	case workloadpb.WorkloadStatus_UNHEALTHY:
	default:
		return fmt.Errorf("status %d is not known", w.GetStatus())
	}
	switch w.GetNetworkMode() {
	case workloadpb.NetworkMode_STANDARD:
	case workloadpb.NetworkMode_HOST_NETWORK:
		out.HostNetwork = true
	default:
		return fmt.Errorf("network mode %d is not known", w.GetNetworkMode())
	}
	if t := w.GetApplicationTunnel(); t != nil {
		port, err := port16(t.GetPort())
		if err != nil {
			return fmt.Errorf("application tunnel: %w", err)
		}
		switch t.GetProtocol() {
		case workloadpb.ApplicationTunnel_NONE:
			out.AppTunnel = &AppTunnel{Port: port}
		case workloadpb.ApplicationTunnel_PROXY:
			out.AppTunnel = &AppTunnel{Proxy: true, Port: port}
		default:
			return fmt.Errorf("application tunnel protocol %d is not known", t.GetProtocol())
		}
	}
	return nil
}

func (d *decoder) workloadAddresses(w *workloadpb.Workload, out *Workload) error {
	for _, b := range w.GetAddresses() {
		addr, err := address(b)
		if err != nil {
			return err
		}
		out.Addrs = append(out.Addrs, addr)
	}
	var err error
	if out.Waypoint, err = d.gateway(w.GetWaypoint()); err != nil {
		return fmt.Errorf("waypoint: %w", err)
	}
	if out.NetworkGateway, err = d.gateway(w.GetNetworkGateway()); err != nil {
		return fmt.Errorf("network gateway: %w", err)
	}
	for name, list := range w.GetServices() {
		ns, host, ok := strings.Cut(name, "/")
		if !ok || host == "" || strings.Contains(host, "/") {
			return fmt.Errorf("service %q: want namespace/hostname", name)
		}
		ports, err := portMappings(list.GetPorts())
		if err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
		out.Services = append(out.Services, Membership{ServiceKey{d.intern(ns), d.intern(host)}, ports})
	}
	slices.SortFunc(out.Services, func(a, b Membership) int { return compareKeys(a.Service, b.Service) })
	return nil
}

func compareKeys(a, b ServiceKey) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Hostname, b.Hostname))
}

// service makes a Service, or says why the resource must be rejected. skipped names subject alternative names that are
// not identities, as a ServiceEntry may have them; leaving them out only accepts fewer peers.
func (d *decoder) service(s *workloadpb.Service) (out *Service, skipped []string, err error) {
	if s.GetHostname() == "" {
		return nil, nil, errors.New("no hostname")
	}
	out = &Service{
		ServiceKey:    ServiceKey{d.intern(s.GetNamespace()), d.intern(s.GetHostname())},
		Name:          d.intern(s.GetName()),
		Canonical:     s.GetCanonical(),
		NamespaceOnly: s.GetVisibility() != workloadpb.Service_PUBLIC,
	}
	for _, a := range s.GetAddresses() {
		if err := d.serviceAddress(a, out); err != nil {
			return nil, nil, err
		}
	}
	if out.Ports, err = portMappings(s.GetPorts()); err != nil {
		return nil, nil, err
	}
	for _, san := range s.GetSubjectAltNames() {
		id, err := identity.Parse(san)
		if err != nil {
			skipped = append(skipped, san)
			continue
		}
		out.SANs = append(out.SANs, id)
	}
	if out.Waypoint, err = d.gateway(s.GetWaypoint()); err != nil {
		return nil, nil, fmt.Errorf("waypoint: %w", err)
	}
	for i, w := range s.GetWeightedWaypoints() {
		gw, err := d.gateway(w.GetDestination())
		if err == nil && gw == nil {
			err = errors.New("no destination")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("weighted waypoint %d: %w", i, err)
		}
		out.WeightedWaypoints = append(out.WeightedWaypoints, WeightedGateway{*gw, w.GetWeight()})
	}
	if out.Balancing, err = balancing(s.GetLoadBalancing()); err != nil {
		return nil, nil, fmt.Errorf("load balancing: %w", err)
	}
	if err := d.options(s.GetExtensions(), out); err != nil {
		return nil, nil, err
	}
	switch s.GetIpFamilies() {
	case workloadpb.IPFamilies_AUTOMATIC, workloadpb.IPFamilies_DUAL:
	case workloadpb.IPFamilies_IPV4_ONLY:
		out.Families = FamiliesIPv4
	case workloadpb.IPFamilies_IPV6_ONLY:
		out.Families = FamiliesIPv6
	default:
		return nil, nil, fmt.Errorf("IP families %d are not known", s.GetIpFamilies())
	}
	return out, skipped, nil
}

func (d *decoder) serviceAddress(a *workloadpb.NetworkAddress, out *Service) error {
	addr, err := address(a.GetAddress())
	if err != nil {
		return err
	}
	network := d.intern(a.GetNetwork())
	if a.GetLength() == nil {
		out.Addrs = append(out.Addrs, NetworkAddr{network, addr})
		return nil
	}
	bits := a.GetLength().GetValue()
	if len(a.GetAddress()) == 16 && addr.Is4() {
		bits -= 96 // a prefix of mapped addresses; below 96 it wraps round and is refused
	}
	if bits > uint32(addr.BitLen()) {
		return fmt.Errorf("address %s: prefix of %d bits", addr, a.GetLength().GetValue())
	}
	if int(bits) == addr.BitLen() {
		out.Addrs = append(out.Addrs, NetworkAddr{network, addr})
		return nil
	}
	out.CIDRs = append(out.CIDRs, NetworkPrefix{network, netip.PrefixFrom(addr, int(bits)).Masked()})
	return nil
}

func balancing(lb *workloadpb.LoadBalancing) (Balancing, error) {
	b := Balancing{AllowUnhealthy: lb.GetHealthPolicy() == workloadpb.LoadBalancing_ALLOW_ALL}
	switch lb.GetMode() {
	case workloadpb.LoadBalancing_UNSPECIFIED_MODE:
		b.Mode = ModeStandard
	case workloadpb.LoadBalancing_STRICT:
		b.Mode = ModeStrict
	case workloadpb.LoadBalancing_FAILOVER:
		b.Mode = ModeFailover
	case workloadpb.LoadBalancing_PASSTHROUGH:
		b.Mode = ModePassthrough
	default:
		return Balancing{}, fmt.Errorf("mode %d is not known", lb.GetMode())
	}
	for _, s := range lb.GetRoutingPreference() {
		scope := Scope(s)
		if s < workloadpb.LoadBalancing_REGION || s > workloadpb.LoadBalancing_NETWORK {
			return Balancing{}, fmt.Errorf("scope %d is not known", s)
		}
		if slices.Contains(b.Preference, scope) {
			return Balancing{}, fmt.Errorf("scope %s is there twice", s)
		}
		b.Preference = append(b.Preference, scope)
	}
	return b, nil
}

// defaultAffinity is Kubernetes' default time of session affinity.
const defaultAffinity = 3 * time.Hour

// options reads the service options that ambit's control plane sends. Other extensions are for others.
func (d *decoder) options(extensions []*workloadpb.Extension, out *Service) error {
	for _, e := range extensions {
		if e.GetName() != extension.ServiceOptionsName {
			continue
		}
		var options extension.ServiceOptions
		if err := e.GetConfig().UnmarshalTo(&options); err != nil {
			return fmt.Errorf("extension %s: %w", e.GetName(), err)
		}
		if affinity := options.GetClientIpAffinity(); affinity != nil {
			out.Affinity = cmp.Or(time.Duration(affinity.GetTimeoutSeconds())*time.Second, defaultAffinity)
		}
		for number, name := range options.GetPortNames() {
			port, err := port16(number)
			if err != nil {
				return fmt.Errorf("extension %s: name %q: %w", e.GetName(), name, err)
			}
			out.PortNames = append(out.PortNames, PortName{port, d.intern(strings.ToLower(name))})
		}
	}
	slices.SortFunc(out.PortNames, func(a, b PortName) int { return cmp.Compare(a.Port, b.Port) })
	return nil
}

func (d *decoder) gateway(g *workloadpb.GatewayAddress) (*GatewayAddr, error) {
	if g == nil {
		return nil, nil
	}
	port, err := port16(g.GetHboneMtlsPort())
	if err != nil {
		return nil, err
	}
	out := &GatewayAddr{Port: cmp.Or(port, api.PortHBONE)}
	switch dst := g.GetDestination().(type) {
	case *workloadpb.GatewayAddress_Hostname:
		out.Service = ServiceKey{d.intern(dst.Hostname.GetNamespace()), d.intern(dst.Hostname.GetHostname())}
		if out.Service.Hostname == "" {
			return nil, errors.New("no hostname")
		}
	case *workloadpb.GatewayAddress_Address:
		addr, err := address(dst.Address.GetAddress())
		if err != nil {
			return nil, err
		}
		out.Addr = NetworkAddr{d.intern(dst.Address.GetNetwork()), addr}
	default:
		return nil, errors.New("neither hostname nor address")
	}
	return out, nil
}

// portMappings are sorted by service port; of two with the same one the first counts.
func portMappings(ports []*workloadpb.Port) ([]PortMapping, error) {
	if len(ports) == 0 {
		return nil, nil
	}
	out := make([]PortMapping, 0, len(ports))
	for _, p := range ports {
		service, err := port16(p.GetServicePort())
		if err != nil {
			return nil, err
		}
		if service == 0 {
			return nil, errors.New("service port 0")
		}
		target, err := port16(p.GetTargetPort())
		if err != nil {
			return nil, err
		}
		app := AppUnknown
		if p.GetAppProtocol() >= 0 && p.GetAppProtocol() <= workloadpb.AppProtocol_TLS {
			app = AppProtocol(p.GetAppProtocol())
		}
		out = append(out, PortMapping{Service: service, Target: target, App: app})
	}
	slices.SortStableFunc(out, func(a, b PortMapping) int { return cmp.Compare(a.Service, b.Service) })
	return slices.CompactFunc(out, func(a, b PortMapping) bool { return a.Service == b.Service }), nil
}

func port16(p uint32) (uint16, error) {
	if p > 65535 {
		return 0, fmt.Errorf("port %d is above 65535", p)
	}
	return uint16(p), nil
}

func address(b []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes; want 4 or 16", len(b))
	}
	return addr.Unmap(), nil
}

// findPort returns the mapping of a service port in a sorted list.
func findPort(ports []PortMapping, service uint16) (PortMapping, bool) {
	for _, p := range ports {
		if p.Service == service {
			return p, true
		}
	}
	return PortMapping{}, false
}

// membership returns w's entry for a service, or nil.
func (w *Workload) membership(key ServiceKey) *Membership {
	for i := range w.Services {
		if w.Services[i].Service == key {
			return &w.Services[i]
		}
	}
	return nil
}

// isPod tells by the uid, <cluster>/<group>/<kind>/<namespace>/<name>.
func (w *Workload) isPod() bool {
	_, rest, _ := strings.Cut(w.UID, "/")
	group, rest, _ := strings.Cut(rest, "/")
	kind, _, _ := strings.Cut(rest, "/")
	return group == "" && kind == "Pod"
}
