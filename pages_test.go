package ambit

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages are what users and developers read, by file name.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range append(names, "README.md", "ARCHITECTURE.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

// anchor is what a heading is linked to by.
func anchor(heading string) string {
	heading = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading), "")
	return strings.ReplaceAll(strings.TrimSpace(heading), " ", "-")
}

// TestPages: what the pages name is there: other pages and their headings, files, tests and tasks.
func TestPages(t *testing.T) {
	all := pages(t)
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	goFiles(t, func(name string, src []byte) {
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(src, -1) {
			tests[string(m[1])] = true
		}
	})
	link := regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	file := regexp.MustCompile("`((?:api|cli|cni|deploy|docs|e2e|istiod-lite|mesh|scripts|tools|ztunnel)/[A-Za-z0-9_./-]+)`")
	for name, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := name
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(name), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
				continue
			}
			if m[2] == "" {
				continue
			}
			found := false
			for _, h := range heading.FindAllStringSubmatch(all[target], -1) {
				found = found || anchor(h[1]) == m[2]
			}
			if !found {
				t.Errorf("%s links to #%s, which %s does not have", name, m[2], target)
			}
		}
		for _, m := range file.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, m := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(text, -1) {
			if !tests[m] {
				t.Errorf("%s names %s, which is no test", name, m)
			}
		}
		for _, m := range regexp.MustCompile("(?m)(?:`|^    )make ([a-z-]+)").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(string(makefile), "\n"+m[1]+":") {
				t.Errorf("%s names make %s, which is no task", name, m[1])
			}
		}
		if page := filepath.Base(name); strings.HasPrefix(name, "docs/") && page != "README.md" && !strings.Contains(all["docs/README.md"], "("+page+")") {
			t.Errorf("docs/README.md does not lead to %s", page)
		}
	}
}

// TestMetricsAreDocumented: docs/observability.md tells of every metric, and of none that there is not.
func TestMetricsAreDocumented(t *testing.T) {
	const prefixes = `(?:ambit|citadel|istio|nodeagent|pilot|workload_manager|ztunnel)_`
	inCode := map[string]string{}
	literal := regexp.MustCompile(`"(` + prefixes + `[a-z0-9_]+)"`)
	goFiles(t, func(name string, src []byte) {
		if strings.HasPrefix(name, "e2e/") || strings.HasSuffix(name, "_test.go") {
			return
		}
		for _, m := range literal.FindAllSubmatch(src, -1) {
			inCode[string(m[1])] = name
		}
	})
	delete(inCode, "istio_converted_static_strict") // a policy
	onPage := map[string]bool{}
	for _, m := range regexp.MustCompile("`("+prefixes+`[a-z0-9_]+)`).FindAllStringSubmatch(pages(t)["docs/observability.md"], -1) {
		onPage[m[1]] = true
	}
	for name, file := range inCode {
		if !onPage[name] {
			t.Errorf("docs/observability.md does not tell of %s (%s)", name, file)
		}
	}
	for name := range onPage {
		if inCode[name] == "" {
			t.Errorf("docs/observability.md tells of %s, which is no metric", name)
		}
	}
}
