package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"
)

// SVID is a workload certificate with its key and the roots that came with it. It is immutable and safe for concurrent
// use; a renewal is a new SVID.
type SVID struct {
	Identity
	// TLS holds the chain without the root, the key, and Leaf.
	TLS tls.Certificate
	// Roots verify peers. RootsPEM is the same, in PEM.
	Roots    *x509.CertPool
	RootsPEM []byte
	// ChainPEM is the leaf, then the intermediates.
	ChainPEM []byte
	// NotBefore and NotAfter bound the validity of the leaf.
	NotBefore, NotAfter time.Time

	clients sync.Map // expected identities, joined -> *tls.Config
	servers sync.Map // trust domains, joined -> *tls.Config
}

// NewSVID checks what a CA returned for id and key, and makes an SVID of it. chainPEM is the leaf, then intermediates,
// and last the roots, of which one element may hold several. The leaf must hold key, exactly the name id, and be valid
// now under those roots.
func NewSVID(id Identity, key crypto.Signer, chainPEM []string) (*SVID, error) {
	panic("unwritten")
}
