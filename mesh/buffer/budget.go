package buffer

import (
	"sync"
	"sync/atomic"
)

// Budget bounds what a party, such as a pod, holds in buffers that wait for somebody to take what is in them. It refuses
// nothing by itself: those who would hold more look at it first. A nil Budget has no bound. Its methods may be called
// concurrently.
type Budget struct {
	limit int64
	used  atomic.Int64

	mu      sync.Mutex // guards what follows; nothing else is taken while it is held
	waiting map[*Waiter]struct{}
}

// Waiter is somebody who waits until the budget has room.
type Waiter struct {
	// Wake is called without locks, perhaps more than once. It must not block for long.
	Wake func()
}

// NewBudget returns a budget of so many bytes; nil, which has no bound, if limit is not positive.
func NewBudget(limit int64) *Budget {
	if limit <= 0 {
		return nil
	}
	return &Budget{limit: limit, waiting: make(map[*Waiter]struct{})}
}

// Take counts n bytes as held, even if there is no room for them.
func (b *Budget) Take(n int) {
	if b != nil {
		b.used.Add(int64(n))
	}
}

// Give counts n bytes as held no more. The caller must hold no lock that a Wake takes.
func (b *Budget) Give(n int) {
	if b == nil || b.used.Add(-int64(n)) > b.limit {
		return
	}
	b.mu.Lock()
	if len(b.waiting) == 0 {
		b.mu.Unlock()
		return
	}
	waiting := b.waiting
	b.waiting = make(map[*Waiter]struct{})
	b.mu.Unlock()
	for w := range waiting {
		w.Wake()
	}
}

// Used returns how many bytes are held.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

// Over tells whether more is held than the bound allows.
func (b *Budget) Over() bool { return b != nil && b.used.Load() > b.limit }

// Beyond tells whether more than twice as much is held as the bound allows.
func (b *Budget) Beyond() bool { return b != nil && b.used.Load() > 2*b.limit }

// Left returns how many bytes may still be held, at least zero, and whether there is a bound at all.
func (b *Budget) Left() (int64, bool) {
	if b == nil {
		return 0, false
	}
	return max(0, b.limit-b.used.Load()), true
}

// Await has w woken once the budget is not over its bound any more. It returns false, and does nothing, if it is not now.
func (b *Budget) Await(w *Waiter) bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used.Load() <= b.limit {
		return false
	}
	b.waiting[w] = struct{}{}
	return true
}

// Leave undoes Await.
func (b *Budget) Leave(w *Waiter) {
	if b == nil {
		return
	}
	b.mu.Lock()
	delete(b.waiting, w)
	b.mu.Unlock()
}
