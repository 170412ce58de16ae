package l7

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// connectTime bounds how long a connection to an endpoint may take. Istio's.
const connectTime = 10 * time.Second

// Names of transport sockets and settings, Envoy's own.
const (
	socketInternal = "envoy.transport_sockets.internal_upstream"
	socketRaw      = "envoy.transport_sockets.raw_buffer"
	socketTLS      = "envoy.transport_sockets.tls"
	optionsHTTP    = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

// Names of metadata. Envoy's, Istio's and ours.
const (
	metadataTunnel   = "tunnel" // of metadataSocket: the endpoint is reached by a tunnel of this protocol
	metadataSocket   = "envoy.transport_socket_match"
	metadataDst      = "envoy.filters.listener.original_dst"
	metadataIstio    = "istio"
	metadataPeer     = "ambit.io/peer" // identity: the SPIFFE URI that the endpoint must prove
	metadataNear     = "ambit.io/near" // of a cluster, prefer: what its endpoints should share with who asks; of an endpoint: its node
	tunnelOverHTTP2  = "h2"
	metadataServices = "services"
	metadataRetries  = "ambit.io/retry-budget" // of a cluster: min_interval, within which so many retries are always allowed
	metadataRefused  = "ambit.io/refused"      // of a cluster: reason, in words, why nothing may be sent there
)

// Clusters translates one port of a host, with the rule that is in force for it, nil if there is none. It has none for a port that
// waypoints do not send to, and two for one that is spoken to by TLS: the second is for clients that speak TLS themselves. The workloads
// are as in LoadAssignment: host names among them are in the clusters, and looked up by the waypoint.
func Clusters(m translate.Mesh, h *Host, port cluster.ServicePort, rule *cluster.DestinationRule, workloads []*workload.Workload) []*clusterv3.Cluster {
	if h.Unfit != "" {
		return nil
	}
	o := h.TLS[port.Port]
	out := []*clusterv3.Cluster{makeCluster(h, port, ClusterName(h, port.Port), o, rule)}
	if o != nil {
		out = append(out, makeCluster(h, port, asIsCluster(h, port.Port), nil, rule))
	}
	switch {
	case h.Resolution == cluster.ResolutionNone:
		for _, c := range out {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
			c.LbPolicy, c.LbConfig, c.EdsClusterConfig = clusterv3.Cluster_CLUSTER_PROVIDED, nil, nil
		}
	case named(h, workloads):
		all := LoadAssignment(m, h, port, workloads)
		for _, c := range out {
			lookUp(c, h, all)
		}
	}
	if o != nil && o.Fault != "" {
		out[0].Metadata.FilterMetadata[metadataRefused] = fields("reason", o.Fault)
		if out[0].LoadAssignment != nil {
			out[0].LoadAssignment.Endpoints = nil
		}
	}
	return out
}

// lookUpAgain is how soon Envoy looks names up again, as Istio has it. Waypoints of ours go by what the answers say.
const lookUpAgain = time.Minute

// lookUp makes a cluster one whose endpoints are host names.
func lookUp(c *clusterv3.Cluster, h *Host, all *endpointv3.ClusterLoadAssignment) {
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	if h.OneAddress && len(all.Endpoints) == 1 && len(all.Endpoints[0].LbEndpoints) == 1 { // Envoy's has no more than one
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS}
	}
	c.EdsClusterConfig = nil
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: c.Name, Endpoints: all.Endpoints}
	c.DnsLookupFamily = clusterv3.Cluster_ALL
	//lint:ignore SA1019 what is newer is a cluster type of its own, which proxies of before do not know
	c.DnsRefreshRate = durationpb.New(lookUpAgain)
}

// makeCluster makes a cluster of a port, whose endpoints are spoken to by TLS unless o is nil.
func makeCluster(h *Host, port cluster.ServicePort, name string, o *Origination, rule *cluster.DestinationRule) *clusterv3.Cluster {
	policy := rule.PolicyOf(port.Port)
	options := protocolOptions(spokenTo(port, policy))
	applyHTTP(options, policy)
	out := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name},
		LbPolicy:             clusterv3.Cluster_LEAST_REQUEST,
		ConnectTimeout:       durationpb.New(connectTime),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			optionsHTTP: config(options),
		},
		TransportSocketMatches: []*clusterv3.Cluster_TransportSocketMatch{
			{Name: "hbone", Match: fields(metadataTunnel, tunnelOverHTTP2), TransportSocket: internalSocket(endpointSocket(o), metadataDst)},
			{Name: "plain", Match: &structpb.Struct{}, TransportSocket: endpointSocket(o)},
		},
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			metadataIstio: {Fields: map[string]*structpb.Value{metadataServices: structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
				structpb.NewStructValue(fields("host", h.Hostname, "name", h.Ref.Key.Name, "namespace", h.Ref.Key.Namespace)),
			}})}},
		}},
	}
	if near := preferred(h.Balancing); len(near) > 0 {
		out.Metadata.FilterMetadata[metadataNear] = &structpb.Struct{Fields: map[string]*structpb.Value{
			"prefer": structpb.NewListValue(&structpb.ListValue{Values: near}),
		}}
	}
	applyPolicy(out, policy)
	applyRetries(out, h.Retries)
	return out
}

// preferred is what endpoints should have in common with who sends to them, the most important first. Where node proxies keep to it, come
// what may, a waypoint only prefers it: what the client has in common with the endpoint it cannot know, and to fail would help nobody.
func preferred(b *workload.LoadBalancing) []*structpb.Value {
	if m := b.GetMode(); m != workload.LoadBalancing_STRICT && m != workload.LoadBalancing_FAILOVER {
		return nil
	}
	var out []*structpb.Value
	for _, scope := range b.GetRoutingPreference() {
		switch scope {
		case workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE, workload.LoadBalancing_SUBZONE, workload.LoadBalancing_NODE:
			out = append(out, structpb.NewStringValue(scope.String()))
		}
	}
	return out
}

// spokenTo is what endpoints are spoken to in.
func spokenTo(port cluster.ServicePort, policy *cluster.TrafficPolicy) protocol {
	p := protocolOf(port)
	switch {
	case policy == nil || p == opaque:
	case policy.Pool.ClientProtocol:
		return http1
	case policy.Pool.UpgradeHTTP2:
		return http2
	}
	return p
}

// protocolOptions say what is spoken to endpoints: HTTP/2 where they are known to speak it, else what the client speaks.
func protocolOptions(p protocol) *httpv3.HttpProtocolOptions {
	if p == http2 {
		return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
			}}}
	}
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		}}}
}

func socket(name string, settings proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: name, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config(settings)}}
}

// internalSocket leads to an internal listener, which is told these of the endpoint's metadata; inside is what is spoken through it.
func internalSocket(inside *corev3.TransportSocket, pass ...string) *corev3.TransportSocket {
	s := &internalv3.InternalUpstreamTransport{TransportSocket: inside}
	for _, name := range pass {
		s.PassthroughMetadata = append(s.PassthroughMetadata, &internalv3.InternalUpstreamTransport_MetadataValueSource{
			Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Host_{Host: &metadatav3.MetadataKind_Host{}}}, Name: name})
	}
	return socket(socketInternal, s)
}

// fields makes a struct of names and values.
func fields(pairs ...string) *structpb.Struct {
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		out.Fields[pairs[i]] = structpb.NewStringValue(pairs[i+1])
	}
	return out
}
