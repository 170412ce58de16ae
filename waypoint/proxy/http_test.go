package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// each runs a test for clients of each version of HTTP.
func each(t *testing.T, test func(t *testing.T, w *world, c *http.Client)) {
	t.Helper()
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			test(t, w, w.client(version))
		})
	}
}

// retried is the retry policy that every route has by default.
const retried = `retry_policy: {retry_on: "connect-failure,refused-stream", num_retries: 2, host_selection_retry_max_attempts: 5, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}`

// all sends everything to the cluster c.
const all = `- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s, ` + retried + `}}`

func TestForward(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			w.httpPod("c", 1, name("one"))
			w.apply(all)
			c := w.client(version)
			for range 3 {
				a := do(t, c, "POST", "/a?b=c", "hello")
				if want := "one POST stock.shop /a?b=c hello"; a.StatusCode != 200 || a.body != want || a.Header.Get("x-proto") != version {
					t.Fatalf("%d %q %v; want %q", a.StatusCode, a.body, a.Header, want)
				}
			}
			if a := do(t, c, http.MethodHead, "/a", ""); a.StatusCode != 200 || a.Header.Get("x-backend") != "one" {
				t.Errorf("HEAD: %d %v", a.StatusCode, a.Header)
			}
			for _, header := range []string{"x-forwarded-for", "x-request-id", "x-envoy-expected-rq-timeout-ms", "via"} {
				if a := do(t, c, "GET", "/a", ""); a.Header.Get(header) != "" {
					t.Errorf("the response has %s: %s", header, a.Header.Get(header))
				}
			}
		})
	}
}

// TestPlainEndpoint: what is outside the mesh is spoken to in plain.
func TestPlainEndpoint(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.plainPod("c", 1, name("plain"))
		w.apply(all)
		if a := do(t, c, "GET", "/", ""); a.body != "plain GET stock.shop / " {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
	})
}

// TestProtocolOfCluster: a cluster of HTTP/2 is spoken to so whatever the client speaks.
func TestProtocolOfCluster(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.settings["c"] = "explicit_http_config: {http2_protocol_options: {}}"
		w.httpPod("c", 1, name("one"))
		w.apply(all)
		if a := do(t, c, "POST", "/", strings.Repeat("x", 100_000)); a.Header.Get("x-proto") != "HTTP/2.0" || len(a.body) < 100_000 {
			t.Errorf("%d %v", a.StatusCode, a.Header)
		}
	})
}

// TestIdentityIsPinned: an endpoint that proves to be somebody else of the same trust domain gets nothing.
func TestIdentityIsPinned(t *testing.T) {
	w := newWorld(t)
	other := backendID
	other.ServiceAccount = "thief"
	w.pod("c", 1, other, func(nc net.Conn) { t.Error("a connection came to an impostor") })
	w.endpoints["c"] = []string{strings.ReplaceAll(w.endpoints["c"][0], other.String(), backendID.String())}
	w.apply(all)
	a := do(t, w.client("HTTP/1.1"), "GET", "/", "")
	if a.StatusCode != 503 || !strings.Contains(a.body, "sa/thief") {
		t.Errorf("%d %q", a.StatusCode, a.body)
	}
}

// TestClientIdentity: routes see who the client is.
func TestClientIdentity(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, name("one"))
		w.apply(`
- name: consumer
  match: {prefix: /, filter_state: [{key: io.istio.peer_principal, string_match: {safe_regex: {regex: "^spiffe://[^/]+/ns/shop/.*"}}}]}
  route: {cluster: c, timeout: 0s}
- {name: others, match: {prefix: /}, direct_response: {status: 404}}`)
		if a := do(t, c, "GET", "/", ""); a.StatusCode != 200 {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		w.apply(`
- name: consumer
  match: {prefix: /, filter_state: [{key: io.istio.peer_principal, string_match: {safe_regex: {regex: "^spiffe://[^/]+/ns/other/.*"}}}]}
  route: {cluster: c, timeout: 0s}
- {name: others, match: {prefix: /}, direct_response: {status: 404}}`)
		if a := do(t, c, "GET", "/", ""); a.StatusCode != 404 {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
	})
}

// TestRefusals: what the proxy answers by itself says which rule it comes from, to gRPC in gRPC's way.
func TestRefusals(t *testing.T) {
	const routes = `
- {name: shop/r/away, match: {path: /away}, route: {cluster: invalid, timeout: 0s, cluster_not_found_response_code: INTERNAL_SERVER_ERROR}}
- {name: shop/r/empty, match: {path: /empty}, route: {cluster: empty, timeout: 0s}}
- {name: shop/r/dead, match: {path: /dead}, route: {cluster: dead, timeout: 0s, ` + retried + `}}
- {name: shop/r/bad, match: {path: /bad}, direct_response: {status: 500}}
- {name: shop/r/said, match: {path: /said}, direct_response: {status: 418, body: {inline_string: "tea"}}}`
	for _, tt := range []struct {
		path, text string
		status     int
		grpc, flag string
	}{
		{"/nothing", "no rule", 404, "12", "NR"},
		{"/away", "shop/r/away does not exist", 500, "2", "NC"},
		{"/empty", "no endpoint that is ready", 503, "14", "UH"},
		{"/dead", "could not be reached in 3 tries", 503, "14", "UF"},
		{"/bad", "shop/r/bad", 500, "2", "-"},
		{"/said", "tea", 418, "2", "-"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			each(t, func(t *testing.T, w *world, c *http.Client) {
				w.endpoints["empty"] = nil
				w.plainEndpoint("dead", 1, "")
				w.plainEndpoint("dead", 2, "")
				w.apply(routes)
				a := do(t, c, "GET", tt.path, "")
				if a.StatusCode != tt.status || !strings.Contains(a.body, tt.text) {
					t.Errorf("%d %q; want %d with %q", a.StatusCode, a.body, tt.status, tt.text)
				}
				a = do(t, c, "POST", tt.path, "", "content-type: application/grpc+proto")
				if got := a.Header.Get("grpc-status"); a.StatusCode != 200 || got != tt.grpc || a.body != "" {
					t.Errorf("gRPC: %d, status %q, %q; want %s", a.StatusCode, got, a.body, tt.grpc)
				}
				if tt.flag != "-" {
					await(t, "it is logged as "+tt.flag, func() bool { return strings.Contains(w.log.String(), "response_flags="+tt.flag) })
				}
			})
		})
	}
}

// TestEdits: headers, path, host and redirects are as routes say, and each target has its own edits.
func TestEdits(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("x-drop", "1")
			fmt.Fprintf(rw, "%s %s %q %q", r.Host, r.RequestURI, r.Header["X-Set"], r.Header["X-Gone"])
		}))
		w.apply(`
- name: edit
  match: {path_separated_prefix: /old}
  request_headers_to_add: [{header: {key: x-set, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
  request_headers_to_remove: [x-gone]
  response_headers_to_remove: [x-drop]
  response_headers_to_add: [{header: {key: x-new, value: "yes"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
  route:
    timeout: 0s
    prefix_rewrite: /new
    host_rewrite_literal: rewritten.example
    weighted_clusters:
      clusters:
      - name: c
        weight: 1
        response_headers_to_add: [{header: {key: x-target, value: c}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
- {name: away, match: {path: /away}, redirect: {host_redirect: other.example, path_redirect: /there, response_code: FOUND}}`)
		a := do(t, c, "GET", "/old/x?y=1", "", "x-set: client", "x-gone: client")
		if want := `rewritten.example /new/x?y=1 ["route"] []`; a.body != want {
			t.Errorf("the backend saw %s; want %s", a.body, want)
		}
		if a.Header.Get("x-drop") != "" || a.Header.Get("x-new") != "yes" || a.Header.Get("x-target") != "c" {
			t.Errorf("response: %v", a.Header)
		}
		if a := do(t, c, "GET", "/away?q", ""); a.StatusCode != 302 || a.Header.Get("location") != "http://other.example/there?q" && a.Header.Get("location") != "http://other.example/there" {
			t.Errorf("redirect: %d %v", a.StatusCode, a.Header)
		}
	})
}

func TestCORS(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, name("one"))
		w.apply(`
- name: cors
  match: {prefix: /}
  route: {cluster: c, timeout: 0s}
  typed_per_filter_config:
    envoy.filters.http.cors:
      '@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "https://good.example"}]
      allow_methods: GET, POST`)
		a := do(t, c, "OPTIONS", "/", "", "origin: https://good.example", "access-control-request-method: GET")
		if a.StatusCode != 200 || a.Header.Get("access-control-allow-origin") != "https://good.example" || a.Header.Get("x-backend") != "" {
			t.Errorf("preflight: %d %v", a.StatusCode, a.Header)
		}
		a = do(t, c, "GET", "/", "", "origin: https://good.example")
		if a.Header.Get("access-control-allow-origin") != "https://good.example" || a.Header.Get("x-backend") != "one" {
			t.Errorf("request: %d %v", a.StatusCode, a.Header)
		}
		if a = do(t, c, "GET", "/", "", "origin: https://bad.example"); a.Header.Get("access-control-allow-origin") != "" {
			t.Errorf("another origin: %v", a.Header)
		}
	})
}

// TestWeightsPerRequest: requests of one connection are split by weight.
func TestWeightsPerRequest(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("one", 1, name("one"))
		w.httpPod("two", 2, name("two"))
		w.apply(`- {name: r, match: {prefix: /}, route: {timeout: 0s, weighted_clusters: {clusters: [{name: one, weight: 9}, {name: two, weight: 1}]}}}`)
		const n = 500
		two := 0
		for range n {
			if a := do(t, c, "GET", "/", ""); a.Header.Get("x-backend") == "two" {
				two++
			}
		}
		if dev := math.Abs(float64(two) - n*.1); dev > 3*math.Sqrt(n*.1*.9) {
			t.Errorf("%d of %d requests went where a tenth should", two, n)
		}
	})
}

// TestConfigurationChanges: routes and endpoints that change while a connection is open hold for its next request.
func TestConfigurationChanges(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, name("one"))
		w.httpPod("d", 2, name("two"))
		w.apply(all)
		if a := do(t, c, "GET", "/", ""); a.Header.Get("x-backend") != "one" {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
		w.apply(strings.ReplaceAll(all, "cluster: c", "cluster: d"))
		if a := do(t, c, "GET", "/", ""); a.Header.Get("x-backend") != "two" {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		w.endpoints["d"] = nil
		w.httpPod("d", 3, name("three"))
		w.apply(strings.ReplaceAll(all, "cluster: c", "cluster: d"))
		if a := do(t, c, "GET", "/", ""); a.Header.Get("x-backend") != "three" {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
	})
}

// TestStreaming: neither direction waits for the other, and nothing is collected on the way.
func TestStreaming(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(rw).EnableFullDuplex()
			rw.Header().Set("trailer", "x-sum")
			_ = http.NewResponseController(rw).Flush()
			n, err := io.Copy(flushing{rw}, r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			rw.Header().Set("x-sum", fmt.Sprint(n))
		}))
		w.apply(all)
		pr, pw := io.Pipe()
		req, err := http.NewRequest("POST", "http://stock.shop/", pr)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req) // before anything of the body was sent
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 5 {
			word := fmt.Sprintf("word %d.", i)
			if _, err := io.WriteString(pw, word); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(word))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != word {
				t.Fatalf("%q, %v; want %q", got, err, word)
			}
		}
		_ = pw.Close()
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		if got := resp.Trailer.Get("x-sum"); got != "35" {
			t.Errorf("trailer %q", got)
		}
	})
}

type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}

// TestLargeBodies: much is carried both ways, unharmed.
func TestLargeBodies(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(rw).EnableFullDuplex()
			_, _ = io.Copy(rw, r.Body)
		}))
		w.apply(all)
		const size = 4 << 20 // many windows; with -race on a busy machine 20 MiB took more than a minute
		resp, err := c.Post("http://stock.shop/", "text/plain", io.LimitReader(&numbers{}, size))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := (&numbers{}).compare(resp.Body); err != nil || n != size {
			t.Errorf("after %d bytes: %v", n, err)
		}
	})
}

// numbers is an endless text of which each part is different.
type numbers struct {
	n    int
	rest []byte
}

func (r *numbers) Read(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if len(r.rest) == 0 {
			r.rest = fmt.Appendf(nil, "%d,", r.n)
			r.n++
		}
		n := copy(p[done:], r.rest)
		r.rest, done = r.rest[n:], done+n
	}
	return done, nil
}

func (r *numbers) compare(with io.Reader) (int, error) {
	in := bufio.NewReader(with)
	var a, b [4096]byte
	total := 0
	for {
		n, err := io.ReadFull(in, a[:])
		_, _ = r.Read(b[:n])
		if string(a[:n]) != string(b[:n]) {
			return total, fmt.Errorf("other bytes than were sent")
		}
		total += n
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// TestWebSocket: an upgrade is carried, in both directions, until both have ended; what the route does not allow is ignored.
func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			fmt.Fprint(rw, "no upgrade")
			return
		}
		nc, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		fmt.Fprint(buf, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nwelcome")
		_ = buf.Flush()
		_, _ = io.Copy(nc, buf)
	}))
	w.apply(all)
	ask := func(protocol string) (*bufio.Reader, io.ReadWriteCloser, *http.Response) {
		s := w.mustTunnel(webPort)
		fmt.Fprintf(s, "GET / HTTP/1.1\r\nhost: stock.shop\r\nconnection: upgrade\r\nupgrade: %s\r\n\r\n", protocol)
		in := bufio.NewReader(s)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		return in, s, resp
	}
	in, s, resp := ask("websocket")
	if resp.StatusCode != 101 {
		t.Fatalf("%d", resp.StatusCode)
	}
	got := make([]byte, 12)
	_, _ = io.WriteString(s, "hello")
	if _, err := io.ReadFull(in, got); err != nil || string(got) != "welcomehello" {
		t.Errorf("%q, %v", got, err)
	}
	_ = s.Close()
	_, s, resp = ask("something")
	if b, _ := io.ReadAll(io.LimitReader(resp.Body, 10)); resp.StatusCode != 200 || string(b) != "no upgrade" {
		t.Errorf("%d %q", resp.StatusCode, b)
	}
	_ = s.Close()
}

// TestInformational: responses of status 1xx are passed on.
func TestInformational(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("link", "</style.css>; rel=preload")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.WriteHeader(200)
	}))
	w.apply(all)
	s := w.mustTunnel(webPort)
	defer s.Close()
	fmt.Fprint(s, "GET / HTTP/1.1\r\nhost: stock.shop\r\n\r\n")
	in := bufio.NewReader(s)
	for _, want := range []int{103, 200} {
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%v, %v; want %d", resp, err, want)
		}
	}
}

// TestMetrics: a request is counted with who asked and who answered.
func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, name("one"))
	w.apply(all)
	do(t, w.client("HTTP/1.1"), "GET", "/", "")
	const want = `
# HELP istio_requests_total Requests whose response has ended, or that have failed.
# TYPE istio_requests_total counter
istio_requests_total{connection_security_policy="mutual_tls",destination_app="stock",destination_canonical_revision="v1",destination_canonical_service="stock",destination_cluster="Kubernetes",destination_principal="spiffe://cluster.local/ns/shop/sa/stock",destination_service="stock.shop.svc.cluster.local",destination_service_name="stock",destination_service_namespace="shop",destination_version="v1",destination_workload="pod-1",destination_workload_namespace="shop",grpc_response_status="",reporter="waypoint",request_protocol="http",response_code="200",response_flags="-",source_app="curl",source_canonical_revision="v1",source_canonical_service="curl",source_cluster="unknown",source_principal="spiffe://cluster.local/ns/shop/sa/curl",source_version="v1",source_workload="curl",source_workload_namespace="shop"} 1
`
	await(t, "the request is counted", func() bool {
		return testutil.GatherAndCompare(w.registry, strings.NewReader(want), "istio_requests_total") == nil
	})
	await(t, "the request is logged", func() bool {
		log := w.log.String()
		return strings.Contains(log, "status=200") && strings.Contains(log, "src.addr=10.9.9.9:0") && strings.Contains(log, "upstream.workload=pod-1")
	})
}

// TestConnectionsAreShared: requests of many clients share few tunnels and connections to a pod.
func TestConnectionsAreShared(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			var opened atomic.Int64
			ln := newStreams()
			w.serveHTTP(ln, name("one"))
			w.pod("c", 1, backendID, func(nc net.Conn) {
				opened.Add(1)
				ln.carry(nc)
			})
			w.apply(all)
			for range 5 {
				c := w.client(version)
				for range 5 {
					do(t, c, "GET", "/", "")
				}
				c.CloseIdleConnections()
			}
			if n := opened.Load(); n != 1 {
				t.Errorf("%d connections were opened to the pod for clients that came one after another", n)
			}
		})
	}
}

// TestIdentityChanges: an address that another workload has got is not spoken to on a connection to the former one.
func TestIdentityChanges(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, name("one"))
	w.apply(all)
	c := w.client("HTTP/1.1")
	do(t, c, "GET", "/", "")
	other := identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "next"}
	w.endpoints["c"] = nil
	ln := newStreams()
	w.serveHTTP(ln, name("next"))
	w.pod("c", 1, other, ln.carry)
	w.apply(all)
	if a := do(t, c, "GET", "/", ""); a.Header.Get("x-backend") != "next" {
		t.Errorf("%d %q", a.StatusCode, a.body)
	}
}

// TestUnknownDestination: a tunnel to what the waypoint does not serve is refused, with the reason.
func TestUnknownDestination(t *testing.T) {
	w := newWorld(t)
	w.apply(all)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := w.tunnel(ctx, 9999); err == nil || !strings.Contains(err.Error(), configtest.Address+":9999") {
		t.Errorf("error %v; want one that names the destination", err)
	}
}

// TestClientGoes: when the client gives up the backend is told, and nothing is left.
func TestClientGoes(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		arrived, told := make(chan struct{}), make(chan struct{})
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-r.Context().Done()
			close(told)
		}))
		w.apply(all)
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", "http://stock.shop/", nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if resp, err := c.Do(req); err == nil {
				resp.Body.Close()
				t.Error("there was a response")
			}
		})
		<-arrived
		cancel()
		wg.Wait()
		select {
		case <-told:
		case <-time.After(patience):
			t.Error("the backend was not told")
		}
		await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "response_flags=DC") })
	})
}

// TestBackendBreaksOff: a response that is not whole is not passed on as if it were.
func TestBackendBreaksOff(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = flushing{rw}.Write([]byte("some"))
			panic(http.ErrAbortHandler)
		}))
		w.apply(all)
		if a, err := try(c, "GET", "/", ""); err == nil {
			t.Errorf("%d %q, and no error", a.StatusCode, a.body)
		}
		await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "response_flags=UC") })
	})
}

// TestBackPressure: a client that does not read holds the backend back.
func TestBackPressure(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		var sent atomic.Int64
		gone := make(chan struct{})
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			defer close(gone)
			b := make([]byte, 64<<10)
			for {
				n, err := rw.Write(b)
				if err != nil {
					return
				}
				sent.Add(int64(n))
			}
		}))
		w.apply(all)
		resp, err := c.Get("http://stock.shop/")
		if err != nil {
			t.Fatal(err)
		}
		last, same := int64(-1), 0
		await(t, "the backend waits", func() bool {
			<-time.After(50 * time.Millisecond)
			if now := sent.Load(); now == last {
				same++
			} else {
				last, same = now, 0
			}
			return same >= 6
		})
		if most := int64(8 * h2.DefaultStreamWindow); last > most {
			t.Errorf("the backend sent %d bytes that nobody reads; want at most %d", last, most)
		}
		resp.Body.Close()
		<-gone
	})
}

// TestMalformed: a request that is none is refused, counted and logged.
func TestMalformed(t *testing.T) {
	w := newWorld(t)
	w.apply(all)
	s := w.mustTunnel(webPort)
	defer s.Close()
	fmt.Fprint(s, "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil || resp.StatusCode != 400 {
		t.Errorf("%v, %v", resp, err)
	}
	await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "response_flags=DPE") })
	if n, err := testutil.GatherAndCount(w.registry, "istio_requests_total"); err != nil || n != 1 {
		t.Errorf("%d series, %v", n, err)
	}
}
