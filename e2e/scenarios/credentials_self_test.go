package scenarios

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestAttempt tries the tunnel's client on a server that is not ours, so that a refusal by ours is ours.
func TestAttempt(t *testing.T) {
	mesh := foreignAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(mesh.cert)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "10.0.0.1:80" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusOK)
		_, _ = io.Copy(w, r.Body)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	addr := server.Listener.Addr().String()
	right := mesh.issue(t, "spiffe://cluster.local/ns/a/sa/b")
	status, back, err := attempt(t.Context(), &net.Dialer{}, addr, right, "10.0.0.1:80", "hello\n")
	if status != http.StatusOK || back != "hello\n" || err != nil {
		t.Errorf("right: %d, %q, %v", status, back, err)
	}
	if status, _, _ := attempt(t.Context(), &net.Dialer{}, addr, right, "10.0.0.2:80", "hello\n"); status != http.StatusBadRequest {
		t.Errorf("another authority: %d", status)
	}
	for what, cert := range map[string]*tls.Certificate{"none": nil, "foreign": foreignAuthority(t).issue(t, "spiffe://cluster.local/ns/a/sa/b")} {
		if status, _, err := attempt(t.Context(), &net.Dialer{}, addr, cert, "10.0.0.1:80", "hello\n"); !errors.Is(err, errNoTunnel) {
			t.Errorf("certificate %s: %d, %v", what, status, err)
		}
	}
}
