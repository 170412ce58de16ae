package proxy

import (
	"slices"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

// fates are what became of workloads and services that tunnels and counters must hear of.
type fates struct {
	// gone are uids of workloads that are no more: their addresses may be other pods' next. moved are those of which an
	// old tunnel leads nowhere, or to somebody else.
	gone, moved []string
	// leaving are pods of this node that take no new connections from now on.
	leaving []podName
	// services are gone.
	services []directory.ServiceKey
}

func fatesOf(c directory.Change) fates {
	var f fates
	for _, w := range c.Workloads {
		switch {
		case w.Old == nil:
		case w.New == nil:
			f.gone = append(f.gone, w.Old.UID)
		case movedOn(w.Old, w.New):
			f.moved = append(f.moved, w.Old.UID)
		case w.Local && w.Old.Healthy && !w.New.Healthy:
			f.leaving = append(f.leaving, podName{namespace: w.New.Namespace, pod: w.New.Name})
		}
	}
	for _, s := range c.Services {
		if s.New == nil {
			f.services = append(f.services, s.Old.ServiceKey)
		}
	}
	return f
}

// movedOn tells whether a uid stands for another pod now, or for one that is spoken to otherwise: a uid is made of names, and
// a StatefulSet gives them again.
func movedOn(old, now *directory.Workload) bool {
	return old.Identity != now.Identity || old.Tunnel != now.Tunnel || old.Network != now.Network || !slices.Equal(old.Addrs, now.Addrs)
}

func (f *fates) empty() bool {
	return len(f.gone)+len(f.moved)+len(f.leaving)+len(f.services) == 0
}

func (f *fates) add(g fates) {
	f.gone = append(f.gone, g.gone...)
	f.moved = append(f.moved, g.moved...)
	f.leaving = append(f.leaving, g.leaving...)
	f.services = append(f.services, g.services...)
}

// actOnFates takes tunnels to workloads that are gone or changed out of use, and has peers of pods that leave open no more
// streams on the tunnels that they have. Streams that there are go on.
func (n *Node) actOnFates() {
	n.mu.Lock()
	f := n.fate
	n.fate = fates{}
	n.mu.Unlock()
	if f.empty() {
		return
	}
	for _, p := range n.snapshot() {
		for _, uids := range [][]string{f.gone, f.moved} {
			for _, uid := range uids {
				p.pool.Evict(uid)
			}
		}
		if slices.Contains(f.leaving, podName{namespace: p.pod.Namespace, pod: p.pod.Name}) {
			p.server.GoAway()
		}
	}
	for _, uid := range f.gone {
		n.Metrics.Forget(uid)
		n.Lookups.Forget(uid)
	}
	for _, s := range f.services {
		n.Balance.Forget(s)
	}
}
