package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/lookup"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// Names looks up host names of endpoints: a *lookup.Resolver.
type Names interface {
	// Lookup returns the addresses of a name, at least one, and bounds the time that it takes by itself. The error is
	// lookup.ErrNotFound if the name has none.
	Lookup(ctx context.Context, host string) ([]netip.Addr, error)
	// Until is how long the last answer for a name holds.
	Until(host string) time.Time
}

// How soon a name is looked up again: when the answer has run out, but not sooner than askMost; askAgain after no resolver answered.
const (
	askMost  = time.Second
	askAgain = 5 * time.Second
)

// name is a host name that endpoints have, which is looked up again and again while a cluster has such an endpoint.
type name struct {
	host   string
	cancel context.CancelFunc
	first  chan struct{} // closed by the first answer, whatever it is

	// Guarded by the manager's lock.
	users map[*Cluster]bool
	addrs []netip.Addr // in the resolver's order; what they were while resolvers do not answer
	err   error        // of the last look-up
}

// follow has the names of a cluster's endpoints looked up, and no others. The caller holds the manager's lock.
func (c *Cluster) follow(cfg *config.Cluster) {
	wanted := map[string]bool{}
	if cfg.Endpoints != nil {
		for e := range cfg.Endpoints.All() {
			if e.Host != "" {
				wanted[e.Host] = true
			}
		}
	}
	m := c.manager
	for host, n := range c.names {
		if wanted[host] {
			continue
		}
		delete(c.names, host)
		if delete(n.users, c); len(n.users) == 0 {
			delete(m.names, host)
			n.cancel()
		}
	}
	for host := range wanted {
		n := m.names[host]
		if n == nil {
			n = &name{host: host, first: make(chan struct{}), users: map[*Cluster]bool{}}
			var ctx context.Context
			ctx, n.cancel = context.WithCancel(m.ctx)
			m.names[host] = n
			m.ended.Go(func() { m.watch(ctx, n) })
		}
		n.users[c] = true
		if c.names == nil {
			c.names = map[string]*name{}
		}
		c.names[host] = n
	}
}

// watch looks a name up until ctx ends.
func (m *Clusters) watch(ctx context.Context, n *name) {
	for first := true; ; first = false {
		addrs, err := m.cfg.Names.Lookup(ctx, n.host)
		if ctx.Err() != nil {
			return
		}
		pause := askAgain
		if err == nil || errors.Is(err, lookup.ErrNotFound) {
			pause = max(askMost, time.Until(m.cfg.Names.Until(n.host)))
		}
		m.answered(n, addrs, err)
		if first {
			close(n.first)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// answered takes what a look-up has brought.
func (m *Clusters) answered(n *name, addrs []netip.Addr, err error) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		return special(a) || m.cfg.Reaches != nil && !m.cfg.Reaches(a)
	})
	if err == nil && len(addrs) == 0 {
		err = fmt.Errorf("look up %s: %w that a waypoint can reach", n.host, lookup.ErrNotFound)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n.err = err
	if err == nil || errors.Is(err, lookup.ErrNotFound) {
		n.addrs = addrs
	}
	for c := range n.users {
		c.apply(c.cfg)
	}
}

// special reports whether an address means somebody else to each who connects to it: this proxy itself, or its node.
func special(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

// resolved are a cluster's endpoints with addresses in the place of names: one endpoint for each address or, if the cluster wants one
// address, for the first. The error is why a name has none. The caller holds the manager's lock.
func (c *Cluster) resolved(cfg *config.Cluster) (*config.Endpoints, error) {
	if len(c.names) == 0 {
		return cfg.Endpoints, nil
	}
	var failed error
	out := &config.Endpoints{}
	for _, p := range cfg.Endpoints.Priorities {
		next := config.Priority{}
		for _, l := range p.Localities {
			endpoints := l.Endpoints
			l.Endpoints = nil
			for _, e := range endpoints {
				n := c.names[e.Host]
				if n == nil {
					l.Endpoints = append(l.Endpoints, e)
					continue
				}
				if len(n.addrs) == 0 {
					failed = n.err
				}
				addrs := n.addrs
				if cfg.Settings.Discovery == config.OneAddress {
					addrs = addrs[:min(len(addrs), 1)]
				}
				for _, a := range addrs {
					one := *e
					one.Address = netip.AddrPortFrom(a, e.Address.Port())
					l.Endpoints = append(l.Endpoints, &one)
				}
			}
			next.Localities = append(next.Localities, l)
		}
		out.Priorities = append(out.Priorities, next)
	}
	return out, failed
}

// unanswered returns a name of which nothing is known yet, nil if there is none. The caller holds the manager's lock.
func (c *Cluster) unanswered() *name {
	for _, n := range c.names {
		select {
		case <-n.first:
		default:
			return n
		}
	}
	return nil
}
