package proxy

import (
	"sync"
	"time"
)

// crewLinger is how long a goroutine waits for more work. Those that wait take turns, so that about as many stay as there are
// jobs in that time: few where it matters little, and no more after a burst than before it.
const crewLinger = 100 * time.Millisecond

// crew runs functions in goroutines that are used again, so that their stacks need not grow for each connection.
type crew struct {
	stop <-chan struct{} // ends waiting
	jobs chan func()     // unbuffered: a send succeeds only if a goroutine waits
	wg   *sync.WaitGroup // counts the goroutines
}

// do runs f in a goroutine of its own, at once.
func (c *crew) do(f func()) {
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
func (c *crew) linger() {
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
