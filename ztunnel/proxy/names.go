package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// serveNames answers the pod's name queries from now on, if that is wanted. A pod without is not refused: the agent redirects
// queries only where somebody listens.
func (p *Pod) serveNames() {
	if p.node.Names == nil {
		return
	}
	packets, listeners, err := p.openNames()
	if err != nil {
		p.logger.Error("the pod's name queries are not answered by the mesh; they go to its own resolvers", "error", err)
		return
	}
	if p.lookup, err = p.ns.OpenConntrack(); err != nil {
		p.logger.Warn("cannot look into the pod's connection tracking; queries are sent on to the resolvers that the pod is configured with", "error", err)
	}
	r := p.pod.Resolver
	config := dns.Config{Namespace: p.pod.Namespace, Sockets: podSockets{p}, Source: p.canonicalService}
	if r != (inpod.Resolver{}) {
		config.Settings = dns.NewSettings(strings.Fields(r.Servers), strings.Fields(r.Search), r.NDots)
	}
	p.names = p.node.Names.Serve(config, packets, listeners)
}

// openNames opens the ports that queries are redirected to, on loopback of each family that the pod has.
func (p *Pod) openNames() (packets []net.PacketConn, listeners []net.Listener, err error) {
	l := netns.Listener{Shared: p.node.PortReuse, KeepAlive: p.node.KeepAlive}
	loopbacks := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if p.node.IPv6 {
		loopbacks = append(loopbacks, netip.IPv6Loopback())
	}
	for _, addr := range loopbacks {
		at := netip.AddrPortFrom(addr, api.PortDNS)
		var udp *net.UDPConn
		var tcp *net.TCPListener
		if udp, err = p.ns.ListenUDP(l, at); err == nil {
			packets = append(packets, udp)
			if tcp, err = p.ns.ListenTCPAt(l, at); err == nil {
				listeners = append(listeners, tcp)
			}
		}
		if err != nil && addr.Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			err = nil // a pod without IPv6
			continue
		}
		if err != nil {
			for _, c := range packets {
				c.Close()
			}
			for _, c := range listeners {
				c.Close()
			}
			return nil, nil, err
		}
	}
	return packets, listeners, nil
}

// closeNames ends the answering of queries, once they go elsewhere or the context ends.
func (p *Pod) closeNames(ctx context.Context) {
	if p.names != nil {
		p.names.Linger(ctx)
		p.names.Close()
	}
	if p.lookup != nil {
		p.lookup.Close()
	}
}

func (p *Pod) canonicalService() (service, revision string) {
	if w := p.lookUp(); w != nil {
		return w.CanonicalName, w.CanonicalRevision
	}
	return "", ""
}

// podSockets implements dns.Sockets.
type podSockets struct{ p *Pod }

func (s podSockets) Dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	if network == "udp" {
		return s.p.ns.DialUDP(s.p.node.Mark, server)
	}
	return s.p.ns.DialTCP(ctx, s.p.node.dialer(), server)
}

func (s podSockets) Original(network string, client, local netip.AddrPort) (netip.AddrPort, bool) {
	if s.p.lookup == nil {
		return netip.AddrPort{}, false
	}
	protocol := uint8(unix.IPPROTO_UDP)
	if network == "tcp" {
		protocol = unix.IPPROTO_TCP
	}
	original, ok, err := s.p.lookup.Original(protocol, client, local)
	if err != nil {
		s.p.logger.Debug("where a query was going is not known", "error", err)
	}
	return original, ok
}
