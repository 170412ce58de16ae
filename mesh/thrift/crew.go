package thrift

import (
	"sync"
	"time"
)

// crewLinger is how long a goroutine waits for more work. Those that wait take turns, so that about as many stay as there are
// jobs in that time: few where it matters little, and no more after a burst than before it.
const crewLinger = 100 * time.Millisecond

// Crew runs functions in goroutines that are used again, so that their stacks need not grow for each connection or request. Do may be
// called concurrently.
type Crew struct {
	stop <-chan struct{} // ends waiting
	jobs chan func()     // unbuffered: a send succeeds only if a goroutine waits
	wg   *sync.WaitGroup // counts the goroutines
}

// NewCrew returns a crew whose goroutines wg counts; those that wait for work end when stop is closed.
func NewCrew(stop <-chan struct{}, wg *sync.WaitGroup) *Crew {
	return &Crew{stop: stop, jobs: make(chan func()), wg: wg}
}

// Do runs f in a goroutine of its own, at once.
func (c *Crew) Do(f func()) {
	select {
	case c.jobs <- f:
	default:
		c.wg.Go(func() {
			f()
			c.linger()
		})
	}
}

// linger waits for work and does it, until there has been none for a while.
func (c *Crew) linger() {
	timer := time.NewTimer(crewLinger)
	defer timer.Stop()
	for {
		select {
		case f := <-c.jobs:
			f()
			timer.Reset(crewLinger)
		case <-timer.C:
			return
		case <-c.stop:
			return
		}
	}
}
