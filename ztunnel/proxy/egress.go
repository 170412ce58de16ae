package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
)

// errNotRegistered is why a connection was refused that leads out of the mesh.
var errNotRegistered = errors.New("the mesh does not know this destination, and outboundTrafficPolicy is REGISTRY_ONLY: a ServiceEntry makes it known")

// errNoFamily is why a host name was of no use.
var errNoFamily = errors.New("the host has no address of a family that the pod has")

// Hosts looks host names up; lookup.Resolver is one.
type Hosts interface {
	// Lookup returns at least one address. The result is shared and must not be changed.
	Lookup(ctx context.Context, host string) ([]netip.Addr, error)
}

// registryOnly tells whether connections to what the mesh does not know are refused, as of now.
func (n *Node) registryOnly() bool { return n.Settings != nil && n.Settings.Current().RegistryOnly }

// unknown is the way to an address that is neither a workload's nor a service's.
func (n *Node) unknown(dst netip.AddrPort) (destination, error) {
	if n.registryOnly() {
		return destination{addr: dst}, fmt.Errorf("connect to %s: %w", dst, errNotRegistered)
	}
	return destination{addr: dst}, nil
}

// passthrough is the way to an address that clients of a service choose themselves. Ports that the service does not have are
// none of its own.
func (n *Node) passthrough(s *directory.Service, dst netip.AddrPort) (destination, error) {
	d := destination{service: s, addr: dst}
	known := slices.ContainsFunc(s.Ports, func(p directory.PortMapping) bool { return p.Service == dst.Port() })
	if !known && n.registryOnly() {
		return d, fmt.Errorf("connect to %s: service %s has no port %d: %w", dst, s.ServiceKey, dst.Port(), errNotRegistered)
	}
	return d, nil
}

// maxHostAddrs is how many addresses of a host are tried for one connection.
const maxHostAddrs = 3

// noAddressError is why there was no address to connect to. It is no fault of whom the name stands for.
type noAddressError struct{ error }

func (e noAddressError) Unwrap() error { return e.error }

// lookUpHost finds the addresses of the host that d leads to. Its errors are noAddressErrors.
func (p *Pod) lookUpHost(ctx context.Context, c *conn, self *directory.Workload, d *destination) error {
	if p.node.Hosts == nil {
		return noAddressError{fmt.Errorf("workload %s has no address but the host name %s, and there is nobody to ask for it", d.workload.UID, d.host)}
	}
	p.node.Lookups.Count(self, d.workload)
	all, err := p.node.Hosts.Lookup(ctx, d.host)
	if err != nil {
		return noAddressError{err}
	}
	addrs := hostAddrs(all, self, c.original.Addr())
	if len(addrs) == 0 {
		return noAddressError{fmt.Errorf("host %s: %w", d.host, errNoFamily)}
	}
	d.hostAddrs = addrs[:min(len(addrs), maxHostAddrs)]
	return nil
}

// openHost connects to one of the addresses of the host that d leads to.
func (p *Pod) openHost(ctx context.Context, c *conn, self *directory.Workload, d *destination) (upstream, error) {
	var failed error
	for i, addr := range d.hostAddrs {
		d.addr = netip.AddrPortFrom(addr, d.hostPort)
		if d.workload.Tunnel == directory.TunnelHBONE {
			d.openTunnel(self, netip.AddrPortFrom(addr, api.PortHBONE), d.addr)
		}
		c.describe(d)
		limited, cancel := patience(ctx, i == len(d.hostAddrs)-1, c.saidTo(d))
		up, err := p.openAddr(limited, c, self, d)
		cancel()
		switch {
		case err == nil:
			return up, nil
		case errors.Is(err, hbone.ErrMayHaveArrived):
			return upstream{}, fmt.Errorf("host %s: %w", d.host, err)
		}
		if failed == nil {
			failed = fmt.Errorf("host %s: %w", d.host, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return upstream{}, failed
}

// hostAddrs are the addresses of a host that self can reach, in the order in which to try them: those of the family that the
// application asked for first, by chance within a family.
func hostAddrs(all []netip.Addr, self *directory.Workload, asked netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		if addrOfFamily(self, a).IsValid() {
			out = append(out, a)
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	slices.SortStableFunc(out, func(a, b netip.Addr) int {
		switch asked := asked.Unmap(); {
		case a.Is4() == b.Is4():
			return 0
		case a.Is4() == asked.Is4():
			return -1
		}
		return 1
	})
	return out
}
