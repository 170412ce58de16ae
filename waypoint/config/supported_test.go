package config

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestTable: the table names fields that exist, and the page for users lists those that are left aside.
func TestTable(t *testing.T) {
	if err := tunnels.Verify(); err != nil {
		t.Error(err)
	}
	page, err := os.ReadFile("../../docs/waypoint-xds.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(page), "\n")
	for _, line := range tunnels.Aside() {
		if !slices.Contains(lines, line) {
			t.Errorf("docs/waypoint-xds.md has no line\n%s", line)
		}
	}
}
