package directory

import (
	"fmt"
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

// CheckEndpoints compares what endpoint sets count with what there is.
func (d *Directory) CheckEndpoints() error {
	for key, s := range d.endpoints.All() {
		if err := s.check(); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func (s *endpointSet) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	balanced, out := 0, 0
	for i := range s.all.list.n {
		w := s.all.list.at(i)
		if s.service != nil && s.service.Balancing.balanced(w) {
			balanced++
		}
		if s.outliers.isOut(w.UID) {
			out++
		}
	}
	if s.service != nil && s.balanced != balanced {
		return fmt.Errorf("%d endpoints are balanced, counted %d", balanced, s.balanced)
	}
	if n := int(s.outliers.out.Load()); n != out || len(s.outliers.ejected) != out {
		return fmt.Errorf("%d endpoints are out, counted %d, and %d come back", out, n, len(s.outliers.ejected))
	}
	for i, o := range s.outliers.ejected {
		if o.at != i || o.until == 0 || o.until < s.outliers.ejected[0].until || s.outliers.byUID[o.uid] != o {
			return fmt.Errorf("%s, which is out until %v, is in place %d of those who come back, thinks %d", o.uid, o.until, i, o.at)
		}
	}
	return nil
}
