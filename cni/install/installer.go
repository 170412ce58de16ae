package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/ambit-mesh/ambit/cni/agentapi"
)

const (
	// settle is how long after a change the configuration is looked at, so that a writer of several files is done.
	settle = time.Second
	// recheck is how often it is looked at without a change that was noticed.
	recheck = time.Minute
	// manyRepairs within repairWindow mean that another program works against us.
	manyRepairs  = 5
	repairWindow = 10 * time.Minute
)

// Config configures an Installer.
type Config struct {
	// ConfDir and BinDir are the host's folders of CNI configurations and plugins, as the agent sees them.
	ConfDir, BinDir string
	// Binary is the plugin's program in the agent's image.
	Binary string
	// Entry is what is to be in the configuration.
	Entry agentapi.Entry
	// Settle replaces the second that is waited for after a change; for tests.
	Settle time.Duration
	Logger *slog.Logger
	// Repaired, if set, hears of every time that something had to be put in place.
	Repaired func()
}

// Installer keeps the plugin installed.
type Installer struct {
	cfg       Config
	installed atomic.Bool
}

// New returns an Installer that has changed nothing yet.
func New(c Config) *Installer {
	if c.Settle == 0 {
		c.Settle = settle
	}
	if c.Repaired == nil {
		c.Repaired = func() {}
	}
	return &Installer{cfg: c}
}

// Installed says whether the plugin was in place when last looked at, which is at most Settle after a change.
func (i *Installer) Installed() bool { return i.installed.Load() }

// Run installs the plugin, or waits for a configuration to install it into, and repairs what is changed, until the context
// ends. It leaves everything in place.
func (i *Installer) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CNI configuration: %w", err)
	}
	defer watcher.Close()
	for _, dir := range []string{i.cfg.ConfDir, i.cfg.BinDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("watch CNI configuration: %w", err)
		}
		if err := watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	var repairs []time.Time
	waiting := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watcher.Errors:
			i.cfg.Logger.Warn("watch of the CNI configuration", "error", err)
			timer.Reset(i.cfg.Settle)
		case e := <-watcher.Events:
			if e.Op != fsnotify.Chmod && filepath.Ext(e.Name) != ".tmp" {
				timer.Reset(i.cfg.Settle)
			}
		case <-timer.C:
			changed, err := i.ensure()
			i.installed.Store(err == nil)
			switch {
			case errors.Is(err, errNone):
				if !waiting {
					i.cfg.Logger.Info("waiting for the network's CNI configuration", "folder", i.cfg.ConfDir)
				}
			case err != nil:
				i.cfg.Logger.Error("install the CNI plugin", "error", err)
			case changed:
				i.cfg.Repaired()
				i.cfg.Logger.Info("CNI plugin installed", "folder", i.cfg.ConfDir)
				repairs = slices.DeleteFunc(append(repairs, time.Now()), func(at time.Time) bool { return time.Since(at) > repairWindow })
				if len(repairs) == manyRepairs {
					i.cfg.Logger.Warn("another program keeps taking the plugin out of the CNI configuration; " +
						"if that is Cilium, set its cni.exclusive=false")
				}
			}
			waiting = errors.Is(err, errNone)
			timer.Reset(recheck)
		}
	}
}

// ensure puts the binary and the entry in place, in this order: a configuration must not name a program that is not there.
func (i *Installer) ensure() (changed bool, err error) {
	binary, err := copyFile(i.cfg.Binary, filepath.Join(i.cfg.BinDir, filepath.Base(i.cfg.Binary)))
	if err != nil {
		return false, err
	}
	entry, err := ensureEntry(i.cfg.ConfDir, i.cfg.Entry, i.cfg.Logger)
	return binary || entry, err
}

// copyFile brings a program to its place, unless it is there, and says whether it had to.
func copyFile(from, to string) (changed bool, err error) {
	want, err := os.ReadFile(from)
	if err != nil {
		return false, fmt.Errorf("read the plugin: %w", err)
	}
	have, err := os.ReadFile(to)
	if err == nil && bytes.Equal(have, want) {
		if st, err := os.Stat(to); err == nil && st.Mode().Perm() == 0o755 {
			return false, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, writeFile(to, want, 0o755)
}

// Uninstall takes the plugin out of every configuration and deletes its binary. It needs no Run before it.
func (i *Installer) Uninstall() error {
	i.installed.Store(false)
	err := removeEntry(i.cfg.ConfDir, i.cfg.Entry.Type)
	if err != nil {
		// The binary stays: a configuration may still name it.
		return fmt.Errorf("uninstall the CNI plugin: %w", err)
	}
	err = os.Remove(filepath.Join(i.cfg.BinDir, filepath.Base(i.cfg.Binary)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("uninstall the CNI plugin: %w", err)
	}
	return nil
}
