package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

// Node is a node of the cluster, which is a set of namespaces of this machine.
type Node struct {
	Name string
	// PID is the node's first process, as seen from here. It changes with a reboot.
	PID int
	// Uplink is the interface, in the node's network namespace, that leads to the other nodes.
	Uplink string
}

// Node returns a node as it is now.
func (c *Cluster) Node(name string) (Node, error) {
	nodes, err := c.Nodes()
	if err != nil {
		return Node{}, err
	}
	for _, node := range nodes {
		if node.Name == name {
			return node, nil
		}
	}
	return Node{}, fmt.Errorf("node %s: the cluster has no such node", name)
}

// machine is what the cluster's record says of one.
type machine struct {
	Name string `json:"name"`
	Init struct {
		PID int `json:"pid"`
	} `json:"init"`
	Uplink    string       `json:"uplink"`
	Addresses []netip.Addr `json:"addresses"`
}

func (m machine) node() Node { return Node{Name: m.Name, PID: m.Init.PID, Uplink: m.Uplink} }

// machines are the nodes and the machine of the control plane, which is not a node.
func (c *Cluster) machines() (nodes []machine, controlPlane machine, err error) {
	path := filepath.Join(filepath.Dir(c.Kubeconfig), "state.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, machine{}, fmt.Errorf("%w: its nodes are not on this machine: %w", ErrNoCluster, err)
	}
	var state struct {
		ControlPlane machine   `json:"controlPlane"`
		Nodes        []machine `json:"nodes"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return nil, machine{}, fmt.Errorf("read %s: %w", path, err)
	}
	return state.Nodes, state.ControlPlane, nil
}

// Nodes returns all nodes as they are now.
func (c *Cluster) Nodes() ([]Node, error) {
	machines, _, err := c.machines()
	var nodes []Node
	for _, m := range machines {
		nodes = append(nodes, m.node())
	}
	return nodes, err
}

// Beside returns a machine that pods can reach and that Kubernetes does not know, with its address of the family that the
// cluster's services have first.
func (c *Cluster) Beside() (Node, netip.Addr, error) {
	_, m, err := c.machines()
	if err == nil && len(m.Addresses) == 0 {
		err = errors.New("the machine of the control plane has no address")
	}
	if err != nil {
		return Node{}, netip.Addr{}, err
	}
	return m.node(), m.Addresses[0], nil
}

// Do runs f on a thread in the node's network namespace. f must not start goroutines that rely on it.
func (n Node) Do(f func() error) error { return inNamespace(n.PID, f) }

// Path is where a path of the node's file system is found from here.
func (n Node) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(n.PID), "root", path)
}

func inNamespace(pid int, f func() error) error {
	handle, err := ns.GetNS(filepath.Join("/proc", strconv.Itoa(pid), "ns", "net"))
	if err != nil {
		return fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	defer handle.Close()
	return handle.Do(func(ns.NetNS) error { return f() })
}

// Command runs a program of this machine in the node's network namespace and returns what it prints.
func (n Node) Command(ctx context.Context, program string, args ...string) (string, error) {
	return command(ctx, n.Do, program, args...)
}

func command(ctx context.Context, do func(func() error) error, program string, args ...string) (string, error) {
	var out []byte
	err := do(func() error {
		var err error
		// The child is forked by the thread that is in the namespace.
		out, err = exec.CommandContext(ctx, program, args...).CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// DialContext connects from the node's own network namespace; addr must have an address, not a name.
func (n Node) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialFrom(ctx, n.Do, network, addr)
}

func dialFrom(ctx context.Context, do func(func() error) error, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := do(func() error {
		var err error
		// An address needs no resolver and no second family, so that Dial makes its socket on this thread.
		conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Inside is a pod's network namespace.
type Inside struct {
	Pod Pod
	pid int
}

// Inside finds a running pod's network namespace, by a process of the pod.
func (c *Cluster) Inside(ctx context.Context, name Pod) (Inside, error) {
	pod, err := c.Get(ctx, name)
	if err != nil {
		return Inside{}, fmt.Errorf("enter pod %s: %w", name, err)
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return Inside{}, err
	}
	lowest := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(raw), "/pod"+string(pod.UID)) {
			continue // the process has ended, or is of another pod
		}
		// The lowest is the sandbox's own: it was first, and has one thread and enters no other namespace.
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && (lowest == 0 || pid < lowest) {
			lowest = pid
		}
	}
	if lowest == 0 {
		return Inside{}, fmt.Errorf("enter pod %s: no process of it on this machine", name)
	}
	return Inside{Pod: name, pid: lowest}, nil
}

// Do runs f on a thread in the pod's network namespace. f must not start goroutines that rely on it.
func (i Inside) Do(f func() error) error { return inNamespace(i.pid, f) }

// Command runs a program of this machine in the pod's network namespace and returns what it prints.
func (i Inside) Command(ctx context.Context, program string, args ...string) (string, error) {
	return command(ctx, i.Do, program, args...)
}

// DialContext connects from the pod's network namespace; addr must have an address, not a name.
func (i Inside) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialFrom(ctx, i.Do, network, addr)
}

// Reboot cuts a node's power and starts it again. It returns when the node's processes have been started, not when it is
// Ready.
func (c *Cluster) Reboot(ctx context.Context, node string) error {
	_, err := c.Make(ctx, "cluster-reboot", "NODE="+node)
	return err
}

// Make runs one of the repository's tasks and returns what it prints.
func (c *Cluster) Make(ctx context.Context, args ...string) (string, error) {
	return c.Run(ctx, "make", append([]string{"--no-print-directory", "-C", c.Root}, args...)...)
}

// Run runs a program of this machine with KUBECONFIG set, and returns what it prints.
func (c *Cluster) Run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, lastLines(string(out), 20))
	}
	return string(out), nil
}

// lastLines is the end of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// errNotCaptured says that a pod lacks what a captured one has.
var errNotCaptured = errors.New("not captured")
