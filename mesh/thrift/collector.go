package thrift

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// collectorTick is how often it is looked at how much memory is in use.
	collectorTick = 250 * time.Millisecond
	// garbage is how many bytes may be waiting to be collected, where Go by itself lets there be as many as are in use.
	garbage = 8 << 20
	// leastPercent keeps collecting from taking more than a small share of the processor time, however much is in use.
	leastPercent = 25
	// usualPercent is Go's default (GOGC).
	usualPercent = 100
	// collectEvery is how long garbage may wait when much is being allocated, such as for thousands of new connections a second.
	// Each collection makes who asks meanwhile wait for milliseconds.
	collectEvery = 500 * time.Millisecond
	// leastHeap is what Go's percentage is of at least.
	leastHeap = 4 << 20
)

// percentFor returns the GOGC for so many bytes in use, stacks included, where so many are allocated in a second and much may wait
// then: less of it the more is in use, so that memory does not grow with both.
func percentFor(live, rate, much uint64) int {
	usual := min(usualPercent, max(leastPercent, 100*garbage/max(live, 1)))
	wait := min(much, much+garbage-min(live, much), rate*uint64(collectEvery/time.Millisecond)/1000)
	return int(max(usual, 100*wait/max(live, leastHeap)))
}

// Collector has garbage be collected earlier the more memory is in use, and later the more is allocated, until ctx ends. much is
// how many bytes of garbage may wait then. It does nothing where GOGC is set otherwise, and returns nil in any case.
func Collector(ctx context.Context, much uint64) error {
	if now := debug.SetGCPercent(usualPercent); now != usualPercent {
		debug.SetGCPercent(now)
		return nil
	}
	defer debug.SetGCPercent(usualPercent)
	tick := time.NewTicker(collectorTick)
	defer tick.Stop()
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}}
	metrics.Read(samples)
	allocated, at := samples[0].Value.Uint64(), time.Now()
	was := usualPercent
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		metrics.Read(samples)
		total, now := samples[0].Value.Uint64(), time.Now()
		live := samples[1].Value.Uint64() + samples[2].Value.Uint64() // what Go takes its percentage of
		rate := uint64(float64(total-allocated) / now.Sub(at).Seconds())
		allocated, at = total, now
		// Each change stops the world for a moment.
		if n := percentFor(live, rate, much); n < was*9/10 || n > was*11/10 || n == usualPercent && n != was {
			debug.SetGCPercent(n)
			if was > usualPercent && n <= usualPercent {
				debug.FreeOSMemory() // what waited would wait for as long as nothing is allocated
			}
			was = n
		}
	}
}
