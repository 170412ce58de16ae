//go:build race

package buffer

import "testing"

// misuse runs f until it panics: the pool keeps not every buffer in race builds.
func misuse(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("nothing was noticed")
		}
	}()
	for range 1000 {
		f()
	}
}

func TestGivenTwice(t *testing.T) {
	misuse(t, func() {
		b := Get(Tiny)
		Put(b)
		Put(b)
	})
}

func TestWrittenAfterwards(t *testing.T) {
	misuse(t, func() {
		b := Get(Small)
		Put(b)
		b[len(b)-1] = 'x'
		Put(Get(Small))
	})
}
