package identity_test

import (
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// handshake runs both sides over loopback (a pipe has no buffers: two sides that write at once would block), and lets the server write one byte, so that the client learns of a refusal.
func handshake(t testing.TB, client, server *tls.Config) (clientState, serverState tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	srv, done := tls.Server(b, server), make(chan struct{})
	go func() {
		defer close(done)
		if serverErr = srv.Handshake(); serverErr != nil {
			b.Close()
			return
		}
		serverState = srv.ConnectionState()
		_, serverErr = srv.Write([]byte{1})
	}()
	cli := tls.Client(a, client)
	if clientErr = cli.Handshake(); clientErr == nil {
		_, clientErr = cli.Read(make([]byte, 1))
		clientState = cli.ConnectionState()
	}
	a.Close()
	<-done
	return clientState, serverState, clientErr, serverErr
}

func TestHandshake(t *testing.T) {
	ca := newCA(t)
	client := identity.ClientTLS(newSVID(t, ca, alice), []identity.Identity{bob})
	server := identity.ServerTLS(newSVID(t, ca, bob), nil)
	var name *string
	watched := server.Clone()
	watched.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name = &h.ServerName
		return nil, nil
	}
	for range 2 {
		cs, ss, cerr, serr := handshake(t, client, watched)
		if cerr != nil || serr != nil {
			t.Fatalf("client %v, server %v", cerr, serr)
		}
		if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" || cs.CurveID != tls.X25519MLKEM768 || cs.DidResume {
			t.Errorf("version %x, protocol %q, group %v, resumed %v", cs.Version, cs.NegotiatedProtocol, cs.CurveID, cs.DidResume)
		}
		if name == nil || *name != "" {
			t.Errorf("server name %v, want an empty one", name)
		}
		if id, err := identity.PeerIdentity(&ss); id != alice {
			t.Errorf("server saw %v, %v", id, err)
		}
		if id, err := identity.PeerIdentity(&cs); id != bob {
			t.Errorf("client saw %v, %v", id, err)
		}
	}
}

// TestNoResumption: a client that could resume a session is verified anew each time.
func TestNoResumption(t *testing.T) {
	ca := newCA(t)
	client := identity.ClientTLS(newSVID(t, ca, alice), []identity.Identity{bob}).Clone()
	client.SessionTicketsDisabled, client.ClientSessionCache = false, tls.NewLRUClientSessionCache(8)
	client.ServerName = "cache.key"
	server := identity.ServerTLS(newSVID(t, ca, bob), nil)
	for range 3 {
		cs, _, cerr, serr := handshake(t, client, server)
		if cerr != nil || serr != nil || cs.DidResume {
			t.Errorf("client %v, server %v, resumed %v", cerr, serr, cs.DidResume)
		}
	}
}

// fakeClock is synctest.Test. In Go's FIPS 140-3 mode it skips: that measures how time passes to get entropy, which it does not do there.
func fakeClock(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if fips140.Enabled() {
		t.Skip("skipped in FIPS mode: it has no entropy without a real clock")
	}
	synctest.Test(t, f)
}

// TestClassicPeer: a peer without the post-quantum hybrid is served with a classic key exchange (of those that Go's FIPS mode approves, in
// that mode), and one that has only TLS 1.2 is not.
func TestClassicPeer(t *testing.T) {
	ca := newCA(t)
	client := identity.ClientTLS(newSVID(t, ca, alice), []identity.Identity{bob})
	server := identity.ServerTLS(newSVID(t, ca, bob), nil)
	groups := []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}
	if fips140.Enabled() {
		groups = groups[1:]
	}
	for _, group := range groups {
		classic := func(c *tls.Config) *tls.Config {
			c = c.Clone()
			c.CurvePreferences = []tls.CurveID{group}
			return c
		}
		for name, pair := range map[string][2]*tls.Config{"client": {classic(client), server}, "server": {client, classic(server)}} {
			cs, _, cerr, serr := handshake(t, pair[0], pair[1])
			if cerr != nil || serr != nil || cs.CurveID != group {
				t.Errorf("classic %s with %v: %v, %v, group %v", name, group, cerr, serr, cs.CurveID)
			}
		}
	}
	old := client.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, cerr, serr := handshake(t, old, server); cerr == nil || serr == nil {
		t.Errorf("TLS 1.2 was accepted: %v, %v", cerr, serr)
	}
}

func TestPeersRefused(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	foreign := identity.Identity{TrustDomain: "other.org", Namespace: "shop", ServiceAccount: "alice"}
	// A SVID that was good when it was issued, and later is not.
	bad := func(f func(*x509.Certificate), id identity.Identity) *identity.SVID {
		ca := *ca
		good := newSVID(t, &ca, id)
		ca.Mutate = f
		cert, key, err := ca.Server()
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return &identity.SVID{Identity: id, TLS: pair, Roots: good.Roots}
	}
	uri, _ := url.Parse(alice.String())
	expired := bad(func(c *x509.Certificate) {
		c.URIs = []*url.URL{uri}
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}, alice)
	nameless := bad(nil, alice)
	clientOnly := bad(func(c *x509.Certificate) {
		c.URIs = []*url.URL{uri}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}, alice)

	a, b := newSVID(t, ca, alice), newSVID(t, ca, bob)
	tests := []struct {
		name       string
		client     *identity.SVID
		expect     []identity.Identity
		server     *identity.SVID
		domains    []string
		wantClient identity.VerifyReason
		wantServer identity.VerifyReason
		wantPeer   identity.Identity
	}{
		{"good, several expected", a, []identity.Identity{alice, bob}, b, nil, "", "", identity.Identity{}},
		{"good, foreign but accepted", newSVID(t, ca, foreign), []identity.Identity{bob}, b, []string{"x", "other.org"}, "", "", identity.Identity{}},
		{"nobody expected", a, nil, b, nil, identity.ReasonUnexpected, "", bob},
		{"unexpected server", a, []identity.Identity{alice, foreign}, b, nil, identity.ReasonUnexpected, "", bob},
		{"server of other roots", a, []identity.Identity{bob}, newSVID(t, other, bob), nil, identity.ReasonUntrusted, "", identity.Identity{}},
		{"expired server", b, []identity.Identity{alice}, expired, nil, identity.ReasonExpired, "", identity.Identity{}},
		{"nameless server", b, []identity.Identity{alice}, nameless, nil, identity.ReasonNoIdentity, "", identity.Identity{}},
		{"server with a certificate for clients", b, []identity.Identity{alice}, clientOnly, nil, identity.ReasonUntrusted, "", identity.Identity{}},
		{"foreign client", newSVID(t, ca, foreign), []identity.Identity{bob}, b, nil, "", identity.ReasonTrustDomain, foreign},
		{"client of other roots", &identity.SVID{Identity: alice, TLS: newSVID(t, other, alice).TLS, Roots: a.Roots}, []identity.Identity{bob}, b, nil, "", identity.ReasonUntrusted, identity.Identity{}},
		{"expired client", expired, []identity.Identity{bob}, b, nil, "", identity.ReasonExpired, identity.Identity{}},
		{"nameless client", nameless, []identity.Identity{bob}, b, nil, "", identity.ReasonNoIdentity, identity.Identity{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, cerr, serr := handshake(t, identity.ClientTLS(tt.client, tt.expect), identity.ServerTLS(tt.server, tt.domains))
			for side, got := range map[string]struct {
				err  error
				want identity.VerifyReason
			}{"client": {cerr, tt.wantClient}, "server": {serr, tt.wantServer}} {
				verify, ok := errors.AsType[*identity.VerifyError](got.err)
				switch {
				case got.want == "" && ok:
					t.Errorf("%s refused: %v", side, got.err)
				case got.want != "" && (!ok || verify.Reason != got.want || verify.Peer != tt.wantPeer):
					t.Errorf("%s: error %v, want reason %s, peer %v", side, got.err, got.want, tt.wantPeer)
				}
			}
			refused := tt.wantClient != "" || tt.wantServer != ""
			if refused != (cerr != nil) || refused != (serr != nil) {
				t.Errorf("errors %v and %v, want some: %v", cerr, serr, refused)
			}
		})
	}
}

// TestServerNeedsCertificate: a client without a certificate is refused.
func TestServerNeedsCertificate(t *testing.T) {
	server := identity.ServerTLS(newSVID(t, newCA(t), bob), nil)
	client := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if _, _, cerr, serr := handshake(t, client, server); cerr == nil || serr == nil {
		t.Errorf("client without a certificate was accepted: %v, %v", cerr, serr)
	}
}

// TestCertificateDespiteHints: a server that asks for certificates of other CAs gets ours all the same, and decides.
func TestCertificateDespiteHints(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	server := identity.ServerTLS(newSVID(t, ca, bob), nil).Clone()
	server.ClientCAs = x509.NewCertPool()
	server.ClientCAs.AppendCertsFromPEM([]byte(other.RootPEM()))
	client := identity.ClientTLS(newSVID(t, ca, alice), []identity.Identity{bob})
	if _, _, cerr, serr := handshake(t, client, server); cerr != nil || serr != nil {
		t.Errorf("client %v, server %v", cerr, serr)
	}
}

func TestConfigsAreShared(t *testing.T) {
	ca := newCA(t)
	svid := newSVID(t, ca, alice)
	a := identity.ClientTLS(svid, []identity.Identity{alice, bob})
	if b := identity.ClientTLS(svid, []identity.Identity{bob, alice}); a != b {
		t.Error("equal sets give two configurations")
	}
	if b := identity.ClientTLS(svid, []identity.Identity{bob}); a == b {
		t.Error("different sets give one configuration")
	}
	if first, second := identity.ServerTLS(svid, nil), identity.ServerTLS(svid, nil); first != second {
		t.Error("ServerTLS makes a configuration for each call")
	}
	if !a.DynamicRecordSizingDisabled || !identity.ServerTLS(svid, nil).DynamicRecordSizingDisabled {
		t.Error("records begin small")
	}
	if n := testing.AllocsPerRun(100, func() { identity.ServerTLS(svid, nil) }); n > 1 {
		t.Errorf("ServerTLS allocates %v times", n)
	}
}

func BenchmarkServerTLS(b *testing.B) {
	svid := newSVID(b, newCA(b), alice)
	b.ReportAllocs()
	for b.Loop() {
		identity.ServerTLS(svid, nil)
	}
}

func BenchmarkHandshake(b *testing.B) {
	ca := newCA(b)
	client := identity.ClientTLS(newSVID(b, ca, alice), []identity.Identity{bob})
	server := identity.ServerTLS(newSVID(b, ca, bob), nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, cerr, serr := handshake(b, client, server); cerr != nil || serr != nil {
			b.Fatal(cerr, serr)
		}
	}
}
