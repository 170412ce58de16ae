package scenarios

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
)

// token asks the API server for a token of an account, bound to a pod if one is given.
func (w *world) token(t *testing.T, ns, account, audience string, bound *corev1.Pod) string {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if bound != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: bound.Name, UID: bound.UID}
	}
	answer, err := w.Kube.CoreV1().ServiceAccounts(ns).CreateToken(w.ctx, account, request, metav1.CreateOptions{})
	w.must(t, err)
	return answer.Status.Token
}

// authority is the mesh's certificate authority, whose key the test takes from its Secret: what it signs has the right root, and
// whatever identity the test wants.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (w *world) meshAuthority(t *testing.T) authority {
	t.Helper()
	secret, err := w.Kube.CoreV1().Secrets(api.DefaultNamespace).Get(w.ctx, api.CASecret, metav1.GetOptions{})
	w.must(t, err)
	pair, err := tls.X509KeyPair(secret.Data["ca-cert.pem"], secret.Data["ca-key.pem"])
	w.must(t, err)
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	w.must(t, err)
	return authority{cert, pair.PrivateKey.(crypto.Signer)}
}

// foreignAuthority is one that the mesh does not know.
func foreignAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue signs a workload certificate for any identity.
func (a authority) issue(t *testing.T, identity string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	uri, err := url.Parse(identity)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{raw, a.cert.Raw}, PrivateKey: key}
}

// csr is a certificate signing request, in PEM, that asks for an identity.
func csr(t *testing.T, identity string) string {
	t.Helper()
	uri, err := url.Parse(identity)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw}))
}

// dialer connects from some network namespace.
type dialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// tunnel is an HBONE connection of an HTTP/2 client that is not ours.
type tunnel struct {
	conn   net.Conn
	client *http.ClientConn
}

// openTunnel makes the TLS connection; cert may be nil. The server is not verified: it is the one under test. In TLS 1.3 a
// refused client certificate shows only when something is read, which is in connect.
func openTunnel(ctx context.Context, from dialer, addr string, cert *tls.Certificate) (*tunnel, error) {
	raw, err := from.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	transport := &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		Protocols:      new(http.Protocols),
	}
	transport.Protocols.SetHTTP2(true)
	client, err := transport.NewClientConn(ctx, "https", addr)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("HTTP/2: %w", err)
	}
	return &tunnel{conn, client}, nil
}

func (h *tunnel) close() { h.conn.Close() }

// connect asks for a CONNECT to authority, sends line, and returns the status and what comes back to the end.
func (h *tunnel) connect(ctx context.Context, authority string, header http.Header, line string) (int, string, error) {
	req := &http.Request{
		Method: http.MethodConnect, Host: authority, URL: &url.URL{Scheme: "https", Host: authority},
		Header: header, Body: io.NopCloser(strings.NewReader(line)), ContentLength: -1, Proto: "HTTP/2.0", ProtoMajor: 2,
	}
	if header == nil {
		req.Header = http.Header{}
	}
	resp, err := h.client.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	back, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return resp.StatusCode, string(back), err
}

// errNoTunnel says how an attempt was refused before there was a status.
var errNoTunnel = errors.New("no tunnel")

// attempt opens a tunnel and connects through it, once.
func attempt(ctx context.Context, from dialer, addr string, cert *tls.Certificate, authority, line string) (int, string, error) {
	h, err := openTunnel(ctx, from, addr, cert)
	if err != nil {
		return 0, "", fmt.Errorf("%w: %w", errNoTunnel, err)
	}
	defer h.close()
	status, back, err := h.connect(ctx, authority, nil, line)
	if status == 0 && err != nil {
		err = fmt.Errorf("%w: %w", errNoTunnel, err)
	}
	return status, back, err
}
