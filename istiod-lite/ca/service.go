package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// metaImpersonated is the key of request metadata under which a node proxy says for whom it asks.
const metaImpersonated = "ImpersonatedIdentity"

// maxCSR bounds a request in bytes; one for an RSA key of 16 kbit is not half as long.
const maxCSR = 16 << 10

// Pods is what is known of pods; *roster.Roster is one.
type Pods interface {
	// Runs reports whether a pod of the service account is bound to the node and has not ended.
	Runs(ctx context.Context, node, namespace, serviceAccount string) (bool, error)
}

// Service is the CA's gRPC service. All fields are required.
type Service struct {
	// Authority returns the authority in force.
	Authority func() *Authority
	// Identify returns the pod that calls, or a gRPC status that says why nobody does.
	Identify func(context.Context) (auth.Caller, error)
	Pods     Pods
	// TrustDomain is the mesh's, at present.
	TrustDomain func() string
	// NodeAccounts are the service accounts of node proxies, "namespace/name".
	NodeAccounts []string
	Metrics      *Metrics
	Refusals     *auth.Refusals
	Log          *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Register makes a server serve CreateCertificate. On the wire it is the call that its clients make; here it is a stream of
// one message each way, so that the caller is known before the request is read: a server that serves xDS beside it takes
// large messages, and strangers must not fill its memory with them.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: securityv1alpha1.IstioCertificateService_ServiceDesc.ServiceName,
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: createCertificate, Handler: s.handle}},
	}, s)
}

const createCertificate = "CreateCertificate"

func (s *Service) handle(_ any, st grpc.ServerStream) error {
	s.Metrics.requests.Inc()
	caller, err := s.Identify(st.Context())
	if err != nil {
		s.Metrics.unauthenticated.Inc()
		s.Refusals.Refused(st.Context(), "certificate refused", "cause", err)
		return err
	}
	var req securityv1alpha1.IstioCertificateRequest
	if err := st.RecvMsg(&req); err != nil {
		return err
	}
	res, err := s.createCertificate(st.Context(), caller, &req)
	if err != nil {
		return err
	}
	return st.SendMsg(res)
}

// createCertificate certifies the key of a request.
func (s *Service) createCertificate(ctx context.Context, caller auth.Caller, req *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	id, chain, err := s.create(ctx, caller, req)
	if err != nil {
		s.Metrics.failures.WithLabelValues(status.Code(err).String()).Inc()
		s.Refusals.Refused(ctx, "certificate refused", "for", id.String(), "account", caller.Account(), "pod", caller.Pod, "node", caller.Node, "cause", err)
		return nil, err
	}
	s.Metrics.issued.Inc()
	s.Log.Debug("certificate issued", "for", id.String(), "account", caller.Account(), "node", caller.Node)
	return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, nil
}

func (s *Service) create(ctx context.Context, caller auth.Caller, req *securityv1alpha1.IstioCertificateRequest) (identity.Identity, []string, error) {
	id, err := s.authorize(ctx, caller, req.GetMetadata().GetFields()[metaImpersonated].GetStringValue())
	if err != nil {
		return id, nil, err
	}
	key, err := publicKey(req.GetCsr(), id)
	if err != nil {
		return id, nil, status.Errorf(codes.InvalidArgument, "certificate request for %s: %v", id, err)
	}
	ttl, err := lifetime(req.GetValidityDuration())
	if err != nil {
		return id, nil, status.Errorf(codes.InvalidArgument, "certificate request for %s: %v", id, err)
	}
	chain, err := s.Authority().Sign(key, id, ttl, s.Now())
	if err != nil {
		return id, nil, status.Error(codes.Internal, err.Error())
	}
	return id, chain, nil
}

// authorize returns the identity to certify: the caller's own, or the one that it names and may ask for.
func (s *Service) authorize(ctx context.Context, caller auth.Caller, impersonated string) (identity.Identity, error) {
	own := identity.Identity{TrustDomain: s.TrustDomain(), Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount}
	if impersonated == "" {
		return own, nil
	}
	id, err := identity.Parse(impersonated)
	if err != nil {
		return identity.Identity{}, status.Error(codes.InvalidArgument, err.Error())
	}
	refuse := func(format string, args ...any) (identity.Identity, error) {
		return id, status.Errorf(codes.PermissionDenied, "certificate for %s refused to %s: %s", id, caller.Account(), fmt.Sprintf(format, args...))
	}
	if id.TrustDomain != own.TrustDomain {
		return refuse("the mesh's trust domain is %s", own.TrustDomain)
	}
	if !slices.Contains(s.NodeAccounts, caller.Account()) {
		if id == own {
			return id, nil
		}
		return refuse("it is not a node proxy's account %v, and may ask for itself only", s.NodeAccounts)
	}
	if caller.Node == "" {
		return refuse("its pod %s is bound to no node", caller.Pod)
	}
	runs, err := s.Pods.Runs(ctx, caller.Node, id.Namespace, id.ServiceAccount)
	if err != nil {
		return id, status.Errorf(codes.Unavailable, "certificate for %s: %v", id, err)
	}
	if !runs {
		return refuse("no pod of that service account runs on its node %s", caller.Node)
	}
	return id, nil
}

// lifetime reads the validity that a request asks for, in seconds. More than the maximum is refused, since a client that
// asks for it relies on it.
func lifetime(seconds int64) (time.Duration, error) {
	switch {
	case seconds == 0:
		return DefaultTTL, nil
	case seconds < int64(MinTTL/time.Second) || seconds > int64(MaxTTL/time.Second):
		return 0, fmt.Errorf("validity of %d s: must be from %d s to %d s", seconds, int64(MinTTL/time.Second), int64(MaxTTL/time.Second))
	}
	return time.Duration(seconds) * time.Second, nil
}

// publicKey reads a request and checks that who made it has the key. If it names identities, they must be the one that is
// certified; anything else that it asks for is not looked at.
func publicKey(text string, id identity.Identity) (crypto.PublicKey, error) {
	if len(text) > maxCSR {
		return nil, fmt.Errorf("%d bytes, at most %d", len(text), maxCSR)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("no PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	for _, u := range csr.URIs {
		if u.String() != id.String() {
			return nil, fmt.Errorf("it names %s", u)
		}
	}
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() && key.Curve != elliptic.P521() {
			return nil, fmt.Errorf("curve %s is not supported", key.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 8192 {
			return nil, fmt.Errorf("RSA key of %d bits: must have 2048 to 8192", bits)
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("key of type %T is not supported", key)
	}
	return csr.PublicKey, nil
}
