package config

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// Names of the chains, and of the cluster, that serve workloads' own addresses, as Istio gives them.
const (
	chainDirectHTTP = "direct-http"
	chainDirectTCP  = "direct-tcp"
	clusterDirect   = "encap" // where they lead
)

// Direct is a workload whose own addresses the waypoint serves. It is immutable.
type Direct struct {
	Addresses []netip.Addr
	// HBONE: it is reached by a tunnel to Identity, and never in another way. Otherwise in plain.
	HBONE    bool
	Identity identity.Identity
	Workload Workload
	// HTTP are the ports on which it speaks that, as the services have it of which it is an endpoint, sorted. Any other port carries
	// bytes.
	HTTP []uint16
}

// SpeaksHTTP tells whether it speaks HTTP on a port.
func (w *Direct) SpeaksHTTP(port uint16) bool {
	_, ok := slices.BinarySearch(w.HTTP, port)
	return ok
}

// Direct returns the workload that is served at an address of its own; nil if none is.
func (s *Snapshot) Direct(addr netip.Addr) *Direct {
	if s.direct == nil {
		return nil
	}
	return (*s.direct)[addr.Unmap()]
}

// ChangedDirect returns the workloads of an older snapshot that are not in this one as they were, in no order. A nil snapshot is an
// empty one.
func (s *Snapshot) ChangedDirect(old *Snapshot) iter.Seq[*Direct] {
	return func(yield func(*Direct) bool) {
		if old == nil || old.direct == nil || old.direct == s.direct {
			return
		}
		seen := map[*Direct]bool{}
		for addr, w := range *old.direct {
			if s.Direct(addr) != w && !seen[w] {
				if seen[w] = true; !yield(w) {
					return
				}
			}
		}
	}
}

// ApplyWorkloads takes workloads (istio.workload.Address), as a handler of an xDS client does. Those whose own addresses the waypoint
// is to serve say that they have a waypoint; others, and services, say nothing to it.
func (s *Store) ApplyWorkloads(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	return s.apply(func(now Snapshot) (*Snapshot, []xds.Rejection) {
		var rejections []xds.Rejection
		changed := false
		for _, name := range removed {
			changed = changed || s.workloads[name] != nil
			delete(s.workloads, name)
		}
		for _, r := range upserts {
			w, err := readDirect(r)
			switch {
			case err != nil:
				rejections = append(rejections, xds.Rejection{Name: r.GetName(), Err: err})
			case reflect.DeepEqual(w, s.workloads[r.GetName()]):
			case w == nil:
				delete(s.workloads, r.GetName())
				changed = true
			default:
				s.workloads[r.GetName()] = w
				changed = true
			}
		}
		if !changed {
			return nil, rejections
		}
		next := make(map[netip.Addr]*Direct, len(s.workloads))
		for _, name := range slices.Sorted(maps.Keys(s.workloads)) {
			for _, addr := range s.workloads[name].Addresses {
				if next[addr] == nil {
					next[addr] = s.workloads[name]
				}
			}
		}
		now.direct = &next
		return &now, rejections
	})
}

// readDirect reads a workload; nil for what is none whose addresses are to be served.
func readDirect(r *discoveryv3.Resource) (*Direct, error) {
	if err := check(r); err != nil {
		return nil, err
	}
	var a workload.Address
	if err := r.GetResource().UnmarshalTo(&a); err != nil {
		return nil, fmt.Errorf("decode workload: %w", err)
	}
	w := a.GetWorkload()
	if w.GetWaypoint() == nil || w.GetNetworkMode() == workload.NetworkMode_HOST_NETWORK {
		return nil, nil
	}
	out := &Direct{Workload: Workload{
		Name: w.WorkloadName, Namespace: w.Namespace, Canonical: w.CanonicalName, Revision: w.CanonicalRevision,
		Cluster: cmp.Or(w.ClusterId, api.DefaultClusterID),
	}}
	switch w.TunnelProtocol {
	case workload.TunnelProtocol_NONE:
	case workload.TunnelProtocol_HBONE:
		if w.Namespace == "" {
			return nil, errors.New("namespace: required of a workload that is reached by HBONE: it would have no identity")
		}
		out.HBONE, out.Identity = true, identity.Identity{
			TrustDomain: cmp.Or(w.TrustDomain, api.DefaultTrustDomain), Namespace: w.Namespace, ServiceAccount: cmp.Or(w.ServiceAccount, "default"),
		}
	default:
		return nil, fmt.Errorf("tunnel_protocol: %v is not supported", w.TunnelProtocol)
	}
	for i, raw := range w.Addresses {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			return nil, fmt.Errorf("addresses[%d]: %d bytes are no IP address", i, len(raw))
		}
		if addr = addr.Unmap(); addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			return nil, fmt.Errorf("addresses[%d]: %v would be this waypoint itself, or its node", i, addr)
		}
		out.Addresses = append(out.Addresses, addr)
	}
	if len(out.Addresses) == 0 {
		return nil, nil
	}
	out.HTTP = httpPorts(w)
	return out, nil
}

// httpPorts are the ports of a workload that speak HTTP: those that a service says so of, and none says otherwise.
func httpPorts(w *workload.Workload) []uint16 {
	speaks := map[uint16]bool{}
	for _, list := range w.GetServices() {
		for _, p := range list.GetPorts() {
			port := uint16(p.GetTargetPort())
			switch p.GetAppProtocol() {
			case workload.AppProtocol_HTTP11, workload.AppProtocol_HTTP2, workload.AppProtocol_GRPC:
				if other, known := speaks[port]; !known || other {
					speaks[port] = true
				}
			case workload.AppProtocol_TCP, workload.AppProtocol_TLS:
				speaks[port] = false
			}
		}
	}
	maps.DeleteFunc(speaks, func(_ uint16, http bool) bool { return !http })
	return slices.Sorted(maps.Keys(speaks))
}
