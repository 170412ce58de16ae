package app

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
)

// A plugged-in CA is exchanged for one under another root while two replicas run: both hand out both roots, then sign under the
// new one, and the bundle in the namespaces and the control plane's own certificate follow. Its revocation lists are published.
func TestPluggedCAIsReplacedLive(t *testing.T) {
	const distribution = 2 * time.Second
	a := newAPI(t, namespaceObject("shop"), namespaceObject(api.DefaultNamespace))
	data := func() (root []byte, d map[string][]byte) {
		root, intermediate := pluggedCA(t)
		return root, map[string][]byte{"ca-cert.pem": intermediate.Cert, "ca-key.pem": intermediate.Key, "cert-chain.pem": intermediate.Cert, "root-cert.pem": root}
	}
	oldRoot, old := data()
	freshRoot, fresh := data()
	secrets := a.core.CoreV1().Secrets(api.DefaultNamespace)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.PluggedCASecret}, Data: old}
	if _, err := secrets.Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	var both []*replica
	for range 2 {
		r := a.start(func(c *Config) { c.RootDistribution = distribution })
		r.roots = x509.NewCertPool()
		r.roots.AppendCertsFromPEM(oldRoot)
		r.awaitReady()
		both = append(both, r)
	}
	a.awaitWatch(6, "secrets") // three by each
	bundle := func(name, key string) (string, bool) {
		cm, err := a.core.CoreV1().ConfigMaps("shop").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return "", false
		}
		text, ok := cm.Data[key]
		return text, ok
	}
	await(t, "the first bundle", func() bool {
		text, _ := bundle(api.RootCertConfigMap, api.RootCertKey)
		return text == string(oldRoot)
	})
	if _, there := bundle(api.CRLConfigMap, api.CRLKey); there {
		t.Error("revocation lists are published where there are none")
	}

	fresh[api.CRLKey] = []byte{}
	secret.Data = fresh
	replaced := time.Now()
	if _, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "a bundle of both roots", func() bool {
		text, _ := bundle(api.RootCertConfigMap, api.RootCertKey)
		return strings.Contains(text, string(oldRoot)) && strings.Contains(text, string(freshRoot))
	})
	await(t, "empty revocation lists", func() bool { text, there := bundle(api.CRLConfigMap, api.CRLKey); return there && text == "" })
	issuedBy := func(r *replica) string {
		chain, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", spiffe("shop", "web"))
		if err != nil {
			t.Fatal(err)
		}
		if roots := chain[len(chain)-1]; !strings.Contains(roots, string(oldRoot)) || !strings.Contains(roots, string(freshRoot)) {
			t.Errorf("a certificate comes without both roots")
		}
		return strings.TrimSpace(chain[1])
	}
	for i, r := range both {
		r.roots.AppendCertsFromPEM(freshRoot)                       // as a mounted bundle brings it
		await(t, "certificates come with both roots", func() bool { // the bundle is the leader's, and each hears for itself
			chain, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", spiffe("shop", "web"))
			return err == nil && strings.Contains(chain[len(chain)-1], string(oldRoot)) && strings.Contains(chain[len(chain)-1], string(freshRoot))
		})
		got := issuedBy(r)
		if early := time.Since(replaced) < distribution; early && got != strings.TrimSpace(string(old["ca-cert.pem"])) {
			t.Errorf("replica %d signs with the new key before its root was told", i)
		}
	}
	for _, r := range both {
		await(t, "certificates under the new root", func() bool { return issuedBy(r) == strings.TrimSpace(string(fresh["ca-cert.pem"])) })
		only := x509.NewCertPool()
		only.AppendCertsFromPEM(freshRoot)
		r.roots = only
		if _, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", spiffe("shop", "web")); err != nil {
			t.Errorf("the control plane's own certificate is not under the new root: %v", err)
		}
	}
}
