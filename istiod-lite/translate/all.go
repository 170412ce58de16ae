package translate

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Snapshot is all that is known of a cluster.
type Snapshot struct {
	Mesh                  Mesh
	Namespaces            []*cluster.Namespace
	Nodes                 []*cluster.Node
	Pods                  []*cluster.Pod
	Services              []*cluster.Service
	EndpointSlices        []*cluster.EndpointSlice
	PeerAuthentications   []*cluster.PeerAuthentication
	AuthorizationPolicies []*cluster.AuthorizationPolicy
	ServiceEntries        []*cluster.ServiceEntry
	WorkloadEntries       []*cluster.WorkloadEntry
	Gateways              []*cluster.Gateway
	GatewayClasses        []*cluster.GatewayClass
	Deployments           []*cluster.Deployment
	// Those that follow are translated by package l7.
	Routes                 []*cluster.Route
	DestinationRules       []*cluster.DestinationRule
	VirtualServices        []*cluster.VirtualService
	BackendTLSPolicies     []*cluster.BackendTLSPolicy
	TrafficPolicies        []*cluster.BackendTrafficPolicy
	Bundles                []*cluster.Bundle
	Telemetries            []*cluster.Telemetry
	RequestAuthentications []*cluster.RequestAuthentication
	KeySets                []*cluster.KeySet
	WaypointPolicies       []*cluster.WaypointPolicy
	// Shortages are those of ServiceEntries.
	Shortages map[cluster.Key][]cluster.Shortage
}

// Config is what data planes are told of it.
type Config struct {
	Settings *extension.Settings
	// Addresses by resource name.
	Addresses map[string]*workload.Address
	// Authorizations by resource name.
	Authorizations map[string]*security.Authorization
	// Problems are sorted.
	Problems []Problem
	// Statuses are what objects should say of themselves.
	Statuses []Status
}

// All translates a cluster at once. It looks at everything for each object, so its cost is the square of the cluster's size:
// it is for checks and small inputs.
func All(s Snapshot) Config {
	out := Config{Settings: Settings(s.Mesh), Addresses: map[string]*workload.Address{}, Authorizations: map[string]*security.Authorization{}}
	for _, a := range Static(s.Mesh) {
		out.Authorizations[AuthorizationName(a)] = a
	}
	for _, p := range s.PeerAuthentications {
		as, problems := PeerAuthentication(p)
		for _, a := range as {
			out.Authorizations[AuthorizationName(a)] = a
		}
		out.Problems = append(out.Problems, problems...)
		if first := s.widest(p.Namespace); len(p.Selector) == 0 && first != p {
			out.Problems = append(out.Problems, Shadowed(p, first))
		}
	}
	for _, p := range s.AuthorizationPolicies {
		a, problems := AuthorizationPolicy(s.Mesh, p)
		if a != nil {
			out.Authorizations[AuthorizationName(a)] = a
		}
		out.Problems = append(out.Problems, problems...)
		out.Statuses = append(out.Statuses, AuthorizationPolicyStatus(p))
	}
	for _, svc := range s.Services {
		in := s.ServiceInput(svc)
		if status := ServiceStatus(svc, in.Waypoint); !status.Gone {
			out.Statuses = append(out.Statuses, status)
		}
		if a := RequiredPolicy(s.Mesh, cluster.ServiceRef(svc.Key), in.Waypoint); a != nil {
			out.Authorizations[AuthorizationName(a)] = a
		}
		w, problems := Service(s.Mesh, in)
		if w != nil {
			out.Addresses[ServiceName(s.Mesh, svc.Key)] = &workload.Address{Type: &workload.Address_Service{Service: w}}
		}
		out.Problems = append(out.Problems, problems...)
	}
	for _, p := range s.Pods {
		w, problems := Pod(s.Mesh, s.podInput(p))
		if w != nil {
			out.Addresses[w.Uid] = &workload.Address{Type: &workload.Address_Workload{Workload: w}}
		}
		out.Problems = append(out.Problems, problems...)
	}
	for _, slice := range s.EndpointSlices {
		out.Problems = append(out.Problems, Faults(slice, slice.Faults)...)
		svc := s.service(slice.ServiceKey())
		if svc == nil || svc.External {
			continue
		}
		for _, e := range slice.Endpoints {
			if Standalone(e) && len(s.podsOf(slice, e)) == 0 {
				w := Endpoint(s.Mesh, Attachment{svc, slice}, e, s.node(e.Node))
				out.Addresses[w.Uid] = &workload.Address{Type: &workload.Address_Workload{Workload: w}}
			}
		}
	}
	s.entries(&out)
	SortProblems(out.Problems)
	return out
}

// SortProblems sorts by kind, object and message.
func SortProblems(ps []Problem) {
	slices.SortFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Key.Compare(b.Key), cmp.Compare(a.Message, b.Message))
	})
}

// Standalone reports whether an endpoint may be a workload of its own: it does not say that it is a pod. One that does, and
// whose pod is not known, is left out until it is: the pod may be captured, and must not be spoken to in plain.
func Standalone(e cluster.Endpoint) bool { return e.Pod == "" }

// Backs reports whether a pod is the endpoint e of a slice: the slice names it, or gives its own address.
func Backs(p *cluster.Pod, slice *cluster.EndpointSlice, e cluster.Endpoint) bool {
	if !p.Present() {
		return false
	}
	if e.Pod != "" {
		return p.Key == cluster.Key{Namespace: slice.Namespace, Name: e.Pod}
	}
	return p.HasPlace() && slices.Contains(p.IPs, e.Addr)
}

// Selects reports whether a service's selector picks a pod. A service without one picks none.
func Selects(s *cluster.Service, p *cluster.Pod) bool {
	return len(s.Selector) > 0 && !s.External && s.Namespace == p.Namespace && p.Labels.Contains(s.Selector)
}

// SortAttachments brings attachments into the order in which they are translated: selectors before slices.
func SortAttachments(as []Attachment) {
	slices.SortFunc(as, func(a, b Attachment) int {
		if c := a.Service.Key.Compare(b.Service.Key); c != 0 {
			return c
		}
		switch {
		case a.Slice == nil && b.Slice == nil:
			return 0
		case a.Slice == nil:
			return -1
		case b.Slice == nil:
			return 1
		}
		return a.Slice.Key.Compare(b.Slice.Key)
	})
}

// ServiceInput is a service of the snapshot and what it depends on.
func (s Snapshot) ServiceInput(svc *cluster.Service) ServiceInput {
	in := ServiceInput{Service: svc, Namespace: s.namespace(svc.Namespace)}
	if !svc.External {
		in.Waypoint = Bind(s.Mesh, ServiceBind(svc, in.Namespace), s.Waypoint)
	}
	for _, claim := range Claims(svc) {
		if rival, granted := Settle(claim, s.claims(claim.Addr)); !granted {
			if in.Rivals == nil {
				in.Rivals = map[netip.Addr]Rival{}
			}
			in.Rivals[claim.Addr] = rival
		}
	}
	return in
}

func (s Snapshot) podInput(p *cluster.Pod) PodInput {
	in := PodInput{Pod: p, Node: s.node(p.Node), Others: s.Pods, Waypoint: Bind(s.Mesh, PodBind(p, s.namespace(p.Namespace)), s.Waypoint)}
	for _, svc := range s.Services {
		if Selects(svc, p) {
			in.Services = append(in.Services, Attachment{Service: svc})
		}
	}
	for _, slice := range s.EndpointSlices {
		svc := s.service(slice.ServiceKey())
		if svc == nil || svc.External {
			continue
		}
		if slices.ContainsFunc(slice.Endpoints, func(e cluster.Endpoint) bool { return Backs(p, slice, e) }) {
			in.Services = append(in.Services, Attachment{svc, slice})
		}
	}
	SortAttachments(in.Services)
	in.Entries = s.chosen(p.Namespace, p.Labels, p)
	in.Policies = append(s.policies(p.Namespace, p.Labels), s.required(EndpointOf{p.Namespace, ServicesOf(in.Services), in.Entries})...)
	return in
}

// required names the authorisations of services and ServiceEntries that an endpoint has to obey.
func (s Snapshot) required(e EndpointOf) []string {
	return e.Policies(func(svc *cluster.Service) Binding {
		return Bind(s.Mesh, ServiceBind(svc, s.namespace(svc.Namespace)), s.Waypoint)
	}, func(e *cluster.ServiceEntry) Binding {
		return Bind(s.Mesh, EntryBind(e, s.namespace(e.Namespace)), s.Waypoint)
	})
}

// policies names those that select a workload of a namespace, with these labels.
func (s Snapshot) policies(namespace string, labels cluster.Labels) []string {
	var selected *cluster.PeerAuthentication
	for _, pa := range s.PeerAuthentications {
		inScope := pa.Namespace == namespace || pa.Namespace == s.Mesh.RootNamespace
		if inScope && len(pa.Selector) > 0 && labels.Contains(pa.Selector) && (selected == nil || Older(pa, selected) < 0) {
			selected = pa
		}
	}
	inherited := Inherited(s.widest(s.Mesh.RootNamespace), s.widest(namespace))
	var policies []*cluster.AuthorizationPolicy
	for _, ap := range s.AuthorizationPolicies {
		if Authorizes(s.Mesh, ap, namespace, labels) {
			policies = append(policies, ap)
		}
	}
	return PoliciesOf(PeerAuthenticationPolicies(s.Mesh, inherited, selected), policies)
}

// widest is the policy of a namespace that has no selector and counts.
func (s Snapshot) widest(namespace string) *cluster.PeerAuthentication {
	var first *cluster.PeerAuthentication
	for _, p := range s.PeerAuthentications {
		if p.Namespace == namespace && len(p.Selector) == 0 && (first == nil || Older(p, first) < 0) {
			first = p
		}
	}
	return first
}

func (s Snapshot) podsOf(slice *cluster.EndpointSlice, e cluster.Endpoint) []*cluster.Pod {
	var out []*cluster.Pod
	for _, p := range s.Pods {
		if Backs(p, slice, e) {
			out = append(out, p)
		}
	}
	return out
}

// Waypoint looks up a waypoint, nil if there is no such Gateway or it is none.
func (s Snapshot) Waypoint(k cluster.Key) *Waypoint {
	in := WaypointInput{Service: s.service(k)}
	for _, g := range s.Gateways {
		if g.Key == k {
			in.Gateway = g
		}
	}
	for _, d := range s.Deployments {
		if d.Key == k {
			in.Deployment = d
		}
	}
	for _, c := range s.GatewayClasses {
		if in.Gateway != nil && c.Name == in.Gateway.Class {
			in.Class = c
		}
	}
	return WaypointOf(s.Mesh, in)
}

// BoundWorkloads are the waypoints to which workloads are bound, ready or not, by the workload's uid.
func (s Snapshot) BoundWorkloads() map[string]cluster.Key {
	out := map[string]cluster.Key{}
	bind := func(uid string, in BindInput) {
		if b := Bind(s.Mesh, in, s.Waypoint); b.Waypoint != nil {
			out[uid] = b.Waypoint.Key
		}
	}
	for _, p := range s.Pods {
		bind(PodUID(s.Mesh, p.Key), PodBind(p, s.namespace(p.Namespace)))
	}
	for _, e := range s.WorkloadEntries {
		bind(WorkloadEntryUID(s.Mesh, e.Key), WorkloadEntryBind(e, s.namespace(e.Namespace)))
	}
	return out
}

func (s Snapshot) namespace(name string) *cluster.Namespace {
	for _, ns := range s.Namespaces {
		if ns.Name == name {
			return ns
		}
	}
	return nil
}

func (s Snapshot) service(k cluster.Key) *cluster.Service {
	for _, svc := range s.Services {
		if svc.Key == k {
			return svc
		}
	}
	return nil
}

func (s Snapshot) node(name string) *cluster.Node {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}
