package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Extensions of revocation lists (RFC 5280, section 5.2). A delta list is of no use without its base, and an indirect one
// speaks of other issuers' certificates.
var (
	oidDeltaIndicator    = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// crlBlock is the type of a list in PEM.
const crlBlock = "X509 CRL"

// tagIndirect is the field indirectCRL of an issuing distribution point.
const tagIndirect = 4

// CRL is a set of certificate revocation lists, of any issuers. It is immutable and safe for concurrent use.
type CRL struct {
	lists  map[string][]*revocationList // by the issuer's name, raw
	strict bool
}

// revocationList is one list.
type revocationList struct {
	list    *x509.RevocationList
	revoked map[string]struct{} // serial numbers, big-endian

	// mu guards verified: whether the list is signed by a key, by the hash of the key. There are as many as there are CAs
	// of one name.
	mu       sync.Mutex
	verified map[[sha256.Size]byte]bool
}

// ParseCRL reads revocation lists: PEM, one or more, or one in DER. PEM blocks of other types are skipped. White space, or
// nothing at all, is a set that revokes nothing. Any other text without a list is an error, and so are a list that cannot be
// read whole and one with a critical extension whose meaning is not known: what it revokes would be a guess.
//
// A list whose time of the next update has passed still revokes. strict refuses certificates of its issuer altogether, until
// a newer list comes.
func ParseCRL(text []byte, strict bool) (*CRL, error) {
	c := &CRL{lists: map[string][]*revocationList{}, strict: strict}
	text = bytes.TrimLeft(text, " \t\r\n")
	if len(text) == 0 {
		return c, nil
	}
	if !bytes.Contains(text, []byte("-----BEGIN")) {
		if err := c.add(text); err != nil {
			return nil, fmt.Errorf("revocation list: %w", err)
		}
		return c, nil
	}
	// pem.Decode skips blocks that it cannot read.
	begun := bytes.Count(text, []byte("-----BEGIN "+crlBlock))
	n := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != crlBlock {
			continue
		}
		n++
		if err := c.add(block.Bytes); err != nil {
			return nil, fmt.Errorf("revocation list %d: %w", n, err)
		}
	}
	switch {
	case n < begun:
		return nil, fmt.Errorf("revocation lists: the PEM of %d of %d is broken", begun-n, begun)
	case cutOff(text):
		return nil, fmt.Errorf("revocation lists: the text ends in the beginning of another, after %d", n)
	case n == 0:
		return nil, errors.New("revocation lists: there is text, and no list in it")
	}
	return c, nil
}

// cutOff reports whether a text ends within the line that begins a list.
func cutOff(text []byte) bool {
	line := text[bytes.LastIndexByte(text, '\n')+1:]
	return len(line) > 0 && bytes.HasPrefix([]byte("-----BEGIN "+crlBlock), line)
}

func (c *CRL) add(der []byte) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	for _, e := range list.Extensions {
		switch {
		case e.Id.Equal(oidDeltaIndicator):
			return errors.New("it is a delta list, which needs its base")
		case e.Id.Equal(oidDistributionPoint):
			indirect, err := isIndirect(e.Value)
			if err != nil {
				return fmt.Errorf("issuing distribution point: %w", err)
			}
			if indirect {
				return errors.New("it is an indirect list, which speaks for other issuers")
			}
		case e.Critical:
			return fmt.Errorf("its critical extension %v is not known", e.Id)
		}
	}
	r := &revocationList{list: list, revoked: make(map[string]struct{}, len(list.RevokedCertificateEntries)),
		verified: map[[sha256.Size]byte]bool{}}
	for _, e := range list.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return fmt.Errorf("the entry of serial number %x has a critical extension %v that is not known", e.SerialNumber, x.Id)
			}
		}
		r.revoked[string(e.SerialNumber.Bytes())] = struct{}{}
	}
	issuer := string(list.RawIssuer)
	c.lists[issuer] = append(c.lists[issuer], r)
	return nil
}

// isIndirect reads an issuing distribution point.
func isIndirect(der []byte) (bool, error) {
	var point asn1.RawValue
	if _, err := asn1.Unmarshal(der, &point); err != nil {
		return false, err
	}
	for rest := point.Bytes; len(rest) > 0; {
		var field asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &field); err != nil {
			return false, err
		}
		if field.Class == asn1.ClassContextSpecific && field.Tag == tagIndirect {
			return len(field.Bytes) == 1 && field.Bytes[0] != 0, nil
		}
	}
	return false, nil
}

// Empty reports whether there is no list at all.
func (c *CRL) Empty() bool { return c == nil || len(c.lists) == 0 }

// CRLStatus describes one list.
type CRLStatus struct {
	// Issuer is the name of its issuer.
	Issuer string
	// Revoked counts its entries.
	Revoked int
	// NextUpdate is when a newer one is due; zero if the list does not say.
	NextUpdate time.Time
}

// Lists describes the lists, sorted by issuer.
func (c *CRL) Lists() []CRLStatus {
	if c == nil {
		return nil
	}
	var all []CRLStatus
	for _, lists := range c.lists {
		for _, l := range lists {
			all = append(all, CRLStatus{Issuer: l.list.Issuer.String(), Revoked: len(l.revoked), NextUpdate: l.list.NextUpdate})
		}
	}
	slices.SortFunc(all, func(a, b CRLStatus) int { return bytes.Compare([]byte(a.Issuer), []byte(b.Issuer)) })
	return all
}

// mentions reports whether a list of the certificate's issuer, or of one of that name, has its serial number.
func (c *CRL) mentions(cert *x509.Certificate) bool {
	if c == nil {
		return false
	}
	for _, l := range c.lists[string(cert.RawIssuer)] {
		if l.names(cert) {
			return true
		}
	}
	return false
}

// check looks each certificate of a verified chain up in the lists of the one above it: leaf first, root last. A certificate
// for whose issuer there is no list is good.
func (c *CRL) check(chain []*x509.Certificate, now time.Time) error {
	for i, cert := range chain[:max(len(chain)-1, 0)] {
		lists := c.lists[string(cert.RawIssuer)]
		current := len(lists) == 0
		signed := false
		for _, l := range lists {
			if !l.signedBy(chain[i+1]) {
				continue
			}
			signed = true
			if l.names(cert) {
				return revokedError(cert)
			}
			current = current || l.list.NextUpdate.IsZero() || now.Before(l.list.NextUpdate)
		}
		if c.strict && signed && !current {
			return &VerifyError{Reason: ReasonRevoked, Err: fmt.Errorf("the revocation list of %q is out of date: whether certificate %s of %q is revoked is not known",
				cert.Issuer, cert.SerialNumber.Text(16), nameOf(cert))}
		}
	}
	return nil
}

// checkAny accepts a peer if one of the chains that lead to a root has no revoked certificate.
func (c *CRL) checkAny(chains [][]*x509.Certificate, now time.Time) error {
	var first error
	for _, chain := range chains {
		err := c.check(chain, now)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// checkUnverified looks up certificates of a peer that no chain leads from to a root at any time that could be asked for: its
// root is not trusted any more, or the peer has expired before its root was issued anew. Whoever signed a certificate, of those
// that the peer showed and the roots, is asked whether the list is his. If he is not among them the list is taken at its word:
// a new handshake would fail anyway.
func (c *CRL) checkUnverified(peer, roots []*x509.Certificate) error {
	for _, cert := range peer {
		var issuers []*x509.Certificate
		for _, i := range slices.Concat(peer, roots) {
			if bytes.Equal(i.RawSubject, cert.RawIssuer) && i.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil {
				issuers = append(issuers, i)
			}
		}
		for _, l := range c.lists[string(cert.RawIssuer)] {
			if l.names(cert) && (len(issuers) == 0 || slices.ContainsFunc(issuers, l.signedBy)) {
				return revokedError(cert)
			}
		}
	}
	return nil
}

func revokedError(cert *x509.Certificate) error {
	return &VerifyError{Reason: ReasonRevoked, Err: fmt.Errorf("certificate %s of %q is revoked by its issuer %q",
		cert.SerialNumber.Text(16), nameOf(cert), cert.Issuer)}
}

// nameOf says whose certificate it is, for people.
func nameOf(cert *x509.Certificate) string {
	if len(cert.URIs) > 0 {
		return cert.URIs[0].String()
	}
	return cert.Subject.String()
}

// names tells whether a certificate's serial number is in the list.
func (l *revocationList) names(cert *x509.Certificate) bool {
	_, there := l.revoked[string(cert.SerialNumber.Bytes())]
	return there
}

// signedBy tells whether the list is of this issuer. It verifies the signature once for each of an issuer's keys.
func (l *revocationList) signedBy(issuer *x509.Certificate) bool {
	key := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	l.mu.Lock()
	defer l.mu.Unlock()
	good, known := l.verified[key]
	if !known {
		// Not CheckSignatureFrom: it refuses CAs whose certificate allows to sign certificates and says nothing of lists, which
		// many do, and then a revoked certificate would pass.
		good = issuer.CheckSignature(l.list.SignatureAlgorithm, l.list.RawTBSRevocationList, l.list.Signature) == nil
		l.verified[key] = good
	}
	return good
}
