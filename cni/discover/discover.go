package discover

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// Candidate is a network namespace in which processes of a pod run.
type Candidate struct {
	// UID is the pod's.
	UID string
	// Inode identifies the network namespace.
	Inode uint64
	// Path is the namespace of the pod's oldest process there.
	Path string

	started uint64 // of that process, in clock ticks since boot
}

// ErrHostNetwork says that a path leads to the host's own network namespace, which is never captured.
var ErrHostNetwork = errors.New("is the host's network namespace")

// Host returns the host's network namespace. The caller closes it.
func Host(hostProc string) (ns.NetNS, error) {
	n, err := ns.GetNS(filepath.Join(hostProc, "1/ns/net"))
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	return n, nil
}

// Pods returns the network namespaces of all pods with a running process, except the host's, by UID. A pod has one,
// unless its sandbox is being replaced or it makes namespaces of its own; the one of its oldest process comes first.
func Pods(hostProc string) (map[string][]Candidate, error) {
	host, err := inode(filepath.Join(hostProc, "1/ns/net"))
	if err != nil {
		return nil, fmt.Errorf("find pods' network namespaces: %w", err)
	}
	entries, err := os.ReadDir(hostProc)
	if err != nil {
		return nil, fmt.Errorf("find pods' network namespaces: %w", err)
	}
	out := map[string][]Candidate{}
	var denied error
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		c, err := process(filepath.Join(hostProc, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
			continue // it has ended meanwhile
		case errors.Is(err, fs.ErrPermission):
			denied = err // one odd process does not hide the others
			continue
		case err != nil:
			return nil, fmt.Errorf("find pods' network namespaces: %w", err)
		case c.UID == "" || c.Inode == host:
			continue
		}
		list := out[c.UID]
		if i := slices.IndexFunc(list, func(o Candidate) bool { return o.Inode == c.Inode }); i < 0 {
			list = append(list, c)
		} else if c.started < list[i].started {
			list[i] = c
		}
		slices.SortFunc(list, func(a, b Candidate) int { return cmp.Compare(a.started, b.started) })
		out[c.UID] = list
	}
	if len(out) == 0 && denied != nil {
		return nil, fmt.Errorf("find pods' network namespaces: %w", denied)
	}
	return out, nil
}

func process(dir string) (Candidate, error) {
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return Candidate{}, err
	}
	c := Candidate{UID: podUID(string(groups)), Path: filepath.Join(dir, "ns/net")}
	if c.UID == "" {
		return c, nil
	}
	if c.Inode, err = inode(c.Path); err != nil {
		return Candidate{}, err
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Candidate{}, err
	}
	c.started, err = startTime(stat)
	return c, err
}

// uidPattern finds a pod's UID in a control group's path, as kubelet's cgroupfs driver (.../pod<uid>/...) and its systemd
// driver (...-pod<uid with underscores>.slice/...) write it. A static pod's is the hash of its configuration, without
// dashes.
var uidPattern = regexp.MustCompile(`[/-]pod([0-9a-f]{8}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{12})(?:\.slice)?(?:/|$)`)

// podUID returns the pod that a process belongs to, given its /proc/PID/cgroup of version 1 or 2; empty if none. Of a
// cluster that runs inside a pod, the inner pod counts.
func podUID(groups string) string {
	for line := range strings.Lines(groups) {
		// hierarchy:controllers:path
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		_, path, _ := strings.Cut(rest, ":")
		if m := uidPattern.FindAllStringSubmatch(path, -1); m != nil {
			return strings.ReplaceAll(m[len(m)-1][1], "_", "-")
		}
	}
	return ""
}

// startTime is field 22 of /proc/PID/stat; the second field is in parentheses and may contain anything.
func startTime(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:])
	if end < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("stat of a process has %d fields", len(fields)+2)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// inode identifies the network namespace that a path leads to, without opening it.
func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// open opens a network namespace by a path to it, unless it is the host's.
func open(path, hostProc string) (ns.NetNS, error) {
	n, err := ns.GetNS(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	host, err := inode(filepath.Join(hostProc, "1/ns/net"))
	if err == nil {
		var number uint64
		if number, err = Inode(n); err == nil && number == host {
			err = ErrHostNetwork
		}
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return n, nil
}

// Inode identifies an open network namespace.
func Inode(n ns.NetNS) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(n.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", n.Path(), err)
	}
	return st.Ino, nil
}

// Addresses are the addresses of a network namespace's interfaces, without loopback and link-local ones.
func Addresses(n ns.NetNS) ([]netip.Addr, error) {
	var out []netip.Addr
	err := n.Do(func(ns.NetNS) error {
		list, err := net.InterfaceAddrs()
		for _, a := range list {
			p, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			if addr, ok := netip.AddrFromSlice(p.IP); ok && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() {
				out = append(out, addr.Unmap())
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses in %s: %w", n.Path(), err)
	}
	return out, nil
}
