package directory

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v4"

	"github.com/ambit-mesh/ambit/mesh/policy"
)

// Config configures a Directory.
type Config struct {
	// Network is the network of this proxy; empty for the default one.
	Network string
	// Node is the node of this proxy. Workloads of it are those that WorkloadByPod and WaitForPod find, and whose coming
	// and going WorkloadChange.Local tells. Empty: all workloads count as local.
	Node string
	// ClusterID is the cluster of this proxy, which local workloads must be of. Empty: any.
	ClusterID string
	// Logger takes what is odd but not rejected. Required.
	Logger *slog.Logger
}

// Directory holds what is known. Look-ups may be called concurrently with each other and with updates.
type Directory struct {
	cfg   Config
	start time.Time

	// Indexes. Readers take no lock; they are changed under mu only.
	workloads *xsync.Map[string, *Workload]
	byAddr    *xsync.Map[NetworkAddr, *Workload]
	byPod     *xsync.Map[podKey, *Workload]
	services  *xsync.Map[ServiceKey, *Service]
	byVIP     *xsync.Map[NetworkAddr, []*Service] // by who had it first
	byHost    *xsync.Map[string, []*Service]      // the same
	ranges    rangeIndex
	endpoints *xsync.Map[ServiceKey, *endpointSet]
	policies  policyIndex

	mu     sync.Mutex // held while a push is applied; guards the fields below
	decode decoder
	shared map[NetworkAddr][]*Workload // all workloads of an address that several have, best first

	waitMu  sync.Mutex // guards waiters
	waiters map[podKey][]chan struct{}

	subscribeMu sync.Mutex // held to change subscribers
	subscribers atomic.Pointer[[]*func(Change)]
}

// podKey names a pod of this node.
type podKey struct{ namespace, name string }

// New makes an empty Directory.
func New(cfg Config) *Directory {
	return &Directory{
		cfg:       cfg,
		start:     time.Now(),
		workloads: xsync.NewMap[string, *Workload](),
		byAddr:    xsync.NewMap[NetworkAddr, *Workload](),
		byPod:     xsync.NewMap[podKey, *Workload](),
		services:  xsync.NewMap[ServiceKey, *Service](),
		byVIP:     xsync.NewMap[NetworkAddr, []*Service](),
		byHost:    xsync.NewMap[string, []*Service](),
		ranges:    rangeIndex{prefixes: xsync.NewMap[NetworkPrefix, []*Service]()},
		endpoints: xsync.NewMap[ServiceKey, *endpointSet](),
		policies:  newPolicyIndex(),
		shared:    map[NetworkAddr][]*Workload{},
		waiters:   map[podKey][]chan struct{}{},
	}
}

// Workload returns the workload with this uid, or nil.
func (d *Directory) Workload(uid string) *Workload {
	w, _ := d.workloads.Load(uid)
	return w
}

// WorkloadByAddr returns the workload with this address, or nil. Of several, pods come before others, then those that
// speak HBONE, then the one that came last.
func (d *Directory) WorkloadByAddr(network string, addr netip.Addr) *Workload {
	w, _ := d.byAddr.Load(NetworkAddr{network, addr.Unmap()})
	return w
}

// WorkloadByPod returns the local pod of that name, namespace and service account, or nil.
func (d *Directory) WorkloadByPod(namespace, name, serviceAccount string) *Workload {
	w, _ := d.byPod.Load(podKey{namespace, name})
	if w == nil || w.Identity.ServiceAccount != serviceAccount {
		return nil
	}
	return w
}

// WaitForPod returns WorkloadByPod as soon as there is one, or an error when ctx ends before.
func (d *Directory) WaitForPod(ctx context.Context, namespace, name, serviceAccount string) (*Workload, error) {
	if w := d.WorkloadByPod(namespace, name, serviceAccount); w != nil {
		return w, nil
	}
	key := podKey{namespace, name}
	for {
		// Ask to be woken first, then look: what comes in between is not missed.
		woken := make(chan struct{})
		d.waitMu.Lock()
		d.waiters[key] = append(d.waiters[key], woken)
		d.waitMu.Unlock()
		if w := d.WorkloadByPod(namespace, name, serviceAccount); w != nil {
			d.stopWaiting(key, woken)
			return w, nil
		}
		select {
		case <-woken:
		case <-ctx.Done():
			d.stopWaiting(key, woken)
			return nil, fmt.Errorf("wait for pod %s/%s with service account %s to be announced by the control plane: %w",
				namespace, name, serviceAccount, context.Cause(ctx))
		}
	}
}

func (d *Directory) stopWaiting(key podKey, woken chan struct{}) {
	d.waitMu.Lock()
	defer d.waitMu.Unlock()
	rest := d.waiters[key][:0]
	for _, w := range d.waiters[key] {
		if w != woken {
			rest = append(rest, w)
		}
	}
	d.waiters[key] = rest
	if len(rest) == 0 {
		delete(d.waiters, key)
	}
}

func (d *Directory) wakeWaiters(key podKey) {
	d.waitMu.Lock()
	defer d.waitMu.Unlock()
	for _, w := range d.waiters[key] {
		close(w)
	}
	delete(d.waiters, key)
}

// isLocal reports whether w is of this node.
func (d *Directory) isLocal(w *Workload) bool {
	return (d.cfg.Node == "" || w.Node == d.cfg.Node) && (d.cfg.ClusterID == "" || w.ClusterID == d.cfg.ClusterID)
}

// Service returns the service with this key, or nil.
func (d *Directory) Service(key ServiceKey) *Service {
	s, _ := d.services.Load(key)
	return s
}

// ServiceByAddr returns the service with this virtual address, or nil, for a client in namespace. Of several with the
// same address, one of that namespace comes first, then the canonical one, then the one that had it first; a range counts only if no
// service has the address itself, and then one of the client's namespace comes first, then the longest prefix, then the
// canonical one. Services that the client does not see are left out.
func (d *Directory) ServiceByAddr(network string, addr netip.Addr, namespace string) *Service {
	addr = addr.Unmap()
	if list, ok := d.byVIP.Load(NetworkAddr{network, addr}); ok {
		if s := choose(list, namespace); s != nil {
			return s
		}
	}
	return d.ranges.lookup(network, addr, namespace)
}

// ServiceByHost returns the service with this host name, or nil; among several it chooses as ServiceByAddr does.
func (d *Directory) ServiceByHost(hostname, namespace string) *Service {
	list, _ := d.byHost.Load(hostname)
	return choose(list, namespace)
}

// choose returns the best of services that share an address or a name for a client in namespace, or nil.
func choose(list []*Service, namespace string) *Service {
	var best *Service
	for _, s := range list {
		switch {
		case s.Namespace == namespace:
			return s
		case s.NamespaceOnly:
		case best == nil, s.Canonical && !best.Canonical:
			best = s
		}
	}
	return best
}

// Endpoints calls yield for each workload of a service, healthy or not, in no order, until it returns false.
func (d *Directory) Endpoints(key ServiceKey) func(yield func(*Workload) bool) {
	return func(yield func(*Workload) bool) {
		set, ok := d.endpoints.Load(key)
		if !ok {
			return
		}
		list := set.list()
		for i := range list.n {
			if !yield(list.at(i)) {
				return
			}
		}
	}
}

// Policies returns the policies that apply to w as they are now.
func (d *Directory) Policies(w *Workload) policy.Set { return d.policies.forWorkload(w, policy.Set{}) }

// PoliciesSince returns the policies that apply to w as they are now, but for those that w names and that are gone: they are as
// they were in last.
func (d *Directory) PoliciesSince(w *Workload, last policy.Set) policy.Set {
	return d.policies.forWorkload(w, last)
}

// HasPolicy reports whether there is a policy of that resource name, "namespace/name".
func (d *Directory) HasPolicy(name string) bool {
	_, ok := d.policies.byName.Load(name)
	return ok
}

// PolicyGeneration grows after each change of policies: what Policies returned for a workload is as it was while this is.
func (d *Directory) PolicyGeneration() uint64 { return d.policies.generation.Load() }

// Change tells what has changed at a time. Its slices must not be kept longer than the call.
type Change struct {
	// Workloads and Services that were added, changed or removed.
	Workloads []WorkloadChange
	Services  []ServiceChange
	// Policies are the keys of policies that were added, changed or removed.
	Policies []string
}

func (c *Change) empty() bool { return len(c.Workloads)+len(c.Services)+len(c.Policies) == 0 }

// WorkloadChange is one workload's: Old is nil for a new one, New for a removed one.
type WorkloadChange struct {
	Old, New *Workload
	// Local: it is, or was, a workload of this node.
	Local bool
}

// ServiceChange is one service's: Old is nil for a new one, New for a removed one.
type ServiceChange struct{ Old, New *Service }

// Subscribe has f called after each push that changed something, once look-ups see it, and when a policy that was narrowed
// leaves its former group. It is called once at a time, under the directory's lock: f must not block and must not apply pushes
// itself. cancel ends it; a call that runs already may still end after cancel.
func (d *Directory) Subscribe(f func(Change)) (cancel func()) {
	mine := &f
	d.changeSubscribers(func(list []*func(Change)) []*func(Change) { return append(list, mine) })
	return func() {
		d.changeSubscribers(func(list []*func(Change)) []*func(Change) {
			var rest []*func(Change)
			for _, s := range list {
				if s != mine {
					rest = append(rest, s)
				}
			}
			return rest
		})
	}
}

func (d *Directory) changeSubscribers(change func([]*func(Change)) []*func(Change)) {
	d.subscribeMu.Lock()
	defer d.subscribeMu.Unlock()
	var list []*func(Change)
	if old := d.subscribers.Load(); old != nil {
		list = append(list, *old...)
	}
	list = change(list)
	d.subscribers.Store(&list)
}

func (d *Directory) notify(c *Change) {
	list := d.subscribers.Load()
	if list == nil || c.empty() {
		return
	}
	for _, f := range *list {
		(*f)(*c)
	}
}
