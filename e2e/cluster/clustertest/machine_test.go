package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/lifecycle"
	"github.com/google/go-cmp/cmp"
)

const (
	// upLimit is for an `up` that finds its programs in the cache, on a machine that also does other things.
	upLimit = 4 * time.Minute

	// coldLimit is for the first one, which may build them.
	coldLimit = 25 * time.Minute

	// settle is how long anything in a running cluster may take to come about.
	settle = 2 * time.Minute
)

// clone is a clone of the repository and the program that its users call.
type clone struct {
	dir     string
	program string
}

// thisClone builds the program. The test needs root and a machine without a cluster.
func thisClone(t *testing.T) clone {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("AMBIT_REQUIRE_CLUSTER") != "" {
			t.Fatal("AMBIT_REQUIRE_CLUSTER is set, but this is not root")
		}
		t.Skip("skipped: a cluster needs root")
	}
	if _, err := os.Stat("/run/ambit-cluster.json"); err == nil {
		t.Fatal("there is a cluster on this machine, which this test would take down: run make cluster-down first")
	}
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	c := clone{dir: dir, program: filepath.Join(t.TempDir(), "cluster")}
	build(t, c.program, "../cmd/cluster")
	t.Cleanup(func() {
		if out, err := c.run(context.Background(), "down"); err != nil {
			t.Errorf("take the cluster down: %v\n%s", err, out)
		}
	})
	return c
}

func build(t *testing.T, to, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

func (c clone) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.Dir = c.dir
	return cmd
}

func (c clone) run(ctx context.Context, args ...string) (string, error) {
	out, err := c.command(ctx, args...).CombinedOutput()
	return string(out), err
}

// must runs the program and returns what it prints.
func (c clone) must(t *testing.T, limit time.Duration, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	begin := time.Now()
	out, err := c.run(ctx, args...)
	t.Logf("cluster %s: %s", strings.Join(args, " "), time.Since(begin).Round(100*time.Millisecond))
	if err != nil {
		t.Fatalf("cluster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c clone) stateDir() string { return filepath.Join(c.dir, ".cache", "cluster") }

func (c clone) state(t *testing.T) lifecycle.State {
	t.Helper()
	s, err := lifecycle.ReadState(c.stateDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kubectl runs the clone's kubectl with the clone's kubeconfig, as its users do.
func (c clone) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.dir, ".cache", "bin", "kubectl"),
		append([]string{"--kubeconfig", filepath.Join(c.stateDir(), "kubeconfig")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), err
}

func (c clone) mustKubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	out, err := c.kubectl(ctx, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually waits until f succeeds.
func eventually(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, settle, err)
		}
	}
}

// traces is what a cluster could leave on the machine.
type traces struct {
	Mounts, NetNS, Links, Cgroups, Files, Processes []string
	Sysctls                                         map[string]string
}

// look lists the machine's objects of each kind. Those of other programs come and go too, so only names that a cluster
// may use, or paths of the clone, are kept.
func look(t *testing.T, clones ...clone) traces {
	t.Helper()
	s := traces{Sysctls: map[string]string{}, Processes: processes(t)}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	ours := func(text string) bool {
		for _, name := range []string{"/netns/ambit-cp", "/netns/ambit-node", "/var/lib/kubelet", "/etc/cni", "/opt/cni", "/var/lib/cni", "/containerd"} {
			if strings.Contains(text, name) {
				return true
			}
		}
		return slices.ContainsFunc(clones, func(c clone) bool { return strings.Contains(text, c.stateDir()) })
	}
	for line := range strings.Lines(string(mounts)) {
		if ours(line) {
			s.Mounts = append(s.Mounts, line)
		}
	}
	glob := func(patterns ...string) (out []string) {
		for _, p := range patterns {
			found, err := filepath.Glob(p)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, found...)
		}
		return out
	}
	s.NetNS = glob("/run/netns/ambit-cp", "/run/netns/ambit-node*")
	s.Cgroups = glob("/sys/fs/cgroup/ambit", "/sys/fs/cgroup/*/ambit", "/sys/fs/cgroup/*/kubepods")
	s.Files = glob("/run/ambit-cluster*", "/etc/cni*", "/opt/cni*", "/var/lib/kubelet*", "/var/lib/containerd*", "/var/lib/cni*",
		"/var/lib/ambit*", "/var/log/pods*", "/var/log/containers*", "/run/containerd*", "/usr/libexec/kubernetes*", "/etc/kubernetes*")
	for _, c := range clones {
		s.Files = append(s.Files, glob(c.stateDir(), filepath.Join(c.dir, ".cache", "bin", "kubectl"))...)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "ambit-host") {
			s.Links = append(s.Links, l.Name)
		}
	}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
		"fs/inotify/max_user_instances", "fs/inotify/max_user_watches"} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		s.Sysctls[name] = strings.TrimSpace(string(value))
	}
	return s
}

// processes lists what of a cluster's programs runs anywhere on the machine: their files are in a cache entry, and they are in
// a PID namespace of their own, which others who use the same programs are not.
func processes(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range exes {
		target, err := os.Readlink(exe)
		if err != nil || !strings.Contains(target, "/cluster/") || !strings.Contains(target, "/bin/") {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(exe), "status"))
		if err != nil {
			continue // it has ended
		}
		_, pids, _ := strings.Cut(string(status), "\nNSpid:")
		pids, _, _ = strings.Cut(pids, "\n")
		if len(strings.Fields(pids)) > 1 {
			found[filepath.Dir(exe)+" "+target] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// checkClean compares the machine with what it was before any cluster.
func checkClean(t *testing.T, before traces, clones ...clone) {
	t.Helper()
	if diff := cmp.Diff(before, look(t, clones...)); diff != "" {
		t.Errorf("the cluster left traces (-before +after):\n%s", diff)
	}
}
