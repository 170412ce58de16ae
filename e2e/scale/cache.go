package scale

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// manifestName is written into a folder last: one without it is not whole.
const manifestName = "manifest.json"

// manifest says what is in a cached etcd folder.
type manifest struct {
	Pods    int               `json:"pods"`
	Version int               `json:"version"`
	Files   map[string]string `json:"files"` // SHA-256 by path
}

// cache keeps filled etcd folders, one for each number of pods. Whoever has it has its lock: runs are one at a time, so
// that they do not measure each other, and what is unfinished in it is an earlier run's that was cut off.
type cache struct {
	dir     string
	release func() error
}

// Names of unfinished folders begin so.
const unfinished = ".run-"

// openCache opens the cache below the user's cache folder, or below AMBIT_CACHE, and removes what a run left that was cut off.
func openCache() (*cache, error) {
	dir := os.Getenv("AMBIT_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find the user's cache folder (AMBIT_CACHE names another): %w", err)
		}
		dir = filepath.Join(user, "ambit")
	}
	return openCacheIn(filepath.Join(dir, "scale"))
}

func openCacheIn(dir string) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	release, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c := &cache{dir: dir, release: release}
	left, err := filepath.Glob(filepath.Join(dir, unfinished+"*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open cache: %w", err), release())
	}
	return c, nil
}

// folder makes a folder for a run, which removes it.
func (c *cache) folder() (string, error) { return os.MkdirTemp(c.dir, unfinished) }

// entry is the folder of a mesh of that many pods, which need not be there.
func (c *cache) entry(pods int) string {
	return filepath.Join(c.dir, fmt.Sprintf("etcd-%d-v%d", pods, fillVersion))
}

// get copies the etcd folder of a mesh of that many pods to where it is to be. One that is not there, or not what was
// written, is filled first, in dir.
func (c *cache) get(ctx context.Context, cfg Config, dir, to string) error {
	at := c.entry(cfg.Pods)
	switch err := verify(at, cfg.Pods); {
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(cfg.Report, "fill an API server with %d pods; kept in %s\n", cfg.Pods, at)
	case err != nil:
		fmt.Fprintf(cfg.Report, "what is cached in %s is damaged (%v): fill again\n", at, err)
	default:
		return copyFolder(ctx, at, to)
	}
	if err := os.RemoveAll(at); err != nil {
		return fmt.Errorf("remove what was cached: %w", err)
	}
	fresh := filepath.Join(dir, "filled")
	if err := fill(ctx, cfg, dir, fresh); err != nil {
		return err
	}
	if err := seal(fresh, cfg.Pods); err != nil {
		return fmt.Errorf("keep what was filled: %w", err)
	}
	if err := os.Rename(fresh, at); err != nil {
		return fmt.Errorf("keep what was filled: %w", err)
	}
	return copyFolder(ctx, at, to)
}

// fill fills an empty etcd folder.
func fill(ctx context.Context, cfg Config, dir, etcdDir string) (err error) {
	begin := time.Now()
	s, err := startServer(ctx, cfg.Programs, etcdDir, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	f, err := newFiller(s, cfg.Report)
	if err != nil {
		return err
	}
	if err := f.fill(ctx, cfg.Pods); err != nil {
		return err
	}
	if err := s.expect(ctx, cfg.Pods); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Report, "  filled in %s\n", time.Since(begin).Round(time.Second))
	return s.compact(ctx)
}

// expect checks that what was filled in is there.
func (s *server) expect(ctx context.Context, pods int) error {
	for _, want := range []struct {
		prefix string
		n      int
	}{{"/registry/pods/", pods}, {"/registry/services/specs/space-", services(pods)}, {"/registry/minions/", nodes}} {
		n, err := s.count(ctx, want.prefix)
		if err != nil {
			return err
		}
		if n != want.n {
			return fmt.Errorf("the filled API server has %d of %s, want %d: remove the cached folder", n, want.prefix, want.n)
		}
	}
	return nil
}

// seal writes the manifest of a folder.
func seal(dir string, pods int) error {
	files, err := sums(dir)
	if err != nil {
		return err
	}
	data, err := json.Marshal(manifest{Pods: pods, Version: fillVersion, Files: files})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestName), data, 0o600)
}

// verify compares a folder with its manifest. It returns fs.ErrNotExist if there is no folder.
func verify(dir string, pods int) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return fmt.Errorf("no manifest: %v", err)
	}
	var want manifest
	if err := json.Unmarshal(data, &want); err != nil {
		return fmt.Errorf("bad manifest: %v", err)
	}
	if want.Pods != pods || want.Version != fillVersion || len(want.Files) == 0 {
		return fmt.Errorf("the manifest is of %d pods by version %d, in %d files", want.Pods, want.Version, len(want.Files))
	}
	have, err := sums(dir)
	if err != nil {
		return fmt.Errorf("read files: %v", err)
	}
	for name, sum := range want.Files {
		if have[name] != sum {
			return fmt.Errorf("%s is not what was written", name)
		}
	}
	if len(have) != len(want.Files) {
		return fmt.Errorf("%d files, want %d", len(have), len(want.Files))
	}
	return nil
}

// walk calls f for each file of a folder but the manifest, with its path in the folder.
func walk(dir string, f func(path, name string) error) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == manifestName {
			return err
		}
		return f(path, strings.TrimPrefix(path, dir+"/"))
	})
}

func sums(dir string) (map[string]string, error) {
	out := map[string]string{}
	err := walk(dir, func(path, name string) error {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		h := sha256.New()
		if _, err := io.Copy(h, file); err != nil {
			return err
		}
		out[name] = hex.EncodeToString(h.Sum(nil))
		return nil
	})
	return out, err
}

// copyFolder copies all but the manifest.
func copyFolder(ctx context.Context, from, to string) error {
	err := walk(from, func(path, name string) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		src, err := os.Open(path)
		if err != nil {
			return err
		}
		defer src.Close()
		dst, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(dst, src)
		return errors.Join(err, dst.Close())
	})
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}
