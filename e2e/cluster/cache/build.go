package cache

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/image"
)

// stillEvery is how often a long build says that it goes on.
const stillEvery = 30 * time.Second

// build makes every part of the recipe in dir.
func (c *Cache) build(ctx context.Context, r Recipe, dir string) error {
	fmt.Fprintf(c.Report, "building the cluster's programs, once, into %s (about 10 minutes on 2 cores)\n", filepath.Dir(dir))
	begin := time.Now()
	for _, p := range r.Parts {
		if err := c.buildPart(ctx, p, dir); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.Report, "  everything built in %s\n", since(begin))
	return nil
}

func (c *Cache) buildPart(ctx context.Context, p Part, dir string) error {
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	begin := time.Now()
	ldflags := "-s -w"
	for _, name := range slices.Sorted(maps.Keys(p.Set)) {
		ldflags += " -X " + name + "=" + p.Set[name]
	}
	args := []string{"build", "-trimpath", "-ldflags", ldflags, "-tags", strings.TrimSpace(PartsTag + " " + p.Tags), "-o", bin + "/"}
	cmd := exec.CommandContext(ctx, "go", append(args, p.Packages...)...)
	cmd.Dir = c.Module
	cgo := "CGO_ENABLED=0"
	if p.Cgo {
		cgo = "CGO_ENABLED=1"
	}
	cmd.Env = append(os.Environ(), cgo, "GOFLAGS=", "GOWORK=off")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := c.runWithProgress(cmd, p.Name, begin); err != nil {
		return fmt.Errorf("build %s: %w\n%s", p.Name, err, bytes.TrimSpace(output.Bytes()))
	}
	for link, program := range p.Links {
		if err := os.Symlink(program, filepath.Join(bin, link)); err != nil {
			return fmt.Errorf("build %s: %w", p.Name, err)
		}
	}
	if p.Image != nil {
		program := filepath.Base(p.Packages[0])
		def := image.Definition{
			Name:       p.Image.Name,
			Files:      []image.File{{From: filepath.Join(bin, program), To: p.Image.Program}},
			Entrypoint: p.Image.Entrypoint,
		}
		if err := image.Write(def, filepath.Join(dir, "images", program+".tar")); err != nil {
			return fmt.Errorf("build %s: %w", p.Name, err)
		}
	}
	fmt.Fprintf(c.Report, "  %-12s %s\n", p.Name, since(begin))
	return nil
}

// runWithProgress runs the command and says now and then that it still runs. The command ends with this process, lest it
// goes on writing into a folder that the next one removes.
func (c *Cache) runWithProgress(cmd *exec.Cmd, name string, begin time.Time) error {
	runtime.LockOSThread() // a parent's death, to the kernel, is that of the thread that started the child
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(stillEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			fmt.Fprintf(c.Report, "  %-12s ... %s\n", name, since(begin))
		}
	}
}

func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Millisecond) }
