package directory

import (
	"container/heap"
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
	ejected ejections    // of byUID
	watched atomic.Int32 // len(byUID)
	out     atomic.Int32 // len(ejected)
	back    atomic.Int64 // when the first of them comes back, as Directory.now; 0 if none is out
}

// outlier is one endpoint's record.
type outlier struct {
	uid      string
	at       int           // in ejections, if it is ejected
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
	s.outliers.eject(o)
	w := s.all.list.at(i)
	for _, v := range s.made {
		v.change(s, w, w)
	}
	return o.term
}

// mayEjectLocked tells whether one more may be out.
func (s *endpointSet) mayEjectLocked() bool {
	return (len(s.outliers.ejected)+1)*ejectShare <= s.balanced
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
	for len(s.outliers.ejected) > 0 && s.outliers.ejected[0].until <= now {
		o := s.outliers.ejected[0]
		s.outliers.readmit(o)
		o.returned, o.failures, o.unproven = now, 0, true
		if i, ok := s.all.find(o.uid); ok {
			w := s.all.list.at(i)
			for _, v := range s.made {
				v.change(s, w, w)
			}
		}
	}
}

func (o *outliers) record(uid string) *outlier {
	if o.byUID[uid] == nil {
		if o.byUID == nil {
			o.byUID = map[string]*outlier{}
		}
		o.byUID[uid] = &outlier{uid: uid}
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
		o.readmit(record)
	}
}

// isOut tells whether an endpoint is ejected.
func (o *outliers) isOut(uid string) bool {
	record := o.byUID[uid]
	return record != nil && record.until != 0
}

// eject puts out an endpoint that is not; until is set.
func (o *outliers) eject(record *outlier) {
	heap.Push(&o.ejected, record)
	o.schedule()
}

// readmit brings back an endpoint that is out.
func (o *outliers) readmit(record *outlier) {
	heap.Remove(&o.ejected, record.at)
	record.until = 0
	o.schedule()
}

// schedule sets what readers see of ejected.
func (o *outliers) schedule() {
	o.out.Store(int32(len(o.ejected)))
	var first time.Duration
	if len(o.ejected) > 0 {
		first = o.ejected[0].until
	}
	o.back.Store(int64(first))
}

// ejections is a heap of those who are out: on top is who comes back first.
type ejections []*outlier

func (e ejections) Len() int           { return len(e) }
func (e ejections) Less(i, j int) bool { return e[i].until < e[j].until }

func (e ejections) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].at, e[j].at = i, j
}

func (e *ejections) Push(x any) {
	record := x.(*outlier)
	record.at = len(*e)
	*e = append(*e, record)
}

func (e *ejections) Pop() any {
	last := len(*e) - 1
	record := (*e)[last]
	(*e)[last] = nil
	*e = (*e)[:last]
	return record
}
