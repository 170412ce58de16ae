package lab

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	ca "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// Type URLs of the resources that the control plane serves.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

const (
	dialTimeout = 5 * time.Second
	token       = "lab-token"
	// tokenOf, with an identity behind it, is the token of a proxy that asks for its own certificate.
	tokenOf = token + "-of-"
)

// order is in which order types are told of: what others refer to first.
var order = []string{
	extension.Type, AuthorizationType, AddressType, xds.TypeCluster, xds.TypeEndpoints, xds.TypeListener, xds.TypeRoutes,
}

// Control is a control plane that serves the resources it was given to every proxy that shows the lab's token, and signs
// whatever identity is asked for. Its methods may be called at once.
type Control struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	ca.UnimplementedIstioCertificateServiceServer

	// CA signs. RootFile holds its trust bundle, TokenFile the token that proxies must show.
	CA                  *Authority
	RootFile, TokenFile string
	// Addr is the address of xDS and CA, host:port.
	Addr string

	logger *slog.Logger
	server *grpc.Server
	served chan struct{}

	mu        sync.Mutex                                // guards the fields below
	resources map[string]map[string]*discovery.Resource // by type URL and name
	changed   chan struct{}                             // closed and replaced when resources change
	nacks     []string
	issued    map[string]int // certificates by identity
}

func newControl(space *Namespace, at netip.Addr, dir string, logger *slog.Logger) (*Control, error) {
	c := &Control{
		RootFile: filepath.Join(dir, "root.pem"), TokenFile: filepath.Join(dir, "token"),
		Addr:   netip.AddrPortFrom(at, 15012).String(),
		logger: logger, served: make(chan struct{}),
		resources: map[string]map[string]*discovery.Resource{}, changed: make(chan struct{}), issued: map[string]int{},
	}
	for _, typeURL := range order {
		c.resources[typeURL] = map[string]*discovery.Resource{}
	}
	var err error
	if c.CA, err = newAuthority(c.RootFile); err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	if err := os.WriteFile(c.TokenFile, []byte(token), 0o600); err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	ln, err := space.Listen(c.Addr)
	if err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	c.server = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.serving})),
		// Proxies send a PING every 30 s, on an idle channel too.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(c.server, c)
	ca.RegisterIstioCertificateServiceServer(c.server, c)
	go func() {
		defer close(c.served)
		if err := c.server.Serve(ln); err != nil {
			logger.Error("control plane ended", "error", err)
		}
	}()
	return c, nil
}

// serving is the control plane's own certificate, by whoever signs now.
func (c *Control) serving(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.CA.sign(&x509.Certificate{
		IPAddresses: []net.IP{Gateway4.AsSlice(), Gateway6.AsSlice()},
		DNSNames:    []string{"istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local"},
	}, nil)
}

func (c *Control) close() error {
	c.server.Stop()
	<-c.served
	return nil
}

// SetAddresses adds or replaces workloads and services, and tells every proxy.
func (c *Control) SetAddresses(addrs ...*workload.Address) {
	c.set(AddressType, func(put func(string, proto.Message)) {
		for _, a := range addrs {
			put(AddressName(a), a)
		}
	})
}

// SetAuthorizations adds or replaces policies, and tells every proxy.
func (c *Control) SetAuthorizations(policies ...*security.Authorization) {
	c.set(AuthorizationType, func(put func(string, proto.Message)) {
		for _, p := range policies {
			put(p.GetNamespace()+"/"+p.GetName(), p)
		}
	})
}

// SetSettings serves settings of the mesh, as ambit's control plane does. Until it is called, requests for them are not
// answered, as a peer's control plane does.
func (c *Control) SetSettings(s *extension.Settings) {
	c.set(extension.Type, func(put func(string, proto.Message)) { put(extension.Mesh, s) })
}

// Set adds or replaces one resource of any type that data planes know, and tells every proxy that asked for the type.
func (c *Control) Set(typeURL, name string, m proto.Message) {
	c.set(typeURL, func(put func(string, proto.Message)) { put(name, m) })
}

// AddressName is the name under which the resource is served.
func AddressName(a *workload.Address) string {
	if s := a.GetService(); s != nil {
		return s.GetNamespace() + "/" + s.GetHostname()
	}
	return a.GetWorkload().GetUid()
}

func (c *Control) set(typeURL string, fill func(func(string, proto.Message))) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fill(func(name string, m proto.Message) {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			panic(err) // a message built by the test itself
		}
		sum := sha256.Sum256(body)
		c.resources[typeURL][name] = &discovery.Resource{
			Name: name, Version: hex.EncodeToString(sum[:8]), Resource: &anypb.Any{TypeUrl: typeURL, Value: body},
		}
	})
	c.announce()
}

// Remove withdraws resources by name.
func (c *Control) Remove(typeURL string, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		delete(c.resources[typeURL], name)
	}
	c.announce()
}

func (c *Control) announce() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Nacks returns what proxies refused so far.
func (c *Control) Nacks() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.nacks...)
}

// Issued returns how many certificates were signed for an identity.
func (c *Control) Issued(identity string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.issued[identity]
}

// DeltaAggregatedResources serves one proxy: everything of each type that it asks for, then what changes.
func (c *Control) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if _, err := authenticate(stream.Context()); err != nil {
		return err
	}
	requests, failed := make(chan *discovery.DeltaDiscoveryRequest), make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	known := map[string]map[string]string{} // by type: name to version
	nonce := 0
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		for _, typeURL := range order {
			if known[typeURL] == nil {
				continue
			}
			nonce++
			if err := c.push(stream, typeURL, known[typeURL], nonce); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case err := <-failed:
			return err
		case r := <-requests:
			if e := r.GetErrorDetail(); e != nil {
				c.mu.Lock()
				c.nacks = append(c.nacks, e.GetMessage())
				c.mu.Unlock()
			}
			if t := r.GetTypeUrl(); known[t] == nil && c.resources[t] != nil {
				known[t] = map[string]string{}
				for name, version := range r.GetInitialResourceVersions() {
					known[t][name] = version
				}
				nonce++
				if t != extension.Type && (len(known[t]) > 0 || c.empty(t)) {
					// The first answer is due even if there is nothing to say.
					if err := stream.Send(&discovery.DeltaDiscoveryResponse{TypeUrl: t, Nonce: fmt.Sprint(nonce)}); err != nil {
						return err
					}
				}
			}
		}
	}
}

func (c *Control) empty(typeURL string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.resources[typeURL]) == 0
}

func (c *Control) push(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, typeURL string, known map[string]string, nonce int) error {
	out := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: fmt.Sprint(nonce)}
	c.mu.Lock()
	for name, r := range c.resources[typeURL] {
		if known[name] != r.GetVersion() {
			known[name] = r.GetVersion()
			out.Resources = append(out.Resources, r)
		}
	}
	for name := range known {
		if c.resources[typeURL][name] == nil {
			delete(known, name)
			out.RemovedResources = append(out.RemovedResources, name)
		}
	}
	c.mu.Unlock()
	if len(out.GetResources()) == 0 && len(out.GetRemovedResources()) == 0 {
		return nil
	}
	return stream.Send(out)
}

// CreateCertificate signs the identity that the proxy impersonates, or else its own.
func (c *Control) CreateCertificate(ctx context.Context, r *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	identity, err := authenticate(ctx)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(r.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "the request has no PEM block")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "parse request: %v", err)
	}
	if asked := r.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(); asked != "" {
		identity = asked
	}
	uri, err := url.Parse(identity)
	if err != nil || identity == "" {
		return nil, status.Errorf(codes.InvalidArgument, "no identity in metadata: %v", err)
	}
	cert, err := c.CA.sign(&x509.Certificate{URIs: []*url.URL{uri}}, csr.PublicKey)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	c.mu.Lock()
	c.issued[identity]++
	c.mu.Unlock()
	return &ca.IstioCertificateResponse{CertChain: []string{encode(cert.Certificate[0]), c.CA.bundle()}}, nil
}

// SignIdentity makes a key and a certificate of the lab's mesh for a test's own client.
func (c *Control) SignIdentity(identity string) (*tls.Certificate, *x509.CertPool, error) {
	uri, err := url.Parse(identity)
	if err != nil {
		return nil, nil, fmt.Errorf("sign %q: %w", identity, err)
	}
	cert, err := c.CA.sign(&x509.Certificate{URIs: []*url.URL{uri}}, nil)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(c.CA.bundle()))
	return cert, pool, err
}

// authenticate returns the identity of a proxy that has one of its own.
func authenticate(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if v == "Bearer "+token {
			return "", nil
		}
		if identity, ok := strings.CutPrefix(v, "Bearer "+tokenOf); ok {
			return identity, nil
		}
	}
	return "", status.Error(codes.Unauthenticated, "the lab's token is missing")
}
