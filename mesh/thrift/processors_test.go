package thrift

import (
	"testing"
	"time"
)

// TestProcessorsFollowTheWork feeds what was used in each tick.
func TestProcessorsFollowTheWork(t *testing.T) {
	p := processors{most: 6, now: 6}
	feed := func(when string, used float64, ticks, want int) {
		t.Helper()
		got := 0
		for range ticks {
			got = p.next(time.Duration(used*float64(processorsTick)), processorsTick, false)
		}
		if got != want {
			t.Errorf("%s: %d processors, want %d", when, got, want)
		}
	}
	const wait = int(littleFor / processorsTick)
	feed("idle, at first", 0, wait-1, 6)
	feed("idle for a while", 0, 1, 3)
	feed("idle for longer", 0, 2*wait, 1)
	feed("idle for ever", 0, 2*wait, 1)
	feed("some work", 0.8, 2*wait, 1)
	feed("much work", 0.95, 1, 2)
	feed("the same work", 0.85, 3*wait, 2)
	feed("more work", 1.9, 1, 4)
	feed("all that there is", 3.9, 1, 6)
	feed("all that there is, for long", 6, 3*wait, 6)
	feed("little for a moment", 1, wait-1, 6)
	feed("and more again", 3, 1, 6)
	feed("little for a moment again", 1, wait-1, 6)
	feed("little for long", 1, 1, 3)
	feed("less for long", 0, 2*wait, 1)
	if got := p.next(processorsTick/2, processorsTick, true); got != 6 {
		t.Errorf("pods waited for others: %d processors, want 6", got)
	}
	feed("little since then", 0.5, wait-1, 6)
}
