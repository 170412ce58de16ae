// Command echo answers every HTTP request with who it is and whom it saw. ECHO_ADDR is where it listens (:8080).
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambit-mesh/ambit/deploy/samples"
	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, getenv func(string) string) error {
	env := func(name, fallback string) string { return samples.Or(getenv(name), fallback) }
	return samples.ServeHTTP(ctx, env("ECHO_ADDR", ":8080"), whoami.Handler(whoami.Me()))
}
