package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/api"
)

// Service is a Kubernetes service. Only its TCP ports are known here.
type Service struct {
	Key
	Created time.Time
	// External services (type ExternalName) are names for something else; the mesh leaves them to DNS.
	External bool
	// ClusterIPs are the virtual addresses; none for a headless service.
	ClusterIPs []netip.Addr
	// LoadBalancerIPs are addresses of a load balancer for which every node forwards itself (ipMode VIP).
	LoadBalancerIPs []netip.Addr
	Ports           []ServicePort
	Selector        Labels
	// PublishNotReady services send to endpoints that are not ready, too.
	PublishNotReady bool
	// InternalLocal services (internalTrafficPolicy Local) send to endpoints of the client's own node only.
	InternalLocal bool
	// Affinity is how long a client's connections go to the same endpoint (sessionAffinity ClientIP); zero if they do not.
	Affinity time.Duration
	// Distribution is spec.trafficDistribution; DistributionAnnotation is api.AnnotationTrafficDistribution.
	Distribution, DistributionAnnotation string
	// IPv4 and IPv6 are the families of the service; neither if the API server has not said.
	IPv4, IPv6 bool
	// Waypoint is what the service's labels say of its waypoint.
	Waypoint WaypointUse
	// Required is api.AnnotationWaypointRequired.
	Required string
	// Gateway is the Gateway that the service was made for; "" for others. Such a service has no waypoint itself.
	Gateway string
	// Bound is the condition api.ConditionWaypointBound as the object has it.
	Bound Condition
	// Generation is that of the object; 0 where the API server counts none for services.
	Generation int64
	Faults     []string
}

// ServicePort is one TCP port of a service. If TargetName is not empty, the target is each pod's port of that name.
type ServicePort struct {
	Name        string
	Port        uint16
	Target      uint16
	TargetName  string
	AppProtocol string
}

// ObjectKind is KindService.
func (*Service) ObjectKind() Kind { return KindService }

// ObjectKey is namespace and name.
func (s *Service) ObjectKey() Key { return s.Key }

// Equal reports whether both are the same in every field.
func (s *Service) Equal(o *Service) bool {
	return s.Key == o.Key && s.Created.Equal(o.Created) && s.External == o.External &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) && slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) &&
		slices.Equal(s.Ports, o.Ports) && s.Selector.Equal(o.Selector) && s.PublishNotReady == o.PublishNotReady &&
		s.InternalLocal == o.InternalLocal && s.Affinity == o.Affinity && s.Distribution == o.Distribution &&
		s.DistributionAnnotation == o.DistributionAnnotation && s.Waypoint == o.Waypoint && s.Required == o.Required && s.Gateway == o.Gateway && s.Bound == o.Bound && s.Generation == o.Generation && s.IPv4 == o.IPv4 && s.IPv6 == o.IPv6 &&
		slices.Equal(s.Faults, o.Faults)
}

// ServiceOf reduces a Kubernetes service.
func ServiceOf(in *corev1.Service) *Service {
	s := &Service{
		Key:                    Key{in.Namespace, in.Name},
		Created:                in.CreationTimestamp.Time,
		External:               in.Spec.Type == corev1.ServiceTypeExternalName,
		Selector:               LabelsOf(in.Spec.Selector),
		PublishNotReady:        in.Spec.PublishNotReadyAddresses,
		InternalLocal:          in.Spec.InternalTrafficPolicy != nil && *in.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		DistributionAnnotation: in.Annotations[api.AnnotationTrafficDistribution],
		Waypoint:               waypointUseOf(in.Labels, in.Annotations),
		Required:               in.Annotations[api.AnnotationWaypointRequired],
		Generation:             in.Generation,
	}
	if in.Labels[api.LabelGatewayManaged] != "" {
		s.Gateway = in.Labels[api.LabelGatewayName]
	}
	for _, c := range in.Status.Conditions {
		if c.Type == api.ConditionWaypointBound {
			s.Bound = Condition{c.Type, string(c.Status), c.Reason, c.Message, c.ObservedGeneration}
		}
	}
	if in.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.setAffinity(in.Spec.SessionAffinityConfig)
	}
	if in.Spec.TrafficDistribution != nil {
		s.Distribution = *in.Spec.TrafficDistribution
	}
	ips := in.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{in.Spec.ClusterIP}
	}
	for _, ip := range ips {
		if ip != "" && ip != corev1.ClusterIPNone {
			s.addAddr(&s.ClusterIPs, "cluster IP", ip)
		}
	}
	for _, ing := range in.Status.LoadBalancer.Ingress {
		if ing.IP != "" && (ing.IPMode == nil || *ing.IPMode == corev1.LoadBalancerIPModeVIP) {
			s.addAddr(&s.LoadBalancerIPs, "load balancer IP", ing.IP)
		}
	}
	for _, family := range in.Spec.IPFamilies {
		s.IPv4 = s.IPv4 || family == corev1.IPv4Protocol
		s.IPv6 = s.IPv6 || family == corev1.IPv6Protocol
	}
	for _, p := range in.Spec.Ports {
		if isTCP(p.Protocol) {
			s.addPort(p)
		}
	}
	return s
}

func (s *Service) addAddr(to *[]netip.Addr, what, ip string) {
	addr, fault := parseAddr(what, ip)
	if fault != "" {
		s.Faults = append(s.Faults, fault)
		return
	}
	if !slices.Contains(*to, addr) {
		*to = append(*to, addr)
	}
}

// setAffinity reads the time, which the API server fills in and keeps within a day.
func (s *Service) setAffinity(c *corev1.SessionAffinityConfig) {
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	if seconds <= 0 || seconds > 24*60*60 {
		s.Faults = append(s.Faults, fmt.Sprintf("session affinity of %d seconds; want 1 to 86400; treated as None", seconds))
		return
	}
	s.Affinity = time.Duration(seconds) * time.Second
}

func (s *Service) addPort(in corev1.ServicePort) {
	p := ServicePort{Name: in.Name}
	if in.AppProtocol != nil {
		p.AppProtocol = *in.AppProtocol
	}
	var fault string
	if p.Port, fault = parsePort("port", in.Port); fault != "" {
		s.Faults = append(s.Faults, fault)
		return
	}
	switch {
	case in.TargetPort.Type == intstr.String && in.TargetPort.StrVal != "":
		p.TargetName = in.TargetPort.StrVal
	case in.TargetPort.IntVal == 0:
		p.Target = p.Port
	default:
		if p.Target, fault = parsePort("target port", in.TargetPort.IntVal); fault != "" {
			s.Faults = append(s.Faults, fault)
			return
		}
	}
	s.Ports = append(s.Ports, p)
}

// EndpointSlice is a slice that Kubernetes' own endpoint slice controller did not make from pods: written by hand, by the
// API server for itself, or mirrored from Endpoints.
type EndpointSlice struct {
	Key
	// Service is the name of the service in the same namespace; empty for a slice of none.
	Service   string
	Ports     []SlicePort
	Endpoints []Endpoint
	Faults    []string
}

// SlicePort is one TCP port of an EndpointSlice; Name is that of a port of the service.
type SlicePort struct {
	Name string
	Port uint16
}

// Endpoint is one address of an EndpointSlice.
type Endpoint struct {
	Addr netip.Addr
	// Pod is the name of the pod, in the same namespace, that has the address; empty if the slice names none.
	Pod   string
	Node  string
	Zone  string
	Ready bool
}

// ObjectKind is KindEndpointSlice.
func (*EndpointSlice) ObjectKind() Kind { return KindEndpointSlice }

// ObjectKey is namespace and name.
func (s *EndpointSlice) ObjectKey() Key { return s.Key }

// ServiceKey names the service that the slice belongs to.
func (s *EndpointSlice) ServiceKey() Key { return Key{s.Namespace, s.Service} }

// Equal reports whether both are the same in every field.
func (s *EndpointSlice) Equal(o *EndpointSlice) bool {
	return s.Key == o.Key && s.Service == o.Service && slices.Equal(s.Ports, o.Ports) &&
		slices.Equal(s.Endpoints, o.Endpoints) && slices.Equal(s.Faults, o.Faults)
}

// EndpointSliceOf reduces a Kubernetes endpoint slice.
func EndpointSliceOf(in *discoveryv1.EndpointSlice) *EndpointSlice {
	s := &EndpointSlice{Key: Key{in.Namespace, in.Name}, Service: in.Labels[discoveryv1.LabelServiceName]}
	if in.AddressType == discoveryv1.AddressTypeFQDN {
		s.Faults = append(s.Faults, "address type FQDN is not supported")
		return s
	}
	for _, p := range in.Ports {
		if p.Port == nil || p.Protocol != nil && !isTCP(*p.Protocol) {
			continue
		}
		port, fault := parsePort("port", *p.Port)
		if fault != "" {
			s.Faults = append(s.Faults, fault)
			continue
		}
		sp := SlicePort{Port: port}
		if p.Name != nil {
			sp.Name = *p.Name
		}
		s.Ports = append(s.Ports, sp)
	}
	for _, e := range in.Endpoints {
		s.addEndpoint(e)
	}
	return s
}

// addEndpoint takes an endpoint's first address only: Kubernetes defines no meaning for others.
func (s *EndpointSlice) addEndpoint(in discoveryv1.Endpoint) {
	if len(in.Addresses) == 0 {
		return
	}
	addr, fault := parseAddr("endpoint address", in.Addresses[0])
	if fault != "" {
		s.Faults = append(s.Faults, fault)
		return
	}
	e := Endpoint{Addr: addr, Ready: in.Conditions.Ready == nil || *in.Conditions.Ready}
	if in.TargetRef != nil && in.TargetRef.Kind == string(KindPod) {
		e.Pod = in.TargetRef.Name
	}
	if in.NodeName != nil {
		e.Node = *in.NodeName
	}
	if in.Zone != nil {
		e.Zone = *in.Zone
	}
	s.Endpoints = append(s.Endpoints, e)
}
