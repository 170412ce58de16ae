package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// Parts of the keys of workloads that ServiceEntries and WorkloadEntries become. Istio's.
const (
	serviceEntryGVK  = "networking.istio.io/ServiceEntry"
	workloadEntryGVK = "networking.istio.io/WorkloadEntry"
)

// EntryName is the key of a service that a ServiceEntry became: "namespace/host".
func EntryName(namespace, host string) string { return namespace + "/" + host }

// HostService names the Kubernetes service whose host name this would be.
func HostService(m Mesh, host string) (cluster.Key, bool) {
	rest, ok := strings.CutSuffix(host, ".svc."+m.ClusterDomain)
	name, namespace, two := strings.Cut(rest, ".")
	return cluster.Key{Namespace: namespace, Name: name}, ok && two && !strings.Contains(namespace, ".")
}

// FirstEntry is who has a host among ServiceEntries: the oldest, then the first by name, that anybody sees; nil if there is
// none. Within a namespace a Kubernetes service of that name has it before them.
func FirstEntry(entries []*cluster.ServiceEntry) *cluster.ServiceEntry {
	var first *cluster.ServiceEntry
	for _, e := range entries {
		if e.Visibility != cluster.VisibleNone && (first == nil || CompareEntries(e, first) < 0) {
			first = e
		}
	}
	return first
}

// CompareEntries is the order in which entries have what several ask for: the oldest first, then by name.
func CompareEntries(a, b *cluster.ServiceEntry) int {
	return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key))
}

// CanonicalEntry is the entry that clients of namespaces without one of their own for a host are led to: the first that
// they see.
func CanonicalEntry(entries []*cluster.ServiceEntry) *cluster.ServiceEntry {
	return FirstEntry(slices.DeleteFunc(slices.Clone(entries), func(e *cluster.ServiceEntry) bool { return e.Visibility != cluster.VisiblePublic }))
}

// LostTo says who has a host: an entry or, if that is nil, a Kubernetes service.
func LostTo(owner *cluster.ServiceEntry) string {
	if owner == nil {
		return "that of a Kubernetes Service"
	}
	return "that of ServiceEntry " + owner.Key.String() + ", which is older or the first by name"
}

// EntryInput is a ServiceEntry and what it depends on.
type EntryInput struct {
	Entry *cluster.ServiceEntry
	// Namespace is the entry's, nil while it is not known.
	Namespace *cluster.Namespace
	// Lost says, for each host of the entry that another has in its namespace, who that is.
	Lost map[string]string
	// Rivals names, for each virtual address that the entry does not own, who does.
	Rivals map[netip.Addr]Rival
	// Pods are the addresses of endpoints that are pods': those are the endpoints then.
	Pods map[netip.Addr]bool
	// Virtual are the addresses of endpoints that are virtual ones, or nodes' own.
	Virtual map[netip.Addr]bool
	// Shortages are the virtual addresses that could not be given.
	Shortages []cluster.Shortage
	// Waypoint is the decision on the entry's.
	Waypoint Binding
}

// Hosts lists those that the entry has.
func (in EntryInput) Hosts() []string {
	if in.Entry.Visibility == cluster.VisibleNone {
		return nil
	}
	var out []string
	for _, h := range in.Entry.Hosts {
		if _, lost := in.Lost[h]; !lost {
			out = append(out, h)
		}
	}
	return out
}

// shortages are those of hosts that want addresses still.
func (in EntryInput) shortages() []cluster.Shortage {
	if len(in.Shortages) == 0 || !in.Entry.WantsAddresses() {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(in.Shortages), func(s cluster.Shortage) bool { return !slices.Contains(in.Entry.Hosts, s.Host) })
}

// Problems lists what is wrong with an entry.
func (in EntryInput) Problems() []Problem {
	e := in.Entry
	problems := Faults(e, e.Faults)
	add := func(format string, args ...any) {
		problems = append(problems, Problem{e.ObjectKind(), e.Key, fmt.Sprintf(format, args...)})
	}
	for _, h := range e.Hosts {
		if who, lost := in.Lost[h]; lost {
			add("host %s is %s", h, who)
		}
		if cluster.IsWildcard(h) && e.Resolution == cluster.ResolutionDNS && len(e.Endpoints) == 0 && len(e.Selector) == 0 {
			add("host %s: resolution DNS cannot look up a wildcard; give endpoints, or resolution NONE", h)
		}
	}
	for _, c := range EntryClaims(e) {
		if rival, lost := in.Rivals[c.Addr]; lost {
			add("address %s is %s, %s", c.Addr, rivalName(rival), rival.Outcome)
		}
	}
	for _, s := range in.shortages() {
		add("host %s: no virtual address is left in %s: give spec.addresses, or remove entries that nobody needs", s.Host, s.Range)
	}
	switch {
	case len(e.Faults) > 0 && len(e.Hosts) == 0: // it could not be read
	case e.Resolution == cluster.ResolutionDynamic:
		add("resolution DYNAMIC_DNS needs a waypoint, which this release does not have")
	case e.Resolution == cluster.ResolutionStatic && len(e.Endpoints) == 0 && len(e.Selector) == 0:
		add("resolution STATIC has neither endpoints nor workloadSelector: connections are refused")
	case e.Resolution == cluster.ResolutionNone && len(e.Addresses) == 0 && !slices.ContainsFunc(e.Hosts, cluster.IsWildcard):
		add("resolution NONE without addresses: nothing tells which connections are meant")
	}
	if e.ListedNamespaces {
		add("spec.exportTo: single namespaces cannot be told to node proxies; the entry is visible everywhere (use \".\" for its own only)")
	}
	if fault := distributionFault(e.Distribution); fault != "" {
		add("%s", fault)
	}
	return problems
}

func rivalName(r Rival) string {
	if r.Key == (cluster.Key{}) {
		return "a node's"
	}
	if r.Entry {
		return "that of ServiceEntry " + r.Key.String()
	}
	return "that of Service " + r.Key.String()
}

// distributionFault says what is wrong with a value of api.AnnotationTrafficDistribution, "" if nothing is.
func distributionFault(value string) string {
	_, fault := loadBalancing(&cluster.Service{DistributionAnnotation: value}, nil)
	return fault
}

// EntryStatus says what became of an entry.
func EntryStatus(in EntryInput, problems []Problem) Status {
	want := accepted(in.Entry.Generation, problems)
	if len(problems) > 0 && len(in.Hosts()) > 0 {
		want.Reason = reasonPartially
	}
	if len(in.shortages()) > 0 {
		want.Reason = reasonShortage
	}
	if len(in.Lost) > 0 {
		want.Reason = reasonConflict
	}
	return Status{Kind: in.Entry.ObjectKind(), Key: in.Entry.Key, Type: authz.ConditionType, Want: want, Seen: in.Entry.Seen}
}

// Reasons of conditions on ServiceEntries and WorkloadEntries.
const (
	reasonAccepted  = "Accepted"
	reasonInvalid   = "Invalid"
	reasonPartially = "PartiallyInvalid"
	reasonConflict  = "Conflicted"
	reasonShortage  = "NoAddressLeft"
)

// maxMessage bounds the message of a condition, in bytes; Kubernetes' own limit is 32 KiB.
const maxMessage = 1024

func accepted(generation int64, problems []Problem) cluster.Condition {
	c := cluster.Condition{Type: authz.ConditionType, Status: "True", Reason: reasonAccepted, Message: "known to node proxies", Generation: generation}
	if len(problems) > 0 {
		var messages []string
		for _, p := range problems {
			messages = append(messages, p.Message)
		}
		c.Status, c.Reason, c.Message = "False", reasonInvalid, strings.Join(messages, "; ")
		if len(c.Message) > maxMessage {
			c.Message = strings.ToValidUTF8(c.Message[:maxMessage], "") + "..."
		}
	}
	return c
}

// EntryClaims lists the single virtual addresses that an entry asks for.
func EntryClaims(e *cluster.ServiceEntry) []Claim {
	var out []Claim
	if e.Visibility == cluster.VisibleNone {
		return nil
	}
	claim := func(a netip.Addr) {
		c := Claim{a, ClaimEntry, e.Key, e.Created}
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	for _, p := range e.Addresses {
		if p.IsSingleIP() {
			claim(p.Addr())
		}
	}
	if e.WantsAddresses() {
		for _, a := range e.Assigned {
			claim(a.Addr)
		}
	}
	return out
}

// EntryService translates one host of an entry, which must be among its Hosts. Canonical says that it is CanonicalEntry and
// that no Kubernetes service has the host name.
func EntryService(m Mesh, in EntryInput, host string, canonical bool) *workload.Service {
	e := in.Entry
	out := &workload.Service{
		Name: e.Name, Namespace: e.Namespace, Hostname: host, Canonical: canonical, SubjectAltNames: e.SubjectAltNames,
		Waypoint:          in.Waypoint.Address,
		WeightedWaypoints: in.Waypoint.Shares,
	}
	if e.Visibility == cluster.VisibleNamespace {
		out.Visibility = workload.Service_NAMESPACE
	}
	address := func(p netip.Prefix) {
		a := &workload.NetworkAddress{Network: m.Network, Address: p.Addr().AsSlice()}
		if !p.IsSingleIP() {
			a.Length = wrapperspb.UInt32(uint32(p.Bits()))
		} else if _, lost := in.Rivals[p.Addr()]; lost {
			return
		}
		out.Addresses = append(out.Addresses, a)
	}
	for _, p := range e.Addresses {
		address(p)
	}
	if e.WantsAddresses() {
		for _, a := range e.Assigned {
			if a.Host == host {
				address(netip.PrefixFrom(a.Addr, a.Addr.BitLen()))
			}
		}
	}
	for _, p := range e.Ports {
		out.Ports = append(out.Ports, &workload.Port{ServicePort: uint32(p.Port), TargetPort: uint32(p.Target), AppProtocol: AppProtocol(p)})
	}
	if e.Resolution == cluster.ResolutionNone {
		out.LoadBalancing = &workload.LoadBalancing{Mode: workload.LoadBalancing_PASSTHROUGH}
	} else {
		out.LoadBalancing, _ = loadBalancing(&cluster.Service{DistributionAnnotation: e.Distribution}, in.Namespace)
	}
	extend(out, &extension.ServiceOptions{PortNames: portNames(e.Ports)})
	return out
}

// EntryEndpoints translates the endpoints that an entry spells out, but for those that are pods, by key.
func EntryEndpoints(m Mesh, in EntryInput) map[string]*workload.Workload {
	e := in.Entry
	out := map[string]*workload.Workload{}
	put := func(ep cluster.EntryEndpoint, hosts []string) {
		prefix := m.ClusterID + "/" + serviceEntryGVK + "/" + e.Namespace + "/" + e.Name + "/"
		uid := prefix + ep.Host
		if ep.Addr.IsValid() {
			uid = prefix + ep.Addr.String()
		}
		for n := 2; out[uid] != nil; n++ { // the same address with other ports
			uid = fmt.Sprintf("%s#%d", uid, n)
		}
		w := entryWorkload(m, e.Key, ep, e.Labels)
		w.Uid = uid
		at := EntryAttachment{Entry: e, Hosts: hosts, Endpoint: &ep}
		w.Services = at.addTo(nil)
		if in.Virtual[ep.Addr] {
			w.NetworkMode = workload.NetworkMode_HOST_NETWORK
		}
		out[uid] = w
	}
	hosts := in.Hosts()
	if len(hosts) == 0 {
		return out
	}
	for _, ep := range e.Endpoints {
		if !in.Pods[ep.Addr] {
			put(ep, hosts)
		}
	}
	if e.Resolution == cluster.ResolutionDNS && len(e.Endpoints) == 0 && len(e.Selector) == 0 {
		for _, h := range hosts {
			if !cluster.IsWildcard(h) {
				put(cluster.EntryEndpoint{Host: h}, []string{h})
			}
		}
	}
	return out
}

// entryWorkload is what WorkloadEntries and endpoints of ServiceEntries have in common.
func entryWorkload(m Mesh, key cluster.Key, e cluster.EntryEndpoint, labels cluster.Labels) *workload.Workload {
	w := &workload.Workload{
		Name:              key.Name,
		Namespace:         key.Namespace,
		Network:           cmp.Or(e.Network, m.Network),
		ClusterId:         m.clusterID(),
		TrustDomain:       m.trustDomain(),
		ServiceAccount:    unless(e.ServiceAccount, "default"),
		WorkloadName:      key.Name,
		WorkloadType:      workload.WorkloadType_POD,
		CanonicalName:     cmp.Or(labels.First(api.LabelCanonicalName, labelAppName, labelApp), key.Name),
		CanonicalRevision: cmp.Or(labels.First(api.LabelCanonicalRevision, labelAppVersion, labelVersion), latestRevision),
		Hostname:          e.Host,
		Status:            workload.WorkloadStatus_HEALTHY,
	}
	if e.Addr.IsValid() {
		w.Addresses = addresses([]netip.Addr{e.Addr})
	}
	if l := e.Locality; l != (cluster.Locality{}) {
		w.Locality = &workload.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	if e.Weight > 1 {
		w.Capacity = wrapperspb.UInt32(e.Weight)
	}
	if e.Tunnel == tunnelHTTP || labels.Get(api.LabelTunnel) == tunnelHTTP {
		w.TunnelProtocol, w.NativeTunnel = workload.TunnelProtocol_HBONE, true
	}
	return w
}

// EntryAttachment makes a workload an endpoint of a ServiceEntry's hosts.
type EntryAttachment struct {
	Entry *cluster.ServiceEntry
	// Hosts are those that the entry has.
	Hosts []string
	// Endpoint is what of the entry names the workload, or the WorkloadEntry; nil for a pod that its selector picks.
	Endpoint *cluster.EntryEndpoint
}

// addTo says for each host which port of the workload stands for which port of the entry. A service that is there already is
// left as it is. It returns to, made if need be.
func (at EntryAttachment) addTo(to map[string]*workload.PortList) map[string]*workload.PortList {
	for _, h := range at.Hosts {
		name := EntryName(at.Entry.Namespace, h)
		if to[name] != nil {
			continue
		}
		list := &workload.PortList{}
		for _, p := range at.Entry.Ports {
			target := p.Target
			if at.Endpoint != nil {
				if own, ok := at.Endpoint.Port(p.Name); ok {
					target = own
				}
			}
			list.Ports = append(list.Ports, &workload.Port{ServicePort: uint32(p.Port), TargetPort: uint32(target), AppProtocol: AppProtocol(p)})
		}
		if to == nil {
			to = map[string]*workload.PortList{}
		}
		to[name] = list
	}
	return to
}

// SelectsEntry reports whether the selector of a ServiceEntry picks a pod or WorkloadEntry.
func SelectsEntry(e *cluster.ServiceEntry, namespace string, labels cluster.Labels) bool {
	return len(e.Selector) > 0 && e.Namespace == namespace && labels.Contains(e.Selector)
}

// Lists returns the endpoint of an entry that has one of a pod's addresses, nil if none has.
func Lists(e *cluster.ServiceEntry, p *cluster.Pod) *cluster.EntryEndpoint {
	if !p.HasPlace() {
		return nil
	}
	for i, ep := range e.Endpoints {
		if ep.Addr.IsValid() && slices.Contains(p.IPs, ep.Addr) {
			return &e.Endpoints[i]
		}
	}
	return nil
}

// SortEntryAttachments brings attachments into the order in which they are translated.
func SortEntryAttachments(as []EntryAttachment) {
	slices.SortFunc(as, func(a, b EntryAttachment) int { return a.Entry.Key.Compare(b.Entry.Key) })
}

// WorkloadEntryInput is a WorkloadEntry and what it depends on.
type WorkloadEntryInput struct {
	Entry *cluster.WorkloadEntry
	// Services are the Kubernetes services that select it, Entries the ServiceEntries.
	Services []*cluster.Service
	Entries  []EntryAttachment
	// Policies are the "namespace/name" of authorisations that select it.
	Policies []string
	// Pod is one that has its address, nil if none has.
	Pod *cluster.Pod
	// Virtual says that its address is a virtual one, or a node's own.
	Virtual bool
	// Waypoint is the decision on its own.
	Waypoint Binding
}

// WorkloadEntryUID is the key of the workload of a WorkloadEntry.
func WorkloadEntryUID(m Mesh, k cluster.Key) string {
	return m.ClusterID + "/" + workloadEntryGVK + "/" + k.Namespace + "/" + k.Name
}

// WorkloadEntry translates a WorkloadEntry. The result is nil for one that cannot be read, and for one that has a pod's address:
// the pod may be captured, and must not be spoken to as if it were not.
func WorkloadEntry(m Mesh, in WorkloadEntryInput) (*workload.Workload, []Problem) {
	e := in.Entry
	problems := Faults(e, e.Faults)
	if !e.Addr.IsValid() && e.Host == "" {
		return nil, problems
	}
	if in.Pod != nil {
		return nil, append(problems, Problem{e.ObjectKind(), e.Key, fmt.Sprintf("address %s is that of pod %s: select the pod by its labels", e.Addr, in.Pod.Key)})
	}
	w := entryWorkload(m, e.Key, e.EntryEndpoint, e.Labels)
	w.Uid, w.AuthorizationPolicies, w.Waypoint = WorkloadEntryUID(m, e.Key), in.Policies, in.Waypoint.Address
	if in.Virtual {
		w.NetworkMode = workload.NetworkMode_HOST_NETWORK
	}
	for _, s := range in.Services {
		list := &workload.PortList{}
		for _, sp := range s.Ports {
			target := sp.Target
			if sp.TargetName != "" {
				var ok bool
				if target, ok = e.Port(sp.TargetName); !ok {
					continue
				}
			}
			list.Ports = append(list.Ports, &workload.Port{ServicePort: uint32(sp.Port), TargetPort: uint32(target), AppProtocol: AppProtocol(sp)})
		}
		if w.Services == nil {
			w.Services = map[string]*workload.PortList{}
		}
		w.Services[ServiceName(m, s.Key)] = list
	}
	for _, at := range in.Entries {
		at.Endpoint = &e.EntryEndpoint
		w.Services = at.addTo(w.Services)
	}
	return w, problems
}

// WorkloadEntryStatus says what became of a WorkloadEntry.
func WorkloadEntryStatus(e *cluster.WorkloadEntry, problems []Problem) Status {
	return Status{Kind: e.ObjectKind(), Key: e.Key, Type: authz.ConditionType, Want: accepted(e.Generation, problems), Seen: e.Seen}
}
