package l7

import (
	"cmp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// Config is what a waypoint that all services of a cluster are bound to is told.
type Config struct {
	Listeners       []*listenerv3.Listener
	Routes          []*routev3.RouteConfiguration
	Clusters        []*clusterv3.Cluster
	LoadAssignments []*endpointv3.ClusterLoadAssignment
	Statuses        []RouteStatus
	// Policies are what AuthorizationPolicies and DestinationRules should say of themselves.
	Policies []translate.Status
	// Workloads are those whose own addresses the waypoint serves, by uid.
	Workloads []*workload.Workload
}

// RouteStatus is what a route, a policy of the Gateway API or a WaypointPolicy should say of itself.
type RouteStatus struct {
	Kind    cluster.Kind
	Key     cluster.Key
	Parents []cluster.ParentStatus
}

// All translates a cluster at once, for a waypoint of no namespace. It looks at everything for each object, so its cost is the square of
// the cluster's size: it is for checks and small inputs.
func All(s translate.Snapshot) Config {
	every := func(*Host) bool { return true }
	return all(s, newIndex(s, cluster.Key{}), cluster.Key{}, every, every)
}

// For is All for one waypoint: of the services that are bound to it it has the routes, and of those, and of what the routes refer
// to, the endpoints. Of resources that have their name in common the first counts.
func For(s translate.Snapshot, gateway cluster.Key) Config {
	ix := newIndex(s, gateway)
	bound, sent := map[cluster.ObjectRef]bool{}, map[cluster.ObjectRef]bool{}
	others := func(ref cluster.ObjectRef) { // who is asked and told about requests
		if collector, ok := TelemetryFor(s.Mesh, s.Telemetries, ref, gateway).Collector(s.Mesh, ix); ok {
			sent[collector] = true
		}
		for _, p := range s.AuthorizationPolicies {
			if p.Policy.Action == authz.Custom && Applies(s.Mesh, p.Namespace, p.Policy.Requests.Targets, ref, gateway) {
				if _, h, err := Provider(s.Mesh, p.Policy.Provider, ix); err == nil {
					sent[h.Ref] = true
				}
			}
		}
	}
	if w := s.Waypoint(gateway); w != nil && w.Takes(api.WaypointForWorkload) {
		others(cluster.GatewayRef(gateway))
	}
	bind := func(ref cluster.ObjectRef, b translate.Binding) {
		if !b.Serves(gateway) {
			return
		}
		bound[ref], sent[ref] = true, true
		for _, r := range ix.Routes(ref) {
			for _, b := range r.Backends() {
				sent[b.Ref] = true
			}
		}
		others(ref)
	}
	for _, svc := range s.Services {
		bind(cluster.ServiceRef(svc.Key), s.ServiceInput(svc).Waypoint)
	}
	for _, e := range s.ServiceEntries {
		bind(cluster.EntryRef(e.Key), s.EntryInput(e).Waypoint)
	}
	return all(s, ix, gateway, func(h *Host) bool { return bound[h.Ref] }, func(h *Host) bool { return sent[h.Ref] })
}

// all translates the routes of hosts that are fronts, and the endpoints of those that are backs.
func all(s translate.Snapshot, ix index, gateway cluster.Key, front, back func(*Host) bool) Config {
	addresses := translate.All(s)
	var workloads []*workload.Workload
	for _, a := range addresses.Addresses {
		if w := a.GetWorkload(); w != nil {
			workloads = append(workloads, w)
		}
	}
	var out Config
	out.Listeners, out.Clusters = Static(s.Mesh)
	var parts []*Part
	for _, h := range ix.hosts {
		policies := Policies{Mesh: s.Mesh, Telemetry: TelemetryFor(s.Mesh, s.Telemetries, h.Ref, gateway), KeySets: keySets(s)}
		for _, p := range s.AuthorizationPolicies {
			if Applies(s.Mesh, p.Namespace, p.Policy.Requests.Targets, h.Ref, gateway) {
				policies.All = append(policies.All, p)
			}
		}
		for _, p := range s.RequestAuthentications {
			if Applies(s.Mesh, p.Namespace, p.Policy.Targets, h.Ref, gateway) {
				policies.Authentications = append(policies.Authentications, p)
			}
		}
		if p := HostPart(h, ix, policies); p != nil && front(h) {
			parts = append(parts, p)
		}
		for _, port := range h.Ports {
			if r := RouteTable(h, port, ix); r != nil && front(h) {
				out.Routes = append(out.Routes, r)
			}
			if !back(h) {
				continue
			}
			out.Clusters = append(out.Clusters, Clusters(s.Mesh, h, port, ix.Rule(h), workloads)...)
			out.LoadAssignments = append(out.LoadAssignments, LoadAssignments(s.Mesh, h, port, workloads)...)
		}
	}
	out.Listeners = slices.Insert(out.Listeners, 1, MainInternal(parts, direct(s, ix, gateway, workloads, &out)...))
	gateways := func(k cluster.Key) (there, waypoint bool) {
		w := s.Waypoint(k)
		return slices.ContainsFunc(s.Gateways, func(g *cluster.Gateway) bool { return g.Key == k }), w != nil && w.Unready == ""
	}
	for _, p := range s.AuthorizationPolicies {
		if p.Policy.Attached {
			out.Policies = append(out.Policies, PolicyStatus(s.Mesh, p, ix, gateways))
		}
	}
	for _, p := range s.RequestAuthentications {
		out.Policies = append(out.Policies, AuthenticationStatus(s.Mesh, p, ix, gateways, keySets(s)))
	}
	for _, r := range s.Routes {
		out.Statuses = append(out.Statuses, RouteStatus{r.Kind, r.Key, Status(r, ix)})
	}
	for _, p := range s.BackendTLSPolicies {
		out.Statuses = append(out.Statuses, RouteStatus{p.ObjectKind(), p.Key, BackendTLSStatus(p, ix)})
	}
	for _, t := range s.Telemetries {
		out.Policies = append(out.Policies, TelemetryStatus(s.Mesh, t, slices.SortedFunc(slices.Values(s.Telemetries), cluster.CompareTelemetries), ix))
	}
	for _, p := range s.TrafficPolicies {
		out.Statuses = append(out.Statuses, RouteStatus{p.ObjectKind(), p.Key, BackendTrafficStatus(p, ix)})
	}
	for _, p := range s.WaypointPolicies {
		out.Statuses = append(out.Statuses, RouteStatus{p.ObjectKind(), p.Key, WaypointPolicyStatus(p, ix, gateways)})
	}
	for _, r := range s.DestinationRules {
		out.Policies = append(out.Policies, RuleStatus(r, ix.rules.Alike(r)))
	}
	for _, v := range s.VirtualServices {
		var others []*cluster.VirtualService
		for _, o := range s.VirtualServices {
			if o.Namespace == v.Namespace {
				others = append(others, o)
			}
		}
		out.Policies = append(out.Policies, VirtualServiceStatus(v, others))
	}
	slices.SortFunc(out.Policies, func(a, b translate.Status) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Key.Compare(b.Key)) })
	slices.SortFunc(out.Statuses, func(a, b RouteStatus) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Key.Compare(b.Key)) })
	return out
}

// direct adds what a waypoint that is for workloads has for them, and returns its chains.
func direct(s translate.Snapshot, ix index, gateway cluster.Key, workloads []*workload.Workload, out *Config) []*listenerv3.FilterChain {
	at := s.Waypoint(gateway)
	if at == nil || !at.Takes(api.WaypointForWorkload) {
		return nil
	}
	out.Routes, out.Clusters = append(out.Routes, DirectRoutes()), append(out.Clusters, DirectCluster())
	bound := s.BoundWorkloads()
	for _, w := range workloads {
		if bound[w.Uid] != gateway {
			continue
		}
		if told := Workload(s.Mesh, w, at); told != nil {
			out.Workloads = append(out.Workloads, told)
		}
	}
	slices.SortFunc(out.Workloads, func(a, b *workload.Workload) int { return strings.Compare(a.Uid, b.Uid) })
	ref := cluster.GatewayRef(gateway)
	policies := Policies{Mesh: s.Mesh, Telemetry: TelemetryFor(s.Mesh, s.Telemetries, ref, gateway), KeySets: keySets(s)}
	for _, p := range s.AuthorizationPolicies {
		if Applies(s.Mesh, p.Namespace, p.Policy.Requests.Targets, ref, gateway) {
			policies.All = append(policies.All, p)
		}
	}
	for _, p := range s.RequestAuthentications {
		if Applies(s.Mesh, p.Namespace, p.Policy.Targets, ref, gateway) {
			policies.Authentications = append(policies.Authentications, p)
		}
	}
	return DirectChains(policies, ix)
}

// keySets finds key sets in a snapshot.
func keySets(s translate.Snapshot) KeySets {
	return func(source authn.Source) *cluster.KeySet {
		if i := slices.IndexFunc(s.KeySets, func(k *cluster.KeySet) bool { return k.Source == source }); i >= 0 {
			return s.KeySets[i]
		}
		return nil
	}
}

// index finds things in a snapshot.
type index struct {
	mesh     translate.Mesh
	waypoint func(cluster.Key) *translate.Waypoint
	routes   []*cluster.Route
	hosts    []*Host
	rules    *Rules
	faults   []*cluster.VirtualService
	policies []*cluster.BackendTLSPolicy
	traffic  []*cluster.BackendTrafficPolicy
	bundles  []*cluster.Bundle
	refining []*cluster.WaypointPolicy
	gateway  cluster.Key // the waypoint; zero for none in particular
}

func newIndex(s translate.Snapshot, gateway cluster.Key) index {
	ix := index{mesh: s.Mesh, gateway: gateway, waypoint: s.Waypoint, refining: s.WaypointPolicies, routes: s.Routes, rules: &Rules{}, faults: s.VirtualServices, policies: s.BackendTLSPolicies, traffic: s.TrafficPolicies, bundles: s.Bundles}
	for _, r := range s.DestinationRules {
		ix.rules.Add(r)
	}
	for _, svc := range s.Services {
		ix.hosts = append(ix.hosts, ServiceHost(s.Mesh, s.ServiceInput(svc)))
	}
	for _, e := range s.ServiceEntries {
		ix.hosts = append(ix.hosts, EntryHosts(s.Mesh, s.EntryInput(e))...)
	}
	for i, h := range ix.hosts {
		ix.hosts[i] = h.Secured(ix).Bounded(ix)
	}
	slices.SortFunc(ix.hosts, (*Host).compare)
	return ix
}

// Host is part of Index.
func (ix index) Host(ref cluster.ObjectRef) *Host {
	if i := slices.IndexFunc(ix.hosts, func(h *Host) bool { return h.Ref == ref }); i >= 0 {
		return ix.hosts[i]
	}
	return nil
}

// Fault is part of Index.
func (ix index) Fault(h *Host) *cluster.Injection { return FaultOf(ix.faults, h) }

// IsWaypoint is part of Index.
func (ix index) IsWaypoint(gateway cluster.Key) bool { return ix.waypoint(gateway) != nil }

// Rule is part of Index.
func (ix index) Rule(h *Host) *cluster.DestinationRule {
	return ix.rules.Lookup(ix.mesh, ix.gateway.Namespace, h)
}

// Named is part of Index.
func (ix index) Named(namespace, hostname string) *Host {
	if key, is := KubernetesService(ix.mesh, hostname); is {
		return ix.Host(cluster.ServiceRef(key))
	}
	if i := slices.IndexFunc(ix.hosts, func(h *Host) bool {
		return h.Hostname == hostname && (namespace == "" || h.Ref.Key.Namespace == namespace)
	}); i >= 0 {
		return ix.hosts[i]
	}
	return nil
}

// Routes is part of Index.
func (ix index) Routes(parent cluster.ObjectRef) []*cluster.Route {
	var out []*cluster.Route
	for _, r := range ix.routes {
		if slices.ContainsFunc(r.Parents, func(p cluster.RouteParent) bool { return p.Ref == parent }) {
			out = append(out, r)
		}
	}
	return out
}

// aimed returns the policies that have an object among their targets.
func aimed[P any](all []P, target cluster.ObjectRef, targets func(P) []cluster.PolicyTarget) []P {
	var out []P
	for _, p := range all {
		if slices.ContainsFunc(targets(p), func(t cluster.PolicyTarget) bool { return t.Ref == target }) {
			out = append(out, p)
		}
	}
	return out
}

// BackendTLS is part of Index.
func (ix index) BackendTLS(target cluster.ObjectRef) []*cluster.BackendTLSPolicy {
	return aimed(ix.policies, target, func(p *cluster.BackendTLSPolicy) []cluster.PolicyTarget { return p.Targets })
}

// BackendTraffic is part of Index.
func (ix index) BackendTraffic(target cluster.ObjectRef) []*cluster.BackendTrafficPolicy {
	return aimed(ix.traffic, target, func(p *cluster.BackendTrafficPolicy) []cluster.PolicyTarget { return p.Targets })
}

// WaypointPolicies is part of Index.
func (ix index) WaypointPolicies(target cluster.ObjectRef) []*cluster.WaypointPolicy {
	return aimed(ix.refining, target, func(p *cluster.WaypointPolicy) []cluster.PolicyTarget { return p.Targets })
}

// Gateway is part of Index.
func (ix index) Gateway() cluster.Key { return ix.gateway }

// Bundle is part of Index.
func (ix index) Bundle(key cluster.Key) *cluster.Bundle {
	if i := slices.IndexFunc(ix.bundles, func(b *cluster.Bundle) bool { return b.Key == key }); i >= 0 {
		return ix.bundles[i]
	}
	return nil
}
