package state

import (
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// ServiceEntries lists all that are known, in no order.
func (s *State) ServiceEntries() []*cluster.ServiceEntry {
	return slices.Collect(maps.Values(s.entries))
}

// setEntry takes a ServiceEntry, nil if it is gone. On it depend its hosts, and the pods and WorkloadEntries that are, or were,
// its endpoints; settle finds others that ask for a host or an address of it.
func (s *State) setEntry(key cluster.Key, e *cluster.ServiceEntry) {
	old := s.entries[key]
	if old == nil && e == nil || old != nil && e != nil && old.Equal(e) {
		return
	}
	var was, is cluster.WaypointUse
	if old != nil {
		was = old.Waypoint
	}
	if e != nil {
		is = e.Waypoint
	}
	s.use(object{cluster.KindServiceEntry, key}, was, is)
	group := s.group(key.Namespace)
	s.touchEntry(key) // its hosts of before
	s.dirty.entries[key] = struct{}{}
	if old != nil {
		s.unclaim(translate.EntryClaims(old))
		if len(old.Selector) > 0 {
			drop(group.choosing, old.Selector[0], key)
		}
		for _, ep := range old.Endpoints {
			drop(s.entriesAt, ep.Addr, key)
		}
		s.unclaimHosts(old)
	}
	if e == nil {
		delete(s.entries, key)
		delete(group.entries, key)
	} else {
		s.entries[key] = e
		group.entries[key] = struct{}{}
		s.claim(translate.EntryClaims(e))
		if len(e.Selector) > 0 {
			add(group.choosing, e.Selector[0], key)
		}
		for _, ep := range e.Endpoints {
			if ep.Addr.IsValid() {
				add(s.entriesAt, ep.Addr, key)
			}
		}
		s.claimHosts(e)
		s.touchEntry(key)
	}
	if !sameMembers(old, e) {
		for _, changed := range []*cluster.ServiceEntry{old, e} {
			if changed == nil {
				continue
			}
			s.touchMembers(changed)
		}
	}
	s.ungroup(key.Namespace)
}

// sameMembers reports whether both states of an entry are the same to its endpoints.
func sameMembers(a, b *cluster.ServiceEntry) bool {
	if a == nil || b == nil {
		return false
	}
	x, y := *a, *b
	x.Assigned, x.Generation, x.Seen, x.Bound = y.Assigned, y.Generation, y.Seen, y.Bound
	return x.Equal(&y)
}

// SetShortages takes the virtual addresses that could not be given to ServiceEntries. It keeps the map.
func (s *State) SetShortages(all map[cluster.Key][]cluster.Shortage) {
	for _, side := range []map[cluster.Key][]cluster.Shortage{s.shortages, all} {
		for k := range side {
			if s.entries[k] != nil && !slices.Equal(s.shortages[k], all[k]) {
				s.dirty.entries[k] = struct{}{}
			}
		}
	}
	s.shortages = all
}

// touchEntry marks an entry and its hosts.
func (s *State) touchEntry(key cluster.Key) {
	e := s.entries[key]
	if e == nil {
		return
	}
	s.dirty.entries[key] = struct{}{}
	for _, h := range e.Hosts {
		s.dirty.hosts[cluster.Key{Namespace: key.Namespace, Name: h}] = struct{}{}
	}
}

// touchMembers marks the pods and WorkloadEntries that are an entry's endpoints.
func (s *State) touchMembers(e *cluster.ServiceEntry) {
	if len(e.Selector) > 0 {
		group := s.group(e.Namespace)
		for k := range group.pods {
			if s.pods[k].Labels.Contains(e.Selector) {
				s.dirty.pods[k] = struct{}{}
			}
		}
		s.touchWorkloadEntries(group, e.Selector)
	}
	for _, ep := range e.Endpoints {
		for _, p := range s.podsAt[ep.Addr] {
			s.dirty.pods[p.Key] = struct{}{}
		}
	}
}

// touchWorkloadEntries marks those of a namespace that have the selector's labels.
func (s *State) touchWorkloadEntries(group *namespace, selector cluster.Labels) {
	for k := range group.workloadEntries {
		if s.workloadEntries[k].Labels.Contains(selector) {
			s.dirty.workloadEntries[k] = struct{}{}
		}
	}
}

// touchEntriesAt marks what of ServiceEntries and WorkloadEntries is at an address.
func (s *State) touchEntriesAt(addr netip.Addr) {
	for k := range s.entriesAt[addr] {
		s.dirty.entries[k] = struct{}{}
	}
	for k := range s.workloadEntriesAt[addr] {
		s.dirty.workloadEntries[k] = struct{}{}
	}
}

// setWorkloadEntry takes a WorkloadEntry, nil if it is gone.
func (s *State) setWorkloadEntry(key cluster.Key, e *cluster.WorkloadEntry) {
	old := s.workloadEntries[key]
	if old == nil && e == nil || old != nil && e != nil && old.Equal(e) {
		return
	}
	s.dirty.workloadEntries[key] = struct{}{}
	var was, is cluster.WaypointUse
	if old != nil {
		was = cluster.UseOf(old.Labels)
	}
	if e != nil {
		is = cluster.UseOf(e.Labels)
	}
	s.use(object{cluster.KindWorkloadEntry, key}, was, is)
	group := s.group(key.Namespace)
	if old != nil {
		drop(s.workloadEntriesAt, old.Addr, key)
	}
	if e == nil {
		delete(s.workloadEntries, key)
		delete(group.workloadEntries, key)
	} else {
		s.workloadEntries[key] = e
		group.workloadEntries[key] = struct{}{}
		if e.Addr.IsValid() {
			add(s.workloadEntriesAt, e.Addr, key)
		}
	}
	s.ungroup(key.Namespace)
}

// entryInput gathers what a translation of an entry needs.
func (c *collector) entryInput(e *cluster.ServiceEntry) translate.EntryInput {
	if in, ok := c.inputs[e]; ok {
		return in
	}
	s := c.state
	in := translate.EntryInput{Entry: e, Lost: s.lost(e), Shortages: s.shortages[e.Key], Namespace: s.namespaceOf(e.Namespace)}
	in.Waypoint = s.bind(translate.EntryBind(e, in.Namespace))
	for _, claim := range translate.EntryClaims(e) {
		if rival, granted := translate.Settle(claim, s.rivals(claim)); !granted {
			if in.Rivals == nil {
				in.Rivals = map[netip.Addr]translate.Rival{}
			}
			in.Rivals[claim.Addr] = rival
		}
	}
	for _, ep := range e.Endpoints {
		if len(s.podsAt[ep.Addr]) > 0 {
			if in.Pods == nil {
				in.Pods = map[netip.Addr]bool{}
			}
			in.Pods[ep.Addr] = true
		}
		if s.virtual(ep.Addr) {
			if in.Virtual == nil {
				in.Virtual = map[netip.Addr]bool{}
			}
			in.Virtual[ep.Addr] = true
		}
	}
	c.inputs[e] = in
	return in
}

// lost says who has the hosts of an entry that it has not.
func (s *State) lost(e *cluster.ServiceEntry) map[string]string {
	var out map[string]string
	for _, h := range e.Hosts {
		owner := s.ownerOf(e.Namespace, h)
		if owner == e || e.Visibility == cluster.VisibleNone {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[h] = translate.LostTo(owner)
	}
	return out
}

// chosen lists the ServiceEntries that a pod, or a WorkloadEntry if pod is nil, is an endpoint of.
func (c *collector) chosen(namespace string, labels cluster.Labels, pod *cluster.Pod) []translate.EntryAttachment {
	s := c.state
	var out []translate.EntryAttachment
	if n := s.namespaces[namespace]; n != nil && len(n.choosing) > 0 {
		for _, label := range labels {
			for k := range n.choosing[label] {
				if e := s.entries[k]; translate.SelectsEntry(e, namespace, labels) {
					out = append(out, translate.EntryAttachment{Entry: e})
				}
			}
		}
	}
	if pod.HasPlace() && len(s.entriesAt) > 0 {
		seen := set[cluster.Key]{}
		for _, ip := range pod.IPs {
			for k := range s.entriesAt[ip] {
				if _, twice := seen[k]; !twice {
					seen[k] = struct{}{}
					out = append(out, translate.EntryAttachment{Entry: s.entries[k], Endpoint: translate.Lists(s.entries[k], pod)})
				}
			}
		}
	}
	for i := range out {
		out[i].Hosts = c.entryInput(out[i].Entry).Hosts()
	}
	translate.SortEntryAttachments(out)
	return out
}

// host translates what has a host in a namespace, unless that is a Kubernetes service, which translates itself.
func (c *collector) host(k cluster.Key) {
	s := c.state
	if service, served := s.served(k.Name); served && service.Namespace == k.Namespace {
		return
	}
	name := resource.Name{Type: resource.Address, Name: translate.EntryName(k.Namespace, k.Name)}
	owner := s.ownerOf(k.Namespace, k.Name)
	if owner == nil {
		c.remove(name)
		return
	}
	content := translate.EntryService(s.mesh, c.entryInput(owner), k.Name, s.canonicalOf(k.Name) == owner)
	var problems []translate.Problem
	c.put(name, &workload.Address{Type: &workload.Address_Service{Service: content}}, object{cluster.KindServiceEntry, owner.Key}, &problems)
}

// entry translates the endpoints of a ServiceEntry, and says what is wrong with it.
func (c *collector) entry(k cluster.Key) {
	s := c.state
	o := object{cluster.KindServiceEntry, k}
	e := s.entries[k]
	if e == nil {
		c.many(o, resource.Address, nil, nil)
		s.gone(o, authz.ConditionType)
		s.unbound(o)
		c.requires(cluster.EntryRef(k), translate.Binding{}, nil)
		return
	}
	in := c.entryInput(e)
	contents := map[string]proto.Message{}
	for uid, w := range translate.EntryEndpoints(s.mesh, in) {
		contents[uid] = address(w)
	}
	problems := in.Problems()
	c.requires(cluster.EntryRef(k), in.Waypoint, &problems)
	c.many(o, resource.Address, contents, problems)
	s.report.Statuses = append(s.report.Statuses, translate.EntryStatus(in, problems))
	s.tellBound(translate.EntryWaypointStatus(e, in.Waypoint))
}

// workloadEntry translates a WorkloadEntry.
func (c *collector) workloadEntry(k cluster.Key) {
	s := c.state
	o := object{cluster.KindWorkloadEntry, k}
	name := resource.Name{Type: resource.Address, Name: translate.WorkloadEntryUID(s.mesh, k)}
	e := s.workloadEntries[k]
	ref := cluster.ObjectRef{Group: cluster.GroupIstioNetworking, Kind: cluster.KindWorkloadEntry, Key: k}
	if e == nil {
		c.reside(ref, name.Name, nil, translate.Binding{}, nil)
		c.one(o, name, nil, nil)
		s.gone(o, authz.ConditionType)
		s.unbound(o)
		return
	}
	in := translate.WorkloadEntryInput{
		Entry: e, Entries: c.chosen(k.Namespace, e.Labels, nil), Policies: s.policiesOf(k.Namespace, e.Labels),
		Virtual: s.virtual(e.Addr), Waypoint: s.bind(translate.WorkloadEntryBind(e, s.namespaceOf(e.Namespace))),
	}
	if at := s.podsAt[e.Addr]; len(at) > 0 {
		in.Pod = slices.MinFunc(at, func(a, b *cluster.Pod) int { return a.Key.Compare(b.Key) })
	}
	for k := range s.selectedBy(e.Namespace, e.Labels) {
		if svc := s.services[k]; !svc.External {
			in.Services = append(in.Services, svc)
		}
	}
	in.Policies = append(in.Policies, c.required(translate.EndpointOf{Namespace: k.Namespace, Services: in.Services, Entries: in.Entries})...)
	w, problems := translate.WorkloadEntry(s.mesh, in)
	var content proto.Message
	if w != nil {
		content = address(w)
	}
	c.one(o, name, content, problems)
	c.reside(ref, name.Name, w, in.Waypoint, nil)
	s.report.Statuses = append(s.report.Statuses, translate.WorkloadEntryStatus(e, problems))
	s.tellBound(translate.WorkloadEntryWaypointStatus(e, in.Waypoint))
}

// selectedBy finds the services whose selectors pick what has these labels.
func (s *State) selectedBy(namespace string, labels cluster.Labels) set[cluster.Key] {
	out := set[cluster.Key]{}
	if n := s.namespaces[namespace]; n != nil {
		for _, label := range labels {
			for k := range n.selecting[label] {
				if labels.Contains(s.services[k].Selector) {
					out[k] = struct{}{}
				}
			}
		}
	}
	return out
}
