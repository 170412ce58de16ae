package directory

import (
	"slices"

	"github.com/ambit-mesh/ambit/mesh/policy"
)

// Sizes returns the sizes of all indexes, so that tests can see that nothing is left behind.
func (d *Directory) Sizes() map[string]int {
	lengths := 0
	if l := d.ranges.lengths.Load(); l != nil {
		for _, list := range *l {
			lengths += len(list)
		}
	}
	return map[string]int{
		"workloads": d.workloads.Size(), "byAddr": d.byAddr.Size(), "byPod": d.byPod.Size(), "shared": len(d.shared),
		"services": d.services.Size(), "byVIP": d.byVIP.Size(), "byHost": d.byHost.Size(), "prefixes": d.ranges.prefixes.Size(),
		"lengths": lengths, "endpoints": d.endpoints.Size(), "waiters": len(d.waiters),
		"policies": d.policies.byName.Size(), "namespaces": d.policies.byNamespace.Size(), "members": len(d.policies.members),
	}
}

// Dump gathers what a config_dump streams.
type Dump struct {
	Workloads []DumpWorkload `json:"workloads"`
	Services  []DumpService  `json:"services"`
	Policies  []policy.Dump  `json:"policies"`
}

func (d *Directory) Dump() Dump {
	return Dump{
		Workloads: slices.AppendSeq([]DumpWorkload{}, d.DumpWorkloads()),
		Services:  slices.AppendSeq([]DumpService{}, d.DumpServices()),
		Policies:  slices.AppendSeq([]policy.Dump{}, d.DumpPolicies()),
	}
}
