package cluster

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	networkingv1 "istio.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// Resolution says how clients of a ServiceEntry find its endpoints.
type Resolution uint8

// The resolutions.
const (
	// ResolutionNone: the address that the client asked for is the endpoint.
	ResolutionNone Resolution = iota
	// ResolutionStatic: the endpoints' addresses, or the workloads that the selector picks.
	ResolutionStatic
	// ResolutionDNS: the endpoints' host names or, without endpoints, the entry's own, are looked up by the client's node.
	ResolutionDNS
	// ResolutionDynamic: what a client of a wildcard host asks for is looked up; needs a waypoint.
	ResolutionDynamic
)

// Visibility says whose clients see a ServiceEntry.
type Visibility uint8

// The visibilities.
const (
	VisiblePublic Visibility = iota
	// VisibleNamespace: those of its own namespace.
	VisibleNamespace
	// VisibleNone: nobody's.
	VisibleNone
)

// ServiceEntry is a service that Kubernetes does not know. Only its TCP ports are known here.
type ServiceEntry struct {
	Key
	Created    time.Time
	Generation int64
	Labels     Labels
	// Hosts are lower-case DNS names, each once; the first label may be "*".
	Hosts []string
	// Addresses are virtual addresses and ranges of them, masked.
	Addresses []netip.Prefix
	// Assigned are virtual addresses that the control plane gave (status.addresses).
	Assigned []HostAddr
	// AutoAddress tells that the entry has no addresses of its own, and that the label api.LabelAutoAllocate does not say no.
	AutoAddress bool
	Ports       []ServicePort
	// Internal entries are part of the mesh (location MESH_INTERNAL).
	Internal   bool
	Resolution Resolution
	// OneAddress: of what a name is looked up to one address is used at a time (resolution DNS_ROUND_ROBIN).
	OneAddress bool
	Endpoints  []EntryEndpoint
	// Selector picks pods and WorkloadEntries of the namespace; empty for none.
	Selector   Labels
	Visibility Visibility
	// ListedNamespaces: exportTo names single namespaces, which cannot be told to node proxies; the entry is public.
	ListedNamespaces bool
	SubjectAltNames  []string
	// Distribution is api.AnnotationTrafficDistribution.
	Distribution string
	// Waypoint is what its labels say of its waypoint.
	Waypoint WaypointUse
	// Required is api.AnnotationWaypointRequired.
	Required string
	// Seen is the condition that the object has of the type that the control plane writes.
	Seen Condition
	// Bound is the condition api.ConditionWaypointBound.
	Bound  Condition
	Faults []string
}

// HostAddr is an address of one of a ServiceEntry's hosts.
type HostAddr struct {
	Host string
	Addr netip.Addr
}

// Shortage says that a host wants a virtual address of a range that has none left.
type Shortage struct {
	Host  string
	Range netip.Prefix
}

// ObjectKind is KindServiceEntry.
func (*ServiceEntry) ObjectKind() Kind { return KindServiceEntry }

// ObjectKey is namespace and name.
func (s *ServiceEntry) ObjectKey() Key { return s.Key }

// Equal reports whether both are the same in every field.
func (s *ServiceEntry) Equal(o *ServiceEntry) bool {
	return s.Key == o.Key && s.Created.Equal(o.Created) && s.Labels.Equal(o.Labels) && slices.Equal(s.Hosts, o.Hosts) && s.Generation == o.Generation && s.Seen == o.Seen && s.Bound == o.Bound &&
		slices.Equal(s.Addresses, o.Addresses) && slices.Equal(s.Assigned, o.Assigned) && s.AutoAddress == o.AutoAddress &&
		slices.Equal(s.Ports, o.Ports) && s.Internal == o.Internal && s.Resolution == o.Resolution && s.OneAddress == o.OneAddress &&
		slices.EqualFunc(s.Endpoints, o.Endpoints, EntryEndpoint.Equal) && s.Selector.Equal(o.Selector) &&
		s.Visibility == o.Visibility && s.ListedNamespaces == o.ListedNamespaces &&
		slices.Equal(s.SubjectAltNames, o.SubjectAltNames) && s.Distribution == o.Distribution && s.Waypoint == o.Waypoint && s.Required == o.Required && slices.Equal(s.Faults, o.Faults)
}

// IsWildcard reports whether a host stands for many.
func IsWildcard(host string) bool { return strings.HasPrefix(host, "*.") }

// WantsAddresses reports whether the control plane is to give the entry's hosts addresses: it has none, they would be of use,
// and nobody said no.
func (s *ServiceEntry) WantsAddresses() bool {
	return s.AutoAddress && len(s.Addresses) == 0 && s.Resolution != ResolutionNone && s.Visibility != VisibleNone &&
		len(s.Hosts) > 0 && !slices.ContainsFunc(s.Hosts, IsWildcard)
}

// ServiceEntryOf reduces a ServiceEntry. One that cannot be read has no hosts, and so is nothing to anybody.
func ServiceEntryOf(in *unstructured.Unstructured) *ServiceEntry {
	s := &ServiceEntry{
		Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Labels: LabelsOf(in.GetLabels()),
		Generation: in.GetGeneration(), Seen: seenBy(in, authz.ConditionType), Bound: seenBy(in, api.ConditionWaypointBound),
		AutoAddress:  in.GetLabels()[api.LabelAutoAllocate] != "false",
		Distribution: in.GetAnnotations()[api.AnnotationTrafficDistribution],
		Waypoint:     waypointUseOf(in.GetLabels(), in.GetAnnotations()),
		Required:     in.GetAnnotations()[api.AnnotationWaypointRequired],
	}
	s.readAssigned(in)
	var spec networkingv1.ServiceEntry
	if s.Faults = readSpec(in, &spec); len(s.Faults) > 0 {
		return s
	}
	for _, h := range spec.GetHosts() {
		host, fault := parseHost("spec.hosts:", h, true)
		if fault != "" {
			s.fault("%s", fault)
		} else if !slices.Contains(s.Hosts, host) {
			s.Hosts = append(s.Hosts, host)
		}
	}
	s.AutoAddress = s.AutoAddress && len(spec.GetAddresses()) == 0
	s.readAddresses(spec.GetAddresses())
	s.readPorts(spec.GetPorts())
	s.readExport(spec.GetExportTo())
	s.Internal = spec.GetLocation() == networkingv1.ServiceEntry_MESH_INTERNAL
	s.Selector = LabelsOf(spec.GetWorkloadSelector().GetLabels())
	s.SubjectAltNames = spec.GetSubjectAltNames()
	switch spec.GetResolution() {
	case networkingv1.ServiceEntry_NONE:
	case networkingv1.ServiceEntry_STATIC:
		s.Resolution = ResolutionStatic
	case networkingv1.ServiceEntry_DNS:
		s.Resolution = ResolutionDNS
	case networkingv1.ServiceEntry_DNS_ROUND_ROBIN:
		s.Resolution, s.OneAddress = ResolutionDNS, true
	default:
		s.Resolution = ResolutionDynamic
	}
	s.readEndpoints(spec.GetEndpoints())
	return s
}

func (s *ServiceEntry) fault(format string, args ...any) {
	s.Faults = append(s.Faults, fmt.Sprintf(format, args...))
}

func (s *ServiceEntry) readAddresses(in []string) {
	for _, a := range in {
		prefix, err := netip.ParsePrefix(a)
		if err != nil {
			addr, err := netip.ParseAddr(a)
			if err != nil || addr.Zone() != "" {
				s.fault("spec.addresses: %q is neither an IP address nor a CIDR", a)
				continue
			}
			addr = addr.Unmap()
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		if prefix = prefix.Masked(); !slices.Contains(s.Addresses, prefix) {
			s.Addresses = append(s.Addresses, prefix)
		}
	}
}

func (s *ServiceEntry) readPorts(in []*networkingv1.ServicePort) {
	for _, p := range in {
		if strings.EqualFold(p.GetProtocol(), "UDP") {
			continue
		}
		port, fault := parsePort("spec.ports: "+p.GetName(), int32(min(p.GetNumber(), math.MaxInt32)))
		if fault != "" {
			s.fault("%s", fault)
			continue
		}
		target := port
		if p.GetTargetPort() != 0 {
			if target, fault = parsePort("spec.ports: target of "+p.GetName(), int32(min(p.GetTargetPort(), math.MaxInt32))); fault != "" {
				s.fault("%s", fault)
				continue
			}
		}
		if slices.ContainsFunc(s.Ports, func(o ServicePort) bool { return o.Port == port }) {
			s.fault("spec.ports: %d is there twice", port)
			continue
		}
		s.Ports = append(s.Ports, ServicePort{Name: p.GetName(), Port: port, Target: target, AppProtocol: p.GetProtocol()})
	}
}

// readExport takes what can be told to node proxies: everybody, the entry's own namespace, or nobody.
func (s *ServiceEntry) readExport(in []string) {
	own, others := false, false
	for _, ns := range in {
		switch ns {
		case "*":
			return
		case ".", s.Namespace:
			own = true
		case "~":
		default:
			others = true
		}
	}
	switch {
	case others:
		s.ListedNamespaces = true
	case own:
		s.Visibility = VisibleNamespace
	case len(in) > 0:
		s.Visibility = VisibleNone
	}
}

// readEndpoints drops endpoints that the resolution has no use for, as Istio's admission would.
func (s *ServiceEntry) readEndpoints(in []*networkingv1.WorkloadEntry) {
	if len(in) > 0 && len(s.Selector) > 0 {
		s.fault("spec has both endpoints and workloadSelector; the endpoints are ignored")
		return
	}
	if len(in) > 0 && (s.Resolution == ResolutionNone || s.Resolution == ResolutionDynamic) {
		s.fault("spec.endpoints: resolution %s has none; they are ignored", map[Resolution]string{ResolutionNone: "NONE", ResolutionDynamic: "DYNAMIC_DNS"}[s.Resolution])
		return
	}
	for i, w := range in {
		e, faults := entryEndpoint(fmt.Sprintf("spec.endpoints[%d]", i), w, w.GetLabels())
		s.Faults = append(s.Faults, faults...)
		if e.Host != "" && s.Resolution != ResolutionDNS {
			s.fault("spec.endpoints[%d].address %q is a host name, which only resolution DNS looks up", i, e.Host)
			continue
		}
		if e.Host != "" || e.Addr.IsValid() {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
}

// readAssigned reads status.addresses. What is malformed there is as if it were not.
func (s *ServiceEntry) readAssigned(in *unstructured.Unstructured) {
	list, _, _ := unstructured.NestedSlice(in.Object, "status", "addresses")
	for _, item := range list {
		entry, _ := item.(map[string]any)
		value, _ := entry["value"].(string)
		host, _ := entry["host"].(string)
		if addr, fault := parseAddr("", value); fault == "" && host != "" {
			s.Assigned = append(s.Assigned, HostAddr{host, addr})
		}
	}
}
