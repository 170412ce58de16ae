package hbone

import (
	"context"
	"errors"
)

// ErrPoolClosed is what Open returns once Drain or Close was called.
var ErrPoolClosed = errors.New("hbone: pool closed")

// Pool opens tunnels, and shares connections among those with equal targets. All methods may be called concurrently.
type Pool struct {
	cfg PoolConfig
}

// NewPool returns a pool without connections. The caller must Close it.
func NewPool(cfg PoolConfig) *Pool { return &Pool{cfg: cfg} }

// Open returns a stream once the peer has answered the request with 200. Errors are *DialError, *StatusError,
// ErrPoolClosed, or the context's. A stream that the peer refused before it looked at it, or whose pooled connection turned
// out to be dead, has been tried once more on another connection. The caller must Close the stream (Relay does).
//
// A dial is shared among the callers that wait for it and goes on when the context of one of them ends.
func (p *Pool) Open(ctx context.Context, t Target, r Request) (*Stream, error) {
	return nil, errors.ErrUnsupported
}

// Evict takes the connections to a workload out of use: they get no new streams, and close when the last one ends.
func (p *Pool) Evict(uid string) {}

// Drain lets nothing new be opened, waits until every stream has ended or the context has, and closes the connections.
// It returns the context's error if streams were cut.
func (p *Pool) Drain(ctx context.Context) error { return nil }

// Close ends every connection, with its streams, at once, and waits for the pool's goroutines.
func (p *Pool) Close() error { return nil }

// PoolStats counts what a pool holds.
type PoolStats struct {
	Connections int // ready for streams, or draining
	Streams     int // open or being opened
	Dials       int // under way
	Waiting     int // calls of Open that wait for a connection
}

// Stats returns a snapshot.
func (p *Pool) Stats() PoolStats { return PoolStats{} }
