package l7

import (
	"net/netip"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// What a waypoint that is for workloads has beside its services: a chain for HTTP, whose table of routes has its name, and one for all
// else. No matcher leads there: which workloads it is for it is told one by one (Workload), so that a pod that comes or goes is not
// news of the whole listener. Istio's names.
const (
	// ClusterDirect leads to where the client connected to.
	ClusterDirect   = "encap"
	chainDirectHTTP = "direct-http"
	chainDirectTCP  = "direct-tcp"
)

// DirectChains are the chains of connections to workloads' own addresses. The policies are those of the waypoint: those of services are
// not asked, and routes neither, since both speak of what is sent to services. They depend on the services of those whom the policies want
// to be asked.
func DirectChains(policies Policies, ix Index) []*listenerv3.FilterChain {
	return []*listenerv3.FilterChain{
		httpChain(chainDirectHTTP, routeFilters{}, ix, policies),
		policies.before(chain(chainDirectTCP, filterTCP, policies.Telemetry.logged(tcpProxy(chainDirectTCP, ClusterDirect)))),
	}
}

// DirectRoutes is the table of the chain for HTTP.
func DirectRoutes() *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: chainDirectHTTP, ValidateClusters: wrapperspb.Bool(false),
		VirtualHosts: []*routev3.VirtualHost{{Name: chainDirectHTTP, Domains: []string{"*"}, Routes: []*routev3.Route{{
			Name:   "default",
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: forward(&cluster.RouteRule{}, &routev3.RouteAction_Cluster{Cluster: ClusterDirect})},
		}}}},
	}
}

// DirectCluster is where both chains lead.
func DirectCluster() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 ClusterDirect,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       durationpb.New(connectTime),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			optionsHTTP: config(protocolOptions(http1)),
		},
	}
}

// Workload is what a waypoint is told of a workload that is bound to it: what node proxies are told, with the waypoint in it, also while
// node proxies are not told to go there (yet, or any more). Nil for one that the waypoint cannot serve: it shares its addresses with its
// node, is in another network, or has addresses only that would mean the waypoint itself.
func Workload(m translate.Mesh, w *workload.Workload, at *translate.Waypoint) *workload.Workload {
	if w.NetworkMode == workload.NetworkMode_HOST_NETWORK || w.Network != m.Network {
		return nil
	}
	out := proto.Clone(w).(*workload.Workload)
	out.Addresses = slices.DeleteFunc(out.Addresses, func(raw []byte) bool {
		addr, ok := netip.AddrFromSlice(raw)
		return !ok || special(addr)
	})
	if len(out.Addresses) == 0 {
		return nil
	}
	out.Waypoint = at.Address(m)
	return out
}
