package identity

import (
	"crypto/tls"
)

// VerifyReason says why a peer's certificate was refused.
type VerifyReason string

const (
	// ReasonNoCertificate: the peer showed none.
	ReasonNoCertificate VerifyReason = "no-certificate"
	// ReasonUntrusted: no chain to the roots, or one that may not be used so.
	ReasonUntrusted VerifyReason = "untrusted"
	// ReasonExpired: expired, or not valid yet.
	ReasonExpired VerifyReason = "expired"
	// ReasonNoIdentity: the chain is good, but there is no workload identity in it.
	ReasonNoIdentity VerifyReason = "no-identity"
	// ReasonUnexpected: the identity is none of those that the client expected.
	ReasonUnexpected VerifyReason = "unexpected-identity"
	// ReasonTrustDomain: the client's identity is of a trust domain that the server does not accept.
	ReasonTrustDomain VerifyReason = "trust-domain"
)

// VerifyError is what a TLS handshake fails with when the peer's certificate is refused by a configuration of ClientTLS
// or ServerTLS. Find it with errors.As.
type VerifyError struct {
	Reason VerifyReason
	// Peer is the identity that the peer showed; zero unless Reason is ReasonUnexpected or ReasonTrustDomain.
	Peer Identity
	Err  error
}

func (e *VerifyError) Error() string { return "verify peer certificate: " + e.Err.Error() }

func (e *VerifyError) Unwrap() error { return e.Err }

// ClientTLS returns the configuration to connect as svid to a peer that must show one of the identities in expect: TLS
// 1.3, ALPN h2, no server name, no resumption. With an empty expect every handshake fails. The result is shared between
// callers and must not be changed.
func ClientTLS(svid *SVID, expect []Identity) *tls.Config { panic("unwritten") }

// ServerTLS returns the configuration to accept peers as svid: TLS 1.3, ALPN h2, a client certificate that chains to
// svid's roots and holds a workload identity of one of trustDomains; svid's own trust domain if there are none. The
// result is shared between callers and must not be changed.
func ServerTLS(svid *SVID, trustDomains []string) *tls.Config { panic("unwritten") }

// PeerIdentity returns whom a handshake under ClientTLS or ServerTLS has verified.
func PeerIdentity(state *tls.ConnectionState) (Identity, error) { panic("unwritten") }
