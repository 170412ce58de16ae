package config

import (
	"math"
	"math/big"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// httpOptions is the key of a cluster's HTTP options in typed_extension_protocol_options.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

const (
	defaultConnect    = 5 * time.Second
	defaultChoices    = 2
	defaultRing       = 1024
	defaultMaglev     = 65537
	defaultLimit      = 1024
	defaultRetryLimit = 3
	defaultBudget     = 20 // per cent
	defaultBudgetMin  = 3
	// defaultBudgetMinInterval is the Gateway API's, and so is the bound of both intervals.
	defaultBudgetMinInterval = time.Second
	maxBudgetInterval        = time.Hour
)

// clusterRead is what a Cluster resource says.
type clusterRead struct {
	// settings are nil for the clusters that lead to listeners (main_internal, connect_originate): nothing is sent to them.
	settings *Settings
	// inline are the endpoints of a cluster that has them in it; eds: they come on their own.
	inline *Endpoints
	eds    bool
}

func readCluster(name string, a *anypb.Any) (clusterRead, error) {
	var out clusterRead
	table := supported
	if name == listenerOriginate {
		table = tunnels
	}
	discovery := Given
	err := decode(a, table, &clusterv3.Cluster{}, func(d decoder, c *clusterv3.Cluster) {
		d.named("name", c.GetName(), name)
		switch t := c.GetClusterDiscoveryType().(type) {
		case *clusterv3.Cluster_Type:
			switch t.Type {
			case clusterv3.Cluster_STATIC:
				out.inline = d.static(c, root.Field("load_assignment"))
			case clusterv3.Cluster_EDS:
				out.eds = true
				d.eds(c, root.Field("eds_cluster_config"))
			case clusterv3.Cluster_STRICT_DNS, clusterv3.Cluster_LOGICAL_DNS:
				d.hosts = true
				out.inline = d.endpoints(c.GetLoadAssignment(), nil, root.Field("load_assignment"))
				discovery = EachAddress
				if t.Type == clusterv3.Cluster_LOGICAL_DNS {
					discovery = OneAddress
				}
				if f := c.GetDnsLookupFamily(); f != clusterv3.Cluster_ALL {
					d.add(root.Field("dns_lookup_family"), "%v is not supported: ALL, of which those are used that the proxy can reach", f)
				}
			case clusterv3.Cluster_ORIGINAL_DST:
				if name == listenerOriginate {
					d.originateCluster(c)
					return
				}
				out.inline, discovery = &Endpoints{}, Asked
				if name == clusterDirect {
					discovery = Bound
				}
				if c.GetLbPolicy() != clusterv3.Cluster_CLUSTER_PROVIDED {
					d.add(root.Field("lb_policy"), "must be CLUSTER_PROVIDED, not %v", c.GetLbPolicy())
				}
				if c.GetOriginalDstLbConfig() != nil {
					d.add(root.Field("original_dst_lb_config"), "only in %s: the address that the client asked for is the endpoint", listenerOriginate)
				}
			default:
				d.add(root.Field("type"), "%v is not supported: EDS, STATIC, STRICT_DNS, LOGICAL_DNS or ORIGINAL_DST", t.Type)
			}
		default:
			d.add(root.Field("type"), "required")
		}
		if out.inline == nil && !out.eds {
			return // it leads to a listener
		}
		out.settings = d.settings(c)
		out.settings.Discovery = discovery
	})
	return out, err
}

func (d decoder) eds(c *clusterv3.Cluster, at *strict.Path) {
	d.ads(c.GetEdsClusterConfig().GetEdsConfig(), at.Field("eds_config"))
	if s := c.GetEdsClusterConfig().GetServiceName(); s != "" && s != c.GetName() {
		d.add(at.Field("service_name"), "must be the cluster's name, not %q", s)
	}
	if c.GetLoadAssignment() != nil {
		d.add(root.Field("load_assignment"), "not in a cluster of type EDS")
	}
}

// static reads the endpoints that are in a cluster; nil if they are a listener of the proxy itself.
func (d decoder) static(c *clusterv3.Cluster, at *strict.Path) *Endpoints {
	for _, l := range c.GetLoadAssignment().GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			if n := e.GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetServerListenerName(); n == listenerInbound {
				return nil
			}
		}
	}
	return d.endpoints(c.GetLoadAssignment(), nil, at)
}

// originateCluster checks the cluster by which connect_originate opens tunnels. Package hbone is what it describes, and it is
// stricter: it pins the identity of each endpoint.
func (d decoder) originateCluster(c *clusterv3.Cluster) {
	var m tlsv3.UpstreamTlsContext
	at := root.Field("transport_socket").Field("typed_config")
	if d.unpack(c.GetTransportSocket().GetTypedConfig(), &m, at) {
		d.commonTLS(m.GetCommonTlsContext(), at.Field("common_tls_context"))
	}
}

func (d decoder) settings(c *clusterv3.Cluster) *Settings {
	out := &Settings{
		Service:        serviceOf(c.GetMetadata()),
		ConnectTimeout: d.duration(c.GetConnectTimeout(), root.Field("connect_timeout"), defaultConnect),
		Choices:        defaultChoices,
	}
	if out.ConnectTimeout == 0 {
		d.add(root.Field("connect_timeout"), "must not be 0")
	}
	switch c.GetLbPolicy() {
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		if c.GetType() != clusterv3.Cluster_ORIGINAL_DST {
			d.add(root.Field("lb_policy"), "CLUSTER_PROVIDED is not supported but for type ORIGINAL_DST")
		}
	case clusterv3.Cluster_LEAST_REQUEST:
		if l := c.GetLeastRequestLbConfig(); l != nil {
			out.Choices = d.bounded(l.GetChoiceCount(), root.Field("least_request_lb_config").Field("choice_count"), defaultChoices, 100)
		}
	case clusterv3.Cluster_ROUND_ROBIN:
		out.Balancer = RoundRobin
	case clusterv3.Cluster_RANDOM:
		out.Balancer = Random
	case clusterv3.Cluster_RING_HASH:
		out.Balancer, out.TableSize = RingHash, d.ring(c.GetRingHashLbConfig(), root.Field("ring_hash_lb_config"))
	case clusterv3.Cluster_MAGLEV:
		out.Balancer, out.TableSize = Maglev, defaultMaglev
		if n := c.GetMaglevLbConfig().GetTableSize(); n != nil {
			if out.TableSize = n.GetValue(); out.TableSize > MaxMaglev || !big.NewInt(int64(out.TableSize)).ProbablyPrime(0) {
				d.add(root.Field("maglev_lb_config").Field("table_size"), "a prime of at most %d, not %d", MaxMaglev, n.GetValue())
			}
		}
	default:
		d.add(root.Field("lb_policy"), "%v is not supported: LEAST_REQUEST, ROUND_ROBIN, RANDOM, RING_HASH or MAGLEV", c.GetLbPolicy())
	}
	if l := c.GetCommonLbConfig(); l != nil {
		out.LocalityWeights = l.GetLocalityWeightedLbConfig() != nil
		if out.Panic = l.GetHealthyPanicThreshold().GetValue(); !(out.Panic >= 0 && out.Panic <= 100) {
			d.add(root.Field("common_lb_config").Field("healthy_panic_threshold"), "0 to 100, not %v", out.Panic)
		}
	}
	d.protocol(c.GetTypedExtensionProtocolOptions(), out, root.Field("typed_extension_protocol_options"))
	out.Limits = d.limits(c.GetCircuitBreakers(), c.GetMetadata(), root.Field("circuit_breakers").Field("thresholds"))
	if o := c.GetOutlierDetection(); o != nil {
		out.Outlier = d.outlier(o, root.Field("outlier_detection"))
	}
	if k := c.GetUpstreamConnectionOptions().GetTcpKeepalive(); k != nil {
		seconds := func(v *wrapperspb.UInt32Value) time.Duration { return time.Duration(v.GetValue()) * time.Second }
		out.Keepalive = &Keepalive{Idle: seconds(k.GetKeepaliveTime()), Interval: seconds(k.GetKeepaliveInterval()), Count: int(min(k.GetKeepaliveProbes().GetValue(), math.MaxInt32))}
	}
	out.Prefer = d.prefer(c.GetMetadata(), root.Field("metadata").Field("filter_metadata").Key(metadataNear).Key("prefer"))
	d.sockets(c, out)
	out.Refused = c.GetMetadata().GetFilterMetadata()[metadataRefused].GetFields()["reason"].GetStringValue()
	return out
}

// scopes are the names of what places may have in common, as workloads' own messages have them.
var scopes = map[string]Scope{"REGION": Region, "ZONE": Zone, "SUBZONE": SubZone, "NODE": Node}

// prefer reads which endpoints count as near.
func (d decoder) prefer(m *corev3.Metadata, at *strict.Path) (out []Scope) {
	for i, v := range m.GetFilterMetadata()[metadataNear].GetFields()["prefer"].GetListValue().GetValues() {
		scope, ok := scopes[v.GetStringValue()]
		if !ok {
			d.add(at.Index(i), "%v is not known: REGION, ZONE, SUBZONE or NODE", v)
		}
		out = append(out, scope)
	}
	return out
}

// ring reads how many points a ring has at least.
func (d decoder) ring(c *clusterv3.Cluster_RingHashLbConfig, at *strict.Path) uint64 {
	if f := c.GetHashFunction(); f != clusterv3.Cluster_RingHashLbConfig_XX_HASH {
		d.add(at.Field("hash_function"), "%v is not supported: XX_HASH", f)
	}
	size := uint64(defaultRing)
	if n := c.GetMinimumRingSize(); n != nil {
		if size = n.GetValue(); size < 1 || size > MaxRing {
			d.add(at.Field("minimum_ring_size"), "1 to %d, not %d", MaxRing, size)
		}
	}
	return size
}

// serviceOf reads the service that Istio names in a cluster's metadata.
func serviceOf(m *corev3.Metadata) Service {
	list := m.GetFilterMetadata()["istio"].GetFields()["services"].GetListValue().GetValues()
	if len(list) == 0 {
		return Service{}
	}
	f := list[0].GetStructValue().GetFields()
	return Service{Host: f["host"].GetStringValue(), Name: f["name"].GetStringValue(), Namespace: f["namespace"].GetStringValue()}
}

// protocol reads how endpoints are spoken to.
func (d decoder) protocol(options map[string]*anypb.Any, out *Settings, at *strict.Path) {
	for _, name := range sortedKeys(options) {
		if name != httpOptions {
			d.add(at.Key(name), "not supported: leave it out")
		}
	}
	var m httpv3.HttpProtocolOptions
	at = at.Key(httpOptions)
	if a := options[httpOptions]; a != nil && !d.unpack(a, &m, at) {
		return
	}
	h2 := m.GetExplicitHttpConfig().GetHttp2ProtocolOptions()
	if m.GetUseDownstreamProtocolConfig() != nil {
		out.Protocol = AsClient
		h2 = m.GetUseDownstreamProtocolConfig().GetHttp2ProtocolOptions()
	} else if h2 != nil {
		out.Protocol = HTTP2
	}
	out.MaxConcurrentStreams = h2.GetMaxConcurrentStreams().GetValue()
	o, at := m.GetCommonHttpProtocolOptions(), at.Field("common_http_protocol_options")
	out.IdleTimeout = d.duration(o.GetIdleTimeout(), at.Field("idle_timeout"), defaultIdle)
	out.MaxRequests = o.GetMaxRequestsPerConnection().GetValue()
	if o.GetMaxStreamDuration() != nil {
		d.add(at.Field("max_stream_duration"), "not supported in clusters: leave it out")
	}
	out.MaxResponseHeader = kibi * int(d.bounded(o.GetMaxResponseHeadersKb(), at.Field("max_response_headers_kb"), defaultHeaderKiB, maxHeaderKiB))
	out.MaxHeaderFields = int(d.bounded(o.GetMaxHeadersCount(), at.Field("max_headers_count"), defaultHeaderFields, maxHeaderFieldsBound))
	if o.GetHeadersWithUnderscoresAction() != corev3.HttpProtocolOptions_ALLOW {
		d.add(at.Field("headers_with_underscores_action"), "not supported in clusters: leave it out")
	}
}

// limits reads circuit breakers; nil if there are none.
func (d decoder) limits(b *clusterv3.CircuitBreakers, m *corev3.Metadata, at *strict.Path) *Limits {
	var out *Limits
	for i, t := range b.GetThresholds() {
		at := at.Index(i)
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT { // the field is not in the table either: said once
			continue
		}
		if out != nil {
			d.add(at, "only one of priority DEFAULT")
			continue
		}
		out = &Limits{
			Connections: number(t.GetMaxConnections(), defaultLimit), Pending: number(t.GetMaxPendingRequests(), defaultLimit),
			Requests: number(t.GetMaxRequests(), defaultLimit), Retries: number(t.GetMaxRetries(), defaultRetryLimit),
		}
		if r := t.GetRetryBudget(); r != nil {
			out.Budget = &Budget{Percent: defaultBudget, Min: number(r.GetMinRetryConcurrency(), defaultBudgetMin)}
			if p := r.GetBudgetPercent(); p != nil {
				if out.Budget.Percent = p.GetValue(); !(out.Budget.Percent >= 0 && out.Budget.Percent <= 100) {
					d.add(at.Field("retry_budget").Field("budget_percent"), "0 to 100, not %v", p.GetValue())
				}
			}
			d.budgetInterval(r, m, out.Budget, at.Field("retry_budget"))
		}
	}
	return out
}

// budgetInterval reads how long requests and retries count.
func (d decoder) budgetInterval(r *clusterv3.CircuitBreakers_Thresholds_RetryBudget, m *corev3.Metadata, out *Budget, at *strict.Path) {
	out.Interval = d.duration(r.GetBudgetInterval(), at.Field("budget_interval"), 0)
	if out.Interval == 0 {
		return
	}
	if out.Interval > maxBudgetInterval {
		d.add(at.Field("budget_interval"), "at most %v, not %v", maxBudgetInterval, out.Interval)
	}
	out.MinInterval = defaultBudgetMinInterval
	if text := m.GetFilterMetadata()[metadataRetries].GetFields()["min_interval"].GetStringValue(); text != "" {
		interval, err := time.ParseDuration(text)
		if err != nil || interval <= 0 || interval > maxBudgetInterval {
			d.add(root.Field("metadata").Field("filter_metadata").Key(metadataRetries).Key("min_interval"), "a duration of at most %v, not %q", maxBudgetInterval, text)
		}
		out.MinInterval = interval
	}
}

func (d decoder) outlier(o *clusterv3.OutlierDetection, at *strict.Path) *Outlier {
	out := &Outlier{
		Consecutive5xx: number(o.GetConsecutive_5Xx(), 5), Enforce5xx: number(o.GetEnforcingConsecutive_5Xx(), 100),
		ConsecutiveGateway: number(o.GetConsecutiveGatewayFailure(), 5), EnforceGateway: number(o.GetEnforcingConsecutiveGatewayFailure(), 0),
		ConsecutiveLocal: number(o.GetConsecutiveLocalOriginFailure(), 5), EnforceLocal: number(o.GetEnforcingConsecutiveLocalOriginFailure(), 100),
		SplitLocal: o.GetSplitExternalLocalOriginErrors(),
		BaseTime:   d.duration(o.GetBaseEjectionTime(), at.Field("base_ejection_time"), 30*time.Second),
		Jitter:     d.duration(o.GetMaxEjectionTimeJitter(), at.Field("max_ejection_time_jitter"), 0),
		MaxPercent: number(o.GetMaxEjectionPercent(), 10), AlwaysOne: o.GetAlwaysEjectOneHost().GetValue(),
	}
	out.MaxTime = d.duration(o.GetMaxEjectionTime(), at.Field("max_ejection_time"), max(300*time.Second, out.BaseTime))
	if out.BaseTime == 0 {
		d.add(at.Field("base_ejection_time"), "must not be 0")
	}
	if out.MaxTime < out.BaseTime {
		d.add(at.Field("max_ejection_time"), "at least base_ejection_time")
	}
	for field, v := range map[string]uint32{
		"enforcing_consecutive_5xx": out.Enforce5xx, "enforcing_consecutive_gateway_failure": out.EnforceGateway,
		"enforcing_consecutive_local_origin_failure": out.EnforceLocal, "max_ejection_percent": out.MaxPercent,
	} {
		if v > 100 {
			d.add(at.Field(field), "0 to 100, not %d", v)
		}
	}
	// Comparing endpoints with each other is not supported; Envoy does it unless it is told not to, so only that is taken.
	for field, v := range map[string]uint32{
		"enforcing_success_rate":              o.GetEnforcingSuccessRate().GetValue(),
		"enforcing_local_origin_success_rate": o.GetEnforcingLocalOriginSuccessRate().GetValue(),
		"enforcing_failure_percentage":        o.GetEnforcingFailurePercentage().GetValue(),
	} {
		if v != 0 {
			d.add(at.Field(field), "not supported: 0")
		}
	}
	return out
}

// sockets reads how endpoints are connected to: those that say so through tunnels, the others directly; either in plain or by TLS.
func (d decoder) sockets(c *clusterv3.Cluster, out *Settings) {
	if s := c.GetTransportSocket(); s != nil {
		out.TLS = d.socket(s.GetTypedConfig(), root.Field("transport_socket").Field("typed_config"))
	}
	at := root.Field("transport_socket_matches")
	for i, m := range c.GetTransportSocketMatches() {
		at := at.Index(i)
		tunnel := tunnelled(m.GetMatch().GetFields())
		if !tunnel && len(m.GetMatch().GetFields()) > 0 {
			d.add(at.Field("match"), `not supported: {tunnel: "h2"} or nothing`)
			continue
		}
		at = at.Field("transport_socket").Field("typed_config")
		if !tunnel {
			out.TLS = d.socket(m.GetTransportSocket().GetTypedConfig(), at)
			continue
		}
		var up internalv3.InternalUpstreamTransport
		if d.unpack(m.GetTransportSocket().GetTypedConfig(), &up, at) {
			out.TunnelTLS = d.socket(up.GetTransportSocket().GetTypedConfig(), at.Field("transport_socket").Field("typed_config"))
		}
	}
}

// tunnelled tells whether metadata says that an endpoint is reached by HBONE.
func tunnelled(f map[string]*structpb.Value) bool { return f["tunnel"].GetStringValue() == "h2" }

// readEndpoints reads a ClusterLoadAssignment. Endpoints that are in old as they are here are taken over, and old itself if
// nothing differs.
func readEndpoints(name string, a *anypb.Any, old *Endpoints) (*Endpoints, error) {
	var out *Endpoints
	err := decode(a, supported, &endpointv3.ClusterLoadAssignment{}, func(d decoder, m *endpointv3.ClusterLoadAssignment) {
		d.named("cluster_name", m.GetClusterName(), name)
		out = d.endpoints(m, old, nil)
	})
	return out, err
}

// maxPriorities bounds how many priorities a cluster may have; Envoy's own bound.
const maxPriorities = 128

func (d decoder) endpoints(m *endpointv3.ClusterLoadAssignment, old *Endpoints, at *strict.Path) *Endpoints {
	out := &Endpoints{}
	known := map[Endpoint]*Endpoint{}
	if old != nil {
		for e := range old.All() {
			known[*e] = e
		}
	}
	seen := map[Endpoint]bool{}
	at = at.Field("endpoints")
	for i, l := range m.GetEndpoints() {
		at := at.Index(i)
		if l.GetPriority() >= maxPriorities {
			d.add(at.Field("priority"), "below %d, not %d", maxPriorities, l.GetPriority())
			continue
		}
		for len(out.Priorities) <= int(l.GetPriority()) {
			out.Priorities = append(out.Priorities, Priority{})
		}
		where := Locality{
			Region: l.GetLocality().GetRegion(), Zone: l.GetLocality().GetZone(), SubZone: l.GetLocality().GetSubZone(),
			Weight: l.GetLoadBalancingWeight().GetValue(),
		}
		for k, lb := range l.GetLbEndpoints() {
			e := d.endpoint(lb, at.Field("lb_endpoints").Index(k))
			same := Endpoint{Address: e.Address, Host: e.Host, HBONE: e.HBONE}
			if seen[same] && (e.Address.IsValid() || e.Host != "") {
				d.add(at.Field("lb_endpoints").Index(k).Field("endpoint"), "%s is there twice", e.where())
			}
			seen[same] = true
			if p := known[e]; p != nil {
				where.Endpoints = append(where.Endpoints, p)
			} else {
				where.Endpoints = append(where.Endpoints, &e)
			}
		}
		p := &out.Priorities[l.GetPriority()]
		p.Localities = append(p.Localities, where)
	}
	if old != nil && out.equal(old) {
		return old
	}
	return out
}
