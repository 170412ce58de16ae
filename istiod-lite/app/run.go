// Package app wires the control plane's rooms from top to bottom. It decides nothing but the order in which they start and
// stop.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/ambit-mesh/ambit/api/build"
)

// Run is the program: it serves until ctx ends, drains, and returns nil then. args are without the program's name.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		_, err := fmt.Fprintln(stdout, "istiod-lite", build.Version())
		return err
	}
	c, err := parseConfig(args, stderr)
	if errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	log := c.logger(stderr)
	ln, err := net.Listen("tcp", c.MonitoringAddr)
	if err != nil {
		return fmt.Errorf("listen for monitoring: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	server := &http.Server{Handler: mux}
	stopped := context.AfterFunc(ctx, func() { server.Close() })
	defer stopped()
	log.Info("serving", "version", build.Version(), "monitoring", ln.Addr().String())
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
