package directory

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// endpointSet is the endpoints of one service. It exists as long as the service or one of its endpoints is known, in
// whatever order they come.
//
// Who picks an endpoint reads a view: the endpoints that may be picked, sorted by how near they are to the client. A view
// is made when a client of that locality first asks, and from then on kept up to date with each change, so that neither
// a pick nor a change depends on the number of endpoints.
type endpointSet struct {
	mu      sync.Mutex // held while anything is changed; readers do not take it
	service *Service   // nil while only endpoints are known
	all     members
	made    map[viewKey]*view

	published atomic.Pointer[vec[*Workload]]    // all.list, for readers
	views     atomic.Pointer[map[viewKey]*view] // a copy of made, for readers
}

// maxViews bounds the views of one service. A node proxy's clients are of one locality, or of a few.
const maxViews = 32

// viewKey is what of a client matters to a service's balancing; the rest is empty.
type viewKey struct {
	locality               Locality
	node, cluster, network string
}

// view is a service's endpoints as clients with one viewKey see them.
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

// put adds or replaces an endpoint.
func (s *endpointSet) put(w *Workload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.all.put(w)
	s.publishLocked()
	for _, v := range s.made {
		v.change(s.service, old, w)
	}
}

// remove takes an endpoint away, and reports whether the set is of no more use.
func (s *endpointSet) remove(uid string) (empty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.all.remove(uid); old != nil {
		s.publishLocked()
		for _, v := range s.made {
			v.change(s.service, old, nil)
		}
	}
	return s.service == nil && s.all.list.n == 0
}

// setService says what the set is of, nil if that is gone, and reports whether the set is of no more use.
func (s *endpointSet) setService(svc *Service) (empty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.service != nil && (svc == nil || !s.service.Balancing.equal(svc.Balancing)) {
		s.made = nil
		s.views.Store(nil)
	}
	s.service = svc
	return svc == nil && s.all.list.n == 0
}

func (b Balancing) equal(c Balancing) bool {
	return b.Mode == c.Mode && b.AllowUnhealthy == c.AllowUnhealthy && slices.Equal(b.Preference, c.Preference)
}

func (s *endpointSet) publishLocked() {
	list := s.all.list
	s.published.Store(&list)
}

// list returns all endpoints, healthy or not.
func (s *endpointSet) list() vec[*Workload] {
	if list := s.published.Load(); list != nil {
		return *list
	}
	return vec[*Workload]{}
}

// ranks returns the view's ranks of clients with key, and makes the view if need be; nil if the service is not known.
func (s *endpointSet) ranks(key viewKey) []rank {
	if views := s.views.Load(); views != nil {
		if v := (*views)[key]; v != nil {
			return *v.ranks.Load()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.service == nil {
		return nil
	}
	v := s.made[key]
	if v == nil {
		v = s.makeViewLocked(key)
	}
	return *v.ranks.Load()
}

func (s *endpointSet) makeViewLocked(key viewKey) *view {
	n := rankCount(s.service.Balancing)
	v := &view{key: key, classes: make([][]*class, n), where: map[string]int{}}
	for i := range s.all.list.n {
		w := s.all.list.at(i)
		if r, ok := rankOf(s.service.Balancing, key, w); ok {
			v.insert(w, r)
		}
	}
	ranks := make([]rank, n)
	for i := range ranks {
		ranks[i] = v.snapshot(i)
	}
	v.ranks.Store(&ranks)

	if s.made == nil || len(s.made) >= maxViews {
		s.made = map[viewKey]*view{}
	}
	s.made[key] = v
	published := make(map[viewKey]*view, len(s.made))
	for k, v := range s.made {
		published[k] = v
	}
	s.views.Store(&published)
	return v
}

// change takes old out of the view and puts w in; either may be nil.
func (v *view) change(svc *Service, old, w *Workload) {
	ranks := slices.Clone(*v.ranks.Load())
	if old != nil {
		if r, ok := v.where[old.UID]; ok {
			v.take(old, r)
			ranks[r] = v.snapshot(r)
		}
	}
	if w != nil {
		if r, ok := rankOf(svc.Balancing, v.key, w); ok {
			v.insert(w, r)
			ranks[r] = v.snapshot(r)
		}
	}
	v.ranks.Store(&ranks)
}

func (v *view) insert(w *Workload, r int) {
	exp := bits.Len32(w.Capacity) - 1
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
	exp := bits.Len32(old.Capacity) - 1
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
	}
	return out
}

// rankCount is the number of ranks that rankOf gives.
func rankCount(b Balancing) int {
	if b.Mode != ModeFailover {
		if b.Mode == ModeStrict && networkFirst(b) {
			return 2
		}
		return 1
	}
	if networkFirst(b) {
		return 2 * len(b.Preference)
	}
	return len(b.Preference) + 1
}

// networkFirst: a network in the first place is preferred to all that follows, but even ModeStrict does not require it,
// since a gateway leads to the other ones.
func networkFirst(b Balancing) bool { return len(b.Preference) > 0 && b.Preference[0] == ScopeNetwork }

// rankOf returns the rank of an endpoint for clients with key, 0 for the best, and whether it may be picked at all.
func rankOf(b Balancing, key viewKey, w *Workload) (int, bool) {
	if w.Capacity == 0 || !w.Healthy && !b.AllowUnhealthy {
		return 0, false
	}
	if b.Mode != ModeStrict && b.Mode != ModeFailover {
		return 0, true
	}
	preference, sameNetwork := b.Preference, true
	if networkFirst(b) {
		preference, sameNetwork = preference[1:], key.network == w.Network
	}
	shared := 0
	for shared < len(preference) && key.shares(preference[shared], w) {
		shared++
	}
	missing := len(preference) - shared
	if b.Mode == ModeStrict && missing > 0 {
		return 0, false
	}
	switch {
	case sameNetwork:
		return missing, true
	case b.Mode == ModeStrict:
		return 1, true
	}
	return len(preference) + 1 + missing, true
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

// keyFor returns the viewKey of a client: what the balancing asks about, and nothing else. Without a client nothing is
// known but the proxy's own network.
func keyFor(b Balancing, source *Workload, network string) viewKey {
	var k viewKey
	if b.Mode != ModeStrict && b.Mode != ModeFailover {
		return k
	}
	for _, s := range b.Preference {
		if s == ScopeNetwork {
			k.network = network
		}
		if source == nil {
			continue
		}
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
