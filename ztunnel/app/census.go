package app

import (
	"os"
	"runtime"
	"time"
)

// census is what the process holds. The last line of its log tells what it has not given back: tests want that to be nothing.
type census struct{ goroutines, descriptors int }

func takeCensus() census {
	c := census{goroutines: runtime.NumGoroutine()}
	// Without /proc nothing is counted.
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		c.descriptors = len(fds)
	}
	return c
}

// settle is how long what ends in the background gets at the end.
const settle = 500 * time.Millisecond

// left returns what is held beyond what was at the start, once that is nothing, or after settle.
func (c census) left() census {
	const step = 10 * time.Millisecond
	for waited := time.Duration(0); ; waited += step {
		now := takeCensus()
		l := census{now.goroutines - c.goroutines, now.descriptors - c.descriptors}
		if l.goroutines <= 0 || waited >= settle {
			return l
		}
		time.Sleep(step)
	}
}
