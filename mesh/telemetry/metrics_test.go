package telemetry_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
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
	out.Opened()
	out.Opened()
	out.AddBytes(100, 2000)
	out.Closed(telemetry.FlagNone)
	out.Failed(telemetry.FlagConnect)
	in := m.Series(flow(telemetry.ReporterDestination, client(1), server(1)))
	in.Opened()
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
	want := `
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

func TestFlags(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := telemetry.NewMetrics(reg)
	s := m.Series(telemetry.Flow{})
	want := map[telemetry.Flag]string{
		telemetry.FlagNone: "-", telemetry.FlagDenied: "DENY", telemetry.FlagConnect: "CONNECT", telemetry.FlagTLS: "TLS_FAILURE",
		telemetry.FlagH2: "H2_HANDSHAKE_FAILURE", telemetry.FlagNetworkPolicy: "NETWORK_POLICY",
		telemetry.FlagIdentity: "IDENTITY_ERROR", telemetry.FlagRevoked: "CERT_REVOKED",
	}
	for flag := range want {
		s.Failed(flag)
	}
	text, _ := scrape(t, reg, "text/plain")
	for _, label := range want {
		if n := strings.Count(text, `response_flags="`+label+`"`); n != 1 {
			t.Errorf("%d series with the flag %s in\n%s", n, label, text)
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
	first.Opened()
	m.Series(flow(telemetry.ReporterSource, client(2), server(2))).Opened() // other pods, the same labels
	renamed := *s
	renamed.CanonicalRevision = "v3"
	m.Series(flow(telemetry.ReporterSource, c, &renamed)).Opened()
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
		one.Opened()
		two.Opened()
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
		again.Opened()
		again.Closed(telemetry.FlagNone)
		m.Forget("Kubernetes//Pod/shop/web-1")
		three := m.Series(flow(telemetry.ReporterSource, client(3), server(2)))
		three.Opened()
		three.Closed(telemetry.FlagNone)
		time.Sleep(time.Hour)
		shown()
		if n := shown(); n != 1 {
			t.Fatalf("%d series after a new pod took over", n)
		}
		renamed := client(3)
		renamed.CanonicalName = "other"
		m.Series(flow(telemetry.ReporterSource, renamed, server(2))).Opened()
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

func TestConcurrentUse(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := telemetry.NewMetrics(reg)
	var users sync.WaitGroup
	const rounds = 200
	for g := range 4 {
		users.Go(func() {
			for i := range rounds {
				s := m.Series(flow(telemetry.ReporterSource, client(i%7), server(g)))
				s.Opened()
				s.AddBytes(1, 2)
				s.Closed(telemetry.FlagNone)
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
	telemetry.NewMetrics(reg).Series(telemetry.Flow{}).Opened()
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

func BenchmarkSeries(b *testing.B) {
	m := telemetry.NewMetrics(prometheus.NewRegistry())
	f := flow(telemetry.ReporterSource, client(1), server(1))
	b.ReportAllocs()
	for b.Loop() {
		s := m.Series(f)
		s.Opened()
		s.Closed(telemetry.FlagNone)
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
