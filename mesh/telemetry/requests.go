package telemetry

import (
	"cmp"
	"slices"
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
	// RequestUnauthenticated: refused for its token.
	RequestUnauthenticated
	// RequestUpstreamReset: the endpoint reset the stream before its response was whole.
	RequestUpstreamReset
	// RequestIdle: nothing came or went for as long as may be.
	RequestIdle
	// RequestTooLong: the connection is as old as it may be.
	RequestTooLong
	// RequestUpstreamProtocol: the endpoint's response was none.
	RequestUpstreamProtocol
	// RequestMalformed: the request was not as HTTP has it, or larger than allowed.
	RequestMalformed
	// RequestUnauthorized: refused by an external authorizer, or since it has not decided.
	RequestUnauthorized
	// RequestFault: answered by a fault that is injected.
	RequestFault
	// RequestLimited: beyond the rate of requests that is let through.
	RequestLimited

	requestFlagCount
)

var requestFlags = [requestFlagCount]string{
	RequestOK: "-", RequestNoRoute: "NR", RequestNoCluster: "NC", RequestNoHealthy: "UH", RequestConnectFailed: "UF",
	RequestUpstreamEnded: "UC", RequestTimeout: "UT", RequestRetriesExhausted: "URX", RequestOverflow: "UO",
	RequestClientGone: "DC", RequestDenied: "RBAC", RequestUnauthenticated: "JWT", RequestUpstreamProtocol: "UPE",
	RequestUpstreamReset: "UR", RequestIdle: "SI", RequestTooLong: "DT", RequestMalformed: "DPE",
	RequestUnauthorized: "UAEX", RequestFault: "FI", RequestLimited: "RL",
}

// String is the value of the response_flags label.
func (f RequestFlag) String() string { return requestFlags[f] }

// Party is one end of requests and connections, as labels name it. Empty fields become "unknown".
type Party struct {
	Workload, Namespace, Principal, App, Version, CanonicalName, CanonicalRevision, Cluster string
}

// ServiceName is the service that requests and connections are for.
type ServiceName struct{ Host, Name, Namespace string }

// NoGRPC is RequestLabels.GRPCStatus of requests that are not gRPC, or whose status is not known.
const NoGRPC = -1

// Ends are both ends of requests or connections. They are made to be cheap to compare: make the handles once for a connection or an
// endpoint (unique.Make).
type Ends struct {
	Source, Destination unique.Handle[Party]
	Service             unique.Handle[ServiceName]
}

// RequestLabels say which requests are counted together.
type RequestLabels struct {
	Ends
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

// requestBounds are the upper bounds of the buckets of requests' histograms, in milliseconds and in bytes: Istio's.
var requestBounds = [...]float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000,
}

// endNames are the labels that say who the ends are, in the order of Ends.values. They are Istio's.
var endNames = [...]string{
	"source_app", "source_canonical_revision", "source_canonical_service", "source_cluster", "source_principal", "source_version",
	"source_workload", "source_workload_namespace",
	"destination_app", "destination_canonical_revision", "destination_canonical_service", "destination_cluster", "destination_principal",
	"destination_version", "destination_workload", "destination_workload_namespace",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"reporter",
}

// requestNames are the further labels of requests, connectionNames those of connections.
var (
	requestNames    = []string{"connection_security_policy", "grpc_response_status", "request_protocol", "response_code", flagLabel}
	connectionNames = []string{"connection_security_policy", "request_protocol", flagLabel}
)

// withEnds returns names and endNames, sorted, as the exposition wants them.
func withEnds(names ...string) []string {
	return slices.Sorted(slices.Values(append(names, endNames[:]...)))
}

// pairs returns the pairs of names and values and those of the ends, sorted.
func (e *Ends) pairs(reporter string, names, values []string) labelPairs {
	src, dst, service := e.Source.Value(), e.Destination.Value(), e.Service.Value()
	ends := [len(endNames)]string{
		src.App, src.CanonicalRevision, src.CanonicalName, src.Cluster, src.Principal, src.Version, src.Workload, src.Namespace,
		dst.App, dst.CanonicalRevision, dst.CanonicalName, dst.Cluster, dst.Principal, dst.Version, dst.Workload, dst.Namespace,
		service.Host, service.Name, service.Namespace,
		reporter,
	}
	out := make(labelPairs, 0, len(names)+len(endNames))
	for i := range names {
		out = append(out, &labelPair{Name: &names[i], Value: &values[i]})
	}
	for i := range endNames {
		out = append(out, &labelPair{Name: &endNames[i], Value: proto.String(cmp.Or(ends[i], unknown))})
	}
	slices.SortFunc(out, func(a, b *labelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out
}

func securityOf(mutualTLS bool) string {
	if mutualTLS {
		return "mutual_tls"
	}
	return "none"
}

// Requests counts the requests and the connections of an L7 proxy. It is safe for concurrent use.
type Requests struct {
	reporter    string
	requests    *xsync.Map[RequestLabels, *requestSeries]
	messages    *xsync.Map[Ends, *messageSeries]
	connections *xsync.Map[ConnectionLabels, *connectionSeries]
	live        *xsync.Map[*LiveConnection, struct{}]

	total, duration, received, sent *prometheus.Desc
	messagesIn, messagesOut         *prometheus.Desc
	opened, closed, failed          *prometheus.Desc
	bytesOut, bytesIn               *prometheus.Desc
}

// buckets are a histogram with requestBounds. The last is beyond all bounds.
type buckets [len(requestBounds) + 1]atomic.Uint64

// add counts a value of so many units, of which one millisecond, or one byte, has scale.
func (b *buckets) add(value, scale int64) {
	i, v := 0, float64(value)
	for i < len(requestBounds) && v > requestBounds[i]*float64(scale) {
		i++
	}
	b[i].Add(1)
}

// histogram returns what was counted, and how many values. sum is of all values.
func (b *buckets) histogram(sum float64) (*dto.Histogram, uint64) {
	h := &dto.Histogram{Bucket: make([]*dto.Bucket, len(requestBounds)), SampleSum: proto.Float64(sum)}
	n := uint64(0)
	for i := range requestBounds {
		n += b[i].Load()
		h.Bucket[i] = &dto.Bucket{CumulativeCount: proto.Uint64(n), UpperBound: &requestBounds[i]}
	}
	n += b[len(requestBounds)].Load()
	h.SampleCount = proto.Uint64(n)
	return h, n
}

// requestSeries is what one set of labels counts.
type requestSeries struct {
	pairs                          labelPairs
	duration, received, sent       buckets
	nanoseconds, bytesIn, bytesOut atomic.Int64 // sums
	use                            use
}

// messageSeries counts messages of gRPC between two ends.
type messageSeries struct {
	pairs          labelPairs
	received, sent atomic.Uint64
	use            use
}

// use tells when a series was used last. It is of Collect.
type use struct {
	last  atomic.Uint64 // the count at the last scrape that saw a change
	since atomic.Int64  // when that was, in Unix nanoseconds
}

// over tells whether the count, n now, has not changed for DefaultIdle.
func (u *use) over(n uint64, now time.Time) bool {
	if u.last.Swap(n) != n || u.since.Load() == 0 {
		u.since.Store(now.UnixNano())
		return false
	}
	return now.Sub(time.Unix(0, u.since.Load())) >= DefaultIdle
}

// NewRequests makes a Requests with a value of the reporter label and registers it. Series that nothing has used for DefaultIdle are
// dropped when they are scraped.
func NewRequests(reporter string, reg prometheus.Registerer) *Requests {
	request, connection, ends := withEnds(requestNames...), withEnds(connectionNames...), withEnds()
	desc := func(names []string, name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, names, nil)
	}
	r := &Requests{
		reporter:    reporter,
		requests:    xsync.NewMap[RequestLabels, *requestSeries](),
		messages:    xsync.NewMap[Ends, *messageSeries](),
		connections: xsync.NewMap[ConnectionLabels, *connectionSeries](),
		live:        xsync.NewMap[*LiveConnection, struct{}](),
		total:       desc(request, "istio_requests_total", "Requests whose response has ended, or that have failed."),
		duration:    desc(request, "istio_request_duration_milliseconds", "From the request's header to the end of the response."),
		received:    desc(request, "istio_request_bytes", "Size of requests' bodies."),
		sent:        desc(request, "istio_response_bytes", "Size of responses' bodies."),
		messagesIn:  desc(ends, "istio_request_messages_total", "Messages of gRPC that clients have sent."),
		messagesOut: desc(ends, "istio_response_messages_total", "Messages of gRPC that clients were sent."),
		opened:      desc(connection, "istio_tcp_connections_opened_total", "TCP connections that were opened."),
		closed:      desc(connection, "istio_tcp_connections_closed_total", "TCP connections that were opened and have ended."),
		failed:      desc(connection, "istio_tcp_connections_failed_total", "TCP connections that could not be opened, or were refused."),
		bytesOut:    desc(connection, "istio_tcp_sent_bytes_total", "Bytes of payload that servers have sent."),
		bytesIn:     desc(connection, "istio_tcp_received_bytes_total", "Bytes of payload that clients have sent."),
	}
	reg.MustRegister(r)
	return r
}

// maxRequestSeries bounds the series of one kind that sources can make, each of which takes about 3 KiB: most of a source's labels are
// what it says of itself. Beyond that its requests are counted as those of an unknown source, until series are forgotten.
const maxRequestSeries = 20_000

// RequestSize is how large a request was.
type RequestSize struct {
	Took time.Duration
	// Received is of the request's body, Sent of the response's, in bytes.
	Received, Sent int64
}

// Done counts a request that has ended.
func (r *Requests) Done(l RequestLabels, size RequestSize) {
	s, ok := r.requests.Load(l)
	if !ok {
		bound(r.requests, &l.Ends)
		s, _ = r.requests.LoadOrCompute(l, func() (*requestSeries, bool) { return &requestSeries{pairs: r.requestPairs(&l)}, false })
	}
	s.duration.add(int64(size.Took), int64(time.Millisecond))
	s.nanoseconds.Add(int64(size.Took))
	s.received.add(size.Received, 1)
	s.bytesIn.Add(size.Received)
	s.sent.add(size.Sent, 1)
	s.bytesOut.Add(size.Sent)
}

// Messages counts messages of gRPC that clients have sent (received) or were sent.
func (r *Requests) Messages(e Ends, received bool, n int) {
	s, ok := r.messages.Load(e)
	if !ok {
		bound(r.messages, &e)
		s, _ = r.messages.LoadOrCompute(e, func() (*messageSeries, bool) { return &messageSeries{pairs: e.pairs(r.reporter, nil, nil)}, false })
	}
	if received {
		s.received.Add(uint64(n))
	} else {
		s.sent.Add(uint64(n))
	}
}

// bound makes the source an unknown one if there are as many series as may be.
func bound[K comparable, V any](series *xsync.Map[K, V], e *Ends) {
	if series.Size() >= maxRequestSeries {
		e.Source = unique.Make(Party{})
	}
}

func (r *Requests) requestPairs(l *RequestLabels) labelPairs {
	protocol, grpc := "http", ""
	if l.GRPC {
		protocol = "grpc"
		if l.GRPCStatus >= 0 {
			grpc = strconv.Itoa(int(l.GRPCStatus))
		}
	}
	return l.pairs(r.reporter, requestNames, []string{securityOf(l.MutualTLS), grpc, protocol, strconv.Itoa(int(l.Status)), l.Flag.String()})
}

// Describe implements prometheus.Collector.
func (r *Requests) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range [...]*prometheus.Desc{r.total, r.duration, r.received, r.sent, r.messagesIn, r.messagesOut, r.opened, r.closed, r.failed,
		r.bytesOut, r.bytesIn} {
		ch <- d
	}
}

// Collect implements prometheus.Collector, and drops what was not used for long.
func (r *Requests) Collect(ch chan<- prometheus.Metric) { r.collect(ch, time.Now()) }

func (r *Requests) collect(ch chan<- prometheus.Metric, now time.Time) {
	for l, s := range r.requests.All() {
		took, n := s.duration.histogram(float64(s.nanoseconds.Load()) / float64(time.Millisecond))
		received, _ := s.received.histogram(float64(s.bytesIn.Load()))
		sent, _ := s.sent.histogram(float64(s.bytesOut.Load()))
		ch <- &counter{r.total, s.pairs, n}
		ch <- &sample{r.duration, s.pairs, took}
		ch <- &sample{r.received, s.pairs, received}
		ch <- &sample{r.sent, s.pairs, sent}
		if s.use.over(n, now) {
			r.requests.Delete(l)
		}
	}
	for e, s := range r.messages.All() {
		received, sent := s.received.Load(), s.sent.Load()
		ch <- &counter{r.messagesIn, s.pairs, received}
		ch <- &counter{r.messagesOut, s.pairs, sent}
		if s.use.over(received+sent, now) {
			r.messages.Delete(e)
		}
	}
	r.collectConnections(ch, now)
}
