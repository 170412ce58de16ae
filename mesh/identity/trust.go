package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Trust is what the identities of one node verify their peers by: the union of all roots that are known, the names of the
// mesh's trust domain, and revocation lists. What changes holds from the next handshake on, for SVIDs that were issued before
// too. Its methods are safe for concurrent use. The zero Trust is ready.
type Trust struct {
	// PostQuantumOnly leaves X25519MLKEM768 as the only key exchange. Set it before use.
	PostQuantumOnly bool
	// Linger is how long a root is still trusted after no source has it any more, so that peers that have a certificate under
	// it have time to get another. Files.Run ends it. Set it before use.
	Linger time.Duration

	current atomic.Pointer[trusted] // nil: nothing yet

	mu      sync.Mutex // guards sources, and changes of current
	sources map[any][]*x509.Certificate
	leaving map[string]time.Time // roots that no source has, by their bytes, and until when they are trusted
}

// trusted is a snapshot, immutable.
type trusted struct {
	roots   *x509.CertPool
	all     []*x509.Certificate
	domains *Domains // nil: no aliases
	crl     *CRL     // nil: none
}

// noTrust is what a Trust without roots is read as.
var noTrust = &trusted{roots: x509.NewCertPool()}

func (t *Trust) load() *trusted {
	if s := t.current.Load(); s != nil {
		return s
	}
	return noTrust
}

// update replaces the snapshot by a changed copy.
func (t *Trust) update(change func(*trusted)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := *t.load()
	change(&next)
	t.current.Store(&next)
}

// setRoots makes roots what a source contributes to the union; none withdraws the source.
func (t *Trust) setRoots(source any, roots []*x509.Certificate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if equalCertificates(t.sources[source], roots) {
		return
	}
	if t.sources == nil {
		t.sources = map[any][]*x509.Certificate{}
	}
	if len(roots) == 0 {
		delete(t.sources, source)
	} else {
		t.sources[source] = roots
	}
	t.uniteLocked(time.Now())
}

// expire ends the trust in roots that have lingered for long enough.
func (t *Trust) expire(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, until := range t.leaving {
		if now.After(until) {
			t.uniteLocked(now)
			return
		}
	}
}

// uniteLocked makes the union of the sources what is trusted.
func (t *Trust) uniteLocked(now time.Time) {
	next := *t.load()
	union := map[string]*x509.Certificate{}
	for _, roots := range t.sources {
		for _, c := range roots {
			union[string(c.Raw)] = c
			delete(t.leaving, string(c.Raw))
		}
	}
	for _, c := range next.all {
		key := string(c.Raw)
		if union[key] != nil || t.Linger <= 0 {
			continue
		}
		until, left := t.leaving[key]
		switch {
		case !left:
			if t.leaving == nil {
				t.leaving = map[string]time.Time{}
			}
			t.leaving[key] = now.Add(t.Linger)
			union[key] = c
		case now.Before(until):
			union[key] = c
		default:
			delete(t.leaving, key)
		}
	}
	if len(union) == len(next.all) && !slices.ContainsFunc(next.all, func(c *x509.Certificate) bool { return union[string(c.Raw)] == nil }) {
		return
	}
	next.all = slices.SortedFunc(maps.Values(union), func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	next.roots = x509.NewCertPool()
	for _, c := range next.all {
		next.roots.AddCert(c)
	}
	t.current.Store(&next)
}

// source returns what a source contributes.
func (t *Trust) source(source any) []*x509.Certificate {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sources[source]
}

func equalCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
}

// SetDomains sets the names of the mesh's trust domain; nil for no aliases.
func (t *Trust) SetDomains(d *Domains) { t.update(func(s *trusted) { s.domains = d }) }

// Domains returns the names of the mesh's trust domain; nil if none were set.
func (t *Trust) Domains() *Domains { return t.load().domains }

// SetCRL sets the revocation lists; nil for none.
func (t *Trust) SetCRL(c *CRL) { t.update(func(s *trusted) { s.crl = c }) }

// CRL returns the revocation lists; nil if none were set.
func (t *Trust) CRL() *CRL { return t.load().crl }

// Roots returns all roots that are trusted, in PEM.
func (t *Trust) Roots() []byte { return encodeCertificates(t.load().all) }

// Root describes a root.
type Root struct {
	// Name is its subject.
	Name string
	// Fingerprint is the SHA-256 of the certificate.
	Fingerprint [sha256.Size]byte
	NotAfter    time.Time
}

// RootList describes all roots that are trusted.
func (t *Trust) RootList() []Root {
	var all []Root
	for _, c := range t.load().all {
		all = append(all, Root{Name: c.Subject.String(), Fingerprint: sha256.Sum256(c.Raw), NotAfter: c.NotAfter})
	}
	return all
}

// Revoked returns a *VerifyError if one of the certificates of a peer (leaf first, as PeerCertificates of a
// tls.ConnectionState) has been revoked since its handshake. That a certificate has expired meanwhile, or its root is no
// longer trusted, is none of its business: what was proved then stays proved, and a rotation of roots ends no connection. But a
// peer that a list names by issuer and serial number is revoked also if nothing is left to verify the list by.
func (t *Trust) Revoked(peer []*x509.Certificate) error {
	s := t.load()
	if !slices.ContainsFunc(peer, s.crl.mentions) {
		return nil
	}
	// All of the chain was valid when the youngest of it began to be. Its root may have been issued anew since, with the same key.
	then := peer[0].NotBefore
	for _, c := range peer {
		if c.NotBefore.After(then) {
			then = c.NotBefore
		}
	}
	for _, at := range []time.Time{then, time.Now()} {
		if chains, err := verifyChain(peer, s.roots, x509.ExtKeyUsageAny, at); err == nil {
			return s.crl.checkAny(chains, then)
		}
	}
	return s.crl.checkUnverified(peer, s.all)
}

// StillClient returns a *VerifyError if a client that a handshake under ServerTLS has verified would be refused by now for what
// has changed since: a certificate of it is revoked (see Revoked), or its trust domain is no name of the server's any more. It costs
// little for a client of that very trust domain.
func (t *Trust) StillClient(peer []*x509.Certificate, trustDomain string) error {
	if err := t.Revoked(peer); err != nil {
		return err
	}
	if len(peer[0].URIs) == 1 && peer[0].URIs[0].Host == trustDomain {
		return nil
	}
	return t.load().accepts(peer[0], []string{trustDomain})
}

// StillServer is StillClient for a server that a handshake under ClientTLS has verified to be one of the identities in expect.
func (t *Trust) StillServer(peer []*x509.Certificate, expect []Identity) error {
	if err := t.Revoked(peer); err != nil {
		return err
	}
	return t.load().expects(peer[0], expect)
}

// groups are key exchanges in order of preference: the post-quantum hybrid first, then what every peer has, and the NIST
// curves for FIPS mode.
func (t *Trust) groups() []tls.CurveID {
	if t != nil && t.PostQuantumOnly {
		return []tls.CurveID{tls.X25519MLKEM768}
	}
	return []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}
}
