// Command bench measures a node proxy between two pods; see package bench.
package main

import (
	"context"
	"encoding/json"
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
	if len(args) > 0 {
		switch args[0] { // inside a pod's namespace
		case "serve":
			return bench.Serve(ctx)
		case "forward":
			return bench.Forward(ctx, args[1])
		case "load":
			return load(ctx, args[1:], stdout)
		}
	}
	return measure(ctx, args, stdout, stderr)
}

func load(ctx context.Context, args []string, stdout io.Writer) error {
	var l bench.Load
	if err := json.Unmarshal([]byte(args[0]), &l); err != nil {
		return fmt.Errorf("read load: %w", err)
	}
	result, err := l.Run(ctx, args[1], func() { fmt.Fprintln(stdout, "held") })
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
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
	only := flags.String("only", "", "comma list of paths to run")
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
	if err := raiseLimit(); err != nil {
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

// raiseLimit lets this process and its children open as many descriptors as the machine allows.
func raiseLimit() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("raise limit of descriptors: %w", err)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("raise limit of descriptors: %w", err)
	}
	return nil
}
