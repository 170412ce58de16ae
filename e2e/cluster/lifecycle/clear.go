package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/kernel"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
	"golang.org/x/sys/unix"
)

// endTimeout is how long killed processes and their cgroups may take to go.
const endTimeout = 30 * time.Second

// Down removes this repository's cluster, and whatever a run of any clone left that was cut off. Nothing to remove is
// no error. The cache stays.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readRecord(c.StateDir())
	if err != nil {
		return err
	}
	if c.foreign(r) {
		c.notef("nothing to take down here; the cluster that is up on this machine belongs to %s", r.Repository)
		return os.RemoveAll(c.StateDir())
	}
	begin := time.Now()
	if err := c.clear(ctx, r); err != nil {
		return err
	}
	c.notef("the cluster is down (%s)", since(begin))
	return nil
}

// foreign tells whether the record is of a cluster that is up and belongs to another clone that still exists.
func (c *Cluster) foreign(r *record) bool {
	if r == nil || r.StateDir == c.StateDir() || !r.Ready || !r.alive() {
		return false
	}
	_, err := os.Stat(r.StateDir)
	return err == nil
}

// clear removes every trace of a cluster from the machine. It starts from what the kernel shows; r may be nil.
func (c *Cluster) clear(ctx context.Context, r *record) error {
	h, err := kernel.FindHierarchies()
	if err != nil {
		return err
	}
	names := plan.NetNSNames()
	ending, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if r != nil {
		for _, p := range r.Machines { // first, for their ends are the ends of all that run in them
			if err := p.Kill(); err != nil {
				return err
			}
		}
	}
	list := func() ([]kernel.Process, error) { return kernel.Residents(h, plan.Cgroup, names) }
	if err := kernel.KillAll(ending, list); err != nil {
		return fmt.Errorf("clear processes: %w", err)
	}
	if err := kernel.RemoveLink("", plan.HostLink); err != nil {
		return fmt.Errorf("clear link: %w", err)
	}
	for _, name := range names {
		if err := kernel.RemoveNetNS(name); err != nil {
			return fmt.Errorf("clear network namespaces: %w", err)
		}
	}
	if err := h.Remove(ending, plan.Cgroup); err != nil {
		return fmt.Errorf("clear cgroups: %w", err)
	}
	if err := c.clearFiles(); err != nil {
		return err
	}
	if r != nil && r.Repository != c.Repository {
		if err := (&Cluster{Repository: r.Repository}).clearFiles(); err != nil {
			return err
		}
	}
	if r == nil {
		return nil
	}
	for _, dir := range slices.Backward(r.MadeDirs) {
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("clear mount points: %w", err)
		}
	}
	restoreSysctls(r.Sysctls)
	if err := os.Remove(recordPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear record: %w", err)
	}
	return nil
}

// clearFiles removes what a cluster has in its clone of the repository.
func (c *Cluster) clearFiles() error {
	// A mount that is still there would have its source emptied along with the folder.
	if err := kernel.Unmount(c.StateDir()); err != nil {
		return fmt.Errorf("clear mounts: %w", err)
	}
	if err := os.RemoveAll(c.StateDir()); err != nil {
		return fmt.Errorf("clear files: %w", err)
	}
	if err := os.Remove(c.kubectlLink()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear files: %w", err)
	}
	return nil
}

// sysctls are settings of the whole machine that a cluster changes: by a kubelet (container manager, "kernel tunables"),
// or here, by what a machine with many pods needs. They are put back.
func sysctls() map[string]int {
	return map[string]int{
		"vm/overcommit_memory": 0, "vm/panic_on_oom": 0, "kernel/panic": 0, "kernel/panic_on_oops": 0, // zero: the kubelet's choice
		"kernel/keys/root_maxkeys": 0, "kernel/keys/root_maxbytes": 0,
		"fs/inotify/max_user_instances": 2048, // two kubelets and containerds share it with all that watch files
		"fs/inotify/max_user_watches":   524288,
	}
}

func readSysctls() map[string]string {
	out := map[string]string{}
	for name := range sysctls() {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil {
			out[name] = strings.TrimSpace(string(value))
		}
	}
	return out
}

// raiseSysctls sets what is lower than a cluster needs. A machine that forbids it may do without.
func raiseSysctls(have map[string]string) {
	for name, want := range sysctls() {
		if value, err := strconv.Atoi(have[name]); err == nil && value < want {
			_ = os.WriteFile("/proc/sys/"+name, []byte(strconv.Itoa(want)), 0)
		}
	}
}

// restoreSysctls sets what can be set: a machine that forbids it did not let the kubelet change it either.
func restoreSysctls(values map[string]string) {
	for name, value := range values {
		_ = os.WriteFile("/proc/sys/"+name, []byte(value), 0)
	}
}

// missingDirs returns the folders that do not exist on the way to the paths, outermost first.
func missingDirs(paths []string) []string {
	var out []string
	for _, path := range paths {
		var missing []string
		for dir := path; dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(dir); err == nil {
				break
			}
			if !slices.Contains(out, dir) {
				missing = append(missing, dir)
			}
		}
		slices.Reverse(missing)
		out = append(out, missing...)
	}
	return out
}
