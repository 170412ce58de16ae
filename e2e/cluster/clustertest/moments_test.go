package clustertest

import (
	"math/rand/v2"
	"os"
	"time"
)

// moments are when an `up` is cut off, counted from its start. A warm one takes about ten seconds; the first half second
// holds most of what is made by hand: namespaces, links, cgroups, mounts.
func moments() []time.Duration {
	if os.Getenv("AMBIT_SOAK") == "" {
		return []time.Duration{1200 * time.Millisecond, 3 * time.Second}
	}
	var out []time.Duration
	for i := range 40 {
		limit := 10 * time.Second
		if i%2 == 0 {
			limit = 2 * time.Second
		}
		out = append(out, time.Duration(rand.Int64N(int64(limit))))
	}
	return out
}
