// Command bench measures a node proxy between two pods; see package bench.
package main

import (
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

	"github.com/ambit-mesh/ambit/e2e/bench"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if inside, err := bench.Inside(ctx, args, stdout); inside {
		return err
	}
	return measure(ctx, args, stdout, stderr)
}

func measure(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var c bench.Config
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.Ztunnel, "ztunnel", "", "our binary; built if empty")
	flags.StringVar(&c.Peer, "peer", "", "another ztunnel binary for the same table")
	flags.DurationVar(&c.Duration, "duration", 5*time.Second, "length of each load")
	flags.IntVar(&c.Connections, "connections", 10_000, "connections to hold for the memory figures")
	flags.IntVar(&c.Workloads, "workloads", 0, "workloads to tell the proxies of, for the memory figure of a large mesh")
	only := flags.String("only", "", "comma list of paths to run: ambit, ambit:one node, peer, ...")
	loads := flags.String("loads", "", "comma list of loads to run, by kind and number of connections: send1, pingpong64, connect32, ...")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *only != "" {
		c.Only = strings.Split(*only, ",")
	}
	if *loads != "" {
		c.Loads = strings.Split(*loads, ",")
	}
	if c.Self, err = os.Executable(); err != nil {
		return err
	}
	if err := process.RaiseLimit(); err != nil {
		return err
	}
	if err := lab.Clear(); err != nil {
		return err
	}
	if c.Ztunnel == "" {
		dir, err := os.MkdirTemp("", "ambit-bench-bin-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		c.Ztunnel = filepath.Join(dir, "ztunnel")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", c.Ztunnel, "github.com/ambit-mesh/ambit/ztunnel/cmd/ztunnel")
		build.Stderr = stderr
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := build.Run(); err != nil {
			return fmt.Errorf("build ztunnel: %w", err)
		}
	}
	report, err := bench.Run(ctx, c, stderr)
	if err != nil {
		return err
	}
	return report.Write(stdout)
}
