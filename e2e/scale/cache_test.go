package scale

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestDamagedCacheIsNoticed(t *testing.T) {
	const pods = 20
	write := func(t *testing.T, path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(t *testing.T) string {
		dir := filepath.Join(t.TempDir(), "etcd")
		write(t, filepath.Join(dir, "member", "snap", "db"), "all pods")
		write(t, filepath.Join(dir, "member", "wal", "0.wal"), "the last ones")
		if err := seal(dir, pods); err != nil {
			t.Fatal(err)
		}
		if err := verify(dir, pods); err != nil {
			t.Fatalf("a sound folder: %v", err)
		}
		return dir
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
	}{
		{"changed", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "member", "snap", "db"), "all podz") }},
		{"cut short", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "member", "snap", "db"), "all") }},
		{"file gone", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "member", "wal", "0.wal")); err != nil {
				t.Fatal(err)
			}
		}},
		{"file more", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "member", "wal", "1.wal"), "more") }},
		{"half filled", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, manifestName)); err != nil {
				t.Fatal(err)
			}
		}},
		{"manifest cut short", func(t *testing.T, dir string) { write(t, filepath.Join(dir, manifestName), `{"pods": 20, `) }},
		{"of another size", func(t *testing.T, dir string) {
			if err := seal(dir, pods+1); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := entry(t)
			c.damage(t, dir)
			if err := verify(dir, pods); err == nil {
				t.Error("the damage was not noticed")
			} else if errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a damaged folder counts as none: %v", err)
			}
		})
	}
	if err := verify(filepath.Join(t.TempDir(), "none"), pods); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: got %v, want %v", err, fs.ErrNotExist)
	}
}

func TestCopyLeavesTheManifest(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	for _, name := range []string{"db", manifestName} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyFolder(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(to, "db")); err != nil || string(text) != "db" {
		t.Errorf("copy: %q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(to, manifestName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the manifest was copied: %v", err)
	}
}

func TestOneRunAtATime(t *testing.T) {
	dir := t.TempDir()
	c, err := openCacheIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	left, err := c.folder()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openCacheIn(dir); err == nil {
		t.Error("a second run got the cache")
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("a second run touched the first one's folder: %v", err)
	}
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	if c, err = openCacheIn(dir); err != nil {
		t.Fatal(err)
	}
	defer c.release()
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a cut-off run left is still there: %v", err)
	}
}
