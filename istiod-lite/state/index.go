package state

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
)

// hostsOf are the hosts that an object is, as of now.
func (c *collector) hostsOf(ref cluster.ObjectRef) []*l7.Host {
	if hosts, ok := c.hosts[ref]; ok {
		return hosts
	}
	s := c.state
	var out []*l7.Host
	switch {
	case ref.IsService():
		if svc := s.services[ref.Key]; svc != nil {
			out = []*l7.Host{l7.ServiceHost(s.mesh, c.serviceInput(svc))}
		}
	case ref.IsEntry():
		if e := s.entries[ref.Key]; e != nil {
			out = l7.EntryHosts(s.mesh, c.entryInput(e))
			slices.SortFunc(out, func(a, b *l7.Host) int { return strings.Compare(a.Hostname, b.Hostname) })
		}
	}
	for i, h := range out {
		out[i] = h.Secured(c).Bounded(c)
	}
	c.hosts[ref] = out
	return out
}

// Host is part of l7.Index.
func (c *collector) Host(ref cluster.ObjectRef) *l7.Host {
	if hosts := c.hostsOf(ref); len(hosts) > 0 {
		return hosts[0]
	}
	return nil
}

// IsWaypoint is part of l7.Index.
func (c *collector) IsWaypoint(gateway cluster.Key) bool { return c.state.waypoint(gateway) != nil }

// Routes is part of l7.Index.
func (c *collector) Routes(parent cluster.ObjectRef) []*cluster.Route {
	var out []*cluster.Route
	for o := range c.state.views.attached[parent] {
		out = append(out, c.state.views.routes[o])
	}
	return out
}

// BackendTLS is part of l7.Index.
func (c *collector) BackendTLS(target cluster.ObjectRef) []*cluster.BackendTLSPolicy {
	var out []*cluster.BackendTLSPolicy
	for k := range c.state.views.securing[target] {
		out = append(out, c.state.views.backendTLS[k])
	}
	return out
}

// Bundle is part of l7.Index.
func (c *collector) Bundle(key cluster.Key) *cluster.Bundle { return c.state.views.bundles[key] }
