package telemetry

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Reporter is the side that counts.
type Reporter uint8

const (
	ReporterSource Reporter = iota
	ReporterDestination
)

// Flag is the response_flags label: how a connection ended, or failed.
type Flag uint8

const (
	// FlagNone is "-".
	FlagNone Flag = iota
	// FlagDenied: refused by policy.
	FlagDenied
	// FlagConnect: the upstream could not be connected to.
	FlagConnect
	// FlagTLS: the handshake failed.
	FlagTLS
	// FlagH2: the HTTP/2 handshake failed.
	FlagH2
	// FlagNetworkPolicy: connecting to port 15008 timed out.
	FlagNetworkPolicy
	// FlagIdentity: no certificate for the source.
	FlagIdentity
	// FlagRevoked: the peer's certificate was revoked.
	FlagRevoked
)

// Flow says between whom connections are counted together.
type Flow struct {
	Reporter Reporter
	// Source and Destination may be nil: unknown.
	Source, Destination *directory.Workload
	// Service that the client asked for; may be nil.
	Service *directory.Service
	// SourceIdentity and DestinationIdentity are the principals, verified or expected; zero: unknown.
	SourceIdentity, DestinationIdentity identity.Identity
	// MutualTLS: the connection is (to be) tunnelled.
	MutualTLS bool
}

// Metrics counts connections. It is safe for concurrent use.
type Metrics struct{}

// NewMetrics makes Metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics { panic("unwritten") }

// Series is the counters of one Flow.
type Series struct{}

// Series returns the counters of a flow; it costs one map look-up if the flow was seen before.
func (m *Metrics) Series(f Flow) *Series { panic("unwritten") }

// Opened counts a connection that was opened.
func (s *Series) Opened() { panic("unwritten") }

// Closed counts the end of a connection that was Opened, as flag.
func (s *Series) Closed(flag Flag) { panic("unwritten") }

// Failed counts a connection that could not be opened, or was refused.
func (s *Series) Failed(flag Flag) { panic("unwritten") }

// AddBytes counts payload: sent is from the client to the server, received the other way, whatever the reporter.
func (s *Series) AddBytes(sent, received uint64) { panic("unwritten") }

// Forget lets the series go that only this workload took part in, once they are idle and were scraped.
func (m *Metrics) Forget(uid string) { panic("unwritten") }

// NewRegistry makes a registry with process and Go runtime metrics, and istio_build{component, tag}.
func NewRegistry(component, version string) *prometheus.Registry { panic("unwritten") }

// Handler serves a registry as Prometheus text or OpenMetrics, by the Accept header.
func Handler(reg *prometheus.Registry) http.Handler { panic("unwritten") }
