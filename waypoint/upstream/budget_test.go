package upstream

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// TestWindow: what is older than the interval does not count, and all the rest does, up to a tenth of it.
func TestWindow(t *testing.T) {
	w := newWindow(10 * time.Second)
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	at := func(d time.Duration) int64 { return start + int64(d) }
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				w.add(at(0))
			}
		})
	}
	wg.Wait()
	w.add(at(5 * time.Second))
	for _, tc := range []struct {
		after time.Duration
		want  uint64
	}{{0, 4000}, {5 * time.Second, 4001}, {9*time.Second + 999*time.Millisecond, 4001}, {10 * time.Second, 1}, {15 * time.Second, 0}, {time.Hour, 0}} {
		if got := w.sum(at(tc.after)); got != tc.want {
			t.Errorf("after %v: %d, want %d", tc.after, got, tc.want)
		}
	}
	w.add(at(10 * time.Second)) // in the place of the first
	if got := w.sum(at(10 * time.Second)); got != 2 {
		t.Errorf("%d, want 2", got)
	}
}

// TestBudget: as many retries are allowed as either bound allows, also to many who ask at once, and time brings them back.
func TestBudget(t *testing.T) {
	b := newBudget(config.Budget{Percent: 20, Interval: 10 * time.Second, Min: 3, MinInterval: time.Second})
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	allowed := func(requests int) int {
		t.Helper()
		for range requests {
			b.tries.add(now)
		}
		var mu sync.Mutex
		n := 0
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				switch err := b.take(now); {
				case err == nil:
					mu.Lock()
					n++
					mu.Unlock()
				case !errors.Is(err, ErrOverflow) || !errors.Is(err, ErrBudget):
					t.Errorf("refused with %v", err)
				}
			})
		}
		wg.Wait()
		return n
	}
	if got := allowed(1); got != 3 {
		t.Errorf("%d retries of one request, want the 3 that are always allowed", got)
	}
	if got := allowed(98); got != 17 {
		t.Errorf("%d more retries, want 20 of 100 less 3", got)
	}
	now += int64(time.Second)
	if got := allowed(0); got != 3 {
		t.Errorf("%d retries a second later, want 3", got)
	}
	now += int64(10 * time.Second)
	if got := allowed(24); got != 5 {
		t.Errorf("%d retries of 24 requests when all is forgotten, want 5", got)
	}
}
