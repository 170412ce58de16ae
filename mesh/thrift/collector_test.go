package thrift

import "testing"

func TestPercentFor(t *testing.T) {
	for _, c := range []struct {
		live, rate uint64
		want       int
	}{
		{0, 0, 100}, {1 << 20, 0, 100}, {8 << 20, 0, 100}, {16 << 20, 0, 50}, {20 << 20, 0, 40}, {32 << 20, 0, 25}, {1 << 40, 0, 25},
		{4 << 20, 4 << 20, 100}, {4 << 20, 16 << 20, 200}, {1 << 20, 16 << 20, 200}, {4 << 20, 1 << 30, 800}, {8 << 20, 1 << 30, 400}, {16 << 20, 1 << 30, 150},
		{32 << 20, 1 << 30, 25}, {64 << 20, 1 << 30, 25}, {256 << 20, 1 << 30, 25},
	} {
		if got := percentFor(c.live, c.rate, 32<<20); got != c.want {
			t.Errorf("percentFor(%d, %d) = %d, want %d", c.live, c.rate, got, c.want)
		}
	}
}
