// Command conformance runs the Gateway API's conformance suite against the mesh on this machine. See package e2e/conformance.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambit-mesh/ambit/e2e/conformance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &conformance.Run{Out: os.Stdout}
	flag.StringVar(&r.Report, "report", "conformance/reports/v1.7.0/ambit/experimental-dev-default-report.yaml", "the file to write the suite's report to")
	flag.StringVar(&r.Version, "version", "", "what the report says was tested (default what the built command says)")
	flag.BoolVar(&r.NoWaypoint, "no-waypoint", false, "leave the suite's namespaces to the node proxies alone")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "conformance [flags] [-- flags of the suite, such as -run-test=MeshBasic]")
		flag.PrintDefaults()
	}
	flag.Parse()
	r.Flags = flag.Args()
	if err := r.Do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}
