package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
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
	// ReasonRevoked: a certificate of the chain is in a revocation list, or the list is out of date where that is refused.
	ReasonRevoked VerifyReason = "revoked"
	// ReasonTrustDomain: the client's identity is of a trust domain that the server does not accept.
	ReasonTrustDomain VerifyReason = "trust-domain"
)

// VerifyError is what a TLS handshake fails with when the peer's certificate is refused by a configuration of ClientTLS
// or ServerTLS. Find it with errors.As.
type VerifyError struct {
	Reason VerifyReason
	// Peer is the identity that the peer showed, and has not proved: it may have only the certificate. Zero unless Reason is ReasonUnexpected or ReasonTrustDomain.
	Peer Identity
	Err  error
}

func (e *VerifyError) Error() string { return "verify peer certificate: " + e.Err.Error() }

func (e *VerifyError) Unwrap() error { return e.Err }

// alpn is the protocol of HBONE.
const alpn = "h2"

// baseConfig is what both roles share.
func baseConfig(trust *Trust) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		CurvePreferences:       trust.groups(),
		SessionTicketsDisabled: true, // a resumed session would not be verified again
		// Small first records are for browsers. With full ones from the start, mesh/wire need not clone the configuration.
		DynamicRecordSizingDisabled: true,
	}
}

// ClientTLS returns the configuration to connect as svid to a peer that must show one of the identities in expect, under
// whatever name of the mesh's trust domain: TLS 1.3, ALPN h2, no server name, no resumption. With an empty expect every
// handshake fails. The result is shared between callers and must not be changed. Roots, trust-domain names and revocation lists
// are those of the time of a handshake.
func ClientTLS(svid *SVID, expect []Identity) *tls.Config {
	return svid.clients.get(expectKey(expect), func() *tls.Config {
		cfg := baseConfig(svid.trust)
		// Not cfg.Certificates: crypto/tls would show no certificate at all to a server that names only other CAs, as
		// one does while roots are being rotated.
		cert := &svid.TLS
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		expect := slices.Clone(expect)
		cfg.InsecureSkipVerify = true // there is no host name to verify; VerifyConnection does it all
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			return verifyServer(state.PeerCertificates, svid.trusted(), expect)
		}
		return cfg
	})
}

// ServerTLS returns the configuration to accept peers as svid: TLS 1.3, ALPN h2, a client certificate that chains to
// svid's roots and holds a workload identity of one of trustDomains; if there are none, of svid's own trust domain under any
// of its names. The result is shared between callers and must not be changed.
func ServerTLS(svid *SVID, trustDomains []string) *tls.Config {
	return svid.servers.get(strings.Join(trustDomains, "/"), func() *tls.Config {
		cfg := baseConfig(svid.trust)
		cfg.Certificates = []tls.Certificate{svid.TLS}
		cfg.ClientAuth = tls.RequireAnyClientCert
		domains := slices.Clone(trustDomains)
		if len(domains) == 0 {
			domains = []string{svid.TrustDomain}
		}
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			return verifyClient(state.PeerCertificates, svid.trusted(), domains)
		}
		return cfg
	})
}

// expectKey is equal for equal sets; no identity has a space.
func expectKey(expect []Identity) any {
	if len(expect) == 1 {
		return expect[0]
	}
	names := make([]string, len(expect))
	for i, id := range expect {
		names[i] = id.String()
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}

func verifyServer(chain []*x509.Certificate, trusted *trusted, expect []Identity) error {
	if err := verifyPeer(chain, trusted, x509.ExtKeyUsageServerAuth); err != nil {
		return err
	}
	return trusted.expects(chain[0], expect)
}

// expects returns a *VerifyError unless a certificate has one of the identities.
func (t *trusted) expects(leaf *x509.Certificate, expect []Identity) error {
	for _, u := range leaf.URIs {
		if id, err := Parse(u.String()); err == nil && t.domains.containsSame(expect, id) {
			return nil
		}
	}
	id, err := FromCertificate(leaf)
	if err != nil {
		return &VerifyError{Reason: ReasonNoIdentity, Err: err}
	}
	return &VerifyError{Reason: ReasonUnexpected, Peer: id, Err: fmt.Errorf("peer claims to be %s, expected %s", id, nameList(expect))}
}

func verifyClient(chain []*x509.Certificate, trusted *trusted, trustDomains []string) error {
	if err := verifyPeer(chain, trusted, x509.ExtKeyUsageClientAuth); err != nil {
		return err
	}
	return trusted.accepts(chain[0], trustDomains)
}

// accepts returns a *VerifyError unless the identity of a certificate is of one of the trust domains.
func (t *trusted) accepts(leaf *x509.Certificate, trustDomains []string) error {
	id, err := FromCertificate(leaf)
	if err != nil {
		return &VerifyError{Reason: ReasonNoIdentity, Err: err}
	}
	if slices.ContainsFunc(trustDomains, func(d string) bool { return t.domains.Same(d, id.TrustDomain) }) {
		return nil
	}
	return &VerifyError{Reason: ReasonTrustDomain, Peer: id, Err: fmt.Errorf("peer claims to be %s, accepted trust domains are %s", id,
		strings.Join(t.domains.withAliases(trustDomains), ", "))}
}

func verifyPeer(chain []*x509.Certificate, trusted *trusted, usage x509.ExtKeyUsage) error {
	if len(chain) == 0 {
		return &VerifyError{Reason: ReasonNoCertificate, Err: errors.New("peer showed no certificate")}
	}
	now := time.Now()
	chains, err := verifyChain(chain, trusted.roots, usage, now)
	if err == nil {
		if trusted.crl.Empty() {
			return nil
		}
		return trusted.crl.checkAny(chains, now)
	}
	reason := ReasonUntrusted
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		reason = ReasonExpired
	}
	return &VerifyError{Reason: reason, Err: err}
}

// nameList is for error texts; a service may have very many names.
func nameList(ids []Identity) string {
	const limit = 5
	if len(ids) == 0 {
		return "nobody"
	}
	var names []string
	for _, id := range ids[:min(len(ids), limit)] {
		names = append(names, id.String())
	}
	if len(ids) > limit {
		names = append(names, fmt.Sprintf("%d more", len(ids)-limit))
	}
	return strings.Join(names, " or ")
}

// PeerIdentity returns whom a handshake under ServerTLS has verified; under ClientTLS, whom it has verified if the peer's
// certificate holds one identity only.
func PeerIdentity(state *tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: no certificate", ErrNoIdentity)
	}
	return FromCertificate(state.PeerCertificates[0])
}
