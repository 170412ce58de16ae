package leaktest

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()      {}
func (r *recorder) Error(...any) { r.failed = true }

func TestCheck(t *testing.T) {
	const limit = 2 * time.Second
	for _, tt := range []struct {
		name string
		ends time.Duration
		want bool
	}{
		{"on its way out", limit / 2, false},
		{"left", 2 * limit, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				others := goleak.IgnoreCurrent()
				go time.Sleep(tt.ends)
				r := recorder{TB: t}
				check(&r, limit, []goleak.Option{others})
				time.Sleep(tt.ends) // of the bubble's clock: all ends in it
				if r.failed != tt.want {
					t.Errorf("failed: %v, want %v", r.failed, tt.want)
				}
			})
		})
	}
}
