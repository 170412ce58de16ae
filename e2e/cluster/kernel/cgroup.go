package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CgroupRoot is where cgroups are mounted (file-hierarchy(7), cgroups(7)).
const CgroupRoot = "/sys/fs/cgroup"

// Hierarchies are the cgroup hierarchies of the machine. The zero value has none.
type Hierarchies struct {
	v2    bool     // one unified hierarchy with the controllers in it
	roots []string // absolute paths
}

// FindHierarchies looks at the mounts: either one version 2 hierarchy, or version 1 controllers, perhaps with a version
// 2 hierarchy without controllers beside them.
func FindHierarchies() (Hierarchies, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Hierarchies{}, err
	}
	h := parseHierarchies(data)
	if len(h.roots) == 0 {
		return h, fmt.Errorf("find cgroups: nothing is mounted below %s: mount them first (Debian: package cgroupfs-mount, or systemd)", CgroupRoot)
	}
	return h, nil
}

func parseHierarchies(mountinfo []byte) Hierarchies {
	var h Hierarchies
	seen := map[string]bool{}
	for line := range strings.Lines(string(mountinfo)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 || seen[fields[4]] {
			continue
		}
		at := fields[4]
		if kind[0] == "cgroup2" && at == CgroupRoot {
			return Hierarchies{v2: true, roots: []string{at}}
		}
		if (kind[0] == "cgroup" || kind[0] == "cgroup2") && filepath.Dir(at) == CgroupRoot {
			seen[at] = true
			h.roots = append(h.roots, at)
		}
	}
	return h
}

// V2 tells whether the controllers are in one unified hierarchy.
func (h Hierarchies) V2() bool { return h.v2 }

// Make makes the cgroup of that path (relative, slash-separated) in every hierarchy, ready to take processes and to
// have children. It returns the folders.
func (h Hierarchies) Make(path string) ([]string, error) {
	var dirs []string
	for _, root := range h.roots {
		dir := root
		for _, name := range strings.Split(path, "/") {
			if h.v2 {
				if err := enableControllers(dir); err != nil {
					return nil, fmt.Errorf("make cgroup %s: %w", path, err)
				}
			}
			parent := dir
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, fmt.Errorf("make cgroup %s: %w", path, err)
			}
			// A version 1 cpuset begins empty, and takes no process until it names processors and memory.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inherit(parent, dir, f); err != nil && !h.v2 {
					return nil, fmt.Errorf("make cgroup %s: %w", path, err)
				}
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// enableControllers passes every controller of the version 2 cgroup on to its children.
func enableControllers(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(have)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable %s in %s: %w", c, dir, err)
		}
	}
	return nil
}

func inherit(parent, child, file string) error {
	have, err := os.ReadFile(filepath.Join(child, file))
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(bytes.TrimSpace(have)) > 0) {
		return nil
	}
	want, err := os.ReadFile(filepath.Join(parent, file))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(child, file), want, 0)
}

// Exists tells whether any hierarchy has a cgroup of that path.
func (h Hierarchies) Exists(path string) bool {
	for _, root := range h.roots {
		if _, err := os.Stat(filepath.Join(root, path)); err == nil {
			return true
		}
	}
	return false
}

// processes returns the PIDs in the cgroup and below, over all hierarchies.
func (h Hierarchies) processes(path string) ([]int, error) {
	var pids []int
	for _, root := range h.roots {
		err := filepath.WalkDir(filepath.Join(root, path), func(at string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return gone(err)
			}
			data, err := os.ReadFile(filepath.Join(at, "cgroup.procs"))
			for _, f := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return gone(err)
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
		}
	}
	return pids, nil
}

// gone lets pass that a cgroup vanished while it was looked at.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Processes returns the processes in the cgroup and below, over all hierarchies.
func (h Hierarchies) Processes(path string) ([]Process, error) {
	pids, err := h.processes(path)
	var out []Process
	for _, pid := range pids {
		if p, err := FindProcess(pid); err == nil && p.Alive() {
			out = append(out, p)
		}
	}
	return out, err
}

// Remove removes the cgroup and all below it, in every hierarchy. Its processes must have ended; the kernel may need a
// moment to notice, for which Remove waits until ctx ends.
func (h Hierarchies) Remove(ctx context.Context, path string) error {
	for _, root := range h.roots {
		for {
			err := removeTree(filepath.Join(root, path))
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
				return fmt.Errorf("remove cgroup %s: %w", path, err)
			}
			if pause(ctx, 20*time.Millisecond) != nil {
				return fmt.Errorf("remove cgroup %s: %w", path, err)
			}
		}
	}
	return nil
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return gone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return gone(os.Remove(dir))
}
