package hbone

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// Counters count the payload of a relay while it runs. Sent is what was read from the first connection and written to the
// second one or the stream, Received the other direction.
type Counters struct {
	Sent     atomic.Uint64
	Received atomic.Uint64
}

// DefaultHalfCloseTimeout is how long a relay of which one direction has ended may move no byte in the other.
const DefaultHalfCloseTimeout = time.Hour

// ErrHalfCloseTimeout is what a relay returns that was half-closed and then silent for too long.
var ErrHalfCloseTimeout = errors.New("hbone: half-closed connection was silent for too long")

// Relayer holds the settings of relays. The zero value is ready to use.
type Relayer struct {
	// HalfCloseTimeout ends a relay of which one direction has ended and the other moves no byte for this long. Zero means
	// DefaultHalfCloseTimeout, less than zero: no limit.
	HalfCloseTimeout time.Duration
}

// Relay copies between a TCP connection and a stream, in both directions, until both have ended, and closes both. An end of
// one direction is passed on as such (FIN as END_STREAM and back), a reset as a reset. It returns nil if both directions
// ended cleanly, else what ended them: an error of the connection, *h2.StreamError, ErrHalfCloseTimeout, or the cause of the
// context's end, on which both are reset. counters may be nil.
func (r Relayer) Relay(ctx context.Context, conn *net.TCPConn, s *Stream, counters *Counters) error {
	return errors.ErrUnsupported
}

// RelayTCP is Relay between two TCP connections.
func (r Relayer) RelayTCP(ctx context.Context, a, b *net.TCPConn, counters *Counters) error {
	return errors.ErrUnsupported
}

// Relay is Relayer.Relay with the defaults.
func Relay(ctx context.Context, conn *net.TCPConn, s *Stream, counters *Counters) error {
	return Relayer{}.Relay(ctx, conn, s, counters)
}

// RelayTCP is Relayer.RelayTCP with the defaults.
func RelayTCP(ctx context.Context, a, b *net.TCPConn, counters *Counters) error {
	return Relayer{}.RelayTCP(ctx, a, b, counters)
}
