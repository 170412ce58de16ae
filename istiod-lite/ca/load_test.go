package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"
)

const namespace = "istio-system"

// together creates nothing until as many want to.
type together struct {
	typedcorev1.SecretInterface
	waits sync.WaitGroup
}

func (s *together) Create(ctx context.Context, secret *corev1.Secret, opts metav1.CreateOptions) (*corev1.Secret, error) {
	s.waits.Done()
	s.waits.Wait()
	return s.SecretInterface.Create(ctx, secret, opts)
}

// load reads the secrets as a replica does that starts.
func load(ctx context.Context, secrets typedcorev1.SecretInterface, organization string, now time.Time) (*Authority, error) {
	k := NewKeeper(KeeperConfig{Secrets: secrets, Organization: func() string { return organization },
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	err := k.Load(ctx)
	return k.Authority(), err
}

// Replicas that start at once end up with one root, whoever stored it.
func TestLoadRace(t *testing.T) {
	const replicas = 8
	secrets := &together{SecretInterface: fake.NewClientset().CoreV1().Secrets(namespace)}
	secrets.waits.Add(replicas)
	roots := make([]string, replicas)
	var wg sync.WaitGroup
	for i := range replicas {
		wg.Go(func() {
			a, err := load(t.Context(), secrets, "cluster.local", time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = a.Roots()
		})
	}
	wg.Wait()
	for i := range roots {
		if roots[i] != roots[0] || roots[i] == "" {
			t.Fatalf("replica %d has another root than replica 0", i)
		}
	}
	again, err := load(t.Context(), secrets, "cluster.local", time.Now())
	if err != nil || again.Roots() != roots[0] {
		t.Errorf("a later replica has another root (%v)", err)
	}
}

func TestLoadPlugged(t *testing.T) {
	now := time.Now()
	good, err := SelfSigned("user", now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := SelfSigned("other", now)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := NewAuthority(good, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := authority.Serving([]string{"x"}, now)
	if err != nil {
		t.Fatal(err)
	}
	leafPEM := encode(leaf.Leaf)
	for _, tc := range []struct {
		name string
		data map[string][]byte
		at   time.Time
		want string // an error; empty for none
	}{
		{name: "Istio's keys", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": good.Key, "cert-chain.pem": {}, "root-cert.pem": good.Roots}},
		{name: "cert-manager's keys", data: map[string][]byte{"tls.crt": good.Cert, "tls.key": good.Key, "ca.crt": good.Roots}},
		{name: "several roots", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": good.Key, "root-cert.pem": append(append([]byte{}, other.Cert...), good.Cert...)}},
		{name: "no roots, self-signed", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": good.Key}},
		{name: "empty", data: map[string][]byte{}, want: "ca-cert.pem"},
		{name: "no key", data: map[string][]byte{"ca-cert.pem": good.Cert}, want: "ca-key.pem"},
		{name: "another's key", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": other.Key}, want: "private key does not match"},
		{name: "another's root", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": good.Key, "root-cert.pem": other.Cert}, want: "not verified by the roots"},
		{name: "roots that are none", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": good.Key, "root-cert.pem": []byte("nothing")}, want: "roots"},
		{name: "chain that is none", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": good.Key, "cert-chain.pem": []byte("nothing")}, want: "chain"},
		{name: "no CA", data: map[string][]byte{"ca-cert.pem": []byte(leafPEM), "ca-key.pem": keyPEM(t, leaf), "root-cert.pem": good.Cert}, want: "not a CA"},
		{name: "ended", data: map[string][]byte{"ca-cert.pem": good.Cert, "ca-key.pem": good.Key}, at: now.Add(2 * rootTTL), want: "expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "cacerts"}, Data: tc.data})
			at := tc.at
			if at.IsZero() {
				at = now
			}
			a, err := load(t.Context(), client.CoreV1().Secrets(namespace), "cluster.local", at)
			if tc.want == "" {
				if err != nil || len(a.above) != 0 {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "istio-system/cacerts") {
				t.Errorf("error %v, want one that names the secret and mentions %q", err, tc.want)
			}
			// A broken plug-in must not be replaced by a root that nobody asked for.
			if _, err := client.CoreV1().Secrets(namespace).Get(t.Context(), "istio-ca-secret", metav1.GetOptions{}); err == nil {
				t.Error("a self-signed root was made")
			}
		})
	}
}

func TestLoadWithoutAPI(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("away")
	})
	if _, err := load(context.Background(), client.CoreV1().Secrets(namespace), "x", time.Now()); err == nil || !strings.Contains(err.Error(), "away") {
		t.Errorf("error %v, want the API server's", err)
	}
}

// The control plane's certificate is kept for half of its life, follows the authority, and never outlives it.
func TestServing(t *testing.T) {
	now := time.Now()
	make := func() *Authority {
		m, err := SelfSigned("x", now)
		if err != nil {
			t.Fatal(err)
		}
		a, err := NewAuthority(m, now)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	authority, clock := make(), now
	s := NewServing(func() *Authority { return authority }, Names("istiod", "istiod-lite", namespace, "cluster.local"), func() time.Time { return clock })
	get := func() *tls.Certificate {
		t.Helper()
		c, err := s.Certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	clock = now.Add(servingTTL/2 - time.Second)
	if get() != first {
		t.Error("the certificate was renewed before half of its life")
	}
	clock = now.Add(servingTTL/2 + time.Second)
	second := get()
	if second == first || !second.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Error("the certificate was not renewed after half of its life")
	}
	authority = make()
	third := get()
	if third == second || third.Leaf.CheckSignatureFrom(authority.cert) != nil {
		t.Error("the certificate is not of the authority in force")
	}
	clock = authority.NotAfter().Add(-time.Hour)
	if last := get(); !last.Leaf.NotAfter.Equal(authority.NotAfter()) {
		t.Errorf("the certificate ends at %s, the authority at %s", last.Leaf.NotAfter, authority.NotAfter())
	}
	clock = authority.NotAfter().Add(time.Hour)
	if _, err := s.Certificate(nil); err == nil {
		t.Error("an authority that has ended signs")
	}
}

func keyPEM(t *testing.T, c *tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
