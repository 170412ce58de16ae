package proxy

import (
	"context"
	"errors"
	"testing"
)

// TestCutReachesTheRelay cuts connections before they are carried, while they are about to be, and afterwards.
func TestCutReachesTheRelay(t *testing.T) {
	cause := errors.New("cut")
	for _, when := range []string{"before", "meanwhile", "after", "after, twice"} {
		t.Run(when, func(t *testing.T) {
			tab := &table{conns: map[*conn]bool{}}
			c := tab.open(context.Background(), func(*conn) {})
			ctx := c.ctx
			if when == "before" {
				c.cut(cause)
				if got := context.Cause(ctx); got != cause {
					t.Errorf("the context's cause is %v", got)
				}
			}
			var aborted []error
			c.carried(func() func(error) {
				if ctx.Err() == nil {
					t.Error("what was needed until then is still there")
				}
				if when == "meanwhile" {
					c.cut(cause)
				}
				return func(err error) { aborted = append(aborted, err) }
			})
			if when == "after" || when == "after, twice" {
				c.cut(cause)
			}
			if when == "after, twice" {
				c.cut(errors.New("later")) // which the relay ignores
			}
			if len(aborted) == 0 || aborted[0] != cause {
				t.Errorf("the relay was ended by %v, want %v", aborted, cause)
			}
			if _, err := c.endOf(nil); err != nil {
				t.Errorf("a clean end is reported as %v", err)
			}
		})
	}
}
