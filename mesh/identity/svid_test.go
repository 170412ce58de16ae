package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
)

// issuerFunc is an identity.Issuer.
type issuerFunc func(ctx context.Context, id identity.Identity, csr []byte) ([]string, error)

func (f issuerFunc) Issue(ctx context.Context, id identity.Identity, csr []byte) ([]string, error) {
	return f(ctx, id, csr)
}

func newCA(t testing.TB) *identitytest.CA {
	t.Helper()
	ca, err := identitytest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newSVID(t testing.TB, ca *identitytest.CA, id identity.Identity) *identity.SVID {
	t.Helper()
	s, err := ca.SVID(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRequestForm(t *testing.T) {
	ca := newCA(t)
	var pemText []byte
	svid, err := identity.Request(t.Context(), issuerFunc(func(ctx context.Context, id identity.Identity, csr []byte) ([]string, error) {
		pemText = csr
		return ca.Issue(ctx, id, csr)
	}), alice)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(pemText)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		t.Fatalf("request is not one PEM certificate request: %s", pemText)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if csr.Subject.String() != "" {
		t.Errorf("subject %q, want none", csr.Subject)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("key %T, want ECDSA P-256", csr.PublicKey)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) || !csr.Extensions[0].Critical {
		t.Errorf("extensions %+v, want one critical subjectAltName", csr.Extensions)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != alice.String() {
		t.Errorf("names %v, want %s", csr.URIs, alice)
	}
	if svid.Identity != alice || svid.TLS.Leaf == nil || len(svid.TLS.Certificate) != 1 || string(svid.RootsPEM) != ca.RootPEM() {
		t.Errorf("SVID %+v", svid)
	}
}

func TestRequestRefusesBadIdentity(t *testing.T) {
	for _, id := range []identity.Identity{{}, {TrustDomain: "a/b", Namespace: "c", ServiceAccount: "d"}} {
		if _, err := identity.Request(t.Context(), newCA(t), id); err == nil {
			t.Errorf("Request(%v) succeeded", id)
		}
	}
}

// TestAnswersRefused gives each kind of wrong answer that a CA can give.
func TestAnswersRefused(t *testing.T) {
	mutate := func(f func(*x509.Certificate)) func(*testing.T, *identitytest.CA) identity.Issuer {
		return func(_ *testing.T, ca *identitytest.CA) identity.Issuer {
			ca.Mutate = f
			return ca
		}
	}
	answer := func(f func(chain []string) []string) func(*testing.T, *identitytest.CA) identity.Issuer {
		return func(_ *testing.T, ca *identitytest.CA) identity.Issuer {
			return issuerFunc(func(ctx context.Context, id identity.Identity, csr []byte) ([]string, error) {
				chain, err := ca.Issue(ctx, id, csr)
				if err != nil {
					return nil, err
				}
				return f(chain), nil
			})
		}
	}
	bobURL, _ := url.Parse(bob.String())
	tests := []struct {
		name   string
		issuer func(*testing.T, *identitytest.CA) identity.Issuer
		want   string // part of the error
	}{
		{"other name", mutate(func(c *x509.Certificate) { c.URIs = []*url.URL{bobURL} }), "its names are"},
		{"second name", mutate(func(c *x509.Certificate) { c.URIs = append(c.URIs, bobURL) }), "its names are"},
		{"no name", mutate(func(c *x509.Certificate) { c.URIs = nil }), "its names are"},
		{"DNS name besides", mutate(func(c *x509.Certificate) { c.DNSNames = []string{"a.b"} }), "its names are"},
		{"IP address besides", mutate(func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(1, 2, 3, 4)} }), "its names are"},
		{"expired", mutate(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), "expired"},
		{"not valid yet", mutate(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "not yet valid"},
		{"clients only", mutate(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "key usage"},
		{"servers only", mutate(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "key usage"},
		{"no chain", answer(func([]string) []string { return nil }), "0 elements"},
		{"no roots", answer(func(c []string) []string { return c[:1] }), "1 elements"},
		{"empty roots", answer(func(c []string) []string { return []string{c[0], ""} }), "no certificate"},
		{"not PEM", answer(func(c []string) []string { return []string{"x", c[1]} }), "not PEM"},
		{"rubbish after", answer(func(c []string) []string { return []string{c[0] + "x", c[1]} }), "not PEM"},
		{"a key", answer(func(c []string) []string {
			return []string{"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", c[1]}
		}), "PRIVATE KEY"},
		{"broken DER", answer(func(c []string) []string {
			return []string{"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", c[1]}
		}), "element 0"},
		{"other roots", func(t *testing.T, ca *identitytest.CA) identity.Issuer {
			other := newCA(t).RootPEM()
			return answer(func(c []string) []string { return []string{c[0], other} })(t, ca)
		}, "unknown authority"},
		{"other key", func(t *testing.T, ca *identitytest.CA) identity.Issuer {
			old := newSVID(t, ca, alice)
			return answer(func(c []string) []string { return []string{string(old.ChainPEM), c[1]} })(t, ca)
		}, "another key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := identity.Request(t.Context(), tt.issuer(t, newCA(t)), alice)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestIntermediates: intermediates may come one an element or together, and several roots in the last one.
func TestIntermediates(t *testing.T) {
	root, other := newCA(t), newCA(t)
	inter, interPEM, err := root.Intermediate()
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string]func(leaf string) []string{
		"apart":    func(leaf string) []string { return []string{leaf, interPEM, other.RootPEM() + root.RootPEM()} },
		"together": func(leaf string) []string { return []string{leaf + interPEM, root.RootPEM() + other.RootPEM()} },
	} {
		svid, err := identity.Request(t.Context(), issuerFunc(func(ctx context.Context, id identity.Identity, csr []byte) ([]string, error) {
			c, err := inter.Issue(ctx, id, csr)
			if err != nil {
				return nil, err
			}
			return chain(c[0]), nil
		}), alice)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(svid.TLS.Certificate) != 2 || strings.Count(string(svid.RootsPEM), "BEGIN") != 2 {
			t.Errorf("%s: %d certificates in the chain, roots %s", name, len(svid.TLS.Certificate), svid.RootsPEM)
		}
	}
}

// FuzzNewSVID: no answer of a CA makes it panic, or is accepted.
func FuzzNewSVID(f *testing.F) {
	ca := newCA(f)
	svid := newSVID(f, ca, alice)
	f.Add(string(svid.ChainPEM), ca.RootPEM())
	f.Add("", "")
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "x")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, leaf, roots string) {
		if s, err := identity.NewSVID(alice, key, []string{leaf, roots}); err == nil {
			t.Fatalf("accepted for a key that nobody signed: %+v", s)
		}
	})
}
