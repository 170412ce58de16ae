package proxy

import (
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// warm has certificates ready for the node's workloads that discovery tells of, which is often before the agent hands their
// pods over, and lets those go whose workloads have gone. A certificate is forgotten when neither discovery nor the agent knows
// a workload of its identity.
func (n *Node) warm(changes []directory.WorkloadChange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, change := range changes {
		if !change.Local {
			continue
		}
		uid := ""
		var want identity.Identity
		if w := change.New; w != nil {
			uid = w.UID
			if w.Tunnel == directory.TunnelHBONE && !w.NativeTunnel {
				want = w.Identity
			}
		} else {
			uid = change.Old.UID
		}
		had, warmed := n.warmed[uid]
		if warmed && had == want {
			continue
		}
		if !want.IsZero() {
			n.useLocked(want)
			n.warmed[uid] = want
		} else {
			delete(n.warmed, uid)
		}
		if warmed {
			n.disuseLocked(had)
		}
	}
}
