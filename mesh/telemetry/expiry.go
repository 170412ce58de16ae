package telemetry

import "time"

const (
	// expireAfter is how long series are kept once no flow is left that took part in them, so that the last values are
	// scraped.
	expireAfter = 5 * time.Minute
	// DefaultIdle is how long a flow without a new connection is remembered. It is longer than what rates are usually taken
	// over.
	DefaultIdle = time.Hour
)

// Forget is to be called when a workload has gone: series in which no other workload takes part are dropped some minutes
// after their last connection has ended.
func (m *Metrics) Forget(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.uses[uid] {
		m.dropLocked(key)
	}
}

// Sweep forgets flows that have had no new connection for the idle time, which Sweep itself measures: call it a few times
// in that time, from one goroutine. Series whose connections are open stay. It also drops what has expired and nobody has
// scraped.
func (m *Metrics) Sweep(idle time.Duration) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, s := range m.flows.All() {
		switch {
		case s.used.Swap(false), s.idleSince.IsZero():
			s.idleSince = now
		case now.Sub(s.idleSince) >= idle:
			m.dropLocked(key)
		}
	}
	for l, set := range m.sets {
		if set.expired(now.Add(-expireAfter)) {
			m.deleteLocked(l, set)
		}
	}
}

// dropLocked forgets a flow.
func (m *Metrics) dropLocked(key flowKey) {
	if s, ok := m.flows.LoadAndDelete(key); ok {
		s.set.leave()
	}
	for _, uid := range [...]string{key.source, key.destination} {
		delete(m.uses[uid], key)
		if len(m.uses[uid]) == 0 {
			delete(m.uses, uid)
		}
	}
}

// deleteLocked takes a label set out of what is exposed.
func (m *Metrics) deleteLocked(l labels, set *labelSet) {
	delete(m.sets, l)
	if set.latencies.sets--; set.latencies.sets == 0 {
		delete(m.latencies, latencyOf(&l))
	}
}

func (s *labelSet) leave() {
	if s.flows--; s.flows == 0 {
		s.since = time.Now()
	}
}

// expired reports whether the set is to be dropped after what it has now was exposed.
func (s *labelSet) expired(now time.Time) bool {
	if s.flows > 0 {
		return false
	}
	if s.open.Load() > 0 {
		s.since = time.Now()
		return false
	}
	return now.Sub(s.since) >= expireAfter
}
