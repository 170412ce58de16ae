package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// errOwnPort is why a connection was refused that would have come back to the proxy.
var errOwnPort = errors.New("the destination is a port of the node proxy itself")

// outbound serves a connection that the pod's application opened. It owns client.
func (p *Pod) outbound(client *net.TCPConn) {
	if c := p.openOutbound(client); c != nil {
		p.relay(c)
	}
}

// openOutbound registers a connection, finds its way and opens that. If there is none, it has reset the client, and returns
// nil.
func (p *Pod) openOutbound(client *net.TCPConn) *conn {
	src := netns.AddrPort(client.RemoteAddr())
	dst, err := netns.OriginalDst(client)
	if err != nil {
		p.logger.Error("outbound connection dropped", "src.addr", src, "error", err)
		reset(client)
		return nil
	}
	c := p.conns.open(context.Background(), func(c *conn) {
		c.original = dst
		c.record.Reporter = telemetry.ReporterSource
		c.record.SourceAddr, c.record.DestinationAddr = src, dst
	})
	c.early = hbone.NewEarly(client, p.budget)
	up, refused := p.admitOutbound(c.ctx, c, client, dst)
	if refused == nil && up.tcp != nil {
		refused = c.passEarly(up.tcp)
	}
	if refused != nil {
		reset(client)
		_, _ = c.early.Stop() // nobody wants it
		c.close(p.node, refused.flag, refused.err)
		return nil
	}
	c.tcp, c.stream, c.second, c.early = client, up.stream, up.tcp, nil
	return c
}

// passEarly gives what the client said to an endpoint without a tunnel, where one with a tunnel was tried before.
func (c *conn) passEarly(tcp *net.TCPConn) *refusal {
	said, err := c.early.Stop()
	if err == nil && len(said) > 0 {
		_, err = tcp.Write(said)
		c.counters.Sent.Add(uint64(len(said)))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		reset(tcp)
		return refuse(0, telemetry.FlagConnect, "pass on what the client said: %w", err)
	}
	return nil
}

// relay counts a connection as open and carries it until its end, in the background if it goes through a tunnel.
func (p *Pod) relay(c *conn) {
	c.established(p.node)
	done := func(err error) {
		if errors.Is(err, hbone.ErrHalfCloseTimeout) {
			p.node.Bounds.TimedOut("half_close")
		}
		flag, err := c.endOf(err)
		c.close(p.node, flag, err)
	}
	if tcp, stream := c.tcp, c.stream; stream != nil {
		c.carried(func() func(error) {
			return p.relayer.Start(context.Background(), tcp, stream, &c.counters, done)
		})
		return
	}
	done(p.relayer.RelayTCP(c.ctx, c.tcp, c.second, &c.counters))
}

// admitOutbound learns who the pod is and connects.
func (p *Pod) admitOutbound(ctx context.Context, c *conn, client *net.TCPConn, dst netip.AddrPort) (upstream, *refusal) {
	self, err := p.self(ctx)
	if err != nil {
		return upstream{}, refuse(0, telemetry.FlagIdentity, "%w", err)
	}
	if isOwnPort(dst.Port()) && (isSelf(self, dst.Addr()) || dst == netns.AddrPort(client.LocalAddr())) {
		return upstream{}, refuse(0, telemetry.FlagDenied, "connect to %s: %w", dst, errOwnPort)
	}
	c.update(func(c *conn) {
		c.record.Source, c.record.SourceIdentity = self, self.Identity
	})
	up, err := p.connect(ctx, c, self, dst)
	if err != nil {
		return upstream{}, refuse(0, flagOf(err), "%w", err)
	}
	return up, nil
}

// describe records where a connection goes.
func (c *conn) describe(d *destination) {
	c.update(func(c *conn) {
		c.record.Destination, c.record.Service = d.workload, d.service
		c.record.DestinationIdentity = d.identity()
		c.record.MutualTLS = d.tunnel
		c.record.DestinationAddr, c.record.HBONEAddr = d.addr, ""
		if d.tunnel {
			c.record.DestinationAddr, c.record.HBONEAddr = d.target.Addr, d.authority
		}
	})
}

// open opens one way.
func (p *Pod) open(ctx context.Context, c *conn, self *directory.Workload, d *destination) (upstream, error) {
	if d.host != "" {
		return p.openHost(ctx, c, self, d)
	}
	return p.openAddr(ctx, c, self, d)
}

// openAddr opens one way, to an address.
func (p *Pod) openAddr(ctx context.Context, c *conn, self *directory.Workload, d *destination) (upstream, error) {
	if !d.tunnel {
		conn, err := p.dialPlain(ctx, d.addr)
		return upstream{tcp: conn}, err
	}
	if c.record.Trace == [16]byte{} { // else it is another endpoint's turn
		trace := newTrace()
		c.update(func(c *conn) { c.record.Trace = trace })
	}
	s, err := p.pool.Open(ctx, d.target, hbone.Request{
		Authority:   d.authority,
		Baggage:     p.baggage(self),
		Forwarded:   forwardedFor(c.record.SourceAddr, d.service),
		Traceparent: traceparent(c.record.Trace),
		Early:       c.early,
	})
	if err != nil {
		if errors.Is(err, hbone.ErrTooManyConnections) {
			p.refused(boundTunnels, p.node.Limits.Tunnels)
		}
		return upstream{}, explain(err)
	}
	c.update(func(c *conn) { c.proof = proof{s.PeerCertificates(), d.target.Expect} })
	if err := p.node.Trust.Revoked(s.PeerCertificates()); err != nil { // since its handshake
		s.Close()
		if c.early.Said() {
			err = fmt.Errorf("%w: %w", err, hbone.ErrMayHaveArrived)
		}
		return upstream{}, err
	}
	return upstream{stream: s}, nil
}

// explain adds what to do to errors that have one usual cause.
func explain(err error) error {
	if errors.Is(err, hbone.ErrTooManyConnections) {
		return fmt.Errorf("%w for one pod (AMBIT_POD_MAX_TUNNELS of the node proxy), and all are in use", err)
	}
	var dial *hbone.DialError
	if errors.As(err, &dial) && dial.Stage == hbone.StageConnect && isTimeout(err) {
		return fmt.Errorf("%w (does a NetworkPolicy or firewall block port %d?)", err, dial.Target.Addr.Port())
	}
	return err
}
