// Package share divides the work of a process among parties, such as the pods of a node, when there is more of it than the
// machine can do: those who have done the most hold back, so that the others wait no longer than they must.
//
// Rules of the room: it decides how much, not what. While the machine keeps up, and for a party that is alone, nobody
// waits. Counting work takes no lock.
package share

import (
	"cmp"
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Work is an estimate of processor time. What it really takes on this machine is found out.
type Work = time.Duration

// Defaults of Config.
const (
	DefaultInterval = 5 * time.Millisecond
	DefaultLate     = time.Millisecond
	DefaultLeast    = 0.1
)

const (
	// window is over how many intervals work is compared.
	window = 20
	// worthWaiting is the shortest pause: less is saved up.
	worthWaiting = 500 * time.Microsecond
	// longestWait is the longest pause, so that nobody who holds back keeps anything else from ending.
	longestWait  = 20 * time.Millisecond
	longestStart = time.Second
	// watchShift has the watch begin after about a millisecond of work of one party.
	watchShift = 20
	// idleWindows is how many windows without much work end the watch.
	idleWindows = 3
	// muchWork is the work in a window, as a share of it, from which on a party can be in the others' way.
	muchWork = 0.1
	// littleOfMost is the part of what the busiest party does below which a party does little: it is for such ones that others
	// hold back.
	littleOfMost = 0.5
	// slower and faster change what a party may do, each interval: as they balance, the process is late in one interval of seventy-five.
	slower, faster = 0.8, 1.003
	// After calm intervals, which is a second by default, the load is another one: those who hold back come out of it by muchFaster.
	calm, muchFaster = 200, 1.02
	// ownPart is the part of the processors that parties must use before the process being late is laid to them, rather than to
	// others of the machine.
	ownPart = 1.0 / 8
	// leastCost and mostCost bound how wrong estimates of work are taken to be. What the process spends beyond that it spends
	// on something that is not counted, and no party is charged for it.
	leastCost, mostCost = 0.25, 3
)

// Config configures a Divider. The zero value is ready to use.
type Config struct {
	// Interval is how often it is looked whether the process is given the processor in time. Zero means 5 ms.
	Interval time.Duration
	// Late is how late the process may be woken before it counts as overloaded. Zero means 1 ms.
	Late time.Duration
	// Least is what every party may use at any rate, in processors. Zero means 0.1; one or more turns holding back off:
	// nothing is watched, only counted.
	Least float64
	// Processors is how many the process may use. Zero means GOMAXPROCS as it is when the Divider is made.
	Processors int

	processorTime func() time.Duration // for tests; nil: of this process
	lateness      func(due time.Time) time.Duration
}

// Divider divides work among its parties. Its methods may be called concurrently.
type Divider struct {
	cfg  Config
	wake chan struct{} // capacity 1: there is much work

	watching atomic.Bool
	late     atomic.Uint64

	mu      sync.Mutex // guards what follows; not taken where work is done
	parties map[*Party]struct{}
	intime  int // intervals since the process was late
}

// Party does work. Its methods may be called concurrently.
type Party struct {
	d *Divider

	done atomic.Int64 // work, ever
	pace atomic.Int64 // how long one unit of work takes it, times paceUnit; zero: it does not hold back
	next atomic.Int64 // when it may go on, in Unix nanoseconds
	held atomic.Int64 // how long it was held back, ever

	// Of the watch.
	seen    int64 // done, at the last interval
	recent  [window]int64
	allowed float64 // processors; zero: no bound
}

const paceUnit = 1024

// New returns a divider without parties. Nothing is held back before Run.
func New(cfg Config) *Divider {
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.Late == 0 {
		cfg.Late = DefaultLate
	}
	if cfg.Least == 0 {
		cfg.Least = DefaultLeast
	}
	if cfg.Processors == 0 {
		cfg.Processors = runtime.GOMAXPROCS(0)
	}
	if cfg.processorTime == nil {
		cfg.processorTime = processorTime
	}
	if cfg.lateness == nil {
		cfg.lateness = func(due time.Time) time.Duration { return time.Since(due) }
	}
	return &Divider{cfg: cfg, wake: make(chan struct{}, 1), parties: make(map[*Party]struct{})}
}

// Late returns how many intervals there were in which the process was late at the cost of a party that does little, ever.
func (d *Divider) Late() uint64 { return d.late.Load() }

// Join adds a party, which must Leave.
func (d *Divider) Join() *Party {
	p := &Party{d: d}
	d.mu.Lock()
	d.parties[p] = struct{}{}
	d.mu.Unlock()
	return p
}

// Leave takes the party out. What it still does is not held back.
func (p *Party) Leave() {
	if p == nil {
		return
	}
	p.d.mu.Lock()
	delete(p.d.parties, p)
	p.d.mu.Unlock()
	p.pace.Store(0)
}

// Did counts work that was done, and waits if the party is to hold back, at most 20 ms. A nil party never waits.
func (p *Party) Did(w Work) {
	if p == nil {
		return
	}
	p.count(w, longestWait)
}

// Asks is Did for work that begins something, such as a connection, and can wait longer: at most a second.
func (p *Party) Asks(w Work) {
	if p == nil {
		return
	}
	p.count(w, longestStart)
}

func (p *Party) count(w Work, longest time.Duration) {
	n := p.done.Add(int64(w))
	if n>>watchShift != (n-int64(w))>>watchShift && p.d.cfg.Least < 1 && !p.d.watching.Load() {
		select {
		case p.d.wake <- struct{}{}:
		default:
		}
	}
	if pace := p.pace.Load(); pace != 0 {
		p.hold(int64(w)*pace/paceUnit, longest)
	}
}

// hold waits until the party's turn has come again after something that may take n nanoseconds.
func (p *Party) hold(n int64, longest time.Duration) {
	now := time.Now().UnixNano()
	for {
		was := p.next.Load()
		// What others are to wait for longer stays: it must not be forgotten for who waits no longer than this.
		next := max(was, min(max(was, now)+n, now+int64(longest)))
		if !p.next.CompareAndSwap(was, next) {
			continue
		}
		if wait := min(time.Duration(next-now), longest); wait >= worthWaiting {
			time.Sleep(wait)
			p.held.Add(int64(wait))
		}
		return
	}
}

// Held returns for how long the party was held back so far, all that worked for it taken together.
func (p *Party) Held() time.Duration { return time.Duration(p.held.Load()) }

// Work returns how much work the party has done, ever.
func (p *Party) Work() Work { return Work(p.done.Load()) }

// Run watches until the context ends. While there is little to do it rests.
func (d *Divider) Run(ctx context.Context) error {
	for {
		select {
		case <-d.wake:
			d.watching.Store(true)
			d.watch(ctx)
			d.release()
			d.watching.Store(false)
		case <-ctx.Done():
			return nil
		}
	}
}

// watch looks at the parties until they do little: each window, and each interval, at the clock too, while several of them work: who
// is alone is never held back. A timer that is due soon costs each message that is waited for meanwhile as much as a system call.
func (d *Divider) watch(ctx context.Context) {
	timer := time.NewTimer(d.cfg.Interval)
	defer timer.Stop()
	cpu := d.cfg.processorTime()
	cost := 1.0                // processor time per unit of work
	span, together := 1, false // the pause, in intervals; whether several have worked in this window
	for slot, idle := 0, 0; idle < idleWindows*window; {
		pause := time.Duration(span) * d.cfg.Interval
		due := time.Now().Add(pause)
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		late := span == 1 && d.cfg.lateness(due) > d.cfg.Late
		d.account(slot, span)
		if slot = (slot + span) % window; slot == 0 {
			now := d.cfg.processorTime()
			cost = d.calibrate(cost, now-cpu)
			cpu = now
		}
		much, several := d.divide(late, cost)
		if idle += span; much {
			idle = 0
		}
		if together = together || several; slot == 0 {
			if span = window; together {
				span = 1
			}
			together = false
		}
	}
}

// account takes what each party has done in the pause, of span intervals, that ends with the slot, or with the window.
func (d *Divider) account(slot, span int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.intime += span
	for p := range d.parties {
		done := p.done.Load()
		for i := range span {
			p.recent[slot+i] = (done - p.seen) / int64(span)
		}
		p.seen = done
	}
}

// calibrate finds out what a unit of work takes, from the processor time of a window.
func (d *Divider) calibrate(cost float64, cpu time.Duration) float64 {
	var work int64
	d.mu.Lock()
	for p := range d.parties {
		work += p.sum()
	}
	d.mu.Unlock()
	if work < int64(muchWork*float64(window*d.cfg.Interval)) {
		return cost
	}
	return min(max(0.5*cost+0.5*float64(cpu)/float64(work), leastCost), mostCost)
}

func (p *Party) sum() int64 {
	var n int64
	for _, r := range p.recent {
		n += r
	}
	return n
}

// divide looks at what each party has done in the window, and says how fast those with the most may go on. It returns
// whether there was much, and whether several have worked.
func (d *Divider) divide(late bool, cost float64) (much, several bool) {
	span := float64(window * d.cfg.Interval)
	d.mu.Lock()
	defer d.mu.Unlock()
	type use struct {
		p    *Party
		used float64 // processors
	}
	var active []use
	var total float64
	for p := range d.parties {
		if n := p.sum(); n > 0 {
			used := cost * float64(n) / span
			active = append(active, use{p, used})
			total += used
		} else {
			p.allow(0, cost)
		}
	}
	slices.SortFunc(active, func(a, b use) int { return cmp.Compare(b.used, a.used) })
	// Where all do about as much, such as the two ends of one transfer, there is nobody whom holding back would help.
	several = len(active) > 1
	late = late && several && active[len(active)-1].used < littleOfMost*active[0].used && total > ownPart*float64(d.cfg.Processors)
	rise := faster
	if d.intime > calm {
		rise = muchFaster
	}
	if late {
		d.late.Add(1)
		d.intime = 0
	}
	for _, u := range active {
		heavy := several && u.used > total/float64(len(active)) && u.used > d.cfg.Least
		switch {
		case late && heavy && u.p.allowed == 0:
			u.p.allow(max(slower*u.used, d.cfg.Least), cost)
		case !several:
			u.p.allow(0, cost) // whoever made it late, it is nobody that this would help
		case late && u.p.allowed > 0:
			u.p.allow(max(slower*u.p.allowed, d.cfg.Least), cost)
		case u.p.allowed > 0:
			allowed := rise * u.p.allowed
			if allowed > 2*u.used+1 {
				allowed = 0
			}
			u.p.allow(allowed, cost)
		}
	}
	return total > muchWork, several
}

// allow bounds what the party may use, in processors.
func (p *Party) allow(processors, cost float64) {
	p.allowed = processors
	if processors == 0 {
		p.pace.Store(0)
		return
	}
	p.pace.Store(max(1, int64(paceUnit*cost/processors)))
}

// release lets everybody go on.
func (d *Divider) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p := range d.parties {
		p.allow(0, 1)
		p.recent = [window]int64{}
		p.seen = p.done.Load()
	}
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
