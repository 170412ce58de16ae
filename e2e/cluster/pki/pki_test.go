package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"testing"
)

func parse(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	if _, err := tls.X509KeyPair(p.Cert, p.Key); err != nil {
		t.Fatalf("key does not fit: %v", err)
	}
	block, _ := pem.Decode(p.Cert)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestIssue(t *testing.T) {
	ca, err := NewAuthority("ca")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("ca")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Issue(Subject{Name: "server", Server: true, DNS: []string{"kubernetes"}, IPs: []netip.Addr{netip.MustParseAddr("fd00::1")}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := ca.Issue(Subject{Name: "system:node:node1", Groups: []string{"system:nodes"}})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(p Pair, by *Authority, name string, usage x509.ExtKeyUsage) error {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(by.Cert)
		_, err := parse(t, p).Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	for _, name := range []string{"kubernetes", "fd00::1"} {
		if err := verify(server, ca, name, x509.ExtKeyUsageServerAuth); err != nil {
			t.Errorf("server as %s: %v", name, err)
		}
	}
	if err := verify(client, ca, "", x509.ExtKeyUsageClientAuth); err != nil {
		t.Errorf("client: %v", err)
	}
	if err := verify(client, ca, "", x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("a client certificate passes as a server's")
	}
	if err := verify(server, ca, "elsewhere", x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("the server certificate passes under another name")
	}
	if err := verify(client, other, "", x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("a certificate of another authority of the same name passes")
	}
	c := parse(t, client)
	if c.Subject.CommonName != "system:node:node1" || len(c.Subject.Organization) != 1 || c.Subject.Organization[0] != "system:nodes" {
		t.Errorf("subject is %v", c.Subject)
	}
}

func TestTokenKey(t *testing.T) {
	key, err := NewTokenKey()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := pem.Decode(key.Cert)
	private, _ := pem.Decode(key.Key)
	if _, err := x509.ParsePKIXPublicKey(public.Bytes); err != nil {
		t.Error(err)
	}
	if _, err := x509.ParsePKCS8PrivateKey(private.Bytes); err != nil {
		t.Error(err)
	}
}
