package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// secured is how an endpoint is spoken to by TLS: the configuration depends on what is spoken inside, which ALPN tells.
type secured struct {
	key string // config.TLS.Key
	// plain is for what is not HTTP, and offers no protocol.
	http1, http2, plain *tls.Config
}

// resumptions is how many sessions are kept for each, so that another connection to the same server costs less.
const resumptions = 64

// newSecured returns nil for nil. System are the roots for one that names none.
func newSecured(t *config.TLS, system func() *x509.CertPool) *secured {
	if t == nil {
		return nil
	}
	v := &verifier{roots: t.Pool(), names: t.Names}
	if v.roots == nil {
		v.roots = system()
	}
	base := &tls.Config{
		ServerName: t.ServerName, MinVersion: tls.VersionTLS12,
		// The name that the server is asked for need not be the one that it has to prove: VerifyConnection verifies all.
		InsecureSkipVerify: true, VerifyConnection: v.verify,
	}
	with := func(protocols ...string) *tls.Config {
		c := base.Clone()
		c.NextProtos, c.ClientSessionCache = protocols, tls.NewLRUClientSessionCache(resumptions)
		return c
	}
	return &secured{key: t.Key(), http1: with("http/1.1"), http2: with("h2"), plain: with()}
}

// secure brings s up to t; it stays what it was if nothing differs.
func (m *Clusters) secure(s **secured, t *config.TLS) {
	if (*s).name() != t.Key() {
		*s = newSecured(t, m.system)
	}
}

// systemRoots are the certificates that the system trusts or, where it has none, as in an image without files, those that Mozilla's
// browser does.
func systemRoots() *x509.CertPool {
	pool, err := x509.SystemCertPool()
	if err == nil && !pool.Equal(x509.NewCertPool()) {
		return pool
	}
	pool = x509.NewCertPool()
	for root := range bundle.Roots() {
		c, err := x509.ParseCertificate(root.Certificate)
		switch {
		case err != nil: // the bundle's own tests parse it
		case root.Constraint == nil:
			pool.AddCert(c)
		default:
			pool.AddCertWithConstraint(c, root.Constraint)
		}
	}
	return pool
}

// name is the key, "" of nil.
func (s *secured) name() string {
	if s == nil {
		return ""
	}
	return s.key
}

// client makes a connection one of TLS, which owns nc; nc is closed if that fails.
func (s *secured) client(ctx context.Context, nc net.Conn, cfg *tls.Config) (net.Conn, error) {
	c := tls.Client(nc, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("TLS to %s: %w", serverName(cfg), err)
	}
	if want := cfg.NextProtos; slices.Contains(want, "h2") && c.ConnectionState().NegotiatedProtocol != "h2" {
		_ = c.Close()
		return nil, fmt.Errorf("TLS to %s: the server does not speak HTTP/2 (ALPN h2)", serverName(cfg))
	}
	return c, nil
}

func serverName(cfg *tls.Config) string {
	if cfg.ServerName == "" {
		return "a server without a name"
	}
	return cfg.ServerName
}

// of returns the configuration for a version of HTTP.
func (s *secured) of(p message.Protocol) *tls.Config {
	if p == message.HTTP2 {
		return s.http2
	}
	return s.http1
}

// verifier decides whether a server is who it should be.
type verifier struct {
	roots *x509.CertPool
	names []config.TLSName
}

func (v *verifier) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server has shown no certificate")
	}
	leaf := state.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: v.roots, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	var wanted []string
	for _, n := range v.names {
		if n.Of(leaf) {
			return nil
		}
		wanted = append(wanted, n.Value)
	}
	return fmt.Errorf("its certificate is for %s, not for %s", strings.Join(namesOf(leaf), ", "), strings.Join(wanted, " or "))
}

func namesOf(c *x509.Certificate) []string {
	out := slices.Clone(c.DNSNames)
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	if len(out) == 0 {
		return []string{"no name"}
	}
	return out
}
