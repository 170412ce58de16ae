package hbone

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// RelayStreams is Relay between two tunnels, as an L7 proxy needs it for what it does not parse: an end of one direction is
// passed on as such, a reset as a reset; CANCEL and NO_ERROR are clean ends of both directions. Sent of the counters is what
// was read from a and written to b. It closes both.
func (cfg Relayer) RelayStreams(ctx context.Context, a, b *Stream, counters *Counters) error {
	if counters == nil {
		counters = new(Counters)
	}
	r := &streamRelay{a: a.s, b: b.s, counters: counters, silence: cfg.silence()}
	r.load = load{cfg.Budget, cfg.Party, 0}
	defer context.AfterFunc(ctx, func() { r.end(context.Cause(ctx)) })()
	down := &oneWay{relay: r, from: b.s, to: a.s, count: counters.addReceived}
	up := &oneWay{relay: r, from: a.s, to: b.s, count: counters.addSent}
	down.back, up.back = up, down
	a.s.OnReset(up.reset)
	b.s.OnReset(down.reset)
	var wg sync.WaitGroup
	wg.Go(down.copy)
	up.copy()
	wg.Wait()
	r.close(nil)
	return r.err
}

// streamRelay is the state of one RelayStreams.
type streamRelay struct {
	a, b     *h2.Stream
	counters *Counters
	load     load // copied by each direction

	mu      sync.Mutex // guards what follows
	ended   int        // directions that have ended cleanly
	over    bool       // both are closed
	err     error
	timers  []*time.Timer
	silence silence
}

// oneWay is one direction.
type oneWay struct {
	relay    *streamRelay
	back     *oneWay // the other one
	from, to *h2.Stream
	count    func(int)

	// Guarded by relay.mu.
	ended bool  // from has ended cleanly
	gone  error // from was reset, perhaps before all of it was passed on
}

// copy copies until from ends, and then ends to.
func (w *oneWay) copy() {
	r := w.relay
	l := r.load
	for {
		// What is not taken from the queue is what the sender's window is spent on: nothing is taken that cannot be passed on.
		if _, err := w.to.WaitWritable(); err != nil {
			w.refused(err)
			return
		}
		chunk, _, err := w.from.Next(nil)
		if err == io.EOF {
			if err := w.to.CloseWrite(); err != nil {
				w.refused(err)
				return
			}
			r.halfClosed(w)
			return
		}
		if err != nil {
			r.end(err)
			return
		}
		n, err := w.to.Write(chunk.Bytes())
		chunk.Release()
		w.count(n)
		if err != nil {
			w.refused(err)
			return
		}
		l.did(n)
	}
}

// refused is called when to takes nothing any more. If that is because its peer has reset it, what that has sent before is
// passed on first.
func (w *oneWay) refused(err error) {
	if !toldByEnd(err) {
		w.relay.end(err)
		return
	}
	w.relay.mu.Lock()
	over := w.back.ended
	w.back.gone = err
	w.relay.mu.Unlock()
	if over {
		w.relay.end(err)
	}
}

// reset is called when the peer of from has reset it. What came before is passed on first, by copy, which then sees the
// reset itself, unless it has returned. Where the reset is no clean end, what the other side does not take soon is lost.
func (w *oneWay) reset() {
	_, err := w.from.WaitWritable() // does not wait, and says why
	r := w.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	w.gone = err
	switch {
	case w.ended:
		r.afterLocked(0, func() { r.end(err) })
	case !cleanReset(err):
		r.afterLocked(resetGrace, func() { r.end(errBehind) })
	}
}

// errBehind is why a relay ended whose one peer has reset its stream while the other took nothing.
var errBehind = errors.New("hbone: the stream was reset, and what came before could not be passed on")

// afterLocked calls f after a while unless the relay is over.
func (r *streamRelay) afterLocked(d time.Duration, f func()) {
	if !r.over {
		r.timers = append(r.timers, time.AfterFunc(d, f))
	}
}

// halfClosed notes the clean end of one direction, all of which was passed on. With the second one both streams are closed, or
// with a reset that came behind the end.
func (r *streamRelay) halfClosed(w *oneWay) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.ended = true
	if r.ended++; w.gone != nil {
		r.endLocked(w.gone)
	} else if r.ended < 2 {
		r.afterLocked(probeGrace, r.checkHalfClosed)
	}
}

// checkHalfClosed ends a half-closed relay that has been silent for too long.
func (r *streamRelay) checkHalfClosed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	next, err := r.silence.look(r.counters.Sent.Load() + r.counters.Received.Load())
	switch {
	case err != nil:
		r.closeLocked(err)
	case next > 0:
		r.afterLocked(next, r.checkHalfClosed)
	}
}

// end ends both directions because of an error.
func (r *streamRelay) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(err)
}

func (r *streamRelay) endLocked(err error) {
	if cleanReset(err) {
		err = nil
	}
	r.closeLocked(err)
}

func (r *streamRelay) close(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeLocked(err)
}

// closeLocked closes both, with a reset if there is an error. A stream's methods do not call back with r.mu held: its watcher
// is taken away first.
func (r *streamRelay) closeLocked(err error) {
	if r.over {
		return
	}
	r.over = true
	r.err = err
	for _, t := range r.timers {
		t.Stop()
	}
	for _, s := range [...]*h2.Stream{r.a, r.b} {
		s.OnReset(nil)
		if err != nil {
			s.Reset(h2.ConnectError)
		} else {
			s.Close()
		}
	}
}
