package netns

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/cli/app"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// get asks a proxy's own port and wants success.
func (w *world) get(p *lab.Proxy, port int, path string) string {
	w.t.Helper()
	code, body, err := p.Get(w.ctx, port, path)
	w.must(err)
	if code != http.StatusOK {
		w.t.Fatalf("port %d, %s: status %d: %s", port, path, code, body)
	}
	return body
}

// TestMetrics looks for the series of one tunnelled connection on both sides.
func TestMetrics(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	s := w.serve("web", 1, true, server)
	w.settle()
	w.expect(client, s.at(false, 80), client.IPv4)
	w.refused(client, addr(server, false, 9999))
	for i, reporter := range []string{"source", "destination"} {
		p := w.proxies[i]
		labels := []string{
			`reporter="` + reporter + `"`, `source_principal="` + client.Identity() + `"`, `destination_principal="` + server.Identity() + `"`,
			`source_workload="client"`, `destination_workload="server"`, `connection_security_policy="mutual_tls"`,
		}
		for name, least := range map[string]float64{
			"istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 1, "istio_tcp_connections_failed_total": 1,
			"istio_tcp_sent_bytes_total": 5, "istio_tcp_received_bytes_total": 5,
		} {
			w.eventually(name+" of the "+reporter, func() error {
				for _, path := range []string{"/metrics", "/stats/prometheus"} {
					got := sum(w.get(p, 15020, path), name, labels)
					if got < least {
						return fmt.Errorf("%s: %v, want at least %v", path, got, least)
					}
				}
				return nil
			})
		}
		metrics := w.get(p, 15020, "/metrics")
		for _, name := range []string{"istio_build", "workload_manager_active_proxy_count", "istio_xds_message_total"} {
			if sum(metrics, name, nil) == 0 {
				t.Errorf("no %s in the metrics of %s", name, p.Node.Name)
			}
		}
	}
	if got := sum(w.get(w.proxies[1], 15020, "/metrics"), "istio_tcp_connections_opened_total", []string{`destination_service="` + s.host + `"`}); got < 1 {
		t.Errorf("connections through the service that its server's proxy counted: %v", got)
	}
}

// TestMetricsOfKnownTraffic looks for flags, histograms, pools, certificates and pods after traffic of which all is known. The
// scraper is a captured pod, as Prometheus often is.
func TestMetricsOfKnownTraffic(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.Control.SetAuthorizations(deny("no-8081", client, 8081))
	w.settle()
	for range 3 {
		w.expect(client, addr(server, false, 8080), client.IPv4)
	}
	w.refused(client, addr(server, false, 8081)) // denied
	w.refused(client, addr(server, false, 9999)) // nobody listens
	w.hold(client, addr(server, false, 8080))

	workloads := `destination_workload="server"`
	for i, tc := range []struct {
		reporter string
		want     map[string]float64
	}{
		{"source", map[string]float64{
			`ambit_pool_dials_total`: 1, `ambit_pool_hits_total`: 5, `ambit_pool_waits_total`: 1,
			`ambit_pool_connections namespace="default",pod="client"`:                     1,
			`ambit_pool_streams namespace="default",pod="client"`:                         1,
			`ambit_pod_connections direction="outbound",namespace="default",pod="client"`: 1,
			`ambit_pod_connections direction="inbound",namespace="default",pod="client"`:  0,
			`ambit_certificates state="valid"`:                                            1,
		}},
		{"destination", map[string]float64{
			`ambit_pool_dials_total`: 0,
			`ambit_pod_connections direction="inbound",namespace="default",pod="server"`: 1,
		}},
	} {
		for metric, n := range map[string]float64{
			`istio_tcp_connections_opened_total response_flags="-"`:       4,
			`istio_tcp_connections_closed_total response_flags="-"`:       3,
			`istio_tcp_connections_failed_total response_flags="DENY"`:    1,
			`istio_tcp_connections_failed_total response_flags="CONNECT"`: 1,
			`ambit_tcp_connect_duration_seconds_count ` + workloads:       4,
			`ambit_tcp_first_byte_duration_seconds_count ` + workloads:    4,
		} {
			tc.want[metric+`,reporter="`+tc.reporter+`"`] = n
		}
		tc.want[`istio_tcp_sockets_open reporter="`+tc.reporter+`"`] = 1
		p := w.proxies[i]
		for metric, want := range tc.want {
			name, labels, _ := strings.Cut(metric, " ")
			w.eventually(metric+" on "+p.Node.Name, func() error {
				if got := sum(w.get(p, 15020, "/metrics"), name, strings.Split(labels, ",")); got != want {
					return fmt.Errorf("%v, want %v", got, want)
				}
				return nil
			})
		}
		if end := sum(w.get(p, 15020, "/metrics"), "ambit_certificate_expiry_timestamp_seconds", nil); end < float64(time.Now().Unix()) {
			t.Errorf("%s: certificate ends at %v", p.Node.Name, end)
		}
	}

	metrics := w.get(w.proxies[0], 15020, "/metrics")
	if sum(metrics, "ambit_pod_work_seconds_total", []string{`pod="client"`}) <= 0 {
		t.Error("no work was done for the client's pod")
	}
	documented(t, metrics)

	c, err := client.Dial(net.JoinHostPort(n1.IPv4.String(), "15020"))
	w.must(err)
	defer c.Close()
	scrape := "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.0.0\r\nAccept-Encoding: gzip\r\n\r\n"
	_, err = io.WriteString(c, scrape)
	w.must(err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	w.must(err)
	unzipped, err := gzip.NewReader(resp.Body)
	w.must(err)
	body, err := io.ReadAll(unzipped)
	w.must(err)
	if kind := resp.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/openmetrics-text") || !strings.HasSuffix(string(body), "# EOF\n") ||
		!strings.Contains(string(body), "ambit_tcp_connect_duration_seconds_bucket") {
		t.Errorf("a captured pod's scrape: %s, %d bytes", kind, len(body))
	}
}

// documented fails the test unless users are told of all metrics.
func documented(t *testing.T, metrics string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllStringSubmatch(metrics, -1) {
		name := m[1]
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		if found++; !strings.Contains(string(page), "`"+name) {
			t.Errorf("docs/observability.md does not mention %s", name)
		}
	}
	if found < 30 {
		t.Errorf("only %d metrics in\n%s", found, metrics)
	}
}

// sum adds the samples of a metric that have all of the labels.
func sum(metrics, name string, labels []string) float64 {
	sample := regexp.MustCompile(`(?m)^` + name + `(?:\{(.*)\})? ([0-9.e+]+)`)
	total := 0.0
samples:
	for _, m := range sample.FindAllStringSubmatch(metrics, -1) {
		for _, l := range labels {
			if !strings.Contains(m[1], l) {
				continue samples
			}
		}
		var v float64
		fmt.Sscan(m[2], &v)
		total += v
	}
	return total
}

// TestConfigDump reads the keys that istioctl reads.
func TestConfigDump(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	s := w.serve("web", 1, true, server)
	w.Control.SetAuthorizations(deny("some", client, 1))
	w.settle()
	w.hold(client, s.at(false, 80))
	for i, p := range w.proxies {
		pod := []*lab.Pod{client, server}[i]
		d := w.dump(p)
		for _, key := range []string{"workloads", "services", "policies", "certificates", "workloadState", "version", "config"} {
			if d[key] == nil {
				t.Errorf("%s: no key %s", p.Node.Name, key)
			}
		}
		cert := find(d["certificates"], "identity", pod.Identity())
		if cert == nil || cert["state"] != "Available" || len(cert["certChain"].([]any)) == 0 || len(cert["rootCerts"].([]any)) == 0 {
			t.Errorf("%s: certificate of its pod: %v", p.Node.Name, cert)
		}
		if wl := find(d["workloads"], "name", "server"); wl == nil || wl["protocol"] != "HBONE" || wl["node"] != "node2" {
			t.Errorf("%s: workload: %v", p.Node.Name, wl)
		}
		if svc := find(d["services"], "hostname", s.host); svc == nil {
			t.Errorf("%s: no service", p.Node.Name)
		}
		if policy := find(d["policies"], "name", "some"); policy == nil || policy["action"] != "Deny" {
			t.Errorf("%s: policy: %v", p.Node.Name, policy)
		}
		state, _ := d["workloadState"].(map[string]any)[pod.UID].(map[string]any)
		if state["state"] != "Up" {
			t.Errorf("%s: state of its pod: %v", p.Node.Name, state)
		}
		direction := []string{"outbound", "inbound"}[i]
		conns, _ := state["connections"].(map[string]any)[direction].([]any)
		if len(conns) != 1 {
			t.Errorf("%s: %s connections: %v", p.Node.Name, direction, conns)
		} else if c := conns[0].(map[string]any); c["protocol"] != "HBONE" || !strings.HasPrefix(c["src"].(string), client.IPv4.String()) {
			t.Errorf("%s: connection: %v", p.Node.Name, c)
		}
		if body := w.get(p, 15000, "/connections"); !strings.Contains(body, client.Identity()) {
			t.Errorf("%s: /connections: %s", p.Node.Name, body)
		}
		// The command reads it, and shows what is there.
		file := filepath.Join(t.TempDir(), "dump.json")
		w.must(os.WriteFile(file, []byte(w.get(p, 15000, "/config_dump")), 0o600))
		var out, errOut bytes.Buffer
		if code := app.Run(w.ctx, []string{"ztunnel", "all", "--file", file}, nil, &out, &errOut); code != 0 || errOut.Len() > 0 {
			t.Errorf("ambit ztunnel: exit code %d: %s", code, &errOut)
		}
		for _, row := range []string{
			`default +server +` + server.IPv4.String() + `,\S+ +node2 +None +HBONE`,
			`\S+ +web +\S+ +None +1/1`,
			`default +some +Deny +Namespace`,
			pod.Identity() + ` +Leaf +Available +true`,
			pod.Identity() + ` +Root +Available +true`,
			[]string{
				`client.default +Outbound +client.default:\d+ +server.default:15008 +` + s.host + `:80 +HBONE`,
				`server.default +Inbound +server.default:8080 +client.default:\d+ +` + s.host + ` +HBONE`,
			}[i],
		} {
			if !regexp.MustCompile(`(?m)^` + row).MatchString(out.String()) {
				t.Errorf("%s: no row %s in\n%s", p.Node.Name, row, &out)
			}
		}
	}
}

// find returns the object of a list in which key has the value.
func find(list any, key string, value any) map[string]any {
	all, _ := list.([]any)
	for _, e := range all {
		if m, ok := e.(map[string]any); ok && m[key] == value {
			return m
		}
	}
	return nil
}

func TestLogLevel(t *testing.T) {
	w := newWorld(t)
	w.node("node1")
	p := w.proxies[0]
	if body := w.get(p, 15000, "/logging"); !strings.Contains(body, "info") {
		t.Errorf("level at the start: %s", body)
	}
	for _, step := range []struct {
		query string
		code  int
		want  string
	}{
		{"?level=debug", http.StatusOK, "debug"},
		{"?level=loud", http.StatusBadRequest, "loud"},
		{"?level=ztunnel=warn", http.StatusOK, "warn"},
		{"?level=access:debug,info", http.StatusOK, "access=debug,info"},
		{"?level=nonsense=info", http.StatusBadRequest, "targets are access, app"},
		{"?reset", http.StatusOK, "info"},
	} {
		code, body, err := p.Post(w.ctx, 15000, "/logging"+step.query)
		if err != nil || code != step.code || !strings.Contains(body, step.want) {
			t.Errorf("POST /logging%s: %d %s, %v", step.query, code, body, err)
		}
	}
	for _, path := range []string{"/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1"} {
		w.get(p, 15000, path)
	}
}
