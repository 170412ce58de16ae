package telemetry

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Format is how log lines look.
type Format uint8

const (
	FormatPlain Format = iota
	FormatJSON
)

// NewLogger makes a logger to w, in Istio's field names: time, level (lower case), scope, message (msg in FormatPlain, which is
// key=value).
func NewLogger(w io.Writer, format Format, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch a.Key {
		case slog.LevelKey:
			a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
		case slog.MessageKey:
			if format == FormatJSON {
				a.Key = "message"
			}
		}
		return a
	}}
	if format == FormatJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// Connection is what the access log says of one connection.
type Connection struct {
	Flow
	// SourceAddr is the client's address, DestinationAddr the application's or upstream's.
	SourceAddr, DestinationAddr netip.AddrPort
	// Claimed is what the client called itself in a handshake that was refused before it had proved anything; zero: nothing. No
	// metric has it, and the log has it under a name of its own.
	Claimed identity.Identity
	// HBONEAddr is the CONNECT authority; empty for plain connections.
	HBONEAddr string
	// Trace is the id by which both proxies of a tunnel log the connection (that of W3C Trace Context); zero: none.
	Trace [16]byte
	// Inbound: the connection came to a workload of this node; otherwise it came from one.
	Inbound bool
	// Sent is from the client to the server, Received the other way, in bytes. In the log, bytes_sent is what this node's
	// workload has sent.
	Sent, Received uint64
	// Start is when the client connected; Duration is until now, or the end.
	Start    time.Time
	Duration time.Duration
	// Flag and Err are how it ended; a nil Err is a success.
	Flag Flag
	Err  error
}

// AccessLog writes a line for each connection. It is safe for concurrent use.
type AccessLog struct {
	log     *slog.Logger
	sampled uint32 // of 1<<32-1, share of successful connections that are logged
}

// NewAccessLog makes an AccessLog that writes through l, whose target is TargetAccess. Of connections that were carried to
// their end only the share sampling is logged, between 0 and 1; those that were denied or failed are always logged.
func NewAccessLog(l *slog.Logger, sampling float64) *AccessLog {
	return &AccessLog{log: l, sampled: uint32(min(max(sampling, 0), 1) * math.MaxUint32)}
}

// takes tells whether a connection is one of the sample. It is the same for both lines of a connection.
func (a *AccessLog) takes(c *Connection) bool {
	if a.sampled == math.MaxUint32 || c.Err != nil || c.Flag != FlagNone {
		return true
	}
	return mix(c.SourceAddr.Port(), c.Start.UnixNano()) < a.sampled
}

// mix turns what differs between connections into a number that is spread evenly (FNV-1a).
func mix(port uint16, at int64) uint32 {
	h := uint64(14695981039346656037)
	for v := uint64(at) ^ uint64(port)<<48; v != 0; v >>= 8 {
		h = (h ^ v&0xff) * 1099511628211
	}
	return uint32(h>>32) ^ uint32(h)
}

// Opened logs, at debug, that a connection was opened.
func (a *AccessLog) Opened(ctx context.Context, c *Connection) {
	if !a.log.Enabled(ctx, slog.LevelDebug) || !a.takes(c) {
		return
	}
	attrs := make([]slog.Attr, 0, maxAttrs)
	a.log.LogAttrs(ctx, slog.LevelDebug, "connection opened", c.appendEnds(attrs)...)
}

// Closed logs the end of a connection: at info without an Err, at error with one, at warn if it was refused (FlagDenied,
// FlagUnregistered).
func (a *AccessLog) Closed(ctx context.Context, c *Connection) {
	level := slog.LevelInfo
	switch {
	case c.Flag == FlagDenied || c.Flag == FlagUnregistered:
		level = slog.LevelWarn
	case c.Err != nil:
		level = slog.LevelError
	}
	if !a.log.Enabled(ctx, level) || !a.takes(c) {
		return
	}
	sent, received := c.Sent, c.Received
	if c.Inbound {
		sent, received = received, sent
	}
	attrs := c.appendEnds(make([]slog.Attr, 0, maxAttrs))
	attrs = append(attrs,
		slog.Uint64("bytes_sent", sent),
		slog.Uint64("bytes_recv", received),
		slog.String("duration", strconv.FormatInt(c.Duration.Milliseconds(), 10)+"ms"),
	)
	if c.Flag != FlagNone {
		attrs = append(attrs, slog.String("response_flags", c.Flag.String()))
	}
	if c.Err != nil {
		attrs = append(attrs, slog.String("error", c.Err.Error()))
	}
	a.log.LogAttrs(ctx, level, "connection complete", attrs...)
}

// maxAttrs is the most attributes that a line has.
const maxAttrs = 21

// appendEnds adds what is known of both ends, and leaves out what is not.
func (c *Connection) appendEnds(attrs []slog.Attr) []slog.Attr {
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	workload := func(side string, w *directory.Workload, id identity.Identity) {
		if w != nil {
			text(side+".workload", w.Name)
			text(side+".namespace", w.Namespace)
		}
		if c.MutualTLS {
			text(side+".identity", id.String())
		}
		if w != nil {
			text(side+".cluster", w.ClusterID)
		}
	}
	addr := func(key string, a netip.AddrPort) {
		if a.IsValid() {
			attrs = append(attrs, slog.String(key, a.String()))
		}
	}
	addr("src.addr", c.SourceAddr)
	workload("src", c.Source, c.SourceIdentity)
	text("src.claimed_identity", c.Claimed.String())
	addr("dst.addr", c.DestinationAddr)
	text("dst.hbone_addr", c.HBONEAddr)
	if c.Service != nil {
		text("dst.service", c.Service.Hostname)
	}
	workload("dst", c.Destination, c.DestinationIdentity)
	if c.Inbound {
		text("direction", "inbound")
	} else {
		text("direction", "outbound")
	}
	if c.Trace != [16]byte{} {
		text("trace_id", hex.EncodeToString(c.Trace[:]))
	}
	return attrs
}
