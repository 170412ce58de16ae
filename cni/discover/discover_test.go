package discover

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/ambit-mesh/ambit/cni/netnstest"
)

const uid = "0d1f2c3b-4a59-4e68-9f77-8a6b5c4d3e2f"

func TestPodUID(t *testing.T) {
	for name, test := range map[string]struct{ groups, want string }{
		"v1 cgroupfs":          {"12:memory:/kubepods/burstable/pod" + uid + "/6a3b\n11:cpu:/", uid},
		"v1 cgroupfs, rooted":  {"3:cpu,cpuacct:/node1/kubepods/besteffort/pod" + uid + "/6a3b", uid},
		"v1 guaranteed":        {"1:name=systemd:/kubepods/pod" + uid + "/6a3b", uid},
		"v2 systemd":           {"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0d1f2c3b_4a59_4e68_9f77_8a6b5c4d3e2f.slice/cri-containerd-6a3b.scope", uid},
		"v2 guaranteed":        {"0::/kubepods.slice/kubepods-pod0d1f2c3b_4a59_4e68_9f77_8a6b5c4d3e2f.slice/crio-6a3b.scope", uid},
		"v2 cgroupfs":          {"0::/kubepods/burstable/pod" + uid + "/6a3b", uid},
		"v2 other namespace":   {"0::/../../besteffort/pod" + uid + "/6a3b", uid},
		"v2 pod's own group":   {"0::/kubepods/pod" + uid, uid},
		"cluster inside a pod": {"0::/kubepods/pod11111111-2222-3333-4444-555555555555/c/kubepods/pod" + uid + "/d", uid},
		"static pod":           {"0::/kubepods/burstable/pod4a1f2c3b4a594e689f778a6b5c4d3e2f/c", "4a1f2c3b4a594e689f778a6b5c4d3e2f"},
		"kubelet":              {"0::/system.slice/kubelet.service", ""},
		"a name like one":      {"0::/user.slice/tripod" + uid + "/x", ""},
		"half a uid":           {"0::/kubepods/pod0d1f2c3b-4a59/x", ""},
		"root":                 {"0::/", ""},
		"nothing":              {"", ""},
		"garbage":              {"pod" + uid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := podUID(test.groups); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) { startTime(b) })
}

// proc lays out a /proc: each line a process with the path of its network namespace, its start time and control group.
func proc(t *testing.T, lines ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, line := range lines {
		var pid, started int
		var netns, group string
		if _, err := fmt.Sscanf(line, "%d %s %d %s", &pid, &netns, &started, &group); err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, fmt.Sprint(pid))
		for _, err := range []error{
			os.MkdirAll(filepath.Join(p, "ns"), 0o755),
			os.Symlink(netns, filepath.Join(p, "ns/net")),
			os.WriteFile(filepath.Join(p, "cgroup"), []byte("0::"+group+"\n"), 0o644),
			os.WriteFile(filepath.Join(p, "stat"), fmt.Appendf(nil, "%d (x) y) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 %d 0 0", pid, started), 0o644),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestPods(t *testing.T) {
	files := t.TempDir() // any file has an inode
	at := func(name string) string {
		path := filepath.Join(files, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	host, pod, inner, other := at("host"), at("pod"), at("inner"), at("other")
	dir := proc(t,
		"1 "+host+" 0 /init",
		"10 "+host+" 5 /kubepods/pod"+uid+"/hostnetwork-container",
		"20 "+pod+" 30 /kubepods/pod11111111-2222-3333-4444-555555555555/app",
		"21 "+pod+" 20 /kubepods/pod11111111-2222-3333-4444-555555555555/pause",
		"22 "+inner+" 40 /kubepods/pod11111111-2222-3333-4444-555555555555/inner-namespace",
		"30 "+other+" 50 /system.slice/something-with-a-namespace",
		"40 "+filepath.Join(files, "ended")+" 60 /kubepods/pod22222222-2222-3333-4444-555555555555/app",
	)
	got, err := Pods(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := got["11111111-2222-3333-4444-555555555555"]
	if len(got) != 1 || len(list) != 2 || filepath.Base(filepath.Dir(filepath.Dir(list[0].Path))) != "21" || list[1].Inode == list[0].Inode {
		t.Errorf("got %+v", got)
	}
}

// TestThisProcess reads what the kernel writes.
func TestThisProcess(t *testing.T) {
	c, err := process("/proc/self")
	if err != nil || c.UID != "" {
		t.Errorf("got %+v, %v", c, err)
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if started, err := startTime(stat); err != nil || started == 0 {
		t.Errorf("start time %d, %v", started, err)
	}
	if number, err := inode("/proc/self/ns/net"); err != nil || number == 0 {
		t.Errorf("network namespace %d, %v", number, err)
	}
}

func TestOpenRefusesTheHost(t *testing.T) {
	host, pod := netnstest.New(t), netnstest.New(t)
	hostProc := proc(t, "1 "+host.Path()+" 0 /init")
	if _, err := open(host.Path(), hostProc); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("got %v", err)
	}
	if _, err := open(filepath.Join(t.TempDir(), "none"), hostProc); err == nil {
		t.Error("opened nothing")
	}
	netnstest.Link(t, pod, netnstest.New(t), "pod0", []string{"10.78.0.2/24", "fd78::2/64"}, nil)
	n, err := open(pod.Path(), hostProc)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	got, err := Addresses(n)
	if want := []netip.Addr{netip.MustParseAddr("10.78.0.2"), netip.MustParseAddr("fd78::2")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestNode(t *testing.T) {
	host, pod, inner := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	netnstest.Link(t, pod, host, "pod0", []string{"10.78.0.2/24"}, nil)
	numbers := map[string]uint64{}
	for name, n := range map[string]ns.NetNS{"host": host, "pod": pod, "inner": inner} {
		number, err := Inode(n)
		if err != nil {
			t.Fatal(err)
		}
		numbers[name] = number
	}
	hostProc := proc(t, "1 "+host.Path()+" 0 /init",
		"20 "+inner.Path()+" 20 /kubepods/pod"+uid+"/makes-namespaces",
		"21 "+pod.Path()+" 30 /kubepods/pod"+uid+"/app")
	n := &Node{HostProc: hostProc, NetNSDir: filepath.Dir(pod.Path())}
	found, err := n.Find(uid, []netip.Addr{netip.MustParseAddr("10.78.0.2")})
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if number, _ := Inode(found); number != numbers["pod"] {
		t.Errorf("found %d, want the one with the pod's address, %d", number, numbers["pod"])
	}
	for name, find := range map[string]func() (ns.NetNS, error){
		"other address": func() (ns.NetNS, error) { return n.Find(uid, []netip.Addr{netip.MustParseAddr("10.78.0.3")}) },
		"other pod":     func() (ns.NetNS, error) { return n.Find("11111111-2222-3333-4444-555555555555", nil) },
	} {
		if _, err := find(); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", name, err)
		}
	}
	all, err := n.All()
	if err != nil || len(all) != 1 || len(all[uid]) != 2 {
		t.Errorf("all: %v, %v", all, err)
	}
	for _, list := range all {
		for _, n := range list {
			n.Close()
		}
	}
	for _, path := range []string{"/var/run/netns/" + filepath.Base(pod.Path()), "/run/netns/" + filepath.Base(pod.Path()), "/proc/21/ns/net"} {
		opened, err := n.Open(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if number, _ := Inode(opened); number != numbers["pod"] {
			t.Errorf("%s opened %d", path, number)
		}
		opened.Close()
	}
	if _, err := n.Open("/var/run/netns/" + filepath.Base(host.Path())); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("the host's: %v", err)
	}
}
