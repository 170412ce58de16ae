package upstream

import (
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// ring is a level's endpoints on a circle of hashes: a key belongs to the first point at or after it. When an endpoint goes, only its keys
// go elsewhere.
type ring struct {
	points []uint64 // ascending
	owners []int32  // of points
}

// maglev is a level's endpoints in a table whose size is a prime, each in its share of the places (Eisenbud et al., NSDI 2016). A pick
// costs the same for any number of endpoints; when one goes, a few keys of others go elsewhere too.
type maglev []int32

// newRing puts endpoints on a ring of at least size points. All waypoints make the same of the same endpoints.
func newRing(endpoints []*Endpoint, weights []float64, size uint64) *ring {
	least, total := math.Inf(1), 0.0
	for _, w := range weights {
		least, total = min(least, w), total+w
	}
	// The one of the least weight gets a power of two of points, and as few as will do: then it hardly ever changes how many points
	// those have who stay when another comes or goes.
	perWeight := math.Exp2(max(0, math.Ceil(math.Log2(least/total*float64(size))))) / least
	if most := float64(config.MaxRing); perWeight*total > most {
		perWeight = most / total
	}
	r := &ring{}
	type point struct {
		at    uint64
		owner int32
	}
	all := make([]point, 0, int(perWeight*total)+len(endpoints))
	due, given := 0.0, 0.0
	for i, e := range endpoints {
		name := append([]byte(e.key.addr.String()), '_')
		due += perWeight * weights[i]
		for n := int64(0); given < due; n++ {
			all = append(all, point{xxhash.Sum64(strconv.AppendInt(name, n, 10)), int32(i)})
			given++
		}
	}
	slices.SortFunc(all, func(a, b point) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return strings.Compare(endpoints[a.owner].key.addr.String(), endpoints[b.owner].key.addr.String())
	})
	r.points, r.owners = make([]uint64, len(all)), make([]int32, len(all))
	for i, p := range all {
		r.points[i], r.owners[i] = p.at, p.owner
	}
	return r
}

// newMaglev fills a table of a prime number of places.
func newMaglev(endpoints []*Endpoint, weights []float64, size uint64) maglev {
	type entry struct {
		owner        int32
		offset, skip uint64
		next         uint64
		weight, due  float64
	}
	order := make([]int, len(endpoints))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return endpoints[a].key.addr.Compare(endpoints[b].key.addr) })
	entries := make([]entry, len(endpoints))
	most := slices.Max(weights)
	for i, of := range order {
		name := endpoints[of].key.addr.String()
		h := xxhash.Sum64String(name)
		second := xxhash.Sum64(append([]byte(name), '#'))
		entries[i] = entry{owner: int32(of), offset: h % size, skip: second%(size-1) + 1, weight: weights[of]}
	}
	table := make(maglev, size)
	for i := range table {
		table[i] = -1
	}
	for round, filled := 1.0, uint64(0); filled < size; round++ {
		for i := range entries {
			e := &entries[i]
			if round*e.weight < e.due {
				continue // its share is less than that of others
			}
			e.due += most
			for {
				place := (e.offset + e.next*e.skip) % size
				e.next++
				if table[place] < 0 {
					table[place] = e.owner
					filled++
					break
				}
			}
			if filled == size {
				break
			}
		}
	}
	return table
}

// looks bounds the places that are looked at beyond the one that a key has; there are as many points as makes it nearly sure that
// another endpoint is among them.
const looks = 128

// keyed returns the endpoint of a key or, if that may not be used, the one that the key has without it; nil if it is not found soon.
func (l *level) keyed(key uint64, may func(*Endpoint) bool) *Endpoint {
	switch {
	case l.ring != nil:
		i, _ := slices.BinarySearch(l.ring.points, key)
		n := len(l.ring.points)
		for k := range min(n, looks) {
			if e := l.endpoints[l.ring.owners[(i+k)%n]]; may(e) {
				return e
			}
		}
	case l.maglev != nil:
		n := uint64(len(l.maglev))
		for k := range uint64(looks) {
			if e := l.endpoints[l.maglev[(key+k*(key>>32|1))%n]]; may(e) {
				return e
			}
		}
	}
	return nil
}

// ChooseFor is Choose for a request with a key: requests of one key go to the same endpoint, from whatever waypoint, as long as that
// endpoint may be used. It is Choose if the cluster does not go by keys.
func (c *Cluster) ChooseFor(key uint64, tried []*Endpoint) (*Endpoint, error) {
	s, at := c.state.Load(), now()
	if b := s.settings.Balancer; b != config.RingHash && b != config.Maglev {
		return c.Choose(tried)
	}
	may := func(e *Endpoint) bool { return e.usable(at) && !slices.Contains(tried, e) }
	for i := range s.levels {
		l := &s.levels[i]
		if e := l.keyed(key, may); e != nil {
			return e, nil
		}
		if e := l.scanFrom(int(bits.RotateLeft64(key, 32)%uint64(len(l.endpoints))), may); e != nil {
			return e, nil
		}
	}
	return c.Choose(tried)
}
