package telemetry

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

func someEnds() Ends {
	return Ends{
		Source: unique.Make(Party{Workload: "curl", Namespace: "shop", Principal: "spiffe://cluster.local/ns/shop/sa/curl",
			App: "curl", Version: "v1", CanonicalName: "curl", CanonicalRevision: "v1", Cluster: "Kubernetes"}),
		Destination: unique.Make(Party{Workload: "stock-v2", Namespace: "shop", CanonicalName: "stock", CanonicalRevision: "v2"}),
		Service:     unique.Make(ServiceName{"stock.shop.svc.cluster.local", "stock", "shop"}),
	}
}

// histogramOf returns the first histogram of a metric.
func histogramOf(t *testing.T, reg prometheus.Gatherer, name string) *dto.Histogram {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetHistogram()
		}
	}
	t.Fatalf("no metric %s", name)
	return nil
}

func TestRequests(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := NewRequests("waypoint", reg)
	l := RequestLabels{
		Ends: someEnds(), Status: 200, GRPCStatus: NoGRPC, MutualTLS: true,
	}
	r.Done(l, RequestSize{Took: 700 * time.Microsecond, Received: 5, Sent: 70})
	same := l
	same.Destination = unique.Make(l.Destination.Value())
	r.Done(same, RequestSize{Took: 3 * time.Millisecond, Sent: 10_000_000})
	grpc := l
	grpc.GRPC, grpc.GRPCStatus, grpc.Flag, grpc.Status = true, 14, RequestNoHealthy, 200
	r.Done(grpc, RequestSize{Took: 2 * time.Hour})
	r.Messages(l.Ends, true, 3)
	r.Messages(l.Ends, false, 4)

	const common = `destination_app="unknown",destination_canonical_revision="v2",destination_canonical_service="stock",` +
		`destination_cluster="unknown",destination_principal="unknown",destination_service="stock.shop.svc.cluster.local",` +
		`destination_service_name="stock",destination_service_namespace="shop",destination_version="unknown",` +
		`destination_workload="stock-v2",destination_workload_namespace="shop",`
	const source = `source_app="curl",source_canonical_revision="v1",source_canonical_service="curl",source_cluster="Kubernetes",` +
		`source_principal="spiffe://cluster.local/ns/shop/sa/curl",source_version="v1",source_workload="curl",source_workload_namespace="shop"`
	want := `
# HELP istio_requests_total Requests whose response has ended, or that have failed.
# TYPE istio_requests_total counter
istio_requests_total{connection_security_policy="mutual_tls",` + common + `grpc_response_status="",reporter="waypoint",request_protocol="http",response_code="200",response_flags="-",` + source + `} 2
istio_requests_total{connection_security_policy="mutual_tls",` + common + `grpc_response_status="14",reporter="waypoint",request_protocol="grpc",response_code="200",response_flags="UH",` + source + `} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "istio_requests_total"); err != nil {
		t.Error(err)
	}
	const ends = common + `reporter="waypoint",` + source
	want = `
# HELP istio_request_messages_total Messages of gRPC that clients have sent.
# TYPE istio_request_messages_total counter
istio_request_messages_total{` + ends + `} 3
# HELP istio_response_messages_total Messages of gRPC that clients were sent.
# TYPE istio_response_messages_total counter
istio_response_messages_total{` + ends + `} 4
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "istio_request_messages_total", "istio_response_messages_total"); err != nil {
		t.Error(err)
	}
	type at struct{ bound, count float64 }
	for name, tt := range map[string]struct {
		sum     float64
		buckets []at
	}{
		"istio_request_duration_milliseconds": {3.7, []at{{0.5, 0}, {1, 1}, {5, 2}, {3_600_000, 2}}},
		"istio_request_bytes":                 {5, []at{{0.5, 1}, {1, 1}, {5, 2}, {3_600_000, 2}}},
		"istio_response_bytes":                {10_000_070, []at{{50, 0}, {100, 1}, {3_600_000, 1}}},
	} {
		h := histogramOf(t, reg, name)
		if h.GetSampleCount() != 2 || h.GetSampleSum() != tt.sum || len(h.GetBucket()) != 19 {
			t.Errorf("%s: %v", name, h)
		}
		for _, want := range tt.buckets {
			for _, b := range h.GetBucket() {
				if b.GetUpperBound() == want.bound && float64(b.GetCumulativeCount()) != want.count {
					t.Errorf("%s: %d values up to %v, want %v", name, b.GetCumulativeCount(), want.bound, want.count)
				}
			}
		}
	}

	if n := testing.AllocsPerRun(100, func() { r.Done(l, RequestSize{Took: time.Millisecond, Sent: 70}); r.Messages(l.Ends, true, 1) }); n > 0 {
		t.Errorf("counting allocates %v times", n)
	}
}

// TestRequestsAreBounded: sources that call themselves ever something else do not make series without end.
func TestRequestsAreBounded(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := NewRequests("waypoint", reg)
	const more = 100
	nobody, service := unique.Make(Party{}), unique.Make(ServiceName{})
	for i := range maxRequestSeries + more {
		r.Done(RequestLabels{Ends: Ends{unique.Make(Party{Workload: strconv.Itoa(i)}), nobody, service}}, RequestSize{})
	}
	if got := r.requests.Size(); got != maxRequestSeries+1 {
		t.Errorf("%d series, want %d", got, maxRequestSeries+1)
	}
	rest, ok := r.requests.Load(RequestLabels{Ends: Ends{nobody, nobody, service}})
	if !ok || rest.duration[0].Load() != more {
		t.Errorf("the rest is not counted as that of an unknown source")
	}
}

// TestRequestsAreForgotten: a series that nothing uses any more is scraped for DefaultIdle and then dropped.
func TestRequestsAreForgotten(t *testing.T) {
	r := NewRequests("waypoint", prometheus.NewPedanticRegistry())
	r.Done(RequestLabels{Ends: someEnds()}, RequestSize{})
	r.Messages(someEnds(), true, 1)
	live := r.Opened(ConnectionLabels{Ends: someEnds()}, new(atomic.Uint64), new(atomic.Uint64))
	scrape := func(at time.Time) int {
		ch := make(chan prometheus.Metric, 100)
		r.collect(ch, at)
		return len(ch)
	}
	now := time.Now()
	for _, tt := range []struct {
		at   time.Time
		want int
	}{{now, 9}, {now.Add(DefaultIdle - time.Second), 9}, {now.Add(DefaultIdle), 9}, {now.Add(DefaultIdle + 1), 3}} {
		if got := scrape(tt.at); got != tt.want {
			t.Errorf("%v later: %d metrics; want %d", tt.at.Sub(now), got, tt.want)
		}
	}
	live.Closed(RequestOK)
	now = now.Add(DefaultIdle)
	for at, want := range []int{4, 4, 0} { // closed counts too, for as long again
		if got := scrape(now.Add(time.Duration(at) * DefaultIdle)); got != want {
			t.Errorf("scrape %d after the last connection: %d metrics; want %d", at, got, want)
		}
	}
}

// TestConnectionsOfRequests: connections count as they are opened and closed, and their bytes while they live.
func TestConnectionsOfRequests(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := NewRequests("waypoint", reg)
	var sent, received atomic.Uint64
	l := ConnectionLabels{Ends: someEnds(), MutualTLS: true}
	c := r.Opened(l, &sent, &received)
	value := func(name, flag string) float64 {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				labels := map[string]string{}
				for _, p := range m.GetLabel() {
					labels[p.GetName()] = p.GetValue()
				}
				if f.GetName() == name && labels["response_flags"] == flag && labels["request_protocol"] == "tcp" &&
					labels["connection_security_policy"] == "mutual_tls" && labels["reporter"] == "waypoint" && labels["source_workload"] == "curl" {
					return m.GetCounter().GetValue()
				}
			}
		}
		return -1
	}
	check := func(when, name, flag string, want float64) {
		t.Helper()
		if got := value(name, flag); got != want {
			t.Errorf("%s: %s{%s} is %v, want %v", when, name, flag, got, want)
		}
	}
	check("open", "istio_tcp_connections_opened_total", "-", 1)
	check("open", "istio_tcp_connections_closed_total", "-", -1)
	sent.Store(100)
	received.Store(7)
	check("open", "istio_tcp_sent_bytes_total", "-", 100)
	check("open", "istio_tcp_received_bytes_total", "-", 7)
	sent.Add(11)
	c.Closed(RequestTimeout)
	check("closed", "istio_tcp_sent_bytes_total", "-", 111)
	check("closed", "istio_tcp_received_bytes_total", "-", 7)
	check("closed", "istio_tcp_connections_closed_total", "UT", 1)
	l.Flag = RequestConnectFailed
	r.Failed(l)
	check("failed", "istio_tcp_connections_failed_total", "UF", 1)
	check("failed", "istio_tcp_connections_opened_total", "-", 1)
}

func BenchmarkRequestsDone(b *testing.B) {
	r := NewRequests("waypoint", prometheus.NewRegistry())
	l := RequestLabels{Ends: someEnds(), Status: 200, GRPCStatus: NoGRPC, MutualTLS: true}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Done(l, RequestSize{Took: 3 * time.Millisecond, Sent: 70})
		}
	})
}
