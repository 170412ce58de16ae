package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// maxDials is how many endpoints Dial tries.
const maxDials = 3

// Dial connects to an endpoint of a cluster, for what is not a request of a client. The caller closes the connection.
func (m *Clusters) Dial(ctx context.Context, cluster string) (net.Conn, error) {
	c := m.Lookup(cluster)
	if c == nil {
		return nil, fmt.Errorf("backend %q is not known to this waypoint: does the service exist?", cluster)
	}
	if _, err := c.Before(ctx, netip.AddrPort{}); err != nil {
		return nil, fmt.Errorf("%s: %w", cluster, err)
	}
	var tried []*Endpoint
	for {
		e, err := c.Choose(tried)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cluster, err)
		}
		nc, err := e.Dial(ctx)
		if err == nil {
			return nc, nil
		}
		if tried = append(tried, e); len(tried) == maxDials || ctx.Err() != nil {
			return nil, err
		}
	}
}
