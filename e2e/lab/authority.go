package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"sync"
	"time"
)

// defaultTTL is the life of certificates, in which no test ends.
const defaultTTL = time.Hour

// Authority is the lab's CA, whose root can be exchanged as a careful operator does it: told first, used then, and the old one
// withdrawn at last. Its methods may be called at once.
type Authority struct {
	file string // of the bundle

	mu      sync.Mutex // guards the fields below
	signer  root
	next    root
	roots   []*x509.Certificate // handed out
	ttl     time.Duration
	serials map[string]*big.Int // of the newest certificate of an identity
}

type root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(file string) (*Authority, error) {
	a := &Authority{file: file, ttl: defaultTTL, serials: map[string]*big.Int{}}
	var err error
	if a.signer, err = makeRoot(); err != nil {
		return nil, err
	}
	a.roots = []*x509.Certificate{a.signer.cert}
	return a, a.writeLocked()
}

// SetTTL sets the life of certificates from now on.
func (a *Authority) SetTTL(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ttl = d
}

// TellNewRoot makes another root and hands it out beside the one that signs.
func (a *Authority) TellNewRoot() error {
	next, err := makeRoot()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = next
	a.roots = append(a.roots, next.cert)
	return a.writeLocked()
}

// UseNewRoot signs under the root that was told.
func (a *Authority) UseNewRoot() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.signer = a.next
}

// WithdrawOldRoots hands out only the root that signs.
func (a *Authority) WithdrawOldRoots() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots = []*x509.Certificate{a.signer.cert}
	return a.writeLocked()
}

// Revoke returns a revocation list, in PEM, with the newest certificate of each identity.
func (a *Authority) Revoke(identities ...string) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, id := range identities {
		serial := a.serials[id]
		if serial == nil {
			return nil, fmt.Errorf("revoke %s: it has no certificate", id)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.signer.cert, a.signer.key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}

// bundle is what is handed out.
func (a *Authority) bundle() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundleLocked()
}

func (a *Authority) bundleLocked() string {
	text := ""
	for _, c := range a.roots {
		text += encode(c.Raw)
	}
	return text
}

// writeLocked replaces the file at once, as a mounted config map is.
func (a *Authority) writeLocked() error {
	if err := os.WriteFile(a.file+".new", []byte(a.bundleLocked()), 0o644); err != nil {
		return err
	}
	return os.Rename(a.file+".new", a.file)
}

func makeRoot() (root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return root{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"lab"}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return root{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return root{cert, key}, err
}

// sign completes and signs a leaf for the key, or for a new one if it is nil.
func (a *Authority) sign(leaf *x509.Certificate, public any) (*tls.Certificate, error) {
	out := &tls.Certificate{}
	if public == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		out.PrivateKey, public = key, key.Public()
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	signer, ttl := a.signer, a.ttl
	if len(leaf.URIs) > 0 {
		a.serials[leaf.URIs[0].String()] = serial
	}
	a.mu.Unlock()
	leaf.SerialNumber = serial
	leaf.NotBefore, leaf.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(ttl)
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	leaf.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, leaf, signer.cert, public, signer.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	out.Certificate = [][]byte{der, signer.cert.Raw}
	return out, nil
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
