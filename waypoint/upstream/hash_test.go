package upstream

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// keyed are the ways of consistent hashing, with the sizes that are taken unless others are asked for.
var keyed = map[string]*config.Settings{
	"ring":   {Balancer: config.RingHash, TableSize: 1024},
	"maglev": {Balancer: config.Maglev, TableSize: 65537},
}

// keys are so many that shares can be told.
const keys = 20000

func keyOf(i int) uint64 { return xxhash.Sum64String(fmt.Sprintf("user-%d", i)) }

func endpointsUpTo(n int) []*config.Endpoint {
	var out []*config.Endpoint
	for i := range n {
		out = append(out, plain(i, 1))
	}
	return out
}

// owners asks for all keys.
func owners(t *testing.T, c *Cluster) []netip.AddrPort {
	t.Helper()
	out := make([]netip.AddrPort, keys)
	for i := range out {
		e, err := c.ChooseFor(keyOf(i), nil)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = e.Addr()
	}
	return out
}

// TestMovement: when an endpoint goes, its keys go elsewhere; of those of others none with a ring, and few with Maglev. When it comes
// back, so do they.
func TestMovement(t *testing.T) {
	for name, settings := range keyed {
		t.Run(name, func(t *testing.T) {
			all := endpointsUpTo(10)
			c := clusterOf(t, settings, all)
			before := owners(t, c)
			if again := owners(t, c); !slices.Equal(before, again) {
				t.Fatal("a key does not always have the same endpoint")
			}
			c.apply(&config.Cluster{Settings: settings, Endpoints: endpointsOf(slices.Delete(slices.Clone(all), 3, 4))})
			own, others := 0, 0
			for i, now := range owners(t, c) {
				switch {
				case before[i] == address(3):
					own++
					if now == address(3) {
						t.Fatal("a key has an endpoint that is gone")
					}
				case now != before[i]:
					others++
				}
			}
			if own < keys/20 || own > keys/5 {
				t.Errorf("the one of 10 endpoints that went had %d of %d keys", own, keys)
			}
			most := 0
			if name == "maglev" {
				most = keys / 20
			}
			if others > most {
				t.Errorf("%d of %d keys of endpoints that stayed went elsewhere; want at most %d", others, keys, most)
			}
			slices.Reverse(all)
			c.apply(&config.Cluster{Settings: settings, Endpoints: endpointsOf(all)})
			if !slices.Equal(before, owners(t, c)) {
				t.Error("the same endpoints in another order have other keys")
			}
		})
	}
}

// TestKeysPassOver: the keys of an endpoint that fails go to others until it is back, and nobody else's do; a key whose endpoint was
// tried goes to the next.
func TestKeysPassOver(t *testing.T) {
	for name, settings := range keyed {
		t.Run(name, func(t *testing.T) {
			c := clusterOf(t, settings, endpointsUpTo(5))
			before := owners(t, c)
			var bad *Endpoint
			c.Endpoints(func(e *Endpoint) {
				if e.Addr() == address(2) {
					bad = e
				}
			})
			bad.failed()
			took := map[netip.AddrPort]int{}
			for i, now := range owners(t, c) {
				switch {
				case before[i] != address(2):
					if now != before[i] {
						t.Fatalf("key %d of %v went to %v although that endpoint is well", i, before[i], now)
					}
				case now == address(2):
					t.Fatal("an endpoint that failed is chosen")
				default:
					took[now]++
				}
			}
			if len(took) != 4 {
				t.Errorf("the keys of the one that failed went to %v; want all others", took)
			}
			bad.worked()
			if !slices.Equal(before, owners(t, c)) {
				t.Error("keys do not come back")
			}
			first, err := c.ChooseFor(keyOf(1), nil)
			if err != nil {
				t.Fatal(err)
			}
			second, err := c.ChooseFor(keyOf(1), []*Endpoint{first})
			if err != nil || second == first {
				t.Errorf("after %v comes %v, %v", first, second, err)
			}
			if again, _ := c.ChooseFor(keyOf(1), []*Endpoint{first}); again != second {
				t.Errorf("after %v comes once %v and once %v", first, second, again)
			}
		})
	}
}

// TestKeyShares: endpoints have the keys that their weights promise, within what hashing can do.
func TestKeyShares(t *testing.T) {
	for name, off := range map[string]float64{"ring": 0.35, "maglev": 0.08} {
		t.Run(name, func(t *testing.T) {
			weights := []uint32{1, 1, 2, 4}
			var endpoints []*config.Endpoint
			for i, w := range weights {
				endpoints = append(endpoints, plain(i, w))
			}
			c := clusterOf(t, keyed[name], endpoints)
			got := map[netip.AddrPort]int{}
			for _, a := range owners(t, c) {
				got[a]++
			}
			for i, w := range weights {
				want := float64(keys) * float64(w) / 8
				if n := float64(got[address(i)]); math.Abs(n-want) > want*off {
					t.Errorf("the endpoint of weight %d has %v keys; want about %v", w, n, want)
				}
			}
		})
	}
}

// TestKeysAmongFew: one endpoint, and fewer than a ring's points.
func TestKeysAmongFew(t *testing.T) {
	for _, settings := range []*config.Settings{
		{Balancer: config.RingHash, TableSize: 1}, {Balancer: config.Maglev, TableSize: 2}, {Balancer: config.RingHash, TableSize: config.MaxRing},
	} {
		for _, n := range []int{1, 3} {
			c := clusterOf(t, settings, endpointsUpTo(n))
			for i := range 10 {
				if _, err := c.ChooseFor(keyOf(i), nil); err != nil {
					t.Fatalf("%d endpoints, %v: %v", n, settings, err)
				}
			}
		}
	}
	if _, err := clusterOf(t, keyed["ring"], nil).ChooseFor(1, nil); err != ErrNoEndpoint {
		t.Errorf("without endpoints: %v", err)
	}
}

func BenchmarkChooseFor(b *testing.B) {
	for name, settings := range keyed {
		for _, n := range []int{2, 100, 10000} {
			b.Run(fmt.Sprint(name, "/", n), func(b *testing.B) {
				m := New(Config{})
				defer m.Close()
				c := &Cluster{manager: m, known: map[endpointKey]*Endpoint{}}
				own := *settings
				own.ConnectTimeout = time.Second
				c.apply(&config.Cluster{Settings: &own, Endpoints: endpointsOf(endpointsUpTo(n))})
				b.ReportAllocs()
				key := uint64(1)
				for b.Loop() {
					key = key*6364136223846793005 + 1442695040888963407
					if _, err := c.ChooseFor(key, nil); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
