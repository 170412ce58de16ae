package clustertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/cache"
	"github.com/ambit-mesh/ambit/e2e/cluster/image"
	"github.com/ambit-mesh/ambit/e2e/cluster/lifecycle"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
)

const peers = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: peer, namespace: default}
spec:
  selector: {matchLabels: {app: peer}}
  template:
    metadata: {labels: {app: peer}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: peer
        image: docker.io/ambit/cluster-test:dev
        imagePullPolicy: Never
        args: [serve]
        ports: [{containerPort: 8080, hostPort: 18080}]
---
apiVersion: v1
kind: Service
metadata: {name: peer, namespace: default}
spec:
  selector: {app: peer}
  ipFamilyPolicy: PreferDualStack
  ports: [{port: 80, targetPort: 8080}]
`

// TestCluster goes through the life of one cluster.
func TestCluster(t *testing.T) {
	c := thisClone(t)
	before := look(t, c)
	c.must(t, coldLimit, "down") // of nothing
	lock := filepath.Join(t.TempDir(), "lock")
	upHolding(t, c, lock)
	s := c.state(t)

	t.Run("up again changes nothing", func(t *testing.T) {
		if out := c.must(t, upLimit, "up"); !strings.Contains(out, "is up already") {
			t.Errorf("it says:\n%s", out)
		}
		if again := c.state(t); again.ControlPlane.Init != s.ControlPlane.Init || again.Nodes[0].Init != s.Nodes[0].Init {
			t.Error("machines were started again")
		}
	})
	t.Run("up again corrects the description", func(t *testing.T) {
		path := filepath.Join(c.stateDir(), "state.json")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pid := fmt.Sprintf(`"pid": %d`, s.Nodes[1].Init.PID)
		if err := os.WriteFile(path, bytes.Replace(text, []byte(pid), []byte(`"pid": 1`), 1), 0o644); err != nil {
			t.Fatal(err)
		}
		if c.state(t).Nodes[1].Init == s.Nodes[1].Init {
			t.Fatal("the description was not made wrong")
		}
		c.must(t, upLimit, "up")
		if have := c.state(t).Nodes[1].Init; have != s.Nodes[1].Init {
			t.Errorf("init of node2 is %+v, want %+v", have, s.Nodes[1].Init)
		}
	})
	t.Run("version", func(t *testing.T) {
		have := c.mustKubectl(t, "", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name} {.items[*].status.nodeInfo.kubeletVersion}")
		if want := "node1 node2 " + cache.KubernetesVersion + " " + cache.KubernetesVersion; have != want {
			t.Errorf("nodes are %q, want %q", have, want)
		}
		if have := c.mustKubectl(t, "", "version"); strings.Count(have, cache.KubernetesVersion) != 2 {
			t.Errorf("kubectl version:\n%s", have)
		}
	})
	t.Run("pods", func(t *testing.T) { testPods(t, c, s) })
	t.Run("a service that ends is started again", func(t *testing.T) { testRestart(t, c, s) })
	t.Run("power cut", func(t *testing.T) { testReboot(t, c, s) })
	t.Run("down leaves nothing", func(t *testing.T) {
		for range 2 {
			c.must(t, upLimit, "down")
			checkClean(t, before, c)
		}
		if _, err := lifecycle.ReadState(c.stateDir()); err == nil {
			t.Error("the state is still there")
		}
	})
}

// upHolding brings the cluster up as a script does that holds a lock meanwhile, and then lets go of it.
func upHolding(t *testing.T, c clone, lock string) {
	t.Helper()
	held, err := os.Create(lock)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), coldLimit)
	defer cancel()
	cmd := c.command(ctx, "up")
	cmd.ExtraFiles = []*os.File{held}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cluster up: %v\n%s", err, out)
	}
	held.Close()
	again, err := os.Open(lock)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := syscall.Flock(int(again.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("the cluster holds a file that its maker had open: %v", err)
	}
}

type pod struct {
	name, node string
	addresses  []netip.Addr
}

// podsOf returns the running pods of the DaemonSet, by node.
func podsOf(ctx context.Context, c clone) (map[string]pod, error) {
	out, err := c.kubectl(ctx, "", "get", "pods", "-l", "app=peer", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name              string
				DeletionTimestamp *string
			}
			Spec   struct{ NodeName string }
			Status struct {
				Phase      string
				PodIPs     []struct{ IP netip.Addr }
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	pods := map[string]pod{}
	for _, item := range list.Items {
		ready := false
		for _, condition := range item.Status.Conditions {
			ready = ready || condition.Type == "Ready" && condition.Status == "True"
		}
		if item.Metadata.DeletionTimestamp != nil || !ready {
			continue
		}
		p := pod{name: item.Metadata.Name, node: item.Spec.NodeName}
		for _, ip := range item.Status.PodIPs {
			p.addresses = append(p.addresses, ip.IP)
		}
		pods[p.node] = p
	}
	if len(pods) != 2 {
		return nil, fmt.Errorf("%d pods run, want one on each node", len(pods))
	}
	return pods, nil
}

// ask lets a pod ask an address who it is, and returns who answered and the address that it saw.
func ask(ctx context.Context, c clone, from pod, address string) (name string, seen netip.Addr, err error) {
	out, err := c.kubectl(ctx, "", "exec", from.name, "--", "/peer", "ask", address)
	if err != nil {
		return "", seen, err
	}
	var text string
	if _, err := fmt.Sscanf(out, "%s saw %s", &name, &text); err != nil {
		return "", seen, fmt.Errorf("answer %q: %w", out, err)
	}
	seen, err = netip.ParseAddr(text)
	return name, seen.Unmap(), err
}

func testPods(t *testing.T, c clone, s lifecycle.State) {
	program := filepath.Join(t.TempDir(), "peer")
	build(t, program, "./testdata/peer")
	archive := filepath.Join(t.TempDir(), "peer.tar")
	def := image.Definition{
		Name: "docker.io/ambit/cluster-test:dev", Files: []image.File{{From: program, To: "/peer"}}, Entrypoint: []string{"/peer"},
	}
	if err := image.Write(def, archive); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c.must(t, upLimit, "load", archive)
	}
	c.mustKubectl(t, peers, "apply", "-f", "-")
	var pods map[string]pod
	eventually(t, "pods on both nodes", func(ctx context.Context) (err error) {
		pods, err = podsOf(ctx, c)
		return err
	})
	families := 2
	if s.Family != plan.Dual {
		t.Logf("nodes are %s; IPv6: %s", s.Family, s.IPv6)
		families = 1
	}
	services := strings.Fields(c.mustKubectl(t, "", "get", "service", "peer", "-o", "jsonpath={.spec.clusterIPs[*]}"))
	if len(services) != families {
		t.Errorf("the service has addresses %v, want %d", services, families)
	}
	for _, from := range pods {
		if len(from.addresses) != families {
			t.Errorf("%s has addresses %v, want %d", from.name, from.addresses, families)
		}
		for _, to := range pods {
			for i, address := range to.addresses {
				eventually(t, from.node+" to "+to.node+" by "+address.String(), func(ctx context.Context) error {
					name, seen, err := ask(ctx, c, from, netip.AddrPortFrom(address, 8080).String())
					if err == nil && (name != to.name || seen != from.addresses[i]) {
						t.Fatalf("%s saw %s, want %s to see %s", name, seen, to.name, from.addresses[i])
					}
					return err
				})
			}
		}
		for _, service := range append(services, "peer.default.svc.cluster.local") {
			target := service + ":80"
			if a, err := netip.ParseAddr(service); err == nil {
				target = netip.AddrPortFrom(a, 80).String()
			}
			answered := map[string]bool{}
			eventually(t, from.node+" to both pods by "+service, func(ctx context.Context) error {
				name, _, err := ask(ctx, c, from, target)
				answered[name] = err == nil
				if !answered[pods["node1"].name] || !answered[pods["node2"].name] { // a pod reaches itself too
					return errors.Join(err, fmt.Errorf("answers from %v", answered))
				}
				return nil
			})
		}
		// A host port, from the other node.
		for _, n := range s.Nodes {
			if n.Name == from.node {
				continue
			}
			if name, _, err := ask(t.Context(), c, from, netip.AddrPortFrom(n.Addresses[0], 18080).String()); err != nil || name != pods[n.Name].name {
				t.Errorf("host port of %s: answer from %q, %v", n.Name, name, err)
			}
		}
		if have := c.mustKubectl(t, "", "logs", from.name); have != "serving" {
			t.Errorf("logs of %s: %q", from.name, have)
		}
	}
	bad := filepath.Join(t.TempDir(), "bad.tar")
	if err := os.WriteFile(bad, []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := c.run(t.Context(), "load", bad); err == nil || !strings.Contains(out, bad) {
		t.Errorf("load of no archive: %v\n%s", err, out)
	}
}

// inside runs a command in a node and returns what it prints.
func inside(ctx context.Context, c clone, node string, args ...string) (string, error) {
	out, err := c.command(ctx, append([]string{"exec", node, "--"}, args...)...).Output()
	return strings.TrimSpace(string(out)), err
}

func testRestart(t *testing.T, c clone, s lifecycle.State) {
	pid := func(ctx context.Context) (string, error) { return inside(ctx, c, "node1", "pgrep", "-x", "kubelet") }
	first, err := pid(t.Context())
	if err != nil {
		t.Fatalf("find the kubelet: %v", err)
	}
	if _, err := inside(t.Context(), c, "node1", "kill", "-9", first); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another kubelet", func(ctx context.Context) error {
		if again, err := pid(ctx); err != nil || again == first {
			return fmt.Errorf("kubelet is %q, was %q: %v", again, first, err)
		}
		return nil
	})
	log, err := os.ReadFile(filepath.Join(s.Nodes[0].Logs, "init.log"))
	if err != nil || !strings.Contains(string(log), "kubelet: ended by signal killed") {
		t.Errorf("the end is not in the log: %v\n%s", err, log)
	}
}

func testReboot(t *testing.T, c clone, s lifecycle.State) {
	var pods map[string]pod
	eventually(t, "pods on both nodes", func(ctx context.Context) (err error) {
		pods, err = podsOf(ctx, c)
		return err
	})
	shell := func(script string) string {
		t.Helper()
		out, err := inside(t.Context(), c, "node2", "sh", "-c", script)
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return out
	}
	shell("echo kept > /var/lib/ambit/disk; echo lost > /run/memory; nft add table ip planted; ipset create planted hash:ip; ip route add 203.0.113.0/24 dev eth0")
	netns := func() uint64 {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Stat("/run/netns/ambit-node2", &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	oldNS, oldBoot := netns(), shell("cat /proc/sys/kernel/random/boot_id")
	held, err := os.Open("/run/netns/ambit-node2") // so that the kernel cannot hand its number out again
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()

	c.must(t, upLimit, "reboot", "node2")
	if netns() == oldNS {
		t.Error("the network namespace is the old one")
	}
	if boot := shell("cat /proc/sys/kernel/random/boot_id"); boot == oldBoot {
		t.Error("the boot ID is the old one")
	}
	if have := shell("cat /var/lib/ambit/disk"); have != "kept" {
		t.Errorf("the disk has %q", have)
	}
	if have := shell("ls /run/memory 2>&1; nft list table ip planted 2>&1; ipset list -name; ip route show 203.0.113.0/24"); strings.Count(have, "No such file") != 2 || strings.Contains(have, "dev eth0") || strings.HasSuffix(have, "planted") {
		t.Errorf("something survived the power cut:\n%s", have)
	}
	again := c.state(t)
	if again.Nodes[0].Init != s.Nodes[0].Init || again.Nodes[1].Init == s.Nodes[1].Init || !again.Nodes[1].Init.Alive() {
		t.Errorf("inits were %+v, are %+v", s.Nodes, again.Nodes)
	}
	eventually(t, "the pod of node2 runs again and is reached", func(ctx context.Context) error {
		after, err := podsOf(ctx, c)
		if err != nil {
			return err
		}
		if after["node1"].name != pods["node1"].name {
			return errors.New("the pod of node1 was replaced")
		}
		for _, address := range after["node2"].addresses {
			name, _, err := ask(ctx, c, after["node1"], netip.AddrPortFrom(address, 8080).String())
			if err != nil || name != after["node2"].name {
				return fmt.Errorf("answer from %q: %w", name, err)
			}
		}
		return nil
	})
	for _, bad := range []string{"node3", "cp"} {
		if out, err := c.run(t.Context(), "reboot", bad); err == nil || !strings.Contains(out, "node1 and node2") {
			t.Errorf("reboot %s: %v\n%s", bad, err, out)
		}
	}
}

// secondClone copies what of the repository a cluster needs.
func secondClone(t *testing.T, first clone) clone {
	t.Helper()
	dir := t.TempDir()
	from := filepath.Join(first.dir, "e2e", "cluster")
	if err := os.CopyFS(filepath.Join(dir, "e2e", "cluster"), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return clone{dir: dir, program: first.program}
}

// TestTwoClones shows that a clone leaves another's cluster alone, and clears what is left of one that was cut off.
func TestTwoClones(t *testing.T) {
	a := thisClone(t)
	b := secondClone(t, a)
	before := look(t, a, b)
	a.must(t, coldLimit, "up")
	state := a.state(t)

	if out, err := b.run(t.Context(), "up"); err == nil || !strings.Contains(out, "belongs to "+a.dir) {
		t.Errorf("up beside another's cluster: %v\n%s", err, out)
	}
	if out := b.must(t, upLimit, "down"); !strings.Contains(out, a.dir) {
		t.Errorf("down beside another's cluster says:\n%s", out)
	}
	a.mustKubectl(t, "", "wait", "--for=condition=Ready", "node", "--all", "--timeout=10s")
	if !state.ControlPlane.Init.Alive() || a.state(t).Nodes[1].Init != state.Nodes[1].Init {
		t.Fatal("another clone touched the cluster")
	}

	// Cut off, its processes partly gone: now it is whoever's comes next.
	if err := state.Nodes[0].Init.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the killed node is gone", func(context.Context) error { // it ends when the last process in it has
		if state.Nodes[0].Init.Alive() {
			return errors.New("it is still there")
		}
		return nil
	})
	if out := b.must(t, upLimit, "up"); strings.Contains(out, "building") {
		t.Errorf("a second clone built again:\n%s", out)
	}
	if _, err := os.Stat(a.stateDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the first clone's files are still there: %v", err)
	}
	b.must(t, upLimit, "down")
	checkClean(t, before, a, b)
}

// TestUpIsCutOff kills `up` at some moment, in half of the cases what it started too, and expects the next command to
// cope. AMBIT_SOAK=1 makes it many moments.
func TestUpIsCutOff(t *testing.T) {
	c := thisClone(t)
	before := look(t, c)
	c.must(t, coldLimit, "up") // so that the programs are there, and to know how long it takes
	c.must(t, upLimit, "down")
	for i, moment := range moments() {
		t.Run(moment.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), moment)
			defer cancel()
			cmd := c.command(ctx, "up") // killed with SIGKILL when its time is over
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Logf("it came up before %s", moment)
			} else if !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
				t.Fatalf("it failed by itself: %v\n%s", err, out)
			}
			if i%2 == 1 {
				killMachines(t)
			}
			if i%3 == 0 {
				c.must(t, upLimit, "down")
				checkClean(t, before, c)
				return
			}
			c.must(t, upLimit, "up")
			c.mustKubectl(t, "", "wait", "--for=condition=Ready", "node", "--all", "--timeout=10s")
			c.must(t, upLimit, "down")
			checkClean(t, before, c)
		})
	}
}

// machines lists the PIDs of the inits that run.
func machines(t *testing.T) (pids []int) {
	t.Helper()
	for _, p := range processes(t) {
		dir, target, _ := strings.Cut(p, " ")
		if filepath.Base(target) != "nodeinit" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// killMachines ends the inits that an `up` which was cut off left.
func killMachines(t *testing.T) {
	t.Helper()
	for _, pid := range machines(t) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// TestUpFails ends a machine while the cluster comes up: `up` says so at once, with the log, and does not wait for its limits.
func TestUpFails(t *testing.T) {
	c := thisClone(t)
	before := look(t, c)
	c.must(t, coldLimit, "up") // so that the programs are there
	c.must(t, upLimit, "down")
	ctx, cancel := context.WithTimeout(t.Context(), upLimit)
	defer cancel()
	var output bytes.Buffer
	cmd := c.command(ctx, "up")
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three machines", func(context.Context) error {
		if n := len(machines(t)); n != 3 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	begin := time.Now()
	killMachines(t)
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("up: %v, want exit code 1\n%s", err, &output)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s to notice", took)
	}
	if text := output.String(); !strings.Contains(text, "has ended") || !strings.Contains(text, "init.log") || !strings.Contains(text, " is up, ") {
		t.Errorf("the failure is not explained with its log:\n%s", text)
	}
	c.must(t, upLimit, "down")
	checkClean(t, before, c)
}

// TestManyTimes brings clusters up and down in a row; only with AMBIT_SOAK=1.
func TestManyTimes(t *testing.T) {
	if os.Getenv("AMBIT_SOAK") == "" {
		t.Skip("skipped: a soak test (AMBIT_SOAK=1, make soak)")
	}
	c := thisClone(t)
	before := look(t, c)
	for range 10 {
		c.must(t, coldLimit, "up")
		for _, node := range []string{"node1", "node2"} {
			c.must(t, upLimit, "reboot", node)
		}
		c.must(t, upLimit, "down")
		checkClean(t, before, c)
	}
}

// TestWithoutACluster shows that what needs one says so.
func TestWithoutACluster(t *testing.T) {
	c := thisClone(t)
	for _, args := range [][]string{{"exec", "node1", "--", "true"}, {"reboot", "node1"}, {"load", "x.tar"}} {
		out, err := c.run(t.Context(), args...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "make cluster-up") {
			t.Errorf("cluster %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
