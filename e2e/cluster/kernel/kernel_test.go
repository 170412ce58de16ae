package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// needRoot skips, saying so, where the test cannot make kernel objects.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root to make namespaces and cgroups")
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func testNetNS(t *testing.T, suffix string) string {
	t.Helper()
	name := fmt.Sprintf("ktest-%d-%s", os.Getpid(), suffix)
	if err := MakeNetNS(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveNetNS(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func TestParseStat(t *testing.T) {
	fields := "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for _, name := range []string{"(sh)", "(a b)", "(a) b) S 1)"} {
		state, start, err := parseStat("12 " + name + " " + fields)
		if err != nil || state != 'S' || start != 4711 {
			t.Errorf("parseStat of %s = %c, %d, %v; want S, 4711", name, state, start, err)
		}
	}
	for _, bad := range []string{"", "12 (sh)", "12 (sh) S 1 2", "12 sh S"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) succeeded", bad)
		}
	}
}

func TestParseHierarchies(t *testing.T) {
	tests := []struct {
		name, mountinfo string
		want            Hierarchies
	}{
		{"version 2", "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n", Hierarchies{v2: true, roots: []string{CgroupRoot}}},
		{
			"version 1 with 2 beside it", "" +
				"30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n" +
				"32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
				"33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
				"34 20 0:27 / /mnt/elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n",
			Hierarchies{roots: []string{CgroupRoot + "/cpu,cpuacct", CgroupRoot + "/memory", CgroupRoot + "/unified"}},
		},
		{"mounted twice", strings.Repeat("31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", 2), Hierarchies{roots: []string{CgroupRoot + "/cpu"}}},
		{"none", "1 0 8:1 / / rw - ext4 /dev/sda rw\nnonsense\n", Hierarchies{}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, parseHierarchies([]byte(tt.mountinfo)), cmp.AllowUnexported(Hierarchies{})); diff != "" {
			t.Errorf("%s (-want +have):\n%s", tt.name, diff)
		}
	}
}

func TestMountPoints(t *testing.T) {
	info := "1 0 8:1 / / rw - ext4 a rw\n" +
		"2 1 8:1 /x /c/cluster rw - ext4 a rw\n" +
		"3 1 8:1 /x /c/cluster/my\\040disk rw - ext4 a rw\n" +
		"4 1 8:1 /x /c/clusters rw - ext4 a rw\n"
	want := []string{"/c/cluster", "/c/cluster/my disk"}
	if diff := cmp.Diff(want, mountPoints([]byte(info), "/c/cluster")); diff != "" {
		t.Errorf("mount points (-want +have):\n%s", diff)
	}
}

func TestUnmountTakesNestedMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "keep"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{dir, dir + "/sub"} {
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(source, "keep")); err != nil {
		t.Errorf("removing the folder reached through a mount: %v", err)
	}
}

func TestNetNSNameCanBeRemovedInAnyState(t *testing.T) {
	needRoot(t)
	name := testNetNS(t, "a")
	if err := MakeNetNS(name); err == nil {
		t.Error("a second namespace of the same name was made")
	}
	path := filepath.Join(NetNSDir, name)
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil { // mounted twice
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveNetNS(name); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Fatalf("%s is still there", path)
		}
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil { // cut off between the file and the mount
		t.Fatal(err)
	}
	if _, ok := netNSInode(name); ok {
		t.Error("an empty file was taken for a namespace")
	}
	if err := RemoveNetNS(name); err != nil {
		t.Fatal(err)
	}
}

func TestPrepareTurnsIPv6Off(t *testing.T) {
	needRoot(t)
	name := testNetNS(t, "a")
	if err := IPv6(name); err != nil {
		t.Skipf("skipped: it is off already: %v", err)
	}
	if err := Prepare(name, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := IPv6(name); err == nil || !strings.Contains(err.Error(), "disable_ipv6 is 1") {
		t.Errorf("IPv6: %v, want it off", err)
	}
}

func TestConnectCarriesBothFamilies(t *testing.T) {
	needRoot(t)
	hub, leaf := testNetNS(t, "hub"), testNetNS(t, "leaf")
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	families := []string{"10.1.2.1/24"}
	if IPv6(hub) == nil {
		families = append(families, "fd00:1::1/64")
	} else {
		t.Logf("IPv4 only: %v", IPv6(hub))
	}
	steps := []error{
		MakeBridge(End{Name: "br0", NetNS: hub, Addresses: prefixes(families...)}),
		Connect(End{Name: "eth0", NetNS: leaf, Addresses: prefixes("10.1.2.2/24", "fd00:1::2/64")[:len(families)]},
			End{Name: "port", NetNS: hub, Master: "br0"}),
		Prepare(hub, len(families) > 1, []Route{{To: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.1.2.2")}}),
		Prepare(leaf, len(families) > 1, nil),
	}
	for i, err := range steps {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	for _, family := range families {
		address := netip.MustParsePrefix(family).Addr()
		var listener net.Listener
		err := InNetNS(hub, func() (err error) {
			listener, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		err = InNetNS(leaf, func() error {
			conn, err := net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err != nil {
			t.Errorf("from leaf to %s: %v", address, err)
		}
		if conn, err := net.DialTimeout("tcp", listener.Addr().String(), 200*time.Millisecond); err == nil {
			conn.Close()
			t.Errorf("%s can be reached from outside the namespaces", address)
		}
	}
	for range 2 {
		if err := RemoveLink(hub, "port"); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveLink("ktest-none", "port"); err != nil {
		t.Errorf("in a namespace that is not there: %v", err)
	}
	err := InNetNS(leaf, func() error { _, err := net.InterfaceByName("eth0"); return err })
	if err == nil {
		t.Error("the link's other end is still there")
	}
}

// sleeper starts a process that lives until it is killed.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestResidentsAreFoundByNamespaceAndByCgroup(t *testing.T) {
	needRoot(t)
	ctx := deadline(t)
	h, err := FindHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("ktest-%d", os.Getpid())
	dirs, err := h.Make(group + "/inner")
	if err != nil {
		t.Fatal(err)
	}
	name := testNetNS(t, "r")
	var inNetNS, inCgroup, outside *exec.Cmd
	if err := InNetNS(name, func() error { inNetNS = sleeper(t); return nil }); err != nil {
		t.Fatal(err)
	}
	inCgroup, outside = sleeper(t), sleeper(t)
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(inCgroup.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	list := func() ([]Process, error) { return Residents(h, group, []string{name, "ktest-none"}) }
	have, err := list()
	if err != nil {
		t.Fatal(err)
	}
	pids := map[int]bool{}
	for _, p := range have {
		pids[p.PID] = true
	}
	if want := map[int]bool{inNetNS.Process.Pid: true, inCgroup.Process.Pid: true}; !cmp.Equal(want, pids) {
		t.Errorf("residents (-want +have):\n%s", cmp.Diff(want, pids))
	}
	// The processes of this test are nobody else's to reap.
	go inNetNS.Wait()
	go inCgroup.Wait()
	if err := KillAll(ctx, list); err != nil {
		t.Fatal(err)
	}
	if p, err := FindProcess(outside.Process.Pid); err != nil || !p.Alive() {
		t.Errorf("a process outside was ended: %v", err)
	}
	for range 2 {
		if err := h.Remove(ctx, group); err != nil {
			t.Fatal(err)
		}
		if h.Exists(group) {
			t.Fatal("the cgroup is still there")
		}
	}
}

func TestRemoveOfABusyCgroupFails(t *testing.T) {
	needRoot(t)
	h, err := FindHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("ktest-busy-%d", os.Getpid())
	dirs, err := h.Make(group)
	if err != nil {
		t.Fatal(err)
	}
	cmd := sleeper(t)
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := h.Remove(short, group); err == nil {
		t.Error("a cgroup with a process was removed")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := h.Remove(deadline(t), group); err != nil {
		t.Error(err)
	}
}

func TestProcessIsNotConfusedWithItsSuccessor(t *testing.T) {
	cmd := sleeper(t)
	p, err := FindProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Alive() {
		t.Fatal("a running process is not alive")
	}
	other := Process{PID: p.PID, Start: p.Start + 1}
	if other.Alive() {
		t.Error("a process with another start time is alive")
	}
	if err := other.Kill(); err != nil {
		t.Error(err)
	}
	if !p.Alive() {
		t.Fatal("the kill for another process ended this one")
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("ended by %v, want SIGKILL", err)
	}
	if p.Alive() {
		t.Error("alive after its end")
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill of one that has ended: %v", err)
	}
}

func TestZombieIsNotAlive(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() // until then it stays a zombie
	for ctx := deadline(t); ; {
		p, err := FindProcess(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Alive() {
			return
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatal("the zombie counts as alive")
		}
	}
}

func TestOverlay(t *testing.T) {
	needRoot(t)
	if err := Overlay("/dev/shm"); err != nil {
		t.Errorf("on tmpfs: %v", err)
	}
	if err := Overlay("/proc"); err == nil {
		t.Error("on proc: no error")
	}
	left, err := filepath.Glob("/dev/shm/overlay-*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
