package telemetry

import (
	"strconv"
	"sync/atomic"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/puzpuzpuz/xsync/v4"
	"google.golang.org/protobuf/proto"
)

// RequestFlag is the response_flags label of a request: what the proxy itself had to do with how it ended. The names are
// Envoy's.
type RequestFlag uint8

const (
	// RequestOK is "-": the response is the backend's, or one that a route says.
	RequestOK RequestFlag = iota
	// RequestNoRoute: no route matches.
	RequestNoRoute
	// RequestNoCluster: the route's backend does not exist.
	RequestNoCluster
	// RequestNoHealthy: the backend has no endpoint that may be used.
	RequestNoHealthy
	// RequestConnectFailed: no endpoint could be connected to.
	RequestConnectFailed
	// RequestUpstreamEnded: the endpoint ended the connection or the stream before its response was whole.
	RequestUpstreamEnded
	// RequestTimeout: the route's time is over.
	RequestTimeout
	// RequestRetriesExhausted: the response is that of the last try.
	RequestRetriesExhausted
	// RequestOverflow: a bound of the cluster (circuit breaker) was reached.
	RequestOverflow
	// RequestClientGone: the client ended the connection or the stream before the response was whole.
	RequestClientGone
	// RequestDenied: refused by policy.
	RequestDenied
	// RequestUpstreamProtocol: the endpoint's response was none.
	RequestUpstreamProtocol
	// RequestMalformed: the request was not as HTTP has it, or larger than allowed.
	RequestMalformed

	requestFlagCount
)

var requestFlags = [requestFlagCount]string{
	RequestOK: "-", RequestNoRoute: "NR", RequestNoCluster: "NC", RequestNoHealthy: "UH", RequestConnectFailed: "UF",
	RequestUpstreamEnded: "UC", RequestTimeout: "UT", RequestRetriesExhausted: "URX", RequestOverflow: "UO",
	RequestClientGone: "DC", RequestDenied: "RBAC", RequestUpstreamProtocol: "UPE",
	RequestMalformed: "DPE",
}

// String is the value of the response_flags label.
func (f RequestFlag) String() string { return requestFlags[f] }

// Party is one end of requests, as labels name it. Empty fields become "unknown".
type Party struct {
	Workload, Namespace, Principal, App, Version, CanonicalName, CanonicalRevision, Cluster string
}

// ServiceName is the service that requests are for.
type ServiceName struct{ Host, Name, Namespace string }

// NoGRPC is RequestLabels.GRPCStatus of requests that are not gRPC, or whose status is not known.
const NoGRPC = -1

// RequestLabels say which requests are counted together. They are made to be cheap to compare: make the handles once for a
// connection or an endpoint (unique.Make).
type RequestLabels struct {
	Source, Destination unique.Handle[Party]
	Service             unique.Handle[ServiceName]
	// Status is that of HTTP; 0 if the client went before there was one.
	Status uint16
	// GRPCStatus is 0 to 16, or NoGRPC.
	GRPCStatus int8
	// GRPC tells whether the request was gRPC.
	GRPC bool
	Flag RequestFlag
	// MutualTLS tells whether the client came by a tunnel.
	MutualTLS bool
}

// requestBounds are the upper bounds of istio_request_duration_milliseconds: Istio's.
var requestBounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
	2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute,
	10 * time.Minute, 30 * time.Minute, time.Hour,
}

// requestNames are the labels of requests, sorted. They are Istio's.
var requestNames = []string{
	"connection_security_policy",
	"destination_app",
	"destination_canonical_revision",
	"destination_canonical_service",
	"destination_cluster",
	"destination_principal",
	"destination_service",
	"destination_service_name",
	"destination_service_namespace",
	"destination_version",
	"destination_workload",
	"destination_workload_namespace",
	"grpc_response_status",
	"reporter",
	"request_protocol",
	"response_code",
	"response_flags",
	"source_app",
	"source_canonical_revision",
	"source_canonical_service",
	"source_cluster",
	"source_principal",
	"source_version",
	"source_workload",
	"source_workload_namespace",
}

// Requests counts the requests of an L7 proxy. It is safe for concurrent use.
type Requests struct {
	reporter string
	series   *xsync.Map[RequestLabels, *requestSeries]

	total, duration *prometheus.Desc
}

// requestSeries is what one set of labels counts.
type requestSeries struct {
	pairs   labelPairs
	buckets [len(requestBounds) + 1]atomic.Uint64
	sum     atomic.Int64 // in nanoseconds

	// Of Collect.
	last  atomic.Uint64 // the count at the last scrape that saw a change
	since atomic.Int64  // when that was, in Unix nanoseconds
}

// NewRequests makes Requests with a value of the reporter label and registers them. Series that nothing has used for
// DefaultIdle are dropped when they are scraped.
func NewRequests(reporter string, reg prometheus.Registerer) *Requests {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, requestNames, nil) }
	r := &Requests{
		reporter: reporter,
		series:   xsync.NewMap[RequestLabels, *requestSeries](),
		total:    desc("istio_requests_total", "Requests whose response has ended, or that have failed."),
		duration: desc("istio_request_duration_milliseconds", "From the request's header to the end of the response."),
	}
	reg.MustRegister(r)
	return r
}

// maxRequestSeries bounds the series that sources can make, each of which takes about 2 KiB: most of a source's labels are what it says
// of itself. Beyond that its requests are counted as those of an unknown source, until series are forgotten.
const maxRequestSeries = 20_000

// Done counts a request that has ended, and how long it took.
func (r *Requests) Done(l RequestLabels, took time.Duration) {
	s, ok := r.series.Load(l)
	if !ok {
		if r.series.Size() >= maxRequestSeries {
			l.Source = unique.Make(Party{})
		}
		s, _ = r.series.LoadOrCompute(l, func() (*requestSeries, bool) { return &requestSeries{pairs: r.pairsOf(&l)}, false })
	}
	i := 0
	for i < len(requestBounds) && took > requestBounds[i] {
		i++
	}
	s.buckets[i].Add(1)
	s.sum.Add(int64(took))
}

func (r *Requests) pairsOf(l *RequestLabels) labelPairs {
	src, dst, service := l.Source.Value(), l.Destination.Value(), l.Service.Value()
	security, protocol, grpc := unknown, "http", ""
	if l.MutualTLS {
		security = "mutual_tls"
	}
	if l.GRPC {
		protocol = "grpc"
		if l.GRPCStatus >= 0 {
			grpc = strconv.Itoa(int(l.GRPCStatus))
		}
	}
	values := [...]string{
		security,
		dst.App, dst.CanonicalRevision, dst.CanonicalName, dst.Cluster, dst.Principal,
		service.Host, service.Name, service.Namespace,
		dst.Version, dst.Workload, dst.Namespace,
		grpc, r.reporter, protocol, strconv.Itoa(int(l.Status)), l.Flag.String(),
		src.App, src.CanonicalRevision, src.CanonicalName, src.Cluster, src.Principal,
		src.Version, src.Workload, src.Namespace,
	}
	pairs := make(labelPairs, len(requestNames))
	for i, name := range requestNames {
		value := values[i]
		if value == "" && name != "grpc_response_status" {
			value = unknown
		}
		pairs[i] = &labelPair{Name: proto.String(name), Value: proto.String(value)}
	}
	return pairs
}

// Describe implements prometheus.Collector.
func (r *Requests) Describe(ch chan<- *prometheus.Desc) {
	ch <- r.total
	ch <- r.duration
}

// Collect implements prometheus.Collector, and drops what was not used for long.
func (r *Requests) Collect(ch chan<- prometheus.Metric) { r.collect(ch, time.Now()) }

func (r *Requests) collect(ch chan<- prometheus.Metric, now time.Time) {
	for l, s := range r.series.All() {
		h := &dto.Histogram{Bucket: make([]*dto.Bucket, len(requestBounds))}
		n := uint64(0)
		for i, bound := range requestBounds {
			n += s.buckets[i].Load()
			h.Bucket[i] = &dto.Bucket{CumulativeCount: proto.Uint64(n), UpperBound: proto.Float64(milliseconds(bound))}
		}
		n += s.buckets[len(requestBounds)].Load()
		h.SampleCount, h.SampleSum = proto.Uint64(n), proto.Float64(milliseconds(time.Duration(s.sum.Load())))
		ch <- &counter{r.total, s.pairs, n}
		ch <- &sample{r.duration, s.pairs, h}
		if s.last.Swap(n) != n {
			s.since.Store(now.UnixNano())
		} else if now.Sub(time.Unix(0, s.since.Load())) >= DefaultIdle {
			r.series.Delete(l)
		}
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
