package buffer

import "testing"

func TestSizes(t *testing.T) {
	for _, c := range []struct{ ask, want int }{
		{0, Tiny}, {1, Tiny}, {Tiny, Tiny}, {Tiny + 1, Small}, {Small, Small}, {Small + 1, Medium}, {Medium, Medium},
		{Medium + 1, Large}, {Large, Large}, {Large + 1, Large},
	} {
		before := InUse()
		b := Get(c.ask)
		if len(b) != c.want || cap(b) != c.want {
			t.Errorf("Get(%d): length %d, capacity %d, want %d", c.ask, len(b), cap(b), c.want)
		}
		if got := InUse() - before; got != int64(c.want) {
			t.Errorf("Get(%d): in use %d more, want %d", c.ask, got, c.want)
		}
		Put(b[:0])
		if got := InUse() - before; got != 0 {
			t.Errorf("Put after Get(%d): in use %d more, want 0", c.ask, got)
		}
	}
}

func TestPutForeignPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("Put of a buffer that was not lent did not panic")
		}
	}()
	Put(make([]byte, 100))
}

func TestNoAllocation(t *testing.T) {
	if n := testing.AllocsPerRun(1000, func() { Put(Get(Small)) }); n > 0.1 {
		t.Errorf("Get and Put allocate %v times", n)
	}
}
