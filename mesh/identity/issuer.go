package identity

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// DefaultTTL is the validity that certificates are requested with where nothing else is set.
const DefaultTTL = 24 * time.Hour

// impersonationField is the key in the request's metadata under which Istio's CA looks for the identity to sign.
const impersonationField = "ImpersonatedIdentity"

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
	// TTL is the validity to ask for; the CA may grant less. Zero means DefaultTTL.
	TTL time.Duration
	// Impersonate names the requested identity in the request's metadata, as a node proxy does that asks for the pods of
	// its node. Unset, the CA signs for the identity of the caller's own token.
	Impersonate bool
}

// Issue implements Issuer. Its errors carry a gRPC status.
func (g *GRPCIssuer) Issue(ctx context.Context, id Identity, csrPEM []byte) ([]string, error) {
	ttl := g.TTL
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	req := &securityv1alpha1.IstioCertificateRequest{Csr: string(csrPEM), ValidityDuration: int64(ttl / time.Second)}
	if g.Impersonate {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			impersonationField: structpb.NewStringValue(id.String()),
		}}
	}
	resp, err := securityv1alpha1.NewIstioCertificateServiceClient(g.Conn).CreateCertificate(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("request certificate: %w", err)
	}
	return resp.GetCertChain(), nil
}

// Request makes a key, has a certificate signed for id by issuer, and checks what comes back, once.
func Request(ctx context.Context, issuer Issuer, id Identity) (*SVID, error) {
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, err
	}
	chain, err := issuer.Issue(ctx, id, csr)
	if err != nil {
		return nil, err
	}
	return NewSVID(id, key, chain)
}
