package app

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/ca"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// cast is a cluster of two nodes with callers of all kinds, and their tokens.
func cast(t *testing.T, change ...func(*fakeAPI)) (*fakeAPI, *replica) {
	t.Helper()
	a := newAPI(t, namespaceObject("shop"))
	for _, f := range change {
		f(a)
	}
	a.createPod(a.ztunnel("node1"))
	a.createPod(a.ztunnel("node2"))
	web, other := pod("shop", "web", "web", "node1", "10.0.0.1"), pod("shop", "other", "other", "node2", "10.0.0.2")
	a.createPod(web)
	a.createPod(other)
	a.token("web", web)

	deleted := pod("istio-system", "ztunnel-deleted", "ztunnel", "node1", "10.9.0.8")
	a.token("deleted", deleted)
	// A pod of the same name has come since.
	again := pod("istio-system", "ztunnel-again", "ztunnel", "node1", "10.9.0.9")
	a.token("again", again)
	again.UID = "another"
	a.createPod(again)
	unbound := pod("istio-system", "", "ztunnel", "", "")
	a.token("unbound", unbound)
	moved := pod("istio-system", "ztunnel-moved", "ztunnel", "node1", "10.9.0.7")
	a.createPod(moved)
	elsewhere := moved.DeepCopy()
	elsewhere.Spec.NodeName = "node2"
	a.token("moved", elsewhere)
	a.mu.Lock()
	a.tokens["wrong audience"] = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"https://kubernetes.default.svc"},
		User: a.tokens["ztunnel-node1"].User}
	a.tokens["a user"] = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{api.TokenAudience},
		User: authenticationv1.UserInfo{Username: "admin"}}
	a.mu.Unlock()
	r := a.start()
	r.awaitReady()
	return a, r
}

// Nobody who cannot be identified gets a certificate or is told anything of the mesh.
func TestUnidentifiedCallers(t *testing.T) {
	_, r := cast(t)
	for _, tc := range []struct{ token, want string }{
		{"", "no "}, // credential, or token
		{"forged", "does not accept"},
		{"wrong audience", "audience"},
		{"a user", "not a service account"},
		{"unbound", "not bound to a pod"},
		{"deleted", "does not exist"},
		{"again", "does not exist"},
		{"moved", "node"},
	} {
		t.Run("token "+tc.token, func(t *testing.T) {
			_, _, err := r.certificate(r.dialTLS(), tc.token, spiffe("shop", "web"))
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("certificate: %v, want Unauthenticated", err)
			}
			mentions(t, err, tc.want)
			c := xdstest.Open(withToken(t.Context(), tc.token), t, r.dialTLS(), proxyNode("node1"))
			c.Subscribe(resource.Authorization, nil)
			err = c.Err()
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("xDS: %v, want Unauthenticated", err)
			}
			mentions(t, err, tc.want)
		})
	}
}

func TestCertificates(t *testing.T) {
	_, r := cast(t)
	conn := r.dialTLS()
	for _, tc := range []struct {
		name, token, id string
		want            codes.Code
		words           string
	}{
		{name: "a pod of the proxy's node", token: "ztunnel-node1", id: spiffe("shop", "web")},
		{name: "the proxy itself", token: "ztunnel-node1", id: spiffe("istio-system", "ztunnel")},
		{name: "a pod for itself", token: "web", id: spiffe("shop", "web")},
		{name: "a pod of another node", token: "ztunnel-node1", id: spiffe("shop", "other"), want: codes.PermissionDenied, words: "node1"},
		{name: "nobody's account", token: "ztunnel-node1", id: spiffe("shop", "nobody"), want: codes.PermissionDenied, words: "no pod"},
		{name: "the same account in another namespace", token: "ztunnel-node1", id: spiffe("bank", "web"), want: codes.PermissionDenied, words: "no pod"},
		{name: "a pod for another", token: "web", id: spiffe("shop", "other"), want: codes.PermissionDenied, words: "may ask for itself only"},
		{name: "another trust domain", token: "ztunnel-node1", id: "spiffe://evil.example/ns/shop/sa/web", want: codes.PermissionDenied, words: "trust domain"},
		{name: "no identity", token: "ztunnel-node1", id: "spiffe://cluster.local/workload", want: codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			chain, key, err := r.certificate(conn, tc.token, tc.id)
			if status.Code(err) != tc.want {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
			if err != nil {
				mentions(t, err, tc.words)
				return
			}
			checkChain(t, r, chain, tc.id)
			if !key.PublicKey.Equal(parseCert(t, chain[0]).PublicKey) {
				t.Error("the certificate is of another key")
			}
		})
	}
}

// checkChain verifies a chain as a peer does: leaf first, roots last.
func checkChain(t *testing.T, r *replica, chain []string, id string) {
	t.Helper()
	leaf := parseCert(t, chain[0])
	between := x509.NewCertPool()
	for _, c := range chain[1 : len(chain)-1] {
		between.AddCert(parseCert(t, c))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(chain[len(chain)-1])) {
		t.Fatalf("the last element is no bundle: %s", chain[len(chain)-1])
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Errorf("verify: %v", err)
		}
	}
	got, err := identity.FromCertificate(leaf)
	if err != nil || got.String() != id {
		t.Errorf("the certificate is of %s (%v), want %s", got, err, id)
	}
	if len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.IsCA {
		t.Errorf("the certificate says more than it should: %v %v", leaf.URIs, leaf.DNSNames)
	}
	if life := time.Until(leaf.NotAfter); life > time.Hour || life < 59*time.Minute {
		t.Errorf("the certificate lives %s, an hour was asked for", life)
	}
}

// A fresh pod's proxy asks before the watch has told of the pod, and so does a fresh proxy itself.
func TestFreshPod(t *testing.T) {
	a, r := cast(t, func(a *fakeAPI) { a.deaf.Store(true) })
	fresh := pod("shop", "fresh", "fresh", "node1", "10.0.0.9")
	a.createPod(fresh)
	proxy := a.ztunnel("node3")
	a.createPod(proxy)
	a.createPod(pod("shop", "three", "three", "node3", "10.0.0.10"))
	if _, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", spiffe("shop", "fresh")); err != nil {
		t.Errorf("a fresh pod's certificate: %v", err)
	}
	if _, _, err := r.certificate(r.dialTLS(), "ztunnel-node3", spiffe("shop", "three")); err != nil {
		t.Errorf("a fresh proxy's certificate: %v", err)
	}
	_, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", spiffe("shop", "three"))
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a fresh pod of another node: %v, want PermissionDenied", err)
	}
}

// A token that was good a moment ago is not when its pod is gone, although its review is remembered.
func TestTokenEndsWithItsPod(t *testing.T) {
	a, r := cast(t)
	a.awaitWatch(1, "pods")
	if _, _, err := r.certificate(r.dialTLS(), "ztunnel-node2", spiffe("shop", "other")); err != nil {
		t.Fatal(err)
	}
	a.deletePod(pod("istio-system", "ztunnel-node2", "ztunnel", "node2", ""))
	await(t, "the certificate to be refused", func() bool {
		_, _, err := r.certificate(r.dialTLS(), "ztunnel-node2", spiffe("shop", "other"))
		return status.Code(err) == codes.Unauthenticated
	})
}

// A certificate of the mesh identifies a node proxy to xDS, and nobody to the CA.
func TestCallerWithCertificate(t *testing.T) {
	a, r := cast(t)
	with := func(token, id string) tls.Certificate {
		chain, key, err := r.certificate(r.dialTLS(), token, id)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode([]byte(chain[0]))
		return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	}
	ztunnel, web := with("ztunnel-node1", spiffe("istio-system", "ztunnel")), with("web", spiffe("shop", "web"))

	c := xdstest.Open(t.Context(), t, r.dialTLS(ztunnel), proxyNode("node1"))
	c.Subscribe(resource.Authorization, nil)
	c.NextAck()

	c = xdstest.Open(t.Context(), t, r.dialTLS(web), nil)
	c.Subscribe(resource.Authorization, nil)
	if err := c.Err(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("xDS for a workload's certificate: %v, want PermissionDenied", err)
	}
	if _, _, err := r.certificate(r.dialTLS(ztunnel), "", spiffe("shop", "web")); status.Code(err) != codes.Unauthenticated {
		t.Errorf("CA for a certificate: %v, want Unauthenticated", err)
	}

	// One of another CA does not even connect; one of another trust domain of the same CA is nobody.
	foreign, err := ca.SelfSigned("evil", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.handshake(sign(t, foreign, "cluster.local")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("handshake with another CA's certificate: %v, want a refusal", err)
	}
	if err := r.handshake(ztunnel); err != nil {
		t.Errorf("handshake with the mesh's certificate: %v", err)
	}
	secret, err := a.core.CoreV1().Secrets(api.DefaultNamespace).Get(t.Context(), api.CASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own := ca.Material{Cert: secret.Data["ca-cert.pem"], Key: secret.Data["ca-key.pem"], Roots: secret.Data["root-cert.pem"]}
	c = xdstest.Open(t.Context(), t, r.dialTLS(sign(t, own, "evil.example")), nil)
	c.Subscribe(resource.Authorization, nil)
	err = c.Err()
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("xDS for another trust domain: %v, want Unauthenticated", err)
	}
	mentions(t, err, "trust domain")
}

// handshake connects with a certificate; the server's verdict comes with what it says first.
func (r *replica) handshake(cert tls.Certificate) error {
	conn, err := tls.Dial("tcp", r.secure, &tls.Config{RootCAs: r.roots, ServerName: "istiod.istio-system.svc", NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1)) // HTTP/2 settings
	return err
}

// sign makes a node proxy's certificate of a trust domain.
func sign(t *testing.T, m ca.Material, trustDomain string) tls.Certificate {
	t.Helper()
	authority, err := ca.NewAuthority(m, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, key := csr(t, spiffe("x", "y"))
	chain, err := authority.Sign(key.Public(), identity.Identity{TrustDomain: trustDomain, Namespace: "istio-system", ServiceAccount: "ztunnel"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{parseCert(t, chain[0]).Raw}, PrivateKey: key}
}

// The CA that a user plugs in is used, and its intermediates are returned.
func TestPluggedCA(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"))
	root, intermediate := pluggedCA(t)
	if _, err := a.core.CoreV1().Secrets(api.DefaultNamespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.PluggedCASecret},
		Data: map[string][]byte{"ca-cert.pem": intermediate.Cert, "ca-key.pem": intermediate.Key,
			"cert-chain.pem": append(append([]byte{}, intermediate.Cert...), root...), "root-cert.pem": root},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	r := a.start()
	r.roots = x509.NewCertPool()
	r.roots.AppendCertsFromPEM(root)
	r.awaitReady()
	chain, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", spiffe("shop", "web"))
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 || chain[2] != string(root) {
		t.Fatalf("the chain has %d elements, want leaf, intermediate and root", len(chain))
	}
	checkChain(t, r, chain, spiffe("shop", "web"))
	if _, err := a.core.CoreV1().Secrets(api.DefaultNamespace).Get(t.Context(), api.CASecret, metav1.GetOptions{}); err == nil {
		t.Error("a self-signed root was made beside the plugged-in CA")
	}
}

func TestRequestsThatAreNotSigned(t *testing.T) {
	_, r := cast(t)
	good, _ := csr(t, spiffe("shop", "web"))
	other, _ := csr(t, spiffe("shop", "other"))
	client := securityv1alpha1.NewIstioCertificateServiceClient(r.dialTLS())
	for _, tc := range []struct {
		name  string
		req   *securityv1alpha1.IstioCertificateRequest
		words string
	}{
		{"garbage", &securityv1alpha1.IstioCertificateRequest{Csr: "garbage"}, "PEM"},
		{"empty", &securityv1alpha1.IstioCertificateRequest{}, "PEM"},
		{"huge", &securityv1alpha1.IstioCertificateRequest{Csr: strings.Repeat("x", 1<<20)}, "bytes"},
		{"tampered", &securityv1alpha1.IstioCertificateRequest{Csr: tamper(t, good)}, ""},
		{"names another", &securityv1alpha1.IstioCertificateRequest{Csr: other}, "names"},
		{"too long", &securityv1alpha1.IstioCertificateRequest{Csr: good, ValidityDuration: int64(ca.MaxTTL/time.Second) + 1}, "validity"},
		{"too short", &securityv1alpha1.IstioCertificateRequest{Csr: good, ValidityDuration: 1}, "validity"},
		{"negative", &securityv1alpha1.IstioCertificateRequest{Csr: good, ValidityDuration: -5}, "validity"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := client.CreateCertificate(withToken(t.Context(), "web"), tc.req)
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v, want InvalidArgument", err)
			}
			mentions(t, err, tc.words)
		})
	}
	res, err := client.CreateCertificate(withToken(t.Context(), "web"), &securityv1alpha1.IstioCertificateRequest{Csr: good})
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(parseCert(t, res.GetCertChain()[0]).NotAfter); life > ca.DefaultTTL || life < ca.DefaultTTL-time.Minute {
		t.Errorf("a certificate lives %s where none was asked for, want %s", life, ca.DefaultTTL)
	}
}

// tamper changes the request under its signature.
func tamper(t *testing.T, text string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	i := strings.Index(string(block.Bytes), "shop")
	if i < 0 {
		t.Fatal("the request does not name the identity")
	}
	copy(block.Bytes[i:], "bank")
	return string(pem.EncodeToMemory(block))
}

// pluggedCA makes a root, and an intermediate under it.
func pluggedCA(t *testing.T) (root []byte, intermediate ca.Material) {
	t.Helper()
	m, err := ca.SelfSigned("user", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(m.Cert, m.Key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "intermediate"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, pair.Leaf, key.Public(), pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return m.Cert, ca.Material{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}),
	}
}
