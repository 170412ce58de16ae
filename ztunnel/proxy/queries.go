package proxy

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// queries is a UDP socket to which name queries come. Like a listener it can be left to another process: what that is to
// read, and what nobody reads for a while, waits in the socket.
type queries struct {
	*net.UDPConn
	ctx    context.Context // ends waiting
	ended  atomic.Bool
	shared sharing
}

// ReadFrom reads the next query. It waits while another process reads them, and returns net.ErrClosed after end.
func (q *queries) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if q.ended.Load() || q.ctx.Err() != nil {
			return 0, nil, net.ErrClosed
		}
		if q.shared.wait(q.ctx) {
			continue
		}
		n, addr, err := q.UDPConn.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) && (q.ended.Load() || q.shared.paused()) {
			continue
		}
		return n, addr, err
	}
}

// SetReadDeadline is for who reads, and has no effect while that is another process.
func (q *queries) SetReadDeadline(t time.Time) error {
	q.shared.mu.Lock()
	defer q.shared.mu.Unlock()
	if q.ended.Load() || q.shared.stop != nil {
		return nil
	}
	return q.UDPConn.SetReadDeadline(t)
}

// Pause implements sockets.Socket. No query is read after it but one that is being read now, which is answered.
func (q *queries) Pause() {
	q.shared.mu.Lock()
	defer q.shared.mu.Unlock()
	if q.shared.stop == nil {
		q.shared.stop = make(chan struct{})
		q.UDPConn.SetReadDeadline(past)
	}
}

// Resume implements sockets.Socket.
func (q *queries) Resume() {
	q.shared.mu.Lock()
	defer q.shared.mu.Unlock()
	if q.shared.stop == nil || q.ended.Load() {
		return
	}
	q.UDPConn.SetReadDeadline(time.Time{})
	close(q.shared.stop)
	q.shared.stop = nil
}

// end has ReadFrom return for good. The reader closes the socket.
func (q *queries) end() {
	q.shared.mu.Lock()
	defer q.shared.mu.Unlock()
	if q.ended.Swap(true) {
		return
	}
	q.UDPConn.SetReadDeadline(past)
	if q.shared.stop != nil {
		close(q.shared.stop) // and stays, so that it is seen as paused
	}
}
