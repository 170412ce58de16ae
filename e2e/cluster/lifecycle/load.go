package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/image"
	"github.com/ambit-mesh/ambit/e2e/cluster/kernel"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
)

// Load imports archives (OCI layout or docker save) on every node. Without archives it imports every image that was
// built.
func (c *Cluster) Load(ctx context.Context, archives []string) error {
	p, state, err := c.load()
	if err != nil {
		return err
	}
	if len(archives) == 0 {
		if archives, err = filepath.Glob(filepath.Join(c.ImageDir(), "*.tar")); err != nil {
			return err
		}
		if len(archives) == 0 {
			return fmt.Errorf("load images: none in %s: run make images", c.ImageDir())
		}
	}
	for i := range archives {
		if archives[i], err = filepath.Abs(archives[i]); err != nil {
			return err
		}
		if _, err := os.Stat(archives[i]); err != nil {
			return fmt.Errorf("load images: %w", err)
		}
	}
	begin := time.Now()
	errs := make([]error, len(state.Nodes))
	var running sync.WaitGroup
	for i, n := range state.Nodes {
		running.Go(func() {
			m, err := state.machine(n.Name)
			if err == nil {
				err = importImages(ctx, p, m.Name, m.Init, archives)
			}
			errs[i] = err
		})
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, a := range archives {
		c.notef("  %s", filepath.Base(a))
	}
	c.notef("loaded on %d nodes (%s)", len(state.Nodes), since(begin))
	return nil
}

// ImageDir is where built images are kept.
func (c *Cluster) ImageDir() string { return filepath.Join(c.Repository, ".cache", "images") }

// loadFirst imports the images that the cluster itself needs, as soon as the node's containerd takes them.
func (w waiter) loadFirst(ctx context.Context, n plan.Node, archives []string) error {
	init := w.record.Machines[n.Name]
	logs := []string{initLog(w.plan, n.Name), w.log(n.Name, "containerd")}
	err := w.until(ctx, "containerd on "+n.Name, apiTimeout, logs, func(ctx context.Context) error {
		_, err := ctr(ctx, w.plan, init, "version")
		return err
	})
	if err != nil {
		return err
	}
	return importImages(ctx, w.plan, n.Name, init, archives)
}

// importImages imports those of the archives that the node does not have yet.
func importImages(ctx context.Context, p plan.Plan, node string, init kernel.Process, archives []string) error {
	have, err := ctr(ctx, p, init, "--namespace=k8s.io", "images", "list")
	if err != nil {
		return fmt.Errorf("list images on %s: %w", node, err)
	}
	for _, archive := range archives {
		name, digest, unnamed := image.Identify(archive)
		if unnamed == nil && listed(have, name, digest) {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, loadTimeout)
		out, err := ctr(limited, p, init, "--namespace=k8s.io", "images", "import", archive)
		cancel()
		if err != nil {
			return fmt.Errorf("load %s on %s: %w", archive, node, err)
		}
		// What is for another platform is passed over without an error. On a busy machine ctr may have nothing to say of what
		// it did import, either: it shows progress that containerd tells it of meanwhile.
		if strings.TrimSpace(out) != "" {
			continue
		}
		now, err := ctr(ctx, p, init, "--namespace=k8s.io", "images", "list")
		if err != nil {
			return fmt.Errorf("list images on %s: %w", node, err)
		}
		if unnamed != nil || !listed(now, name, digest) {
			return fmt.Errorf("load %s on %s: nothing was imported: the archive holds no image for linux/%s (its config must say so)", archive, node, runtime.GOARCH)
		}
	}
	return nil
}

// listed tells whether the listing of images (name, type, digest, ... per line) holds the image.
func listed(listing, name, digest string) bool {
	for line := range strings.Lines(listing) {
		fields := strings.Fields(line)
		if len(fields) > 2 && fields[0] == name && fields[2] == digest {
			return true
		}
	}
	return false
}

// ctr runs containerd's own client inside a node and returns what it prints.
func ctr(ctx context.Context, p plan.Plan, init kernel.Process, args ...string) (string, error) {
	line := Enter(init, append([]string{filepath.Join(p.BinDir, "ctr")}, args...)...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
