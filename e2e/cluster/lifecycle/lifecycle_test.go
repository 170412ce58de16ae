package lifecycle

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/cluster/kernel"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
	"github.com/google/go-cmp/cmp"
)

func TestState(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadState(dir); err == nil || !strings.Contains(err.Error(), "make cluster-up") {
		t.Errorf("without a cluster: %v, want what to do", err)
	}
	self, err := kernel.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Repository: "/repository"}
	p := plan.New(plan.Options{StateDir: dir, BinDir: "/bin-dir", Link: mustLink(t)})
	r := &record{Recipe: "key", Machines: map[string]kernel.Process{"cp": self, "node1": self, "node2": {PID: self.PID, Start: 1}}}
	want := c.describe(p, r, nil)
	if err := writeJSON(stateFile(dir), want); err != nil {
		t.Fatal(err)
	}
	have, err := ReadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, have, cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("state (-written +read):\n%s", diff)
	}
	if m, err := have.machine("node1"); err != nil || m.Uplink != "eth0" || m.Port != "node1" || m.NetNS != "ambit-node1" || len(m.Addresses) != 2 {
		t.Errorf("node1 is %+v, %v", m, err)
	}
	if _, err := have.machine("node2"); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("a machine that ended: %v", err)
	}
	if _, err := have.machine("node3"); err == nil || !strings.Contains(err.Error(), "node1 node2") {
		t.Errorf("a machine that is none: %v, want their names", err)
	}
	if err := os.WriteFile(stateFile(dir), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(dir); err == nil {
		t.Error("a broken file was read")
	}
}

func mustLink(t *testing.T) (p netip.Prefix) {
	t.Helper()
	p, err := plan.ChooseLink(plan.Dual, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestForeign(t *testing.T) {
	self, err := kernel.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	alive := map[string]kernel.Process{"cp": self}
	dead := map[string]kernel.Process{"cp": self, "node1": {PID: self.PID, Start: 1}}
	c := &Cluster{Repository: t.TempDir()}
	other := t.TempDir()
	tests := []struct {
		name string
		r    *record
		want bool
	}{
		{"no cluster", nil, false},
		{"own", &record{StateDir: c.StateDir(), Ready: true, Machines: alive}, false},
		{"another's that is up", &record{StateDir: other, Ready: true, Machines: alive}, true},
		{"another's that never came up", &record{StateDir: other, Machines: alive}, false},
		{"another's that lost a machine", &record{StateDir: other, Ready: true, Machines: dead}, false},
		{"another's that has no machine", &record{StateDir: other, Ready: true}, false},
		{"another's whose folder is gone", &record{StateDir: filepath.Join(other, "none"), Ready: true, Machines: alive}, false},
	}
	for _, tt := range tests {
		if have := c.foreign(tt.r); have != tt.want {
			t.Errorf("%s: foreign is %t", tt.name, have)
		}
	}
}

func TestMissingDirs(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var", "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	have := missingDirs([]string{root + "/var/lib", root + "/var/lib/kubelet", root + "/opt/cni/bin", root + "/opt/other"})
	want := []string{root + "/var/lib/kubelet", root + "/opt", root + "/opt/cni", root + "/opt/cni/bin", root + "/opt/other"}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("missing (-want +have):\n%s", diff)
	}
	for _, dir := range have { // in this order every parent comes first
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range slices.Backward(have) {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestTailsShowTheEndAndSayWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	var lines []string
	for i := range 50 {
		lines = append(lines, "line "+strings.Repeat("x", i))
	}
	log := filepath.Join(dir, "a.log")
	if err := os.WriteFile(log, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	have := tails([]string{log, filepath.Join(dir, "none.log")})
	if !strings.Contains(have, lines[49]) || !strings.Contains(have, lines[30]) || strings.Contains(have, lines[29]+"\n") {
		t.Errorf("not the last %d lines:\n%s", tailLines, have)
	}
	if !strings.Contains(have, log) || !strings.Contains(have, "none.log") || !strings.Contains(have, "no such file") {
		t.Errorf("a log is not named:\n%s", have)
	}
}

func TestListed(t *testing.T) {
	listing := "REF TYPE DIGEST SIZE\ndocker.io/a:dev application/x sha256:1 5 MiB linux/amd64 -\n"
	if !listed(listing, "docker.io/a:dev", "sha256:1") {
		t.Error("the image was not found")
	}
	if listed(listing, "docker.io/a:dev", "sha256:2") || listed(listing, "docker.io/b:dev", "sha256:1") {
		t.Error("another image was found")
	}
}
