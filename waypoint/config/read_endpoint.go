package config

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// Names of an endpoint's metadata: those that Envoy and Istio have, and ours, which say who the endpoint must prove to
// be, and what counts as near.
const (
	metadataSocket   = "envoy.transport_socket_match"
	metadataOriginal = "envoy.filters.listener.original_dst"
	metadataIstio    = "istio"
	metadataPeer     = "ambit.io/peer"
	metadataNear     = "ambit.io/near"
	metadataRefused  = "ambit.io/refused"      // of clusters
	metadataRetries  = "ambit.io/retry-budget" // of clusters
)

// All returns all endpoints, in order.
func (e *Endpoints) All() iter.Seq[*Endpoint] {
	return func(yield func(*Endpoint) bool) {
		for _, p := range e.Priorities {
			for _, l := range p.Localities {
				for _, one := range l.Endpoints {
					if !yield(one) {
						return
					}
				}
			}
		}
	}
}

// equal tells whether both have the same endpoints, by pointer, in the same places.
func (e *Endpoints) equal(o *Endpoints) bool {
	return slices.EqualFunc(e.Priorities, o.Priorities, func(a, b Priority) bool {
		return slices.EqualFunc(a.Localities, b.Localities, func(a, b Locality) bool {
			return a.Region == b.Region && a.Zone == b.Zone && a.SubZone == b.SubZone && a.Weight == b.Weight &&
				slices.Equal(a.Endpoints, b.Endpoints)
		})
	})
}

// where is the endpoint's address, or its name, with the port.
func (e *Endpoint) where() string {
	if e.Host != "" {
		return fmt.Sprintf("%s:%d", e.Host, e.Address.Port())
	}
	return e.Address.String()
}

func (d decoder) endpoint(lb *endpointv3.LbEndpoint, at *strict.Path) Endpoint {
	meta := lb.GetMetadata().GetFilterMetadata()
	out := Endpoint{
		HBONE:    tunnelled(meta[metadataSocket].GetFields()),
		Weight:   d.bounded(lb.GetLoadBalancingWeight(), at.Field("load_balancing_weight"), 1, 1<<31),
		Workload: workloadOf(meta[metadataIstio].GetFields()["workload"].GetStringValue()),
		Node:     meta[metadataNear].GetFields()["node"].GetStringValue(),
	}
	switch lb.GetHealthStatus() {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
	case corev3.HealthStatus_DEGRADED:
		out.Health = Degraded
	case corev3.HealthStatus_DRAINING:
		out.Health = Draining
	default: // UNHEALTHY, TIMEOUT, and what is new: it takes nothing
		out.Health = Unhealthy
	}
	addr := lb.GetEndpoint().GetAddress()
	inside := addr.GetEnvoyInternalAddress()
	switch at := at.Field("endpoint").Field("address"); {
	case inside == nil && out.HBONE:
		d.add(at.Field("envoy_internal_address"), `required for an endpoint of {tunnel: "h2"}`)
		return out
	case inside == nil && d.hosts && isName(addr.GetSocketAddress().GetAddress()):
		out.Host = strings.ToLower(strings.TrimSuffix(addr.GetSocketAddress().GetAddress(), "."))
		out.Address = netip.AddrPortFrom(netip.Addr{}, d.port(addr, at))
		return out
	case inside == nil:
		out.Address = d.address(addr, at)
		return out
	case !out.HBONE:
		d.add(at.Field("envoy_internal_address"), `only for an endpoint whose metadata %s is {tunnel: "h2"}`, metadataSocket)
		return out
	case inside.GetServerListenerName() != listenerOriginate:
		d.add(at.Field("envoy_internal_address").Field("server_listener_name"), "must be %s, not %q", listenerOriginate, inside.GetServerListenerName())
	}
	of := at.Field("metadata").Field("filter_metadata")
	local := meta[metadataOriginal].GetFields()["local"].GetStringValue()
	var err error
	if out.Address, err = netip.ParseAddrPort(local); err != nil || out.Address.Addr().Zone() != "" || out.Address.Port() == 0 {
		d.add(of.Key(metadataOriginal).Key("local"), "the address and port of the endpoint, not %q", local)
	}
	out.Address = netip.AddrPortFrom(out.Address.Addr().Unmap(), out.Address.Port())
	peer := meta[metadataPeer].GetFields()["identity"].GetStringValue()
	if out.Identity, err = identity.Parse(peer); err != nil {
		d.add(of.Key(metadataPeer).Key("identity"), "the identity that the tunnel must end at is required, not %q", peer)
	}
	return out
}

// workloadOf reads Istio's "name;namespace;canonical name;revision;cluster".
func workloadOf(s string) Workload {
	f := strings.Split(s, ";")
	f = append(f, "", "", "", "", "")
	return Workload{Name: f[0], Namespace: f[1], Canonical: f[2], Revision: f[3], Cluster: f[4]}
}

// isName tells whether text is a DNS name rather than an IP address.
func isName(text string) bool {
	_, err := netip.ParseAddr(text)
	_, ok := dns.IsDomainName(text)
	return err != nil && ok && text != ""
}
