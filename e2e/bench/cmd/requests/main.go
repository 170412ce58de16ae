// Command requests measures the waypoint beside a reverse proxy of net/http and Envoy; see package requests.
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
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/requests"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "requests:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if inside, err := requests.Inside(ctx, args, stdout); inside {
		return err
	}
	var c requests.Config
	flags := flag.NewFlagSet("requests", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.Envoy, "envoy", "", "Envoy's program, to compare with")
	flags.DurationVar(&c.Duration, "duration", 2*time.Second, "length of each round")
	flags.IntVar(&c.Rounds, "rounds", 5, "rounds of each load, in each of which all proxies take turns")
	flags.IntVar(&c.Connections, "connections", 1000, "connections for the memory figure")
	alone := flags.Bool("alone", true, "measure the proxies alone, in plain")
	whole := flags.Bool("way", os.Geteuid() == 0, "measure the whole way by ztunnels, in network namespaces (root)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if c.Self, err = os.Executable(); err != nil {
		return err
	}
	if err := process.RaiseLimit(); err != nil {
		return err
	}
	var failed uint64
	if *alone {
		report, err := requests.Run(ctx, c, stderr)
		if err != nil {
			return err
		}
		if err := report.Write(stdout); err != nil {
			return err
		}
		failed = report.Failed()
	}
	if *whole {
		n, err := way(ctx, c, stdout, stderr)
		if err != nil {
			return err
		}
		failed += n
	}
	if failed > 0 {
		return fmt.Errorf("%d connections failed: the figures are of no use", failed)
	}
	return nil
}

// way measures the whole way, with programs that it builds, and returns how many requests failed.
func way(ctx context.Context, c requests.Config, stdout, stderr io.Writer) (_ uint64, err error) {
	dir, err := os.MkdirTemp("", "ambit-bench-bin-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	programs := requests.Programs{Ztunnel: filepath.Join(dir, "ztunnel"), Waypoint: filepath.Join(dir, "waypoint")}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir,
		"github.com/ambit-mesh/ambit/ztunnel/cmd/ztunnel", "github.com/ambit-mesh/ambit/waypoint/cmd/waypoint")
	build.Stderr = stderr
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build ztunnel and waypoint: %w", err)
	}
	if err := lab.Clear(); err != nil {
		return 0, err
	}
	report, err := requests.RunWay(ctx, c, programs, stderr)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintln(stdout); err != nil {
		return 0, err
	}
	return report.Failed(), report.Write(stdout)
}
