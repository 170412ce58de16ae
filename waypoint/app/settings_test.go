package app

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocumented: users are told of every setting, and of none that there is not.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	e := newEnv(nil)
	e.parse()
	for name := range e.asked {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/settings.md does not mention %s", name)
		}
	}
	_, part, ok := strings.Cut(page, "\n## Waypoints\n")
	if !ok {
		t.Fatal("docs/settings.md has no part on waypoints")
	}
	part, _, _ = strings.Cut(part, "\n## ")
	for _, name := range regexp.MustCompile("`([A-Z]+_[A-Z_]+)`").FindAllStringSubmatch(part, -1) {
		if !e.asked[name[1]] && name[1] != "RUST_LOG" {
			t.Errorf("docs/settings.md tells of %s, which is no setting of waypoints", name[1])
		}
	}
}
