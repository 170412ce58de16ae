package conformance

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// output is what the test binary prints, in short: tests of the mesh, one of a gateway that is not asked for, and cases below them.
const output = `=== RUN   TestConformance
    conformance.go:95: Running conformance tests with:
=== RUN   TestConformance/GatewayClassObservedGenerationBump
    conformance.go:63: Skipping GatewayClassObservedGenerationBump: suite does not support Gateway
=== RUN   TestConformance/MeshBasic
    apply.go:276: 2026-11-23T16:00:00Z: Creating echo Service
=== RUN   TestConformance/MeshBasic/Send_to_service
=== RUN   TestConformance/MeshTrafficSplit
=== RUN   TestConformance/MeshTrafficSplit/Send_to_v1
=== NAME  TestConformance/MeshTrafficSplit
    request.go:120: 2026-11-23T16:00:30Z: expected status code 200, got 404
=== RUN   TestConformance/MeshConsumerRoute
    conformance.go:63: Skipping MeshConsumerRoute: suite does not support MeshConsumerRoute
--- FAIL: TestConformance (33.10s)
    --- SKIP: TestConformance/GatewayClassObservedGenerationBump (0.00s)
    --- PASS: TestConformance/MeshBasic (1.42s)
        --- PASS: TestConformance/MeshBasic/Send_to_service (0.40s)
    --- FAIL: TestConformance/MeshTrafficSplit (30.01s)
        --- FAIL: TestConformance/MeshTrafficSplit/Send_to_v1 (30.00s)
    --- SKIP: TestConformance/MeshConsumerRoute (0.00s)
FAIL
`

func TestFollow(t *testing.T) {
	var progress strings.Builder
	got, err := follow(strings.NewReader(output), &progress)
	if err != nil {
		t.Fatal(err)
	}
	want := []test{
		{name: "MeshBasic", verdict: "PASS", took: "1.42s"},
		{name: "MeshTrafficSplit", verdict: "FAIL", took: "30.01s", reason: "2026-11-23T16:00:30Z: expected status code 200, got 404"},
		{name: "MeshConsumerRoute", verdict: "SKIP", took: "0.00s", reason: "Skipping MeshConsumerRoute: suite does not support MeshConsumerRoute"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(test{})); diff != "" {
		t.Errorf("tests (-want +got):\n%s", diff)
	}
	if n := strings.Count(progress.String(), "\n"); n != 3 {
		t.Errorf("progress has %d lines, want one for each mesh test:\n%s", n, progress.String())
	}
}

func TestJudge(t *testing.T) {
	tests, err := follow(strings.NewReader(output), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		tests []test
		only  string
		want  string // part of the error; empty: none
	}{
		{name: "one failed, one skipped", tests: tests, want: "MeshTrafficSplit failed, MeshConsumerRoute was skipped"},
		{name: "all passed", tests: tests[:1]},
		{name: "none ran", want: "no test passed"},
		{name: "only the one that passed", tests: tests, only: "MeshBasic"},
		{name: "only the one that was skipped", tests: tests, only: "MeshConsumerRoute", want: "was skipped"},
		{name: "only one that there is not", tests: tests, only: "MeshNone", want: "MeshNone did not run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := judge(c.tests, c.only)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("judge = %v, want %q", err, c.want)
			}
		})
	}
}

func TestCheckReport(t *testing.T) {
	whole := func() report {
		var r report
		r.GatewayAPIVersion, r.GatewayAPIChannel = "v1.7.0", "experimental"
		for _, name := range []string{"MESH-HTTP", "MESH-GRPC"} {
			p := profile{Name: name, Core: status{Result: "success"}}
			p.Core.Statistics.Passed = 7
			p.Extended = &status{Result: "success"}
			p.Extended.Statistics.Passed = 7
			r.Profiles = append(r.Profiles, p)
		}
		return r
	}
	if err := whole().check("v1.7.0"); err != nil {
		t.Errorf("a whole report: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func(*report)
		want  string
	}{
		"another version":  {func(r *report) { r.GatewayAPIVersion = "UNDEFINED" }, "UNDEFINED"},
		"another channel":  {func(r *report) { r.GatewayAPIChannel = "standard" }, "standard"},
		"a failed core":    {func(r *report) { r.Profiles[0].Core.Result = "failure" }, "MESH-HTTP, core: failure"},
		"a skipped test":   {func(r *report) { r.Profiles[1].Extended.Statistics.Skipped = 1 }, "MESH-GRPC, extended"},
		"nothing ran":      {func(r *report) { r.Profiles[1].Core.Statistics.Passed = 0 }, "MESH-GRPC, core"},
		"a feature less":   {func(r *report) { r.Profiles[0].Extended.UnsupportedFeatures = []string{"MeshX"} }, "leaves out MeshX"},
		"a profile less":   {func(r *report) { r.Profiles = r.Profiles[:1] }, "profiles"},
		"a profile twice":  {func(r *report) { r.Profiles[1].Name = "MESH-HTTP" }, "profiles"},
		"an extended less": {func(r *report) { r.Profiles[0].Extended = nil }, "MESH-HTTP has no extended"},
	} {
		t.Run(name, func(t *testing.T) {
			r := whole()
			c.spoil(&r)
			if err := r.check("v1.7.0"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check = %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestArguments: what the caller gives comes last, and so wins.
func TestArguments(t *testing.T) {
	r := &Run{Report: "/r.yaml", Flags: []string{"-run-test=MeshBasic", "--supported-features=Mesh,HTTPRoute"}}
	if got := r.given("supported-features"); got != "Mesh,HTTPRoute" {
		t.Errorf("given(supported-features) = %q", got)
	}
	args := strings.Join(r.arguments("v9"), "\n")
	for _, want := range []string{
		"-mesh-name=ambit", "-gateway-class=\n", "-conformance-profiles=MESH-HTTP,MESH-GRPC",
		"istio.io/dataplane-mode=ambient,istio.io/use-waypoint=waypoint,istio.io/use-waypoint-namespace=conformance-waypoint",
		"-report-output=/r.yaml", "-version=v9",
	} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in\n%s", want, args)
		}
	}
	if strings.Contains(args, "allow-crds-mismatch") {
		t.Errorf("the suite is let off the definitions:\n%s", args)
	}
	if !strings.HasSuffix(args, "--supported-features=Mesh,HTTPRoute") {
		t.Errorf("the caller's flags are not last:\n%s", args)
	}
}
