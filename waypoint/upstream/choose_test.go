package upstream

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// address is the n-th endpoint's.
func address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 80)
}

func plain(n int, weight uint32) *config.Endpoint {
	return &config.Endpoint{Address: address(n), Weight: weight}
}

// clusterOf makes a cluster with one priority for each list.
func clusterOf(t *testing.T, settings *config.Settings, priorities ...[]*config.Endpoint) *Cluster {
	t.Helper()
	m := New(Config{})
	t.Cleanup(m.Close)
	c := &Cluster{manager: m, name: "c", known: map[endpointKey]*Endpoint{}}
	c.apply(&config.Cluster{Name: "c", Settings: settings, Endpoints: endpointsOf(priorities...)})
	return c
}

func endpointsOf(priorities ...[]*config.Endpoint) *config.Endpoints {
	out := &config.Endpoints{}
	for _, p := range priorities {
		out.Priorities = append(out.Priorities, config.Priority{Localities: []config.Locality{{Endpoints: p}}})
	}
	return out
}

func mustChoose(t *testing.T, c *Cluster, tried ...*Endpoint) *Endpoint {
	t.Helper()
	e, err := c.Choose(tried)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestWeights: each endpoint gets the share of its weight, within five standard deviations.
func TestWeights(t *testing.T) {
	for _, weights := range [][]uint32{{1}, {1, 1}, {1, 9}, {5, 1, 1, 1}, {100, 1}, {3, 7, 11, 13, 17, 1000}} {
		for _, balancer := range []config.Balancer{config.Random, config.RoundRobin} {
			t.Run(fmt.Sprint(weights, balancer), func(t *testing.T) {
				var endpoints []*config.Endpoint
				total := 0.0
				for i, w := range weights {
					endpoints = append(endpoints, plain(i, w))
					total += float64(w)
				}
				c := clusterOf(t, &config.Settings{Balancer: balancer}, endpoints)
				const n = 20000
				got := map[netip.AddrPort]int{}
				for range n {
					got[mustChoose(t, c).Addr()]++
				}
				for i, w := range weights {
					p := float64(w) / total
					if dev := math.Abs(float64(got[address(i)]) - n*p); dev > 5*math.Sqrt(n*p*(1-p))+1 {
						t.Errorf("endpoint of weight %d was chosen %d times of %d; want about %.0f", w, got[address(i)], n, n*p)
					}
				}
			})
		}
	}
}

func TestLocalityWeights(t *testing.T) {
	m := New(Config{})
	t.Cleanup(m.Close)
	c := &Cluster{manager: m, name: "c", known: map[endpointKey]*Endpoint{}}
	c.apply(&config.Cluster{Name: "c", Settings: &config.Settings{Balancer: config.Random, LocalityWeights: true}, Endpoints: &config.Endpoints{
		Priorities: []config.Priority{{Localities: []config.Locality{
			{Zone: "a", Weight: 3, Endpoints: []*config.Endpoint{plain(0, 1)}},
			{Zone: "b", Weight: 1, Endpoints: []*config.Endpoint{plain(1, 1), plain(2, 1), plain(3, 2)}},
			{Zone: "c", Weight: 0, Endpoints: []*config.Endpoint{plain(4, 1)}},
		}}}}})
	got := map[netip.AddrPort]int{}
	for range 16000 {
		got[mustChoose(t, c).Addr()]++
	}
	for i, want := range []int{12000, 1000, 1000, 2000, 0} {
		if n := got[address(i)]; math.Abs(float64(n-want)) > float64(want)/5 {
			t.Errorf("endpoint %d was chosen %d times; want about %d", i, n, want)
		}
	}
}

// TestLessBusy: of two the less busy one is taken, so that one that is slow is left alone.
func TestLessBusy(t *testing.T) {
	c := clusterOf(t, &config.Settings{}, []*config.Endpoint{plain(0, 1), plain(1, 1)})
	busy := mustChoose(t, c)
	for range 10 {
		if err := busy.Begin(); err != nil {
			t.Fatal(err)
		}
	}
	wrong := 0
	for range 1000 {
		if mustChoose(t, c) == busy {
			wrong++
		}
	}
	if wrong > 200 { // both draws may fall on it
		t.Errorf("the busy one of two was chosen %d times of 1000", wrong)
	}
}

// TestPassedOver: what failed to connect is chosen only if there is nothing else, and after what was not tried yet.
func TestPassedOver(t *testing.T) {
	c := clusterOf(t, &config.Settings{}, []*config.Endpoint{plain(0, 1), plain(1, 1)}, []*config.Endpoint{plain(2, 1)})
	all := map[netip.AddrPort]*Endpoint{}
	c.Endpoints(func(e *Endpoint) { all[e.Addr()] = e })
	first, second, reserve := all[address(0)], all[address(1)], all[address(2)]

	first.failed()
	for range 100 {
		if e := mustChoose(t, c); e != second {
			t.Fatalf("%v was chosen; want %v, which has not failed", e, second)
		}
	}
	if e := mustChoose(t, c, second); e != reserve {
		t.Errorf("%v was chosen; want %v of the next priority: one failed, one was tried", e, reserve)
	}
	if e := mustChoose(t, c, second, reserve); e != first {
		t.Errorf("%v was chosen; want %v, which failed but was not tried", e, first)
	}
	if e := mustChoose(t, c, first, second, reserve); e == nil {
		t.Error("nothing was chosen once all were tried")
	}
	first.worked()
	for range 1000 {
		if mustChoose(t, c) == first {
			return
		}
	}
	t.Error("an endpoint that works again is not chosen")
}

// TestHealth: only healthy endpoints are chosen while there are any, then degraded ones; never those that drain or are unhealthy.
func TestHealth(t *testing.T) {
	with := func(n int, h config.Health) *config.Endpoint {
		e := plain(n, 1)
		e.Health = h
		return e
	}
	sick := []*config.Endpoint{with(0, config.Unhealthy), with(1, config.Draining)}
	c := clusterOf(t, &config.Settings{}, sick)
	if e, err := c.Choose(nil); err != ErrNoEndpoint {
		t.Errorf("chose %v, %v; want %v", e, err, ErrNoEndpoint)
	}
	c.apply(&config.Cluster{Settings: &config.Settings{}, Endpoints: endpointsOf(append(sick, with(2, config.Degraded)), []*config.Endpoint{plain(3, 1)})})
	if e := mustChoose(t, c); e.Addr() != address(3) {
		t.Errorf("chose %v; want the healthy one of the second priority", e)
	}
}

// TestEndpointsStay: an endpoint that is as it was keeps its state; one with another identity is another.
func TestEndpointsStay(t *testing.T) {
	c := clusterOf(t, &config.Settings{}, []*config.Endpoint{plain(0, 1)})
	before := mustChoose(t, c)
	c.apply(&config.Cluster{Settings: &config.Settings{}, Endpoints: endpointsOf([]*config.Endpoint{plain(0, 7)})})
	if after := mustChoose(t, c); after != before {
		t.Error("an endpoint whose weight changed lost its connections")
	}
	other := plain(0, 1)
	other.Workload.Name = "other"
	c.apply(&config.Cluster{Settings: &config.Settings{}, Endpoints: endpointsOf([]*config.Endpoint{other})})
	if after := mustChoose(t, c); after == before {
		t.Error("an address that another workload has got keeps its connections")
	}
	if _, err := before.Client(t.Context(), 0); err == nil {
		t.Error("the endpoint that was there before is still connected to")
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{2, 100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var endpoints []*config.Endpoint
			for i := range n {
				endpoints = append(endpoints, plain(i, uint32(1+i%3)))
			}
			m := New(Config{})
			defer m.Close()
			c := &Cluster{manager: m, known: map[endpointKey]*Endpoint{}}
			c.apply(&config.Cluster{Settings: &config.Settings{ConnectTimeout: time.Second}, Endpoints: endpointsOf(endpoints)})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Choose(nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
