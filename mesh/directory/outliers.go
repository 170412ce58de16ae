package directory

import (
	"sync/atomic"
	"time"
)

// When endpoints are ejected.
const (
	// ejectAfter is how many connections in a row an endpoint must have failed to open; one that was ejected before and has
	// not opened any since it is back is ejected again at the first failure.
	ejectAfter = 5
	// failureMemory is how long a failure counts.
	failureMemory = time.Minute
	// ejectFirst is how long an endpoint is ejected the first time. The time doubles with each time that follows, until
	// the endpoint has worked for as long as it was out.
	ejectFirst = 10 * time.Second
	ejectMost  = 5 * time.Minute
	// ejectShare: at most one in so many endpoints of a service is ejected at a time, so that what is left can carry the
	// load, and a fault of the proxy's own is not taken for one of every endpoint.
	ejectShare = 2
)

// outliers are endpoints of one service to which connections could not be opened of late. All belongs to the set's mu
// but what is atomic.
type outliers struct {
	byUID   map[string]*outlier
	watched atomic.Int32 // len(byUID)
	out     atomic.Int32 // how many are ejected
	back    atomic.Int64 // when the first of them comes back, as Directory.now; 0 if none is out
}

// outlier is one endpoint's record.
type outlier struct {
	failures int           // in a row
	last     time.Duration // when the last one was
	times    int           // how often it was ejected in a row
	term     time.Duration // how long the last time
	until    time.Duration // when it comes back; 0 if it is not ejected
	returned time.Duration // when it came back
	unproven bool          // no connection was opened since
}

// Failed says that a connection to an endpoint of a service could not be opened, and that this is the endpoint's fault.
// It returns for how long the endpoint is ejected because of that; zero if it is not. An ejected endpoint is picked only
// if no other is left.
func (d *Directory) Failed(service ServiceKey, uid string) time.Duration {
	set, ok := d.endpoints.Load(service)
	if !ok {
		return 0
	}
	return set.failed(uid, d.now())
}

// Succeeded says that a connection to an endpoint of a service was opened. It takes no lock unless an endpoint of that
// service has failed of late.
func (d *Directory) Succeeded(service ServiceKey, uid string) {
	if set, ok := d.endpoints.Load(service); ok && set.outliers.watched.Load() > 0 {
		set.succeeded(uid, d.now())
	}
}

// Ejected counts the endpoints of all services that are ejected now.
func (d *Directory) Ejected() int {
	n := 0
	for _, set := range d.endpoints.All() {
		set.readmit(d.now)
		n += int(set.outliers.out.Load())
	}
	return n
}

// now is the time since the directory was made, at least 1.
func (d *Directory) now() time.Duration { return time.Since(d.start) + 1 }

func (s *endpointSet) failed(uid string, now time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.all.find(uid)
	if !ok || s.service == nil {
		return 0
	}
	o := s.outliers.record(uid)
	if o.until != 0 {
		return 0
	}
	if now-o.last > failureMemory {
		o.failures = 0
	}
	o.failures++
	o.last = now
	if o.failures < ejectAfter && !o.unproven || !s.mayEjectLocked() {
		return 0
	}
	o.term = min(ejectFirst<<min(o.times, 16), ejectMost)
	o.times++
	o.until = now + o.term
	s.outliers.out.Add(1)
	s.outliers.schedule()
	w := s.all.list.at(i)
	for _, v := range s.made {
		v.change(s, w, w)
	}
	return o.term
}

// mayEjectLocked tells whether one more may be out. It counts, since it is asked seldom.
func (s *endpointSet) mayEjectLocked() bool {
	n := 0
	for i := range s.all.list.n {
		if s.service.Balancing.balanced(s.all.list.at(i)) {
			n++
		}
	}
	return (int(s.outliers.out.Load())+1)*ejectShare <= n
}

func (s *endpointSet) succeeded(uid string, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.outliers.byUID[uid]
	switch {
	case o == nil:
	case o.until != 0:
		// The connection was begun before, or nothing else was left.
	case o.times > 0 && now-o.returned < o.term:
		o.failures, o.unproven = 0, false
	default:
		s.outliers.forget(uid)
	}
}

// readmit brings back those whose time is over. It costs one look unless there are some.
func (s *endpointSet) readmit(now func() time.Duration) {
	back := time.Duration(s.outliers.back.Load())
	if back == 0 || back > now() {
		return
	}
	s.readmitAll(now())
}

func (s *endpointSet) readmitAll(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, o := range s.outliers.byUID {
		if o.until == 0 || o.until > now {
			continue
		}
		o.until, o.returned, o.failures, o.unproven = 0, now, 0, true
		s.outliers.out.Add(-1)
		if i, ok := s.all.find(uid); ok {
			w := s.all.list.at(i)
			for _, v := range s.made {
				v.change(s, w, w)
			}
		}
	}
	s.outliers.schedule()
}

func (o *outliers) record(uid string) *outlier {
	if o.byUID[uid] == nil {
		if o.byUID == nil {
			o.byUID = map[string]*outlier{}
		}
		o.byUID[uid] = &outlier{}
		o.watched.Add(1)
	}
	return o.byUID[uid]
}

// forget drops an endpoint's record. What is in views it leaves to the caller.
func (o *outliers) forget(uid string) {
	record := o.byUID[uid]
	if record == nil {
		return
	}
	delete(o.byUID, uid)
	o.watched.Add(-1)
	if record.until != 0 {
		o.out.Add(-1)
		o.schedule()
	}
}

func (o *outliers) ejected(uid string) bool {
	record := o.byUID[uid]
	return record != nil && record.until != 0
}

// schedule sets back.
func (o *outliers) schedule() {
	var first time.Duration
	for _, record := range o.byUID {
		if record.until != 0 && (first == 0 || record.until < first) {
			first = record.until
		}
	}
	o.back.Store(int64(first))
}
