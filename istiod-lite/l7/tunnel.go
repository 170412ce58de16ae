package l7

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statevaluev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// Names of secrets: the waypoint's own certificate, and whom it trusts.
const (
	secretOwn   = "default"
	secretRoots = "ROOTCA"
)

// Times and bounds of tunnels, Istio's but for the number of streams: a node proxy carries all connections of a pod in one.
const (
	tunnelPing    = 10 * time.Second
	tunnelPong    = 20 * time.Second
	tunnelStreams = 1000
	tunnelCleanup = time.Minute
)

// Static is what all waypoints of a mesh have in common: the listeners that take tunnels and that make them, and the clusters that
// lead from one stage to the next.
func Static(m translate.Mesh) ([]*listenerv3.Listener, []*clusterv3.Cluster) {
	return []*listenerv3.Listener{terminate(), originate()}, []*clusterv3.Cluster{toMain(), toTunnels(m)}
}

// terminate takes tunnels: mutual TLS, and streams that ask for the address of a service.
func terminate() *listenerv3.Listener {
	const any4, any6 = "0.0.0.0", "::"
	address := func(ip string) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: api.PortHBONE}}}}
	}
	c := chain("default", filterHCM, &hcmv3.HttpConnectionManager{
		StatPrefix: ListenerTerminate,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: ListenerTerminate, ValidateClusters: wrapperspb.Bool(false),
			VirtualHosts: []*routev3.VirtualHost{{Name: ListenerTerminate, Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: ListenerMain},
					Timeout:          durationpb.New(0),
					UpgradeConfigs: []*routev3.RouteAction_UpgradeConfig{{
						UpgradeType: "CONNECT", ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{}}},
				}},
			}}}},
		}},
		HttpFilters:    []*hcmv3.HttpFilter{httpFilter("connect_authority", passOn()), httpFilter(filterRouter, &routerv3.Router{SuppressEnvoyHeaders: true})},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT"}},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			AllowConnect: true, MaxConcurrentStreams: wrapperspb.UInt32(tunnelStreams),
			ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(tunnelPing), Timeout: durationpb.New(tunnelPong)},
		},
		StreamIdleTimeout:          durationpb.New(0),
		UseRemoteAddress:           wrapperspb.Bool(false),
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
	})
	c.TransportSocket = socket(socketTLS, &tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true), CommonTlsContext: commonTLS(nil),
	})
	return &listenerv3.Listener{
		Name: ListenerTerminate, Address: address(any6), FilterChains: []*listenerv3.FilterChain{c},
		AdditionalAddresses: []*listenerv3.AdditionalAddress{{Address: address(any4)}},
	}
}

// passOn hands on, to the connection inside a tunnel, where the client wants to and who it is.
func passOn() *statev3.Config {
	value := func(key, factory, format string) *statevaluev3.FilterStateValue {
		return &statevaluev3.FilterStateValue{
			Key: &statevaluev3.FilterStateValue_ObjectKey{ObjectKey: key}, FactoryKey: factory,
			Value: &statevaluev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: format}}}}},
			SharedWithUpstream: statevaluev3.FilterStateValue_ONCE,
		}
	}
	return &statev3.Config{OnRequestHeaders: []*statevaluev3.FilterStateValue{
		value(metadataDst+".local_ip", "", "%REQ(:AUTHORITY)%"),
		value(metadataDst+".remote_ip", "", "%DOWNSTREAM_REMOTE_ADDRESS%"),
		value(FilterStatePeer, "envoy.string", "%DOWNSTREAM_PEER_URI_SAN%"),
	}}
}

// originate puts a connection into a tunnel to the endpoint that was chosen.
func originate() *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:              ListenerOriginate,
		ListenerSpecifier: &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
		ListenerFilters:   []*listenerv3.ListenerFilter{originalDst()},
		FilterChains: []*listenerv3.FilterChain{chain("default", filterTCP, &tcpv3.TcpProxy{
			StatPrefix: ListenerOriginate, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: ListenerOriginate},
			TunnelingConfig: &tcpv3.TcpProxy_TunnelingConfig{Hostname: "%DOWNSTREAM_LOCAL_ADDRESS%"},
			IdleTimeout:     durationpb.New(idleTime),
		})},
	}
}

// originalDst takes the destination from what the previous stage handed on.
func originalDst() *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name:       metadataDst,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: config(&originaldstv3.OriginalDst{})},
	}
}

// toMain leads from tunnels to ListenerMain.
func toMain() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 ListenerMain,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: ListenerMain, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: internalAddress(ListenerMain, "")}}}},
		}}},
		TransportSocket: internalSocket(endpointSocket(nil)),
	}
}

// toTunnels leads from ListenerOriginate to the node proxies of endpoints. Envoy checks that they are of the mesh; waypoints of ours
// check that they are who the endpoint's metadata says.
func toTunnels(m translate.Mesh) *clusterv3.Cluster {
	trusted := []*tlsv3.SubjectAltNameMatcher{}
	for _, domain := range append([]string{m.TrustDomain}, m.TrustDomainAliases...) {
		trusted = append(trusted, &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://" + domain + "/"}}})
	}
	return &clusterv3.Cluster{
		Name:                 ListenerOriginate,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		LbConfig: &clusterv3.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &clusterv3.Cluster_OriginalDstLbConfig{
			UpstreamPortOverride: wrapperspb.UInt32(api.PortHBONE)}},
		CleanupInterval: durationpb.New(tunnelCleanup),
		ConnectTimeout:  durationpb.New(connectTime),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{optionsHTTP: config(&httpv3.HttpProtocolOptions{
			CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(idleTime)},
			UpstreamProtocolOptions:   protocolOptions(http2).UpstreamProtocolOptions,
		})},
		TransportSocket: socket(socketTLS, &tlsv3.UpstreamTlsContext{CommonTlsContext: commonTLS(trusted)}),
	}
}

// commonTLS is the TLS of tunnels: 1.3, HTTP/2, the waypoint's own certificate. Peers are whoever the mesh's authority vouches
// for, or those of them that trusted matches.
func commonTLS(trusted []*tlsv3.SubjectAltNameMatcher) *tlsv3.CommonTlsContext {
	secret := func(name string) *tlsv3.SdsSecretConfig { return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()} }
	return &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secret(secretOwn)},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: trusted},
			ValidationContextSdsSecretConfig: secret(secretRoots),
		}},
		AlpnProtocols: []string{"h2"},
	}
}
