package l7_test

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// TestReasons: the page for users has the reasons of routes and policies with targets that are not in force, each in its row, and those only;
// and there is a story for each.
func TestReasons(t *testing.T) {
	page, err := os.ReadFile("../../docs/waypoint.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	row := regexp.MustCompile("(?m)^\\| (route|BackendTLSPolicy|XBackendTrafficPolicy|WaypointPolicy), for each [a-z]+ \\| `([A-Za-z]+)`[^|]* \\| (.*) \\|$")
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		for _, reason := range regexp.MustCompile("`([A-Z][A-Za-z]+)`").FindAllStringSubmatch(m[3], -1) {
			told[m[1]+" "+m[2]+" "+reason[1]] = true
		}
	}
	shown := map[string]bool{}
	for _, s := range stories(t) {
		for _, status := range s.config.Statuses {
			kind := "route"
			if !strings.HasSuffix(string(status.Kind), "Route") {
				kind = string(status.Kind)
			}
			for _, p := range status.Parents {
				for _, c := range p.Conditions {
					if bad(c) {
						shown[kind+" "+c.Type+" "+c.Reason] = true
					}
				}
			}
		}
	}
	for _, one := range slices.Sorted(maps.Keys(told)) {
		if !shown[one] {
			t.Errorf("no story shows %s, of which docs/waypoint.md tells", one)
		}
	}
	for _, one := range slices.Sorted(maps.Keys(shown)) {
		if !told[one] {
			t.Errorf("docs/waypoint.md does not tell of %s", one)
		}
	}
	if len(told) < 10 {
		t.Errorf("docs/waypoint.md tells of %v only", slices.Sorted(maps.Keys(told)))
	}
}

// TestReasonsOfPolicies: the page for users has what AuthorizationPolicies say of themselves at waypoints, and nothing else, and there is a
// story for each.
func TestReasonsOfPolicies(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n| `WaypointAccepted` |")
	table, _, _ = strings.Cut(table, "\n\n")
	told, shown := map[string]bool{}, map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (True|False) \| ([^|]*) \|`).FindAllStringSubmatch(table, -1) {
		for _, reason := range regexp.MustCompile("`([A-Za-z]+)`").FindAllStringSubmatch(row[2], -1) {
			told[row[1]+" "+reason[1]] = true
		}
	}
	for _, s := range stories(t) {
		for _, status := range s.config.Policies {
			if status.Kind == cluster.KindAuthorizationPolicy {
				shown[status.Want.Status+" "+status.Want.Reason] = true
			}
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(told)), slices.Sorted(maps.Keys(shown))); diff != "" || len(told) == 0 {
		t.Errorf("docs/policy.md and the stories (-told +shown):\n%s", diff)
	}
}

// bad reports whether a condition says that something is not as it should be.
func bad(c cluster.Condition) bool { return c.Status == "False" || c.Type == "PartiallyInvalid" }
