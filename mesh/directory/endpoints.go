package directory

import (
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
	mu       sync.Mutex // held while anything is changed; readers do not take it
	service  *Service   // nil while only endpoints are known
	all      members
	balanced int // how many of all balancing sends anything to
	made     map[viewKey]*view
	outliers outliers

	published atomic.Pointer[vec[*Workload]]    // all.list, for readers
	views     atomic.Pointer[map[viewKey]*view] // a copy of made, for readers
	affinity  atomic.Pointer[affinity]          // once a client was bound
}

// maxViews bounds the views of one service. A node proxy's clients are of one locality, or of a few; ports multiply them
// only where they are named.
const maxViews = 64

// put adds or replaces an endpoint.
func (s *endpointSet) put(w *Workload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.all.put(w)
	s.publishLocked()
	s.countLocked(old, w)
	if old != nil && renewed(old, w) {
		s.outliers.forget(w.UID)
	}
	for _, v := range s.made {
		v.change(s, old, w)
	}
}

// renewed tells whether what is known of the failures of old says nothing about w: it is another pod of the same name, or
// the control plane has seen it recover.
func renewed(old, w *Workload) bool {
	return w.Healthy && !old.Healthy || !slices.Equal(old.Addrs, w.Addrs)
}

// remove takes an endpoint away, and reports whether the set is of no more use.
func (s *endpointSet) remove(uid string) (empty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.all.remove(uid); old != nil {
		s.publishLocked()
		s.countLocked(old, nil)
		s.outliers.forget(uid)
		for _, v := range s.made {
			v.change(s, old, nil)
		}
	}
	return s.service == nil && s.all.list.n == 0
}

// setService says what the set is of, nil if that is gone, and reports whether the set is of no more use.
func (s *endpointSet) setService(svc *Service) (empty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.service != nil && (svc == nil || !s.service.ranksAlike(svc)) {
		s.made = nil
		s.views.Store(nil)
	}
	recount := svc != nil && (s.service == nil || s.service.Balancing.AllowUnhealthy != svc.Balancing.AllowUnhealthy)
	s.service = svc
	if recount {
		s.balanced = 0
		for i := range s.all.list.n {
			s.countLocked(nil, s.all.list.at(i))
		}
	}
	return svc == nil && s.all.list.n == 0
}

// countLocked has balanced follow a change of one endpoint; either may be nil. While the service is not known there is
// nothing to count by.
func (s *endpointSet) countLocked(old, w *Workload) {
	if s.service == nil {
		return
	}
	if old != nil && s.service.Balancing.balanced(old) {
		s.balanced--
	}
	if w != nil && s.service.Balancing.balanced(w) {
		s.balanced++
	}
}

// ranksAlike tells whether the views of s are those of o.
func (s *Service) ranksAlike(o *Service) bool {
	return s.Balancing.equal(o.Balancing) && s.Families == o.Families && slices.Equal(s.Ports, o.Ports)
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
	v := newView(s, key)
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
