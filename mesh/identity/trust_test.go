package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// meets tells whether a handshake between two SVIDs works, and why not.
func meets(t *testing.T, client, server *identity.SVID) error {
	t.Helper()
	_, _, cerr, serr := handshake(t, identity.ClientTLS(client, []identity.Identity{server.Identity}), identity.ServerTLS(server, nil))
	return errors.Join(cerr, serr)
}

// TestUnionOfRoots: identities of one node trust what any of them was told, so that a root that came with one's renewal holds
// for the others, whose certificates are older.
func TestUnionOfRoots(t *testing.T) {
	old, fresh := newCA(t), newCA(t)
	fresh.Roots = old.RootPEM() + fresh.RootPEM()
	var trust identity.Trust
	a, b := identity.WithTrust(newSVID(t, old, alice), &trust), identity.WithTrust(newSVID(t, fresh, bob), &trust)
	for _, pair := range [][2]*identity.SVID{{a, b}, {b, a}} {
		if err := meets(t, pair[0], pair[1]); err != nil {
			t.Errorf("%v to %v: %v", pair[0].Identity, pair[1].Identity, err)
		}
	}
	if n := strings.Count(string(trust.Roots()), "BEGIN"); n != 2 {
		t.Errorf("%d roots, want 2", n)
	}
	if err := meets(t, newSVID(t, old, alice), b); err == nil {
		t.Error("without the union they meet too: the test shows nothing")
	}
	identity.Withdraw(&trust, bob)
	if err := meets(t, a, newSVID(t, fresh, bob)); err == nil {
		t.Error("a root that nobody has any more is still trusted")
	}
}

// TestRotationThroughManager: renewals bring the new root to all, and the old one leaves with the last that had it.
func TestRotationThroughManager(t *testing.T) {
	trust := &identity.Trust{}
	bubble(t, identity.ManagerConfig{Trust: trust}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		roots := func() int { synctest.Wait(); return len(trust.RootList()) }
		for _, id := range []identity.Identity{alice, bob} {
			if _, err := m.SVID(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		issuer.mu.Lock()
		issuer.ca = newCA(t)
		issuer.mu.Unlock()
		m.Forget(bob)
		if _, err := m.SVID(t.Context(), bob); err != nil {
			t.Fatal(err)
		}
		if n := roots(); n != 2 {
			t.Errorf("%d roots while alice has the old one and bob the new one", n)
		}
		m.RenewBetween(time.Minute, 2*time.Minute)
		time.Sleep(59 * time.Second)
		if n := roots(); n != 2 {
			t.Errorf("%d roots before alice is renewed", n)
		}
		time.Sleep(62 * time.Second)
		if n := roots(); n != 1 {
			t.Errorf("%d roots when all are renewed, want the new one", n)
		}
		if issued, failed := m.Requests(); issued != 5 || failed != 0 {
			t.Errorf("%d certificates issued, %d failures", issued, failed)
		}
	})
}

// TestBundleFile: roots of the file are trusted from a second after they were written, also where the file came later, and
// linger when they are withdrawn.
func TestBundleFile(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "root-cert.pem")
	write := func(t *testing.T, text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
	}
	fakeClock(t, func(t *testing.T) {
		trust := &identity.Trust{Linger: 10 * time.Minute}
		var changes atomic.Int32
		files := &identity.Files{Trust: trust, Bundle: path, OnBundle: func() { changes.Add(1) }, Logger: slog.New(slog.DiscardHandler)}
		if err := files.Load(); err != nil {
			t.Fatalf("a file that is not there yet: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- files.Run(ctx) }()
		expect := func(when string, roots int, seen int32) {
			t.Helper()
			if n := len(trust.RootList()); n != roots || changes.Load() != seen {
				t.Errorf("%s: %d roots after %d changes, want %d after %d", when, n, changes.Load(), roots, seen)
			}
		}
		write(t, ca.RootPEM())
		expect("when it comes", 1, 1)
		write(t, "-----BEGIN nonsense")
		expect("when it is broken", 1, 1)
		write(t, ca.RootPEM()+other.RootPEM())
		expect("when a root is added", 2, 2)
		write(t, other.RootPEM())
		expect("when a root is withdrawn", 2, 3)
		time.Sleep(9 * time.Minute)
		expect("while it lingers", 2, 3)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		expect("after that", 1, 3)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		expect("when it is gone", 1, 3)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&identity.Files{Trust: &identity.Trust{}, Bundle: path, Logger: slog.New(slog.DiscardHandler)}).Load(); err == nil {
		t.Error("a broken file was accepted at the start")
	}
}

// TestAliases: under an alias of the mesh's trust domain a peer is who it is, on both sides; under a foreign one it is not.
func TestAliases(t *testing.T) {
	ca := newCA(t)
	of := func(id identity.Identity, domain string) identity.Identity { id.TrustDomain = domain; return id }
	domains := identity.NewDomains(alice.TrustDomain, []string{"old.org", "", alice.TrustDomain, "older.org"})
	trust := &identity.Trust{}
	trust.SetDomains(domains)
	svid := func(id identity.Identity) *identity.SVID { return identity.WithTrust(newSVID(t, ca, id), trust) }
	for _, tc := range []struct {
		name           string
		client, server string // trust domains
		expected       string // of the server
		good           bool
	}{
		{"one domain", "", "", "", true},
		{"client of an alias", "old.org", "", "", true},
		{"server of an alias", "", "old.org", "", true},
		{"server of the mesh, expected under an alias", "", "", "older.org", true},
		{"both aliases", "older.org", "old.org", "old.org", true},
		{"foreign client", "evil.org", "", "", false},
		{"foreign server", "", "evil.org", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := func(id identity.Identity, domain string) identity.Identity {
				if domain == "" {
					return id
				}
				return of(id, domain)
			}
			client, server := svid(name(alice, tc.client)), svid(name(bob, tc.server))
			_, _, cerr, serr := handshake(t, identity.ClientTLS(client, []identity.Identity{name(bob, tc.expected)}), identity.ServerTLS(server, nil))
			if err := errors.Join(cerr, serr); (err == nil) != tc.good {
				t.Errorf("handshake: %v, want it to work: %v", err, tc.good)
			}
		})
	}
	// Another account is another one under any name.
	_, _, cerr, _ := handshake(t, identity.ClientTLS(svid(alice), []identity.Identity{alice}), identity.ServerTLS(svid(of(bob, "old.org")), nil))
	if verify, ok := errors.AsType[*identity.VerifyError](cerr); !ok || verify.Reason != identity.ReasonUnexpected {
		t.Errorf("another account of an alias: %v", cerr)
	}
	// Aliases that come later hold for configurations that were made before.
	late := &identity.Trust{}
	client, server := identity.WithTrust(newSVID(t, ca, of(alice, "old.org")), late), identity.WithTrust(newSVID(t, ca, bob), late)
	if err := meets(t, client, server); err == nil {
		t.Error("a foreign domain is accepted before it is an alias")
	}
	late.SetDomains(domains)
	if err := meets(t, client, server); err != nil {
		t.Errorf("once it is an alias: %v", err)
	}
	// Whom a handshake has accepted is not accepted any more once its name is withdrawn; whoever needed no alias is.
	chain := func(s *identity.SVID) (out []*x509.Certificate) {
		for _, raw := range s.TLS.Certificate {
			c, err := x509.ParseCertificate(raw)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
		return out
	}
	for _, tc := range []struct {
		domains *identity.Domains
		reason  identity.VerifyReason
	}{{domains, ""}, {identity.NewDomains(alice.TrustDomain, []string{"older.org"}), identity.ReasonTrustDomain}, {nil, identity.ReasonTrustDomain}} {
		late.SetDomains(tc.domains)
		for _, got := range []error{
			late.StillClient(chain(client), bob.TrustDomain), late.StillServer(chain(client), []identity.Identity{alice}),
		} {
			verify, refused := errors.AsType[*identity.VerifyError](got)
			if refused != (tc.reason != "") || refused && verify.Peer != of(alice, "old.org") {
				t.Errorf("with domains %v: %v, want a refusal: %v", tc.domains.Names(), got, tc.reason != "")
			}
		}
		if err := errors.Join(late.StillClient(chain(client), "old.org"), late.StillClient(chain(server), bob.TrustDomain),
			late.StillServer(chain(server), []identity.Identity{alice, bob})); err != nil {
			t.Errorf("with domains %v, without an alias: %v", tc.domains.Names(), err)
		}
	}
}

func TestDomains(t *testing.T) {
	d := identity.NewDomains("td", []string{"old", "older"})
	for principal, want := range map[string]string{
		"td/ns/a/sa/b": "td/ns/a/sa/b", "old/ns/a/sa/b": "td/ns/a/sa/b", "old/": "td/", "old": "old", "older/ns": "td/ns",
		"foreign/ns/a/sa/b": "foreign/ns/a/sa/b", "": "", "*": "*",
	} {
		if got := d.CanonicalPrincipal(principal); got != want {
			t.Errorf("%q is %q, want %q", principal, got, want)
		}
	}
	old := identity.Identity{TrustDomain: "old", Namespace: "a", ServiceAccount: "b"}
	if got := d.Canonical(old); got.TrustDomain != "td" || got.Namespace != "a" {
		t.Errorf("canonical: %v", got)
	}
	var none *identity.Domains
	if none.Same("a", "b") || !none.Same("a", "a") || none.Canonical(old) != old || none.CanonicalPrincipal("old/x") != "old/x" {
		t.Error("no domains change something")
	}
	if !d.Same("old", "older") || d.Same("old", "foreign") || d.Same("foreign", "foreign2") {
		t.Error("names of one domain are not the same")
	}
}

// TestPostQuantumOnly: the policy refuses classic peers on both sides, and meets those that have the hybrid.
func TestPostQuantumOnly(t *testing.T) {
	ca := newCA(t)
	only := &identity.Trust{PostQuantumOnly: true}
	a, b := identity.WithTrust(newSVID(t, ca, alice), only), newSVID(t, ca, bob)
	if err := meets(t, a, b); err != nil {
		t.Errorf("to a peer that has both: %v", err)
	}
	if err := meets(t, b, a); err != nil {
		t.Errorf("from a peer that has both: %v", err)
	}
	classic := func(c *tls.Config) *tls.Config {
		c = c.Clone()
		c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
		return c
	}
	if _, _, cerr, serr := handshake(t, identity.ClientTLS(a, []identity.Identity{bob}), classic(identity.ServerTLS(b, nil))); cerr == nil || serr == nil {
		t.Errorf("a classic server is accepted: %v, %v", cerr, serr)
	}
	if _, _, cerr, serr := handshake(t, classic(identity.ClientTLS(b, []identity.Identity{alice})), identity.ServerTLS(a, nil)); cerr == nil || serr == nil {
		t.Errorf("a classic client is accepted: %v, %v", cerr, serr)
	}
}
