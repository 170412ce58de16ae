// Command scale measures the control plane with many pods; see package scale.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/scale"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c := scale.Config{Report: stderr}
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&c.Pods, "pods", 100_000, "pods to fill the API server with")
	flags.IntVar(&c.Created, "created", 100, "pods to create one after another")
	flags.DurationVar(&c.Storm, "storm", 10*time.Second, "how long to change pods as fast as it goes")
	flags.StringVar(&c.Programs, "programs", "", "folder of etcd and kube-apiserver; the cluster's, built if need be, if empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if c.Programs == "" {
		out, err := goTool(ctx, stderr, "-C", "e2e/cluster", "run", "./cmd/cluster", "build")
		if err != nil {
			return fmt.Errorf("build the cluster's programs: %w", err)
		}
		c.Programs = strings.TrimSpace(out)
	}
	c.Build = func(ctx context.Context, dir string) (scale.Binaries, error) {
		b := scale.Binaries{
			ControlPlane: filepath.Join(dir, "istiod-lite"), Subscriber: filepath.Join(dir, "subscriber"), Ztunnel: filepath.Join(dir, "ztunnel"),
		}
		for program, pkg := range map[string]string{
			b.ControlPlane: "./istiod-lite/cmd/istiod-lite", b.Subscriber: "./e2e/scale/cmd/subscriber", b.Ztunnel: "./ztunnel/cmd/ztunnel",
		} {
			if _, err := goTool(ctx, stderr, "build", "-trimpath", "-o", program, pkg); err != nil {
				return b, fmt.Errorf("build %s: %w", pkg, err)
			}
		}
		return b, nil
	}
	result, err := scale.Run(ctx, c)
	if err != nil {
		return err
	}
	return result.Write(stdout)
}

// goTool runs the go command in the current folder, the repository's, and returns its output.
func goTool(ctx context.Context, stderr io.Writer, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, stderr, append(os.Environ(), "CGO_ENABLED=0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	return out.String(), err
}
