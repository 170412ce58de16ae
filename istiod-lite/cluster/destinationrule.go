package cluster

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	networkingv1 "istio.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/mesh/authz"
)

// DestinationRule says how waypoints send to the endpoints of a service.
type DestinationRule struct {
	Key
	Created    time.Time
	Generation int64
	// Host is the service's name as it was written, in lower case: a single label is a service of the rule's namespace, "*" and what
	// begins with "*." are for many. It is "" if the rule cannot be read.
	Host string
	// ExportTo are the namespaces that see the rule: "*" is all of them, "." its own. Empty is all.
	ExportTo []string
	// Selective rules are for clients that a workloadSelector picks.
	Selective bool
	// Policy is nil if the rule has none.
	Policy *TrafficPolicy
	// Ports have policies of their own, in the place of Policy.
	Ports []PortPolicy
	// Faults are what is not in force, each named by its field.
	Faults []string
	// Seen is the condition authz.WaypointConditionType.
	Seen Condition
}

// PortPolicy is the policy of one port.
type PortPolicy struct {
	Port   uint16
	Policy *TrafficPolicy
}

// TrafficPolicy is how requests and connections are sent to endpoints. What is zero is not said.
type TrafficPolicy struct {
	Balancer Balancer
	// Hash is set with BalanceRing and BalanceMaglev.
	Hash     *ConsistentHash
	Pool     ConnectionPool
	Outliers *OutlierDetection
	Budget   *RetryBudget
}

// Balancer is how an endpoint is chosen.
type Balancer uint8

// The balancers.
const (
	BalanceDefault Balancer = iota
	BalanceLeastRequest
	BalanceRoundRobin
	BalanceRandom
	BalanceRing
	BalanceMaglev
)

// ConsistentHash sends requests that have something in common to the same endpoint. Of Header, Query, Cookie and SourceIP one is set.
type ConsistentHash struct {
	// Header, in lower case, and Query are names.
	Header, Query string
	Cookie        *HashCookie
	SourceIP      bool
	// Size is the least size of a ring, or the size of a Maglev table; 0 if it was not said.
	Size uint64
}

// HashCookie is a cookie that requests are told apart by.
type HashCookie struct {
	Name, Path string
	// TTL is how long a cookie lasts that clients without one are given, 0 for their session; nil if they are given none.
	TTL *time.Duration
	// Attributes are further ones of a cookie that is given.
	Attributes []Attribute
}

// Attribute is one of a cookie's, such as SameSite.
type Attribute struct{ Name, Value string }

// ConnectionPool bounds what goes to a service, and says how connections are made. What is zero is not said.
type ConnectionPool struct {
	MaxConnections, MaxPending, MaxRequests, MaxRetries uint32
	MaxRequestsPerConnection, MaxStreams                uint32
	ConnectTimeout                                      time.Duration
	// HTTPIdle is for connections without a request, TCPIdle for those that are no HTTP; MaxDuration is the age of the latter.
	HTTPIdle, TCPIdle, MaxDuration time.Duration
	Keepalive                      *TCPKeepalive
	// UpgradeHTTP2: endpoints of HTTP ports speak HTTP/2. ClientProtocol: what the client speaks.
	UpgradeHTTP2, ClientProtocol bool
}

// TCPKeepalive is when connections are probed.
type TCPKeepalive struct {
	Probes         uint32
	Time, Interval time.Duration
}

// OutlierDetection leaves endpoints out that fail. What is nil or 0 is not said.
type OutlierDetection struct {
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal *uint32
	SplitLocal                                           bool
	Interval, BaseTime                                   time.Duration
	MaxPercent, MinHealthPercent                         uint32
}

// RetryBudget bounds retries by a share of the requests under way.
type RetryBudget struct {
	// Percent is nil if it was not said.
	Percent *float64
	// Min retries are always allowed; 0 if it was not said.
	Min uint32
}

// ObjectKind is KindDestinationRule.
func (*DestinationRule) ObjectKind() Kind { return KindDestinationRule }

// ObjectKey is namespace and name.
func (r *DestinationRule) ObjectKey() Key { return r.Key }

// Equal reports whether both are the same in every field.
func (r *DestinationRule) Equal(o *DestinationRule) bool {
	a, b := *r, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return r.Created.Equal(o.Created) && reflect.DeepEqual(a, b)
}

// PolicyOf is the policy of a port; nil if there is none. That of a single port takes the place of the whole.
func (r *DestinationRule) PolicyOf(port uint16) *TrafficPolicy {
	if r == nil {
		return nil
	}
	for _, p := range r.Ports {
		if p.Port == port {
			return p.Policy
		}
	}
	return r.Policy
}

// readDestinationRule are the fields that are read, by message.
var readDestinationRule = readTable{
	"DestinationRule":                                            "host traffic_policy subsets export_to workload_selector",
	"TrafficPolicy":                                              "load_balancer connection_pool outlier_detection port_level_settings retry_budget",
	"TrafficPolicy.PortTrafficPolicy":                            "port load_balancer connection_pool outlier_detection",
	"TrafficPolicy.RetryBudget":                                  "percent min_retry_concurrency",
	"PortSelector":                                               "number",
	"LoadBalancerSettings":                                       "simple consistent_hash",
	"LoadBalancerSettings.ConsistentHashLB":                      "http_header_name http_cookie use_source_ip http_query_parameter_name ring_hash maglev minimum_ring_size",
	"LoadBalancerSettings.ConsistentHashLB.RingHash":             "minimum_ring_size",
	"LoadBalancerSettings.ConsistentHashLB.MagLev":               "table_size",
	"LoadBalancerSettings.ConsistentHashLB.HTTPCookie":           "name path ttl attributes",
	"LoadBalancerSettings.ConsistentHashLB.HTTPCookie.Attribute": "name value",
	"ConnectionPoolSettings":                                     "tcp http",
	"ConnectionPoolSettings.TCPSettings":                         "max_connections connect_timeout tcp_keepalive max_connection_duration idle_timeout",
	"ConnectionPoolSettings.TCPSettings.TcpKeepalive":            "probes time interval",
	"ConnectionPoolSettings.HTTPSettings": "http1_max_pending_requests http2_max_requests max_requests_per_connection max_retries idle_timeout h2_upgrade_policy " +
		"use_client_protocol max_concurrent_streams",
	"OutlierDetection": "split_external_local_origin_errors consecutive_local_origin_failures consecutive_gateway_errors consecutive_5xx_errors interval " +
		"base_ejection_time max_ejection_percent min_health_percent",
}

// DestinationRuleOf reduces a DestinationRule. One that cannot be read has no host, and so is for nobody.
func DestinationRuleOf(in *unstructured.Unstructured) *DestinationRule {
	r := &DestinationRule{
		Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(),
		Seen: seenBy(in, authz.WaypointConditionType),
	}
	var spec networkingv1.DestinationRule
	f := &fields{}
	if !f.read(in, &spec, readDestinationRule) {
		r.Faults = f.faults
		return r
	}
	r.Host = strings.TrimSuffix(strings.ToLower(spec.GetHost()), ".")
	r.ExportTo = spec.GetExportTo()
	r.Selective = spec.GetWorkloadSelector() != nil
	if len(spec.GetSubsets()) > 0 {
		f.add("spec.subsets", "no route of the Gateway API can name a subset: give each version a Service of its own, and name that as a backend")
	}
	if p := spec.GetTrafficPolicy(); p != nil {
		const at = "spec.trafficPolicy"
		r.Policy = f.policy(at, p)
		r.Policy.Budget = f.budget(at+".retryBudget", p.GetRetryBudget())
		for i, own := range p.GetPortLevelSettings() {
			at := fmt.Sprintf("%s.portLevelSettings[%d]", at, i)
			port, fault := parsePort(at+".port", int32(min(own.GetPort().GetNumber(), math.MaxInt32)))
			if fault != "" {
				f.faults = append(f.faults, fault)
				continue
			}
			out := PortPolicy{port, f.policy(at, own)}
			out.Policy.Budget = r.Policy.Budget
			r.Ports = append(r.Ports, out)
		}
	}
	r.Faults = f.faults
	return r
}

// policyParts are what policies of a service and of a port have in common.
type policyParts interface {
	GetLoadBalancer() *networkingv1.LoadBalancerSettings
	GetConnectionPool() *networkingv1.ConnectionPoolSettings
	GetOutlierDetection() *networkingv1.OutlierDetection
}

func (f *fields) policy(at string, in policyParts) *TrafficPolicy {
	out := &TrafficPolicy{Pool: f.pool(at+".connectionPool", in.GetConnectionPool())}
	if lb := in.GetLoadBalancer(); lb != nil {
		f.balancer(at+".loadBalancer", lb, out)
	}
	if o := in.GetOutlierDetection(); o != nil {
		out.Outliers = f.outliers(at+".outlierDetection", o)
	}
	return out
}

func (f *fields) balancer(at string, in *networkingv1.LoadBalancerSettings, out *TrafficPolicy) {
	hash := in.GetConsistentHash()
	if hash == nil {
		leastConn := networkingv1.LoadBalancerSettings_LEAST_CONN
		switch s := in.GetSimple(); s {
		case networkingv1.LoadBalancerSettings_UNSPECIFIED:
		case networkingv1.LoadBalancerSettings_LEAST_REQUEST, leastConn:
			out.Balancer = BalanceLeastRequest
		case networkingv1.LoadBalancerSettings_ROUND_ROBIN:
			out.Balancer = BalanceRoundRobin
		case networkingv1.LoadBalancerSettings_RANDOM:
			out.Balancer = BalanceRandom
		default:
			f.add(at+".simple", "%v is not supported", s)
		}
		return
	}
	at += ".consistentHash"
	h := &ConsistentHash{
		Header: strings.ToLower(hash.GetHttpHeaderName()), Query: hash.GetHttpQueryParameterName(), SourceIP: hash.GetUseSourceIp(),
		//lint:ignore SA1019 people still write it in this older form
		Size: hash.GetMinimumRingSize(),
	}
	if c := hash.GetHttpCookie(); c != nil {
		h.Cookie = f.cookie(at+".httpCookie", c)
	}
	balancer := BalanceRing
	if m := hash.GetMaglev(); m != nil {
		balancer, h.Size = BalanceMaglev, m.GetTableSize()
		if h.Size != 0 && (h.Size > maxMaglev || !prime(h.Size)) {
			f.add(at+".maglev.tableSize", "a prime of at most %d, not %d", maxMaglev, h.Size)
			h.Size = 0
		}
	} else {
		if n := hash.GetRingHash().GetMinimumRingSize(); n != 0 {
			h.Size = n
		}
		if h.Size > maxRing {
			f.add(at+".ringHash.minimumRingSize", "at most %d, not %d", maxRing, h.Size)
			h.Size = 0
		}
	}
	if h.Header != "" && !httpguts.ValidHeaderFieldName(h.Header) {
		f.add(at+".httpHeaderName", "%q is no name of a header field", h.Header)
		h.Header = ""
	}
	if h.Header == "" && h.Query == "" && h.Cookie == nil && !h.SourceIP {
		f.add(at, "says nothing that requests are told apart by")
		return
	}
	out.Balancer, out.Hash = balancer, h
}

// Bounds of what consistent hashing may take of a waypoint's memory; that of a table is Envoy's.
const (
	maxRing   = 1 << 20
	maxMaglev = 5_000_011
)

func prime(n uint64) bool {
	if n < 2 {
		return false
	}
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}

func (f *fields) cookie(at string, in *networkingv1.LoadBalancerSettings_ConsistentHashLB_HTTPCookie) *HashCookie {
	if !httpguts.ValidHeaderFieldName(in.GetName()) {
		f.add(at+".name", "%q cannot be the name of a cookie", in.GetName())
		return nil
	}
	good := func(at, s string) bool {
		ok := httpguts.ValidHeaderFieldValue(s) && !strings.ContainsAny(s, ";,")
		if !ok {
			f.add(at, "%q cannot be part of a cookie", s)
		}
		return ok
	}
	out := &HashCookie{Name: in.GetName(), Path: in.GetPath()}
	if in.GetTtl() != nil {
		ttl := f.duration(at+".ttl", in.GetTtl())
		out.TTL = &ttl
	}
	if !good(at+".path", out.Path) {
		out.Path = ""
	}
	for i, a := range in.GetAttributes() {
		if at := fmt.Sprintf("%s.attributes[%d]", at, i); a.GetName() != "" && good(at+".name", a.GetName()) && good(at+".value", a.GetValue()) {
			out.Attributes = append(out.Attributes, Attribute{a.GetName(), a.GetValue()})
		}
	}
	return out
}

func (f *fields) pool(at string, in *networkingv1.ConnectionPoolSettings) ConnectionPool {
	tcp, http := in.GetTcp(), in.GetHttp()
	out := ConnectionPool{
		MaxConnections:           f.count(at+".tcp.maxConnections", tcp.GetMaxConnections()),
		MaxPending:               f.count(at+".http.http1MaxPendingRequests", http.GetHttp1MaxPendingRequests()),
		MaxRequests:              f.count(at+".http.http2MaxRequests", http.GetHttp2MaxRequests()),
		MaxRetries:               f.count(at+".http.maxRetries", http.GetMaxRetries()),
		MaxRequestsPerConnection: f.count(at+".http.maxRequestsPerConnection", http.GetMaxRequestsPerConnection()),
		MaxStreams:               f.count(at+".http.maxConcurrentStreams", http.GetMaxConcurrentStreams()),
		ConnectTimeout:           f.duration(at+".tcp.connectTimeout", tcp.GetConnectTimeout()),
		TCPIdle:                  f.duration(at+".tcp.idleTimeout", tcp.GetIdleTimeout()),
		MaxDuration:              f.duration(at+".tcp.maxConnectionDuration", tcp.GetMaxConnectionDuration()),
		HTTPIdle:                 f.duration(at+".http.idleTimeout", http.GetIdleTimeout()),
		UpgradeHTTP2:             http.GetH2UpgradePolicy() == networkingv1.ConnectionPoolSettings_HTTPSettings_UPGRADE,
		ClientProtocol:           http.GetUseClientProtocol(),
	}
	if k := tcp.GetTcpKeepalive(); k != nil {
		out.Keepalive = &TCPKeepalive{
			Probes: k.GetProbes(), Time: f.duration(at+".tcp.tcpKeepalive.time", k.GetTime()),
			Interval: f.duration(at+".tcp.tcpKeepalive.interval", k.GetInterval()),
		}
	}
	return out
}

func (f *fields) outliers(at string, in *networkingv1.OutlierDetection) *OutlierDetection {
	out := &OutlierDetection{
		SplitLocal: in.GetSplitExternalLocalOriginErrors(),
		Interval:   f.duration(at+".interval", in.GetInterval()),
		BaseTime:   f.duration(at+".baseEjectionTime", in.GetBaseEjectionTime()),
		MaxPercent: f.percent(at+".maxEjectionPercent", in.GetMaxEjectionPercent()), MinHealthPercent: f.percent(at+".minHealthPercent", in.GetMinHealthPercent()),
	}
	if n := in.GetConsecutive_5XxErrors(); n != nil {
		out.Consecutive5xx = &n.Value
	}
	if n := in.GetConsecutiveGatewayErrors(); n != nil {
		out.ConsecutiveGateway = &n.Value
	}
	if n := in.GetConsecutiveLocalOriginFailures(); n != nil {
		out.ConsecutiveLocal = &n.Value
		if !out.SplitLocal {
			f.add(at+".consecutiveLocalOriginFailures", "has a meaning with splitExternalLocalOriginErrors only")
		}
	}
	return out
}

func (f *fields) budget(at string, in *networkingv1.TrafficPolicy_RetryBudget) *RetryBudget {
	if in == nil {
		return nil
	}
	out := &RetryBudget{Min: in.GetMinRetryConcurrency()}
	if p := in.GetPercent(); p != nil {
		if v := p.GetValue(); v >= 0 && v <= 100 {
			out.Percent = &v
		} else {
			f.add(at+".percent", "0 to 100, not %v", v)
		}
	}
	return out
}

// CompareDestinationRules is the order among rules for the same host: the oldest counts, then the first by name.
func CompareDestinationRules(a, b *DestinationRule) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	return a.Key.Compare(b.Key)
}

// VisibleTo reports whether the rule is exported to a namespace.
func (r *DestinationRule) VisibleTo(namespace string) bool {
	if len(r.ExportTo) == 0 {
		return true
	}
	return slices.ContainsFunc(r.ExportTo, func(to string) bool {
		return to == "*" || to == namespace || to == "." && r.Namespace == namespace
	})
}
