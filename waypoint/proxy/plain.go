package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"unique"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// ServePlain takes connections of HTTP that come without a tunnel, as if each had asked for destination, until ctx ends or ln is closed,
// and waits for them. It owns ln. Nobody has proved who these clients are, so policies that ask for an identity refuse them. The
// waypoint itself opens no such port: what the proxy costs without tunnels is measured by it. destination must be served when
// it is called.
func (p *Proxy) ServePlain(ctx context.Context, ln net.Listener, destination netip.AddrPort) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer stop()
	for {
		nc, err := ln.Accept()
		if err != nil {
			_ = ln.Close()
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		chain := p.snapshot.Load().Chain(destination)
		if chain == nil || chain.HTTP == nil {
			p.counts.Refused.Add(1)
			_ = nc.Close()
			continue
		}
		c := &connection{proxy: p, chain: chain, destination: destination, source: unique.Make(telemetry.Party{})}
		if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
			c.client, c.holder = a.AddrPort(), a.AddrPort().Addr().Unmap()
		}
		conns.Go(func() { c.serveHTTP(ctx, nc) })
	}
}
