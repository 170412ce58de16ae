// Command waypoint is ambit's L7 proxy: it carries the requests to the services that are bound to it. See waypoint/app.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/ambit-mesh/ambit/waypoint/app"
)

func main() {
	if err := app.Run(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "waypoint:", err)
		os.Exit(1)
	}
}
