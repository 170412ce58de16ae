package identity_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
)

// crlOf signs a list.
func crlOf(t testing.TB, ca *identitytest.CA, next time.Time, revoked ...*x509.Certificate) []byte {
	t.Helper()
	text, err := ca.CRL(next, revoked...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func parseCRL(t testing.TB, strict bool, texts ...[]byte) *identity.CRL {
	t.Helper()
	var all []byte
	for _, text := range texts {
		all = append(all, text...)
	}
	crl, err := identity.ParseCRL(all, strict)
	if err != nil {
		t.Fatal(err)
	}
	return crl
}

func derOf(t testing.TB, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("not PEM")
	}
	return block.Bytes
}

// intermediate makes a CA under another that returns the whole chain.
func intermediate(t testing.TB, root *identitytest.CA) *identitytest.CA {
	t.Helper()
	ca, cert, err := root.Intermediate()
	if err != nil {
		t.Fatal(err)
	}
	ca.Above, ca.Roots = []string{cert}, root.RootPEM()
	return ca
}

// TestRevoked: whoever is in a list of its issuer is refused, on both sides and along the whole chain.
func TestRevoked(t *testing.T) {
	root := newCA(t)
	good, bad := intermediate(t, root), intermediate(t, root)
	foreign := newCA(t) // of the same name as root, with another key
	a, b := newSVID(t, good, alice), newSVID(t, good, bob)
	fallen := newSVID(t, bad, bob)
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	for _, tc := range []struct {
		name    string
		crl     *identity.CRL
		server  *identity.SVID
		refused bool
	}{
		{"no list", nil, b, false},
		{"an empty file", parseCRL(t, true, nil), b, false},
		{"nobody revoked", parseCRL(t, false, crlOf(t, good, soon), crlOf(t, root, soon)), b, false},
		{"another revoked", parseCRL(t, false, crlOf(t, good, soon, a.TLS.Leaf)), b, false},
		{"the leaf", parseCRL(t, false, crlOf(t, good, soon, b.TLS.Leaf)), b, true},
		{"the leaf, in the second list of the issuer", parseCRL(t, false, crlOf(t, good, soon), crlOf(t, good, soon, b.TLS.Leaf)), b, true},
		{"the leaf, in DER", parseCRL(t, false, derOf(t, crlOf(t, good, soon, b.TLS.Leaf))), b, true},
		{"the leaf's serial number, by another issuer", parseCRL(t, false, crlOf(t, root, soon, b.TLS.Leaf)), b, false},
		{"the intermediate", parseCRL(t, false, crlOf(t, root, soon, bad.Certificate())), fallen, true},
		{"another intermediate", parseCRL(t, false, crlOf(t, root, soon, bad.Certificate())), b, false},
		{"the intermediate, by one who only has the root's name", parseCRL(t, true, crlOf(t, foreign, past, bad.Certificate())), fallen, false},
		{"out of date", parseCRL(t, false, crlOf(t, good, past)), b, false},
		{"out of date, and revoked", parseCRL(t, false, crlOf(t, good, past, b.TLS.Leaf)), b, true},
		{"out of date, strictly", parseCRL(t, true, crlOf(t, good, past)), b, true},
		{"one of two out of date, strictly", parseCRL(t, true, crlOf(t, good, past), crlOf(t, good, soon)), b, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			trust := &identity.Trust{}
			trust.SetCRL(tc.crl)
			checked := func(s *identity.SVID) *identity.SVID {
				copied, err := identity.NewSVID(s.Identity, s.TLS.PrivateKey.(crypto.Signer), []string{string(s.ChainPEM), string(s.RootsPEM)})
				if err != nil {
					t.Fatal(err)
				}
				return identity.WithTrust(copied, trust)
			}
			// The one who checks is alice, as a client and as a server; the other side does not.
			client := checked(a)
			_, _, cerr, _ := handshake(t, identity.ClientTLS(client, []identity.Identity{bob}), identity.ServerTLS(tc.server, nil))
			_, _, _, serr := handshake(t, identity.ClientTLS(tc.server, []identity.Identity{alice}), identity.ServerTLS(client, nil))
			for side, err := range map[string]error{"client": cerr, "server": serr} {
				verify, ok := errors.AsType[*identity.VerifyError](err)
				if tc.refused && (!ok || verify.Reason != identity.ReasonRevoked) || !tc.refused && err != nil {
					t.Errorf("as the %s: %v, want it refused: %v", side, err, tc.refused)
				}
			}
		})
	}
}

// TestRevokedLater: a peer whose handshake was good is found in a list that comes later, although its certificate has expired
// meanwhile.
func TestRevokedLater(t *testing.T) {
	root := newCA(t)
	ca := intermediate(t, root)
	a, b := newSVID(t, ca, alice), newSVID(t, ca, bob)
	trust := &identity.Trust{}
	identity.WithTrust(a, trust)
	state, _, err, _ := handshake(t, identity.ClientTLS(a, []identity.Identity{bob}), identity.ServerTLS(b, nil))
	if err != nil {
		t.Fatal(err)
	}
	fakeClock(t, func(t *testing.T) { // in the year 2000; all certificates are of a later time
		if err := trust.Revoked(state.PeerCertificates); err != nil {
			t.Errorf("without a list: %v", err)
		}
		next := time.Now().Add(time.Hour)
		trust.SetCRL(parseCRL(t, true, crlOf(t, ca, next, a.TLS.Leaf)))
		if err := trust.Revoked(state.PeerCertificates); err != nil {
			t.Errorf("with a list that does not name it: %v", err)
		}
		for _, revoked := range [][]byte{crlOf(t, ca, next, b.TLS.Leaf), crlOf(t, root, next, ca.Certificate())} {
			trust.SetCRL(parseCRL(t, true, revoked))
			if verify, ok := errors.AsType[*identity.VerifyError](trust.Revoked(state.PeerCertificates)); !ok || verify.Reason != identity.ReasonRevoked {
				t.Errorf("when it is revoked: %v", verify)
			}
		}
		trust.SetCRL(parseCRL(t, true, crlOf(t, newCA(t), next, ca.Certificate())))
		if err := trust.Revoked(state.PeerCertificates); err != nil {
			t.Errorf("by one who only has the issuer's name: %v", err)
		}
	})
}

// TestRevokedWithoutRoot: a live peer is found in a list also where its root was issued anew or is gone; and a rotation alone
// revokes nobody.
func TestRevokedWithoutRoot(t *testing.T) {
	root, foreign := newCA(t), newCA(t) // of one name
	anew, err := root.Reissue(time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	below := intermediate(t, root)
	direct, indirect := newSVID(t, root, alice), newSVID(t, below, alice)
	root.Mutate = func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(30 * time.Second) } // half a minute ago
	text, _, err := root.Server("ended")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(derOf(t, text))
	if err != nil {
		t.Fatal(err)
	}
	ended := []*x509.Certificate{leaf}
	next := time.Now().Add(time.Hour)
	chain := func(s *identity.SVID) []*x509.Certificate {
		t.Helper()
		var all []*x509.Certificate
		for _, der := range s.TLS.Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
		return all
	}
	for _, tc := range []struct {
		name    string
		trusted *identitytest.CA
		peer    []*x509.Certificate
		crl     []byte
		revoked bool
	}{
		{"root issued anew", anew, chain(direct), crlOf(t, anew, next, direct.TLS.Leaf), true},
		{"root issued anew, list of a foreign CA", anew, chain(direct), crlOf(t, foreign, next, direct.TLS.Leaf), false},
		{"root issued anew after the peer has expired", anew, ended, crlOf(t, anew, next, ended[0]), true},
		{"the same, list of a foreign CA", anew, ended, crlOf(t, foreign, next, ended[0]), false},
		{"root gone", foreign, chain(direct), crlOf(t, root, next), false},
		{"root gone, leaf listed", foreign, chain(direct), crlOf(t, root, next, direct.TLS.Leaf), true},
		{"root gone, leaf listed by its intermediate", foreign, chain(indirect), crlOf(t, below, next, indirect.TLS.Leaf), true},
		{"root gone, leaf listed by a foreign intermediate", foreign, chain(indirect), crlOf(t, intermediate(t, foreign), next, indirect.TLS.Leaf), false},
		{"root gone, intermediate listed", foreign, chain(indirect), crlOf(t, root, next, below.Certificate()), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			trust := &identity.Trust{}
			identity.WithTrust(newSVID(t, tc.trusted, bob), trust)
			trust.SetCRL(parseCRL(t, true, tc.crl))
			err := trust.Revoked(tc.peer)
			if verify, ok := errors.AsType[*identity.VerifyError](err); (err != nil) != tc.revoked || tc.revoked && (!ok || verify.Reason != identity.ReasonRevoked) {
				t.Errorf("revoked: %v, want %v", err, tc.revoked)
			}
		})
	}
}

func TestBadCRLs(t *testing.T) {
	ca := newCA(t)
	good := crlOf(t, ca, time.Now().Add(time.Hour))
	for name, text := range map[string][]byte{
		"garbage":           []byte("nothing of the kind"),
		"cut off":           good[:len(good)/2],
		"a broken second":   append(append([]byte{}, good...), good[:len(good)/2]...),
		"a broken first":    append(append([]byte{}, bytes.Replace(good, []byte("\nM"), []byte("\n#"), 1)...), good...),
		"a second begun":    append(append([]byte{}, good...), "-----BEG"...),
		"a certificate DER": ca.Certificate().Raw,
		"a certificate":     []byte(ca.RootPEM()),
		"a broken block":    []byte("-----BEGIN nonsense"),
	} {
		if crl, err := identity.ParseCRL(text, false); err == nil {
			t.Errorf("%s: accepted, %v", name, crl.Lists())
		}
	}
	parseCRL(t, false, []byte(" \n"))
	crl := parseCRL(t, false, []byte("the lists of ours\n"), []byte(ca.RootPEM()), good, []byte("\nsigned: ops"))
	if lists := crl.Lists(); len(lists) != 1 || !strings.Contains(lists[0].Issuer, "test root") || lists[0].Revoked != 0 {
		t.Errorf("lists %v", lists)
	}
}

// TestCRLFile: lists are taken up while they change; what is broken, half written or gone leaves those that were there.
func TestCRLFile(t *testing.T) {
	ca := newCA(t)
	a := newSVID(t, ca, alice)
	path := filepath.Join(t.TempDir(), "ca-crl.pem")
	put := func(t *testing.T, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
	}
	write := func(t *testing.T, text []byte) {
		t.Helper()
		put(t, text)
		time.Sleep(time.Second)
		synctest.Wait()
	}
	next := time.Now().Add(time.Hour)
	fakeClock(t, func(t *testing.T) {
		trust := &identity.Trust{}
		identity.WithTrust(a, trust)
		var changes atomic.Int32
		files := &identity.Files{Trust: trust, CRL: path, OnCRL: func() { changes.Add(1) }, Logger: slog.New(slog.DiscardHandler)}
		if err := files.Load(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- files.Run(ctx) }()
		expect := func(when string, revoked bool, seen int32) {
			t.Helper()
			if err := trust.Revoked([]*x509.Certificate{a.TLS.Leaf}); (err != nil) != revoked || changes.Load() != seen {
				t.Errorf("%s: revoked %v after %d changes, want %v after %d", when, err, changes.Load(), revoked, seen)
			}
		}
		expect("without a file", false, 0)
		write(t, crlOf(t, ca, next, a.TLS.Leaf))
		expect("when it comes", true, 1)
		write(t, []byte("broken"))
		expect("when it is broken", true, 1)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		expect("when it is gone", true, 1)
		first, second := crlOf(t, newCA(t), next), crlOf(t, ca, next, a.TLS.Leaf)
		put(t, nil)
		put(t, first)
		expect("when it is written in place", true, 1)
		put(t, slices.Concat(first, second[:20]))
		put(t, slices.Concat(first, second))
		expect("when it was just written", true, 1)
		time.Sleep(time.Second)
		synctest.Wait()
		expect("when it was written", true, 2)
		write(t, nil)
		expect("when it is empty", true, 2)
		time.Sleep(7 * time.Second)
		synctest.Wait()
		expect("when it is empty still", true, 2)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		expect("when it stays empty", false, 3)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(path, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&identity.Files{Trust: &identity.Trust{}, CRL: path, Logger: slog.New(slog.DiscardHandler)}).Load(); err == nil {
		t.Error("a broken file was accepted at the start")
	}
}

func FuzzParseCRL(f *testing.F) {
	ca := newCA(f)
	text := crlOf(f, ca, time.Now().Add(time.Hour), ca.Certificate())
	f.Add(text)
	f.Add(derOf(f, text))
	f.Fuzz(func(t *testing.T, text []byte) {
		crl, err := identity.ParseCRL(text, true)
		if (crl == nil) == (err == nil) && err == nil {
			t.Fatal("neither lists nor an error")
		}
	})
}
