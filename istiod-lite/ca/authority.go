package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Lifetimes.
const (
	// rootTTL is how long a self-signed root is valid.
	rootTTL = 10 * 365 * 24 * time.Hour
	// DefaultTTL is the lifetime of a certificate whose request names none.
	DefaultTTL = 24 * time.Hour
	// MinTTL and MaxTTL bound what a request may ask for. The maximum is Istio's.
	MinTTL = 10 * time.Second
	MaxTTL = 90 * 24 * time.Hour
	// backdate is how far a verifier's clock may be behind.
	backdate = 2 * time.Minute
)

// Authority signs. It is immutable and safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	// above are the PEM blocks between what it signs and the roots: its own certificate first, unless that is a root.
	above []string
	roots string
	// bundle is roots, parsed.
	bundle []*x509.Certificate
	// material is what it was made of.
	material Material
}

// Material is what an Authority is made of: PEM each.
type Material struct {
	// Cert is the signing certificate and Key its private key.
	Cert, Key []byte
	// Chain leads from Cert to a root; it may hold Cert and the root, or be empty.
	Chain []byte
	// Roots are what verifiers trust.
	Roots []byte
}

// NewAuthority reads and checks material: the key is the certificate's, the certificate may sign, and it is verified by the
// roots.
func NewAuthority(m Material, now time.Time) (*Authority, error) {
	pair, err := tls.X509KeyPair(m.Cert, m.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", pair.PrivateKey)
	}
	a := &Authority{cert: pair.Leaf, key: signer, material: m}
	if !a.cert.BasicConstraintsValid || !a.cert.IsCA {
		return nil, fmt.Errorf("certificate %q is not a CA's", a.cert.Subject)
	}
	if a.cert.KeyUsage != 0 && a.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("certificate %q is not for signing certificates", a.cert.Subject)
	}
	if a.bundle, err = certificates(m.Roots); err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	chain, err := certificates(m.Chain)
	if err != nil && len(bytes.TrimSpace(m.Chain)) > 0 {
		return nil, fmt.Errorf("chain: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range a.bundle {
		roots.AddCert(c)
		a.roots += encode(c)
	}
	for _, c := range append([]*x509.Certificate{a.cert}, chain...) {
		between.AddCert(c)
		if block := encode(c); !isSelfSigned(c) && !slices.Contains(a.above, block) {
			a.above = append(a.above, block)
		}
	}
	if _, err := a.cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return nil, fmt.Errorf("certificate %q is not verified by the roots: %w", a.cert.Subject, err)
	}
	return a, nil
}

func isSelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// certificates reads one PEM certificate or more.
func certificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return out, nil
}

func encode(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// SelfSigned makes a root of its own for an organisation.
func SelfSigned(organization string, now time.Time) (Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Material{}, fmt.Errorf("make root: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return Material{}, fmt.Errorf("make root: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "ambit root CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Material{}, fmt.Errorf("make root: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Material{}, fmt.Errorf("make root: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return Material{
		Cert:  cert,
		Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
		Roots: cert,
	}, nil
}

// serialNumber is random, 127 bits (RFC 5280 section 4.1.2.2 wants it positive and at most 20 bytes).
func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// Roots is the trust bundle, PEM.
func (a *Authority) Roots() string { return a.roots }

// RootPool is the trust bundle.
func (a *Authority) RootPool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range a.bundle {
		pool.AddCert(c)
	}
	return pool
}

// NotAfter is when the authority itself ends.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// Sign certifies that a key is an identity's, for client and server use. It returns PEM: the leaf, what is between it and
// the roots, and last the roots, all in one.
func (a *Authority) Sign(key crypto.PublicKey, id identity.Identity, ttl time.Duration, now time.Time) ([]string, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	// The subject is empty, so the URI is critical (RFC 5280 section 4.2.1.6).
	der, err := a.issue(&x509.Certificate{URIs: []*url.URL{uri}}, key, ttl, now)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	chain := []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
	return append(append(chain, a.above...), a.roots), nil
}

func (a *Authority) issue(template *x509.Certificate, key crypto.PublicKey, ttl time.Duration, now time.Time) ([]byte, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(ttl)
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	if !template.NotAfter.After(now) {
		return nil, fmt.Errorf("the CA's own certificate ended at %s", a.cert.NotAfter)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
}

// servingTTL is the lifetime of the control plane's own certificate.
const servingTTL = 24 * time.Hour

// Serving certifies a new key for the control plane's DNS names.
func (a *Authority) Serving(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make serving certificate: %w", err)
	}
	der, err := a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names}, key.Public(), servingTTL, now)
	if err != nil {
		return nil, fmt.Errorf("make serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make serving certificate: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for _, text := range a.above {
		block, _ := pem.Decode([]byte(text))
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert, nil
}
