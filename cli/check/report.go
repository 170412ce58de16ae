// Package check is `ambit check`: it looks at a cluster before an install (--pre), before an upgrade (--pre-upgrade), or at a
// running mesh, and says of each thing whether it is well and, if not, what to do. It changes nothing, and one thing that
// cannot be looked at does not keep it from looking at the others.
package check

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/cli/console"
)

// Verdict is what a check says.
type Verdict string

const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Report is the answer; its names with -o are stable.
type Report struct {
	// Verdict is the worst one there is.
	Verdict Verdict `json:"verdict"`
	Groups  []Group `json:"groups"`
}

// Group is what belongs together.
type Group struct {
	Name    string   `json:"name"`
	Results []Result `json:"results"`
}

// Result is what one check found.
type Result struct {
	Verdict Verdict `json:"verdict"`
	Message string  `json:"message"`
	// Hint says what to do; it is there unless the verdict is OK.
	Hint string `json:"hint,omitempty"`
}

// group begins a group; later results go there.
func (r *Report) group(name string) {
	r.Groups = append(r.Groups, Group{Name: name, Results: []Result{}})
}

func (r *Report) add(result Result) {
	g := &r.Groups[len(r.Groups)-1]
	g.Results = append(g.Results, result)
}

func (r *Report) ok(format string, args ...any) {
	r.add(Result{Verdict: OK, Message: fmt.Sprintf(format, args...)})
}

func (r *Report) warn(hint, format string, args ...any) {
	r.add(Result{Verdict: Warn, Message: fmt.Sprintf(format, args...), Hint: hint})
}

func (r *Report) fail(hint, format string, args ...any) {
	r.add(Result{Verdict: Fail, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// unseen is the result of a check that could not look.
func (r *Report) unseen(err error) {
	r.fail("look at the account's rights and at the API server: ambit check reads only", "cannot tell: %v", err)
}

// count returns how many results have a verdict.
func (r *Report) count(v Verdict) int {
	n := 0
	for _, g := range r.Groups {
		for _, result := range g.Results {
			if result.Verdict == v {
				n++
			}
		}
	}
	return n
}

// close sets the overall verdict.
func (r *Report) close() {
	r.Verdict = OK
	for _, v := range []Verdict{Warn, Fail} {
		if r.count(v) > 0 {
			r.Verdict = v
		}
	}
}

// print writes the report for a person.
func (r *Report) print(c console.Console) {
	for i, g := range r.Groups {
		if i > 0 {
			c.Printf("")
		}
		c.Printf("%s", g.Name)
		for _, result := range g.Results {
			c.Printf("  %-5s %s", result.Verdict, result.Message)
			if result.Hint != "" {
				c.Printf("        -> %s", result.Hint)
			}
		}
	}
	c.Printf("")
	c.Printf("%d ok, %s, %d failed", r.count(OK), console.Plural(r.count(Warn), "warning"), r.count(Fail))
}

// few joins the first of many names.
func few(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
