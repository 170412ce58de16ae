package config

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/waypoint/extauthz"
	"github.com/ambit-mesh/ambit/waypoint/jwt"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// Terminate is the listener for tunnels, connect_terminate. What else it says the proxy does in any case.
type Terminate struct {
	// Port is the TCP port of the tunnels' connections: api.PortHBONE.
	Port uint16
	// MaxConcurrentStreams bounds the tunnels of one connection at a time; 0 for the server's own bound.
	MaxConcurrentStreams uint32
	// KeepaliveInterval is the time between pings, KeepaliveTimeout how long the answer may take; 0 for the server's own.
	KeepaliveInterval, KeepaliveTimeout time.Duration
}

// Chain says how connections to some destinations are served: exactly one of HTTP, TCP and Names is set.
type Chain struct {
	// Name, as "inbound-vip|80|http|shop.ns.svc.cluster.local".
	Name string
	HTTP *HTTP
	TCP  *TCP
	// Names: another chain, which has none, serves the connection: see For. This one has no more than a name beside it.
	Names *Names
	// AsksFirst are those outside who are asked about a request before its tokens are looked at, one after the other.
	AsksFirst []Ask
	// Authentication looks at the tokens of a request; nil if nothing is asked of them.
	Authentication *jwt.Authenticator
	// Asks are those who are asked after that, before Authorization.
	Asks []Ask
	// Authorization is what is asked before a request, or a connection that is not of HTTP, is served.
	Authorization policy.Steps
	// Logging says what is logged; nil: it is left to the proxy.
	Logging *Logging
}

// For returns the chain that serves a connection whose client asks for a server by name, "" for none: c itself where names do not
// count, nil if the connection is refused. Of a nil chain it is nil.
func (c *Chain) For(server string) *Chain {
	if c == nil || c.Names == nil {
		return c
	}
	return c.Names.chain(strings.ToLower(server))
}

// Names chooses the chain of a connection of TLS by the name of the server that its client asks for (SNI).
type Names struct {
	// Timeout is how long the client may take to say it; 0 is no limit. 15 s unless set.
	Timeout time.Duration

	exact map[string]*Chain // in lower case
	under map[string]*Chain // by what comes after "*.", for all that end in it with a dot before
	rest  *Chain            // of all others; nil: they are refused
}

// All returns the chains by what they serve, sorted: host names, "*." and a host name for all that end so, and "*" for all others. A
// chain is nil if the name is refused, since what was said of it cannot be honoured.
func (n *Names) All() iter.Seq2[string, *Chain] {
	all := maps.Clone(n.exact)
	for name, c := range n.under {
		all["*."+name] = c
	}
	if n.rest != nil {
		all["*"] = n.rest
	}
	return func(yield func(string, *Chain) bool) {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if !yield(name, all[name]) {
				return
			}
		}
	}
}

// maxName is how long a host name can be (RFC 1035 section 2.3.4), in bytes.
const maxName = 253

func (n *Names) chain(server string) *Chain {
	if c, ok := n.exact[server]; ok {
		return c
	}
	if len(server) > maxName {
		return n.rest // and is not looked at further
	}
	for rest := server; ; {
		_, after, more := strings.Cut(rest, ".")
		if !more {
			return n.rest
		}
		if c, ok := n.under[after]; ok {
			return c
		}
		rest = after
	}
}

// Ask is somebody outside who is asked about requests that match one of some policies.
type Ask struct {
	Provider *extauthz.Config
	Policies []*policy.RequestPolicy
}

// HTTP serves connections as HTTP/1.1 or HTTP/2, whichever the client speaks. A duration of 0 is no limit.
type HTTP struct {
	// Routes is the name of the route table: Snapshot.Routes, looked up for each request.
	Routes string
	// IdleTimeout is how long a connection may be without a request. 1 h unless set.
	IdleTimeout time.Duration
	// StreamIdleTimeout is how long a request may be silent in both directions, unless its route says otherwise. 5 min unless set.
	StreamIdleTimeout time.Duration
	// RequestHeadersTimeout bounds the time from the first byte of a request to the end of its header.
	RequestHeadersTimeout time.Duration
	// MaxStreamDuration bounds a request and its response, unless the route says otherwise.
	MaxStreamDuration time.Duration
	// MaxRequestHeader bounds a request's header in bytes, as decoded. 60 KiB unless set.
	MaxRequestHeader int
	// MaxHeaderFields bounds the number of fields of a request's header. 100 unless set.
	MaxHeaderFields int
	// MaxConcurrentStreams bounds requests of one HTTP/2 connection at a time; 0 for the codec's own bound.
	MaxConcurrentStreams uint32
	// Underscores says what becomes of request fields with an underscore in their name.
	Underscores Underscores
	// Paths says how the path of a request is normalised before it is matched.
	Paths route.Paths
	// Upgrades are the protocols that may be upgraded to, in lower case ("websocket"), unless the route says otherwise.
	Upgrades []string
	// ServerHeader says what becomes of the response's server field; ServerName is what we are called there.
	ServerHeader ServerHeader
	ServerName   string
	// Tracing says what requests leave behind in traces; nil: nothing.
	Tracing *Tracing
}

// ServerHeader says what becomes of the server field of a response.
type ServerHeader uint8

// ServerHeaders.
const (
	// ServerOverwrite replaces it by ServerName.
	ServerOverwrite ServerHeader = iota
	// ServerIfAbsent adds ServerName if there is none.
	ServerIfAbsent
	// ServerPassThrough leaves it alone.
	ServerPassThrough
)

// Underscores says what becomes of request fields with an underscore in their name, which some servers read as a hyphen.
type Underscores uint8

// What can become of them.
const (
	UnderscoresAllow Underscores = iota
	// UnderscoresReject answers the request 400.
	UnderscoresReject
	// UnderscoresDrop drops the fields.
	UnderscoresDrop
)

// TCP carries connections as they are.
type TCP struct {
	// Clusters are what Choose chooses from: at least one.
	Clusters []string
	// IdleTimeout is how long a connection may be silent in both directions; 0 for ever. 1 h unless set.
	IdleTimeout time.Duration
	// MaxDuration bounds a connection; 0 for no bound.
	MaxDuration time.Duration
	// ConnectAttempts is how many endpoints are tried; at least 1.
	ConnectAttempts int
	// BySource: the client's address is the key of a connection, if its cluster goes by keys.
	BySource bool

	split *route.Split
}

// Choose returns the cluster for a connection, by weight. Call it once a connection.
func (t *TCP) Choose() string { return t.Clusters[t.split.Choose()] }
