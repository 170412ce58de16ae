package upstream

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// draws is how often chance is asked for an endpoint that may be used before all are looked at.
const draws = 4

// level is the endpoints of one priority, at least one. It is immutable.
type level struct {
	endpoints []*Endpoint
	// prob and alias make a draw by weight cost the same for any number of endpoints (Vose's alias method): endpoint i is
	// kept with probability prob[i] in 2^32, else alias[i] is taken. Nil: all weights are equal.
	prob  []uint32
	alias []int32
	// ring or maglev is set in clusters that go by keys.
	ring   *ring
	maglev maglev
}

// newLevel makes a level of endpoints with weights, of which none is zero.
func newLevel(endpoints []*Endpoint, weights []float64) level {
	l := level{endpoints: endpoints}
	if len(endpoints) < 2 || slices.Min(weights) == slices.Max(weights) {
		return l
	}
	n := len(endpoints)
	total := 0.0
	for _, w := range weights {
		total += w
	}
	scaled := make([]float64, n)
	var small, large []int
	for i, w := range weights {
		scaled[i] = w * float64(n) / total
		if scaled[i] < 1 {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	l.prob, l.alias = make([]uint32, n), make([]int32, n)
	for i := range n {
		l.prob[i], l.alias[i] = 1<<32-1, int32(i)
	}
	for len(small) > 0 && len(large) > 0 {
		s, g := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		l.prob[s], l.alias[s] = uint32(scaled[s]*(1<<32-1)), int32(g)
		if scaled[g] -= 1 - scaled[s]; scaled[g] < 1 {
			large = large[:len(large)-1]
			small = append(small, g)
		}
	}
	return l
}

// chooser is how endpoints of a level are chosen.
type chooser struct {
	choices int            // how many are drawn, of which the least busy is taken
	turn    *atomic.Uint64 // if set, each takes its turn where weights are equal
}

// draw returns an endpoint with a probability that is the share of its weight.
func (l *level) draw(c chooser) *Endpoint {
	if c.turn != nil && l.prob == nil {
		return l.endpoints[c.turn.Add(1)%uint64(len(l.endpoints))]
	}
	i := rand.IntN(len(l.endpoints))
	if l.prob != nil && rand.Uint32() > l.prob[i] {
		i = int(l.alias[i])
	}
	return l.endpoints[i]
}

// drawUsable is draw of one that was not tried, is another than not and is not passed over; nil if chance does not have it.
func (l *level) drawUsable(c chooser, tried []*Endpoint, not *Endpoint, now int64) *Endpoint {
	for range draws {
		if e := l.draw(c); e != not && e.usable(now) && !slices.Contains(tried, e) {
			return e
		}
	}
	return nil
}

// choose returns the least busy of those that were drawn; nil if none may be used.
func (l *level) choose(c chooser, tried []*Endpoint, now int64) *Endpoint {
	best := l.drawUsable(c, tried, nil, now)
	if best == nil {
		return l.scan(func(e *Endpoint) bool { return e.usable(now) && !slices.Contains(tried, e) })
	}
	if len(l.endpoints) == 1 {
		return best
	}
	for range c.choices - 1 {
		if e := l.drawUsable(c, tried, best, now); e != nil && e.active.Load() < best.active.Load() {
			best = e
		}
	}
	return best
}

// scan returns the first that may be used, from a random place on.
func (l *level) scan(may func(*Endpoint) bool) *Endpoint {
	return l.scanFrom(rand.IntN(len(l.endpoints)), may)
}

// scanFrom is scan from a place on.
func (l *level) scanFrom(at int, may func(*Endpoint) bool) *Endpoint {
	n := len(l.endpoints)
	for i := range n {
		if e := l.endpoints[(at+i)%n]; may(e) {
			return e
		}
	}
	return nil
}

// chooseFrom returns an endpoint of the first level that has one which was not tried and is not passed over; if there is
// none in any, one that is passed over, and at last one that was tried: it may have been no fault of its own. nil if there
// are no endpoints.
func chooseFrom(levels []level, c chooser, tried []*Endpoint, now int64) *Endpoint {
	for i := range levels {
		if e := levels[i].choose(c, tried, now); e != nil {
			return e
		}
	}
	for _, may := range [...]func(*Endpoint) bool{
		func(e *Endpoint) bool { return !slices.Contains(tried, e) },
		func(*Endpoint) bool { return true },
	} {
		for i := range levels {
			if e := levels[i].scan(may); e != nil {
				return e
			}
		}
	}
	return nil
}
