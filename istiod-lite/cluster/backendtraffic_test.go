package cluster_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
)

func backendTraffic(t *testing.T, spec string) *cluster.BackendTrafficPolicy {
	t.Helper()
	objects, err := clustertest.Parse([]byte("kind: XBackendTrafficPolicy\nmetadata: {name: p, namespace: ns}\nspec: " + spec + `
status:
  ancestors:
  - {controllerName: example.com/edge, ancestorRef: {name: gw}}
  - {controllerName: istio.io/mesh-controller, ancestorRef: {group: "", kind: Service, name: web}, conditions: [{type: Accepted, status: "True", observedGeneration: 4, lastTransitionTime: "2026-01-01T00:00:00Z", reason: Accepted, message: m}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	return objects[0].(*cluster.BackendTrafficPolicy)
}

// TestBackendTrafficPolicy: what is not said is as the Gateway API has it; what is malformed is a fault, and what is not known is told; its
// targets are known in any case.
func TestBackendTrafficPolicy(t *testing.T) {
	const target = `targetRefs: [{group: "", kind: Service, name: web}]`
	defaults := &cluster.RetryConstraint{Percent: 20, Interval: 10 * time.Second, Count: 10, CountInterval: time.Second}
	for _, tc := range []struct {
		spec               string
		want               *cluster.RetryConstraint
		fault, unsupported string
	}{
		{`{` + target + `}`, nil, "", ""},
		{`{` + target + `, retryConstraint: {}}`, defaults, "", ""},
		{`{` + target + `, retryConstraint: {budget: {percent: 0, interval: 1m30s}, minRetryRate: {count: 1, interval: 1h}}}`,
			&cluster.RetryConstraint{Percent: 0, Interval: 90 * time.Second, Count: 1, CountInterval: time.Hour}, "", ""},
		{`{` + target + `, retryConstraint: {budget: {percent: -1}}}`, nil, "budget.percent: 0 to 100, not -1", ""},
		{`{` + target + `, retryConstraint: {budget: {interval: 2h}}}`, nil, `budget.interval: 1s to 1h0m0s, not "2h"`, ""},
		{`{` + target + `, retryConstraint: {budget: {interval: soon}}}`, nil, `not "soon"`, ""},
		{`{` + target + `, retryConstraint: {minRetryRate: {count: 0}}}`, nil, "minRetryRate.count: 1 to 1000000, not 0", ""},
		{`{` + target + `, retryConstraint: {minRetryRate: {interval: 0s}}}`, nil, `minRetryRate.interval: 10ms to 1h0m0s, not "0s"`, ""},
		{`{` + target + `, retryConstraint: [x]}`, nil, "spec", ""},
		{`{` + target + `, retryConstraint: {}, sessionPersistence: {}}`, defaults, "", "sessionPersistence is not supported"},
		{`{` + target + `, retryConstraint: {hedge: true}}`, defaults, "", "spec.retryConstraint.hedge is not known"},
	} {
		p := backendTraffic(t, tc.spec)
		if diff := cmp.Diff(tc.want, p.InForce()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.spec, diff)
		}
		for what, pair := range map[string][2]string{"faults": {strings.Join(p.Faults, "; "), tc.fault}, "unsupported": {strings.Join(p.Unsupported, "; "), tc.unsupported}} {
			if got, want := pair[0], pair[1]; (got == "") != (want == "") || !strings.Contains(got, want) {
				t.Errorf("%s: %s %q, want %q", tc.spec, what, got, want)
			}
		}
		if len(p.Targets) != 1 || p.Targets[0].Ref != cluster.ServiceRef(cluster.Key{Namespace: "ns", Name: "web"}) {
			t.Errorf("%s: targets %v", tc.spec, p.Targets)
		}
		want := []cluster.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted", Message: "m", Generation: 4}}
		if len(p.Seen) != 1 || !cmp.Equal(p.Seen[0].Conditions, want) {
			t.Errorf("%s: seen %+v", tc.spec, p.Seen)
		}
		if again := backendTraffic(t, tc.spec); !p.Equal(again) {
			t.Errorf("%s: is not equal to itself", tc.spec)
		}
	}
}
