// Command ztunnel is ambit's node proxy: it carries the connections of the node's captured pods. See ztunnel/app.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/ambit-mesh/ambit/ztunnel/app"
)

func main() {
	if err := app.Run(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "ztunnel:", err)
		os.Exit(1)
	}
}
