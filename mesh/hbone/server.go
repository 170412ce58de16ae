package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("hbone: server closed")

// ServerConfig holds a server's settings. TLS and Handler are required.
type ServerConfig struct {
	// TLS gives the configuration for one handshake: certificate, client verification, ALPN. It is not changed. An error ends
	// the handshake.
	TLS func(*tls.ClientHelloInfo) (*tls.Config, error)
	// HandshakeTimeout bounds a TLS handshake. Zero means 10 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds the handshakes under way. Once it is reached, the oldest that has lasted over a second makes place,
	// or else new connections wait. Zero means 256.
	MaxHandshakes int
	// MaxStreams is how many streams a client may have open on one connection. Zero means 200.
	MaxStreams int
	// H2 are the settings of the HTTP/2 connections. MaxStreams above holds over its own; OnChange must be nil.
	H2 h2.Config
	// Handler serves one CONNECT request, in a goroutine of its own. Exactly one of Accept and Reject must be called before
	// it returns; the stream is closed, if it was not, when it returns. The context ends with the stream: when the client
	// resets it or the connection ends.
	Handler func(ctx context.Context, in *Incoming)
	// Logger gets one line for each connection that fails before its first stream. If nil, nothing is logged.
	Logger *slog.Logger
}

// Server takes tunnels. All methods may be called concurrently.
type Server struct {
	cfg ServerConfig
}

// NewServer returns a server that has nothing to serve yet.
func NewServer(cfg ServerConfig) *Server { return &Server{cfg: cfg} }

// Serve accepts connections and serves each in its own goroutine. It owns ln and closes it. It returns the context's error
// or ErrServerClosed once it accepts no more; connections go on until Shutdown or Close.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { return errors.ErrUnsupported }

// ServeConn serves one connection, which it owns and closes, and returns when it has ended and its handlers have returned.
// The end of the context cuts it.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error { return errors.ErrUnsupported }

// Shutdown closes the listeners, tells every client to open no more streams on its connection (GOAWAY in two steps: streams
// that were on their way are served), and waits until all streams have ended. It returns the context's error if the context
// ends first; then connections still go on, until Close.
func (s *Server) Shutdown(ctx context.Context) error { return nil }

// Close ends all listeners and connections at once and waits for the handlers.
func (s *Server) Close() error { return nil }

// ServerStats counts what a server holds.
type ServerStats struct {
	Handshakes  int // under way
	Connections int // past their handshake
	Streams     int // open
}

// Stats returns a snapshot.
func (s *Server) Stats() ServerStats { return ServerStats{} }

// Header is a header field of a response.
type Header struct{ Name, Value string }

// Incoming is a request to open a tunnel.
type Incoming struct {
	peer      identity.Identity
	authority string
}

// Peer returns the identity that the client proved in the TLS handshake.
func (in *Incoming) Peer() identity.Identity { return in.peer }

// PeerCertificate returns the client's leaf certificate. It must not be changed.
func (in *Incoming) PeerCertificate() *x509.Certificate { return nil }

// Authority returns what the client wants to reach: host:port or ip:port, syntactically valid (see ParseAuthority).
func (in *Incoming) Authority() string { return in.authority }

// Header returns the value of a request header (name in lower case), or "". Several fields of one name are joined by commas.
func (in *Incoming) Header(name string) string { return "" }

// LocalAddr and RemoteAddr are the addresses of the connection beneath; zero where it has no IP addresses.
func (in *Incoming) LocalAddr() netip.AddrPort { return netip.AddrPort{} }

// RemoteAddr: see LocalAddr.
func (in *Incoming) RemoteAddr() netip.AddrPort { return netip.AddrPort{} }

// Accept answers 200, with extra headers, and returns the stream.
func (in *Incoming) Accept(extra ...Header) (*Stream, error) { return nil, errors.ErrUnsupported }

// Reject answers another status (400 to 599) and ends the stream. The reason goes to the client in the header
// x-ambit-reason, so it must not hold secrets.
func (in *Incoming) Reject(status int, reason string) error { return errors.ErrUnsupported }
