// Command greeter speaks first: a line protocol over TCP. GREETER_ADDR is where it listens (:9001).
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambit-mesh/ambit/deploy/samples"
	"github.com/ambit-mesh/ambit/deploy/samples/greeter"
	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "greeter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, getenv func(string) string) error {
	env := func(name, fallback string) string { return samples.Or(getenv(name), fallback) }
	me := whoami.Me()
	return samples.ServeTCP(ctx, env("GREETER_ADDR", ":9001"), func(conn net.Conn) { greeter.Handle(conn, me) })
}
