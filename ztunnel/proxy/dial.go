package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// bindAttempts is how many source ports are tried for one connection to the application: once around.
const bindAttempts = portRun * portJumps

// errNoFreePort is why a connection was refused: every source port that was tried is in use for this client and
// application.
var errNoFreePort = errors.New("no free source port under the client's address")

// dialPlain connects from the pod to an upstream.
func (p *Pod) dialPlain(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	ctx = within(ctx, p.node.Timeouts.Connect)
	conn, err := p.ns.DialTCP(ctx, p.node.dialer(), dst)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", dst, plainCause(err))
	}
	return conn, nil
}

// dialApp connects to the pod's application under the client's address. It never uses another address instead: a policy of
// the application, or its log, may depend on it.
func (p *Pod) dialApp(ctx context.Context, client netip.Addr, app netip.AddrPort) (*net.TCPConn, error) {
	ctx = within(ctx, p.node.Timeouts.Connect)
	d := p.node.dialer()
	// A pod that calls itself has the right address anyway.
	if !p.node.OriginalSource || client == app.Addr() || app.Addr().IsLoopback() {
		conn, err := p.ns.DialTCP(ctx, d, app)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", app, plainCause(err))
		}
		return conn, nil
	}
	if client.Is4() != app.Addr().Is4() {
		return nil, fmt.Errorf("connect to %s under the client's address %s: not of the same address family", app, client)
	}
	d.Transparent = true
	for failed := range bindAttempts {
		port, err := p.ports.next(client, app, failed)
		if err != nil {
			return nil, fmt.Errorf("connect to %s under the client's address %s: %w", app, client, err)
		}
		d.Source = netip.AddrPortFrom(client, port)
		if p.ports.taken(d.Source, app) {
			continue
		}
		conn, err := p.ns.DialTCP(ctx, d, app)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil, fmt.Errorf("connect to %s under the client's address %s: %w", app, client, plainCause(err))
		}
	}
	return nil, fmt.Errorf("connect to %s under the client's address %s: %w in %d attempts", app, client, errNoFreePort, bindAttempts)
}

// deadline is a context with a deadline that nobody watches: for the net package, which looks at it if it has to wait. Within
// a pod a connection is made at once, and a timer for it would cost as much as the rest of a context.
type deadline struct {
	context.Context
	at time.Time
}

func (d deadline) Deadline() (time.Time, bool) { return d.at, true }

// within returns ctx for a dial that may take so long; zero: as long as it takes.
func within(ctx context.Context, d time.Duration) context.Context {
	if d == 0 {
		return ctx
	}
	at := time.Now().Add(d)
	if was, ok := ctx.Deadline(); ok && was.Before(at) {
		return ctx
	}
	return deadline{ctx, at}
}

// plainCause takes the addresses out of the net package's error, which the caller names already.
func plainCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// flagOf says how a connection that could not be opened is counted.
func flagOf(err error) telemetry.Flag {
	var status *hbone.StatusError
	if errors.As(err, &status) {
		if status.Status == statusDenied {
			return telemetry.FlagDenied
		}
		return telemetry.FlagConnect
	}
	if errors.Is(err, errNotRegistered) {
		return telemetry.FlagUnregistered
	}
	if errors.Is(err, errNoCertificate) {
		return telemetry.FlagIdentity
	}
	if isRevoked(err) {
		return telemetry.FlagRevoked
	}
	if errors.Is(err, hbone.ErrTooManyConnections) {
		return telemetry.FlagLimit
	}
	var dial *hbone.DialError
	if errors.As(err, &dial) {
		switch dial.Stage {
		case hbone.StageConnect:
			if isTimeout(err) {
				return telemetry.FlagNetworkPolicy
			}
		case hbone.StageTLS:
			return telemetry.FlagTLS
		case hbone.StageSettings:
			return telemetry.FlagH2
		}
	}
	return telemetry.FlagConnect
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}
