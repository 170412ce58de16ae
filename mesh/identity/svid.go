package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"
)

// SVID is a workload certificate with its key and the roots that came with it. It is immutable and safe for concurrent
// use; a renewal is a new SVID.
type SVID struct {
	Identity
	// TLS holds the chain without the root, the key, and Leaf.
	TLS tls.Certificate
	// Roots verify peers. RootsPEM is the same, in PEM.
	Roots    *x509.CertPool
	RootsPEM []byte
	// ChainPEM is the leaf, then the intermediates.
	ChainPEM []byte
	// NotBefore and NotAfter bound the validity of the leaf.
	NotBefore, NotAfter time.Time

	// roots are RootsPEM, parsed. own is what peers are verified by where trust is nil.
	roots []*x509.Certificate
	own   *trusted
	trust *Trust

	clients configCache
	servers configCache
}

// withTrust returns the SVID with peers verified by trust, which must hold its roots, instead of by what came with it alone.
// Call it before the SVID is shared.
func (s *SVID) withTrust(trust *Trust) *SVID {
	s.trust = trust
	return s
}

// trusted is what peers are verified by now.
func (s *SVID) trusted() *trusted {
	switch {
	case s.trust != nil:
		return s.trust.load()
	case s.own != nil:
		return s.own
	}
	return &trusted{roots: s.Roots}
}

// NewSVID checks what a CA returned for id and key, and makes an SVID of it. chainPEM is the leaf, then intermediates,
// and last the roots; each element may hold several certificates. The leaf must hold key, have id as its only name, and
// be good now, under those roots, for both sides of a connection.
func NewSVID(id Identity, key crypto.Signer, chainPEM []string) (*SVID, error) {
	if len(chainPEM) < 2 {
		return nil, fmt.Errorf("certificate chain of %s: %d elements, want the certificate first and the roots last", id, len(chainPEM))
	}
	last := len(chainPEM) - 1
	var chain []*x509.Certificate
	for i, text := range chainPEM[:last] {
		certs, err := parseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("certificate chain of %s: element %d: %w", id, i, err)
		}
		chain = append(chain, certs...)
	}
	roots, err := parseCertificates([]byte(chainPEM[last]))
	if err != nil {
		return nil, fmt.Errorf("roots of %s: %w", id, err)
	}
	s := &SVID{
		Identity:  id,
		TLS:       tls.Certificate{PrivateKey: key, Leaf: chain[0]},
		Roots:     x509.NewCertPool(),
		RootsPEM:  encodeCertificates(roots),
		ChainPEM:  encodeCertificates(chain),
		NotBefore: chain[0].NotBefore,
		NotAfter:  chain[0].NotAfter,
		roots:     roots,
	}
	s.own = &trusted{roots: s.Roots, all: roots}
	for _, c := range chain {
		s.TLS.Certificate = append(s.TLS.Certificate, c.Raw)
	}
	for _, c := range roots {
		s.Roots.AddCert(c)
	}
	if err := s.check(chain); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return s, nil
}

// check verifies the leaf as peers will, so that a bad answer is an error here and not on every connection.
func (s *SVID) check(chain []*x509.Certificate) error {
	leaf := chain[0]
	pub, ok := s.TLS.PrivateKey.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return errors.New("it is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != s.Identity.String() ||
		len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
		return fmt.Errorf("its names are URIs %v, DNS %v, IP %v, email %v; want that URI alone",
			leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := verifyChain(chain, s.Roots, usage, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// verifyChain verifies chain[0] under roots at a time, with the rest as intermediates. It returns all ways to a root, from
// the leaf.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, at time.Time) ([][]*x509.Certificate, error) {
	opts := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: at}
	if len(chain) > 1 {
		opts.Intermediates = x509.NewCertPool()
		for _, c := range chain[1:] {
			opts.Intermediates.AddCert(c)
		}
	}
	return chain[0].Verify(opts)
}

// parseCertificates reads one or more PEM certificates, and nothing else.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return nil, errors.New("not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block of type %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}

func encodeCertificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// oidSubjectAltName and tagURI are of RFC 5280, section 4.2.1.6.
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

const tagURI = 6

// newRequest makes a key (ECDSA P-256) and a request for id: the subject is empty, so the name is a critical extension
// (RFC 5280, section 4.1.2.6).
func newRequest(id Identity) (crypto.Signer, []byte, error) {
	if err := id.Validate(); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: key: %w", err)
	}
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(id.String())}})
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: names: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: names}},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// maxConfigs bounds a configCache. A workload speaks to fewer identities; beyond it, configurations are made anew.
const maxConfigs = 4096

// configCache keeps the TLS configurations of one SVID and one role by what they expect of the peer.
type configCache struct {
	mu      sync.RWMutex // guards configs
	configs map[any]*tls.Config
}

func (c *configCache) get(key any, build func() *tls.Config) *tls.Config {
	c.mu.RLock()
	cfg := c.configs[key]
	c.mu.RUnlock()
	if cfg != nil {
		return cfg
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cfg := c.configs[key]; cfg != nil {
		return cfg
	}
	if c.configs == nil || len(c.configs) >= maxConfigs {
		c.configs = map[any]*tls.Config{}
	}
	cfg = build()
	c.configs[key] = cfg
	return cfg
}
