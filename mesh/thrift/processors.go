// Package thrift has a data plane take of the machine what its work needs: processors, memory, and stacks that grow. What Processors
// and Collector set holds for the whole process, so that each may run once at a time in one.
package thrift

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// processorsTick is how often the processors in use are looked at.
	processorsTick = 50 * time.Millisecond
	// muchUsed is the share of the processors in use from which on they are doubled: almost all, since where the machine itself
	// is busy another thread only takes turns with the first one.
	muchUsed = 0.9
	// littleUsed is the share below which they are halved once it has lasted for littleFor.
	littleUsed = 0.4
	littleFor  = 500 * time.Millisecond
)

// processors says how many processors Go's scheduler is to use: as few as the work needs. With more it wakes another thread
// for each message, in vain: of one connection's cost that is a quarter.
type processors struct {
	most, now int
	little    time.Duration // for how long little was used
}

// next takes the processor time that was used in the span since the last call, and whether somebody waited for others meanwhile. It
// returns how many processors to use.
func (p *processors) next(used, span time.Duration, waited bool) int {
	if waited {
		p.now, p.little = p.most, 0
		return p.now
	}
	switch share := float64(used) / float64(span) / float64(p.now); {
	case share > muchUsed:
		p.now, p.little = min(2*p.now, p.most), 0
	case share >= littleUsed:
		p.little = 0
	default:
		if p.little += span; p.little >= littleFor {
			p.now, p.little = max(p.now/2, 1), 0
		}
	}
	return p.now
}

// Processors has the number of processors in use follow the work until ctx ends, and sets it back then. late, if not nil, says how
// often, ever, somebody who asks for little waited for others: then all are used. It returns an error if it cannot read what was used.
func Processors(ctx context.Context, late func() uint64) error {
	if late == nil {
		late = func() uint64 { return 0 }
	}
	most := runtime.GOMAXPROCS(0)
	if most == 1 {
		return nil
	}
	defer runtime.GOMAXPROCS(most)
	p := processors{most: most, now: most}
	tick := time.NewTicker(processorsTick)
	defer tick.Stop()
	before, waits, at := time.Duration(0), late(), time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		var usage unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
			return fmt.Errorf("read processor time: %w", err)
		}
		used, now := time.Duration(usage.Utime.Nano()+usage.Stime.Nano()), time.Now()
		old := p.now
		total := late()
		if n := p.next(used-before, now.Sub(at), total > waits); n != old {
			runtime.GOMAXPROCS(n)
		}
		before, waits, at = used, total, now
	}
}
