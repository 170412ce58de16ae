package clustertest

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/cluster/lifecycle"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
)

// TestSingleFamily makes a cluster of each single address family, one right over the other.
func TestSingleFamily(t *testing.T) {
	c := thisClone(t)
	before := look(t, c)
	for _, family := range []plan.Family{plan.IPv4, plan.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			out, err := c.run(t.Context(), "up", "--family", string(family))
			if err != nil && strings.Contains(out, "make a cluster without IPv4") {
				t.Skipf("skipped: this kernel has no IPv6:\n%s", out)
			}
			if err != nil {
				t.Fatalf("cluster up --family %s: %v\n%s", family, err, out)
			}
			s := c.state(t)
			if s.Family != family {
				t.Fatalf("the cluster's family is %q", s.Family)
			}
			onlyOf(t, c, s, family)
			testPods(t, c, s)
			testReboot(t, c, s)
			onlyOf(t, c, s, family)
		})
	}
	c.must(t, upLimit, "down")
	checkClean(t, before, c)
}

// onlyOf wants no address of another family on the nodes' interfaces but loopback.
func onlyOf(t *testing.T, c clone, s lifecycle.State, family plan.Family) {
	t.Helper()
	for _, n := range s.Nodes {
		out, err := inside(t.Context(), c, n.Name, "ip", "-o", "addr", "show", "scope", "global")
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for line := range strings.Lines(out) {
			fields := strings.Fields(line) // number, interface, inet or inet6, address
			if len(fields) < 4 {
				t.Fatalf("ip addr prints %q", line)
			}
			prefix, err := netip.ParsePrefix(fields[3])
			if err != nil {
				t.Fatal(err)
			}
			if seen++; prefix.Addr().Is4() != (family == plan.IPv4) {
				t.Errorf("%s has address %s on %s", n.Name, prefix, fields[1])
			}
		}
		if seen == 0 {
			t.Errorf("%s has no address", n.Name)
		}
	}
}
