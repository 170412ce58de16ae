package proxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// series returns the metrics of a name whose labels have these values: "name=value".
func (w *world) series(name string, labels ...string) []*dto.Metric {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	var found []*dto.Metric
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := map[string]bool{}
			for _, p := range m.GetLabel() {
				has[p.GetName()+"="+p.GetValue()] = true
			}
			all := true
			for _, l := range labels {
				all = all && has[l]
			}
			if all {
				found = append(found, m)
			}
		}
	}
	return found
}

// counted waits until counters have a sum.
func (w *world) counted(want float64, name string, labels ...string) {
	w.t.Helper()
	await(w.t, fmt.Sprintf("%s%v is %v", name, labels, want), func() bool {
		sum := 0.0
		for _, m := range w.series(name, labels...) {
			sum += m.GetCounter().GetValue()
		}
		return sum == want
	})
}

// TestSizes: requests' and responses' bodies are counted, and messages of gRPC while a call goes on.
func TestSizes(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		const message = "\x00\x00\x00\x00\x03abc"
		goOn := make(chan struct{})
		proceed := sync.OnceFunc(func() { close(goOn) })
		t.Cleanup(proceed)
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("content-type") != "application/grpc" {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(rw, strings.Repeat("x", 3000))
				return
			}
			_ = http.NewResponseController(rw).EnableFullDuplex()
			_, _ = io.ReadFull(r.Body, make([]byte, 2*len(message)))
			rw.Header().Set("content-type", "application/grpc")
			_, _ = io.WriteString(rw, message+message+message[:5])
			rw.(http.Flusher).Flush()
			<-goOn
			rw.Header().Set(http.TrailerPrefix+"grpc-status", "5")
			_, _ = io.WriteString(rw, message[5:])
		}))
		w.apply(all)
		do(t, c, "POST", "/", strings.Repeat("y", 40))
		await(t, "the request is counted", func() bool { return len(w.series("istio_requests_total")) == 1 })
		if got := w.series("istio_request_bytes", "response_code=200", "reporter=waypoint")[0].GetHistogram(); got.GetSampleSum() != 40 || got.GetSampleCount() != 1 {
			t.Errorf("request: %v", got)
		}
		if got := w.series("istio_response_bytes", "request_protocol=http")[0].GetHistogram(); got.GetSampleSum() != 3000 || got.GetSampleCount() != 1 {
			t.Errorf("response: %v", got)
		}

		body, in := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://stock.shop/pkg.Service/Method", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("content-type", "application/grpc")
		answered := make(chan error, 1)
		go func() {
			resp, err := c.Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			answered <- err
		}()
		_, _ = io.WriteString(in, message+message)
		ends := []string{"source_workload=curl", "destination_workload=pod-1", "destination_service_name=stock", "reporter=waypoint"}
		w.counted(2, "istio_request_messages_total", ends...)
		w.counted(2, "istio_response_messages_total", ends...)
		proceed()
		_ = in.Close()
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		w.counted(3, "istio_response_messages_total", ends...)
		w.counted(1, "istio_requests_total", append(ends, "request_protocol=grpc", "response_code=200", "grpc_response_status=5")...)
	})
}

// TestUnrouted: what no route matches counts as a request to the service that the client connected to.
func TestUnrouted(t *testing.T) {
	w := newWorld(t)
	w.plainPod("outbound|80||stock.shop.svc.cluster.local", 1, name("one"))
	w.apply(`- {name: one, match: {path: /one}, route: {cluster: nowhere}}`)
	do(t, w.client("HTTP/1.1"), "GET", "/two", "")
	w.counted(1, "istio_requests_total", "response_code=404", "response_flags=NR", "destination_service=stock.shop.svc.cluster.local",
		"destination_service_name=stock", "destination_service_namespace=shop", "destination_workload=unknown")
}

// TestTCPMetrics: connections count when they open and end, and their bytes meanwhile.
func TestTCPMetrics(t *testing.T) {
	for _, where := range []string{"in the mesh", "outside"} {
		w := newWorld(t)
		serve := func(nc net.Conn) {
			defer nc.Close()
			b := make([]byte, 4)
			for {
				if _, err := io.ReadFull(nc, b); err != nil {
					return
				}
				_, _ = io.WriteString(nc, "answer")
			}
		}
		pod := "pod-1"
		if where == "outside" {
			pod = "plain-1"
			w.plainTCP("raw", 1, serve)
		} else {
			w.pod("raw", 1, backendID, serve)
		}
		w.apply(all)
		s := w.mustTunnel(rawPort)
		_, _ = io.WriteString(s, "asks")
		if _, err := io.ReadFull(s, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		labels := []string{"reporter=waypoint", "request_protocol=tcp", "response_flags=-", "connection_security_policy=mutual_tls",
			"source_workload=curl", "destination_workload=" + pod, "destination_service=stock.shop.svc.cluster.local"}
		w.counted(1, "istio_tcp_connections_opened_total", labels...)
		w.counted(4, "istio_tcp_received_bytes_total", labels...)
		w.counted(6, "istio_tcp_sent_bytes_total", labels...)
		w.counted(0, "istio_tcp_connections_closed_total", labels...)
		_ = s.Close()
		w.counted(1, "istio_tcp_connections_closed_total", labels[:2]...)

		w.endpoints["raw"] = nil
		w.plainEndpoint("raw", 3, "")
		w.apply(all)
		if _, err := w.tunnel(t.Context(), rawPort); err == nil {
			t.Error("a connection to nowhere was opened")
		}
		w.counted(1, "istio_tcp_connections_failed_total", "response_flags=UF", "destination_workload=plain-3", "source_workload=curl")
		w.counted(1, "istio_tcp_connections_opened_total")
	}
}

// TestAccessLog: lines say what docs/observability.md tells of them, all of it and nothing else.
func TestAccessLog(t *testing.T) {
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n### Of waypoints\n")
	section, _, _ = strings.Cut(section, "\n### ")
	documented := map[string]bool{}
	for line := range strings.Lines(section) {
		if first, _, found := strings.Cut(strings.TrimPrefix(line, "| `"), " |"); found && strings.HasPrefix(line, "| `") {
			for field := range strings.SplitSeq(first, ", ") {
				documented[strings.Trim(field, "`")] = true
			}
		}
	}
	w := newWorld(t)
	fails := true
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if fails {
			fails = false
			rw.WriteHeader(503)
			return
		}
		rw.Header().Set("content-type", "application/grpc")
		rw.Header().Set("grpc-status", "0")
	}))
	w.apply(`- name: shop/stock/0/0
  match: {prefix: /}
  route: {cluster: c, retry_policy: {retry_on: "5xx", num_retries: 1}}`)
	do(t, w.client("HTTP/2.0"), "POST", "/pkg.Service/Method", "", "content-type: application/grpc", "user-agent: tests",
		"x-request-id: 4711", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	w.endpoints["c"] = nil
	w.apply(`- {name: one, match: {path: /one}, route: {cluster: c}}`)
	do(t, w.client("HTTP/1.1"), "GET", "/two", "")
	w.applyWith(all, configtest.Named("30s", "", "", map[string]string{"raw": "a.example"}))
	_ = tls.Client(w.mustTunnel(rawPort), &tls.Config{ServerName: "b.example"}).Handshake()
	await(t, "all are logged", func() bool { return strings.Count(w.log.String(), " complete") == 3 })
	logged := w.log.String()
	for _, want := range []string{"trace_id=4bf92f3577b34da6a3ce929d0e0e4736", "route=shop/stock/0/0", "tries=2", "upstream.cluster=c",
		"upstream.workload=pod-1", "response_flags=NR", "status=404", "grpc_status=0", "user_agent=tests", "request_id=4711", "src.identity=" + clientID.String(), "tls.server_name=b.example"} {
		if !strings.Contains(logged, want) {
			t.Errorf("%s is not logged:\n%s", want, logged)
		}
	}
	seen := map[string]bool{"audit": true, "ext_authz_failed_open": true, // which have tests of their own
		"time": true, "level": true, "msg": true}
	for _, m := range regexp.MustCompile(`(?m)(?:^| )([a-z_.]+)=(?:"(?:[^"\\]|\\.)*"|\S*)`).FindAllStringSubmatch(logged, -1) {
		if seen[m[1]] = true; !documented[m[1]] && m[1] != "time" && m[1] != "level" && m[1] != "msg" {
			t.Errorf("docs/observability.md does not tell of the field %s", m[1])
		}
	}
	for field := range documented {
		if !seen[field] {
			t.Errorf("docs/observability.md tells of the field %s, which no line has", field)
		}
	}
}
