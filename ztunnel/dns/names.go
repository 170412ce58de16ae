package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

const (
	// serviceTTL is how long an answer with virtual addresses may be kept, in seconds (Istio's value); endpointTTL one with
	// addresses of endpoints, which come and go.
	serviceTTL  = 30
	endpointTTL = 5
	// maxEndpoints bounds the addresses in one answer; of more, some are chosen at random.
	maxEndpoints = 500
	// maxCandidates bounds the names that one query may stand for.
	maxCandidates = 2 * maxSearch
)

// Directory is what the mesh knows; directory.Directory implements it.
type Directory interface {
	ServiceByHost(hostname, namespace string) *directory.Service
	Endpoints(key directory.ServiceKey) func(yield func(*directory.Workload) bool)
	Workload(uid string) *directory.Workload
}

// names answers for one pod from the directory.
type names struct {
	directory Directory
	// namespace is the pod's; network and clusterID are the node's.
	namespace, network, clusterID string
	clusterDomain                 string
}

// found is what the mesh knows of a name.
type found struct {
	// name is the one that has the addresses: another than was asked for, if search domains were taken off or put on.
	name string
	// service is the one of the name, host that by which it is known: the name, a pattern that matches it, or, for a pod of a
	// headless service, the name without the pod's.
	service *directory.Service
	addrs   []netip.Addr
	ttl     uint32
	// targets are set instead of addrs where name is that of a port.
	targets []target
	// outside says that others' records of the name, if there are any, count before the mesh's.
	outside bool
}

// lookUp finds what a canonical name stands for in a query of a type. Not found means that the mesh has nothing to say about it.
//
// A program's resolver puts the pod's search domains behind names that have fewer dots than ndots; such a name may be the
// mesh's without them, e.g. one of a ServiceEntry. One that does not do so asks for the short name itself.
func (n *names) lookUp(name string, qtype uint16, s Settings) (found, bool) {
	if f, ok := n.find(name, qtype); ok {
		return f, true
	}
	for _, candidate := range candidates(name, s) {
		// Others are asked for the name as it is, and so must the program's resolver ask.
		if f, ok := n.find(candidate, qtype); ok && !f.outside {
			return f, true
		}
	}
	return found{}, false
}

// find finds a name as it is. That of a port exists for all types, though only SRV has records.
func (n *names) find(name string, qtype uint16) (found, bool) {
	if qtype == dns.TypeSRV {
		if f, ok := n.port(name); ok {
			return f, true
		}
		return n.exact(name)
	}
	if f, ok := n.exact(name); ok {
		return f, true
	}
	return n.port(name)
}

// candidates are the names that a query for name may stand for by the pod's own settings, best first.
func candidates(name string, s Settings) []string {
	var out []string
	for _, domain := range s.Search {
		if short, ok := strings.CutSuffix(name, "."+domain); ok && strings.Count(short, ".") < s.NDots {
			out = append(out, short)
		}
	}
	if strings.Count(name, ".") < s.NDots {
		for _, domain := range s.Search {
			if full, ok := canonical(name + "." + domain); ok {
				out = append(out, full)
			}
		}
	}
	return out[:min(len(out), maxCandidates)]
}

// exact finds a name that has addresses: as it is, by a pattern that matches it, or as that of a pod of a headless service.
func (n *names) exact(name string) (found, bool) {
	if s := n.directory.ServiceByHost(name, n.namespace); s != nil {
		return n.service(name, s)
	}
	if pod, host, ok := strings.Cut(name, "."); ok {
		if s := n.directory.ServiceByHost(host, n.namespace); s != nil && headless(s) {
			return n.pod(name, pod, s)
		}
	}
	if s := n.byPattern(name); s != nil {
		return n.service(name, s)
	}
	return found{}, false
}

// serviceOf is the service of a host name: the one of that name, else of the closest pattern that matches it.
func (n *names) serviceOf(host string) *directory.Service {
	if s := n.directory.ServiceByHost(host, n.namespace); s != nil {
		return s
	}
	return n.byPattern(host)
}

// byPattern is the service of the closest pattern that matches a name, nil if there is none.
func (n *names) byPattern(name string) *directory.Service {
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return nil
		}
		if s := n.directory.ServiceByHost("*."+parent, n.namespace); s != nil {
			return s
		}
		name = parent
	}
}

// service returns a service's addresses. A service without any is left to others, who may know better: of a headless one
// without endpoints the cluster's DNS knows whether it exists; and a passthrough one has what its host name says.
func (n *names) service(name string, s *directory.Service) (found, bool) {
	f := found{name: name, service: s, addrs: n.virtual(s), ttl: serviceTTL}
	if len(f.addrs) == 0 && headless(s) && n.inCluster(s) {
		f.ttl = endpointTTL
		f.addrs = n.endpoints(s)
	}
	shuffle(f.addrs)
	return f, len(f.addrs) > 0
}

// virtual are a service's own addresses.
func (n *names) virtual(s *directory.Service) []netip.Addr {
	var out []netip.Addr
	for _, a := range s.Addrs {
		if a.Network == n.network {
			out = append(out, a.Addr)
		}
	}
	return out
}

func headless(s *directory.Service) bool { return len(s.Addrs) == 0 && len(s.CIDRs) == 0 }

// inCluster: only for services of the cluster having no address means being headless.
func (n *names) inCluster(s *directory.Service) bool {
	return strings.HasSuffix(s.Hostname, ".svc."+n.clusterDomain)
}

func (n *names) endpoints(s *directory.Service) []netip.Addr {
	var out []netip.Addr
	seen := 0
	for w := range n.directory.Endpoints(s.ServiceKey) {
		if !n.usable(s, w) {
			continue
		}
		for _, a := range w.Addrs {
			if !allowed(s, a) {
				continue
			}
			// Each has the same chance to be among those that are kept.
			if seen++; len(out) < maxEndpoints {
				out = append(out, a)
			} else if i := rand.IntN(seen); i < maxEndpoints {
				out[i] = a
			}
		}
	}
	return out
}

func (n *names) usable(s *directory.Service, w *directory.Workload) bool {
	return w.Network == n.network && (w.Healthy || s.Balancing.AllowUnhealthy)
}

func allowed(s *directory.Service, a netip.Addr) bool {
	return s.Families == directory.FamiliesAny || (s.Families == directory.FamiliesIPv4) == a.Is4()
}

// pod finds an endpoint of a headless service by the pod's name, which is what a StatefulSet's pods are called in DNS too, or
// by its address. A pod that calls itself otherwise the cluster's DNS knows.
func (n *names) pod(name, label string, s *directory.Service) (found, bool) {
	if !n.inCluster(s) {
		return found{}, false
	}
	f := found{name: name, service: s, ttl: endpointTTL}
	if w := n.directory.Workload(n.podUID(s) + label); w != nil && n.usable(s, w) && w.EndpointOf(s.ServiceKey) {
		for _, a := range w.Addrs {
			if allowed(s, a) {
				f.addrs = append(f.addrs, a)
			}
		}
	} else if addr, ok := parseAddressLabel(label); ok && allowed(s, addr) && n.serves(s, addr) {
		f.addrs = []netip.Addr{addr}
	}
	return f, len(f.addrs) > 0
}

// serves tells whether an endpoint of the service has the address.
func (n *names) serves(s *directory.Service, addr netip.Addr) bool {
	for w := range n.directory.Endpoints(s.ServiceKey) {
		if n.usable(s, w) && slices.Contains(w.Addrs, addr) {
			return true
		}
	}
	return false
}

func shuffle(addrs []netip.Addr) {
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
}
