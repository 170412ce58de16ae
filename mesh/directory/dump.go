package directory

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/ambit-mesh/ambit/mesh/policy"
)

// DumpWorkload is a Workload, as a config_dump shows it: in the names and values that istioctl reads.
type DumpWorkload struct {
	UID                   string       `json:"uid"`
	WorkloadIPs           []string     `json:"workloadIps"`
	Waypoint              *DumpGateway `json:"waypoint,omitempty"`
	NetworkGateway        *DumpGateway `json:"networkGateway,omitempty"`
	Protocol              string       `json:"protocol"`
	Name                  string       `json:"name"`
	Namespace             string       `json:"namespace"`
	TrustDomain           string       `json:"trustDomain"`
	ServiceAccount        string       `json:"serviceAccount"`
	WorkloadName          string       `json:"workloadName"`
	WorkloadType          string       `json:"workloadType"`
	CanonicalName         string       `json:"canonicalName"`
	CanonicalRevision     string       `json:"canonicalRevision"`
	Network               string       `json:"network,omitempty"`
	NetworkMode           string       `json:"networkMode"`
	Node                  string       `json:"node"`
	NativeTunnel          bool         `json:"nativeTunnel,omitempty"`
	Hostname              string       `json:"hostname,omitempty"`
	Status                string       `json:"status"`
	ClusterID             string       `json:"clusterId"`
	Locality              DumpLocality `json:"locality"`
	ApplicationTunnel     *DumpTunnel  `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string     `json:"authorizationPolicies,omitempty"`
	Services              []string     `json:"services,omitempty"`
	Capacity              uint32       `json:"capacity"`
}

// DumpLocality is a Locality; DumpTunnel an AppTunnel.
type (
	DumpLocality struct {
		Region  string `json:"region,omitempty"`
		Zone    string `json:"zone,omitempty"`
		Subzone string `json:"subzone,omitempty"`
	}
	DumpTunnel struct {
		Protocol string `json:"protocol"`
		Port     uint16 `json:"port,omitempty"`
	}
)

// DumpGateway is a GatewayAddr: namespace/hostname or network/address.
type DumpGateway struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
	Weight        uint32 `json:"weight,omitempty"`
}

// DumpService is a Service with its endpoints.
type DumpService struct {
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	Hostname          string                  `json:"hostname"`
	VIPs              []string                `json:"vips"`
	Ports             map[uint16]uint16       `json:"ports"`
	AppProtocols      map[uint16]string       `json:"appProtocols,omitempty"`
	Endpoints         map[string]DumpEndpoint `json:"endpoints"`
	SubjectAltNames   []string                `json:"subjectAltNames,omitempty"`
	Waypoint          *DumpGateway            `json:"waypoint,omitempty"`
	WeightedWaypoints []DumpGateway           `json:"weightedWaypoints,omitempty"`
	LoadBalancer      *DumpBalancing          `json:"loadBalancer,omitempty"`
	IPFamilies        string                  `json:"ipFamilies,omitempty"`
	Canonical         bool                    `json:"canonical,omitempty"`
	Visibility        string                  `json:"visibility,omitempty"`
	// SessionAffinity is the time of affinity by the client's address, e.g. "3h0m0s"; istioctl does not know it, nor PortNames.
	SessionAffinity string            `json:"sessionAffinity,omitempty"`
	PortNames       map[uint16]string `json:"portNames,omitempty"`
}

// DumpEndpoint is one endpoint of a service.
type DumpEndpoint struct {
	WorkloadUID string            `json:"workloadUid"`
	Service     string            `json:"service"`
	Port        map[uint16]uint16 `json:"port"`
	Status      string            `json:"status"`
	// Ejected and Connections are this proxy's own view; istioctl does not know them.
	Ejected     bool `json:"ejected,omitempty"`
	Connections int  `json:"connections,omitempty"`
}

// DumpBalancing is a Balancing.
type DumpBalancing struct {
	Mode               string   `json:"mode"`
	RoutingPreferences []string `json:"routingPreferences"`
	HealthPolicy       string   `json:"healthPolicy"`
}

// Words of a config_dump, by value.
var (
	tunnelWords   = [...]string{TunnelNone: "TCP", TunnelHBONE: "HBONE"}
	kindWords     = [...]string{KindDeployment: "deployment", KindCronJob: "cronjob", KindPod: "pod", KindJob: "job"}
	modeWords     = [...]string{ModeStandard: "Standard", ModeStrict: "Strict", ModeFailover: "Failover", ModePassthrough: "Passthrough"}
	scopeWords    = [...]string{ScopeRegion: "Region", ScopeZone: "Zone", ScopeSubzone: "Subzone", ScopeNode: "Node", ScopeCluster: "Cluster", ScopeNetwork: "Network"}
	familyWords   = [...]string{FamiliesAny: "", FamiliesIPv4: "IPv4", FamiliesIPv6: "IPv6"}
	protocolWords = [...]string{AppUnknown: "", AppHTTP11: "HTTP11", AppHTTP2: "HTTP2", AppGRPC: "GRPC", AppTCP: "TCP", AppTLS: "TLS"}
)

// String is as in a config_dump: TCP or HBONE.
func (t Tunnel) String() string { return tunnelWords[t] }

// String is as in a config_dump: deployment, cronjob, pod or job.
func (k Kind) String() string { return kindWords[k] }

// DumpWorkloads shows the workloads, sorted by uid. Like DumpServices and DumpPolicies it takes note of what there is when
// the iteration begins, and makes each element when its turn comes: it neither stops updates nor holds a copy of them all.
func (d *Directory) DumpWorkloads() iter.Seq[DumpWorkload] {
	return func(yield func(DumpWorkload) bool) {
		var all []*Workload
		for _, w := range d.workloads.All() {
			all = append(all, w)
		}
		slices.SortFunc(all, func(a, b *Workload) int { return cmp.Compare(a.UID, b.UID) })
		for _, w := range all {
			if !yield(w.dump()) {
				return
			}
		}
	}
}

// DumpServices shows the services with their endpoints, sorted by namespace and host name.
func (d *Directory) DumpServices() iter.Seq[DumpService] {
	return func(yield func(DumpService) bool) {
		var all []*Service
		for _, s := range d.services.All() {
			all = append(all, s)
		}
		slices.SortFunc(all, func(a, b *Service) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Hostname, b.Hostname))
		})
		for _, s := range all {
			if !yield(d.dumpService(s)) {
				return
			}
		}
	}
}

func (d *Directory) dumpService(s *Service) DumpService {
	out := s.dump()
	set, ok := d.endpoints.Load(s.ServiceKey)
	if !ok {
		return out
	}
	set.readmit(d.now)
	for w := range d.Endpoints(s.ServiceKey) {
		e := DumpEndpoint{
			WorkloadUID: w.UID, Service: s.String(), Port: map[uint16]uint16{}, Status: statusWord(w),
			Ejected: set.isEjected(w.UID), Connections: w.Held(),
		}
		if m := w.membership(s.ServiceKey); m != nil {
			for _, p := range m.Ports {
				e.Port[p.Service] = p.Target
			}
		}
		out.Endpoints[w.UID] = e
	}
	return out
}

// DumpPolicies shows the policies, sorted by namespace and name.
func (d *Directory) DumpPolicies() iter.Seq[policy.Dump] {
	return func(yield func(policy.Dump) bool) {
		var all []*policy.Policy
		for _, p := range d.policies.byName.All() {
			all = append(all, p)
		}
		slices.SortFunc(all, func(a, b *policy.Policy) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
		for _, p := range all {
			if !yield(p.Dump()) {
				return
			}
		}
	}
}

func statusWord(w *Workload) string {
	if w.Healthy {
		return "Healthy"
	}
	return "Unhealthy"
}

func (w *Workload) dump() DumpWorkload {
	out := DumpWorkload{
		UID:                   w.UID,
		WorkloadIPs:           []string{},
		Waypoint:              w.Waypoint.dump(),
		NetworkGateway:        w.NetworkGateway.dump(),
		Protocol:              w.Tunnel.String(),
		Name:                  w.Name,
		Namespace:             w.Namespace,
		TrustDomain:           w.Identity.TrustDomain,
		ServiceAccount:        w.Identity.ServiceAccount,
		WorkloadName:          w.WorkloadName,
		WorkloadType:          w.Kind.String(),
		CanonicalName:         w.CanonicalName,
		CanonicalRevision:     w.CanonicalRevision,
		Network:               w.Network,
		NetworkMode:           "Standard",
		Node:                  w.Node,
		NativeTunnel:          w.NativeTunnel,
		Hostname:              w.Hostname,
		Status:                statusWord(w),
		ClusterID:             w.ClusterID,
		Locality:              DumpLocality(w.Locality),
		AuthorizationPolicies: w.Policies,
		Capacity:              w.Capacity,
	}
	for _, a := range w.Addrs {
		out.WorkloadIPs = append(out.WorkloadIPs, a.String())
	}
	if w.HostNetwork {
		out.NetworkMode = "HostNetwork"
	}
	if t := w.AppTunnel; t != nil {
		out.ApplicationTunnel = &DumpTunnel{Protocol: "NONE", Port: t.Port}
		if t.Proxy {
			out.ApplicationTunnel.Protocol = "PROXY"
		}
	}
	for i := range w.Services {
		out.Services = append(out.Services, w.Services[i].Service.String())
	}
	return out
}

func (s *Service) dump() DumpService {
	out := DumpService{
		Name:       s.Name,
		Namespace:  s.Namespace,
		Hostname:   s.Hostname,
		VIPs:       []string{},
		Ports:      map[uint16]uint16{},
		Endpoints:  map[string]DumpEndpoint{},
		Waypoint:   s.Waypoint.dump(),
		IPFamilies: familyWords[s.Families],
		Canonical:  s.Canonical,
	}
	for _, a := range s.Addrs {
		out.VIPs = append(out.VIPs, a.String())
	}
	for _, p := range s.CIDRs {
		out.VIPs = append(out.VIPs, p.Network+"/"+p.Prefix.String())
	}
	for _, p := range s.Ports {
		out.Ports[p.Service] = p.Target
		if p.App != AppUnknown {
			if out.AppProtocols == nil {
				out.AppProtocols = map[uint16]string{}
			}
			out.AppProtocols[p.Service] = protocolWords[p.App]
		}
	}
	for _, p := range s.PortNames {
		if out.PortNames == nil {
			out.PortNames = map[uint16]string{}
		}
		out.PortNames[p.Port] = p.Name
	}
	for _, id := range s.SANs {
		out.SubjectAltNames = append(out.SubjectAltNames, id.String())
	}
	for i := range s.WeightedWaypoints {
		g := s.WeightedWaypoints[i].dump()
		g.Weight = s.WeightedWaypoints[i].Weight
		out.WeightedWaypoints = append(out.WeightedWaypoints, *g)
	}
	if s.NamespaceOnly {
		out.Visibility = "Namespace"
	}
	if s.Affinity > 0 {
		out.SessionAffinity = s.Affinity.String()
	}
	out.LoadBalancer = s.Balancing.dump()
	return out
}

func (b *Balancing) dump() *DumpBalancing {
	if b.Mode == ModeStandard && !b.AllowUnhealthy {
		return nil
	}
	out := &DumpBalancing{Mode: modeWords[b.Mode], RoutingPreferences: []string{}, HealthPolicy: "OnlyHealthy"}
	if b.AllowUnhealthy {
		out.HealthPolicy = "AllowAll"
	}
	for _, s := range b.Preference {
		out.RoutingPreferences = append(out.RoutingPreferences, scopeWords[s])
	}
	return out
}

func (g *GatewayAddr) dump() *DumpGateway {
	if g == nil {
		return nil
	}
	return &DumpGateway{Destination: g.String(), HBONEMTLSPort: g.Port}
}

// String is namespace/hostname or network/address.
func (g *GatewayAddr) String() string {
	if g.Service.Hostname != "" {
		return g.Service.String()
	}
	return g.Addr.String()
}

// String is network/address, the form in which the wire names it.
func (a NetworkAddr) String() string { return a.Network + "/" + a.Addr.String() }

// String names the service as its key does.
func (s *Service) String() string { return s.ServiceKey.String() }

// String names the workload for logs: namespace/name, and its uid if it is no pod.
func (w *Workload) String() string {
	if w.isPod() {
		return w.Namespace + "/" + w.Name
	}
	return fmt.Sprintf("%s/%s (%s)", w.Namespace, w.Name, w.UID)
}
