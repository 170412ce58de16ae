package ca

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"
)

// Serving keeps a certificate for the control plane's own names, and renews it at half of its life. It is safe for
// concurrent use.
type Serving struct {
	authority func() *Authority
	names     []string
	now       func() time.Time

	mu      sync.Mutex // guards the fields below
	cert    *tls.Certificate
	signer  *Authority
	renewAt time.Time
}

// NewServing returns a Serving that is certified by the authority in force.
func NewServing(authority func() *Authority, names []string, now func() time.Time) *Serving {
	return &Serving{authority: authority, names: names, now: now}
}

// Certificate returns a valid certificate of the authority in force; it is a tls.Config's GetCertificate. A renewal that
// fails does not matter while the old one is valid.
func (s *Serving) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, authority := s.now(), s.authority()
	if s.cert != nil && s.signer == authority && now.Before(s.renewAt) {
		return s.cert, nil
	}
	cert, err := authority.Serving(s.names, now)
	if err != nil {
		if s.cert != nil && now.Before(s.cert.Leaf.NotAfter) {
			return s.cert, nil
		}
		return nil, fmt.Errorf("serve: %w", err)
	}
	s.cert, s.signer = cert, authority
	s.renewAt = now.Add(cert.Leaf.NotAfter.Sub(now) / 2)
	return cert, nil
}

// Names are the DNS names of the control plane: of its Service, which is Istio's, and of its own.
func Names(service, program, namespace, clusterDomain string) []string {
	var out []string
	for _, name := range []string{service, program} {
		out = append(out,
			name+"."+namespace+".svc",
			name+"."+namespace+".svc."+clusterDomain,
			name+"."+namespace)
	}
	return append(out, "localhost")
}
