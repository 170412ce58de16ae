package telemetry

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Format is how log lines look.
type Format uint8

const (
	FormatPlain Format = iota
	FormatJSON
)

// Writer puts log lines out without making their writers wait: what does not fit into its queue is dropped and counted.
type Writer struct{}

// NewWriter makes a Writer to w with a queue of lines (0: 10,000) and starts its goroutine, which Close ends.
func NewWriter(w io.Writer, lines int, reg prometheus.Registerer) *Writer { panic("unwritten") }

// Write takes one line. It never blocks and never fails.
func (w *Writer) Write(p []byte) (int, error) { panic("unwritten") }

// Close puts out what is queued, and returns when that is done.
func (w *Writer) Close() error { panic("unwritten") }

// NewLogger makes a logger to w, in Istio's field names.
func NewLogger(w io.Writer, format Format, level slog.Leveler) *slog.Logger { panic("unwritten") }

// Connection is what the access log says of one connection.
type Connection struct {
	Flow
	// SourceAddr is the client's address, DestinationAddr the application's or upstream's.
	SourceAddr, DestinationAddr netip.AddrPort
	// HBONEAddr is the CONNECT authority; empty for plain connections.
	HBONEAddr string
	// Inbound: the connection came to a workload of this node; otherwise it came from one.
	Inbound bool
	// Sent is from the client to the server, Received the other way, in bytes.
	Sent, Received uint64
	Duration       time.Duration
	// Flag and Err are how it ended; a nil Err is a success.
	Flag Flag
	Err  error
}

// AccessLog writes a line for each connection.
type AccessLog struct{}

// NewAccessLog makes an AccessLog that writes through l, with the attribute scope=access.
func NewAccessLog(l *slog.Logger) *AccessLog { panic("unwritten") }

// Opened logs, at debug, that a connection was opened.
func (a *AccessLog) Opened(ctx context.Context, c *Connection) { panic("unwritten") }

// Closed logs the end of a connection: at info without an Err, at error with one, at warn if it was refused at once
// (FlagDenied).
func (a *AccessLog) Closed(ctx context.Context, c *Connection) { panic("unwritten") }
