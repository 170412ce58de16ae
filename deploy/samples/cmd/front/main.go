// Command front is the teahouse's front. FRONT_ADDR is where it listens (:8080), MENU_URL and DOOR_ADDR whom it asks.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambit-mesh/ambit/deploy/samples"
	"github.com/ambit-mesh/ambit/deploy/samples/teahouse"
	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "front:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, getenv func(string) string) error {
	env := func(name, fallback string) string { return samples.Or(getenv(name), fallback) }
	return samples.ServeHTTP(ctx, env("FRONT_ADDR", ":8080"), &teahouse.Front{
		Me:       whoami.Me(),
		MenuURL:  env("MENU_URL", "http://menu:8080/"),
		DoorAddr: env("DOOR_ADDR", "door:9001"),
		Client:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
}
