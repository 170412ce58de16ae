package conformance

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// suite runs the test binary, shows its progress, and judges what it says.
func (r *Run) suite(ctx context.Context) error {
	version := r.Version
	if version == "" {
		out, err := exec.CommandContext(ctx, filepath.Join(r.root, "bin", "ambit"), "version", "--client").Output()
		if err != nil {
			return fmt.Errorf("ask the command for its version: %w", err)
		}
		version = clientVersion(string(out))
	}
	api, err := r.inSuite(ctx, "list", "-m", "-f", "{{.Version}}", gatewayAPI+"/conformance")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(r.Report), 0o755); err != nil {
		return err
	}
	if err := os.Remove(r.Report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fmt.Fprintf(r.Out, "\n=== the Gateway API's conformance suite %s\n", api)
	begin := time.Now()
	tests, failed := r.runSuite(ctx, r.arguments(version))
	only := r.given("run-test")
	if only != "" { // the others were skipped, as asked for
		tests = slices.DeleteFunc(tests, func(t test) bool { return t.name != only && t.verdict == "SKIP" })
	}
	printTests(r.Out, tests)
	verdict := errors.Join(judge(tests, only), failed)
	if only == "" {
		verdict = errors.Join(verdict, r.judgeReport(api))
	}
	fmt.Fprintf(r.Out, "    %s; the whole log is %s\n", time.Since(begin).Round(time.Second), r.log())
	if verdict != nil {
		r.dump(ctx)
	}
	return verdict
}

// clientVersion finds the version in what `ambit version --client` prints.
func clientVersion(text string) string {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return "dev"
	}
	return fields[len(fields)-1]
}

func (r *Run) log() string { return filepath.Join(r.cacheDir(), "suite.log") }

// runSuite runs the binary and returns what became of each test. What it prints goes to the log; names of tests as they begin, and
// lines of failed assertions, go to Out.
func (r *Run) runSuite(ctx context.Context, args []string) ([]test, error) {
	log, err := os.Create(r.log())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, r.binary(), args...)
	cmd.Dir = r.cacheDir()
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.cluster.Kubeconfig)
	cmd.WaitDelay = 5 * time.Second
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	done := make(chan error, 1)
	go func() {
		err := cmd.Run()
		writer.Close()
		done <- err
	}()
	tests, err := follow(io.TeeReader(reader, log), r.Out)
	if err != nil {
		reader.CloseWithError(err) // which ends the binary's writes, and so the binary
	}
	if failed := <-done; failed != nil {
		return tests, errors.Join(err, fmt.Errorf("the suite ended: %w", failed))
	}
	return tests, err
}

// test is one of the suite's and what became of it.
type test struct {
	name    string
	verdict string // PASS, FAIL or SKIP
	took    string // as the test binary writes it, such as 1.42s
	reason  string // of a failed or skipped one: the last line that it wrote
}

var (
	// begun and ended match the lines of -test.v about tests right below TestConformance, and about whatever is below those.
	begun = regexp.MustCompile(`^=== RUN\s+TestConformance/([^/\s]+)$`)
	ended = regexp.MustCompile(`^    --- (PASS|FAIL|SKIP): TestConformance/([^/\s]+) \(([0-9.]+s)\)$`)
	// said matches a line that a test wrote: file, line number, text.
	said = regexp.MustCompile(`^\s+\w+\.go:\d+: (.+)$`)
	// whose matches the line that tells whose the next lines are.
	whose = regexp.MustCompile(`^=== (?:RUN|NAME|CONT)\s+TestConformance/([^/\s]+)`)
)

// follow reads the output of the test binary to its end. A test that the mesh profiles do not ask for is left out.
func follow(in io.Reader, out io.Writer) ([]test, error) {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, 16<<20)
	var tests []test
	last := map[string]string{} // what each test said last
	current := ""
	for scanner.Scan() {
		line := scanner.Text()
		if match := begun.FindStringSubmatch(line); match != nil && ofMesh(match[1]) {
			fmt.Fprintf(out, "    %s %s\n", time.Now().Format(time.TimeOnly), match[1])
		}
		if match := whose.FindStringSubmatch(line); match != nil {
			current = match[1]
		} else if match := said.FindStringSubmatch(line); match != nil {
			last[current] = match[1]
		}
		if match := ended.FindStringSubmatch(line); match != nil {
			t := test{name: match[2], verdict: match[1], took: match[3]}
			if t.verdict != "PASS" {
				t.reason = last[t.name]
			}
			if ofMesh(t.name) || t.verdict == "FAIL" {
				tests = append(tests, t)
			}
		}
	}
	if err := scanner.Err(); err != nil {
		return tests, fmt.Errorf("read what the suite prints: %w", err)
	}
	return tests, nil
}

// ofMesh tells whether a test is one of the mesh's; the suite names them so.
func ofMesh(name string) bool { return strings.HasPrefix(name, "Mesh") }

// printTests writes the table of results.
func printTests(out io.Writer, tests []test) {
	fmt.Fprintln(out)
	count := map[string]int{}
	for _, t := range tests {
		count[t.verdict]++
		fmt.Fprintln(out, strings.TrimRight(fmt.Sprintf("  %-4s  %8s  %-48s %s", t.verdict, t.took, t.name, t.reason), " "))
	}
	fmt.Fprintf(out, "\n    %d passed, %d failed, %d skipped\n", count["PASS"], count["FAIL"], count["SKIP"])
}

// judge says what is wrong with the tests: each must have passed; if only one was asked for, that one.
func judge(tests []test, only string) error {
	var wrong []string
	ran := false
	for _, t := range tests {
		if only != "" && t.name != only {
			continue
		}
		ran = ran || t.verdict == "PASS"
		if t.verdict != "PASS" {
			wrong = append(wrong, t.name+" "+map[string]string{"FAIL": "failed", "SKIP": "was skipped"}[t.verdict])
		}
	}
	switch {
	case len(wrong) > 0:
		return errors.New(strings.Join(wrong, ", "))
	case !ran:
		return fmt.Errorf("no test passed: %s did not run", cmp.Or(only, "the mesh tests"))
	}
	return nil
}

// report is what is read of the suite's report.
type report struct {
	GatewayAPIVersion string    `json:"gatewayAPIVersion"`
	GatewayAPIChannel string    `json:"gatewayAPIChannel"`
	Profiles          []profile `json:"profiles"`
}

type profile struct {
	Name     string  `json:"name"`
	Core     status  `json:"core"`
	Extended *status `json:"extended"`
}

type status struct {
	Result     string `json:"result"`
	Statistics struct {
		Passed, Failed, Skipped int
	} `json:"statistics"`
	UnsupportedFeatures []string `json:"unsupportedFeatures"`
}

// judgeReport reads the report, shows it in short and says what is wrong with it.
func (r *Run) judgeReport(version string) error {
	raw, err := os.ReadFile(r.Report)
	if err != nil {
		return fmt.Errorf("the suite wrote no report: %w", err)
	}
	var got report
	if err := yaml.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the report %s: %w", r.Report, err)
	}
	for _, profile := range got.Profiles {
		fmt.Fprintf(r.Out, "    %-10s core %s\n", profile.Name, profile.Core)
		if profile.Extended != nil {
			fmt.Fprintf(r.Out, "    %-10s extended %s\n", "", *profile.Extended)
		}
	}
	fmt.Fprintf(r.Out, "    report: %s\n", r.Report)
	return got.check(version)
}

// String is the status in short.
func (s status) String() string {
	return fmt.Sprintf("%s, %d of %d", s.Result, s.Statistics.Passed, s.Statistics.Passed+s.Statistics.Failed+s.Statistics.Skipped)
}

// check says what is wrong with a report: it must name this version of the API in its experimental channel, and both profiles must
// have succeeded in all that they have, with no feature left out.
func (r report) check(version string) error {
	var wrong []error
	if r.GatewayAPIVersion != version || r.GatewayAPIChannel != "experimental" {
		wrong = append(wrong, fmt.Errorf("the report is of Gateway API %s (%s), want %s (experimental)", r.GatewayAPIVersion, r.GatewayAPIChannel, version))
	}
	var names []string
	for _, profile := range r.Profiles {
		names = append(names, profile.Name)
		parts := map[string]*status{"core": &profile.Core}
		if profile.Extended != nil {
			parts["extended"] = profile.Extended
		} else if profile.Name == "MESH-HTTP" { // no extended test is counted in the other one
			wrong = append(wrong, errors.New("the report's profile MESH-HTTP has no extended tests"))
		}
		for part, status := range parts {
			if status.Result != "success" || status.Statistics.Failed > 0 || status.Statistics.Skipped > 0 || status.Statistics.Passed == 0 {
				wrong = append(wrong, fmt.Errorf("the report's profile %s, %s: %s", profile.Name, part, *status))
			}
			if len(status.UnsupportedFeatures) > 0 {
				wrong = append(wrong, fmt.Errorf("the report's profile %s leaves out %s", profile.Name, strings.Join(status.UnsupportedFeatures, ", ")))
			}
		}
	}
	slices.Sort(names)
	if want := []string{"MESH-GRPC", "MESH-HTTP"}; !slices.Equal(names, want) {
		wrong = append(wrong, fmt.Errorf("the report has profiles %q, want %q", names, want))
	}
	return errors.Join(wrong...)
}
