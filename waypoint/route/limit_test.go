package route

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// TestBucket follows a bucket of 5 to which 10 tokens come in a second.
func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBucket(LimitRule{Fill: 10, Interval: time.Second, Burst: 5})
		take := func(n int, left uint32, wait time.Duration) {
			t.Helper()
			for i := range n {
				q := b.Take()
				if want := left - uint32(i); wait == 0 && (q.Wait != 0 || q.Left != want) || wait != 0 && (q.Wait != wait || q.Left != 0) {
					t.Fatalf("request %d: %+v, want %d left, wait %v", i, q, want, wait)
				}
			}
		}
		take(5, 4, 0)
		take(3, 0, 100*time.Millisecond) // who is refused takes nothing
		time.Sleep(40 * time.Millisecond)
		take(1, 0, 60*time.Millisecond)
		time.Sleep(60 * time.Millisecond)
		take(1, 0, 0)
		take(1, 0, 100*time.Millisecond)
		time.Sleep(time.Hour) // it holds no more than 5
		take(5, 4, 0)
		take(1, 0, 100*time.Millisecond)
		// Over 10 s, with one who asks all the time, 10 a second come through.
		passed := 0
		for range 10_000 {
			if b.Take().Wait == 0 {
				passed++
			}
			time.Sleep(time.Millisecond)
		}
		if passed < 99 || passed > 100 {
			t.Errorf("%d in 10 s, want 100", passed)
		}
		if q := b.Take(); q.Full > 500*time.Millisecond || q.Full < 400*time.Millisecond {
			t.Errorf("a bucket that is empty is full in %v", q.Full)
		}
	})
}

// TestBucketShared: however many ask at the same time, no more come through than there are tokens.
func TestBucketShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBucket(LimitRule{Fill: 1, Interval: time.Hour, Burst: 1000})
		var passed atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					if b.Take().Wait == 0 {
						passed.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if n := passed.Load(); n != 1000 {
			t.Errorf("%d of 1000 tokens were taken", n)
		}
	})
}

// TestBucketBounds: the slowest and the fastest bucket that there can be.
func TestBucketBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, r := range []LimitRule{
			{Fill: 1, Interval: 24 * time.Hour, Burst: math.MaxUint32}, {Fill: math.MaxUint32, Interval: time.Nanosecond, Burst: math.MaxUint32},
			{Fill: 1, Interval: math.MaxInt64, Burst: 1},
		} {
			if q := NewBucket(r).Take(); q.Wait != 0 && r.Interval < maxDepth {
				t.Errorf("%+v: the first request waits %v", r, q.Wait)
			}
		}
	})
}

// TestTell: what a response says of the bucket.
func TestTell(t *testing.T) {
	l := &Limit{LimitRule: LimitRule{Burst: 20, Headers: true, RetryAfter: true}}
	var h message.Fields
	l.Tell(&h, Quota{Wait: 1200 * time.Millisecond, Full: 9 * time.Second})
	for name, want := range map[string]string{"retry-after": "2", "x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	backend := message.Fields{{Name: "x-ratelimit-limit", Value: "7"}}
	l.Tell(&backend, Quota{Left: 3})
	if len(backend) != 1 || backend[0].Value != "7" {
		t.Errorf("what the backend said became %v", backend)
	}
}

func BenchmarkBucket(b *testing.B) {
	bucket := NewBucket(LimitRule{Fill: 1_000_000, Interval: 50 * time.Millisecond, Burst: 1_000_000})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			bucket.Take()
		}
	})
}
