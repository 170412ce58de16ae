package requests

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
)

// Names of what this program does when Run has started it again.
const (
	asBackend  = "backend"  // on an address
	asWaypoint = "waypoint" // on an address, before a backend
	asReverse  = "net/http" // on an address, before a backend
	asMeshed   = "meshed"   // on an address, as a Meshed in a file of JSON says
	asLoad     = "load"     // as a Load in JSON says
)

// Inside does what a program is asked to that Run has started again, by its arguments. Servers say on stdout where they listen. It returns
// false if the arguments are something else.
func Inside(ctx context.Context, args []string, stdout io.Writer) (bool, error) {
	if len(args) < 2 {
		return false, nil
	}
	switch args[0] {
	case asLoad:
		var l Load
		if err := json.Unmarshal([]byte(args[1]), &l); err != nil {
			return true, fmt.Errorf("read load: %w", err)
		}
		return true, json.NewEncoder(stdout).Encode(l.Run(ctx))
	case asBackend, asWaypoint, asReverse, asMeshed:
	default:
		return false, nil
	}
	ln, err := net.Listen("tcp", args[1])
	if err != nil {
		return true, err
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	if _, err := fmt.Fprintln(stdout, ln.Addr()); err != nil {
		return true, err
	}
	switch {
	case args[0] == asBackend:
		backend(ln)
		return true, nil
	case len(args) < 3:
		return true, fmt.Errorf("%s: no backend is named", args[0])
	case args[0] == asWaypoint:
		return true, serveWaypoint(ctx, ln, args[2])
	case args[0] == asMeshed:
		return true, serveMeshed(ctx, ln, args[2])
	}
	return true, serveReverse(ctx, ln, args[2], new(net.Dialer).DialContext)
}
