package codec

import (
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// Defaults of the configurations. Sizes and numbers of header fields, and the idle time, are Envoy's.
const (
	DefaultMaxHeader     = 60 << 10 // bytes of a start line and header, or of a trailer
	DefaultMaxFields     = 100      // fields of a header or trailer
	DefaultHeaderTimeout = 30 * time.Second
	DefaultIdleTimeout   = time.Hour
	DefaultDrainIdle     = 5 * time.Second
	DefaultExpectTimeout = time.Second
)

// ServerConfig holds the settings of connections from clients. The zero value is ready to use. It must not be changed once a
// Server has it; many may share one.
type ServerConfig struct {
	// MaxHeader bounds a request's start line and header together, and its trailer, in bytes: HTTP/1 as they are on the wire,
	// HTTP/2 as RFC 9113 section 6.5.2 counts. At most 70 KiB on HTTP/1. MaxFields bounds their number. A request that has
	// more is answered with status 431. Zero means the default.
	MaxHeader int
	MaxFields int
	// HeaderTimeout is how long a request's header may take from its first byte to its last (HTTP/1). Then status 408 ends the
	// connection. Zero means the default.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection without requests stays open. Zero means the default, less than zero: for ever.
	IdleTimeout time.Duration
	// DrainIdle is how long after Shutdown an HTTP/1 connection without requests waits for one, to answer it with "connection:
	// close", so that none is lost that is on its way. Zero means the default.
	DrainIdle time.Duration
	// OnRefuse, if set, is told of each request that is answered without the handler, with that status, and why. It may be called
	// concurrently.
	OnRefuse func(status int, reason string)
	// HTTP2Only says that clients are known to speak HTTP/2, by ALPN for example: whatever else they say ends the connection.
	HTTP2Only bool
	// H2 is for HTTP/2. MaxHeaderList in it is MaxHeader. A MaxFrameSize of zero means 16 KiB, as other proxies have it.
	H2 h2.Config
}

func (c *ServerConfig) withDefaults() *ServerConfig {
	var d ServerConfig
	if c != nil {
		d = *c
	}
	def(&d.MaxHeader, DefaultMaxHeader)
	d.MaxHeader = min(d.MaxHeader, maxHead)
	def(&d.MaxFields, DefaultMaxFields)
	def(&d.HeaderTimeout, DefaultHeaderTimeout)
	def(&d.IdleTimeout, DefaultIdleTimeout)
	def(&d.DrainIdle, DefaultDrainIdle)
	d.H2.MaxHeaderList = uint32(d.MaxHeader)
	if d.H2.MaxFrameSize == 0 {
		d.H2.MaxFrameSize = 16 << 10
	}
	return &d
}

// ClientConfig holds the settings of connections to backends. The zero value is ready to use. It must not be changed once a
// Client has it; many may share one.
type ClientConfig struct {
	// MaxHeader and MaxFields bound what a response may have, as in ServerConfig. A response that has more is an error.
	MaxHeader int
	MaxFields int
	// ExpectTimeout is how long a request that expects status 100 waits for it before it sends its body. Zero means the default.
	ExpectTimeout time.Duration
	// Secure says that the connection is TLS: HTTP/2 tells the backend that its scheme is https, whatever the client believes.
	Secure bool
	// H2 is for HTTP/2. MaxHeaderList in it is MaxHeader, and OnChange is not used.
	H2 h2.Config
	// OnChange, if set, is called without locks whenever what Available returns may have changed, and when the connection has
	// ended. It must not block.
	OnChange func()
}

func (c *ClientConfig) withDefaults() *ClientConfig {
	var d ClientConfig
	if c != nil {
		d = *c
	}
	def(&d.MaxHeader, DefaultMaxHeader)
	d.MaxHeader = min(d.MaxHeader, maxHead)
	def(&d.MaxFields, DefaultMaxFields)
	def(&d.ExpectTimeout, DefaultExpectTimeout)
	d.H2.MaxHeaderList = uint32(d.MaxHeader)
	if d.OnChange == nil {
		d.OnChange = func() {}
	}
	return &d
}

// maxHead is what fits into the largest buffer that a head is read into, in bytes.
const maxHead = 70 << 10

func def[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}
