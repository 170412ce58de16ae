package directory

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/puzpuzpuz/xsync/v4"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// HandleAddresses takes workloads and services; it fits xds.Handler.Apply for xds.TypeAddress. A resource that cannot be
// used is rejected, and what was known under its name stays as it was; the others are applied.
func (d *Directory) HandleAddresses(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	d.mu.Lock()
	defer d.mu.Unlock()
	var (
		rejected  []xds.Rejection
		change    Change
		workloads []*Workload
		services  []*Service
	)
	for _, r := range upserts {
		w, s, err := d.decodeAddress(r)
		switch {
		case err != nil:
			rejected = append(rejected, xds.Rejection{Name: r.GetName(), Err: err})
		case w != nil:
			workloads = append(workloads, w)
		default:
			services = append(services, s)
		}
	}
	// What comes goes in before what goes is taken out, so that an address that moves from one to the other is never
	// unknown; and endpoints are there before their service, and still there when it goes.
	for _, w := range workloads {
		d.putWorkload(w, &change)
	}
	for _, s := range services {
		d.putService(s, &change)
	}
	for _, name := range removed {
		d.removeService(name, &change)
	}
	for _, name := range removed {
		d.removeWorkload(name, &change)
	}
	d.addressesCameLocked(&change)
	d.notify(&change)
	return rejected
}

func (d *Directory) decodeAddress(r *discoveryv3.Resource) (*Workload, *Service, error) {
	var addr workloadpb.Address
	if err := r.GetResource().UnmarshalTo(&addr); err != nil {
		return nil, nil, err
	}
	switch t := addr.GetType().(type) {
	case *workloadpb.Address_Workload:
		if t.Workload.GetUid() == r.GetName() {
			t.Workload.Uid = r.GetName() // the same bytes as what the xDS client keeps
		}
		w, err := d.decode.workload(t.Workload)
		if err != nil {
			return nil, nil, fmt.Errorf("workload: %w", err)
		}
		if r.GetName() != w.UID {
			return nil, nil, fmt.Errorf("workload: its uid is %q", w.UID)
		}
		return w, nil, nil
	case *workloadpb.Address_Service:
		s, skipped, err := d.decode.service(t.Service)
		if err != nil {
			return nil, nil, fmt.Errorf("service: %w", err)
		}
		if r.GetName() != s.String() {
			return nil, nil, fmt.Errorf("service: its namespace and hostname are %q", s)
		}
		if len(skipped) > 0 {
			d.cfg.Logger.Debug("names that are no workload identities are left out", "service", s.String(), "names", skipped)
		}
		return nil, s, nil
	}
	return nil, nil, errors.New("neither workload nor service")
}

func (d *Directory) putWorkload(w *Workload, change *Change) {
	old := d.Workload(w.UID)
	if old == nil {
		w.load = &load{}
	} else {
		w.load = old.load
		if reflect.DeepEqual(old, w) {
			return
		}
		// Whatever points to the old one and will not be pointed to the new one goes first.
		for _, a := range old.Addrs {
			if w.Network != old.Network || !indexed(w, a) {
				d.removeAddr(old, a)
			}
		}
		for i := range old.Services {
			if key := old.Services[i].Service; w.membership(key) == nil {
				d.removeEndpoint(key, old.UID)
			}
		}
		if d.isLocal(old) && (!d.isLocal(w) || old.Namespace != w.Namespace || old.Name != w.Name) {
			d.removePod(old)
		}
	}
	d.workloads.Store(w.UID, w)
	for i := range w.Services {
		d.endpointSet(w.Services[i].Service).put(w)
	}
	for _, a := range w.Addrs {
		if indexed(w, a) {
			d.putAddr(w, a)
		}
	}
	local := d.isLocal(w)
	if local {
		d.byPod.Store(podKey{w.Namespace, w.Name}, w)
		d.wakeWaiters(podKey{w.Namespace, w.Name})
	}
	change.Workloads = append(change.Workloads, WorkloadChange{Old: old, New: w, Local: local || old != nil && d.isLocal(old)})
}

func (d *Directory) removeWorkload(uid string, change *Change) {
	old := d.Workload(uid)
	if old == nil {
		return
	}
	for _, a := range old.Addrs {
		d.removeAddr(old, a)
	}
	for i := range old.Services {
		d.removeEndpoint(old.Services[i].Service, uid)
	}
	d.removePod(old)
	d.workloads.Delete(uid)
	change.Workloads = append(change.Workloads, WorkloadChange{Old: old, Local: d.isLocal(old)})
}

func (d *Directory) removePod(old *Workload) {
	key := podKey{old.Namespace, old.Name}
	if w, _ := d.byPod.Load(key); w != nil && w.UID == old.UID {
		d.byPod.Delete(key)
	}
}

// indexed reports whether w is found by the address a.
func indexed(w *Workload, a netip.Addr) bool { return !w.HostNetwork && slices.Contains(w.Addrs, a) }

// betterWorkload orders workloads that share an address.
func betterWorkload(a, b *Workload) int {
	rank := func(w *Workload) int {
		switch {
		case w.isPod() && w.Tunnel == TunnelHBONE:
			return 0
		case w.isPod():
			return 1
		case w.Tunnel == TunnelHBONE:
			return 2
		}
		return 3
	}
	return cmp.Compare(rank(a), rank(b))
}

// putAddr points the address a to w, or to a better one that has it too.
func (d *Directory) putAddr(w *Workload, a netip.Addr) {
	key := NetworkAddr{w.Network, a}
	list := d.sharers(key)
	if i := slices.IndexFunc(list, func(o *Workload) bool { return o.UID == w.UID }); i >= 0 {
		list[i] = w
	} else {
		list = slices.Insert(list, 0, w) // the newest of equal ones first
	}
	slices.SortStableFunc(list, betterWorkload)
	d.setSharers(key, list)
}

func (d *Directory) removeAddr(w *Workload, a netip.Addr) {
	key := NetworkAddr{w.Network, a}
	d.setSharers(key, slices.DeleteFunc(d.sharers(key), func(o *Workload) bool { return o.UID == w.UID }))
}

// sharers returns a list of its own of all workloads with an address, best first.
func (d *Directory) sharers(key NetworkAddr) []*Workload {
	if list := d.shared[key]; list != nil {
		return list
	}
	if w, _ := d.byAddr.Load(key); w != nil {
		return []*Workload{w}
	}
	return nil
}

func (d *Directory) setSharers(key NetworkAddr, list []*Workload) {
	if len(list) > 1 {
		d.shared[key] = list
	} else {
		delete(d.shared, key)
	}
	if len(list) == 0 {
		d.byAddr.Delete(key)
	} else {
		d.byAddr.Store(key, list[0])
	}
}

func (d *Directory) endpointSet(key ServiceKey) *endpointSet {
	set, _ := d.endpoints.LoadOrCompute(key, func() (*endpointSet, bool) { return &endpointSet{}, false })
	return set
}

func (d *Directory) removeEndpoint(key ServiceKey, uid string) {
	if set, ok := d.endpoints.Load(key); ok && set.remove(uid) {
		d.endpoints.Delete(key)
	}
}

func (d *Directory) putService(s *Service, change *Change) {
	old := d.Service(s.ServiceKey)
	if old != nil && reflect.DeepEqual(old, s) {
		return
	}
	d.endpointSet(s.ServiceKey).setService(s)
	d.services.Store(s.ServiceKey, s)
	d.byHost.Store(s.Hostname, with(loaded(d.byHost, s.Hostname), s))
	for _, a := range s.Addrs {
		d.byVIP.Store(a, with(loaded(d.byVIP, a), s))
	}
	for _, p := range s.CIDRs {
		d.ranges.put(p, s)
	}
	if old != nil {
		for _, a := range old.Addrs {
			if !slices.Contains(s.Addrs, a) {
				drop(d.byVIP, a, old)
			}
		}
		for _, p := range old.CIDRs {
			if !slices.Contains(s.CIDRs, p) {
				d.ranges.remove(p, old)
			}
		}
	}
	change.Services = append(change.Services, ServiceChange{Old: old, New: s})
}

func (d *Directory) removeService(name string, change *Change) {
	ns, host, _ := strings.Cut(name, "/")
	key := ServiceKey{ns, host}
	old := d.Service(key)
	if old == nil {
		return
	}
	for _, a := range old.Addrs {
		drop(d.byVIP, a, old)
	}
	for _, p := range old.CIDRs {
		d.ranges.remove(p, old)
	}
	drop(d.byHost, old.Hostname, old)
	d.services.Delete(key)
	if d.endpointSet(key).setService(nil) {
		d.endpoints.Delete(key)
	}
	change.Services = append(change.Services, ServiceChange{Old: old})
}

func loaded[K comparable](m *xsync.Map[K, []*Service], key K) []*Service {
	list, _ := m.Load(key)
	return list
}

// with returns a new list with s, in the place of the service with its key if that is there.
func with(list []*Service, s *Service) []*Service {
	out := make([]*Service, len(list), len(list)+1)
	copy(out, list)
	if i := slices.IndexFunc(out, func(o *Service) bool { return o.ServiceKey == s.ServiceKey }); i >= 0 {
		out[i] = s
		return out
	}
	return append(out, s)
}

// drop takes s out of an index.
func drop[K comparable](m *xsync.Map[K, []*Service], key K, s *Service) {
	var rest []*Service
	for _, o := range loaded(m, key) {
		if o.ServiceKey != s.ServiceKey {
			rest = append(rest, o)
		}
	}
	if len(rest) == 0 {
		m.Delete(key)
	} else {
		m.Store(key, rest)
	}
}

// rangeIndex finds services by ranges of addresses. A look-up costs one step for each length of prefix that is in use.
type rangeIndex struct {
	prefixes *xsync.Map[NetworkPrefix, []*Service]
	lengths  atomic.Pointer[map[rangeKind][]int] // in use, longest first; a new map with each change
	counts   map[rangeKind]map[int]int           // services by length; the writer's
}

// rangeKind is what addresses have to share to be compared.
type rangeKind struct {
	network string
	is4     bool
}

func (x *rangeIndex) put(p NetworkPrefix, s *Service) {
	list := loaded(x.prefixes, p)
	grown := with(list, s)
	x.prefixes.Store(p, grown)
	x.count(p, len(grown)-len(list))
}

func (x *rangeIndex) remove(p NetworkPrefix, s *Service) {
	before := len(loaded(x.prefixes, p))
	drop(x.prefixes, p, s)
	x.count(p, len(loaded(x.prefixes, p))-before)
}

func (x *rangeIndex) count(p NetworkPrefix, delta int) {
	if delta == 0 {
		return
	}
	kind := rangeKind{p.Network, p.Prefix.Addr().Is4()}
	if x.counts == nil {
		x.counts = map[rangeKind]map[int]int{}
	}
	if x.counts[kind] == nil {
		x.counts[kind] = map[int]int{}
	}
	x.counts[kind][p.Prefix.Bits()] += delta
	if x.counts[kind][p.Prefix.Bits()] <= 0 {
		delete(x.counts[kind], p.Prefix.Bits())
	}
	published := map[rangeKind][]int{}
	for k, lengths := range x.counts {
		published[k] = slices.SortedFunc(maps.Keys(lengths), func(a, b int) int { return cmp.Compare(b, a) })
	}
	x.lengths.Store(&published)
}

func (x *rangeIndex) lookup(network string, addr netip.Addr, namespace string) *Service {
	lengths := x.lengths.Load()
	if lengths == nil {
		return nil
	}
	var best *Service
	for _, bits := range (*lengths)[rangeKind{network, addr.Is4()}] {
		prefix, err := addr.WithZone("").Prefix(bits)
		if err != nil {
			return nil
		}
		s := choose(loaded(x.prefixes, NetworkPrefix{network, prefix}), namespace)
		if s != nil && s.Namespace == namespace {
			return s
		}
		if best == nil {
			best = s
		}
	}
	return best
}
