package app

import (
	"net/netip"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
)

// ownResolvers is where the proxy's own resolvers are.
const ownResolvers = "/etc/resolv.conf"

// names makes what answers pods' name queries, nil if that is not wanted.
func (p *parts) names(registry prometheus.Registerer) *dns.Node {
	if !p.cfg.DNS {
		return nil
	}
	return dns.NewNode(dns.NodeConfig{
		Directory: p.directory, Network: p.cfg.Network, ClusterID: p.cfg.ClusterID, ClusterDomain: p.cfg.ClusterDomain,
		Fallback: p.fallbackResolvers(), Metrics: telemetry.NewDNS(registry), Logger: p.target("dns"),
	})
}

// fallbackResolvers are the proxy's own, which are the cluster's where its pod says nothing else.
func (p *parts) fallbackResolvers() []netip.AddrPort {
	f, err := os.Open(ownResolvers)
	if err != nil {
		p.logger.Warn("own resolvers are not known; they would be asked for pods of which none are known", "error", err)
		return nil
	}
	defer f.Close()
	s, err := dns.ParseSettings(f)
	if err != nil {
		p.logger.Warn("read own resolvers", "path", ownResolvers, "error", err)
	}
	return s.Servers
}
