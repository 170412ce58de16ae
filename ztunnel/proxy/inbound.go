package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// Status codes of answers to CONNECT, as Istio's ztunnel uses them.
const (
	statusBadRequest  = 400
	statusDenied      = 401
	statusUnavailable = 503
)

// refusal is why a connection that came for the pod is not carried.
type refusal struct {
	status int
	flag   telemetry.Flag
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(status int, flag telemetry.Flag, format string, args ...any) *refusal {
	return &refusal{status: status, flag: flag, err: fmt.Errorf(format, args...)}
}

// inboundTunnel serves one tunnel request.
func (p *Pod) inboundTunnel(ctx context.Context, in *hbone.Incoming) {
	if c := p.openInboundTunnel(ctx, in); c != nil {
		p.relay(c)
	}
}

// openInboundTunnel registers a tunnel request, checks it, connects to the application and answers. If it refuses, it returns
// nil.
func (p *Pod) openInboundTunnel(ctx context.Context, in *hbone.Incoming) *conn {
	if p.full() {
		if err := in.Reject(statusUnavailable, "the pod has too many connections"); err != nil {
			p.logger.Debug("refuse a tunnel", "error", err)
		}
		return nil
	}
	p.party.Asks(workPerConnection)
	c := p.conns.open(ctx, func(c *conn) {
		c.original, c.appFirst, c.proof = in.LocalAddr(), true, proof{certs: in.PeerCertificates()}
		c.record.Reporter = telemetry.ReporterDestination
		c.record.Source, c.record.SourceIdentity, c.record.MutualTLS = p.sourceOf(in), in.Peer(), true
		c.record.SourceAddr, c.record.DestinationAddr, c.record.HBONEAddr = in.RemoteAddr(), in.LocalAddr(), in.Authority()
		c.record.Trace, c.record.Inbound = traceOf(in.Header("traceparent")), true
	})
	app, refused := p.admitTunnel(c.ctx, c, in)
	if refused != nil {
		if err := in.Reject(refused.status, refused.Error()); err != nil {
			refused.err = errors.Join(refused.err, err)
		}
		c.close(p.node, refused.flag, refused.err)
		return nil
	}
	var extra []hbone.Header
	if p.node.ResponseBaggage {
		extra = append(extra, hbone.Header{Name: "baggage", Value: p.baggage(c.record.Destination)})
	}
	stream, err := in.Accept(extra...)
	if err != nil {
		reset(app)
		c.close(p.node, telemetry.FlagNone, fmt.Errorf("answer the tunnel request: %w", err))
		return nil
	}
	c.tcp, c.stream = app, stream
	return c
}

// sourceOf finds the workload that a tunnel comes from, for telemetry: that of the address, if it is who it proved to be.
func (p *Pod) sourceOf(in *hbone.Incoming) *directory.Workload {
	if w := p.node.workloadAt(in.RemoteAddr().Addr()); w != nil && p.node.sameIdentity(w.Identity, in.Peer()) {
		return w
	}
	return nil
}

// admitTunnel checks a request and connects to the application.
func (p *Pod) admitTunnel(ctx context.Context, c *conn, in *hbone.Incoming) (*net.TCPConn, *refusal) {
	// Its handshake may be older than what refuses it.
	if err := p.disproved(&c.proof); err != nil {
		return nil, refuse(statusDenied, endFlag(err), "%w", err)
	}
	self, err := p.self(ctx)
	if err != nil {
		return nil, refuse(statusUnavailable, telemetry.FlagIdentity, "%w", err)
	}
	c.update(func(c *conn) {
		c.record.Destination, c.record.DestinationIdentity = self, self.Identity
	})
	dst, service, refused := p.resolveAuthority(self, in)
	if refused != nil {
		return nil, refused
	}
	c.update(func(c *conn) { c.record.DestinationAddr, c.record.Service = dst, service })
	if self.AppTunnel != nil {
		return nil, refuse(statusUnavailable, telemetry.FlagConnect, "workload %s wants an application tunnel, which this version does not have", self.UID)
	}
	if refused := p.judge(ctx, c, policy.Connection{Peer: in.Peer(), Source: in.RemoteAddr().Addr(), Destination: dst}); refused != nil {
		return nil, refused
	}
	app, err := p.dialApp(ctx, in.RemoteAddr().Addr(), dst)
	if err != nil {
		return nil, refuse(statusUnavailable, flagOf(err), "%w", err)
	}
	return app, nil
}

// resolveAuthority turns what a client asks for into the application's address.
func (p *Pod) resolveAuthority(self *directory.Workload, in *hbone.Incoming) (netip.AddrPort, *directory.Service, *refusal) {
	a, err := hbone.ParseAuthority(in.Authority())
	if err != nil {
		return netip.AddrPort{}, nil, refuse(statusBadRequest, telemetry.FlagConnect, "%w", err)
	}
	local := in.LocalAddr().Addr()
	dst := a.AddrPort()
	var service *directory.Service
	if a.Host != "" {
		service = p.node.Directory.ServiceByHost(a.Host, self.Namespace)
		port := targetPort(self, service, a.Port)
		if port == 0 {
			return netip.AddrPort{}, service, refuse(statusUnavailable, telemetry.FlagConnect,
				"%s is not served by %s", in.Authority(), self.UID)
		}
		dst = netip.AddrPortFrom(local, port)
	} else {
		if dst.Addr() != local {
			return netip.AddrPort{}, nil, refuse(statusBadRequest, telemetry.FlagConnect,
				"IP mismatch: asked for %s, but this is %s", in.Authority(), local)
		}
		service = p.serviceOf(self, dst.Port(), forwardedHost(in.Header("forwarded")))
	}
	if isOwnPort(dst.Port()) {
		return netip.AddrPort{}, service, refuse(statusUnavailable, telemetry.FlagConnect, "connect to %s: %w", dst, errOwnPort)
	}
	return dst, service, nil
}

// targetPort maps a service port to self's; 0 if self does not serve it.
func targetPort(self *directory.Workload, s *directory.Service, port uint16) uint16 {
	if s == nil {
		return 0
	}
	var fallback uint16
	for _, m := range s.Ports {
		if m.Service == port {
			fallback = m.Target
		}
	}
	for _, member := range self.Services {
		if member.Service != s.ServiceKey {
			continue
		}
		for _, m := range member.Ports {
			if m.Service == port && m.Target != 0 {
				return m.Target
			}
		}
		return fallback
	}
	return 0
}

// serviceOf finds the service that a connection to self's port came through, for telemetry: the named one, else the first
// that has the port.
func (p *Pod) serviceOf(self *directory.Workload, port uint16, host string) *directory.Service {
	for _, member := range self.Services {
		named := host != "" && member.Service.Hostname == host
		for _, m := range member.Ports {
			if named || host == "" && m.Target == port {
				return p.node.Directory.Service(member.Service)
			}
		}
	}
	return nil
}

// inboundPlain serves a plaintext connection that came for the pod. It owns client.
func (p *Pod) inboundPlain(client *net.TCPConn) {
	if c := p.openInboundPlain(client); c != nil {
		p.relay(c)
	}
}

// openInboundPlain registers a plaintext connection, checks it and connects to the application. If it refuses, it has reset
// the client, and returns nil.
func (p *Pod) openInboundPlain(client *net.TCPConn) *conn {
	src := netns.AddrPort(client.RemoteAddr())
	dst, err := netns.OriginalDst(client)
	if err != nil {
		p.logger.Error("inbound connection dropped", "src.addr", src, "error", err)
		reset(client)
		return nil
	}
	c := p.conns.open(context.Background(), func(c *conn) {
		c.original = dst
		c.record.Reporter, c.record.Source = telemetry.ReporterDestination, p.node.workloadAt(src.Addr())
		c.record.SourceAddr, c.record.DestinationAddr, c.record.Inbound = src, dst, true
	})
	app, refused := p.admitPlain(c.ctx, c, src, dst)
	if refused != nil {
		reset(client)
		c.close(p.node, refused.flag, refused.err)
		return nil
	}
	c.tcp, c.second = client, app
	return c
}

// admitPlain checks a plaintext connection, which has no identity, and connects to the application.
func (p *Pod) admitPlain(ctx context.Context, c *conn, src, dst netip.AddrPort) (*net.TCPConn, *refusal) {
	if isOwnPort(dst.Port()) {
		return nil, refuse(0, telemetry.FlagDenied, "connect to %s: %w", dst, errOwnPort)
	}
	self, err := p.self(ctx)
	if err != nil {
		return nil, refuse(0, telemetry.FlagIdentity, "%w", err)
	}
	c.update(func(c *conn) {
		c.record.Destination, c.record.DestinationIdentity = self, self.Identity
		c.record.Service = p.serviceOf(self, dst.Port(), "")
	})
	if refused := p.judge(ctx, c, policy.Connection{Source: src.Addr(), Destination: dst}); refused != nil {
		return nil, refused
	}
	app, err := p.dialApp(ctx, src.Addr(), dst)
	if err != nil {
		return nil, refuse(0, flagOf(err), "%w", err)
	}
	return app, nil
}

// isOwnPort tells whether a port of the pod is the proxy's.
func isOwnPort(port uint16) bool {
	return port == api.PortOutbound || port == api.PortInbound || port == api.PortHBONE
}
