package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// maxEndpoints is how many endpoints of a service are tried for one connection.
const maxEndpoints = 3

// errOwnPort is why a connection was refused that would have come back to the proxy.
var errOwnPort = errors.New("the destination is a port of the node proxy itself")

// outbound serves a connection that the pod's application opened. It owns client.
func (p *Pod) outbound(ctx context.Context, client *net.TCPConn) {
	src := netns.AddrPort(client.RemoteAddr())
	dst, err := netns.OriginalDst(client)
	if err != nil {
		p.logger.Error("outbound connection dropped", "src.addr", src, "error", err)
		reset(client)
		return
	}
	c, ctx := p.conns.open(ctx, telemetry.Connection{
		Flow:            telemetry.Flow{Reporter: telemetry.ReporterSource},
		SourceAddr:      src,
		DestinationAddr: dst,
	})
	c.update(func(c *conn) { c.original = dst })
	flag, err := p.carryOutbound(ctx, c, client, dst)
	c.close(ctx, p.node, flag, err)
}

// carryOutbound finds the way, opens it and relays until the end. It closes client.
func (p *Pod) carryOutbound(ctx context.Context, c *conn, client *net.TCPConn, dst netip.AddrPort) (telemetry.Flag, error) {
	fail := func(flag telemetry.Flag, err error) (telemetry.Flag, error) {
		reset(client)
		return flag, err
	}
	self, err := p.self(ctx)
	if err != nil {
		return fail(telemetry.FlagIdentity, err)
	}
	if isOwnPort(dst.Port()) && (isSelf(self, dst.Addr()) || dst == netns.AddrPort(client.LocalAddr())) {
		return fail(telemetry.FlagDenied, fmt.Errorf("connect to %s: %w", dst, errOwnPort))
	}
	c.update(func(c *conn) {
		c.record.Source, c.record.SourceIdentity = self, self.Identity
	})
	up, err := p.connect(ctx, c, self, dst)
	if err != nil {
		return fail(flagOf(err), err)
	}
	c.established(ctx, p.node)
	if up.stream != nil {
		err = p.relayer.Relay(ctx, client, up.stream, &c.counters)
	} else {
		err = p.relayer.RelayTCP(ctx, client, up.tcp, &c.counters)
	}
	return telemetry.FlagNone, err
}

// upstream is an open way: a stream or a connection.
type upstream struct {
	stream *hbone.Stream
	tcp    *net.TCPConn
}

// connect opens the way to dst. No byte of the application has been sent yet, so another endpoint of the service is tried
// when one fails.
func (p *Pod) connect(ctx context.Context, c *conn, self *directory.Workload, dst netip.AddrPort) (upstream, error) {
	var tried []string
	var first error
	for range maxEndpoints {
		d, err := p.node.route(self, dst, tried)
		if err != nil {
			c.describe(&d)
			return upstream{}, earlier(first, err)
		}
		c.describe(&d)
		up, err := p.open(ctx, c, self, &d)
		if err == nil {
			return up, nil
		}
		first = earlier(first, err)
		if d.service == nil || d.workload == nil || ctx.Err() != nil || !worthAnother(err) {
			return upstream{}, first
		}
		tried = append(tried, d.workload.UID)
	}
	return upstream{}, first
}

// earlier is the first of two errors, if there was one: it tells more than that nothing else was left to try.
func earlier(first, err error) error {
	if first != nil {
		return first
	}
	return err
}

// worthAnother tells whether another endpoint may take what this one did not.
func worthAnother(err error) bool {
	var status *hbone.StatusError
	if errors.As(err, &status) {
		return status.Status == statusUnavailable
	}
	return !errors.Is(err, errNoCertificate)
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
	if !d.tunnel {
		conn, err := p.dialPlain(ctx, d.addr)
		return upstream{tcp: conn}, err
	}
	s, err := p.pool.Open(ctx, d.target, hbone.Request{
		Authority:   d.authority,
		Baggage:     p.baggage(self),
		Forwarded:   forwardedFor(c.record.SourceAddr, d.service),
		Traceparent: newTraceparent(),
	})
	if err != nil {
		return upstream{}, explain(err)
	}
	return upstream{stream: s}, nil
}

// explain adds what to do to errors that have one usual cause.
func explain(err error) error {
	var dial *hbone.DialError
	if errors.As(err, &dial) && dial.Stage == hbone.StageConnect && isTimeout(err) {
		return fmt.Errorf("%w (does a NetworkPolicy or firewall block port %d?)", err, dial.Target.Addr.Port())
	}
	return err
}
