package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// Target says which connection a tunnel may share. Two opens share one only if every field is equal.
type Target struct {
	// Addr is what to connect to: the peer's address and HBONE port.
	Addr netip.AddrPort
	// UID is the workload behind Addr, for Evict: addresses of pods are used again. It may be empty.
	UID string
	// Source is the workload in whose name the tunnel is opened.
	Source identity.Identity
	// SourceAddr is the source workload's address. Dial may bind to it; here it only keeps connections apart.
	SourceAddr netip.Addr
	// Expect are the identities of which the peer must prove one. Order matters for sharing, so give them sorted.
	Expect []identity.Identity
}

// Request is what the client says when it opens a stream. Empty fields are not sent; Authority is required.
type Request struct {
	// Authority is host:port or ip:port (IPv6 in brackets) that the peer is to connect to.
	Authority string
	// Baggage, Forwarded, Traceparent and ForwardedNetwork are the headers baggage, forwarded, traceparent and
	// x-forwarded-network.
	Baggage          string
	Forwarded        string
	Traceparent      string
	ForwardedNetwork string
	// Early, if set, is what the client says before the answer comes.
	Early *Early
}

// Timeouts bound the steps of opening a tunnel. Zero means the default, less than zero: no limit.
type Timeouts struct {
	Connect   time.Duration // Dial; 10 s
	Handshake time.Duration // the TLS handshake, and, before Connect, getting the TLS config for it and a place; 10 s
	Settings  time.Duration // the peer's first SETTINGS; 10 s
	Response  time.Duration // from CONNECT to its response, in which the peer connects to its application; 20 s
}

// PoolConfig holds a pool's settings. Dial and TLS are required.
type PoolConfig struct {
	// Dial makes the connection beneath the tunnel. Its context ends after Timeouts.Connect or with the pool, not with the
	// caller of Open: others may wait for the same connection.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// TLS gives the client configuration for a handshake with the target: certificate, verification, ALPN. It is not changed.
	TLS func(ctx context.Context, t Target) (*tls.Config, error)
	// MaxStreams is how many streams share a connection; the peer's own limit holds where it is lower. Zero means 100.
	MaxStreams int
	// IdleTimeout is how long a connection without streams is kept. Zero means 5 minutes.
	IdleTimeout time.Duration
	// SpareTimeout is that of connections that new streams do not need, since an older one to the same target has some to give:
	// those of a burst that is over. Each of them costs memory on both sides. Zero means 3 seconds.
	SpareTimeout time.Duration
	Timeouts     Timeouts
	// H2 are the settings of the HTTP/2 connections. OnChange must be nil.
	H2 h2.Config
	// MaxHandshakes bounds the dials under way, which end with the TLS handshake. More of them wait, as long as Handshake says.
	// Zero means 256.
	MaxHandshakes int
	// MaxConnections bounds the connections, dials under way included. Once it is reached, one without streams makes place for
	// a new one, or else Open returns a *DialError with ErrTooManyConnections. Zero means no bound.
	MaxConnections int
	// Violated, if set, is told why a server lost its connection. It must not block.
	Violated func(h2.Cause)
	// Party, if set, does the work, and slows connections down that make much of it.
	Party *share.Party
	// Counts, if set, counts what the pool does. Pools may share it.
	Counts *PoolCounts
	// Revoked, if set, says why a peer's certificates (leaf first) are not good any more for a target; nil if they are. It is
	// asked after each handshake and by Recheck.
	Revoked func(t *Target, peer []*x509.Certificate) error
	// Logger gets one line for each connection that ends in an error while no stream could tell. If nil, nothing is logged.
	Logger *slog.Logger
}

// Stages of opening a tunnel, for DialError.
const (
	StageConnect  = "connect"
	StageTLS      = "tls"
	StageSettings = "settings"
	StageResponse = "response"
)

// DialError says at which stage a tunnel could not be opened.
type DialError struct {
	Stage  string // one of the Stage constants
	Target Target
	Err    error
}

func (e *DialError) Error() string {
	return fmt.Sprintf("open tunnel to %s: %s: %v", e.Target.Addr, e.Stage, e.Err)
}

func (e *DialError) Unwrap() error { return e.Err }

// StatusError says that the peer refused the tunnel with a response other than 200.
type StatusError struct {
	Status int    // HTTP status: 400 bad request, 401 denied by policy, 503 the application could not be reached
	Reason string // what the peer says about it; empty if it says nothing
}

func (e *StatusError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("tunnel refused by the peer with status %d", e.Status)
	}
	return fmt.Sprintf("tunnel refused by the peer with status %d: %s", e.Status, e.Reason)
}
