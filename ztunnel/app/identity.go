package app

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// What happens when the mesh's roots change under a control plane that tells nobody before it signs with a new one.
const (
	// renewFirst and renewLast are when certificates are renewed then: once all nodes have the new roots (a kubelet takes up to
	// two minutes to update a mounted config map), and not all at once.
	renewFirst = 3 * time.Minute
	renewLast  = 6 * time.Minute
	// rootLinger is how long a root that was withdrawn is still trusted: until others have renewed too.
	rootLinger = 15 * time.Minute
)

// makeIdentity makes what proves who pods are, and what peers are verified by.
func (p *parts) makeIdentity(registry prometheus.Registerer) error {
	cfg := p.cfg
	p.trust = &identity.Trust{PostQuantumOnly: cfg.PostQuantumOnly, Linger: rootLinger}
	p.setDomains(p.settings.Current())
	p.settings.Subscribe(func(s *settings.Settings) {
		p.setDomains(s)
		p.node.DomainsChanged()
	})
	ca, err := identity.NewChannel(cfg.CA)
	if err != nil {
		return fmt.Errorf("CA_ADDRESS: %w", err)
	}
	p.closers = append(p.closers, ca)
	p.openKeys()
	p.certs = identity.NewManager(identity.ManagerConfig{
		Issuer: &identity.GRPCIssuer{Conn: ca, TTL: cfg.SecretTTL, Impersonate: true},
		Trust:  p.trust,
		Keep:   p.keys,
		Logger: p.target("identity"),
	})
	registry.MustRegister(telemetry.NewCertificates(p.certs.Snapshot))
	p.revocations = telemetry.NewTrust(p.trust, p.certs.Requests)
	registry.MustRegister(p.revocations)
	p.files = &identity.Files{
		Trust: p.trust, Bundle: cfg.TrustBundle, CRL: cfg.CRLPath, StrictCRL: cfg.StrictCRL, Logger: p.target("identity"),
		OnBundle: func() { p.certs.RenewBetween(renewFirst, renewLast) },
		OnCRL:    func() { p.node.Recheck() },
	}
	if err := p.files.Load(); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// setDomains takes the names of the mesh's trust domain.
func (p *parts) setDomains(s *settings.Settings) {
	p.trust.SetDomains(identity.NewDomains(cmp.Or(s.TrustDomain, p.cfg.TrustDomain), s.TrustDomainAliases))
}

// watchTrust follows the files until the context ends.
func (p *parts) watchTrust(ctx context.Context) error { return p.files.Run(ctx) }
