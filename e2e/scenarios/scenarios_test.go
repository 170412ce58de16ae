package scenarios

import (
	"context"
	"flag"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/harness"
)

// ipv6Forms are the first four stories by IPv6, for a cluster that has IPv4, too, and before it.
func ipv6Forms() []scenario {
	return []scenario{capturedToCaptured().in(IPv6), mixed().in(IPv6), probes().in(IPv6), shapes().in(IPv6)}
}

// stages are told one after the other; the scenarios of a stage side by side, so none of them may disturb what another one
// of its stage relies on.
func stages(dual bool) []stage {
	stages := []stage{
		{"steady", []scenario{capturedToCaptured(), mixed(), probes(), impersonation(), badInput(), authorization(), names(), seen()}},
		{"bulk", []scenario{shapes()}}, // alone: no capture of another scenario keeps up with it
		{"waypoint", []scenario{waypoint()}},
		{"waypoint-rolling", []scenario{waypointRolls()}},
		{"changing", []scenario{enrolUnderLoad(), midstream()}},
		{"rollout", []scenario{rollout()}},
		{"rolling", []scenario{rollControl()}},
		{"rolling-proxy", []scenario{rollProxy()}},
		{"away", []scenario{controlAway()}},
		{"agent-away", []scenario{pluginFailsClosed()}},
		{"egress", []scenario{egress()}}, // changes a setting of the whole mesh
		{"power", []scenario{reboot()}},
		{"leaving", []scenario{uninstall()}},
	}
	if dual {
		forms := ipv6Forms()
		stages = slices.Insert(stages, 2, stage{"steady-ipv6", forms[:3]}, stage{"bulk-ipv6", forms[3:]})
	}
	return stages
}

type stage struct {
	name      string
	scenarios []scenario
}

// TestMain lets all scenarios of a stage run side by side, however few cores there are: most of their time they wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestScenarios(t *testing.T) {
	c := open(t)
	there, err := c.Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !there {
		run(t, c, stage{"plain", []scenario{plain()}})
	}
	installed := t.Run("install", func(t *testing.T) { install(t, c) })
	if !installed {
		t.Fatal("no mesh, no stories")
	}
	families, err := c.Families(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range stages(len(families) > 1) {
		run(t, c, stage)
	}
}

func run(t *testing.T, c *harness.Cluster, s stage) {
	t.Run(s.name, func(t *testing.T) {
		start := time.Now()
		t.Cleanup(func() { t.Logf("stage %s took %s", s.name, time.Since(start).Round(time.Second)) })
		for _, s := range s.scenarios {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				play(t, c, s)
			})
		}
	})
}

// install puts the mesh into the cluster if there is none, and waits until it is ready.
func install(t *testing.T, c *harness.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), installing)
	defer cancel()
	there, err := c.Installed(ctx)
	if err == nil && !there {
		start := time.Now()
		var out string
		out, err = c.Run(ctx, ambit(c), "install", "--set", "tag=dev")
		t.Logf("ambit install (%s):\n%s", time.Since(start).Round(time.Second), out)
	}
	if err == nil {
		err = c.AwaitMesh(ctx, installing)
	}
	if err != nil {
		c.Dump(context.WithoutCancel(ctx), t.Output())
		t.Fatal(err)
	}
}
