package hbone

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// RelayTCP is Relay between two TCP connections.
func (cfg Relayer) RelayTCP(ctx context.Context, a, b *net.TCPConn, counters *Counters) error {
	if counters == nil {
		counters = new(Counters)
	}
	r := &tcpRelay{counters: counters, a: a, b: b, silence: cfg.silence()}
	r.load = load{cfg.Budget, cfg.Party, 0}
	defer context.AfterFunc(ctx, func() { r.abort(context.Cause(ctx)) })()
	var wg sync.WaitGroup
	wg.Go(func() { r.copy(a, b, false) })
	r.copy(b, a, true)
	wg.Wait()
	r.close(nil, false)
	return r.err
}

// tcpRelay is the state of one RelayTCP.
type tcpRelay struct {
	a, b     *net.TCPConn
	counters *Counters
	load     load // copied by each direction

	mu      sync.Mutex // guards what follows
	ended   int        // directions that have ended cleanly
	over    bool       // both are closed
	err     error
	timer   *time.Timer // of silence
	silence silence
}

// copy copies from src to dst until src ends, and then ends dst, and waits until src is reset or the other direction has
// ended, too. sent says which direction it is.
func (r *tcpRelay) copy(dst, src *net.TCPConn, sent bool) {
	raw, err := src.SyscallConn()
	if err != nil {
		r.abort(fmt.Errorf("relay: %w", err))
		return
	}
	var in source
	in.init(raw)
	l := r.load
	for {
		buf, n, err := in.read(0, l.limit(readSizes[len(readSizes)-1]))
		if err == io.EOF {
			if err := dst.CloseWrite(); err != nil {
				r.abort(err)
				return
			}
			r.halfClosed()
			if err := in.waitReset(); err != nil {
				r.abort(err)
			}
			return
		}
		if err != nil {
			r.abort(err)
			return
		}
		size := cap(buf)
		l.budget.Take(size)
		n, err = dst.Write(buf[:n])
		l.budget.Give(size)
		buffer.Put(buf)
		if sent {
			r.counters.addSent(n)
		} else {
			r.counters.addReceived(n)
		}
		if err != nil {
			r.abort(err)
			return
		}
		l.did(n)
	}
}

// halfClosed notes the clean end of one direction. With the second one both connections are closed.
func (r *tcpRelay) halfClosed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended++
	switch {
	case r.over:
	case r.ended == 2:
		r.closeLocked(nil, false)
	default:
		r.timer = time.AfterFunc(probeGrace, r.checkHalfClosed)
	}
}

func (r *tcpRelay) moved() uint64 { return r.counters.Sent.Load() + r.counters.Received.Load() }

// checkHalfClosed ends a half-closed relay that has been silent for too long.
func (r *tcpRelay) checkHalfClosed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	next, err := r.silence.look(r.moved(), r.a, r.b)
	switch {
	case err != nil:
		r.closeLocked(err, true)
	case next > 0:
		r.timer.Reset(next)
	}
}

// abort resets both sides.
func (r *tcpRelay) abort(err error) { r.close(err, true) }

// close closes both sides, once.
func (r *tcpRelay) close(err error, reset bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeLocked(err, reset)
}

func (r *tcpRelay) closeLocked(err error, reset bool) {
	if r.over {
		return
	}
	r.over = true
	r.err = err
	if r.timer != nil {
		r.timer.Stop()
	}
	for _, c := range []*net.TCPConn{r.a, r.b} {
		if reset {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
	}
}
