package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// Limits of channels to the control plane. They are Istio's.
const (
	// maxMessage bounds one received message, decoded, in bytes.
	maxMessage = 200 << 20
	// connectTimeout bounds one attempt to connect, TLS included.
	connectTimeout = 5 * time.Second
	// pingInterval and pingTimeout find a dead connection under an open stream.
	pingInterval = 30 * time.Second
	pingTimeout  = 10 * time.Second
	// reconnectFirst and reconnectMax bound the pause between attempts to connect.
	reconnectFirst = 10 * time.Millisecond
	reconnectMax   = 15 * time.Second
)

// systemRoots, as RootCA, stands for the roots of the system.
const systemRoots = "SYSTEM"

// ChannelConfig describes a gRPC channel to the control plane, for discovery or for the CA.
type ChannelConfig struct {
	// Address is https://host:port or host:port, or http://host:port for plaintext, which must be a loopback address.
	Address string
	// RootCA verifies the server: the path of a PEM file, which is read anew for each handshake, a PEM text itself, or
	// "SYSTEM" for the system's roots.
	RootCA string
	// ServerName is verified instead of Address's host, if not empty.
	ServerName string
	// PostQuantumOnly leaves X25519MLKEM768 as the only key exchange.
	PostQuantumOnly bool
	// TokenFile holds a bearer token, read anew for each call. Empty: no token is sent.
	TokenFile string
	// Headers are sent with each call, e.g. clusterid.
	Headers map[string]string
}

// NewChannel makes a channel, which connects at its first call, and again as long as it is used: 10 ms after a failure,
// then twice as long up to 15 s. It takes messages of up to 200 MiB. The caller closes it.
func NewChannel(cfg ChannelConfig) (*grpc.ClientConn, error) {
	host, plaintext, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("control plane address %q: %w", cfg.Address, err)
	}
	var transport credentials.TransportCredentials = &rootCredentials{rootCA: cfg.RootCA, serverName: cfg.ServerName, groups: controlGroups(cfg.PostQuantumOnly)}
	if plaintext {
		transport = insecure.NewCredentials()
	} else if cfg.RootCA == "" {
		return nil, fmt.Errorf("control plane address %q: no root certificate to verify it with", cfg.Address)
	}
	dialer := net.Dialer{
		Timeout:         connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9},
	}
	// The passthrough resolver leaves names to the dialer, which looks them up for each attempt; gRPC's own would keep an
	// old answer for half a minute.
	return grpc.NewClient("passthrough:///"+host,
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(&callCredentials{tokenFile: cfg.TokenFile, headers: cfg.Headers, plaintext: plaintext}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectFirst, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnectMax},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
	)
}

// parseAddress splits an address into host:port and whether it is plaintext.
func parseAddress(address string) (hostPort string, plaintext bool, err error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", false, err
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return "", false, fmt.Errorf("scheme %q; want https or http", u.Scheme)
	}
	if u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return "", false, errors.New("want scheme, host and port")
	}
	plaintext = u.Scheme == "http"
	if plaintext && !isLoopback(u.Hostname()) {
		return "", false, errors.New("plaintext is for loopback addresses only; use https")
	}
	return u.Host, plaintext, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// rootCredentials is TLS that reads its roots for each handshake, so that a rotated root is taken up with the next
// connection.
type rootCredentials struct {
	rootCA     string
	serverName string
	groups     []tls.CurveID // nil: Go's, which begin with X25519MLKEM768
}

func controlGroups(postQuantumOnly bool) []tls.CurveID {
	if postQuantumOnly {
		return []tls.CurveID{tls.X25519MLKEM768}
	}
	return nil
}

func (c *rootCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	roots, err := loadRoots(c.rootCA)
	if err != nil {
		return nil, nil, err
	}
	cfg := &tls.Config{RootCAs: roots, ServerName: c.serverName, MinVersion: tls.VersionTLS12, CurvePreferences: c.groups}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

func (c *rootCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for clients")
}

func (c *rootCredentials) Info() credentials.ProtocolInfo {
	//lint:ignore SA1019 the name to verify is the credentials' own matter: the channel's authority follows it
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: c.serverName}
}

func (c *rootCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName implements credentials.TransportCredentials.
func (c *rootCredentials) OverrideServerName(name string) error {
	c.serverName = name
	return nil
}

// loadRoots returns the pool that ChannelConfig.RootCA names; nil stands for the system's.
func loadRoots(rootCA string) (*x509.CertPool, error) {
	if rootCA == systemRoots {
		return nil, nil
	}
	text := []byte(rootCA)
	if !strings.Contains(rootCA, "-----BEGIN") {
		var err error
		if text, err = os.ReadFile(rootCA); err != nil {
			return nil, fmt.Errorf("root certificate: %w", err)
		}
	}
	certs, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// callCredentials adds the token and the headers to each call.
type callCredentials struct {
	tokenFile string
	headers   map[string]string
	plaintext bool
}

func (c *callCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := make(map[string]string, len(c.headers)+1)
	for k, v := range c.headers {
		md[strings.ToLower(k)] = v
	}
	if c.tokenFile != "" {
		token, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		md["authorization"] = "Bearer " + strings.TrimSpace(string(token))
	}
	return md, nil
}

// RequireTransportSecurity keeps a token from plaintext; NewChannel allows that to loopback only.
func (c *callCredentials) RequireTransportSecurity() bool { return !c.plaintext }
