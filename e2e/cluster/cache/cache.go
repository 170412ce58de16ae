package cache

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	manifestName = "manifest.json"

	// unfinished begins the names of entries that are being built.
	unfinished = ".building-"

	// kept is how many entries stay, the newest by use.
	kept = 3
)

// Cache is a folder of entries.
type Cache struct {
	Dir    string    // absolute; made when needed
	Module string    // folder of the module that is built
	Report io.Writer // progress, one line per step
}

// Entry is a finished build.
type Entry struct {
	Dir string
	Key string
}

// Bin is the folder of the programs.
func (e Entry) Bin() string { return filepath.Join(e.Dir, "bin") }

// Images returns the archives of the images that the cluster itself needs.
func (e Entry) Images() ([]string, error) {
	return filepath.Glob(filepath.Join(e.Dir, "images", "*.tar"))
}

// Manifest lists an entry's files by path: the checksum of a regular file, or "-> target" of a symbolic link.
type Manifest map[string]string

// UserDir is where entries are kept unless the environment says otherwise: AMBIT_CACHE, else the user's cache folder.
func UserDir() (string, error) {
	if dir := os.Getenv("AMBIT_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder (AMBIT_CACHE names another): %w", err)
	}
	return filepath.Join(dir, "ambit"), nil
}

// Get returns the entry of the recipe, after checking it. If there is none, or it is damaged, Get builds it. Several
// processes may call Get at once; one builds and the others wait.
func (c *Cache) Get(ctx context.Context, r Recipe) (Entry, error) {
	dir := filepath.Join(c.Dir, "cluster")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Entry{}, fmt.Errorf("open cache: %w", err)
	}
	e := Entry{Dir: filepath.Join(dir, r.Key()), Key: r.Key()}
	if Verify(e.Dir) == nil {
		return e, touch(e.Dir)
	}
	unlock, err := c.lock(ctx, dir)
	if err != nil {
		return Entry{}, err
	}
	defer unlock()

	switch err := Verify(e.Dir); {
	case err == nil: // somebody else built it meanwhile
		return e, touch(e.Dir)
	case !errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(c.Report, "the cached build %s is damaged (%v): building it again\n", e.Key, err)
	}
	if err := removeUnfinished(dir); err != nil {
		return Entry{}, err
	}
	tmp, err := os.MkdirTemp(dir, unfinished)
	if err != nil {
		return Entry{}, fmt.Errorf("open cache: %w", err)
	}
	defer os.RemoveAll(tmp) // after the rename there is nothing of that name
	if err := c.build(ctx, r, tmp); err != nil {
		return Entry{}, err
	}
	if err := publish(tmp, e.Dir); err != nil {
		return Entry{}, fmt.Errorf("publish build %s: %w", e.Key, err)
	}
	return e, prune(dir)
}

// Verify compares the entry in dir with its manifest. It returns fs.ErrNotExist if there is no entry at all.
func Verify(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return fmt.Errorf("no manifest: %v", err)
	}
	var want Manifest
	if err := json.Unmarshal(data, &want); err != nil {
		return fmt.Errorf("bad manifest: %v", err)
	}
	have, err := readManifest(dir)
	if err != nil {
		return fmt.Errorf("read files: %v", err)
	}
	if len(want) == 0 {
		return errors.New("empty manifest")
	}
	for name, sum := range want {
		if have[name] != sum {
			return fmt.Errorf("%s is not what was built", name)
		}
	}
	return nil
}

func readManifest(dir string) (Manifest, error) {
	m := Manifest{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == manifestName {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			m[name] = "-> " + target
			return err
		}
		m[name], err = checksum(path)
		return err
	})
	return m, err
}

// publish makes the finished build in tmp the entry dir. What was there is removed. It does not wait for the disk: what a
// power cut damages, the checksums show.
func publish(tmp, dir string) error {
	m, err := readManifest(tmp)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, manifestName), data, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// lock waits for the lock on the folder of entries.
func (c *Cache) lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock cache: %w", err)
		}
		if !told {
			fmt.Fprintln(c.Report, "another process is building; waiting for it")
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock cache: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// removeUnfinished removes what builds left that were cut off. The caller holds the lock.
func removeUnfinished(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, unfinished+"*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// prune removes all but the entries that were used last. The caller holds the lock.
func prune(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var old []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			old = append(old, info)
		}
	}
	slices.SortFunc(old, func(a, b fs.FileInfo) int { return cmp.Compare(b.ModTime().Unix(), a.ModTime().Unix()) })
	for _, e := range old[min(kept, len(old)):] {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func touch(dir string) error {
	now := time.Now()
	return os.Chtimes(dir, now, now)
}
