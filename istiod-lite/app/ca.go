package app

import (
	"context"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/ca"
	"github.com/ambit-mesh/ambit/istiod-lite/roots"
)

// Pauses between attempts to load the CA.
const (
	loadRetryFirst = 200 * time.Millisecond
	loadRetryMost  = 10 * time.Second
)

// makeCA makes the keeper of the certificate authority, and the writers of what verifiers need to know of it.
func (p *program) makeCA() {
	p.keeper = ca.NewKeeper(ca.KeeperConfig{
		Client:       p.clients.core,
		Secrets:      p.clients.core.CoreV1().Secrets(p.cfg.Namespace),
		Organization: func() string { return p.loop.Settings().TrustDomain },
		Times:        ca.Times{Distribution: p.cfg.RootDistribution, Retirement: p.cfg.RootRetirement},
		OnChange: func() {
			if a := p.authority(); a != nil {
				p.caMetrics.Observe(a)
			}
			for _, w := range p.writers {
				w.Changed()
			}
		},
		Log: p.log.With("room", "ca"), Now: time.Now,
	})
	log := p.log.With("room", "roots")
	p.writers = []*roots.Writer{
		roots.NewWriter(roots.Config{Client: p.clients.core, Name: p.cfg.RootCertConfigMap, Key: api.RootCertKey, Log: log,
			Text: func() (string, bool) { return p.authority().Roots(), true }}),
		roots.NewWriter(roots.Config{Client: p.clients.core, Name: p.cfg.CRLConfigMap, Key: api.CRLKey, Log: log, Text: p.keeper.CRL}),
	}
}

// authority is the certificate authority in force; nil before it is loaded.
func (p *program) authority() *ca.Authority { return p.keeper.Authority() }

// loadCA tries until there is a certificate authority, and returns false if ctx ends before. What keeps it from being there is
// shown as not ready.
func (p *program) loadCA(ctx context.Context) bool {
	p.status.set(partCA, "not loaded yet")
	for pause := loadRetryFirst; ; pause = min(2*pause, loadRetryMost) {
		err := p.keeper.Load(ctx)
		if err == nil {
			return true
		}
		p.status.set(partCA, err.Error())
		p.log.Error("no certificate authority", "cause", err, "retry", pause.String())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false
		}
	}
}
