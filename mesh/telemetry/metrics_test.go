package telemetry_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

var (
	clientID = identity.Identity{TrustDomain: "cluster.local", Namespace: "front", ServiceAccount: "curl"}
	serverID = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
)

func client(n int) *directory.Workload {
	return &directory.Workload{
		UID: fmt.Sprintf("Kubernetes//Pod/front/curl-%d", n), Name: fmt.Sprint("curl-", n), Namespace: "front", Identity: clientID,
		CanonicalName: "curl", CanonicalRevision: "latest", WorkloadName: "curl", ClusterID: "Kubernetes",
		Locality: directory.Locality{Region: "r1", Zone: "z1"},
	}
}

func server(n int) *directory.Workload {
	return &directory.Workload{
		UID: fmt.Sprintf("Kubernetes//Pod/shop/web-%d", n), Name: fmt.Sprint("web-", n), Namespace: "shop", Identity: serverID,
		CanonicalName: "web", CanonicalRevision: "v2", WorkloadName: "web-v2", ClusterID: "Kubernetes",
	}
}

var webService = &directory.Service{
	ServiceKey: directory.ServiceKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local"}, Name: "web",
}

func flow(r telemetry.Reporter, src, dst *directory.Workload) telemetry.Flow {
	return telemetry.Flow{Reporter: r, Source: src, Destination: dst, Service: webService,
		SourceIdentity: clientID, DestinationIdentity: serverID, MutualTLS: true}
}

// knownLabels are those of the flow between client and server, in the order of the exposition.
func knownLabels(reporter, flag string) string {
	return `{connection_security_policy="mutual_tls",destination_app="web",destination_canonical_revision="v2",` +
		`destination_canonical_service="web",destination_cluster="Kubernetes",destination_principal="spiffe://cluster.local/ns/shop/sa/web",` +
		`destination_region="unknown",destination_service="web.shop.svc.cluster.local",destination_service_name="web",` +
		`destination_service_namespace="shop",destination_version="v2",destination_workload="web-v2",` +
		`destination_workload_namespace="shop",destination_zone="unknown",reporter="` + reporter + `",request_protocol="tcp",` +
		`response_flags="` + flag + `",source_app="curl",source_canonical_revision="latest",source_canonical_service="curl",` +
		`source_cluster="Kubernetes",source_principal="spiffe://cluster.local/ns/front/sa/curl",source_region="r1",` +
		`source_version="latest",source_workload="curl",source_workload_namespace="front",source_zone="z1"}`
}

func scrape(t *testing.T, reg *prometheus.Registry, accept string) (string, http.Header) {
	t.Helper()
	req := httptest.NewRequest("GET", "/metrics", nil)
	req.Header.Set("Accept", accept)
	rec := httptest.NewRecorder()
	telemetry.Handler(reg).ServeHTTP(rec, req)
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	return rec.Body.String(), rec.Header()
}

func TestExposition(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := telemetry.NewMetrics(reg)
	out := m.Series(flow(telemetry.ReporterSource, client(1), server(1)))
	out.Opened(700 * time.Microsecond)
	out.Opened(time.Minute)
	out.FirstByte(30 * time.Millisecond)
	out.AddBytes(100, 2000)
	out.Closed(telemetry.FlagNone)
	out.Failed(telemetry.FlagConnect)
	in := m.Series(flow(telemetry.ReporterDestination, client(1), server(1)))
	in.Opened(time.Millisecond) // a bound belongs to its bucket
	in.AddBytes(100, 2000)
	in.Closed(telemetry.FlagTLS)
	m.Series(telemetry.Flow{}).Failed(telemetry.FlagDenied)

	src, dst := knownLabels("source", "-"), knownLabels("destination", "-")
	none := strings.NewReplacer("front", "unknown", "curl", "unknown", "latest", "unknown", "r1", "unknown", "z1", "unknown",
		"web.shop.svc.cluster.local", "unknown", "web-v2", "unknown", "web", "unknown", "shop", "unknown", "v2", "unknown",
		"Kubernetes", "unknown", "mutual_tls", "unknown").Replace(knownLabels("source", "DENY"))
	for _, id := range []string{"unknown/sa/unknown"} {
		none = strings.ReplaceAll(none, "spiffe://cluster.local/ns/"+id, "unknown")
	}
	want := histogramText("connect_duration_seconds", "From the client's connection to the open way to the server: certificate, handshake and the server's answer included.",
		"destination", ".001", 1, 0.001, "source", ".001 over", 2, 60.0007) +
		histogramText("first_byte_duration_seconds", "From the opened connection to the first byte of the server's payload.", "source", ".05", 1, 0.03) + `
# HELP istio_tcp_connections_closed_total TCP connections that were opened and have ended.
# TYPE istio_tcp_connections_closed_total counter
istio_tcp_connections_closed_total` + knownLabels("destination", "TLS_FAILURE") + ` 1
istio_tcp_connections_closed_total` + src + ` 1
# HELP istio_tcp_connections_failed_total TCP connections that could not be opened, or were refused.
# TYPE istio_tcp_connections_failed_total counter
istio_tcp_connections_failed_total` + knownLabels("source", "CONNECT") + ` 1
istio_tcp_connections_failed_total` + none + ` 1
# HELP istio_tcp_connections_opened_total TCP connections that were opened.
# TYPE istio_tcp_connections_opened_total counter
istio_tcp_connections_opened_total` + dst + ` 1
istio_tcp_connections_opened_total` + src + ` 2
# HELP istio_tcp_received_bytes_total Bytes of payload that the reporter's workload has received.
# TYPE istio_tcp_received_bytes_total counter
istio_tcp_received_bytes_total` + dst + ` 100
istio_tcp_received_bytes_total` + src + ` 2000
# HELP istio_tcp_sent_bytes_total Bytes of payload that the reporter's workload has sent.
# TYPE istio_tcp_sent_bytes_total counter
istio_tcp_sent_bytes_total` + dst + ` 2000
istio_tcp_sent_bytes_total` + src + ` 100
# HELP istio_tcp_sockets_open TCP connections that are open now.
# TYPE istio_tcp_sockets_open gauge
istio_tcp_sockets_open{reporter="destination"} 0
istio_tcp_sockets_open{reporter="source"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// histogramText is the exposition of a histogram. For each reporter args has the name, the bounds of the buckets that hold one
// sample each, the count and the sum.
func histogramText(name, help string, args ...any) string {
	var b strings.Builder
	name = "ambit_tcp_" + name
	fmt.Fprintf(&b, "\n# HELP %s %s\n# TYPE %s histogram\n", name, help, name)
	for ; len(args) > 0; args = args[4:] {
		l := fmt.Sprintf(`connection_security_policy="mutual_tls",destination_service="web.shop.svc.cluster.local",`+
			`destination_workload="web-v2",destination_workload_namespace="shop",reporter=%q`, args[0])
		n := 0
		for _, bound := range []string{"0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10"} {
			if slices.Contains(strings.Fields(args[1].(string)), strings.TrimPrefix(bound, "0")) {
				n++
			}
			fmt.Fprintf(&b, "%s_bucket{%s,le=%q} %d\n", name, l, bound, n)
		}
		fmt.Fprintf(&b, "%s_bucket{%s,le=\"+Inf\"} %d\n%s_sum{%s} %v\n%s_count{%s} %d\n", name, l, args[2], name, l, args[3], name, l, args[2])
	}
	return b.String()[1:]
}

// TestFlags exposes each flag, and looks whether users are told what it means.
func TestFlags(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshoot.md")
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewPedanticRegistry()
	m := telemetry.NewMetrics(reg)
	s := m.Series(telemetry.Flow{})
	want := map[telemetry.Flag]string{
		telemetry.FlagNone: "-", telemetry.FlagDenied: "DENY", telemetry.FlagConnect: "CONNECT", telemetry.FlagTLS: "TLS_FAILURE",
		telemetry.FlagH2: "H2_HANDSHAKE_FAILURE", telemetry.FlagNetworkPolicy: "NETWORK_POLICY",
		telemetry.FlagIdentity: "IDENTITY_ERROR", telemetry.FlagRevoked: "CERT_REVOKED",
		telemetry.FlagUnregistered: "REGISTRY_ONLY", telemetry.FlagLimit: "POD_LIMIT",
	}
	func() {
		defer func() { recover() }()
		name := telemetry.Flag(len(want)).String() // panics behind the last one
		t.Errorf("there is a flag %s that is not tested here", name)
	}()
	for flag := range want {
		s.Failed(flag)
	}
	text, _ := scrape(t, reg, "text/plain")
	for _, label := range want {
		if n := strings.Count(text, `response_flags="`+label+`"`); n != 1 {
			t.Errorf("%d series with the flag %s in\n%s", n, label, text)
		}
		if label != "-" && !strings.Contains(string(page), "| `"+label+"` |") {
			t.Errorf("docs/troubleshoot.md does not say what %s means", label)
		}
	}
}

func TestSeriesAreShared(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := telemetry.NewMetrics(reg)
	c, s := client(1), server(1)
	first := m.Series(flow(telemetry.ReporterSource, c, s))
	if m.Series(flow(telemetry.ReporterSource, c, s)) != first {
		t.Error("the same flow has two series")
	}
	first.Opened(0)
	m.Series(flow(telemetry.ReporterSource, client(2), server(2))).Opened(0) // other pods, the same labels
	renamed := *s
	renamed.CanonicalRevision = "v3"
	m.Series(flow(telemetry.ReporterSource, c, &renamed)).Opened(0)
	text, _ := scrape(t, reg, "text/plain")
	for version, want := range map[string]string{"v2": " 2\n", "v3": " 1\n"} {
		found := false
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "istio_tcp_connections_opened_total") && strings.Contains(line, `destination_version="`+version+`"`) {
				found = true
				if !strings.HasSuffix(line, want) {
					t.Errorf("%s: %s, want%s", version, line, want)
				}
			}
		}
		if !found {
			t.Errorf("no series of %s in\n%s", version, text)
		}
	}
}

// TestExpiry: series live as long as a workload or a connection of theirs, and some minutes longer.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		m := telemetry.NewMetrics(reg)
		shown := func() int {
			n, err := testutil.GatherAndCount(reg, "istio_tcp_connections_opened_total")
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		one := m.Series(flow(telemetry.ReporterSource, client(1), server(1)))
		two := m.Series(flow(telemetry.ReporterSource, client(2), server(1)))
		one.Opened(0)
		two.Opened(0)
		one.Closed(telemetry.FlagNone)
		m.Forget("Kubernetes//Pod/front/curl-1")
		time.Sleep(time.Hour)
		if n := shown(); n != 1 {
			t.Fatalf("%d series while another pod takes part", n)
		}
		m.Forget("Kubernetes//Pod/front/curl-2")
		m.Forget("Kubernetes//Pod/front/unknown")
		time.Sleep(time.Hour)
		if n := shown(); n != 1 {
			t.Fatalf("%d series while a connection is open", n)
		}
		two.Closed(telemetry.FlagNone)
		time.Sleep(time.Minute)
		if n := shown(); n != 1 {
			t.Fatalf("%d series a minute after the last connection", n)
		}
		time.Sleep(10 * time.Minute)
		shown() // shows them a last time
		if n := shown(); n != 0 {
			t.Fatalf("%d series long after", n)
		}
		again := m.Series(flow(telemetry.ReporterSource, client(1), server(1)))
		again.Opened(0)
		again.Closed(telemetry.FlagNone)
		m.Forget("Kubernetes//Pod/shop/web-1")
		three := m.Series(flow(telemetry.ReporterSource, client(3), server(2)))
		three.Opened(0)
		three.Closed(telemetry.FlagNone)
		time.Sleep(time.Hour)
		shown()
		if n := shown(); n != 1 {
			t.Fatalf("%d series after a new pod took over", n)
		}
		renamed := client(3)
		renamed.CanonicalName = "other"
		m.Series(flow(telemetry.ReporterSource, renamed, server(2))).Opened(0)
		if n := shown(); n != 2 {
			t.Fatalf("%d series after a pod got other labels", n)
		}
		time.Sleep(time.Hour)
		shown()
		if n := shown(); n != 1 {
			t.Fatalf("%d series long after a pod got other labels", n)
		}
	})
}

// TestIdleFlowsExpire: what nothing uses is forgotten though its pods live, but not what has a connection.
func TestIdleFlowsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewPedanticRegistry()
		m := telemetry.NewMetrics(reg)
		sweep := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Minute) {
				m.Sweep(time.Hour)
			}
		}
		shown := func(want int) {
			t.Helper()
			for _, name := range []string{"istio_tcp_connections_opened_total", "ambit_tcp_connect_duration_seconds"} {
				if n, err := testutil.GatherAndCount(reg, name); n != want || err != nil {
					t.Errorf("%d series of %s, want %d; %v", n, name, want, err)
				}
			}
		}
		// Without each other's labels: histograms tell by destination.
		busy, quiet, held := server(1), server(2), server(3)
		for _, w := range []*directory.Workload{busy, quiet, held} {
			w.WorkloadName = w.Name
		}
		open := func(w *directory.Workload) *telemetry.Series {
			s := m.Series(flow(telemetry.ReporterSource, client(1), w))
			s.Opened(time.Millisecond)
			return s
		}
		long := open(held)
		open(quiet).Closed(telemetry.FlagNone)
		for range 12 {
			open(busy).Closed(telemetry.FlagNone)
			sweep(30 * time.Minute)
		}
		shown(2) // and not that of quiet, though nobody has scraped meanwhile
		long.Closed(telemetry.FlagNone)
		sweep(2 * time.Hour)
		shown(0)
		open(quiet)
		shown(1)
	})
}

func TestConcurrentUse(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := telemetry.NewMetrics(reg)
	var users sync.WaitGroup
	const rounds = 200
	for g := range 4 {
		users.Go(func() {
			for i := range rounds {
				s := m.Series(flow(telemetry.ReporterSource, client(i%7), server(g)))
				s.Opened(0)
				s.AddBytes(1, 2)
				s.Closed(telemetry.FlagNone)
				if i%20 == 0 {
					m.Sweep(0)
				}
				if i%50 == 0 {
					m.Forget(client(i % 7).UID)
					if _, err := reg.Gather(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	users.Wait()
	text, _ := scrape(t, reg, "text/plain")
	if want := "istio_tcp_connections_opened_total" + knownLabels("source", "-") + fmt.Sprintf(" %d\n", 4*rounds); !strings.Contains(text, want) {
		t.Errorf("no %s in\n%s", want, text)
	}
}

func TestRegistryAndFormats(t *testing.T) {
	reg := telemetry.NewRegistry("ztunnel", "v1.2.3")
	telemetry.NewMetrics(reg).Series(telemetry.Flow{}).Opened(0)
	text, header := scrape(t, reg, "text/plain")
	for _, want := range []string{`istio_build{component="ztunnel",tag="v1.2.3"} 1`, "process_open_fds ", "go_goroutines "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if got := header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain") {
		t.Errorf("content type %s", got)
	}
	text, header = scrape(t, reg, "application/openmetrics-text; version=1.0.0")
	if got := header.Get("Content-Type"); !strings.HasPrefix(got, "application/openmetrics-text") || !strings.HasSuffix(text, "# EOF\n") ||
		!strings.Contains(text, "# TYPE istio_tcp_connections_opened counter") {
		t.Errorf("content type %s, text\n%s", got, text)
	}
}

// BenchmarkConnection is what a connection's metrics cost: one look-up, and then a handle that is held.
func BenchmarkConnection(b *testing.B) {
	m := telemetry.NewMetrics(prometheus.NewRegistry())
	f := flow(telemetry.ReporterSource, client(1), server(1))
	b.ReportAllocs()
	for b.Loop() {
		s := m.Series(f)
		s.Opened(time.Millisecond)
		s.FirstByte(time.Millisecond)
		s.AddBytes(1000, 2000)
		s.Closed(telemetry.FlagNone)
	}
}

// BenchmarkBytes is what a report of bytes costs.
func BenchmarkBytes(b *testing.B) {
	s := telemetry.NewMetrics(prometheus.NewRegistry()).Series(flow(telemetry.ReporterSource, client(1), server(1)))
	b.ReportAllocs()
	for b.Loop() {
		s.AddBytes(1000, 2000)
	}
}

// BenchmarkScrape is what a scrape of 1,000 pairs of workloads costs.
func BenchmarkScrape(b *testing.B) {
	reg := prometheus.NewRegistry()
	m := telemetry.NewMetrics(reg)
	for i := range 1000 {
		w := server(i)
		w.WorkloadName = w.Name
		m.Series(flow(telemetry.ReporterSource, client(1), w)).Opened(time.Millisecond)
	}
	handler := telemetry.Handler(reg)
	b.ReportAllocs()
	for b.Loop() {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
}

func TestMain(m *testing.M) { leaktest.Main(m) }
