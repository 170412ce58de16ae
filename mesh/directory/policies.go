package directory

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/puzpuzpuz/xsync/v4"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// policyIndex finds policies by what they select. Readers take no lock.
type policyIndex struct {
	byName      *xsync.Map[string, *policy.Policy] // by resource name, which is how workloads name them
	byNamespace *xsync.Map[string, *policy.Group]
	global      atomic.Pointer[policy.Group]
	generation  atomic.Uint64 // of what is above: it grows after each change

	// The writer's, by resource name.
	members  map[groupKey]map[string]*policy.Policy
	narrowed map[string]*narrowed
	timer    *time.Timer // of narrowed; nil if there is nothing to wait for
	first    bool        // the next push of addresses is the first of a stream
}

func newPolicyIndex() policyIndex {
	return policyIndex{
		byName:      xsync.NewMap[string, *policy.Policy](),
		byNamespace: xsync.NewMap[string, *policy.Group](),
		members:     map[groupKey]map[string]*policy.Policy{},
		narrowed:    map[string]*narrowed{},
	}
}

// forWorkload returns what applies to w. Policies that it names and that are not there are those of last, if it has them.
func (x *policyIndex) forWorkload(w *Workload, last policy.Set) policy.Set {
	set := policy.Set{Global: x.global.Load()}
	set.Namespace, _ = x.byNamespace.Load(w.Namespace)
	var selected []*policy.Policy
	for _, name := range w.Policies {
		if p, ok := x.byName.Load(name); ok {
			selected = append(selected, p)
		} else if i := slices.IndexFunc(last.Selected.Policies(), func(p *policy.Policy) bool { return p.Key() == name }); i >= 0 {
			selected = append(selected, last.Selected.Policies()[i])
		} else {
			set.Missing = append(set.Missing, name)
		}
	}
	set.Selected = policy.NewGroup(selected)
	return set
}

// HandleAuthorizations takes policies; it fits xds.Handler.Apply for xds.TypeAuthorization. A policy that is not
// understood is rejected and in force all the same, in the form that fails closed.
func (d *Directory) HandleAuthorizations(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	d.mu.Lock()
	defer d.mu.Unlock()
	var rejected []xds.Rejection
	var change Change
	touched := map[groupKey]bool{}
	for _, r := range upserts {
		var a security.Authorization
		if err := r.GetResource().UnmarshalTo(&a); err != nil {
			rejected = append(rejected, xds.Rejection{Name: r.GetName(), Err: err})
			continue
		}
		p, err := policy.Compile(&a)
		if err != nil {
			rejected = append(rejected, xds.Rejection{Name: r.GetName(), Err: err, Replaced: p != nil})
		}
		if p == nil {
			continue
		}
		d.policies.put(r.GetName(), p, touched)
		change.Policies = append(change.Policies, r.GetName())
	}
	for _, name := range removed {
		if _, ok := d.policies.byName.Load(name); ok {
			d.policies.put(name, nil, touched)
			change.Policies = append(change.Policies, name)
		}
	}
	d.policies.rebuild(touched)
	d.policies.generation.Add(1)
	d.awaitNarrowedLocked()
	d.notify(&change)
	return rejected
}

// groupKey is a scope, with its namespace unless it is global. Policies that workloads name are in no group.
type groupKey struct {
	scope     policy.Scope
	namespace string
}

func keyOf(p *policy.Policy) (groupKey, bool) {
	switch p.Scope {
	case policy.ScopeGlobal:
		return groupKey{scope: policy.ScopeGlobal}, true
	case policy.ScopeNamespace:
		return groupKey{policy.ScopeNamespace, p.Namespace}, true
	}
	return groupKey{}, false
}

// put stores p, nil to remove it, under a resource name, and adds the groups that have changed to touched. One that leaves
// its group for the workloads that name it leaves it later.
func (x *policyIndex) put(name string, p *policy.Policy, touched map[groupKey]bool) {
	group, grouped := x.groupOf(name)
	if p == nil {
		x.byName.Delete(name)
	} else {
		x.byName.Store(name, p)
		if key, ok := keyOf(p); ok {
			if x.members[key] == nil {
				x.members[key] = map[string]*policy.Policy{}
			}
			x.members[key][name] = p
			touched[key] = true
			grouped = grouped && group != key
		} else if grouped {
			x.narrowed[name] = &narrowed{group: group, until: time.Now().Add(narrowSilence)}
			return
		}
	}
	delete(x.narrowed, name)
	if grouped {
		x.leave(name, group, touched)
	}
}

// groupOf returns the group that a policy is in force for, be it still.
func (x *policyIndex) groupOf(name string) (groupKey, bool) {
	if n := x.narrowed[name]; n != nil {
		return n.group, true
	}
	if p, ok := x.byName.Load(name); ok {
		return keyOf(p)
	}
	return groupKey{}, false
}

func (x *policyIndex) leave(name string, group groupKey, touched map[groupKey]bool) {
	delete(x.members[group], name)
	touched[group] = true
}

// rebuild makes the touched groups anew, once a push. They are sorted, so that of several policies that would decide the
// same one is named always.
func (x *policyIndex) rebuild(touched map[groupKey]bool) {
	for key := range touched {
		var group *policy.Group
		if len(x.members[key]) == 0 {
			delete(x.members, key)
		} else {
			group = policy.NewGroup(slices.SortedFunc(maps.Values(x.members[key]), func(a, b *policy.Policy) int {
				return strings.Compare(a.Key(), b.Key())
			}))
		}
		switch {
		case key.scope == policy.ScopeGlobal:
			x.global.Store(group)
		case group == nil:
			x.byNamespace.Delete(key.namespace)
		default:
			x.byNamespace.Store(key.namespace, group)
		}
	}
}
