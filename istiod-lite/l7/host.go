package l7

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// Host is a service as waypoints see it: a Kubernetes service, or one of the hosts of a ServiceEntry. It is immutable.
type Host struct {
	// Ref is the object.
	Ref      cluster.ObjectRef
	Hostname string
	// Addresses are those by which clients ask for it; none for a headless service.
	Addresses []netip.Prefix
	Ports     []cluster.ServicePort
	// Balancing says which endpoints are to be preferred, nil for all alike.
	Balancing *workload.LoadBalancing
	// Families are those of its endpoints that are used.
	Families workload.IPFamilies
	// Bound says whether its traffic takes a waypoint; Waypoint is the reason, and Told the message, of what became of the one that it
	// asks for. They are empty if it asks for none.
	Bound          bool
	Waypoint, Told string
	// Resolution is how its endpoints are found; OneAddress is the ServiceEntry's.
	Resolution cluster.Resolution
	OneAddress bool
	// TLS is how the endpoints of a port are spoken to by TLS, by port; what is not there is as it is.
	TLS map[uint16]*Origination
	// Retries bounds them, nil if no policy says how.
	Retries *cluster.RetryConstraint
	// Unfit says why waypoints do not send to it, in words that follow its name; "" if they do.
	Unfit string
}

func (h *Host) compare(o *Host) int {
	return cmp.Or(strings.Compare(h.Hostname, o.Hostname), h.Ref.Compare(o.Ref))
}

// Port returns the port with a number.
func (h *Host) Port(number uint16) (cluster.ServicePort, bool) {
	for _, p := range h.Ports {
		if p.Port == number {
			return p, true
		}
	}
	return cluster.ServicePort{}, false
}

// key is that under which workloads name the host.
func (h *Host) key() string { return h.Ref.Key.Namespace + "/" + h.Hostname }

// ServiceHost is a Kubernetes service as waypoints see it.
func ServiceHost(m translate.Mesh, in translate.ServiceInput) *Host {
	s := in.Service
	h := &Host{Ref: cluster.ServiceRef(s.Key), Hostname: translate.Hostname(m, s.Key), Ports: s.Ports, Resolution: cluster.ResolutionStatic}
	w, _ := translate.Service(m, in)
	if w == nil {
		h.Unfit = "is of type ExternalName, which is a name for something else"
		return h
	}
	h.fill(w, in.Waypoint)
	return h
}

// EntryHosts are the hosts of a ServiceEntry as waypoints see them.
func EntryHosts(m translate.Mesh, in translate.EntryInput) []*Host {
	var out []*Host
	for _, name := range in.Hosts() {
		h := &Host{
			Ref:      cluster.ObjectRef{Group: cluster.GroupIstioNetworking, Kind: cluster.KindServiceEntry, Key: in.Entry.Key},
			Hostname: name, Ports: in.Entry.Ports,
		}
		h.fill(translate.EntryService(m, in, name, false), in.Waypoint)
		switch h.Resolution, h.OneAddress = in.Entry.Resolution, in.Entry.OneAddress; {
		case h.Resolution == cluster.ResolutionDynamic:
			h.Unfit = "has resolution DYNAMIC_DNS, which waypoints do not look up"
		case cluster.IsWildcard(name) && h.Resolution == cluster.ResolutionDNS && len(in.Entry.Endpoints) == 0 && len(in.Entry.Selector) == 0:
			h.Unfit = "has a wildcard among its hosts, which cannot be looked up"
		}
		out = append(out, h)
	}
	return out
}

// fill takes over what node proxies are told of the service.
func (h *Host) fill(w *workload.Service, b translate.Binding) {
	h.Bound, h.Waypoint, h.Told = b.Waypoint != nil && b.Waypoint.Unready == "", b.Reason, b.Message
	for _, a := range w.Addresses {
		addr, ok := netip.AddrFromSlice(a.Address)
		if !ok {
			continue
		}
		bits := addr.BitLen()
		if a.Length != nil {
			bits = int(a.Length.GetValue())
		}
		h.Addresses = append(h.Addresses, netip.PrefixFrom(addr, bits))
	}
	h.Balancing, h.Families = w.LoadBalancing, w.IpFamilies
}

// protocol is what a port's owner says that is spoken there.
type protocol uint8

const (
	undeclared protocol = iota
	http1               // or HTTP/2, as the client pleases
	http2
	opaque // TCP, TLS, or something else that is not HTTP
)

// protocolOf is what is spoken on a port, of what makes a difference to waypoints.
func protocolOf(p cluster.ServicePort) protocol {
	switch translate.AppProtocol(p) {
	case workload.AppProtocol_HTTP11:
		return http1
	case workload.AppProtocol_HTTP2, workload.AppProtocol_GRPC:
		return http2
	case workload.AppProtocol_TCP, workload.AppProtocol_TLS:
		return opaque
	}
	return undeclared
}
