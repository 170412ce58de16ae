package proxy

import (
	"context"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// await returns the first snapshot for which ok holds, or the present one when Config.Wait is over or ctx has ended: clients may
// hear of a service, or a route, before the proxy does.
func (p *Proxy) await(ctx context.Context, ok func(*config.Snapshot) bool) *config.Snapshot {
	if p.cfg.Wait < 0 {
		return p.snapshot.Load()
	}
	over := time.NewTimer(p.cfg.Wait)
	defer over.Stop()
	for {
		p.mu.Lock()
		news := p.news
		p.mu.Unlock()
		now := p.snapshot.Load()
		if ok(now) {
			return now
		}
		select {
		case <-news:
		case <-over.C:
			return now
		case <-ctx.Done():
			return now
		}
	}
}
