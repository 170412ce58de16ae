package h2

import (
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// ErrCode is an HTTP/2 error code (RFC 9113 section 7).
type ErrCode = http2.ErrCode

// Error codes of RFC 9113 section 7.
const (
	NoError           = http2.ErrCodeNo
	ProtocolError     = http2.ErrCodeProtocol
	InternalError     = http2.ErrCodeInternal
	FlowControlError  = http2.ErrCodeFlowControl
	SettingsTimeout   = http2.ErrCodeSettingsTimeout
	StreamClosed      = http2.ErrCodeStreamClosed
	FrameSizeError    = http2.ErrCodeFrameSize
	RefusedStream     = http2.ErrCodeRefusedStream
	Cancel            = http2.ErrCodeCancel
	CompressionError  = http2.ErrCodeCompression
	ConnectError      = http2.ErrCodeConnect
	EnhanceYourCalm   = http2.ErrCodeEnhanceYourCalm
	HTTP11Required    = http2.ErrCodeHTTP11Required
	InadequateSecrecy = http2.ErrCodeInadequateSecurity
)

// Field is one header field. Names are in lower case. Sensitive fields are sent as "never indexed", which is also right
// for values that differ on every request: they would only push others out of the compression table.
type Field = hpack.HeaderField

// Defaults of Config. The windows, the frame size and the keepalive times are those of Istio's node proxy, so that two
// different peers on one wire behave alike.
const (
	DefaultStreamWindow       = 4 << 20  // bytes a peer may send on one stream before we read
	DefaultConnWindow         = 16 << 20 // bytes a peer may send on one connection before we read
	DefaultMaxBuffered        = 32 << 20 // bytes of unread payload a connection holds at most
	DefaultMaxFrameSize       = 1 << 20  // bytes of payload in one frame that we accept
	DefaultMaxStreams         = 200      // streams that a peer may have open
	DefaultMaxHeadersAsClient = 16 << 10 // bytes of a header list that a client accepts (RFC 9113 section 6.5.2)
	DefaultMaxHeadersAsServer = 64 << 10 // bytes of a header list that a server accepts
	DefaultSettingsTimeout    = 10 * time.Second
	DefaultKeepaliveInterval  = 10 * time.Second
	DefaultKeepaliveTimeout   = 20 * time.Second
	DefaultWriteTimeout       = time.Minute
)

// Config holds a connection's settings. The zero value is ready to use. It must not be changed once a connection has it.
type Config struct {
	// StreamWindow and ConnWindow are the flow-control windows that the peer gets, in bytes. Zero means the default.
	StreamWindow int32
	ConnWindow   int32
	// MaxBuffered bounds the bytes that the connection holds for streams that do not read. As long as it is not reached,
	// streams that do not read leave the connection's window to the others. Zero means the default; less than ConnWindow
	// means ConnWindow.
	MaxBuffered int
	// Budget, if set, is shared with other connections of the same party. When half of it is used connections get smaller
	// windows; when all of it is, those that hold some of it are read slowly (2 MiB a second each), so that their PINGs are
	// answered; and when twice as much is used, not at all until there is room again.
	Budget *buffer.Budget
	// MaxFrameSize is the largest payload of a frame that the peer may send, 16 KiB to 16 MiB - 1. Zero means the default.
	MaxFrameSize uint32
	// MaxHeaderList is the largest header list that the peer may send, counted as in RFC 9113 section 6.5.2. A server
	// answers a larger one with status 431, a client resets the stream. Zero means the default of the role.
	MaxHeaderList uint32
	// MaxStreams is how many streams the peer may have open (server). Zero means the default.
	MaxStreams uint32
	// MaxSendStreams is how many streams a client opens at a time, where the peer allows as many. Zero means as many as the
	// peer allows. Until the peer's SETTINGS have come it is one.
	MaxSendStreams uint32
	// SettingsTimeout is how long the peer may take to send its SETTINGS. Zero means the default.
	SettingsTimeout time.Duration
	// KeepaliveInterval is how long nothing may be read before a PING asks whether the peer lives, and KeepaliveTimeout how
	// long it may then stay silent before the connection ends. Zero means the default, less than zero: no keepalive.
	KeepaliveInterval time.Duration
	KeepaliveTimeout  time.Duration
	// Worked, if set, is told by the goroutine that reads the connection how many bytes it has read since, some tens of KiB at
	// a time. It may block for a while, to slow the connection down.
	Worked func(bytes int)
	// Go, if set, calls f at once in some goroutine, for a server's handlers: one that is used again has a stack that has grown.
	Go func(f func())
	// WriteTimeout is how long the peer may take nothing of what is written to it, to within a keepalive interval. Zero means
	// the default. Without keepalive there is no such bound.
	WriteTimeout time.Duration
	// OnChange, if set, is called without locks whenever the connection may be able to open more streams than before, or can
	// open none any more: SETTINGS came, a stream ended, GOAWAY came, the connection ended. It must not block.
	OnChange func(*Conn)
}

func (c Config) withDefaults(server bool) Config {
	def32 := func(v *uint32, d uint32) {
		if *v == 0 {
			*v = d
		}
	}
	defDur := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	if c.StreamWindow <= 0 {
		c.StreamWindow = DefaultStreamWindow
	}
	if c.ConnWindow <= 0 {
		c.ConnWindow = DefaultConnWindow
	}
	if c.MaxBuffered == 0 {
		c.MaxBuffered = DefaultMaxBuffered
	}
	c.MaxBuffered = max(c.MaxBuffered, int(c.ConnWindow))
	def32(&c.MaxFrameSize, DefaultMaxFrameSize)
	c.MaxFrameSize = min(max(c.MaxFrameSize, 16<<10), 1<<24-1)
	def32(&c.MaxStreams, DefaultMaxStreams)
	if server {
		def32(&c.MaxHeaderList, DefaultMaxHeadersAsServer)
	} else {
		def32(&c.MaxHeaderList, DefaultMaxHeadersAsClient)
	}
	if c.Go == nil {
		c.Go = func(f func()) { go f() } // Run waits for it
	}
	defDur(&c.SettingsTimeout, DefaultSettingsTimeout)
	defDur(&c.KeepaliveInterval, DefaultKeepaliveInterval)
	defDur(&c.KeepaliveTimeout, DefaultKeepaliveTimeout)
	defDur(&c.WriteTimeout, DefaultWriteTimeout)
	return c
}
