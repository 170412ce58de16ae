package proxy

import (
	"net/netip"
	"net/url"
	"strings"
	"unique"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// sourceOf names the client: its workload as its own proxy says in baggage (W3C Baggage, with Istio's keys), its principal as its
// certificate proves.
func sourceOf(in *hbone.Incoming) telemetry.Party {
	p := telemetry.Party{Principal: in.Peer().String(), Namespace: in.Peer().Namespace}
	for item := range strings.SplitSeq(in.Header("baggage"), ",") {
		item, _, _ = strings.Cut(item, ";") // properties
		key, value, _ := strings.Cut(strings.TrimSpace(item), "=")
		if strings.Contains(value, "%") {
			decoded, err := url.PathUnescape(value)
			if err != nil {
				continue
			}
			value = decoded
		}
		value = label(value)
		switch key {
		case "k8s.cluster.name":
			p.Cluster = value
		case "k8s.deployment.name", "k8s.pod.name", "k8s.job.name", "k8s.cronjob.name":
			p.Workload = value
		case "service.name":
			p.App, p.CanonicalName = value, value
		case "service.version":
			p.Version, p.CanonicalRevision = value, value
		}
	}
	return p
}

// service names the service that the client connected to, whose chain is called inbound-vip|<port>|<protocol>|<host>, with more after it for one of several, and
// whose own cluster outbound|<port>||<host>.
func (c *connection) service() unique.Handle[telemetry.ServiceName] {
	parts := strings.Split(c.chain.Name, "|")
	if len(parts) < 4 {
		return unique.Make(telemetry.ServiceName{})
	}
	if cluster := c.proxy.cfg.Clusters.Lookup("outbound|" + parts[1] + "||" + parts[3]); cluster != nil {
		return cluster.Service()
	}
	return unique.Make(telemetry.ServiceName{Host: parts[3]})
}

// maxLabel bounds what a client says of itself, in bytes: the longest name that Kubernetes allows.
const maxLabel = 253

// label makes a value that a client chose one that metrics can have: whoever has a certificate of the mesh may send anything, and
// one value that is no UTF-8 would fail every scrape.
func label(s string) string {
	if len(s) > maxLabel {
		s = s[:maxLabel]
	}
	return strings.ToValidUTF8(s, "")
}

// clientAddr is the client's address as its proxy says in forwarded (RFC 7239); that of the proxy if it does not.
func clientAddr(in *hbone.Incoming) netip.AddrPort {
	for part := range strings.SplitSeq(in.Header("forwarded"), ";") {
		value, ok := strings.CutPrefix(strings.TrimSpace(part), "for=")
		if !ok {
			continue
		}
		value = strings.Trim(value, `"`)
		if ap, err := netip.ParseAddrPort(value); err == nil {
			return ap
		}
		if a, err := netip.ParseAddr(strings.Trim(value, "[]")); err == nil {
			return netip.AddrPortFrom(a, 0)
		}
	}
	return in.RemoteAddr()
}
