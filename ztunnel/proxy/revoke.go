package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// alertRevoked is what a peer says of a certificate of ours that it finds in its revocation list (RFC 8446, section 6.2).
const alertRevoked = tls.AlertError(44)

// revoked says why a peer's certificates are not good any more.
func (n *Node) revoked(peer []*x509.Certificate) error { return n.Trust.Revoked(peer) }

// Recheck ends the tunnels, of all pods and in both directions, one of whose peer's certificates is revoked by now. Their
// connections end as CERT_REVOKED.
func (n *Node) Recheck() {
	ended := 0
	for _, p := range n.snapshot() {
		// Connections first, so that each ends for the true reason.
		ended += p.conns.recheck(n.revoked)
		p.pool.Recheck()
		p.server.Recheck()
	}
	if ended > 0 {
		n.Logger.Warn("connections were ended since certificates of their peers are revoked", "connections", ended)
	}
}

// recheck cuts the connections through tunnels whose peer's certificates are not good any more, and returns how many.
func (t *table) recheck(revoked func([]*x509.Certificate) error) int {
	type candidate struct {
		conn  *conn
		certs []*x509.Certificate
	}
	t.mu.Lock()
	var all []candidate
	for c := range t.conns {
		if len(c.certs) > 0 {
			all = append(all, candidate{c, c.certs})
		}
	}
	t.mu.Unlock()
	n := 0
	for _, c := range all {
		if err := revoked(c.certs); err != nil {
			c.conn.cut(err)
			n++
		}
	}
	return n
}

// endFlag says how a connection that was open is counted that ended so.
func endFlag(err error) telemetry.Flag {
	switch {
	case isRevoked(err):
		return telemetry.FlagRevoked
	case errors.Is(err, errPolicyChanged):
		return telemetry.FlagDenied
	}
	return telemetry.FlagNone
}

// endOf says how a connection that was open is counted that ended so, and why it did: its tunnel may have ended before the
// connection itself was cut.
func (c *conn) endOf(err error) (telemetry.Flag, error) {
	if cause := context.Cause(c.ctx); cause != nil && endFlag(cause) != telemetry.FlagNone {
		return endFlag(cause), cause
	}
	return endFlag(err), err
}

// isRevoked reports whether a certificate was found in a revocation list, by us or by the peer.
func isRevoked(err error) bool {
	if refused, ok := errors.AsType[*identity.VerifyError](err); ok {
		return refused.Reason == identity.ReasonRevoked
	}
	alert, ok := errors.AsType[tls.AlertError](err)
	return ok && alert == alertRevoked
}

// handshakeRefused counts and logs a connection to the pod's tunnel port that ended in its handshake.
func (p *Pod) handshakeRefused(nc net.Conn, err error) {
	flag := telemetry.FlagTLS
	switch {
	case errors.Is(err, errNoCertificate):
		flag = telemetry.FlagIdentity
	case isRevoked(err):
		flag = telemetry.FlagRevoked
	}
	c := p.conns.open(p.ctx, func(c *conn) {
		c.original = netns.AddrPort(nc.LocalAddr())
		c.files = 0
		c.record.Reporter, c.record.Inbound, c.record.MutualTLS = telemetry.ReporterDestination, true, true
		c.record.SourceAddr, c.record.DestinationAddr = netns.AddrPort(nc.RemoteAddr()), c.original
		if self := p.known.Load(); self != nil {
			c.record.Destination, c.record.DestinationIdentity = self, self.Identity
		}
		// A server refuses a certificate before the client has signed with its key: anybody can show another's.
		if refused, ok := errors.AsType[*identity.VerifyError](err); ok {
			c.record.Claimed = refused.Peer
		}
	})
	c.close(p.node, flag, fmt.Errorf("tunnel refused: %w", err))
}

// Revocations counts connections that end for a revoked certificate. *telemetry.Trust implements it.
type Revocations interface {
	Rejected(telemetry.Reporter)
}
