package l7

import (
	"math"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// applyPolicy makes a cluster what the policy of a DestinationRule says; it may be nil.
func applyPolicy(c *clusterv3.Cluster, p *cluster.TrafficPolicy) {
	if p == nil {
		return
	}
	switch p.Balancer {
	case cluster.BalanceRoundRobin:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case cluster.BalanceRandom:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case cluster.BalanceRing:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		if n := p.Hash.Size; n > 0 {
			c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(n)}}
		}
	case cluster.BalanceMaglev:
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		if n := p.Hash.Size; n > 0 {
			c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(n)}}
		}
	}
	if d := p.Pool.ConnectTimeout; d > 0 {
		c.ConnectTimeout = durationpb.New(d)
	}
	if k := p.Pool.Keepalive; k != nil {
		alive := &corev3.TcpKeepalive{}
		if k.Probes > 0 {
			alive.KeepaliveProbes = wrapperspb.UInt32(k.Probes)
		}
		if n := seconds(k.Time.Seconds()); n > 0 {
			alive.KeepaliveTime = wrapperspb.UInt32(n)
		}
		if n := seconds(k.Interval.Seconds()); n > 0 {
			alive.KeepaliveInterval = wrapperspb.UInt32(n)
		}
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: alive}
	}
	c.CircuitBreakers = breakers(p)
	if o := p.Outliers; o != nil {
		c.OutlierDetection = outliers(o)
		c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: float64(o.MinHealthPercent)}}
	}
}

// hashing is what tells requests apart that go to backends: what the policies of these say, each once.
func hashing(backends []cluster.BackendRef, ix Index) []*routev3.RouteAction_HashPolicy {
	var out []*routev3.RouteAction_HashPolicy
	for _, b := range backends {
		h := ix.Host(b.Ref)
		if h == nil {
			continue
		}
		if p := ix.Rule(h).PolicyOf(b.Port); p != nil && p.Hash != nil {
			one := hashPolicy(p.Hash)
			if !slices.ContainsFunc(out, func(o *routev3.RouteAction_HashPolicy) bool { return proto.Equal(o, one) }) {
				out = append(out, one)
			}
		}
	}
	return out
}

func hashPolicy(h *cluster.ConsistentHash) *routev3.RouteAction_HashPolicy {
	switch {
	case h.Header != "":
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.Header}}}
	case h.Query != "":
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.Query}}}
	case h.Cookie != nil:
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: h.Cookie.Name, Path: h.Cookie.Path}
		if h.Cookie.TTL != nil {
			c.Ttl = durationpb.New(*h.Cookie.TTL)
		}
		for _, a := range h.Cookie.Attributes {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.Name, Value: a.Value})
		}
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}}
	}
	return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
		ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true}}}
}

// seconds rounds up to whole ones.
func seconds(s float64) uint32 { return uint32(min(math.Ceil(s), math.MaxInt32)) }

// breakers bound what goes to a cluster. What is not said is without bound, as in Istio.
func breakers(p *cluster.TrafficPolicy) *clusterv3.CircuitBreakers {
	bound := func(n uint32) *wrapperspb.UInt32Value {
		if n == 0 {
			n = math.MaxUint32
		}
		return wrapperspb.UInt32(n)
	}
	pool := p.Pool
	if pool.MaxConnections == 0 && pool.MaxPending == 0 && pool.MaxRequests == 0 && pool.MaxRetries == 0 && p.Budget == nil {
		return nil
	}
	t := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections: bound(pool.MaxConnections), MaxPendingRequests: bound(pool.MaxPending), MaxRequests: bound(pool.MaxRequests),
		MaxRetries: bound(pool.MaxRetries), TrackRemaining: true,
	}
	if b := p.Budget; b != nil {
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{}
		if b.Percent != nil {
			t.RetryBudget.BudgetPercent = &typev3.Percent{Value: *b.Percent}
		}
		if b.Min > 0 {
			t.RetryBudget.MinRetryConcurrency = wrapperspb.UInt32(b.Min)
		}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

// outliers leave endpoints out that fail: by errors in a row alone, of the kinds that are asked for.
func outliers(o *cluster.OutlierDetection) *clusterv3.OutlierDetection {
	out := &clusterv3.OutlierDetection{EnforcingSuccessRate: wrapperspb.UInt32(0)}
	limit := func(n *uint32, limit, enforce **wrapperspb.UInt32Value) {
		if n == nil {
			return
		}
		*limit, *enforce = wrapperspb.UInt32(*n), wrapperspb.UInt32(100)
		if *n == 0 {
			*enforce = wrapperspb.UInt32(0)
		}
	}
	limit(o.Consecutive5xx, &out.Consecutive_5Xx, &out.EnforcingConsecutive_5Xx)
	limit(o.ConsecutiveGateway, &out.ConsecutiveGatewayFailure, &out.EnforcingConsecutiveGatewayFailure)
	if o.SplitLocal {
		out.SplitExternalLocalOriginErrors = true
		limit(o.ConsecutiveLocal, &out.ConsecutiveLocalOriginFailure, &out.EnforcingConsecutiveLocalOriginFailure)
		out.EnforcingLocalOriginSuccessRate = wrapperspb.UInt32(0)
	}
	if o.Interval > 0 {
		out.Interval = durationpb.New(o.Interval)
	}
	if o.BaseTime > 0 {
		out.BaseEjectionTime = durationpb.New(o.BaseTime)
	}
	if o.MaxPercent > 0 {
		out.MaxEjectionPercent = wrapperspb.UInt32(o.MaxPercent)
	}
	return out
}

// applyHTTP makes HTTP options what the policy says; it may be nil.
func applyHTTP(out *httpv3.HttpProtocolOptions, p *cluster.TrafficPolicy) {
	if p == nil {
		return
	}
	if p.Pool.HTTPIdle > 0 || p.Pool.MaxRequestsPerConnection > 0 {
		out.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{}
	}
	if d := p.Pool.HTTPIdle; d > 0 {
		out.CommonHttpProtocolOptions.IdleTimeout = durationpb.New(d)
	}
	if n := p.Pool.MaxRequestsPerConnection; n > 0 {
		out.CommonHttpProtocolOptions.MaxRequestsPerConnection = wrapperspb.UInt32(n)
	}
	if n := p.Pool.MaxStreams; n > 0 {
		streams := wrapperspb.UInt32(n)
		if o := out.GetExplicitHttpConfig().GetHttp2ProtocolOptions(); o != nil {
			o.MaxConcurrentStreams = streams
		}
		if o := out.GetUseDownstreamProtocolConfig().GetHttp2ProtocolOptions(); o != nil {
			o.MaxConcurrentStreams = streams
		}
	}
}

// applyTCP bounds connections that are no HTTP by what the policy says; it may be nil.
func applyTCP(out *tcpv3.TcpProxy, p *cluster.TrafficPolicy) {
	if p == nil {
		return
	}
	if p.Hash != nil && p.Hash.SourceIP {
		out.HashPolicy = []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
	}
	if d := p.Pool.TCPIdle; d > 0 {
		out.IdleTimeout = durationpb.New(d)
	}
	if d := p.Pool.MaxDuration; d > 0 {
		out.MaxDownstreamConnectionDuration = durationpb.New(d)
	}
}
