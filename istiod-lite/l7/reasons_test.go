package l7_test

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// TestReasons: the page for users has the reasons of routes and policies of the Gateway API that are not in force, each in its row, and those only;
// and there is a story for each.
func TestReasons(t *testing.T) {
	page, err := os.ReadFile("../../docs/waypoint.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	row := regexp.MustCompile("(?m)^\\| (route|BackendTLSPolicy|XBackendTrafficPolicy), for each [a-z]+ \\| `([A-Za-z]+)`[^|]* \\| (.*) \\|$")
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

// bad reports whether a condition says that something is not as it should be.
func bad(c cluster.Condition) bool { return c.Status == "False" || c.Type == "PartiallyInvalid" }
