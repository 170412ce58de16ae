package app

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
)

// percentFor returns the GOGC for so many bytes in use.
func percentFor(live uint64) int {
	return int(min(usualPercent, max(leastPercent, 100*garbage/max(live, 1))))
}

// runCollector has garbage be collected earlier the more memory is in use, until the context ends. Only one may run in a
// process. It does nothing where GOGC is set otherwise.
func runCollector(ctx context.Context) error {
	if now := debug.SetGCPercent(usualPercent); now != usualPercent {
		debug.SetGCPercent(now)
		return nil
	}
	defer debug.SetGCPercent(usualPercent)
	tick := time.NewTicker(collectorTick)
	defer tick.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	was := usualPercent
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		metrics.Read(live)
		// Each change stops the world for a moment.
		if n := percentFor(live[0].Value.Uint64()); n < was*9/10 || n > was*11/10 || n == usualPercent && n != was {
			debug.SetGCPercent(n)
			was = n
		}
	}
}
