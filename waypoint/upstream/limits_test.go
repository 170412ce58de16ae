package upstream

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// TestPanic: once more endpoints are ejected than is good, ejections do not count; when enough have come back they do again.
func TestPanic(t *testing.T) {
	settings := &config.Settings{Panic: 50, Outlier: &config.Outlier{Consecutive5xx: 1, Enforce5xx: 100, BaseTime: time.Hour, MaxTime: time.Hour, MaxPercent: 100}}
	c := clusterOf(t, settings, []*config.Endpoint{plain(0, 1), plain(1, 1), plain(2, 1), plain(3, 1)})
	var all []*Endpoint
	c.Endpoints(func(e *Endpoint) { all = append(all, e) })
	chosen := func() map[*Endpoint]bool {
		out := map[*Endpoint]bool{}
		for range 400 {
			out[mustChoose(t, c)] = true
		}
		return out
	}
	all[0].Responded(500)
	all[1].Responded(500)
	if got := chosen(); len(got) != 2 || got[all[0]] || got[all[1]] {
		t.Errorf("%d of 4 are chosen while two are ejected; want the other two", len(got))
	}
	all[2].Responded(500)
	if got := chosen(); len(got) != 4 {
		t.Errorf("%d of 4 are chosen while three are ejected and half are to be in; want all", len(got))
	}
	c.panic.Store(now() - 1) // the first has come back
	all[0].health.ejected.Store(now() - 1)
	if got := chosen(); len(got) != 2 || !got[all[0]] || !got[all[3]] {
		t.Errorf("%d of 4 are chosen once one has come back; want it and the one that was never out", len(got))
	}
}
