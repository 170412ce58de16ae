package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// watchEvery is how often requests are looked at; one that is idle lives up to that much longer than its limit.
const watchEvery = time.Second

// idleState is what the watchdog knows of a request.
type idleState struct {
	limit time.Duration // 0: it is not watched
	shard uint32
	last  uint64    // of Exchange.Moved; the watchdog's, like since
	since time.Time // when it was first seen like that
}

// watchdog ends requests in which nothing comes or goes. One timer for all costs less than one for each.
type watchdog struct {
	next   atomic.Uint32
	shards [16]watched
	quit   chan struct{}
	done   chan struct{}
}

type watched struct {
	mu       sync.Mutex // guards what follows
	requests map[*request]struct{}
}

func (w *watchdog) start() {
	w.quit, w.done = make(chan struct{}), make(chan struct{})
	for i := range w.shards {
		w.shards[i].requests = map[*request]struct{}{}
	}
	go w.run()
}

func (w *watchdog) close() {
	select {
	case <-w.quit:
	default:
		close(w.quit)
	}
	<-w.done
}

func (w *watchdog) add(r *request) {
	r.idle.shard = w.next.Add(1) % uint32(len(w.shards))
	s := &w.shards[r.idle.shard]
	s.mu.Lock()
	s.requests[r] = struct{}{}
	s.mu.Unlock()
}

func (w *watchdog) remove(r *request) {
	if r.idle.limit == 0 {
		return
	}
	s := &w.shards[r.idle.shard]
	s.mu.Lock()
	delete(s.requests, r)
	s.mu.Unlock()
}

// run looks until close.
func (w *watchdog) run() {
	defer close(w.done)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for i := range w.shards {
				w.shards[i].look(now)
			}
		case <-w.quit:
			return
		}
	}
}

func (s *watched) look(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.requests {
		switch moved := r.x.Moved(); {
		case moved != r.idle.last || r.idle.since.IsZero():
			r.idle.last, r.idle.since = moved, now
		case now.Sub(r.idle.since) >= r.idle.limit:
			r.cancel(errIdleStream)
		}
	}
}
