package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/mesh/lookup"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// book is a resolver whose answers hold for a minute.
type book struct {
	mu    sync.Mutex // guards what follows
	addrs map[string][]netip.Addr
	err   error
	until time.Time
	asked int
	late  time.Duration
}

func (b *book) set(err error, addrs ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.addrs = err, map[string][]netip.Addr{}
	for _, a := range addrs {
		b.addrs["a.example"] = append(b.addrs["a.example"], netip.MustParseAddr(a))
	}
}

func (b *book) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	b.mu.Lock()
	late := b.late
	b.mu.Unlock()
	select {
	case <-time.After(late):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	b.until = time.Now().Add(time.Minute)
	if b.err != nil {
		return nil, b.err
	}
	if len(b.addrs[host]) == 0 {
		return nil, fmt.Errorf("look up %s: %w", host, lookup.ErrNotFound)
	}
	return b.addrs[host], nil
}

func (b *book) Until(string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until
}

// named is a cluster with one endpoint, a.example:443.
func named(d config.Discovery) *config.Cluster {
	return &config.Cluster{Name: "c", Settings: &config.Settings{ConnectTimeout: time.Second, Discovery: d}, Endpoints: endpointsOf([]*config.Endpoint{
		{Host: "a.example", Address: netip.AddrPortFrom(netip.Addr{}, 443), Weight: 1}})}
}

// pick does what a request does.
func pick(t *testing.T, c *Cluster, asked netip.AddrPort, tried ...*Endpoint) (*Endpoint, error) {
	if e, err := c.Before(t.Context(), asked); e != nil || err != nil {
		return e, err
	}
	return c.Choose(tried)
}

func addresses(c *Cluster) []string {
	var out []string
	c.Endpoints(func(e *Endpoint) { out = append(out, e.Addr().String()) })
	slices.Sort(out)
	return out
}

// TestNames: endpoints follow what resolvers say of a name, as long as it holds, and stay while resolvers do not answer.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{late: time.Second}
		b.set(nil, "192.0.2.1", "192.0.2.2", "127.0.0.1", "169.254.169.254", "2001:db8::1")
		m := New(Config{Names: b, Reaches: func(a netip.Addr) bool { return a.Is4() }})
		defer m.Close()
		c := &Cluster{manager: m, known: map[endpointKey]*Endpoint{}}
		m.mu.Lock()
		c.apply(named(config.EachAddress))
		m.mu.Unlock()
		if e, err := pick(t, c, netip.AddrPort{}); err != nil || e.Addr().Port() != 443 {
			t.Fatalf("%v, %v; want one that was waited for", e, err)
		}
		want := func(when string, addrs ...string) {
			t.Helper()
			synctest.Wait()
			if got := addresses(c); !slices.Equal(got, addrs) {
				t.Errorf("%s: endpoints %v, want %v", when, got, addrs)
			}
		}
		want("at first, without what means the proxy itself, and what it cannot reach", "192.0.2.1:443", "192.0.2.2:443")
		kept, _ := pick(t, c, netip.AddrPort{})
		b.set(nil, "192.0.2.3", kept.Addr().Addr().String())
		want("while the answer holds", "192.0.2.1:443", "192.0.2.2:443")
		time.Sleep(62 * time.Second)
		both := []string{kept.Addr().String(), "192.0.2.3:443"}
		slices.Sort(both)
		want("after it", both...)
		same := false
		c.Endpoints(func(e *Endpoint) { same = same || e == kept })
		if !same {
			t.Error("an address that stays has lost its connections")
		}
		b.set(errors.New("no answer"))
		time.Sleep(10 * time.Minute)
		want("without an answer", both...)
		b.set(nil)
		time.Sleep(10 * time.Minute)
		want("when the name has no address any more")
		if _, err := pick(t, c, netip.AddrPort{}); !errors.Is(err, ErrNoEndpoint) || !errors.Is(err, lookup.ErrNotFound) {
			t.Errorf("error %v; want why", err)
		}
		m.mu.Lock()
		c.apply(&config.Cluster{Name: "c", Settings: c.Settings()})
		m.mu.Unlock()
		synctest.Wait()
		asked := b.asked
		time.Sleep(time.Hour)
		if b.asked != asked {
			t.Error("a name that nobody needs is looked up")
		}
	})
}

// TestOneAddress: of a name whose addresses take turns one is used at a time.
func TestOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		b.set(nil, "192.0.2.7", "192.0.2.1")
		m := New(Config{Names: b})
		defer m.Close()
		c := &Cluster{manager: m, known: map[endpointKey]*Endpoint{}}
		m.mu.Lock()
		c.apply(named(config.OneAddress))
		m.mu.Unlock()
		synctest.Wait()
		if got := addresses(c); !slices.Equal(got, []string{"192.0.2.7:443"}) {
			t.Errorf("endpoints %v", got)
		}
	})
}

// TestAsked: where a cluster has no endpoints of its own, what the client connected to is the endpoint, and never this proxy or its
// node.
func TestAsked(t *testing.T) {
	m := New(Config{})
	defer m.Close()
	c := &Cluster{manager: m, known: map[endpointKey]*Endpoint{}}
	m.mu.Lock()
	c.apply(&config.Cluster{Name: "c", Settings: &config.Settings{Discovery: config.Asked}, Endpoints: &config.Endpoints{}})
	m.mu.Unlock()
	to := netip.MustParseAddrPort("192.0.2.1:80")
	e, err := pick(t, c, to)
	if err != nil || e.Addr() != to {
		t.Fatalf("%v, %v", e, err)
	}
	if again, err := pick(t, c, to, e); err != nil || again != e {
		t.Errorf("the same address is another endpoint: %v, %v", again, err)
	}
	for _, bad := range []string{"127.0.0.1:15000", "[::1]:15000", "169.254.169.254:80", "0.0.0.0:80", "[::ffff:127.0.0.1]:80"} {
		if _, err := pick(t, c, netip.MustParseAddrPort(bad)); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: error %v, want a refusal", bad, err)
		}
	}
	for i := range 2 * maxAsked { // nobody uses them
		if _, err := pick(t, c, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 80)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(addresses(c)); n > maxAsked {
		t.Errorf("%d endpoints are kept", n)
	}
	m.mu.Lock()
	c.apply(&config.Cluster{Name: "c", Settings: c.Settings()})
	m.mu.Unlock()
	if _, err := pick(t, c, to); err == nil {
		t.Error("a cluster that is gone has endpoints")
	}
}
