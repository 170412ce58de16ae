package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Scheme starts every SPIFFE identity.
const Scheme = "spiffe://"

// maxURI bounds a SPIFFE ID in bytes (SPIFFE-ID section 2.3).
const maxURI = 2048

// ErrNoIdentity is wrapped by FromCertificate when a certificate has no URI that is a workload identity, or several
// different ones.
var ErrNoIdentity = errors.New("certificate holds no workload identity")

// Identity names a workload by its service account: spiffe://<trust domain>/ns/<namespace>/sa/<service account>. It is
// comparable, and usable as a map key. The zero Identity means "none".
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// Parse reads a SPIFFE identity of exactly the five parts that Identity documents. Any other SPIFFE path, an empty part,
// a character that SPIFFE does not allow, an upper-case trust domain, a port, a user, a query or a fragment is an error.
func Parse(uri string) (Identity, error) {
	if len(uri) > maxURI {
		return Identity{}, fmt.Errorf("parse identity: longer than %d bytes", maxURI)
	}
	rest, ok := strings.CutPrefix(uri, Scheme)
	if !ok {
		return Identity{}, fmt.Errorf("parse identity %q: does not start with %s", uri, Scheme)
	}
	var parts [5]string
	n := 0
	for part := range strings.SplitSeq(rest, "/") {
		if n == len(parts) {
			n++
			break
		}
		parts[n] = part
		n++
	}
	if n != len(parts) || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("parse identity %q: want %s<trust domain>/ns/<namespace>/sa/<service account>", uri, Scheme)
	}
	id := Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.Validate(); err != nil {
		return Identity{}, fmt.Errorf("parse identity %q: %w", uri, err)
	}
	return id, nil
}

// Validate says why String would not give a SPIFFE identity that Parse accepts, or nil if it would.
func (id Identity) Validate() error {
	if err := checkPart("trust domain", id.TrustDomain, isTrustDomainByte); err != nil {
		return err
	}
	if err := checkPart("namespace", id.Namespace, isPathByte); err != nil {
		return err
	}
	return checkPart("service account", id.ServiceAccount, isPathByte)
}

func checkPart(what, s string, allowed func(byte) bool) error {
	if s == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if s == "." || s == ".." {
		return fmt.Errorf("%s is %q", what, s)
	}
	for i := range len(s) {
		if !allowed(s[i]) {
			return fmt.Errorf("%s %q has the character %q", what, s, s[i])
		}
	}
	return nil
}

// isTrustDomainByte and isPathByte are the character sets of SPIFFE-ID sections 2.1 and 2.2.
func isTrustDomainByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

func isPathByte(c byte) bool {
	return isTrustDomainByte(c) || c >= 'A' && c <= 'Z'
}

// String returns the SPIFFE URI, or "" for the zero Identity.
func (id Identity) String() string {
	if id.IsZero() {
		return ""
	}
	return Scheme + id.Principal()
}

// Principal returns the identity without its scheme, the form in which policies name it, or "" for the zero Identity.
func (id Identity) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// IsZero reports whether id is the zero Identity.
func (id Identity) IsZero() bool { return id == Identity{} }

// MarshalText gives String.
func (id Identity) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// url is the URI as a certificate request takes it.
func (id Identity) url() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}
}

// FromCertificate returns the workload identity in the URI names of a certificate. A certificate that holds other names
// besides is accepted; one with two different identities is not, since it would be ambiguous who speaks. The certificate
// is not verified.
func FromCertificate(cert *x509.Certificate) (Identity, error) {
	var found Identity
	for _, u := range cert.URIs {
		id, err := Parse(u.String())
		if err != nil {
			continue
		}
		if !found.IsZero() && found != id {
			return Identity{}, fmt.Errorf("%w: both %s and %s", ErrNoIdentity, found, id)
		}
		found = id
	}
	if found.IsZero() {
		return Identity{}, fmt.Errorf("%w: URI names %v", ErrNoIdentity, cert.URIs)
	}
	return found, nil
}
