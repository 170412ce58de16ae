package harness

import (
	"context"
	"fmt"
	"time"
)

// Until says when a condition counts as reached. It is the only meaning of waiting in scenarios.
type Until struct {
	// What is waited for; it starts the error.
	What string
	// Within is the deadline.
	Within time.Duration
	// InARow is how many checks must succeed one after the other; zero is 1.
	InARow int
	// Every is the time from one check's end to the next one's start; zero is 250 ms.
	Every time.Duration
}

// Await calls check until it has succeeded often enough. The error names what was waited for, the last failure and how far
// it had come.
func Await(ctx context.Context, until Until, check func(context.Context) error) error {
	if until.InARow == 0 {
		until.InARow = 1
	}
	if until.Every == 0 {
		until.Every = 250 * time.Millisecond
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, until.Within)
	defer cancel()
	var last error
	for row, checks := 0, 0; ; {
		checks++
		if err := check(ctx); err == nil {
			if row++; row == until.InARow {
				return nil
			}
		} else {
			row = 0
			// An error of a check that the deadline cut off says less than the one before.
			if ctx.Err() == nil || last == nil {
				last = err
			}
		}
		timer := time.NewTimer(until.Every)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if last == nil {
				last = ctx.Err()
			}
			return fmt.Errorf("%s: not within %s (%d checks, %d of %d in a row at the end): %w",
				until.What, time.Since(start).Round(100*time.Millisecond), checks, row, until.InARow, last)
		}
	}
}
