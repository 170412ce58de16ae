package identity_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

// caServer is the CA service on loopback; it signs for whomever the request's metadata names.
type caServer struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	ca *identitytest.CA

	mu       sync.Mutex
	headers  []metadata.MD
	requests []*securityv1alpha1.IstioCertificateRequest
}

func (s *caServer) CreateCertificate(ctx context.Context, r *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	s.headers, s.requests = append(s.headers, md), append(s.requests, r)
	s.mu.Unlock()
	id, err := identity.Parse(r.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	chain, err := s.ca.Issue(ctx, id, []byte(r.GetCsr()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, nil
}

// serve runs the service at addr until the returned function is called.
func (s *caServer) serve(t *testing.T, addr string, tlsCA *identitytest.CA, opts ...grpc.ServerOption) (string, func()) {
	t.Helper()
	if tlsCA != nil {
		cert, key, err := tlsCA.Server("istiod.test", "localhost")
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		opts = append(opts, grpc.Creds(credentials.NewServerTLSFromCert(&pair)))
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(opts...)
	securityv1alpha1.RegisterIstioCertificateServiceServer(srv, s)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Serve(ln); err != nil {
			t.Error(err)
		}
	}()
	stop := sync.OnceFunc(func() {
		srv.Stop()
		<-ended
	})
	t.Cleanup(stop)
	return ln.Addr().String(), stop
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestIssueOverChannel: what a request says, and that token and root are read anew.
func TestIssueOverChannel(t *testing.T) {
	dir := t.TempDir()
	token, root := filepath.Join(dir, "token"), filepath.Join(dir, "root.pem")
	oldCA, newerCA := newCA(t), newCA(t)
	srv := &caServer{ca: newCA(t)}
	addr, stop := srv.serve(t, "127.0.0.1:0", oldCA)

	write(t, token, "one\n")
	write(t, root, oldCA.RootPEM())
	conn, err := identity.NewChannel(identity.ChannelConfig{
		Address: "https://" + addr, RootCA: root, ServerName: "istiod.test", TokenFile: token,
		Headers: map[string]string{"ClusterID": "Kubernetes"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	issuer := &identity.GRPCIssuer{Conn: conn, TTL: time.Hour, Impersonate: true}
	svid, err := identity.Request(ctx, issuer, alice)
	if err != nil {
		t.Fatal(err)
	}
	if svid.Identity != alice || string(svid.RootsPEM) != srv.ca.RootPEM() {
		t.Errorf("SVID %v, roots %s", svid.Identity, svid.RootsPEM)
	}
	if got := srv.requests[0]; got.GetValidityDuration() != 3600 || len(got.GetMetadata().GetFields()) != 1 {
		t.Errorf("request %v", got)
	}
	if got := srv.headers[0]; strings.Join(got["authorization"], ",") != "Bearer one" || strings.Join(got["clusterid"], ",") != "Kubernetes" {
		t.Errorf("headers %v", got)
	}

	write(t, token, "two")
	if _, err := identity.Request(ctx, issuer, bob); err != nil {
		t.Fatal(err)
	}
	if got := srv.headers[1]["authorization"]; strings.Join(got, ",") != "Bearer two" {
		t.Errorf("authorization %v after the token changed", got)
	}

	// The server comes back under another root: it is refused until the file has that root.
	stop()
	srv.serve(t, addr, newerCA)
	for {
		_, err = identity.Request(ctx, issuer, alice)
		if err == nil {
			t.Fatal("a server under another root was accepted")
		}
		if strings.Contains(err.Error(), "unknown authority") {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("no refusal of the other root: %v", err)
		}
	}
	write(t, root, newerCA.RootPEM())
	for {
		if _, err = identity.Request(ctx, issuer, alice); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the new root was not taken up: %v", err)
		}
	}

	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	n := len(srv.requests)
	if _, err := identity.Request(ctx, issuer, alice); err == nil || len(srv.requests) != n {
		t.Errorf("without a token: %v, %d requests reached the CA", err, len(srv.requests)-n)
	}
}

// TestCARefusal: the CA's status arrives through the manager's error.
func TestCARefusal(t *testing.T) {
	srv := &caServer{ca: newCA(t)}
	addr, _ := srv.serve(t, "127.0.0.1:0", nil)
	conn, err := identity.NewChannel(identity.ChannelConfig{Address: "http://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := identity.NewManager(identity.ManagerConfig{Issuer: &identity.GRPCIssuer{Conn: conn}, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	var failure error
	for deadline := time.Now().Add(30 * time.Second); status.Code(failure) != codes.InvalidArgument; {
		if time.Now().After(deadline) {
			t.Fatalf("error %v, want the CA's InvalidArgument", failure)
		}
		wait, cancelWait := context.WithTimeout(ctx, 50*time.Millisecond)
		_, failure = m.SVID(wait, alice)
		cancelWait()
	}
	cancel()
	<-ended
	if got := srv.requests[0]; got.GetMetadata() != nil || got.GetValidityDuration() != 86400 {
		t.Errorf("request %v, want no impersonation and a day", got)
	}
}

func TestServerNameIsVerified(t *testing.T) {
	ca := newCA(t)
	srv := &caServer{ca: newCA(t)}
	addr, _ := srv.serve(t, "127.0.0.1:0", ca)
	conn, err := identity.NewChannel(identity.ChannelConfig{Address: addr, RootCA: ca.RootPEM(), ServerName: "other.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	issuer := &identity.GRPCIssuer{Conn: conn, Impersonate: true}
	if _, err := identity.Request(t.Context(), issuer, alice); err == nil || !strings.Contains(err.Error(), "other.test") {
		t.Errorf("error %v, want one that names other.test", err)
	}
}

func TestChannelAddress(t *testing.T) {
	root := newCA(t).RootPEM()
	for address, ok := range map[string]bool{
		"https://istiod.istio-system.svc:15012": true,
		"istiod.istio-system.svc:15012":         true,
		"https://[fd00::1]:15012":               true,
		"http://127.0.0.1:15010":                true,
		"http://[::1]:15010":                    true,
		"http://localhost:15010":                true,
		"http://istiod.istio-system.svc:15010":  false,
		"http://10.0.0.1:15010":                 false,
		"https://istiod":                        false,
		"https://istiod:15012/path":             false,
		"https://user@istiod:15012":             false,
		"unix:///var/run/x":                     false,
		"":                                      false,
	} {
		conn, err := identity.NewChannel(identity.ChannelConfig{Address: address, RootCA: root})
		if (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", address, err, ok)
		}
		if err == nil {
			conn.Close()
		}
	}
	if _, err := identity.NewChannel(identity.ChannelConfig{Address: "https://istiod:15012"}); err == nil {
		t.Error("TLS without a root was accepted")
	}
}

func TestMain(m *testing.M) { leaktest.Main(m) }
