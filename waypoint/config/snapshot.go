package config

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// Snapshot is what is in force at one time. It is immutable: any number of goroutines may read it. Two snapshots share what
// is the same in both, down to single endpoints, so that what did not change has the same pointer.
type Snapshot struct {
	terminate *Terminate
	inbound   *inbound
	clusters  table[*Cluster]
	routes    table[*route.Table]
	direct    *map[netip.Addr]*Direct // by each of their addresses; nil for none
}

// Terminate returns the settings of the listener for tunnels; nil until it has come.
func (s *Snapshot) Terminate() *Terminate { return s.terminate }

// Chain returns how connections to a destination are served, as the client's CONNECT names it; nil if the waypoint does not
// serve it: the connection is refused.
func (s *Snapshot) Chain(dst netip.AddrPort) *Chain {
	if s.inbound == nil {
		return nil
	}
	if c := s.inbound.chain(dst); c != nil {
		return c
	}
	w := s.Direct(dst.Addr())
	switch {
	case w == nil:
		return nil
	case w.SpeaksHTTP(dst.Port()):
		return s.inbound.http
	}
	return s.inbound.tcp
}

// Chains returns all chains, by name, in the order of their listener.
func (s *Snapshot) Chains() []*Chain {
	if s.inbound == nil {
		return nil
	}
	return s.inbound.chains
}

// Destinations returns the single addresses that chains serve, with their ports, sorted. Ranges of addresses are not in it.
func (s *Snapshot) Destinations() []netip.AddrPort {
	if s.inbound == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(s.inbound.byAddr), netip.AddrPort.Compare)
}

// RouteNames returns the names of all route tables, sorted.
func (s *Snapshot) RouteNames() []string {
	var names []string
	for name := range s.routes.all() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Routes returns a route table by name, as HTTP.Routes has it; nil if it has not come: a request waits for it (Store.Await)
// as long as the proxy likes, and is then answered 503.
func (s *Snapshot) Routes(name string) *route.Table {
	t, _ := s.routes.get(name)
	return t
}

// Cluster returns a cluster by name; nil if it is not known: a request is answered Forward.NotFoundStatus, a TCP connection is
// refused. Its Endpoints are nil until they have come.
func (s *Snapshot) Cluster(name string) *Cluster {
	c, _ := s.clusters.get(name)
	return c
}

// HasPolicy reports whether a chain asks an AuthorizationPolicy of that key ("namespace/name").
func (s *Snapshot) HasPolicy(key string) bool {
	is := func(p *policy.RequestPolicy) bool { return p.Policy.Key() == key }
	for _, c := range s.Chains() {
		for _, step := range c.Authorization {
			if slices.ContainsFunc(step.Policies, is) || slices.ContainsFunc(step.Dry, is) {
				return true
			}
		}
	}
	return false
}

// Clusters returns all clusters, in no order.
func (s *Snapshot) Clusters() iter.Seq2[string, *Cluster] { return s.clusters.all() }

// ChangedClusters returns the clusters that differ from those of an older snapshot, nil for those that are gone, in no order.
// It costs little if little has changed. A nil snapshot is an empty one.
func (s *Snapshot) ChangedClusters(old *Snapshot) iter.Seq2[string, *Cluster] {
	if old == nil {
		old = &Snapshot{}
	}
	return s.clusters.changed(old.clusters)
}

// Missing names the route tables that chains want and that have not come.
func (s *Snapshot) Missing() []string {
	var names []string
	for _, c := range s.Chains() {
		if c.HTTP != nil && s.Routes(c.HTTP.Routes) == nil {
			names = append(names, c.HTTP.Routes)
		}
	}
	return names
}
