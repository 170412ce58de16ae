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
	"github.com/ambit-mesh/ambit/ztunnel/sockets"
)

// serveNames answers the pod's name queries from now on, if that is wanted. A pod without is not refused: the agent redirects
// queries only where somebody listens.
func (p *Pod) serveNames(claim *sockets.Claim) {
	if p.node.Names == nil {
		return
	}
	if err := p.openNames(claim); err != nil {
		p.dropNames()
		p.logger.Error("the pod's name queries are not answered by the mesh; they go to its own resolvers", "error", err)
		return
	}
	var err error
	if p.lookup, err = p.ns.OpenConntrack(); err != nil {
		p.logger.Warn("cannot look into the pod's connection tracking; queries are sent on to the resolvers that the pod is configured with", "error", err)
	}
	r := p.pod.Resolver
	config := dns.Config{
		Namespace: p.pod.Namespace, Sockets: podSockets{p}, Party: p.party, Source: p.canonicalService, Families: p.families,
	}
	if r != (inpod.Resolver{}) {
		config.Settings = dns.NewSettings(strings.Fields(r.Servers), strings.Fields(r.Search), r.NDots)
	}
	var packets []net.PacketConn
	for _, q := range p.asked.packets {
		packets = append(packets, q)
	}
	var listeners []net.Listener
	for _, l := range p.asked.streams {
		listeners = append(listeners, l)
	}
	p.names = p.node.Names.Serve(config, packets, listeners)
}

// asked is the sockets to which a pod's name queries come.
type asked struct {
	packets []*queries
	streams []*listener
}

// openNames opens, or takes over, the ports that queries are redirected to, on loopback of each family that the pod has.
func (p *Pod) openNames(claim *sockets.Claim) error {
	loopbacks := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if p.node.IPv6 {
		loopbacks = append(loopbacks, netip.IPv6Loopback())
	}
	for _, addr := range loopbacks {
		err := p.openNamesAt(claim, netip.AddrPortFrom(addr, api.PortDNS))
		if addr.Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			continue // a pod without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openNamesAt does so for one address.
func (p *Pod) openNamesAt(claim *sockets.Claim, at netip.AddrPort) error {
	keepAlive := p.node.KeepAlive
	how := netns.Listener{Shared: p.node.PortReuse, KeepAlive: keepAlive}
	logger := p.logger.With("port", at.Port())
	udp, err := claim.UDPAt(at)
	if err != nil {
		logger.Warn("cannot take the port over; listening beside", "error", err)
	}
	if udp == nil {
		if udp, err = p.ns.ListenUDP(how, at); err != nil {
			return err
		}
	}
	p.asked.packets = append(p.asked.packets, &queries{UDPConn: udp, ctx: p.ctx})
	tcp, err := claim.TCPAt(at)
	if err != nil {
		logger.Warn("cannot take the port over; listening beside", "error", err)
	}
	taken := tcp != nil
	if !taken {
		if tcp, err = p.ns.ListenTCPAt(how, at); err != nil {
			return err
		}
	}
	l := newListener(p.ctx, tcp, logger)
	l.bounds = p.node.Bounds
	if taken {
		l.shared.keepAlive = &keepAlive
	}
	p.asked.streams = append(p.asked.streams, l)
	return nil
}

// dropNames closes what openNames has opened.
func (p *Pod) dropNames() {
	for _, q := range p.asked.packets {
		q.Close()
	}
	for _, l := range p.asked.streams {
		l.Close()
	}
	p.asked = asked{}
}

// elsewhere tells whether another process answers the pod's queries.
func (a *asked) elsewhere() bool {
	return len(a.packets) > 0 && a.packets[0].shared.paused()
}

// end has no more queries be read.
func (a *asked) end() {
	for _, q := range a.packets {
		q.end()
	}
	for _, l := range a.streams {
		l.drain()
	}
}

// closeNames ends the answering of queries, once they go elsewhere or the context ends.
func (p *Pod) closeNames(ctx context.Context) {
	if p.names != nil {
		p.names.Linger(ctx, p.asked.elsewhere())
		p.asked.end()
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

// families are those of the pod's addresses; both as long as the control plane does not know the pod.
func (p *Pod) families() (ipv4, ipv6 bool) {
	w := p.lookUp()
	if w == nil || len(w.Addrs) == 0 {
		return true, true
	}
	for _, a := range w.Addrs {
		ipv4, ipv6 = ipv4 || a.Is4(), ipv6 || a.Is6()
	}
	return ipv4, ipv6
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
