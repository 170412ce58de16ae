package directory

import "time"

// A control plane tells of a policy before it tells of the workloads that name it. One that had been in force for a namespace or
// the mesh, and now is for the workloads that name it, would be in force for nobody between the two messages, and for long
// if the stream ended there. So its former state stays in force for its former group until the workloads are known.
const (
	// narrowSettle is how long after a push of addresses it is waited for another one that belongs to it, and narrowMost for how
	// long pushes that follow each other can prolong that. Control planes split pushes that are large.
	narrowSettle = 500 * time.Millisecond
	narrowMost   = 5 * time.Second
	// narrowSilence is how long it is waited if no addresses come, since a selector may select nothing. It is longer than a
	// stream can be dead unnoticed (40 s, see identity.NewChannel).
	narrowSilence = 45 * time.Second
)

// narrowed is a policy that is named by workloads now, and in force for its former group still.
type narrowed struct {
	group groupKey
	since time.Time // when addresses were first pushed after it; zero before
	until time.Time // when it leaves the group; zero if the stream has ended: not before addresses come
}

// StreamEnded says that what was on its way may not have come, and that the next push of addresses is the first of another stream,
// which brings all that is missing. It fits xds.Handler.Ended for xds.TypeAddress.
func (d *Directory) StreamEnded() {
	d.mu.Lock()
	defer d.mu.Unlock()
	x := &d.policies
	x.first = true
	for _, n := range x.narrowed {
		n.since, n.until = time.Time{}, time.Time{}
	}
	d.awaitNarrowedLocked()
}

// Narrowing tells whether the former state of a policy is in force still, for the group that it was for.
func (d *Directory) Narrowing(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.policies.narrowed[name] != nil
}

// addressesCameLocked is called when a push of addresses was applied.
func (d *Directory) addressesCameLocked(change *Change) {
	x := &d.policies
	first := x.first
	x.first = false
	if len(x.narrowed) == 0 {
		return
	}
	now := time.Now()
	for _, n := range x.narrowed {
		if n.since.IsZero() {
			n.since = now
		}
		n.until = now.Add(min(narrowSettle, n.since.Add(narrowMost).Sub(now)))
		if first {
			n.until = now
		}
	}
	d.releaseNarrowedLocked(now, change)
}

// releaseNarrowedLocked ends what is over.
func (d *Directory) releaseNarrowedLocked(now time.Time, change *Change) {
	x := &d.policies
	touched := map[groupKey]bool{}
	for name, n := range x.narrowed {
		if !n.until.IsZero() && !n.until.After(now) {
			x.leave(name, n.group, touched)
			delete(x.narrowed, name)
			change.Policies = append(change.Policies, name)
		}
	}
	if len(touched) > 0 {
		x.rebuild(touched)
		x.generation.Add(1)
	}
	d.awaitNarrowedLocked()
}

// awaitNarrowedLocked has narrowedOver called when the next one is over.
func (d *Directory) awaitNarrowedLocked() {
	x := &d.policies
	var next time.Time
	for _, n := range x.narrowed {
		if !n.until.IsZero() && (next.IsZero() || n.until.Before(next)) {
			next = n.until
		}
	}
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
	if !next.IsZero() {
		x.timer = time.AfterFunc(time.Until(next), d.narrowedOver)
	}
}

func (d *Directory) narrowedOver() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var change Change
	d.releaseNarrowedLocked(time.Now(), &change)
	d.notify(&change)
}
