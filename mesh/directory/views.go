package directory

import (
	"math/bits"
	"net/netip"
	"slices"
	"sync/atomic"
)

// viewKey is what of a client and of what it asks for matters to a service's balancing; the rest is empty.
type viewKey struct {
	locality               Locality
	node, cluster, network string
	// families are those in which the client can connect.
	families Families
	// port is the service port, if not every endpoint has it.
	port uint16
}

// view is a service's endpoints as clients with one viewKey see them: those that have an address and the port for them, and
// may be picked. It has the ranks twice: first those of the endpoints that work, then, as the last resort, those of the
// endpoints that are ejected.
type view struct {
	key   viewKey
	ranks atomic.Pointer[[]rank] // best first

	// The rest belongs to the set's mu.
	classes [][]*class     // by rank, then by power of two of the weight
	where   map[string]int // rank of an endpoint, by uid
}

// rank is the endpoints that are equally near.
type rank struct {
	weight  uint64 // of all
	n       int
	classes []classList
}

// classList is endpoints whose weights are in [1<<exp, 2<<exp).
type classList struct {
	exp    int
	weight uint64
	list   vec[*Workload]
}

type class struct {
	members
	exp    int
	weight uint64
}

// weightClass is the power of two of a weight that is not zero.
func weightClass(w *Workload) int { return bits.Len32(w.Capacity) - 1 }

func newView(s *endpointSet, key viewKey) *view {
	n := 2 * rankCount(s.service.Balancing)
	v := &view{key: key, classes: make([][]*class, n), where: map[string]int{}}
	type slot struct{ rank, exp int }
	sorted := map[slot][]*Workload{}
	for i := range s.all.list.n {
		w := s.all.list.at(i)
		if r, ok := v.place(s, w); ok {
			at := slot{r, weightClass(w)}
			sorted[at] = append(sorted[at], w)
			v.where[w.UID] = r
		}
	}
	for at, list := range sorted {
		c := &class{members: membersOf(list), exp: at.exp}
		for _, w := range list {
			c.weight += uint64(w.Capacity)
		}
		v.classes[at.rank] = append(v.classes[at.rank], c)
	}
	ranks := make([]rank, n)
	for i := range ranks {
		ranks[i] = v.snapshot(i)
	}
	v.ranks.Store(&ranks)
	return v
}

// change takes old out of the view and puts w in; either may be nil, and both the same if its place has changed.
func (v *view) change(s *endpointSet, old, w *Workload) {
	ranks := slices.Clone(*v.ranks.Load())
	if old != nil {
		if r, ok := v.where[old.UID]; ok {
			v.take(old, r)
			ranks[r] = v.snapshot(r)
		}
	}
	if w != nil {
		if r, ok := v.place(s, w); ok {
			v.insert(w, r)
			ranks[r] = v.snapshot(r)
		}
	}
	v.ranks.Store(&ranks)
}

// place returns the rank of an endpoint in the view, and whether it is in it.
func (v *view) place(s *endpointSet, w *Workload) (int, bool) {
	r, ok := rankOf(s.service, v.key, w)
	if ok && s.outliers.isOut(w.UID) {
		r += len(v.classes) / 2
	}
	return r, ok
}

func (v *view) insert(w *Workload, r int) {
	exp := weightClass(w)
	i := slices.IndexFunc(v.classes[r], func(c *class) bool { return c.exp == exp })
	if i < 0 {
		i = len(v.classes[r])
		v.classes[r] = append(v.classes[r], &class{exp: exp})
	}
	c := v.classes[r][i]
	c.put(w)
	c.weight += uint64(w.Capacity)
	v.where[w.UID] = r
}

func (v *view) take(old *Workload, r int) {
	exp := weightClass(old)
	i := slices.IndexFunc(v.classes[r], func(c *class) bool { return c.exp == exp })
	c := v.classes[r][i]
	c.remove(old.UID)
	c.weight -= uint64(old.Capacity)
	if c.list.n == 0 {
		v.classes[r] = slices.Delete(v.classes[r], i, i+1)
	}
	delete(v.where, old.UID)
}

// snapshot returns what readers see of one rank.
func (v *view) snapshot(r int) rank {
	out := rank{classes: make([]classList, len(v.classes[r]))}
	for i, c := range v.classes[r] {
		out.classes[i] = classList{exp: c.exp, weight: c.weight, list: c.list}
		out.weight += c.weight
		out.n += c.list.n
	}
	return out
}

// rankCount is the number of ranks that rankOf gives.
func rankCount(b Balancing) int {
	if b.Mode != ModeFailover {
		return 1
	}
	return len(b.Preference) + 1
}

// balanced tells whether balancing sends anything to w, from wherever.
func (b Balancing) balanced(w *Workload) bool {
	return w.Capacity > 0 && (w.Healthy || b.AllowUnhealthy)
}

// rankOf returns the rank of an endpoint for clients with key, 0 for the best, and whether it may be picked at all.
func rankOf(s *Service, key viewKey, w *Workload) (int, bool) {
	b := s.Balancing
	if !b.balanced(w) || !s.reachable(key, w) {
		return 0, false
	}
	if b.Mode != ModeStrict && b.Mode != ModeFailover {
		return 0, true
	}
	shared := 0
	for shared < len(b.Preference) && key.shares(b.Preference[shared], w) {
		shared++
	}
	missing := len(b.Preference) - shared
	return missing, b.Mode == ModeFailover || missing == 0
}

// reachable tells whether w has the port and, in their network, an address for clients with key, which they can connect to.
func (s *Service) reachable(key viewKey, w *Workload) bool {
	if key.port != 0 {
		if _, ok := s.TargetPort(w, key.port); !ok {
			return false
		}
	}
	if w.Network != key.network {
		return false // nor through its gateway: no data plane of ours goes through one
	}
	has := slices.ContainsFunc(w.Addrs, func(a netip.Addr) bool { return s.Families.allow(a) && key.families.allow(a) })
	return has || len(w.Addrs) == 0 && w.Hostname != ""
}

func (k viewKey) shares(s Scope, w *Workload) bool {
	switch s {
	case ScopeRegion:
		return k.locality.Region == w.Locality.Region
	case ScopeZone:
		return k.locality.Zone == w.Locality.Zone
	case ScopeSubzone:
		return k.locality.Subzone == w.Locality.Subzone
	case ScopeNode:
		return k.node == w.Node
	case ScopeCluster:
		return k.cluster == w.ClusterID
	case ScopeNetwork:
		return k.network == w.Network
	}
	return false
}

// keyFor returns the viewKey of a client and a port: what the balancing asks about, and nothing else. Without a client
// nothing is known but the proxy's own network.
func keyFor(b Balancing, port PortMapping, source *Workload, network string) viewKey {
	k := viewKey{network: network}
	if port.Target == 0 {
		k.port = port.Service
	}
	if source == nil {
		return k
	}
	k.families = source.families()
	if b.Mode != ModeStrict && b.Mode != ModeFailover {
		return k
	}
	for _, s := range b.Preference {
		switch s {
		case ScopeRegion:
			k.locality.Region = source.Locality.Region
		case ScopeZone:
			k.locality.Zone = source.Locality.Zone
		case ScopeSubzone:
			k.locality.Subzone = source.Locality.Subzone
		case ScopeNode:
			k.node = source.Node
		case ScopeCluster:
			k.cluster = source.ClusterID
		}
	}
	return k
}
