package translate

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// entries is the part of All that is about ServiceEntries and WorkloadEntries.
func (s Snapshot) entries(out *Config) {
	for _, e := range s.ServiceEntries {
		in := s.EntryInput(e)
		problems := in.Problems()
		out.Problems = append(out.Problems, problems...)
		out.Statuses = append(out.Statuses, EntryStatus(in, problems))
		if status := EntryWaypointStatus(e, in.Waypoint); !status.Gone {
			out.Statuses = append(out.Statuses, status)
		}
		if a := RequiredPolicy(s.Mesh, cluster.EntryRef(e.Key), in.Waypoint); a != nil {
			out.Authorizations[AuthorizationName(a)] = a
		}
		for uid, w := range EntryEndpoints(s.Mesh, in) {
			out.Addresses[uid] = &workload.Address{Type: &workload.Address_Workload{Workload: w}}
		}
		for _, h := range in.Hosts() {
			all, _, served := s.claimants(h)
			content := EntryService(s.Mesh, in, h, !served && CanonicalEntry(all) == e)
			out.Addresses[EntryName(e.Namespace, h)] = &workload.Address{Type: &workload.Address_Service{Service: content}}
		}
	}
	for _, e := range s.WorkloadEntries {
		in := WorkloadEntryInput{
			Entry: e, Entries: s.chosen(e.Namespace, e.Labels, nil), Policies: s.policies(e.Namespace, e.Labels), Virtual: len(s.claims(e.Addr)) > 0,
		}
		for _, svc := range s.Services {
			if len(svc.Selector) > 0 && !svc.External && svc.Namespace == e.Namespace && e.Labels.Contains(svc.Selector) {
				in.Services = append(in.Services, svc)
			}
		}
		in.Policies = append(in.Policies, s.required(EndpointOf{e.Namespace, in.Services, in.Entries})...)
		for _, p := range s.Pods {
			if p.HasPlace() && slices.Contains(p.IPs, e.Addr) && (in.Pod == nil || p.Key.Compare(in.Pod.Key) < 0) {
				in.Pod = p
			}
		}
		in.Waypoint = Bind(s.Mesh, WorkloadEntryBind(e, s.namespace(e.Namespace)), s.Waypoint)
		w, problems := WorkloadEntry(s.Mesh, in)
		out.Problems = append(out.Problems, problems...)
		out.Statuses = append(out.Statuses, WorkloadEntryStatus(e, problems))
		if status := WorkloadEntryWaypointStatus(e, in.Waypoint); !status.Gone {
			out.Statuses = append(out.Statuses, status)
		}
		if w != nil {
			out.Addresses[w.Uid] = &workload.Address{Type: &workload.Address_Workload{Workload: w}}
		}
	}
}

// claims lists all claims to an address.
func (s Snapshot) claims(addr netip.Addr) []Claim {
	var all []Claim
	for _, n := range s.Nodes {
		all = append(all, NodeClaims(n)...)
	}
	for _, o := range s.Services {
		all = append(all, Claims(o)...)
	}
	for _, e := range s.ServiceEntries {
		all = append(all, EntryClaims(e)...)
	}
	return slices.DeleteFunc(all, func(c Claim) bool { return c.Addr != addr })
}

// claimants lists the entries that have a host, and the Kubernetes service that has it as its name.
func (s Snapshot) claimants(host string) (all []*cluster.ServiceEntry, service cluster.Key, served bool) {
	for _, e := range s.ServiceEntries {
		if slices.Contains(e.Hosts, host) {
			all = append(all, e)
		}
	}
	for _, svc := range s.Services {
		if !svc.External && Hostname(s.Mesh, svc.Key) == host {
			return all, svc.Key, true
		}
	}
	return all, cluster.Key{}, false
}

// EntryInput is a ServiceEntry of the snapshot and what it depends on.
func (s Snapshot) EntryInput(e *cluster.ServiceEntry) EntryInput {
	in := EntryInput{
		Entry: e, Lost: map[string]string{}, Rivals: map[netip.Addr]Rival{}, Pods: map[netip.Addr]bool{}, Virtual: map[netip.Addr]bool{},
		Shortages: s.Shortages[e.Key],
	}
	in.Namespace = s.namespace(e.Namespace)
	in.Waypoint = Bind(s.Mesh, EntryBind(e, in.Namespace), s.Waypoint)
	for _, h := range e.Hosts {
		all, service, served := s.claimants(h)
		owner := FirstEntry(slices.DeleteFunc(all, func(o *cluster.ServiceEntry) bool { return o.Namespace != e.Namespace }))
		if served && service.Namespace == e.Namespace {
			owner = nil
		}
		if owner != e && e.Visibility != cluster.VisibleNone {
			in.Lost[h] = LostTo(owner)
		}
	}
	for _, claim := range EntryClaims(e) {
		if rival, granted := Settle(claim, s.claims(claim.Addr)); !granted {
			in.Rivals[claim.Addr] = rival
		}
	}
	for _, ep := range e.Endpoints {
		in.Virtual[ep.Addr] = len(s.claims(ep.Addr)) > 0
		for _, p := range s.Pods {
			if p.HasPlace() && slices.Contains(p.IPs, ep.Addr) {
				in.Pods[ep.Addr] = true
			}
		}
	}
	return in
}

// chosen lists the ServiceEntries that a pod, or a WorkloadEntry if pod is nil, is an endpoint of.
func (s Snapshot) chosen(namespace string, labels cluster.Labels, pod *cluster.Pod) []EntryAttachment {
	var out []EntryAttachment
	for _, e := range s.ServiceEntries {
		at := EntryAttachment{Entry: e}
		if pod != nil {
			at.Endpoint = Lists(e, pod)
		}
		if at.Endpoint != nil || SelectsEntry(e, namespace, labels) {
			at.Hosts = s.EntryInput(e).Hosts()
			out = append(out, at)
		}
	}
	SortEntryAttachments(out)
	return out
}
