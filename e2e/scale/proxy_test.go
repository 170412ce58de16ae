package scale

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/scale/subscriber"
)

func TestOrderOfRevisions(t *testing.T) {
	for _, c := range []struct {
		name      string
		revisions []string
		ok        bool
	}{
		{"in order", []string{"latest", "1", "2", "2", "10"}, true},
		{"merged", []string{"1", "7"}, true},
		{"back", []string{"9", "10", "9"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &proxy{known: map[string]seen{}, ended: map[string]subscriber.Event{}}
			for _, r := range c.revisions {
				p.note(subscriber.Event{Kind: subscriber.Pushed, Upserts: 1, Changes: []subscriber.Change{{Name: "a", Revision: r}}})
			}
			tally, err := p.now()
			if (err == nil) != c.ok {
				t.Errorf("revisions %v: %v", c.revisions, err)
			}
			if c.ok && tally.resources != len(c.revisions) {
				t.Errorf("counted %d resources, want %d", tally.resources, len(c.revisions))
			}
		})
	}
}

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for i := 100; i > 0; i-- {
		all = append(all, time.Duration(i))
	}
	if p50, p99 := percentile(all, 50), percentile(all, 99); p50 != 50 || p99 != 99 {
		t.Errorf("of 1 to 100: p50 %d, p99 %d", p50, p99)
	}
	if one := percentile(all[:1], 50); one != 100 {
		t.Errorf("of one value: %d", one)
	}
	if none := percentile(nil, 99); none != 0 {
		t.Errorf("of none: %d", none)
	}
}
