package dns

import (
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

// protocol is the one whose ports the mesh knows; queries for others are left to the pod's own resolvers.
const protocol = "_tcp"

// target is where a named port is served.
type target struct {
	name   string
	port   uint16
	weight uint16
	addrs  []netip.Addr
}

// splitPort takes the name of a port apart: _port._tcp.host (RFC 2782).
func splitPort(name string) (port, host string, ok bool) {
	label, rest, _ := strings.Cut(name, ".")
	proto, host, _ := strings.Cut(rest, ".")
	port, ok = strings.CutPrefix(label, "_")
	return port, host, ok && proto == protocol && port != "" && host != ""
}

// port finds a named port of a service, by Kubernetes' rules: a service with an address of its own serves it itself, of a
// headless one its endpoints do, each on a port of its own. A host outside the cluster may have such records of its own
// (e.g. the ones by which clients find the members of a database), and they count before what the mesh makes of an entry.
func (n *names) port(name string) (found, bool) {
	label, host, ok := splitPort(name)
	if !ok {
		return found{}, false
	}
	s := n.serviceOf(host)
	if s == nil {
		return found{}, false
	}
	number, ok := s.PortNamed(label)
	if !ok {
		return found{}, false
	}
	f := found{name: name, service: s, ttl: serviceTTL, outside: !n.inCluster(s)}
	if addrs := n.virtual(s); len(addrs) > 0 {
		f.targets = []target{{name: host, port: number, addrs: addrs}}
	} else if headless(s) && n.inCluster(s) {
		f.ttl = endpointTTL
		f.targets = n.targets(host, s, number)
	}
	return f, len(f.targets) > 0
}

// targets are the endpoints of a headless service that serve a port; of many, some are chosen at random.
func (n *names) targets(host string, s *directory.Service, number uint16) []target {
	var out []target
	seen := 0
	keep := func(t target) {
		if seen++; len(out) < maxEndpoints {
			out = append(out, t)
		} else if i := rand.IntN(seen); i < maxEndpoints {
			out[i] = t
		}
	}
	for w := range n.directory.Endpoints(s.ServiceKey) {
		port, ok := s.TargetPort(w, number)
		if !ok || !n.usable(s, w) {
			continue
		}
		var addrs []netip.Addr
		for _, a := range w.Addrs {
			if allowed(s, a) {
				addrs = append(addrs, a)
			}
		}
		t := target{port: port, weight: uint16(min(w.Capacity, 1<<16-1)), addrs: addrs}
		if label, ok := n.podLabel(s, w); ok && len(addrs) > 0 {
			t.name = label + "." + host
			keep(t)
			continue
		}
		for i, a := range addrs {
			t.name, t.addrs = addressLabel(a)+"."+host, addrs[i:i+1]
			keep(t)
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// podUID is the uid of a pod in the service's namespace, up to the pod's name.
func (n *names) podUID(s *directory.Service) string {
	return n.clusterID + "//Pod/" + s.Namespace + "/"
}

// podLabel is what an endpoint that is a pod is called below a headless service, if its name is a label at all.
func (n *names) podLabel(s *directory.Service, w *directory.Workload) (string, bool) {
	name, ok := strings.CutPrefix(w.UID, n.podUID(s))
	return name, ok && name != "" && len(name) <= maxLabel && !strings.Contains(name, ".")
}

// addressLabel is what other endpoints are called, as the cluster's DNS calls those without a host name: 10-0-0-1.
func addressLabel(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

// parseAddressLabel reads what addressLabel writes.
func parseAddressLabel(label string) (netip.Addr, bool) {
	for _, separator := range []string{".", ":"} {
		if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", separator)); err == nil && addressLabel(a) == label {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// addTargets writes an answer to a query for a named port: where it is served and, besides, at which addresses.
func addTargets(m *dns.Msg, owner string, f found) {
	for _, t := range f.targets {
		name := dns.Fqdn(t.name)
		m.Answer = append(m.Answer, &dns.SRV{
			Hdr:    dns.RR_Header{Name: owner, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: f.ttl},
			Weight: t.weight, Port: t.port, Target: name,
		})
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m.Extra = append(m.Extra, addresses(name, qtype, t.addrs, f.ttl)...)
		}
	}
}
