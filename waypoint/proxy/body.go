package proxy

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// maxKept is how much of a request's body is kept so that it can be sent again, in bytes.
const maxKept = 64 << 10

// errSuperseded is what the body of a try returns once another try has it.
var errSuperseded = errors.New("the request is sent elsewhere")

// source is a request's body of which several tries may each want the beginning. What was pulled is kept up to maxKept; once
// it was more, the body can be sent no second time. The last try alone pulls, but one before may still be at it.
type source struct {
	body  message.Body
	keep  bool   // for other tries
	taps  []*tap // that get a copy
	ended func() // is called once when the body has ended; may be nil

	mu      sync.Mutex // guards what follows
	wake    sync.Cond  // pulling has become false
	pulling bool
	kept    []byte
	over    bool // more was pulled than is kept
	err     error
	latest  *attempt
	holder  *attempt // has a piece that body lends, until it calls Next or Close
	closed  bool
}

func newSource(body message.Body) *source {
	s := &source{body: body}
	s.wake.L = &s.mu
	return s
}

// again tells whether the whole body can be sent once more. now: if so the try that had it gets no more. What it still pulls, since
// its sender may live on for a while, is kept for the next one.
func (s *source) again(now bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.err != nil && s.err != io.EOF {
		return false
	}
	if now {
		s.latest = nil
	}
	return true
}

// attempt returns the body from its beginning, for one try. Those before get no more.
func (s *source) attempt() *attempt {
	a := &attempt{source: s}
	s.mu.Lock()
	s.latest = a
	s.mu.Unlock()
	return a
}

// leaveLocked sees to it that the sender of a try before, which may be at its last piece for long, has that for good. What it writes
// would else be, after the next call of body, whatever somebody else has in that memory by then.
func (s *source) leaveLocked() {
	if l, ok := s.body.(message.Lender); ok && s.holder != nil {
		l.Leave()
	}
	s.holder = nil
}

// attempt is a message.Body.
type attempt struct {
	source *source
	at     int // of source.kept
}

// Next is of message.Body.
func (a *attempt) Next() ([]byte, error) {
	s := a.source
	s.mu.Lock()
	defer s.mu.Unlock()
	a.returnLocked()
	for {
		switch {
		case s.latest != a:
			return nil, errSuperseded
		case a.at < len(s.kept):
			p := append([]byte(nil), s.kept[a.at:]...) // whoever reads it may overwrite it
			a.at = len(s.kept)
			return p, nil
		case s.err != nil:
			return nil, s.err
		case s.pulling:
			s.wake.Wait()
			continue
		}
		p, err := s.pullLocked()
		if err != nil || s.closed {
			continue
		}
		if s.latest != a {
			// Whoever has the body now wants it.
			s.kept = append(s.kept, p...)
			continue
		}
		s.holder = a
		if s.keep && !s.over && len(s.kept)+len(p) <= maxKept {
			s.kept = append(s.kept, p...)
		} else {
			s.over, s.kept = true, nil
			a.at = 0
			return p, nil
		}
		a.at = len(s.kept)
		return p, nil
	}
}

// returnLocked says that the try does not use its last piece any more.
func (a *attempt) returnLocked() {
	if a.source.holder == a {
		a.source.holder = nil
	}
}

// pullLocked pulls one piece. It unlocks mu meanwhile.
func (s *source) pullLocked() ([]byte, error) {
	s.leaveLocked()
	s.pulling = true
	s.mu.Unlock()
	p, err := s.body.Next()
	for _, t := range s.taps {
		t.put(p, err, s.body)
	}
	if err == io.EOF && s.ended != nil {
		s.ended()
	}
	s.mu.Lock()
	s.pulling = false
	if s.err == nil {
		s.err = err
	}
	if s.closed {
		s.body.Close()
	}
	s.wake.Broadcast()
	return p, err
}

// Ready is of message.Body.
func (a *attempt) Ready() bool {
	s := a.source
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.latest != a, a.at < len(s.kept), s.err != nil:
		return true
	case s.pulling:
		return false
	}
	return s.body.Ready()
}

// Trailers is of message.Body.
func (a *attempt) Trailers() message.Fields {
	s := a.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != io.EOF {
		return nil
	}
	return s.body.Trailers()
}

// Close is of message.Body. The body itself is closed by source.close.
func (a *attempt) Close() {
	s := a.source
	s.mu.Lock()
	defer s.mu.Unlock()
	a.returnLocked()
	if s.latest == a && s.over {
		s.latest = nil
	}
}

// close closes the body; if somebody is pulling, who is told by the end of the exchange, as soon as he has noticed.
func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest, s.closed = nil, true
	if s.err == nil {
		s.err = errSuperseded
	}
	if !s.pulling {
		s.leaveLocked()
		s.body.Close()
	}
	for _, t := range s.taps {
		t.put(nil, errSuperseded, s.body)
	}
}

// maxTapped is how much of a request's body waits for one copy's backend, in bytes; a copy whose backend is that much slower is
// given up, so that it does not hold the request back.
const maxTapped = 256 << 10

// Why copies of requests are given up.
var (
	errSlowMirror  = errors.New("the mirror's backend takes the request more slowly than the client sends it")
	errManyMirrors = errors.New("as much as may be of requests' bodies waits for the backends of mirrors already")
)

// tap is the copy of a request's body for a mirror: a message.Body. Whoever makes one closes it.
type tap struct {
	held *held

	mu       sync.Mutex // guards what follows
	wake     sync.Cond
	queue    [][]byte
	size     int
	err      error
	trailers message.Fields
	closed   bool
}

// held is how much waits in all taps together, in bytes.
type held struct {
	now  atomic.Int64
	most int64
}

// take counts so much more, unless that is too much.
func (h *held) take(n int) bool {
	if h.now.Add(int64(n)) <= h.most {
		return true
	}
	h.give(n)
	return false
}

func (h *held) give(n int) { h.now.Add(-int64(n)) }

func newTap(h *held) *tap {
	t := &tap{held: h}
	t.wake.L = &t.mu
	return t
}

// put takes the next piece, or the end. It does not block.
func (t *tap) put(p []byte, err error, body message.Body) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.err != nil {
		return
	}
	switch {
	case err == io.EOF:
		t.trailers = body.Trailers().Clone()
		t.err = err
	case err != nil:
		t.err = err
	case t.size+len(p) > maxTapped:
		t.emptyLocked()
		t.err = errSlowMirror
	case !t.held.take(len(p)):
		t.emptyLocked()
		t.err = errManyMirrors
	default:
		t.queue = append(t.queue, append([]byte(nil), p...))
		t.size += len(p)
	}
	t.wake.Broadcast()
}

// emptyLocked gives up what waits.
func (t *tap) emptyLocked() {
	t.held.give(t.size)
	t.queue, t.size = nil, 0
}

// Next is of message.Body.
func (t *tap) Next() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.queue) == 0 && t.err == nil && !t.closed {
		t.wake.Wait()
	}
	switch {
	case t.closed:
		return nil, errSuperseded
	case len(t.queue) == 0:
		return nil, t.err
	}
	p := t.queue[0]
	t.queue = t.queue[1:]
	t.size -= len(p)
	t.held.give(len(p))
	return p, nil
}

// Ready is of message.Body.
func (t *tap) Ready() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queue) > 0 || t.err != nil || t.closed
}

// Trailers is of message.Body.
func (t *tap) Trailers() message.Fields {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trailers
}

// Close is of message.Body.
func (t *tap) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.emptyLocked()
	t.wake.Broadcast()
}
