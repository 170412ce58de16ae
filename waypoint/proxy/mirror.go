package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// mirrorTimeout bounds a copy of a request from beginning to end where its route has no time-out. Nobody waits for it.
const mirrorTimeout = 5 * time.Minute

// mirrors are copies of requests under way.
type mirrors struct {
	proxy  *Proxy
	ctx    context.Context
	cancel context.CancelFunc
	ended  sync.WaitGroup
	count  atomic.Int64
	held   held
}

func (m *mirrors) init(p *Proxy) {
	m.proxy = p
	m.held.most = p.cfg.MaxMirrored
	m.ctx, m.cancel = context.WithCancel(context.Background())
}

func (m *mirrors) close() {
	m.cancel()
	m.ended.Wait()
}

// mirrorShare is which part of MaxMirrors, 1/mirrorShare, one cluster may have: backends that hang leave places for copies to others.
const mirrorShare = 8

// begin counts a copy, unless there are as many as may be.
func (m *mirrors) begin(to *upstream.Cluster) bool {
	most := m.proxy.cfg.MaxMirrors
	if m.count.Add(1) <= int64(most) && to.BeginCopy(max(1, most/mirrorShare)) {
		return true
	}
	m.count.Add(-1)
	return false
}

// end is the counterpart of begin.
func (m *mirrors) end(to *upstream.Cluster) {
	to.EndCopy()
	m.count.Add(-1)
}

// mirror sends a copy of the request, as it goes to its backend, to another, and does not wait.
func (r *request) mirror(to *route.Mirror) {
	p := r.c.proxy
	m := &p.mirrors
	cluster := p.cfg.Clusters.Lookup(to.Cluster)
	if cluster == nil || !m.begin(cluster) {
		p.counts.MirrorsDropped.Add(1)
		return
	}
	req := r.x.Request.Clone()
	req.Authority = to.Authority(req.Authority)
	req.Upgrade, req.Expect = "", false
	var body *tap
	if r.body != nil {
		body = newTap(&m.held)
		r.body.taps = append(r.body.taps, body)
		req.Body, req.Length = body, r.x.Request.Length
	}
	limit, asked := mirrorTimeout, r.c.destination
	if f := r.route.Forward; f.Timeout > 0 {
		limit = f.Timeout
	}
	m.ended.Go(func() {
		defer m.end(cluster)
		if body != nil {
			defer body.Close()
		}
		ctx, cancel := context.WithTimeout(m.ctx, limit)
		defer cancel()
		if err := copyTo(ctx, cluster, asked, req); err != nil {
			p.counts.MirrorsDropped.Add(1)
			p.cfg.Logger.Debug("a copy of a request was not sent", "route", r.route.Name, "cluster", to.Cluster, "error", err)
		}
	})
}

// copyTo sends a request and forgets the response. The request's body stays the caller's, to be closed after it. Asked is what the
// client connected to.
func copyTo(ctx context.Context, cluster *upstream.Cluster, asked netip.AddrPort, req *message.Request) error {
	e, err := cluster.Before(ctx, asked)
	if e == nil && err == nil {
		e, err = cluster.Choose(nil)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", cluster.Name(), err)
	}
	if err := e.Begin(); err != nil {
		return err
	}
	defer e.End()
	proto := message.HTTP11
	if p := cluster.Settings().Protocol; p == config.HTTP2 || p == config.AsClient && req.Proto == message.HTTP2 {
		proto = message.HTTP2
	}
	client, err := e.Client(ctx, proto)
	if err != nil {
		return err
	}
	resp, err := client.RoundTrip(ctx, req, nil)
	if err != nil {
		return err
	}
	defer discard(resp)
	for resp.Body != nil {
		if _, err := resp.Body.Next(); err != nil {
			break // its end, most likely; and if not, nobody minds
		}
	}
	return nil
}
