package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/kernel"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
	"golang.org/x/sys/unix"
)

// Cluster is the cluster of one clone of the repository.
type Cluster struct {
	Repository string    // absolute
	Report     io.Writer // progress and notes
}

// StateDir is the folder of everything that ends with the cluster.
func (c *Cluster) StateDir() string { return filepath.Join(c.Repository, ".cache", "cluster") }

// Kubeconfig is the file that lets an administrator in.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.StateDir(), "kubeconfig") }

func (c *Cluster) kubectlLink() string {
	return filepath.Join(c.Repository, ".cache", "bin", "kubectl")
}

func (c *Cluster) notef(format string, args ...any) { fmt.Fprintf(c.Report, format+"\n", args...) }

// lock makes this process the only one on the machine that changes a cluster. The lock ends with the process, however
// it ends, and leaves no file.
func (c *Cluster) lock(ctx context.Context) (unlock func(), err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the cluster needs root: it makes namespaces, mounts and cgroups")
	}
	told := false
	for {
		l, err := net.Listen("unix", "@ambit-cluster")
		if err == nil {
			return func() { l.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock the machine's cluster: %w", err)
		}
		if !told {
			c.notef("another process is changing the machine's cluster; waiting for it")
			told = true
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return nil, fmt.Errorf("lock the machine's cluster: %w", err)
		}
	}
}

// Enter returns the command line that runs args inside the machine.
func Enter(init kernel.Process, args ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(init.PID), "--mount", "--net", "--uts", "--ipc", "--pid", "--"}, args...)
}

// Exec replaces this process by a program that runs inside a machine: a node, or "cp".
func (c *Cluster) Exec(machine string, args []string) error {
	s, err := ReadState(c.StateDir())
	if err != nil {
		return err
	}
	m, err := s.machine(machine)
	if err != nil {
		return err
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PATH=") })
	env = append(env, "PATH="+s.Programs+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_NAMESPACE=k8s.io")
	return unix.Exec(nsenter, Enter(m.Init, args...), env)
}

func (s State) machine(name string) (Machine, error) {
	names := []string{}
	for _, m := range append([]Machine{s.ControlPlane}, s.Nodes...) {
		if m.Name == name {
			if !m.Init.Alive() {
				return m, fmt.Errorf("%s is not running: its init, process %d, has ended; see %s", name, m.Init.PID, m.Logs)
			}
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Machine{}, fmt.Errorf("no machine %q; there are %v", name, names)
}

// Reboot cuts a node's power and starts it again with its disk: everything on it ends without grace, and its network
// namespace is a new one. It returns when the node's kubelet has reported after the start.
func (c *Cluster) Reboot(ctx context.Context, name string) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readRecord(c.StateDir())
	if err != nil {
		return err
	}
	if r == nil || r.StateDir != c.StateDir() || !r.Ready {
		return errors.New("no cluster of this repository is up: run make cluster-up")
	}
	p, state, err := c.load()
	if err != nil {
		return err
	}
	n, err := p.Node(name)
	if err != nil {
		return err
	}
	begin := time.Now()
	h, err := kernel.FindHierarchies()
	if err != nil {
		return err
	}
	if err := cutPower(ctx, h, n, r.Machines[name]); err != nil {
		return err
	}
	c.notef("%s is off; starting it again", name)
	if err := connectNode(p, n); err != nil {
		return err
	}
	bootID, err := c.startNode(p, n, h, r)
	if err != nil {
		return err
	}
	if err := c.writeState(state, r); err != nil {
		return err
	}
	w := waiter{cluster: c, plan: p, record: r}
	if err := w.rebooted(ctx, n, bootID); err != nil {
		return err
	}
	c.notef("%s is Ready again after %s", name, since(begin))
	return nil
}

// cutPower ends a node: its processes, its cgroups, its link and its network namespace.
func cutPower(ctx context.Context, h kernel.Hierarchies, n plan.Node, init kernel.Process) error {
	if err := init.Kill(); err != nil {
		return fmt.Errorf("cut power of %s: %w", n.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	cgroup := plan.Cgroup + "/" + n.Name
	list := func() ([]kernel.Process, error) { return kernel.Residents(h, cgroup, []string{n.NetNS}) }
	if err := kernel.KillAll(ctx, list); err != nil {
		return fmt.Errorf("cut power of %s: %w", n.Name, err)
	}
	if err := kernel.RemoveLink(plan.NetNS(plan.ControlPlane), n.Name); err != nil {
		return fmt.Errorf("cut power of %s: %w", n.Name, err)
	}
	if err := kernel.RemoveNetNS(n.NetNS); err != nil {
		return fmt.Errorf("cut power of %s: %w", n.Name, err)
	}
	if err := h.Remove(ctx, cgroup); err != nil {
		return fmt.Errorf("cut power of %s: %w", n.Name, err)
	}
	return nil
}

// load reads the plan and the state of the cluster that is up.
func (c *Cluster) load() (plan.Plan, State, error) {
	state, err := ReadState(c.StateDir())
	if err != nil {
		return plan.Plan{}, state, err
	}
	var o plan.Options
	data, err := os.ReadFile(optionsFile(c.StateDir()))
	if err == nil {
		err = json.Unmarshal(data, &o)
	}
	if err != nil {
		return plan.Plan{}, state, fmt.Errorf("read options of the cluster: %w", err)
	}
	return plan.New(o), state, nil
}

func optionsFile(stateDir string) string { return filepath.Join(stateDir, "options.json") }

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Millisecond) }
