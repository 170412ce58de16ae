package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Errors of route: why there is no way to a destination.
var (
	errOtherNetwork = errors.New("the workload is in another network, which this version cannot reach")
	errNoWaypoint   = errors.New("no waypoint is there to take it")
)

// destination is how a connection of the pod's application goes on.
type destination struct {
	// workload is the endpoint or waypoint; nil for what the mesh does not know.
	workload *directory.Workload
	// service is what the client asked for; nil if it did not ask for a service.
	service *directory.Service
	// addr is the application's address, or the unknown destination.
	addr netip.AddrPort
	// tunnel says that target and authority are set: the way is a tunnel.
	tunnel    bool
	target    hbone.Target
	authority string
	// host is looked up before connecting, if it is not empty: a workload without addresses. addr is what the client asked
	// for until then, hostPort the port to connect to, and hostAddrs the addresses to try, once they are known.
	host      string
	hostPort  uint16
	hostAddrs []netip.Addr
	// waypoint says that workload is a waypoint.
	waypoint bool
	// picked is the service of which workload was picked, the waypoint's for a waypoint; nil if there was nothing to
	// choose. more says that it has endpoints that were not tried.
	picked *directory.Service
	more   bool
}

// identity is whom the destination has to prove to be; zero in plain.
func (d *destination) identity() identity.Identity {
	if d.workload == nil {
		return identity.Identity{}
	}
	return d.workload.Identity
}

// route decides how a connection of self to dst goes on. exclude holds the uids of endpoints that were tried in vain.
func (n *Node) route(self *directory.Workload, dst netip.AddrPort, exclude []string) (destination, error) {
	if w := n.workloadAt(dst.Addr()); w != nil {
		return n.routeWorkload(self, w, dst, exclude)
	}
	s := n.Directory.ServiceByAddr(n.Network, dst.Addr(), self.Namespace)
	if s == nil {
		return n.unknown(dst)
	}
	if gw := chooseWaypoint(s); gw != nil && !n.isWaypoint(self, gw) {
		return n.routeWaypoint(self, waypointFor{gw: gw, service: s, dst: dst}, exclude)
	}
	ep, err := n.Directory.Pick(directory.PickRequest{
		Service: s, Port: dst.Port(), Source: self, Addr: dst.Addr(), Exclude: exclude,
	})
	if errors.Is(err, directory.ErrPassthrough) {
		return n.passthrough(s, dst)
	}
	if err != nil {
		return destination{service: s, addr: dst}, fmt.Errorf("service %s port %d: %w", s.ServiceKey, dst.Port(), err)
	}
	d, err := n.direct(self, ep)
	if d.host != "" {
		d.addr = dst
	}
	return d, err
}

// routeWorkload is route for a destination that is a workload's own address.
func (n *Node) routeWorkload(self, w *directory.Workload, dst netip.AddrPort, exclude []string) (destination, error) {
	if gw := w.Waypoint; gw != nil && !n.isWaypoint(self, gw) {
		return n.routeWaypoint(self, waypointFor{gw: gw, dst: dst}, exclude)
	}
	return n.direct(self, directory.Endpoint{Workload: w, Addr: dst})
}

// direct leads to an endpoint itself.
func (n *Node) direct(self *directory.Workload, ep directory.Endpoint) (destination, error) {
	d := destination{workload: ep.Workload, service: ep.Service, addr: ep.Addr, picked: ep.Service, more: ep.More}
	if ep.Workload.Network != self.Network {
		return d, fmt.Errorf("workload %s, network %q: %w", ep.Workload.UID, ep.Workload.Network, errOtherNetwork)
	}
	if !ep.Addr.Addr().IsValid() {
		d.host, d.hostPort = ep.Workload.Hostname, ep.Addr.Port()
		return d, nil
	}
	if ep.Workload.Tunnel == directory.TunnelHBONE {
		d.openTunnel(self, netip.AddrPortFrom(ep.Addr.Addr(), api.PortHBONE), ep.Addr)
	}
	return d, nil
}

// openTunnel makes the way a tunnel to peer, which is to connect to authority.
func (d *destination) openTunnel(self *directory.Workload, peer, authority netip.AddrPort) {
	d.tunnel, d.authority = true, authority.String()
	d.target = hbone.Target{
		Addr:       peer,
		UID:        d.workload.UID,
		Source:     self.Identity,
		SourceAddr: addrOfFamily(self, peer.Addr()),
		Expect:     expected(d.workload, d.service),
	}
}

// expected lists whom an endpoint may prove to be. The result is sorted, since it is a part of what tunnels are shared by.
func expected(w *directory.Workload, s *directory.Service) []identity.Identity {
	if s == nil || len(s.SANs) == 0 {
		return []identity.Identity{w.Identity}
	}
	all := append([]identity.Identity{w.Identity}, s.SANs...)
	slices.SortFunc(all, func(a, b identity.Identity) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all)
}

// waypointFor is a waypoint and what it is to take.
type waypointFor struct {
	gw      *directory.GatewayAddr
	service *directory.Service // nil if dst is a workload's
	dst     netip.AddrPort
}

// routeWaypoint leads to a waypoint, which is told the original destination.
func (n *Node) routeWaypoint(self *directory.Workload, w waypointFor, exclude []string) (destination, error) {
	d := destination{service: w.service, addr: w.dst, waypoint: true}
	ep, err := n.waypointEndpoint(self, w, exclude)
	if err != nil {
		return d, fmt.Errorf("waypoint %s of %s: %w", gatewayName(w.gw), w.dst, err)
	}
	if ep.Workload.Network != self.Network {
		return d, fmt.Errorf("waypoint %s of %s: %w", gatewayName(w.gw), w.dst, errOtherNetwork)
	}
	d.workload, d.picked, d.more = ep.Workload, ep.Service, ep.More
	d.openTunnel(self, ep.Addr, w.dst)
	// What a waypoint may prove is its own service's to say, not that of the service behind it.
	d.target.Expect = expected(ep.Workload, ep.Service)
	return d, nil
}

// waypointEndpoint picks one workload of a waypoint, and its HBONE port.
func (n *Node) waypointEndpoint(self *directory.Workload, w waypointFor, exclude []string) (directory.Endpoint, error) {
	gw := w.gw
	s := n.Directory.Service(gw.Service)
	if gw.Service == (directory.ServiceKey{}) {
		if found := n.Directory.WorkloadByAddr(gw.Addr.Network, gw.Addr.Addr); found != nil {
			return directory.Endpoint{Workload: found, Addr: netip.AddrPortFrom(gw.Addr.Addr, gw.Port)}, nil
		}
		s = n.Directory.ServiceByAddr(gw.Addr.Network, gw.Addr.Addr, self.Namespace)
	}
	if s == nil {
		return directory.Endpoint{}, errNoWaypoint
	}
	ep, err := n.Directory.Pick(directory.PickRequest{
		Service: s, Port: gw.Port, Source: self, Addr: w.dst.Addr(), Exclude: exclude,
	})
	if err != nil {
		return ep, fmt.Errorf("%w: %w", errNoWaypoint, err)
	}
	return ep, nil
}

// chooseWaypoint draws one of a service's waypoints by weight; nil if it has none.
func chooseWaypoint(s *directory.Service) *directory.GatewayAddr {
	var sum uint64
	for _, w := range s.WeightedWaypoints {
		sum += uint64(w.Weight)
	}
	if sum == 0 {
		return s.Waypoint
	}
	draw := rand.Uint64N(sum)
	for i := range s.WeightedWaypoints {
		w := &s.WeightedWaypoints[i]
		if draw < uint64(w.Weight) {
			return &w.GatewayAddr
		}
		draw -= uint64(w.Weight)
	}
	return s.Waypoint
}

// isWaypoint tells whether a workload is itself (a part of) a waypoint: what it sends has been there already.
func (n *Node) isWaypoint(self *directory.Workload, gw *directory.GatewayAddr) bool {
	if gw.Service == (directory.ServiceKey{}) {
		for _, a := range self.Addrs {
			if a == gw.Addr.Addr && self.Network == gw.Addr.Network {
				return true
			}
		}
		s := n.Directory.ServiceByAddr(gw.Addr.Network, gw.Addr.Addr, self.Namespace)
		return s != nil && isEndpoint(self, s.ServiceKey)
	}
	return isEndpoint(self, gw.Service)
}

func isEndpoint(w *directory.Workload, key directory.ServiceKey) bool {
	for _, m := range w.Services {
		if m.Service == key {
			return true
		}
	}
	return false
}

func gatewayName(gw *directory.GatewayAddr) string {
	if gw.Service != (directory.ServiceKey{}) {
		return gw.Service.String()
	}
	return gw.Addr.Addr.String()
}

// addrOfFamily returns a workload's address of the family of like; zero if it has none.
func addrOfFamily(w *directory.Workload, like netip.Addr) netip.Addr {
	for _, a := range w.Addrs {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}
