// Command nodeinit is the first process of a machine of the cluster: `nodeinit FILE` boots what FILE describes.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/ambit-mesh/ambit/e2e/cluster/boot"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "nodeinit:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("want one file, got %d arguments", len(args))
	}
	spec, err := boot.ReadSpec(args[0])
	if err != nil {
		return err
	}
	return boot.Run(ctx, spec, stderr)
}
