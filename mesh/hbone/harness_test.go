package hbone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

var (
	clientID = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"}
	serverID = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "stock"}
)

// testCA signs certificates.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key, pemOf(der)}
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// issue makes an SVID for an identity.
func (ca *testCA) issue(t testing.TB, id identity.Identity) *identity.SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := identity.NewSVID(id, key, []string{pemOf(der), ca.pem})
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// world is a server and what clients need to reach it.
type world struct {
	t          testing.TB
	ca         *testCA
	clientSVID *identity.SVID
	serverSVID *identity.SVID
	server     *Server
	addr       netip.AddrPort

	mu    sync.Mutex
	conns []net.Conn // dialled
	hold  chan struct{}
}

// newWorld starts a server with a handler; it ends with the test.
func newWorld(t testing.TB, handler func(context.Context, *Incoming), change func(*ServerConfig)) *world {
	t.Helper()
	ca := newCA(t)
	w := &world{t: t, ca: ca, clientSVID: ca.issue(t, clientID), serverSVID: ca.issue(t, serverID)}
	cfg := ServerConfig{
		TLS:     func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(w.serverSVID, nil), nil },
		Handler: handler,
	}
	if change != nil {
		change(&cfg)
	}
	w.server = NewServer(cfg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = addrPort(ln.Addr())
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		_ = w.server.Close()
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return w
}

// target is the server.
func (w *world) target() Target {
	return Target{Addr: w.addr, UID: "uid", Source: clientID, Expect: []identity.Identity{serverID}}
}

// dial is PoolConfig.Dial. It remembers the connections, and waits for hold if that is set.
func (w *world) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	if w.hold != nil {
		select {
		case <-w.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr.String())
	if err == nil {
		w.mu.Lock()
		w.conns = append(w.conns, nc)
		w.mu.Unlock()
	}
	return nc, err
}

// dialled is the number of connections that were made.
func (w *world) dialled() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// pool returns a pool of clients; it ends with the test.
func (w *world) pool(change func(*PoolConfig)) *Pool {
	cfg := PoolConfig{
		Dial: w.dial,
		TLS: func(_ context.Context, t Target) (*tls.Config, error) {
			return identity.ClientTLS(w.clientSVID, t.Expect), nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	p := NewPool(cfg)
	w.t.Cleanup(func() { _ = p.Close() })
	return p
}

var request = Request{Authority: "10.0.0.1:80"}

// echo accepts and sends back what comes.
func echo(_ context.Context, in *Incoming) {
	s, err := in.Accept()
	if err != nil {
		return
	}
	defer s.Close()
	if _, err := io.Copy(s, onlyReader{s}); err == nil {
		_ = s.CloseWrite()
	}
}

type onlyReader struct{ io.Reader }

// mustOpen opens a tunnel.
func (w *world) mustOpen(p *Pool) *Stream {
	w.t.Helper()
	return w.mustOpenWith(p, request)
}

func (w *world) mustOpenWith(p *Pool, r Request) *Stream {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := p.Open(ctx, w.target(), r)
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	return s
}

// exchange writes a word and wants it back.
func exchange(t testing.TB, s io.ReadWriter, word string) {
	t.Helper()
	if _, err := io.WriteString(s, word); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != word {
		t.Fatalf("read: %q, %v; want %q", got, err, word)
	}
}

// await waits for a condition.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}

// noBuffers wants that all pooled buffers come back, while connections are open.
func noBuffers(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for buffer.InUse() != 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of buffers are still lent", buffer.InUse())
		}
		<-time.After(time.Millisecond)
	}
}

// pattern returns n bytes that show what is missing or moved.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16*29)
	}
	return b
}

// tcpPair returns the two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = d.Close()
	})
	return c.(*net.TCPConn), d.(*net.TCPConn)
}
