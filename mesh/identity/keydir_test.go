package identity

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memoryDir is a folder in memory, or skips the test.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ambit-t-")
	if err != nil {
		t.Skipf("skipped: no folder in memory: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skipf("skipped: /dev/shm is not a tmpfs: type %#x, %v", st.Type, err)
	}
	return dir
}

func TestKeyDirRefuses(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	disk := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		if _, err := OpenKeyDir(filepath.Join(disk, "keys"), logger); err == nil || !strings.Contains(err.Error(), "not on a tmpfs") {
			t.Errorf("on a disk: %v", err)
		}
	}
	memory := memoryDir(t)
	open := filepath.Join(memory, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyDir(open, logger); err == nil || !strings.Contains(err.Error(), "mode 750") {
		t.Errorf("a folder that others may read: %v", err)
	}
	link := filepath.Join(memory, "link")
	if err := os.Symlink(memory, link); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyDir(link, logger); err == nil {
		t.Error("a link is followed")
	}
}

func TestKeyDirSweep(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "keys")
	k, err := OpenKeyDir(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a := Identity{TrustDomain: "td", Namespace: "ns", ServiceAccount: "a"}
	b, c := a, a
	b.ServiceAccount, c.ServiceAccount = "b", "c"
	long := time.Now().Add(-time.Hour)
	for _, id := range []Identity{a, b, c} {
		if err := os.WriteFile(k.path(id), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if id != c {
			if err := os.Chtimes(k.path(id), long, long); err != nil {
				t.Fatal(err)
			}
		}
		if s := k.Load(id); s != nil {
			t.Errorf("of an empty file comes %v", s)
		}
	}
	if err := k.Sweep([]Identity{a}, time.Minute); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[Identity]bool{a: true, b: false, c: true} {
		if _, err := os.Stat(k.path(id)); (err == nil) != want {
			t.Errorf("%s is kept: %v, want %v", id, err == nil, want)
		}
	}
}
