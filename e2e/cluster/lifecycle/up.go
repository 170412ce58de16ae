package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/cache"
	"github.com/ambit-mesh/ambit/e2e/cluster/debian"
	"github.com/ambit-mesh/ambit/e2e/cluster/kernel"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
	"golang.org/x/sys/unix"
)

// UpOptions are what a user may choose. The zero value is what `make cluster-up` uses.
type UpOptions struct {
	ProxyMode string      // kube-proxy's; "" is iptables
	Family    plan.Family // "" is plan.Dual; a kernel without IPv6 makes that plan.IPv4
}

// Up brings the cluster up, and returns when both nodes are Ready and CoreDNS answers on both. A cluster that is up is
// left as it is. What was cut off is cleared first.
func (c *Cluster) Up(ctx context.Context, o UpOptions) error {
	var err error
	if o.Family, err = plan.ParseFamily(string(o.Family)); err != nil {
		return err
	}
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
		return fmt.Errorf("a cluster is up on this machine and belongs to %s: take it down there first (make cluster-down)", r.Repository)
	}
	if err := debian.Install(ctx, Packages(), c.Report); err != nil {
		return err
	}
	recipe, err := c.recipe(ctx)
	if err != nil {
		return err
	}
	if r != nil && r.Ready && r.StateDir == c.StateDir() && r.alive() {
		if r.Recipe == recipe.Key() && r.ProxyMode == o.ProxyMode && r.Family == o.Family {
			return c.confirm(ctx, r)
		}
		c.notef("the cluster that is up was made otherwise; making it again")
	}
	if err := c.clear(ctx, r); err != nil {
		return err
	}
	programs, err := c.programs(ctx, recipe)
	if err != nil {
		return err
	}
	return c.start(ctx, o, programs)
}

// Build builds the cluster's programs, if they are not in the cache, and returns the folder that they are in. It touches no
// cluster.
func (c *Cluster) Build(ctx context.Context) (string, error) {
	if err := debian.Install(ctx, Packages(), c.Report); err != nil {
		return "", err
	}
	recipe, err := c.recipe(ctx)
	if err != nil {
		return "", err
	}
	programs, err := c.programs(ctx, recipe)
	return programs.Bin(), err
}

func (c *Cluster) programs(ctx context.Context, recipe cache.Recipe) (cache.Entry, error) {
	dir, err := cache.UserDir()
	if err != nil {
		return cache.Entry{}, err
	}
	store := cache.Cache{Dir: dir, Module: c.module(), Report: c.Report}
	return store.Get(ctx, recipe)
}

func (c *Cluster) module() string { return filepath.Join(c.Repository, "e2e", "cluster") }

// Packages are the Debian packages that a cluster needs, to be built and to run.
func Packages() []string {
	return []string{
		"iptables", "nftables", "ipset", "conntrack", "iproute2", "util-linux", "mount", "procps",
		"gcc", "libc6-dev", "libseccomp-dev", "libseccomp2", "pkg-config",
	}
}

func (c *Cluster) recipe(ctx context.Context) (cache.Recipe, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
	cmd.Dir = c.module()
	version, err := cmd.Output()
	if err != nil {
		return cache.Recipe{}, fmt.Errorf("ask for the version of Go: %w", err)
	}
	return cache.NewRecipe(c.module(), strings.TrimSpace(string(version)), runtime.GOARCH)
}

// confirm makes sure that the cluster that is up does its work, and that its description is right: a reboot that was cut
// off may not have come to write it.
func (c *Cluster) confirm(ctx context.Context, r *record) error {
	p, state, err := c.load()
	if err != nil {
		return err
	}
	if err := c.writeState(state, r); err != nil {
		return err
	}
	w := waiter{cluster: c, plan: p, record: r}
	if err := w.ready(ctx); err != nil {
		return err
	}
	c.notef("the cluster is up already")
	return c.linkKubectl(p)
}

// start makes a cluster on a machine that has none.
func (c *Cluster) start(ctx context.Context, o UpOptions, programs cache.Entry) error {
	begin := time.Now()
	h, err := kernel.FindHierarchies()
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	r := &record{
		Repository: c.Repository, StateDir: c.StateDir(), Recipe: programs.Key, ProxyMode: o.ProxyMode, Family: o.Family, BootID: boot,
		Machines: map[string]kernel.Process{}, Sysctls: readSysctls(),
		MadeDirs: missingDirs(append(plan.MountPoints(), kernel.NetNSDir)),
	}
	if err := r.write(); err != nil {
		return err
	}
	for _, dir := range plan.MountPoints() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
	}
	raiseSysctls(r.Sysctls)
	loadModules(ctx)
	p, noIPv6, err := c.plan(o, programs, h)
	if err != nil {
		return err
	}
	if err := writeFiles(p); err != nil {
		return err
	}
	if err := connectControlPlane(p); err != nil {
		return err
	}
	cgroups, err := h.Make(plan.Cgroup + "/" + plan.ControlPlane)
	if err != nil {
		return err
	}
	if err := c.startMachine(p, plan.ControlPlane, r, p.ControlPlaneSpec(cgroups)); err != nil {
		return err
	}
	for _, n := range p.Nodes {
		if err := connectNode(p, n); err != nil {
			return err
		}
		if _, err := c.startNode(p, n, h, r); err != nil {
			return err
		}
	}
	w := waiter{cluster: c, plan: p, record: r}
	images, err := programs.Images()
	if err != nil {
		return err
	}
	if err := w.first(ctx, images); err != nil {
		return err
	}
	if err := c.linkKubectl(p); err != nil {
		return err
	}
	if err := c.writeState(c.describe(p, r, noIPv6), r); err != nil {
		return err
	}
	r.Ready = true
	if err := r.write(); err != nil {
		return err
	}
	c.notef("the cluster is up (%s): KUBECONFIG=%s", since(begin), c.Kubeconfig())
	return nil
}

// plan chooses what depends on the machine, and makes the control plane's network namespace on the way. The error that
// it returns second says why the cluster has no IPv6; nil if it has.
func (c *Cluster) plan(o UpOptions, programs cache.Entry, h kernel.Hierarchies) (p plan.Plan, noIPv6, err error) {
	cp := plan.NetNS(plan.ControlPlane)
	if err := kernel.MakeNetNS(cp); err != nil {
		return p, nil, err
	}
	family := o.Family
	switch noIPv6 = kernel.IPv6(cp); {
	case family == plan.IPv4:
		noIPv6 = errors.New("it was not asked for")
	case noIPv6 == nil:
	case family == plan.IPv6:
		return p, nil, fmt.Errorf("make a cluster without IPv4: %w", noIPv6)
	default:
		c.notef("note: IPv4 only, no dual stack: %v", noIPv6)
		family = plan.IPv4
	}
	taken, err := kernel.Networks()
	if err != nil {
		return p, nil, err
	}
	link, err := plan.ChooseLink(family, taken)
	if err != nil {
		return p, nil, err
	}
	options := plan.Options{
		StateDir: c.StateDir(), BinDir: programs.Bin(), Link: link, Family: family, CgroupV2: h.V2(), ProxyMode: o.ProxyMode,
	}
	if err := kernel.Overlay(c.StateDir()); err != nil {
		c.notef("note: images are copied for every container, which is slow: %v", err)
		options.CopyImages = true
	}
	return plan.New(options), noIPv6, writeJSON(optionsFile(c.StateDir()), options)
}

// loadModules asks for kernel modules by name where nothing asks for them by use. What is built in, or not there, shows
// later.
func loadModules(ctx context.Context) {
	if modprobe, err := exec.LookPath("modprobe"); err == nil {
		_ = exec.CommandContext(ctx, modprobe, "--all", "--quiet", "overlay", "nf_conntrack", "br_netfilter").Run()
	}
}

func connectControlPlane(p plan.Plan) error {
	cp := plan.NetNS(plan.ControlPlane)
	bridge := kernel.End{Name: plan.Bridge, NetNS: cp}
	for _, a := range p.Gateways {
		bridge.Addresses = append(bridge.Addresses, netip.PrefixFrom(a, p.Bits(a)))
	}
	if err := kernel.MakeBridge(bridge); err != nil {
		return err
	}
	var routes []kernel.Route
	for _, n := range p.Nodes {
		routes = append(routes, routesTo(n)...)
	}
	if err := kernel.Prepare(cp, p.Family.Has6(), routes); err != nil {
		return err
	}
	return kernel.Connect(
		kernel.End{Name: plan.HostLink, Addresses: []netip.Prefix{netip.PrefixFrom(p.Host, p.Bits(p.Host))}},
		kernel.End{Name: "host", NetNS: cp, Master: plan.Bridge})
}

// routesTo leads to the pods of a node.
func routesTo(n plan.Node) []kernel.Route {
	var out []kernel.Route
	for i, r := range n.PodRanges {
		out = append(out, kernel.Route{To: r, Via: n.Addresses[i]})
	}
	return out
}

// connectNode makes the node's network namespace, its uplink and its routes.
func connectNode(p plan.Plan, n plan.Node) error {
	if err := kernel.MakeNetNS(n.NetNS); err != nil {
		return err
	}
	uplink := kernel.End{Name: plan.Uplink, NetNS: n.NetNS, Hardware: n.Hardware()}
	for _, a := range n.Addresses {
		uplink.Addresses = append(uplink.Addresses, netip.PrefixFrom(a, p.Bits(a)))
	}
	port := kernel.End{Name: n.Name, NetNS: plan.NetNS(plan.ControlPlane), Master: plan.Bridge}
	if err := kernel.Connect(uplink, port); err != nil {
		return err
	}
	var routes []kernel.Route
	for _, a := range p.Gateways {
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Is6() {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		routes = append(routes, kernel.Route{To: everywhere, Via: a})
	}
	for _, other := range p.Nodes {
		if other.Name != n.Name {
			routes = append(routes, routesTo(other)...)
		}
	}
	return kernel.Prepare(n.NetNS, p.Family.Has6(), routes)
}

// startNode starts a node and returns the boot ID that it will report.
func (c *Cluster) startNode(p plan.Plan, n plan.Node, h kernel.Hierarchies, r *record) (string, error) {
	cgroups, err := h.Make(plan.Cgroup + "/" + n.Name + "/system")
	if err != nil {
		return "", err
	}
	id := newBootID()
	return id, c.startMachine(p, n.Name, r, p.NodeSpec(n, cgroups, id))
}

// startMachine starts the init of a machine in its network namespace and in new namespaces of the other kinds, and
// records it. The init is in the network namespace from its first moment on, so that a run that is cut off here leaves
// nothing that the next one does not find.
func (c *Cluster) startMachine(p plan.Plan, name string, r *record, spec any) error {
	file := p.SpecFile(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	if err := writeJSON(file, spec); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	if err := os.MkdirAll(p.Logs(name), 0o755); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	log, err := os.OpenFile(initLog(p, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(p.BinDir, "nodeinit"), file)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
	}
	if err := kernel.InNetNS(plan.NetNS(name), cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	process, err := kernel.FindProcess(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	r.Machines[name] = process
	return r.write()
}

func initLog(p plan.Plan, machine string) string { return filepath.Join(p.Logs(machine), "init.log") }

// writeFiles writes secrets and the nodes' disks.
func writeFiles(p plan.Plan) error {
	secrets, err := makeSecrets(p)
	if err != nil {
		return err
	}
	if err := secrets.write(); err != nil {
		return err
	}
	for _, n := range p.Nodes {
		files, err := p.NodeFiles(n)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			if err := writeFile(filepath.Join(p.Disk(n.Name), name), files[name], 0o644); err != nil {
				return fmt.Errorf("prepare disk of %s: %w", n.Name, err)
			}
		}
		if err := prepareDisk(p, n); err != nil {
			return fmt.Errorf("prepare disk of %s: %w", n.Name, err)
		}
	}
	return os.MkdirAll(p.Disk(plan.ControlPlane), 0o700)
}

// prepareDisk makes the folders that are bound into the node and installs its CNI plugins.
func prepareDisk(p plan.Plan, n plan.Node) error {
	for _, b := range p.NodeSpec(n, nil, "").Dirs {
		if err := os.MkdirAll(b.From, 0o755); err != nil {
			return err
		}
	}
	for _, plugin := range []string{"ptp", "bridge", "loopback", "host-local", "portmap"} {
		data, err := os.ReadFile(filepath.Join(p.BinDir, plugin))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(p.Disk(n.Name), "opt-cni", "bin", plugin), data, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, mode)
}

// linkKubectl shows a kubectl of the cluster's version where a user finds it.
func (c *Cluster) linkKubectl(p plan.Plan) error {
	link := c.kubectlLink()
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(filepath.Join(p.BinDir, "kubectl"), link)
}

func (c *Cluster) describe(p plan.Plan, r *record, noIPv6 error) State {
	s := State{
		Repository: c.Repository, Recipe: r.Recipe, Programs: p.BinDir,
		Kubeconfig: c.Kubeconfig(), Server: p.Server(), DNS: p.DNS, Domain: plan.Domain,
		PodRanges: p.PodRanges, ServiceRanges: p.ServiceRanges, Family: p.Family, IPv6: "yes", ProxyMode: p.ProxyMode,
		ControlPlane: Machine{
			Name: plan.ControlPlane, Init: r.Machines[plan.ControlPlane], NetNS: plan.NetNS(plan.ControlPlane),
			Addresses: p.Gateways, Disk: p.Disk(plan.ControlPlane), Logs: p.Logs(plan.ControlPlane),
		},
	}
	if noIPv6 != nil {
		s.IPv6 = noIPv6.Error()
	}
	for _, n := range p.Nodes {
		s.Nodes = append(s.Nodes, Machine{
			Name: n.Name, Init: r.Machines[n.Name], NetNS: n.NetNS, Uplink: plan.Uplink, Port: n.Name,
			Addresses: n.Addresses, PodRanges: n.PodRanges, Disk: p.Disk(n.Name), Logs: p.Logs(n.Name),
		})
	}
	return s
}

// writeState writes the state with the inits that run now.
func (c *Cluster) writeState(s State, r *record) error {
	s.ControlPlane.Init = r.Machines[s.ControlPlane.Name]
	for i := range s.Nodes {
		s.Nodes[i].Init = r.Machines[s.Nodes[i].Name]
	}
	if err := writeJSON(stateFile(c.StateDir()), s); err != nil {
		return fmt.Errorf("write state of the cluster: %w", err)
	}
	return nil
}

// newBootID looks like the kernel's: a random UUID (RFC 9562, version 4).
func newBootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
