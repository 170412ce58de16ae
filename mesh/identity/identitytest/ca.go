// Package identitytest is a certificate authority for tests: it signs for whoever asks, in memory.
package identitytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// CA signs certificates under a root of its own. It implements identity.Issuer; the zero CA is not usable, see NewCA. Its
// fields may be changed between calls, not during them.
type CA struct {
	// TTL is the validity of what it signs, from now on; 24 hours if zero.
	TTL time.Duration
	// Mutate, if set, changes a certificate before it is signed, to make a bad one.
	Mutate func(*x509.Certificate)
	// Roots, if not empty, is what Issue returns as roots instead of RootPEM. Above are certificates between its own and a
	// root, which Issue returns after the leaf.
	Roots string
	Above []string

	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA with a fresh root, which is valid for ten years.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := authority("test root")
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{root: root, key: key}, nil
}

// Intermediate makes a CA under c, and returns its certificate too, which belongs into the chain of what it signs; what
// it calls its root is that certificate.
func (c *CA) Intermediate() (*CA, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	der, err := x509.CreateCertificate(rand.Reader, authority("test intermediate"), c.root, key.Public(), c.key)
	if err != nil {
		return nil, "", err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, "", err
	}
	return &CA{root: cert, key: key}, encode(der), nil
}

// Reissue makes the same CA, with the same key, with another certificate, valid from notBefore on.
func (c *CA) Reissue(notBefore time.Time) (*CA, error) {
	template := authority(c.root.Subject.Organization[0])
	template.NotBefore = notBefore
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{root: root, key: c.key}, nil
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{name}},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(10, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// RootPEM returns the root certificate.
func (c *CA) RootPEM() string { return encode(c.root.Raw) }

// Issue signs a request for id, whoever asks; it implements identity.Issuer.
func (c *CA) Issue(_ context.Context, id identity.Identity, csrPEM []byte) ([]string, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("request is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != id.String() {
		return nil, fmt.Errorf("request is for %v, the call for %s", csr.URIs, id)
	}
	leaf, err := c.sign(&x509.Certificate{URIs: csr.URIs}, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	roots := c.Roots
	if roots == "" {
		roots = c.RootPEM()
	}
	return append(append([]string{leaf}, c.Above...), roots), nil
}

// CRL signs a revocation list, in PEM, which is out of date after nextUpdate.
func (c *CA) CRL(nextUpdate time.Time, revoked ...*x509.Certificate) ([]byte, error) {
	list := &x509.RevocationList{Number: serial(), ThisUpdate: nextUpdate.Add(-24 * time.Hour), NextUpdate: nextUpdate}
	for _, cert := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.root, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}

// Certificate returns the CA's own certificate.
func (c *CA) Certificate() *x509.Certificate { return c.root }

// Server signs a certificate for DNS names, with a key of its own, both in PEM.
func (c *CA) Server(names ...string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	cert, err := c.sign(&x509.Certificate{DNSNames: names}, key.Public())
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return []byte(cert), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (c *CA) sign(cert *x509.Certificate, key any) (string, error) {
	ttl := c.TTL
	if ttl == 0 {
		ttl = 24 * time.Hour
	}
	cert.SerialNumber = serial()
	cert.NotBefore, cert.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(ttl)
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if c.Mutate != nil {
		c.Mutate(cert)
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, c.root, key, c.key)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return encode(der), nil
}

// SVID makes a key and a certificate for id.
func (c *CA) SVID(id identity.Identity) (*identity.SVID, error) {
	return identity.Request(context.Background(), c, id)
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
