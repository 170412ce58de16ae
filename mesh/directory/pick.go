package directory

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// Errors of Pick, wrapped; branch with errors.Is.
var (
	// ErrNoPort: the service has no such port.
	ErrNoPort = errors.New("no such port")
	// ErrNoEndpoint: no endpoint of the service is healthy, allowed by its balancing and has the port.
	ErrNoEndpoint = errors.New("no healthy endpoint")
	// ErrPassthrough: the service's clients choose the endpoint themselves; go to the address that was asked for.
	ErrPassthrough = errors.New("service passes through")
)

// draws is how often Pick draws at random before it looks at each endpoint of a rank: more than once only where
// some endpoints have not the port, or were tried already.
const draws = 8

// PickRequest asks for an endpoint of a service.
type PickRequest struct {
	Service *Service
	// Port is the service port.
	Port uint16
	// Source is the client; its locality ranks endpoints. Nil: nothing is known of it but that it is of the proxy's
	// network.
	Source *Workload
	// Addr is the address that the client asked for; endpoints' addresses of its family are preferred. Zero: none.
	Addr netip.Addr
	// Exclude holds uids of workloads that were tried already.
	Exclude []string
}

// Endpoint is where to connect to.
type Endpoint struct {
	Workload *Workload
	// Service is the one that it was picked from.
	Service *Service
	// Addr is the workload's address and target port. The address is zero for a workload that has only a host name, and
	// for one of another network that is reached through its gateway.
	Addr netip.AddrPort
}

// Pick chooses an endpoint at random among those of the best rank that has one, by weight. Its cost does not depend on
// the number of endpoints, unless most of them lack the port.
func (d *Directory) Pick(r PickRequest) (Endpoint, error) {
	s := r.Service
	if s.Balancing.Mode == ModePassthrough {
		return Endpoint{}, fmt.Errorf("service %s: %w", s, ErrPassthrough)
	}
	port, ok := findPort(s.Ports, r.Port)
	if !ok {
		return Endpoint{}, fmt.Errorf("service %s, port %d: %w", s, r.Port, ErrNoPort)
	}
	network := d.cfg.Network
	if r.Source != nil {
		network = r.Source.Network
	}
	p := picker{request: &r, port: port, network: network}
	if set, ok := d.endpoints.Load(s.ServiceKey); ok {
		for _, rank := range set.ranks(keyFor(s.Balancing, r.Source, network)) {
			if e, ok := p.fromRank(&rank); ok {
				return e, nil
			}
		}
	}
	return Endpoint{}, fmt.Errorf("service %s, port %d: %w", s, r.Port, ErrNoEndpoint)
}

// picker is one Pick.
type picker struct {
	request *PickRequest
	port    PortMapping
	network string
}

func (p *picker) fromRank(r *rank) (Endpoint, bool) {
	if r.weight == 0 {
		return Endpoint{}, false
	}
	for range draws {
		if e, ok := p.endpoint(r.draw()); ok {
			return e, true
		}
	}
	// Look at all, and keep each with the share of its weight in what was seen so far.
	var kept Endpoint
	var seen uint64
	for _, c := range r.classes {
		for i := range c.list.n {
			e, ok := p.endpoint(c.list.at(i))
			if !ok {
				continue
			}
			w := uint64(e.Workload.Capacity)
			if seen += w; rand.Uint64N(seen) < w {
				kept = e
			}
		}
	}
	return kept, seen > 0
}

// draw returns an endpoint with a probability that is the share of its weight: a class by its weight, then one of the class, to be
// drawn again if chance says so; within a class weights differ by less than two.
func (r *rank) draw() *Workload {
	n := rand.Uint64N(r.weight)
	i := 0
	for n >= r.classes[i].weight {
		n -= r.classes[i].weight
		i++
	}
	c := &r.classes[i]
	for {
		w := c.list.at(rand.IntN(c.list.n))
		if c.exp == 0 || rand.Uint64N(2<<c.exp) < uint64(w.Capacity) {
			return w
		}
	}
}

// endpoint says where w is to be connected to, and whether it can be.
func (p *picker) endpoint(w *Workload) (Endpoint, bool) {
	if slices.Contains(p.request.Exclude, w.UID) {
		return Endpoint{}, false
	}
	port, ok := p.targetPort(w)
	if !ok {
		return Endpoint{}, false
	}
	e := Endpoint{Workload: w, Service: p.request.Service}
	if w.Network != p.network {
		e.Addr = netip.AddrPortFrom(netip.Addr{}, port)
		return e, w.NetworkGateway != nil
	}
	addr, ok := w.Addr(p.request.Service.Families, p.request.Addr)
	e.Addr = netip.AddrPortFrom(addr, port)
	return e, ok || len(w.Addrs) == 0 && w.Hostname != ""
}

// targetPort is the endpoint's own mapping, else the service's, else, for an application tunnel, which takes all ports,
// the service port itself.
func (p *picker) targetPort(w *Workload) (uint16, bool) {
	if m := w.membership(p.request.Service.ServiceKey); m != nil {
		if own, ok := findPort(m.Ports, p.port.Service); ok && own.Target != 0 {
			return own.Target, true
		}
	}
	if p.port.Target != 0 {
		return p.port.Target, true
	}
	return p.port.Service, w.AppTunnel != nil && w.AppTunnel.Port != 0
}

// Addr returns the address to reach w at for a client that asked for asked: that one if it is w's own, else one that
// families allow, of asked's family if there is one. It reports whether there is any.
func (w *Workload) Addr(families Families, asked netip.Addr) (netip.Addr, bool) {
	asked = asked.Unmap()
	var found netip.Addr
	for _, a := range w.Addrs {
		switch {
		case a == asked:
			return a, true
		case families == FamiliesIPv4 && !a.Is4(), families == FamiliesIPv6 && a.Is4():
		case !found.IsValid(), asked.IsValid() && a.Is4() == asked.Is4() && found.Is4() != asked.Is4():
			found = a
		}
	}
	return found, found.IsValid()
}

// TargetPort returns the port of w behind a port of s, by the rules of Pick, and whether there is one.
func (s *Service) TargetPort(w *Workload, port uint16) (uint16, bool) {
	m, ok := findPort(s.Ports, port)
	if !ok {
		return 0, false
	}
	p := picker{request: &PickRequest{Service: s}, port: m}
	return p.targetPort(w)
}
