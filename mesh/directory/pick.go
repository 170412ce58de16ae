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
	// ErrNoEndpoint: no endpoint of the service is healthy, in the client's network, allowed by its balancing and has the port.
	ErrNoEndpoint = errors.New("no healthy endpoint")
	// ErrPassthrough: the service's clients choose the endpoint themselves; go to the address that was asked for.
	ErrPassthrough = errors.New("service passes through")
)

// draws is how often Pick draws an endpoint at random before it looks for one in order: it draws again what was tried
// already, and, as the second of two, the first one.
const draws = 8

// exactScan is the most endpoints among which a look in order keeps to the weights.
const exactScan = 64

// PickRequest asks for an endpoint of a service.
type PickRequest struct {
	Service *Service
	// Port is the service port.
	Port uint16
	// Source is the client; its locality ranks endpoints, and its first address binds it to one where the service wants that. Nil:
	// nothing is known of it but that it is of the proxy's network.
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
	// Addr is the workload's address and target port. The address is zero for a workload that has only a host name.
	Addr netip.AddrPort
	// More tells that there are other endpoints which were not tried yet.
	More bool
}

// Pick chooses an endpoint among those of the best rank that has one: it draws two at random, by weight, and takes the one
// with fewer connections for its weight (Hold). A client of a service with affinity gets the endpoint that it had, as
// long as that can be picked. Ejected endpoints come last. The cost does not depend on the number of endpoints; only
// the first pick of a locality, or of a client where there is affinity, looks at all of them.
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
	if set, ok := d.endpoints.Load(s.ServiceKey); ok {
		set.readmit(d.now)
		p := picker{request: &r, port: port, network: network}
		key := keyFor(s.Balancing, port, r.Source, network)
		ranks := set.ranks(key)
		var w *Workload
		if s.Affinity > 0 && p.client().IsValid() {
			if w = p.bound(d, set, key); w == nil {
				w = p.bind(d, set, ranks)
			}
		} else {
			w = p.choose(ranks)
		}
		if w != nil {
			return p.endpoint(w, ranks), nil
		}
		if p.otherFamily(set, key) {
			return Endpoint{}, fmt.Errorf("service %s, port %d: %w with an %s address, the only family of the client's pod",
				s, r.Port, ErrNoEndpoint, familyWords[key.families])
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

// otherFamily tells, where there is no endpoint for the client, whether there would be one if it had both address families.
func (p *picker) otherFamily(set *endpointSet, key viewKey) bool {
	if key.families == FamiliesAny || len(p.request.Exclude) > 0 {
		return false
	}
	key.families = FamiliesAny
	return p.choose(set.ranks(key)) != nil
}

// choose returns one of the best rank that has any, or nil.
func (p *picker) choose(ranks []rank) *Workload {
	for i := range ranks {
		if w := p.fromRank(&ranks[i]); w != nil {
			return w
		}
	}
	return nil
}

// fromRank returns the less busy of two that were drawn.
func (p *picker) fromRank(r *rank) *Workload {
	if r.weight == 0 {
		return nil
	}
	first := p.draw(r, nil)
	if first == nil {
		return p.scan(r)
	}
	if r.n == 1 {
		return first
	}
	if second := p.draw(r, first); second != nil && first.busier(second) {
		return second
	}
	return first
}

// draw returns one that was not tried already and is another than not, or nil if chance does not have it.
func (p *picker) draw(r *rank, not *Workload) *Workload {
	for range draws {
		if w := r.draw(); w != not && !p.tried(w) {
			return w
		}
	}
	return nil
}

func (p *picker) tried(w *Workload) bool { return slices.Contains(p.request.Exclude, w.UID) }

// scan looks at all of a small rank, and keeps each with the share of its weight in what was seen so far. Of a large one it
// takes the first that it finds: it skips no more than were tried already.
func (p *picker) scan(r *rank) *Workload {
	var kept *Workload
	var seen uint64
	for _, c := range r.classes {
		for i := range c.list.n {
			w := c.list.at(i)
			if p.tried(w) {
				continue
			}
			if r.n > exactScan {
				return w
			}
			if seen += uint64(w.Capacity); rand.Uint64N(seen) < uint64(w.Capacity) {
				kept = w
			}
		}
	}
	return kept
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

// endpoint says where w, which is in one of the ranks, is to be connected to.
func (p *picker) endpoint(w *Workload, ranks []rank) Endpoint {
	total := 0
	for i := range ranks {
		total += ranks[i].n
	}
	s := p.request.Service
	port, _ := s.targetPort(w, p.port)
	e := Endpoint{Workload: w, Service: s, More: total > len(p.request.Exclude)+1}
	addr, _ := w.Addr(s.Families, p.request.Addr)
	e.Addr = netip.AddrPortFrom(addr, port)
	return e
}

// TargetPort returns the port of w behind a port of s, by the rules of Pick, and whether there is one.
func (s *Service) TargetPort(w *Workload, port uint16) (uint16, bool) {
	m, ok := findPort(s.Ports, port)
	if !ok {
		return 0, false
	}
	return s.targetPort(w, m)
}

// targetPort is the endpoint's own mapping, else the service's, else, for an application tunnel, which takes all ports,
// the service port itself.
func (s *Service) targetPort(w *Workload, m PortMapping) (uint16, bool) {
	if member := w.membership(s.ServiceKey); member != nil {
		if own, ok := findPort(member.Ports, m.Service); ok && own.Target != 0 {
			return own.Target, true
		}
	}
	if m.Target != 0 {
		return m.Target, true
	}
	return m.Service, w.AppTunnel != nil && w.AppTunnel.Port != 0
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
		case !families.allow(a):
		case !found.IsValid(), asked.IsValid() && a.Is4() == asked.Is4() && found.Is4() != asked.Is4():
			found = a
		}
	}
	return found, found.IsValid()
}

// allow tells whether a is of the families.
func (f Families) allow(a netip.Addr) bool { return f == FamiliesAny || (f == FamiliesIPv4) == a.Is4() }

// families are those in which w can connect: FamiliesAny unless all of its addresses, if it has any, are of the same one.
func (w *Workload) families() Families {
	if len(w.Addrs) == 0 {
		return FamiliesAny
	}
	first := w.Addrs[0].Is4()
	for _, a := range w.Addrs[1:] {
		if a.Is4() != first {
			return FamiliesAny
		}
	}
	if first {
		return FamiliesIPv4
	}
	return FamiliesIPv6
}
