package proxy

import (
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

// proof is what the peer of a tunnel has proved itself with.
type proof struct {
	certs []*x509.Certificate // leaf first
	// expect are those of which it had to be one. None: it is a client, which had to be of the pod's trust domain.
	expect []identity.Identity
}

// disproved says why a peer's certificates are not good any more: revoked, or under a name of the trust domain that was withdrawn.
func (p *Pod) disproved(by *proof) error {
	if len(by.expect) > 0 {
		return p.node.Trust.StillServer(by.certs, by.expect)
	}
	return p.node.Trust.StillClient(by.certs, p.identity().TrustDomain)
}

// sameIdentity compares identities under all names of the mesh's trust domain.
func (n *Node) sameIdentity(a, b identity.Identity) bool {
	d := n.Trust.Domains()
	return d.Canonical(a) == d.Canonical(b)
}

// DomainsChanged is to be called when the names of the mesh's trust domain are others. It has Run end the tunnels of peers that had
// a name which was withdrawn, and judge the other connections again. It does not block.
func (n *Node) DomainsChanged() {
	n.mu.Lock()
	n.renamed = true
	n.announceLocked()
	n.mu.Unlock()
}

// Recheck ends the tunnels, of all pods and in both directions, whose peer's certificates are not good any more. Where they are
// revoked their connections end as CERT_REVOKED, else as TLS_FAILURE.
func (n *Node) Recheck() {
	ended := 0
	for _, p := range n.snapshot() {
		// Connections first, so that each ends for the true reason.
		ended += p.conns.recheck(p.disproved)
		p.pool.Recheck()
		p.server.Recheck()
	}
	if ended > 0 {
		n.Logger.Warn("connections were ended since certificates of their peers are not accepted any more", "connections", ended)
	}
}

// recheck cuts the connections through tunnels whose peer's certificates are not good any more, and returns how many.
func (t *table) recheck(disproved func(*proof) error) int {
	type candidate struct {
		conn *conn
		by   proof
	}
	t.mu.Lock()
	var all []candidate
	for c := range t.conns {
		if len(c.proof.certs) > 0 {
			all = append(all, candidate{c, c.proof})
		}
	}
	t.mu.Unlock()
	n := 0
	for _, c := range all {
		if err := disproved(&c.by); err != nil {
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
	case isRefused(err):
		return telemetry.FlagTLS
	}
	return telemetry.FlagNone
}

// endOf says how a connection that was open is counted that ended so, and why it did: its tunnel may have ended before the
// connection itself was cut.
func (c *conn) endOf(err error) (telemetry.Flag, error) {
	c.table.mu.Lock()
	cause := c.cause
	c.table.mu.Unlock()
	if endFlag(cause) != telemetry.FlagNone {
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

// isRefused reports whether a peer's certificate was refused, by us.
func isRefused(err error) bool {
	_, ok := errors.AsType[*identity.VerifyError](err)
	return ok
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
