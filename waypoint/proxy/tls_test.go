package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// secret is a server's certificate.
func secret(t *testing.T, ca *identitytest.CA, names ...string) *tls.Config {
	t.Helper()
	cert, key, err := ca.Server(names...)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
}

// trusting is YAML of an UpstreamTlsContext. Names are "dns NAME" or "uri NAME".
func trusting(ca *identitytest.CA, sni string, names ...string) string {
	var matchers []string
	for _, n := range names {
		kind, value, _ := strings.Cut(n, " ")
		matchers = append(matchers, fmt.Sprintf("{san_type: %s, matcher: {exact: %q}}", strings.ToUpper(kind), value))
	}
	return fmt.Sprintf("sni: %q, common_tls_context: {validation_context: {trusted_ca: {inline_string: %q}, match_typed_subject_alt_names: [%s]}}",
		sni, ca.RootPEM(), strings.Join(matchers, ", "))
}

func newAuthority(t *testing.T) *identitytest.CA {
	t.Helper()
	ca, err := identitytest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// securePod is an endpoint that speaks TLS: outside the mesh, or in it, inside its tunnels.
func (w *world) securePod(cluster string, n int, inMesh bool, cfg *tls.Config, handler http.Handler) {
	w.t.Helper()
	server := &http.Server{Handler: handler, TLSConfig: cfg, Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	served := make(chan struct{})
	var ln net.Listener
	if inMesh {
		inside := newStreams()
		w.pod(cluster, n, backendID, inside.carry)
		ln = inside
	} else {
		ln = w.listen()
		w.plainEndpoint(cluster, n, ln.Addr().String())
	}
	go func() {
		defer close(served)
		_ = server.ServeTLS(ln, "", "")
	}()
	w.t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
}

// secured answers with what the connection was like.
var secured = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	if r.TLS == nil {
		http.Error(w, "no TLS", 500)
		return
	}
	fmt.Fprintf(w, "%s %s %s %s %s", r.Proto, r.TLS.NegotiatedProtocol, r.TLS.ServerName, r.Host, b)
})

func TestBackendTLS(t *testing.T) {
	ca := newAuthority(t)
	for _, version := range versions {
		for _, inMesh := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s mesh=%v", version, inMesh), func(t *testing.T) {
				w := newWorld(t)
				w.securePod("c", 1, inMesh, secret(t, ca, "api.example.com"), secured)
				w.tls["c"] = trusting(ca, "api.example.com", "dns api.example.com")
				w.apply(all)
				alpn := map[string]string{"HTTP/1.1": "http/1.1", "HTTP/2.0": "h2"}[version]
				c := w.client(version)
				for range 3 {
					a := do(t, c, "POST", "/", "hello")
					if want := version + " " + alpn + " api.example.com stock.shop hello"; a.StatusCode != 200 || a.body != want {
						t.Fatalf("%d %q, want %q", a.StatusCode, a.body, want)
					}
				}
				n := 0
				w.clusters.Lookup("c").Endpoints(func(e *upstream.Endpoint) { n += e.Connections() })
				if n != 1 {
					t.Errorf("%d connections for three requests in a row, want 1", n)
				}
			})
		}
	}
}

// TestBackendTLSRefuses: who cannot prove to be the one that is meant gets no request, and the client is told why.
func TestBackendTLSRefuses(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	for _, tc := range []struct{ name, tls, want string }{
		{"another name", trusting(ca, "api.example.com", "dns other.example.com"), "certificate is for api.example.com, not for other.example.com"},
		{"another authority", trusting(other, "api.example.com", "dns api.example.com"), "unknown authority"},
		{"a URI that it has not", trusting(ca, "api.example.com", "uri spiffe://x/y"), "not for spiffe://x/y"},
		{"the system's authorities", `common_tls_context: {validation_context: {trusted_ca: {filename: /etc/ssl/certs/ca-certificates.crt}, match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: api.example.com}}]}}`, "unknown authority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.securePod("c", 1, false, secret(t, ca, "api.example.com"), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request has come") }))
			w.tls["c"] = tc.tls
			w.apply(all)
			if a := do(t, w.client("HTTP/1.1"), "GET", "/", ""); a.StatusCode != 503 || !strings.Contains(a.body, tc.want) {
				t.Errorf("%d %q, want 503 with %q", a.StatusCode, a.body, tc.want)
			}
		})
	}
}

// TestBackendTLSNames: any of several names will do, also one that the server is not asked for, and one that a wildcard covers.
func TestBackendTLSNames(t *testing.T) {
	ca := newAuthority(t)
	w := newWorld(t)
	w.securePod("c", 1, false, secret(t, ca, "*.example.com"), secured)
	w.tls["c"] = trusting(ca, "front.example.org", "uri spiffe://a/b", "dns api.example.com")
	w.apply(all)
	if a := do(t, w.client("HTTP/1.1"), "GET", "/", ""); a.StatusCode != 200 || !strings.Contains(a.body, "front.example.org") {
		t.Errorf("%d %q", a.StatusCode, a.body)
	}
}

// TestBackendTLSChanges: requests after a change of what a backend must prove do not use connections from before it.
func TestBackendTLSChanges(t *testing.T) {
	ca := newAuthority(t)
	w := newWorld(t)
	w.securePod("c", 1, false, secret(t, ca, "api.example.com"), secured)
	w.tls["c"] = trusting(ca, "api.example.com", "dns api.example.com")
	w.apply(all)
	c := w.client("HTTP/1.1")
	if a := do(t, c, "GET", "/", ""); a.StatusCode != 200 {
		t.Fatalf("%d %q", a.StatusCode, a.body)
	}
	w.tls["c"] = trusting(ca, "api.example.com", "dns new.example.com")
	w.apply(all)
	if a := do(t, c, "GET", "/", ""); a.StatusCode != 503 {
		t.Errorf("after the change: %d %q", a.StatusCode, a.body)
	}
	w.tls["c"] = trusting(ca, "api.example.com", "dns api.example.com")
	w.refused["c"] = "policy shop/p says no"
	w.apply(all)
	if a := do(t, c, "GET", "/", ""); a.StatusCode != 503 || !strings.Contains(a.body, "policy shop/p says no") {
		t.Errorf("refused: %d %q", a.StatusCode, a.body)
	}
}

// TestServerEndsIdleTLS: a server may close a connection that is kept for later; nobody gets an error from it.
func TestServerEndsIdleTLS(t *testing.T) {
	ca := newAuthority(t)
	w := newWorld(t)
	ended := make(chan struct{}, 10)
	cfg := secret(t, ca, "api.example.com")
	ln := tls.NewListener(w.listen(), cfg)
	server := &http.Server{Handler: secured, ErrorLog: log.New(io.Discard, "", 0), ConnState: func(nc net.Conn, s http.ConnState) {
		if s == http.StateIdle {
			_ = nc.Close()
			ended <- struct{}{}
		}
	}}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close(); <-served })
	w.plainEndpoint("c", 1, ln.Addr().String())
	w.tls["c"] = trusting(ca, "api.example.com", "dns api.example.com")
	w.apply(all)
	c := w.client("HTTP/1.1")
	for i := range 5 {
		if a := do(t, c, "POST", "/", "x"); a.StatusCode != 200 {
			t.Fatalf("request %d: %d %q", i, a.StatusCode, a.body)
		}
		<-ended
	}
}

func TestTCPOverTLS(t *testing.T) {
	ca := newAuthority(t)
	for _, inMesh := range []bool{false, true} {
		t.Run(fmt.Sprintf("mesh=%v", inMesh), func(t *testing.T) {
			w := newWorld(t)
			cfg := secret(t, ca, "db.example.com")
			cfg.NextProtos = nil
			serve := func(nc net.Conn) {
				c := tls.Server(nc, cfg)
				defer c.Close()
				_, _ = io.WriteString(c, "220 hello\r\n")
				b, err := io.ReadAll(c)
				if err != nil {
					return
				}
				fmt.Fprintf(c, "bye %s", b)
				_ = c.CloseWrite()
			}
			if inMesh {
				w.pod("raw", 1, backendID, serve)
			} else {
				w.plainTCP("raw", 1, serve)
			}
			w.tls["raw"] = trusting(ca, "db.example.com", "dns db.example.com")
			w.apply(all)
			s := w.mustTunnel(rawPort)
			defer s.Close()
			b := make([]byte, 11)
			if _, err := io.ReadFull(s, b); err != nil || string(b) != "220 hello\r\n" {
				t.Fatalf("%q, %v", b, err)
			}
			_, _ = io.WriteString(s, "you")
			if err := s.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(s); err != nil || string(b) != "bye you" {
				t.Errorf("%q, %v", b, err)
			}
			await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "bytes_sent=18 bytes_recv=3") })
			w.tls["raw"] = trusting(ca, "db.example.com", "dns other.example.com")
			w.apply(all)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := w.tunnel(ctx, rawPort); err == nil || !strings.Contains(err.Error(), "not for other.example.com") {
				t.Errorf("error %v; want why the backend is not the one that is meant", err)
			}
		})
	}
}
