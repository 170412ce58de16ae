package codec

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// watchDelay is how long a request must have been under way before somebody looks whether its client is still there. Most are over
// by then, also where a thousand of them share a processor, and need no goroutine for it.
const watchDelay = 250 * time.Millisecond

// watch notices that the client of an HTTP/1 connection goes away while its request is handled: it reads on. What it finds is the
// next request, or the end. A client that closes its direction to us is gone, as it is for other proxies.
type watch struct {
	o     *server1
	timer *time.Timer
	wg    sync.WaitGroup // of who reads

	mu      sync.Mutex // guards what follows
	cancel  func()     // of the request; nil: none is under way
	body    *body1     // of the request; may be nil
	reading bool
}

func (w *watch) init(o *server1) { w.o = o }

// begin watches during a request.
func (w *watch) begin(cancel func(), body *body1) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel, w.body = cancel, body
	if w.timer == nil {
		w.timer = time.AfterFunc(watchDelay, w.look)
	} else {
		w.timer.Reset(watchDelay)
	}
}

// look begins to read, once the request's body has been read by those who want it.
func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.cancel == nil || w.reading:
	case w.body != nil && !w.body.ended():
		w.timer.Reset(watchDelay)
	default:
		w.reading = true
		w.wg.Go(w.read)
	}
}

func (w *watch) read() {
	o := w.o
	if len(o.in.bytes()) > 0 {
		return // the next request is there
	}
	err := o.in.fill(buffer.Tiny)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		w.cancel()
	}
}

// end stops watching, and waits for that.
func (w *watch) end() {
	w.mu.Lock()
	reading := w.reading
	w.cancel, w.body, w.reading = nil, nil, false
	w.timer.Stop()
	w.mu.Unlock()
	if reading {
		_ = w.o.s.nc.SetReadDeadline(time.Now())
		w.wg.Wait()
		w.o.noDeadline()
	}
}

// stop ends for good.
func (w *watch) stop() {
	if w.timer != nil {
		w.end()
	}
}
