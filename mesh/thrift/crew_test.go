package thrift

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestCrew gives work to goroutines that wait, starts others when none does, and ends them all.
func TestCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		c := NewCrew(stop, &wg)
		release := make(chan struct{})
		var mu sync.Mutex
		running, most, done := 0, 0, 0
		job := func() {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-release
			mu.Lock()
			running--
			done++
			mu.Unlock()
		}
		for range 5 {
			c.Do(job) // none of them is over before all have begun
		}
		synctest.Wait()
		if most != 5 {
			t.Errorf("%d ran at once, want 5", most)
		}
		close(release)
		synctest.Wait()
		for range 100 {
			c.Do(job)
			synctest.Wait()
		}
		if done != 105 {
			t.Errorf("%d are done, want 105", done)
		}
		// With nothing to do they end, and come again when there is.
		time.Sleep(2 * crewLinger)
		wg.Wait()
		c.Do(job)
		synctest.Wait()
		close(stop)
		wg.Wait()
		if done != 106 {
			t.Errorf("%d are done, want 106", done)
		}
	})
}
