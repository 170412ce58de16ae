package app

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity"
	mesh "github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// What happens when the mesh's roots change, as at node proxies.
const (
	// renewFirst and renewLast are when certificates are renewed then: once all nodes have the new roots (a kubelet takes up to two
	// minutes to update a mounted config map), and not all at once.
	renewFirst = 3 * time.Minute
	renewLast  = 6 * time.Minute
	// rootLinger is how long a root that was withdrawn is still trusted: until others have renewed too.
	rootLinger = 15 * time.Minute
)

// makeIdentity makes what proves who the waypoint is, and what peers are verified by.
func (p *parts) makeIdentity() error {
	s := p.settings
	p.judge = make(chan struct{}, 1)
	p.trust = &identity.Trust{Linger: rootLinger}
	p.setDomains(p.meshwide.Current())
	p.meshwide.Subscribe(func(s *mesh.Settings) {
		p.setDomains(s)
		p.judgeSoon()
	})
	ca, err := identity.NewChannel(s.CA)
	if err != nil {
		return fmt.Errorf("CA_ADDRESS: %w", err)
	}
	p.closers = append(p.closers, ca)
	p.certs = identity.NewManager(identity.ManagerConfig{
		Issuer: &identity.GRPCIssuer{Conn: ca, TTL: s.SecretTTL}, Trust: p.trust, Logger: p.target("identity"),
	})
	p.registry.MustRegister(telemetry.NewCertificates(p.certs.Snapshot))
	p.certs.Prefetch(s.identity())
	p.files = &identity.Files{
		Trust: p.trust, Bundle: s.TrustBundle, CRL: s.CRLPath, StrictCRL: s.StrictCRL, Logger: p.target("identity"),
		OnBundle: func() { p.certs.RenewBetween(renewFirst, renewLast) },
		OnCRL:    p.judgeSoon,
	}
	if err := p.files.Load(); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// setDomains takes the names of the mesh's trust domain.
func (p *parts) setDomains(s *mesh.Settings) {
	p.trust.SetDomains(identity.NewDomains(cmp.Or(s.TrustDomain, p.settings.TrustDomain), s.TrustDomainAliases))
}

// judgeSoon has judgeTunnels look at all tunnels. It does not block.
func (p *parts) judgeSoon() {
	select {
	case p.judge <- struct{}{}:
	default:
	}
}

// judgeTunnels ends the tunnels, of clients and to backends, whose peer's certificates are not good any more, whenever that may have
// changed, until the context ends.
func (p *parts) judgeTunnels(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.judge:
		}
		if clients, backends := p.proxy.Recheck(), p.tunnels.Recheck(); clients+backends > 0 {
			p.logger.Warn("tunnels were ended since certificates of their peers are not accepted any more", "clients", clients, "backends", backends)
		}
	}
}
