package proxy

import (
	"testing"
	"time"
)

// TestTidier follows a burst of connections, its end, and small changes.
func TestTidier(t *testing.T) {
	var m tidier
	now, learnt := time.Now(), 0
	look := func(connections int, want bool, when string) {
		t.Helper()
		now = now.Add(tidyInterval)
		if got := m.due(connections, learnt, now); got != want {
			t.Errorf("%s, with %d connections: due = %v, want %v", when, connections, got, want)
		}
	}
	look(0, false, "at the start")
	look(100, false, "a few")
	look(5000, false, "while many are opened")
	look(9000, false, "while many are opened")
	for range tidyTimes {
		look(9000, true, "at rest")
	}
	look(9000, false, "when it is done")
	look(9300, false, "after a small change")
	look(4000, false, "while many are closed")
	look(0, false, "while many are closed")
	look(0, true, "at rest again")
	// It took long: not again at once.
	m.took(tidyInterval)
	look(0, false, "after a long one")
	for range tidyShare - 2 {
		look(0, false, "after a long one")
	}
	look(0, true, "when enough time has passed")
	// A large mesh becomes known.
	for range 3 {
		learnt += tidyBurst
		look(0, false, "while much is learnt")
	}
	for range tidyTimes {
		learnt += tidyBurst / 2
		now = now.Add(tidyShare * tidyInterval)
		look(0, true, "when all is learnt")
	}
	for range 50 {
		learnt += tidyBurst / 2
		look(0, false, "while changes come steadily")
	}
	learnt += 1
	look(0, false, "after those")
	// A burst that never rests.
	look(8000, false, "in a burst")
	look(0, false, "as it ends")
	for range tidyTimes {
		look(0, true, "after a burst")
	}
	look(0, false, "long after it")
}
