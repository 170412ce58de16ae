package upstream

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// ErrBudget is an ErrOverflow: there were as many retries lately as the budget allows.
var ErrBudget = errors.New("the retry budget is spent")

// spans is how many parts of its interval a window counts apart: it reaches back over all of it but at most one part.
const spans = 10

// window counts what has begun within an interval. Its methods may be called concurrently; add takes no lock.
type window struct {
	span  int64 // of one part, in nanoseconds
	parts [spans]atomic.Uint64
}

// A part has the number of its span above these bits, and a count in them.
const countBits = 40

func newWindow(interval time.Duration) *window { return &window{span: max(1, int64(interval)/spans)} }

// add counts one, at a time in nanoseconds.
func (w *window) add(at int64) {
	n := at / w.span
	part, number := &w.parts[n%spans], uint64(n)<<countBits
	for {
		v := part.Load()
		if v>>countBits == number>>countBits {
			part.Add(1)
			return
		}
		if part.CompareAndSwap(v, number|1) {
			return
		}
	}
}

// sum is how many there are.
func (w *window) sum(at int64) (out uint64) {
	n := at / w.span
	for i := range int64(spans) {
		if v := w.parts[(n-i)%spans].Load(); v>>countBits == uint64(n-i)<<countBits>>countBits {
			out += v & (1<<countBits - 1)
		}
	}
	return out
}

// budget is what retries and requests of a cluster lately were, under a config.Budget that has an Interval.
type budget struct {
	settings config.Budget
	tries    *window // of requests, retries among them

	mu      sync.Mutex // guards decisions on retries
	retries *window    // within the interval of tries
	lately  *window    // within MinInterval
}

func newBudget(s config.Budget) *budget {
	return &budget{settings: s, tries: newWindow(s.Interval), retries: newWindow(s.Interval), lately: newWindow(s.MinInterval)}
}

// take counts a retry unless there were too many.
func (b *budget) take(at int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	share := b.settings.Percent / 100 * float64(b.tries.sum(at)+1)
	if float64(b.retries.sum(at)+1) > share && b.lately.sum(at) >= uint64(b.settings.Min) {
		return fmt.Errorf("%w: %w: the settings of the service allow retries to be %v%% of the requests of %v, and %d of them in %v in any case",
			ErrOverflow, ErrBudget, b.settings.Percent, b.settings.Interval, b.settings.Min, b.settings.MinInterval)
	}
	b.retries.add(at)
	b.lately.add(at)
	return nil
}

// followBudget makes the budget that of settings, as it was if they are the same. The caller holds the manager's lock.
func (c *Cluster) followBudget(s *config.Settings) {
	var want *config.Budget
	if s.Limits != nil && s.Limits.Budget != nil && s.Limits.Budget.Interval > 0 {
		want = s.Limits.Budget
	}
	is := c.budget.Load()
	switch {
	case want == nil:
		c.budget.Store(nil)
	case is == nil || is.settings != *want:
		c.budget.Store(newBudget(*want))
	}
}

// TakeRetry counts one more try of a request, before it begins. It returns an error that is ErrBudget, and counts nothing, if there were
// as many lately as may be.
func (c *Cluster) TakeRetry() error {
	if b := c.budget.Load(); b != nil {
		return b.take(now())
	}
	return nil
}
