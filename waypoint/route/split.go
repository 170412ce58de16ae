package route

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// Split chooses among several by weight. It may be used by any number of goroutines.
type Split struct {
	until []uint64 // the sum of the weights up to each, included
	at    atomic.Uint64
}

// NewSplit makes a Split of weights; nil if they are all zero, or there are none.
func NewSplit(weights []uint32) *Split {
	s := &Split{until: make([]uint64, len(weights))}
	sum := uint64(0)
	for i, w := range weights {
		sum += uint64(w)
		s.until[i] = sum
	}
	if sum == 0 {
		return nil
	}
	s.at.Store(rand.Uint64()) // several proxies do not walk in step
	return s
}

// goldenRatio is 2^64 divided by the golden ratio.
const goldenRatio = 0x9E3779B97F4A7C15

// Choose returns the index of one of the weights. It walks over [0, 2^64) in steps of the golden ratio (a Weyl sequence), so
// that over any run of choices each gets its share but for one or two, in an order without a period: closer than chance
// would be, and with nothing for a client to fall into step with. A choice costs one atomic addition.
func (s *Split) Choose() int {
	if len(s.until) == 1 {
		return 0
	}
	x, _ := bits.Mul64(s.at.Add(goldenRatio), s.until[len(s.until)-1])
	i, found := slices.BinarySearch(s.until, x)
	for found && i < len(s.until) && s.until[i] == x { // x is the first of those after
		i++
	}
	return i
}
