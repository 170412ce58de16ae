// Package samples holds the manifests of the sample application and what its programs share: listening and ending. The
// programs are in cmd; all of them are in one image.
package samples

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Teahouse is the manifest of the sample application: namespace teahouse, Deployments front, menu and door, with front and
// menu on different nodes where there are two, and a guest to ask them from.
//
//go:embed teahouse.yaml
var Teahouse []byte

// headerLimit bounds how long a client may take for its request's headers.
const headerLimit = 10 * time.Second

// ServeHTTP serves handler on addr until ctx ends; requests in flight have two seconds to end.
func ServeHTTP(ctx context.Context, addr string, handler http.Handler) error {
	server := http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: headerLimit}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	})
	err := server.ListenAndServe()
	if stop() || !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http: %w", err)
	}
	<-ended
	return nil
}

// ServeTCP calls handle, which owns the connection, for each connection to addr until ctx ends. It then closes those that
// are left and returns.
func ServeTCP(ctx context.Context, addr string, handle func(net.Conn)) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serve tcp: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve tcp %s: %w", addr, err)
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			handle(conn)
		})
	}
}

// Or is value, or fallback where it is empty.
func Or(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}
