package hbone

import (
	"errors"
	"sync/atomic"
)

// PoolCounts count what pools have done. Several pools may share one.
type PoolCounts struct {
	// Hits are requests for which a connection was ready; Waits those that had to wait for one.
	Hits, Waits atomic.Uint64
	// Dials are attempts to connect.
	Dials atomic.Uint64

	failures [len(failureStages)]atomic.Uint64
}

// failureStages are those at which a dial can fail.
var failureStages = [...]string{StageConnect, StageTLS, StageSettings}

// failed counts a dial that has failed.
func (c *PoolCounts) failed(err error) {
	var dial *DialError
	if !errors.As(err, &dial) {
		return // the pool was closed meanwhile
	}
	for i, stage := range failureStages {
		if stage == dial.Stage {
			c.failures[i].Add(1)
		}
	}
}

// Failures calls f with the number of dials that failed at each stage.
func (c *PoolCounts) Failures(f func(stage string, n uint64)) {
	for i, stage := range failureStages {
		f(stage, c.failures[i].Load())
	}
}
