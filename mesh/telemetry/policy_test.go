package telemetry_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// TestPolicies: decisions are counted by who made them, and series go some minutes after their policy has.
func TestPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		reg := prometheus.NewRegistry()
		p := telemetry.NewPolicies(reg, func(string) bool { return !gone.Load() })
		dry := &policy.Policy{Namespace: "shop", Name: "dry"}
		p.Decided(policy.Decision{Verdict: policy.Allowed}) // no policy applies
		p.Decided(policy.Decision{Verdict: policy.Allowed, Policy: "shop/a", DryRun: []policy.DryRun{{Policy: dry, Verdict: policy.Denied}, {Policy: dry, Verdict: policy.Allowed}}})
		p.Decided(policy.Decision{Verdict: policy.Denied, Policy: "shop/d"})
		p.Decided(policy.Decision{Verdict: policy.Denied})
		p.Decided(policy.Decision{Verdict: policy.Undecided, Policy: "shop/m"})
		p.Closed(policy.Decision{Verdict: policy.Denied, Policy: "shop/d"})
		p.Closed(policy.Decision{Verdict: policy.Denied})
		const unmatched = `
ambit_policy_decisions_total{decision="deny",mode="enforced",policy="-"} 1
`
		const head = `# HELP ambit_policy_decisions_total Connections that a policy decided on, or would have (mode dry_run); policy is - where none of the ALLOW policies matched.
# TYPE ambit_policy_decisions_total counter
`
		expect := func(what, text string) {
			t.Helper()
			if err := testutil.GatherAndCompare(reg, strings.NewReader(head+text), "ambit_policy_decisions_total"); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		all := `ambit_policy_decisions_total{decision="allow",mode="dry_run",policy="shop/dry"} 1
ambit_policy_decisions_total{decision="allow",mode="enforced",policy="shop/a"} 1
ambit_policy_decisions_total{decision="deny",mode="dry_run",policy="shop/dry"} 1
ambit_policy_decisions_total{decision="deny",mode="enforced",policy="shop/d"} 1
ambit_policy_decisions_total{decision="deny",mode="missing",policy="shop/m"} 1` + unmatched
		expect("at first", all)
		if n, err := testutil.GatherAndCount(reg, "ambit_policy_connections_closed_total"); n != 2 || err != nil {
			t.Errorf("%d series of closed connections, %v", n, err)
		}
		gone.Store(true)
		expect("gone", all)
		time.Sleep(4 * time.Minute) // of the bubble's clock
		gone.Store(false)
		expect("back again", all)
		gone.Store(true)
		time.Sleep(4 * time.Minute)
		expect("gone once more", all)
		time.Sleep(6 * time.Minute)
		expect("the last time", all)
		expect("and dropped", unmatched)
	})
}
