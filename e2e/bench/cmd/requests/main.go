// Command requests measures the waypoint beside a reverse proxy of net/http and Envoy; see package requests.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/requests"
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
	report, err := requests.Run(ctx, c, stderr)
	if err != nil {
		return err
	}
	if err := report.Write(stdout); err != nil {
		return err
	}
	if n := report.Failed(); n > 0 {
		return fmt.Errorf("%d connections failed: the figures are of no use", n)
	}
	return nil
}
