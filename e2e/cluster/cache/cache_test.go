package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testCache is a cache whose module is one small program.
func testCache(t *testing.T) (*Cache, Recipe, *lockedBuffer) {
	t.Helper()
	module := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":        "module example.com/m\n\ngo 1.26.0\n",
		"hello/main.go": "package main\n\nfunc main() { println(\"hello\") }\n",
	} {
		path := filepath.Join(module, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	report := &lockedBuffer{}
	r := Recipe{Go: "go", Arch: "arch", Parts: []Part{{
		Name: "hello", Packages: []string{"example.com/m/hello"}, Links: map[string]string{"hallo": "hello"},
		Image: &Image{Name: "docker.io/test/hello:dev", Program: "/hello", Entrypoint: []string{"/hello"}},
	}}}
	return &Cache{Dir: t.TempDir(), Module: module, Report: report}, r, report
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what was written since the last call.
func (l *lockedBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

func get(t *testing.T, c *Cache, r Recipe) Entry {
	t.Helper()
	e, err := c.Get(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hello", "hallo"} {
		out, err := exec.Command(filepath.Join(e.Bin(), name)).CombinedOutput()
		if err != nil || string(out) != "hello\n" {
			t.Fatalf("%s says %q, %v", name, out, err)
		}
	}
	if images, err := e.Images(); err != nil || len(images) != 1 {
		t.Fatalf("images: %v, %v", images, err)
	}
	return e
}

func TestGetBuildsOnce(t *testing.T) {
	c, r, report := testCache(t)
	first := get(t, c, r)
	if out := report.take(); !strings.Contains(out, "hello") || !strings.Contains(out, "everything built in") {
		t.Errorf("no progress was shown:\n%s", out)
	}
	if second := get(t, c, r); second != first {
		t.Errorf("second entry is %v, first was %v", second, first)
	}
	if out := report.take(); out != "" {
		t.Errorf("the second use built:\n%s", out)
	}
}

func TestGetRepairsDamage(t *testing.T) {
	damages := map[string]func(t *testing.T, dir string) error{
		"a changed byte": func(t *testing.T, dir string) error {
			path := filepath.Join(dir, "bin", "hello")
			data, err := os.ReadFile(path)
			data[len(data)/2] ^= 1
			return errors.Join(err, os.WriteFile(path, data, 0o755))
		},
		"a cut program":  func(t *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, "bin", "hello"), 100) },
		"no program":     func(t *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "bin", "hello")) },
		"no image":       func(t *testing.T, dir string) error { return os.RemoveAll(filepath.Join(dir, "images")) },
		"no manifest":    func(t *testing.T, dir string) error { return os.Remove(filepath.Join(dir, manifestName)) },
		"empty manifest": func(t *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, manifestName), 0) },
		"a link to elsewhere": func(t *testing.T, dir string) error {
			path := filepath.Join(dir, "bin", "hallo")
			return errors.Join(os.Remove(path), os.Symlink("/bin/true", path))
		},
	}
	c, r, report := testCache(t)
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			e := get(t, c, r)
			report.take()
			if err := damage(t, e.Dir); err != nil {
				t.Fatal(err)
			}
			get(t, c, r)
			if out := report.take(); !strings.Contains(out, "is damaged") || !strings.Contains(out, "built in") {
				t.Errorf("the damage was not noticed:\n%s", out)
			}
		})
	}
}

func TestConcurrentGetsBuildOnce(t *testing.T) {
	c, r, report := testCache(t)
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			if _, err := c.Get(t.Context(), r); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if out := report.take(); strings.Count(out, "everything built in") != 1 {
		t.Errorf("want one build:\n%s", out)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	c, r, _ := testCache(t)
	r.Parts[0].Packages = []string{"example.com/m/none"}
	if _, err := c.Get(t.Context(), r); err == nil || !strings.Contains(err.Error(), "build hello") {
		t.Errorf("error is %v, want one that names the part", err)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "cluster", r.Key())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an entry appeared: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "cluster", unfinished+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLeftoversOfACutOffBuildGo(t *testing.T) {
	c, r, _ := testCache(t)
	left := filepath.Join(c.Dir, "cluster", unfinished+"123", "bin")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	get(t, c, r)
	if _, err := os.Stat(filepath.Dir(left)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

func TestCancelledGetDoesNotWaitForTheLock(t *testing.T) {
	c, r, report := testCache(t)
	dir := filepath.Join(c.Dir, "cluster")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := c.lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want the context's", err)
	}
	if out := report.take(); !strings.Contains(out, "another process is building") {
		t.Errorf("the wait was not explained: %q", out)
	}
}

func TestOldEntriesGo(t *testing.T) {
	c, r, _ := testCache(t)
	dir := filepath.Join(c.Dir, "cluster")
	for i, name := range []string{"a", "b", "c", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(-time.Duration(i+1) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, name), used, used); err != nil {
			t.Fatal(err)
		}
	}
	e := get(t, c, r)
	var have []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		have = append(have, e.Name())
	}
	if want := slices.Sorted(slices.Values([]string{"a", "b", e.Key})); !slices.Equal(want, have) {
		t.Errorf("kept %v, want %v", have, want)
	}
}

func TestKeyChangesWithEveryInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{"go.mod", "go.sum", "parts/a/main.go", "boot/run.go", "image/image.go"} {
		write(s, "one")
	}
	recipe := func() Recipe {
		t.Helper()
		r, err := NewRecipe(dir, "go1", "amd64")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	base := recipe()
	if again := recipe(); again.Key() != base.Key() {
		t.Fatal("the same recipe has two keys")
	}
	seen := map[string]string{base.Key(): "base"}
	check := func(what string, r Recipe) {
		t.Helper()
		if other, ok := seen[r.Key()]; ok {
			t.Errorf("%s has the key of %s", what, other)
		}
		seen[r.Key()] = what
	}
	write("parts/a/main.go", "two")
	check("another source", recipe())
	write("parts/b/main.go", "one")
	check("a new source", recipe())
	other := base
	other.Go = "go2"
	check("another compiler", other)
	other = base
	other.Parts = Parts()
	other.Parts[0].Tags = "x"
	check("another tag", other)
	write("cmd/cluster/run.go", "unrelated")
	if len(recipe().Sources) != len(base.Sources)+1 {
		t.Error("a source that is not built is in the recipe")
	}
}

// TestVersionsAgree keeps what programs report, and what the modules of the repository compile, the same.
func TestVersionsAgree(t *testing.T) {
	type module struct{ Path, Version string }
	type file struct {
		Require []module
		Replace []struct{ Old, New module }
	}
	read := func(dir string) (f file) {
		t.Helper()
		cmd := exec.Command("go", "mod", "edit", "-json")
		cmd.Dir = dir
		out, err := cmd.Output()
		if err == nil {
			err = json.Unmarshal(out, &f)
		}
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	own, root := read(".."), read("../../..")
	required := map[string]string{}
	for _, m := range own.Require {
		required[m.Path] = m.Version
	}
	for path, want := range map[string]string{
		"k8s.io/kubernetes": KubernetesVersion, "github.com/containerd/containerd/v2": ContainerdVersion,
	} {
		if required[path] != want {
			t.Errorf("go.mod requires %s %s, the recipe says %s", path, required[path], want)
		}
	}
	want := "v0" + strings.TrimPrefix(KubernetesVersion, "v1")
	replaced := map[string]string{}
	for _, r := range own.Replace {
		replaced[r.Old.Path] = r.New.Version
		if r.New.Version != want {
			t.Errorf("%s is replaced by %s, want %s", r.Old.Path, r.New.Version, want)
		}
	}
	released := regexp.MustCompile(`^v0\.\d+\.\d+$`)
	for _, m := range root.Require {
		if _, ok := replaced[m.Path]; ok && released.MatchString(m.Version) && m.Version != want {
			t.Errorf("the repository's go.mod requires %s %s, the cluster runs %s: they would be compiled twice", m.Path, m.Version, want)
		}
	}
}

func TestPartsMakeDistinctPrograms(t *testing.T) {
	seen := map[string]string{}
	for _, p := range Parts() {
		for _, name := range p.Programs() {
			if other, ok := seen[name]; ok {
				t.Errorf("%s is made by %s and by %s", name, other, p.Name)
			}
			seen[name] = p.Name
		}
	}
	for _, want := range []string{"kube-apiserver", "kubelet", "kubectl", "etcd", "containerd", "containerd-shim-runc-v2", "runc", "ptp", "nodeinit"} {
		if _, ok := seen[want]; !ok {
			t.Errorf("no part makes %s; there are %v", want, slices.Sorted(maps.Keys(seen)))
		}
	}
}
