package identity

import (
	"context"
	"time"

	"google.golang.org/grpc"
)

// Issuer has certificate requests signed. Issue may be called concurrently.
type Issuer interface {
	// Issue returns the chain for a PEM certificate request that names id: leaf, intermediates, and as the last element
	// the roots.
	Issue(ctx context.Context, id Identity, csrPEM []byte) (chainPEM []string, err error)
}

// GRPCIssuer asks an Istio CA (istio.v1.auth.IstioCertificateService). Its methods may be called concurrently.
type GRPCIssuer struct {
	// Conn is the channel to the CA, which carries the caller's credentials; see NewChannel. It stays the caller's to
	// close.
	Conn grpc.ClientConnInterface
	// TTL is the validity to ask for; the CA may grant less. Zero means 24 hours.
	TTL time.Duration
	// Impersonate names the requested identity in the request's metadata, as a node proxy does that asks for the pods of
	// its node. Unset, the CA signs for the identity of the caller's own token.
	Impersonate bool
}

// Issue implements Issuer.
func (g *GRPCIssuer) Issue(ctx context.Context, id Identity, csrPEM []byte) ([]string, error) {
	panic("unwritten")
}
