package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/roster"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Caller is who calls, proved.
type Caller struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	// Pod, PodUID and Node are those of the pod that the token is bound to; empty for a caller with a certificate.
	Pod    string `json:"pod,omitempty"`
	PodUID string `json:"podUID,omitempty"`
	Node   string `json:"node,omitempty"`
}

// Account returns "namespace/name" of the service account, "" for nobody.
func (c Caller) Account() string {
	if c.Namespace == "" && c.ServiceAccount == "" {
		return ""
	}
	return c.Namespace + "/" + c.ServiceAccount
}

// Pods is what is known of pods; *roster.Roster is one.
type Pods interface {
	// Pod returns the pod of that name and UID, or an error that wraps roster.ErrNotFound.
	Pod(ctx context.Context, key cluster.Key, uid string) (*cluster.Pod, error)
}

// Review asks the API server what it thinks of a token.
type Review func(ctx context.Context, token string, audiences []string) (authenticationv1.TokenReviewStatus, error)

// Config configures an Authenticator. All fields but Now are required.
type Config struct {
	Review Review
	Pods   Pods
	// TrustDomains are those whose certificates identify callers: the mesh's own first.
	TrustDomains func() []string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Authenticator is safe for concurrent use.
type Authenticator struct {
	cfg   Config
	calls singleflight.Group

	mu    sync.Mutex // guards the fields below; never held across a call
	known map[tokenHash]known
}

type tokenHash [sha256.Size]byte

// known is a token that the API server accepted a moment ago.
type known struct {
	caller Caller
	until  time.Time
}

// A node proxy that starts asks for many certificates at once, with one token. For reviewTTL the review of a token is not
// repeated; that its pod still exists is looked up each time. maxKnown bounds what is remembered.
const (
	reviewTTL     = 10 * time.Second
	reviewTimeout = 10 * time.Second
	maxKnown      = 10_000
)

// New returns an Authenticator.
func New(cfg Config) *Authenticator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authenticator{cfg: cfg, known: map[tokenHash]known{}}
}

// Caller identifies the caller of a gRPC method by its token, else by its certificate. The error is a gRPC status: it says
// to the caller what was wrong.
func (a *Authenticator) Caller(ctx context.Context) (Caller, error) {
	token, err := bearer(ctx)
	if err != nil {
		return Caller{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if token != "" {
		return a.byToken(ctx, token)
	}
	return a.byCertificate(ctx)
}

// CallerByToken is Caller for a service that takes no certificate.
func (a *Authenticator) CallerByToken(ctx context.Context) (Caller, error) {
	token, err := bearer(ctx)
	if err == nil && token == "" {
		err = errors.New("no token: send a service account token in the authorization header")
	}
	if err != nil {
		return Caller{}, status.Error(codes.Unauthenticated, err.Error())
	}
	return a.byToken(ctx, token)
}

// bearer returns the token that came with a call, "" if none did.
func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) == 0 {
		return "", nil
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" || len(values) > 1 {
		return "", errors.New("the authorization header is not one bearer token")
	}
	return token, nil
}

func (a *Authenticator) byToken(ctx context.Context, token string) (Caller, error) {
	caller, err := a.review(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	p, err := a.cfg.Pods.Pod(ctx, cluster.Key{Namespace: caller.Namespace, Name: caller.Pod}, caller.PodUID)
	if errors.Is(err, roster.ErrNotFound) {
		return Caller{}, status.Errorf(codes.Unauthenticated, "token of %s: its pod %s (UID %s) does not exist", caller.Account(), caller.Pod, caller.PodUID)
	} else if err != nil {
		return Caller{}, status.Errorf(codes.Unavailable, "token of %s: %v", caller.Account(), err)
	}
	if p.ServiceAccount != caller.ServiceAccount || caller.Node != "" && caller.Node != p.Node {
		return Caller{}, status.Errorf(codes.Unauthenticated, "token of %s on node %q: pod %s has service account %s and node %q",
			caller.Account(), caller.Node, p.Key, p.ServiceAccount, p.Node)
	}
	caller.Node = p.Node
	return caller, nil
}

// review returns whom a token names, according to the API server or to what it said a moment ago.
func (a *Authenticator) review(ctx context.Context, token string) (Caller, error) {
	hash := tokenHash(sha256.Sum256([]byte(token)))
	a.mu.Lock()
	k, ok := a.known[hash]
	a.mu.Unlock()
	if ok && a.cfg.Now().Before(k.until) {
		return k.caller, nil
	}
	ch := a.calls.DoChan(string(hash[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		st, err := a.cfg.Review(ctx, token, []string{api.TokenAudience})
		if err != nil {
			return Caller{}, status.Errorf(codes.Unavailable, "review token: %v", err)
		}
		caller, err := callerOf(st)
		if err != nil {
			return Caller{}, status.Error(codes.Unauthenticated, err.Error())
		}
		a.remember(hash, caller)
		return caller, nil
	})
	select {
	case res := <-ch:
		return res.Val.(Caller), res.Err
	case <-ctx.Done():
		return Caller{}, status.FromContextError(ctx.Err()).Err()
	}
}

func (a *Authenticator) remember(hash tokenHash, caller Caller) {
	now := a.cfg.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxKnown {
		for h, k := range a.known {
			if now.After(k.until) {
				delete(a.known, h)
			}
		}
	}
	if len(a.known) < maxKnown {
		a.known[hash] = known{caller, now.Add(reviewTTL)}
	}
}

// Keys under which the API server tells what a token is bound to (KEP-4193).
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

func callerOf(st authenticationv1.TokenReviewStatus) (Caller, error) {
	if !st.Authenticated {
		return Caller{}, fmt.Errorf("the API server does not accept the token for audience %s: %s", api.TokenAudience, st.Error)
	}
	if !slices.Contains(st.Audiences, api.TokenAudience) {
		return Caller{}, fmt.Errorf("the token is not for audience %s", api.TokenAudience)
	}
	parts := strings.Split(st.User.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return Caller{}, fmt.Errorf("%q is not a service account", st.User.Username)
	}
	first := func(key string) string {
		if v := st.User.Extra[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	c := Caller{Namespace: parts[2], ServiceAccount: parts[3], Pod: first(extraPodName), PodUID: first(extraPodUID), Node: first(extraNodeName)}
	if c.Pod == "" || c.PodUID == "" {
		return Caller{}, fmt.Errorf("token of %s is not bound to a pod: use one that is projected into the pod", c.Account())
	}
	return c, nil
}

// byCertificate identifies a caller whose certificate the TLS handshake has verified.
func (a *Authenticator) byCertificate(ctx context.Context) (Caller, error) {
	p, ok := peer.FromContext(ctx)
	info, isTLS := credentials.TLSInfo{}, false
	if ok {
		info, isTLS = p.AuthInfo.(credentials.TLSInfo)
	}
	if !isTLS || len(info.State.VerifiedChains) == 0 {
		return Caller{}, status.Error(codes.Unauthenticated, "no credential: send a service account token in the authorization header, or a certificate of the mesh")
	}
	id, err := identity.FromCertificate(info.State.VerifiedChains[0][0])
	if err != nil {
		return Caller{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if domains := a.cfg.TrustDomains(); !slices.Contains(domains, id.TrustDomain) {
		return Caller{}, status.Errorf(codes.Unauthenticated, "certificate of %s: trust domain is none of %q", id, domains)
	}
	return Caller{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount}, nil
}
