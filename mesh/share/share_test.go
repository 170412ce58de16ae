package share

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// machine is a processor under a divider: it is late while the parties use more of it than there is.
type machine struct {
	mu    sync.Mutex
	used  time.Duration // ever
	late  time.Duration
	looks int // at the clock, ever
}

func (m *machine) did(w Work) {
	m.mu.Lock()
	m.used += w
	m.mu.Unlock()
}

func (m *machine) processorTime() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

func (m *machine) lateness(time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks++
	return m.late
}

func (m *machine) looked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.looks
}

func (m *machine) setLate(d time.Duration) {
	m.mu.Lock()
	m.late = d
	m.mu.Unlock()
}

// run starts a divider that ends with the test's bubble.
func (m *machine) run(t *testing.T) *Divider { return m.runWith(t, Config{}) }

func (m *machine) runWith(t *testing.T, cfg Config) *Divider {
	cfg.processorTime, cfg.lateness = m.processorTime, m.lateness
	if cfg.Processors == 0 {
		cfg.Processors = 1
	}
	d := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return d
}

// works has a party do so much work in so many pieces of it, each of which takes its time, and returns how long it took.
func (m *machine) works(p *Party, piece Work, n int) time.Duration {
	start := time.Now()
	for range n {
		time.Sleep(piece)
		m.did(piece)
		p.Did(piece)
	}
	return time.Since(start)
}

// TestTheHeavyHoldBack has one party do much and another one little: while the process is late, the one waits and the other
// does not; once it is in time, nobody does.
func TestTheHeavyHoldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{late: 5 * time.Millisecond}
		d := m.run(t)
		heavy, light := d.Join(), d.Join()
		defer heavy.Leave()
		defer light.Leave()
		var wg sync.WaitGroup
		wg.Go(func() {
			took := m.works(heavy, time.Millisecond, 1000)
			if took < 3*time.Second {
				t.Errorf("a second of work took %v beside a party that does little; want it held back", took)
			}
			if most := 12 * time.Second; took > most {
				t.Errorf("a second of work took %v, but a tenth of the processor is anybody's", took)
			}
		})
		wg.Go(func() {
			for range 500 {
				time.Sleep(5 * time.Millisecond)
				m.works(light, 10*time.Microsecond, 1)
			}
		})
		wg.Wait()
		if held := light.Held(); held != 0 {
			t.Errorf("the light party was held for %v", held)
		}
		if heavy.Held() == 0 {
			t.Error("the heavy party was not held")
		}
		if d.Late() == 0 {
			t.Error("it was never late at the cost of a party")
		}

		m.setLate(0)
		wg.Go(func() { m.works(heavy, time.Millisecond, 4000) }) // back to speed
		wg.Go(func() {
			for range 600 {
				time.Sleep(10 * time.Millisecond)
				m.works(light, 10*time.Microsecond, 1)
			}
		})
		wg.Wait()
		before := heavy.Held()
		wg.Go(func() { m.works(light, 10*time.Microsecond, 100) })
		wg.Go(func() { m.works(heavy, time.Millisecond, 100) })
		wg.Wait()
		if held := heavy.Held() - before; held != 0 {
			t.Errorf("in time, and held for %v", held)
		}
	})
}

// TestAloneNobodyWaits has a party that is alone on a machine that is late.
func TestAloneNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{late: time.Second}
		d := m.run(t)
		alone, silent := d.Join(), d.Join()
		defer alone.Leave()
		defer silent.Leave()
		if took := m.works(alone, time.Millisecond, 1000); took != time.Second {
			t.Errorf("a second of work took %v", took)
		}
	})
}

// TestNobodyLooksAtTheClockForOne counts looks: each of them may wake the process, so that there are few while a party is alone, and
// one each interval once there is another.
func TestNobodyLooksAtTheClockForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{}
		d := m.run(t)
		busy, other := d.Join(), d.Join()
		defer busy.Leave()
		defer other.Leave()
		m.works(busy, time.Millisecond, 1000)
		if n := m.looked(); n > 2*window {
			t.Errorf("%d looks while one party worked alone for a second", n)
		}
		before := m.looked()
		var wg sync.WaitGroup
		wg.Go(func() { m.works(busy, time.Millisecond, 1000) })
		wg.Go(func() {
			for range 200 {
				time.Sleep(5 * time.Millisecond)
				m.works(other, 10*time.Microsecond, 1)
			}
		})
		wg.Wait()
		if n := m.looked() - before; n < 150 {
			t.Errorf("%d looks while another party did little for a second, want one every 5 ms", n)
		}
		before = m.looked()
		m.works(busy, time.Millisecond, 1000)
		if n := m.looked() - before; n > 4*window {
			t.Errorf("%d looks in the second after the other party had ended", n)
		}
	})
}

// TestEqualsDoNotWait has two parties do about as much on a machine that is late, such as the two ends of a transfer within a node: if
// one of them held back so would the other, and nobody would have anything of it.
func TestEqualsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{late: time.Second}
		d := m.run(t)
		sender, receiver := d.Join(), d.Join()
		defer sender.Leave()
		defer receiver.Leave()
		var wg sync.WaitGroup
		for _, p := range []*Party{sender, receiver} {
			wg.Go(func() {
				if took := m.works(p, time.Millisecond, 1000); took != time.Second {
					t.Errorf("a second of work took %v", took)
				}
			})
		}
		wg.Wait()
	})
}

// TestOthersMakeItLate has the parties use little of a machine that is late: that is others' doing, and holding back would not
// help anybody.
func TestOthersMakeItLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{late: time.Second}
		d := m.runWith(t, Config{Processors: 16})
		heavy, light := d.Join(), d.Join()
		defer heavy.Leave()
		defer light.Leave()
		var wg sync.WaitGroup
		wg.Go(func() { m.works(heavy, time.Millisecond, 2000) })
		wg.Go(func() {
			for range 200 {
				time.Sleep(10 * time.Millisecond)
				m.works(light, 10*time.Microsecond, 1)
			}
		})
		wg.Wait()
		if held := heavy.Held(); held != 0 {
			t.Errorf("held for %v", held)
		}
		if n := d.Late(); n != 0 {
			t.Errorf("late %d times at the cost of a party, want never", n)
		}
	})
}

// TestLeftAloneNobodyWaits holds a party back, and then has the other one stop, while the machine stays late because of
// somebody else.
func TestLeftAloneNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{late: time.Second}
		d := m.run(t)
		heavy, light := d.Join(), d.Join()
		defer heavy.Leave()
		defer light.Leave()
		var wg sync.WaitGroup
		var over atomic.Bool
		wg.Go(func() {
			for !over.Load() {
				time.Sleep(time.Millisecond)
				m.works(light, 10*time.Microsecond, 1)
			}
		})
		m.works(heavy, time.Millisecond, 50)
		over.Store(true)
		wg.Wait()
		if heavy.Held() == 0 {
			t.Fatal("beside another party it was not held")
		}
		for start := time.Now(); time.Since(start) < window*DefaultInterval+2*longestWait; { // until the other one is forgotten
			m.works(heavy, time.Millisecond, 1)
		}
		if took := m.works(heavy, time.Millisecond, 100); took != 100*time.Millisecond {
			t.Errorf("alone, 100 ms of work took %v", took)
		}
	})
}

// TestNobodyPaysForWhatIsNotCounted has the process busy with something that is nobody's work. What the parties do is far
// below their least share, and must not count for more because of it.
func TestNobodyPaysForWhatIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{late: 5 * time.Millisecond}
		d := m.run(t)
		parties := make([]*Party, 10)
		for i := range parties {
			parties[i] = d.Join()
			defer parties[i].Leave()
		}
		for range 1000 {
			time.Sleep(5 * time.Millisecond)
			m.did(10 * time.Millisecond)
			for _, p := range parties {
				p.Did(100 * time.Microsecond)
			}
			parties[0].Did(50 * time.Microsecond)
		}
		for i, p := range parties {
			if held := p.Held(); held != 0 {
				t.Errorf("party %d uses 2 or 3 %% of a processor, and was held for %v", i, held)
			}
		}
	})
}

// TestOff has a divider that is to hold nobody back.
func TestOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{late: time.Second}
		d := m.runWith(t, Config{Least: 1})
		heavy, light := d.Join(), d.Join()
		defer heavy.Leave()
		defer light.Leave()
		var wg sync.WaitGroup
		for range 3 { // three processors' worth
			wg.Go(func() { m.works(heavy, time.Millisecond, 1000) })
		}
		wg.Go(func() { m.works(light, time.Millisecond, 10) })
		wg.Wait()
		if heavy.Held() != 0 || d.watching.Load() {
			t.Errorf("it is off, and held for %v, watched: %v", heavy.Held(), d.watching.Load())
		}
		if heavy.Work() != 3*time.Second {
			t.Errorf("%v of work counted, want 3s", heavy.Work())
		}
	})
}

// TestWaitsAreShort holds a party back as much as can be: no single wait is long, and one that starts something may be longer.
func TestWaitsAreShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{}).Join()
		p.allow(0.001, 1)
		for _, c := range []struct {
			name string
			do   func(Work)
			most time.Duration
		}{{"Did", p.Did, longestWait}, {"Asks", p.Asks, longestStart}} {
			start := time.Now()
			c.do(time.Hour)
			if took := time.Since(start); took != c.most {
				t.Errorf("%s waited for %v, want %v", c.name, took, c.most)
			}
		}
		p.Leave()
		start := time.Now()
		p.Did(time.Hour)
		if took := time.Since(start); took != 0 {
			t.Errorf("after Leave it waited for %v", took)
		}
	})
}

// TestWorkDoesNotCutTheQueue has connections wait to begin while others of the party work on, which must not let them begin
// sooner.
func TestWorkDoesNotCutTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{}).Join()
		defer p.Leave()
		p.allow(0.1, 1)
		start := time.Now()
		var wg sync.WaitGroup
		for range 40 { // of which each is worth 10 ms
			wg.Go(func() { p.Asks(time.Millisecond) })
		}
		synctest.Wait()
		p.Did(time.Microsecond)
		if took := time.Since(start); took != longestWait {
			t.Errorf("work waited for %v, want %v", took, longestWait)
		}
		p.Asks(time.Millisecond)
		if took := time.Since(start); took < 400*time.Millisecond {
			t.Errorf("the last began after %v, want it behind the 40 others", took)
		}
		wg.Wait()
	})
}

// TestNoParty is for whoever has no party.
func TestNoParty(t *testing.T) {
	var p *Party
	p.Did(time.Hour)
	p.Asks(time.Hour)
	p.Leave()
}

// TestRest wants that nothing ticks while little is done.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{}
		d := m.run(t)
		p := d.Join()
		defer p.Leave()
		m.works(p, 10*time.Millisecond, 5)
		synctest.Wait()
		if !d.watching.Load() {
			t.Fatal("much is done and nobody watches")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if d.watching.Load() {
			t.Error("nothing is done and somebody still watches")
		}
	})
}

func BenchmarkDid(b *testing.B) {
	p := New(Config{}).Join()
	b.ReportAllocs()
	for b.Loop() {
		p.Did(time.Microsecond)
	}
}
