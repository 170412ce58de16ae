package config

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Cluster is a group of endpoints of one service port, and how they are reached.
type Cluster struct {
	// Name, as "outbound|80||shop.ns.svc.cluster.local".
	Name string
	// Settings are what the Cluster resource says. The pointer changes only if something in it does.
	Settings *Settings
	// Endpoints are nil until they have come: a request is then answered as for a cluster without any, 503. The pointer changes
	// only if something in it does.
	Endpoints *Endpoints
}

// Settings are those of a cluster.
type Settings struct {
	// Service is the service whose port the cluster is, for metrics; zero if the control plane does not say.
	Service Service
	// Protocol is what the endpoints are spoken to in.
	Protocol Protocol
	// ConnectTimeout bounds how long a connection to an endpoint may take, its tunnel included. 5 s unless set.
	ConnectTimeout time.Duration
	// IdleTimeout is how long a pooled connection may be without a request; 0 for ever. 1 h unless set.
	IdleTimeout time.Duration
	// MaxRequests is how many requests a connection carries at most before it is closed; 0 for any number.
	MaxRequests uint32
	// Keepalive is how connections outside tunnels are probed; nil: as the operating system does.
	Keepalive *Keepalive
	// MaxConcurrentStreams bounds the requests of one HTTP/2 connection at a time; 0 for what the endpoint allows.
	MaxConcurrentStreams uint32
	// MaxResponseHeader bounds a response's header in bytes, as decoded. 60 KiB unless set. MaxHeaderFields bounds the number of
	// its fields: 100 unless set.
	MaxResponseHeader int
	MaxHeaderFields   int
	// Balancer chooses among endpoints. Choices is how many LeastRequest compares: 2 unless set.
	Balancer Balancer
	Choices  uint32
	// TableSize is the least number of points of a RingHash, at most MaxRing, and the size of a Maglev table, a prime.
	TableSize uint64
	// LocalityWeights: localities of one priority share requests by their weights; else only endpoints' weights count.
	LocalityWeights bool
	// Prefer is what an endpoint should have in common with the proxy, the most important first: one that has all of it is used before
	// one that lacks the last, and so on.
	Prefer []Scope
	// Limits are the circuit breakers; nil if there are none.
	Limits *Limits
	// Outlier is how endpoints that fail are taken out for a time; nil if none are.
	Outlier *Outlier
	// Panic is the percentage of endpoints below which it no longer matters that others are taken out: 0 to 100.
	Panic float64
	// TLS is what endpoints outside the mesh are spoken to in, TunnelTLS those in it, inside their tunnels; nil for plain.
	TLS, TunnelTLS *TLS
	// Discovery is how endpoints are found.
	Discovery Discovery
	// Refused is why the control plane lets nothing be sent there, in words for people; "" if it does.
	Refused string
}

// Keepalive is when a connection on which nothing moves is probed. What is 0 is as the operating system has it.
type Keepalive struct {
	Idle, Interval time.Duration
	Count          int
}

// Discovery is a way to find a cluster's endpoints.
type Discovery uint8

// Discoveries.
const (
	// Given are endpoints with addresses.
	Given Discovery = iota
	// EachAddress: those that are host names stand for all of their addresses.
	EachAddress
	// OneAddress: those that are host names stand for one of their addresses at a time.
	OneAddress
	// Asked is what each client connected to.
	Asked
	// Bound is the workload that each client connected to, of those whose own addresses the waypoint serves (Snapshot.Direct).
	Bound
)

// Service names a Kubernetes service.
type Service struct{ Host, Name, Namespace string }

// Protocol is what endpoints are spoken to in.
type Protocol uint8

// Protocols.
const (
	// HTTP1 is HTTP/1.1.
	HTTP1 Protocol = iota
	// HTTP2 is HTTP/2 with prior knowledge.
	HTTP2
	// AsClient is what the client of the request speaks: HTTP/2 if it does, else HTTP/1.1.
	AsClient
)

// Balancer is a way of choosing endpoints.
type Balancer uint8

// Balancers.
const (
	LeastRequest Balancer = iota
	RoundRobin
	Random
	// RingHash and Maglev are consistent hashing: they go by the key of a request. Without one they are LeastRequest.
	RingHash
	Maglev
)

// MaxRing bounds the points of a RingHash, and MaxMaglev a Maglev table; each takes 12 or 4 bytes a point.
const (
	MaxRing   = 1 << 20
	MaxMaglev = 5_000_011 // Envoy's
)

// Scope is something that places may have in common. A place that is in the same zone need not be in the same region for that.
type Scope uint8

// Scopes.
const (
	Region Scope = iota
	Zone
	SubZone
	Node
)

// Limits are the most of each that a cluster may have at a time, over all endpoints, in this proxy. What is beyond is answered
// 503 at once.
type Limits struct {
	// Connections to endpoints; Pending requests that wait for one; Requests under way; Retries under way.
	Connections, Pending, Requests, Retries uint32
	// Budget, unless it is nil, takes the place of Retries.
	Budget *Budget
}

// Unlimited is a limit that is none.
const Unlimited = 1<<32 - 1

// Budget bounds retries by a share of the requests.
type Budget struct {
	// Percent of requests: 0 to 100.
	Percent float64
	// Interval is how long requests and retries count, from when they begin, retries as requests too. Zero: those under way count, and
	// requests that wait for a connection.
	Interval time.Duration
	// Min retries are always allowed: under way, or with Interval within MinInterval.
	Min         uint32
	MinInterval time.Duration
}

// Outlier is how endpoints that fail are passed over for a time. An Enforcing percentage is the chance that a finding has
// consequences; 0 turns the finding off.
type Outlier struct {
	// Consecutive5xx: so many 5xx responses (and failures to get any) in a row; ConsecutiveGateway: 502, 503, 504 alone;
	// ConsecutiveLocal: connections that failed or timed out, counted apart from responses only with SplitLocal.
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal uint32
	Enforce5xx, EnforceGateway, EnforceLocal             uint32
	SplitLocal                                           bool
	// BaseTime is how long an endpoint stays out at first, times how often it was out; MaxTime the most; Jitter is added at random.
	BaseTime, MaxTime, Jitter time.Duration
	// MaxPercent of the endpoints may be out at a time; AlwaysOne: but one in any case.
	MaxPercent uint32
	AlwaysOne  bool
}

// Endpoints are those of one cluster.
type Endpoints struct {
	// Priorities, in the order in which they are used: one takes requests if none before has an endpoint that can.
	Priorities []Priority
}

// Priority is the endpoints of one priority, by locality.
type Priority struct{ Localities []Locality }

// Locality is a place, and the endpoints there.
type Locality struct {
	Region, Zone, SubZone string
	// Weight is the locality's share of its priority, if the cluster heeds it; 0: it gets none.
	Weight    uint32
	Endpoints []*Endpoint
}

// Endpoint is one address of a workload. It is comparable by its fields; one that did not change keeps its pointer when others
// of its cluster change, also if it moves to another locality or priority.
type Endpoint struct {
	// Address is the application's: with HBONE, the destination of the tunnel. With a Host it is a port only.
	Address netip.AddrPort
	// Host is a DNS name that stands for addresses; "" for an endpoint that has one.
	Host string
	// HBONE: it is reached by a tunnel to Identity, and never in another way. Otherwise in plain.
	HBONE bool
	// Identity is whom the tunnel must end at; set with HBONE, and only then.
	Identity identity.Identity
	// Workload is what it belongs to, for metrics; zero if the control plane does not say.
	Workload Workload
	// Node is where it runs; "" if the control plane does not say.
	Node   string
	Health Health
	// Weight is its share among the endpoints of its locality: at least 1.
	Weight uint32
}

// Workload names what an endpoint belongs to.
type Workload struct{ Name, Namespace, Canonical, Revision, Cluster string }

// Health says whether an endpoint is to be used.
type Health uint8

// States of health.
const (
	// Healthy: also if the control plane does not know.
	Healthy Health = iota
	// Degraded: only if none is healthy, of any priority.
	Degraded
	// Draining: it takes no new requests; what it has goes on.
	Draining
	// Unhealthy: it takes no new requests.
	Unhealthy

	healths
)

// String is as people read it.
func (h Health) String() string {
	return [healths]string{Healthy: "healthy", Degraded: "degraded", Draining: "draining", Unhealthy: "unhealthy"}[h]
}
