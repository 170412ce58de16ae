package telemetry

import (
	"strconv"
	"strings"
	"testing"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestRequests(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := NewRequests("waypoint", reg)
	l := RequestLabels{
		Source: unique.Make(Party{Workload: "curl", Namespace: "shop", Principal: "spiffe://cluster.local/ns/shop/sa/curl",
			App: "curl", Version: "v1", CanonicalName: "curl", CanonicalRevision: "v1", Cluster: "Kubernetes"}),
		Destination: unique.Make(Party{Workload: "stock-v2", Namespace: "shop", CanonicalName: "stock", CanonicalRevision: "v2"}),
		Service:     unique.Make(ServiceName{"stock.shop.svc.cluster.local", "stock", "shop"}),
		Status:      200, GRPCStatus: NoGRPC, MutualTLS: true,
	}
	r.Done(l, 700*time.Microsecond)
	same := l
	same.Destination = unique.Make(l.Destination.Value())
	r.Done(same, 3*time.Millisecond)
	grpc := l
	grpc.GRPC, grpc.GRPCStatus, grpc.Flag, grpc.Status = true, 14, RequestNoHealthy, 200
	r.Done(grpc, 2*time.Hour)

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
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "istio_request_duration_milliseconds" {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		if h.GetSampleCount() != 2 || h.GetSampleSum() != 3.7 || h.GetBucket()[1].GetCumulativeCount() != 1 || h.GetBucket()[2].GetCumulativeCount() != 2 {
			t.Errorf("durations: %v", h)
		}
	}

	if n := testing.AllocsPerRun(100, func() { r.Done(l, time.Millisecond) }); n > 0 {
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
		r.Done(RequestLabels{Source: unique.Make(Party{Workload: strconv.Itoa(i)}), Destination: nobody, Service: service}, 0)
	}
	if got := r.series.Size(); got != maxRequestSeries+1 {
		t.Errorf("%d series, want %d", got, maxRequestSeries+1)
	}
	rest, ok := r.series.Load(RequestLabels{Source: nobody, Destination: nobody, Service: service})
	if !ok || rest.buckets[0].Load() != more {
		t.Errorf("the rest is not counted as that of an unknown source")
	}
}

// TestRequestsAreForgotten: a series that nothing uses any more is scraped for DefaultIdle and then dropped.
func TestRequestsAreForgotten(t *testing.T) {
	r := NewRequests("waypoint", prometheus.NewPedanticRegistry())
	r.Done(RequestLabels{Source: unique.Make(Party{}), Destination: unique.Make(Party{}), Service: unique.Make(ServiceName{})}, 0)
	scrape := func(at time.Time) int {
		ch := make(chan prometheus.Metric, 100)
		r.collect(ch, at)
		return len(ch)
	}
	now := time.Now()
	for _, tt := range []struct {
		at   time.Time
		want int
	}{{now, 2}, {now.Add(DefaultIdle - time.Second), 2}, {now.Add(DefaultIdle), 2}, {now.Add(DefaultIdle + 1), 0}} {
		if got := scrape(tt.at); got != tt.want {
			t.Errorf("%v later: %d metrics; want %d", tt.at.Sub(now), got, tt.want)
		}
	}
}
