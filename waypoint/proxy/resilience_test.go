package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// TestTimeouts: a route's times are kept, before the response and within it.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/begun" {
				_, _ = flushing{rw}.Write([]byte("some"))
			}
			<-r.Context().Done()
		}))
		w.apply(`
- {name: never, match: {path: /never}, route: {cluster: c, timeout: 0.05s}}
- {name: begun, match: {path: /begun}, route: {cluster: c, timeout: 3s}}
- name: tries
  match: {path: /tries}
  route: {cluster: c, timeout: 0s, retry_policy: {retry_on: "5xx", num_retries: 2, per_try_timeout: 0.02s}}`)
		for _, body := range []string{"", "x"} {
			if a := do(t, c, "POST", "/never", body); a.StatusCode != 504 || !strings.Contains(a.body, "route never") {
				t.Errorf("%d %q", a.StatusCode, a.body)
			}
		}
		if a := do(t, c, "POST", "/never", "x", "content-type: application/grpc"); a.Header.Get("grpc-status") != "4" {
			t.Errorf("gRPC: %d %v", a.StatusCode, a.Header)
		}
		if a, err := try(c, "GET", "/begun", ""); err == nil {
			t.Errorf("%d %q, and no error", a.StatusCode, a.body)
		}
		before := w.proxy.Counts().Retries.Load()
		if a := do(t, c, "GET", "/tries", ""); a.StatusCode != 504 {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		if n := w.proxy.Counts().Retries.Load() - before; n != 2 {
			t.Errorf("%d tries after the first; want 2", n)
		}
	})
}

// TestTimeoutBeginsWithTheEndOfTheRequest: the time of a slow upload is the client's.
func TestTimeoutBeginsWithTheEndOfTheRequest(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, name("one"))
		w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 20s}}`)
		pr, pw := io.Pipe()
		go func() {
			for range 5 {
				_, _ = pw.Write([]byte("x"))
				<-time.After(10 * time.Millisecond)
			}
			_ = pw.Close()
		}()
		resp, err := c.Post("http://stock.shop/", "text/plain", pr)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.HasSuffix(string(b), "xxxxx") {
			t.Errorf("%d %q", resp.StatusCode, b)
		}
	})
}

// TestRetries: a status that the route names is tried elsewhere, with the body; one that it does not is passed on.
func TestRetries(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "hello", strings.Repeat("y", maxKept-1), strings.Repeat("z", maxKept+100_000)} {
		t.Run(fmt.Sprint(len(body)), func(t *testing.T) {
			each(t, func(t *testing.T, w *world, c *http.Client) {
				var bad atomic.Int64
				for i := range 2 {
					w.httpPod("c", 1+i, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						bad.Add(1)
						rw.WriteHeader(503)
					}))
				}
				w.httpPod("c", 3, name("good"))
				w.apply(`
- name: r
  match: {prefix: /}
  route:
    cluster: c
    timeout: 0s
    retry_policy:
      retry_on: retriable-status-codes,connect-failure
      retriable_status_codes: [503]
      num_retries: 2
      retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}
      retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]
      host_selection_retry_max_attempts: 5`)
				for range 10 {
					a := do(t, c, "POST", "/", body)
					switch {
					case len(body) > maxKept:
						if a.StatusCode != 200 && a.StatusCode != 503 {
							t.Fatalf("%d", a.StatusCode)
						}
					case a.StatusCode != 200 || !strings.HasSuffix(a.body, " "+body):
						t.Fatalf("%d with %d bytes", a.StatusCode, len(a.body))
					}
				}
				if bad.Load() == 0 {
					t.Error("chance had it that only the good pod was asked")
				}
				w.endpoints["c"] = w.endpoints["c"][:2]
				w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: connect-failure, num_retries: 2}}}`)
				bad.Store(0)
				if a := do(t, c, "GET", "/", ""); a.StatusCode != 503 || a.body != "" || bad.Load() != 1 {
					t.Errorf("%d %q after %d tries; want the first answer", a.StatusCode, a.body, bad.Load())
				}
			})
		})
	}
}

// TestConnectFailuresAreHidden: endpoints that cannot be connected to are passed over.
func TestConnectFailuresAreHidden(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, name("one"))
		w.plainEndpoint("c", 2, "")
		w.plainEndpoint("c", 3, "127.0.0.1:1") // nobody listens there
		w.apply(all)
		for range 30 {
			if a := do(t, c, "POST", "/", "hello"); a.StatusCode != 200 {
				t.Fatalf("%d %q", a.StatusCode, a.body)
			}
		}
		if n := w.proxy.Counts().Retries.Load(); n > 20 {
			t.Errorf("%d retries: the endpoints that failed are not passed over", n)
		}
	})
}

// TestBackendsRoll: pods whose node proxies say GOAWAY, and end, take no request with them.
func TestBackendsRoll(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		pods := []interface{ Shutdown(context.Context) error }{w.httpPod("c", 1, name("one")), w.httpPod("c", 2, name("two"))}
		w.httpPod("c", 3, name("three"))
		w.apply(all)
		var wg sync.WaitGroup
		var failed atomic.Int64
		quit := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-quit:
						return
					default:
					}
					if a, err := try(c, "GET", "/", ""); err != nil || a.StatusCode != 200 {
						failed.Add(1)
						t.Errorf("%d %q %v", statusOf(a), a.body, err)
					}
				}
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		for _, p := range pods {
			<-time.After(20 * time.Millisecond)
			wg.Go(func() { _ = p.Shutdown(ctx) })
		}
		<-time.After(50 * time.Millisecond)
		w.endpoints["c"] = w.endpoints["c"][2:]
		w.apply(all)
		<-time.After(50 * time.Millisecond)
		close(quit)
		cancel()
		wg.Wait()
	})
}

func statusOf(a answer) int {
	if a.Response == nil {
		return 0
	}
	return a.StatusCode
}

// TestIdleConnectionThatDied: a connection that the backend closed while it was idle costs no request.
func TestIdleConnectionThatDied(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var open []net.Conn
	w.pod("c", 1, backendID, func(nc net.Conn) {
		mu.Lock()
		open = append(open, nc)
		mu.Unlock()
		b := make([]byte, 4096)
		for {
			if n, err := nc.Read(b); n == 0 || err != nil {
				return
			}
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
		}
	})
	w.endpoints["raw"] = w.endpoints["c"]
	w.apply(all)
	c := w.client("HTTP/1.1")
	for i := range 20 {
		method := []string{"GET", "POST"}[i%2]
		if a := do(t, c, method, "/", ""); a.StatusCode != 200 {
			t.Fatalf("request %d: %d %q", i, a.StatusCode, a.body)
		}
		mu.Lock()
		for _, nc := range open {
			_ = nc.Close()
		}
		open = nil
		mu.Unlock()
		// What comes on the same tunnel connection comes in order: once this is answered, the proxy has heard of the close.
		s := w.mustTunnel(rawPort)
		_, _ = io.WriteString(s, "x")
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	}
}

// TestMirror: a copy goes to the mirror, with the body; nobody waits for it, and its failures show nowhere.
func TestMirror(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		got := make(chan string, 10)
		stuck := make(chan struct{})
		defer close(stuck)
		w.httpPod("c", 1, name("one"))
		w.httpPod("mirror", 2, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			got <- fmt.Sprintf("%s %s %s %s", r.Method, r.Host, r.RequestURI, b)
			<-stuck
		}))
		w.plainEndpoint("broken", 3, "")
		w.apply(`
- name: r
  match: {prefix: /}
  route:
    cluster: c
    timeout: 0s
    request_mirror_policies:
    - {cluster: mirror, runtime_fraction: {default_value: {numerator: 100}}, disable_shadow_host_suffix_append: true}
    - {cluster: broken, runtime_fraction: {default_value: {numerator: 100}}, disable_shadow_host_suffix_append: true}
    - {cluster: mirror, runtime_fraction: {default_value: {numerator: 0}}, disable_shadow_host_suffix_append: true}
    - {cluster: unknown, runtime_fraction: {default_value: {numerator: 100}}, disable_shadow_host_suffix_append: true}`)
		for _, body := range []string{"", "hello", strings.Repeat("b", 100_000)} {
			if a := do(t, c, "POST", "/m", body); a.StatusCode != 200 || !strings.HasSuffix(a.body, body) {
				t.Fatalf("%d %q", a.StatusCode, a.body)
			}
			select {
			case m := <-got:
				if want := "POST stock.shop /m " + body; m != want {
					t.Errorf("the mirror got %.100q; want %.100q", m, want)
				}
			case <-time.After(patience):
				t.Fatal("no copy came to the mirror")
			}
		}
		if len(got) > 0 {
			t.Error("more copies came than the routes say")
		}
	})
}

// TestIdleStream: a request in which nothing comes or goes is ended.
func TestIdleStream(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/begun" {
				_, _ = flushing{rw}.Write([]byte("some"))
			}
			<-r.Context().Done()
		}))
		w.applyWith(all, configtest.Listener("0.1s"))
		if a := do(t, c, "GET", "/", ""); a.StatusCode != 504 {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		w.applyWith(all, configtest.Listener("3s")) // in which the response begins even if others keep the processors busy
		if a, err := try(w.client("HTTP/1.1"), "GET", "/begun", ""); err == nil {
			t.Errorf("%d %q, and no error", a.StatusCode, a.body)
		}
	})
}

// TestCircuitBreakers: what is beyond the bounds of a cluster is refused at once, and only that.
func TestCircuitBreakers(t *testing.T) {
	for _, tt := range []struct{ breaker, says string }{
		{"max_requests: 2", "2 requests at a time"},
		{"max_connections: 1, max_pending_requests: 1", "1 requests that wait for a connection at a time"},
	} {
		t.Run(tt.breaker, func(t *testing.T) {
			w := newWorld(t)
			arrived, goOn := make(chan struct{}, 10), make(chan struct{})
			w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				arrived <- struct{}{}
				<-goOn
				_, _ = io.WriteString(rw, "whole")
			}))
			w.more["c"] = "circuit_breakers: {thresholds: [{" + tt.breaker + "}]}\n"
			w.apply(all)
			var wg sync.WaitGroup
			ask := func() {
				wg.Go(func() {
					if a, err := try(w.client("HTTP/1.1"), "GET", "/", ""); err != nil || a.body != "whole" {
						t.Errorf("%d %q %v", statusOf(a), a.body, err)
					}
				})
			}
			ask()
			<-arrived
			ask()
			await(t, "two requests are under way", func() bool { return w.clusters.Lookup("c").Requests() == 2 })
			if strings.Contains(tt.breaker, "pending") {
				await(t, "the second waits", func() bool { return w.clusters.Lookup("c").Waiting() == 1 })
			}
			if a := do(t, w.client("HTTP/1.1"), "GET", "/", ""); a.StatusCode != 503 || !strings.Contains(a.body, tt.says) {
				t.Errorf("%d %q; want 503 that tells of %s", a.StatusCode, a.body, tt.says)
			}
			await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "response_flags=UO") })
			close(goOn)
			wg.Wait()
			await(t, "none is counted when all are over", func() bool { return w.clusters.Lookup("c").Requests() == 0 })
			do(t, w.client("HTTP/1.1"), "GET", "/", "")
		})
	}
}

// TestRetryBudget: where there are as many retries as may be, the first answer is the last.
func TestRetryBudget(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int64
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		rw.WriteHeader(503)
	}))
	w.more["c"] = "circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 0}, min_retry_concurrency: 0}}]}\n"
	w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: "5xx", num_retries: 3}}}`)
	if a := do(t, w.client("HTTP/1.1"), "GET", "/", ""); a.StatusCode != 503 || asked.Load() != 1 {
		t.Errorf("%d after %d tries", a.StatusCode, asked.Load())
	}
}

// TestRetryBudgetOverTime: retries are a share of the requests of a time, and some are allowed in any case; each try counts. Beyond it the
// answer is 503, whatever the backend's was.
func TestRetryBudgetOverTime(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int64
	var good atomic.Bool
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if !good.Load() {
			rw.WriteHeader(500)
		}
	}))
	w.more["c"] = "circuit_breakers: {thresholds: [{max_retries: 1, retry_budget: {budget_percent: {value: 20}, budget_interval: 3600s, min_retry_concurrency: 2}}]}\n"
	w.within["c"] = "1h"
	w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: "5xx", num_retries: 10, retry_back_off: {base_interval: 0.001s}}}}`)
	client := w.client("HTTP/1.1")
	ask := func(want int, tries int64) {
		t.Helper()
		before := asked.Load()
		a := do(t, client, "GET", "/", "")
		if got := asked.Load() - before; a.StatusCode != want || got != tries {
			t.Errorf("%d after %d tries, want %d after %d", a.StatusCode, got, want, tries)
		}
		if want == 503 && !strings.Contains(a.body, "it answered 500") {
			t.Errorf("said %q", a.body)
		}
	}
	ask(503, 3) // the two that are always allowed
	ask(503, 1)
	good.Store(true)
	for range 11 {
		ask(200, 1)
	}
	good.Store(false)
	ask(503, 2) // the third of 16 would be a fifth or less, the fourth of 17 not
	await(t, "none is counted as under way", func() bool { return w.clusters.Lookup("c").BeginRetry() == nil })
}

// TestOutlierEjection: an endpoint whose answers are bad is left alone for a time, and then asked again.
func TestOutlierEjection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var bad atomic.Bool
	bad.Store(true)
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if bad.Load() {
			rw.WriteHeader(500)
			return
		}
		_, _ = io.WriteString(rw, "well again")
	}))
	w.httpPod("c", 2, name("good"))
	w.more["c"] = "outlier_detection: {consecutive_5xx: 3, enforcing_success_rate: 0, base_ejection_time: 5s, max_ejection_percent: 50, max_ejection_time_jitter: 0s}\n"
	w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s}}`)
	c := w.client("HTTP/1.1")
	failures := 0
	await(t, "the bad one is ejected", func() bool {
		if do(t, c, "GET", "/", "").StatusCode != 200 {
			failures++
		}
		out := false
		w.clusters.Lookup("c").Endpoints(func(e *upstream.Endpoint) { out = out || e.Ejected() })
		return out
	})
	if failures != 3 {
		t.Errorf("it was ejected after %d failures; want 3", failures)
	}
	bad.Store(false)
	await(t, "it is asked again", func() bool { return do(t, c, "GET", "/", "").body == "well again" })
}

// TestRequestsPerConnection: a connection to a backend carries as many requests as the settings allow, and no more.
func TestRequestsPerConnection(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var mu sync.Mutex
			carried := map[string]int{}
			w.plainPod("c", 1, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				carried[r.RemoteAddr]++
			}))
			w.settings["c"] = "common_http_protocol_options: {max_requests_per_connection: 2}\n    use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}\n"
			w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s}}`)
			c := w.client(proto)
			for range 6 {
				if a := do(t, c, "GET", "/", ""); a.StatusCode != 200 {
					t.Fatalf("answered %d", a.StatusCode)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for addr, n := range carried {
				if n != 2 {
					t.Errorf("connection %s carried %d requests; want 2 on each of 3: %v", addr, n, carried)
				}
			}
		})
	}
}

// TestConsistentHash: a client that has no cookie yet is given one, and with it meets the same endpoint, whatever version of HTTP it
// speaks.
func TestConsistentHash(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"RING_HASH", "MAGLEV"} {
		w := newWorld(t)
		for i := range 4 {
			w.httpPod("c", i+1, name(fmt.Sprint("pod-", i)))
		}
		w.policy["c"] = policy
		w.apply(`- {name: r, match: {prefix: /}, route: {cluster: c, timeout: 0s, hash_policy: [{cookie: {name: sid, ttl: 0s}}]}}`)
		c, met := w.client("HTTP/1.1"), map[string]bool{}
		for i := 0; i < 20 || len(met) < 4 && i < 400; i++ {
			first := do(t, c, "GET", "/", "")
			given := first.Header.Values("Set-Cookie")
			if len(given) != 1 || !strings.HasSuffix(given[0], "; HttpOnly") || strings.Contains(given[0], "Max-Age") {
				t.Fatalf("cookies that are given: %q", given)
			}
			met[first.body] = true
			pair, _, _ := strings.Cut(given[0], ";")
			for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
				if again := do(t, w.client(version), "GET", "/", "", "cookie: "+pair); again.body != first.body || again.Header.Get("Set-Cookie") != "" {
					t.Fatalf("%s: with the cookie of %s it was %s, and was given %q", version, first.body, again.body, again.Header.Get("Set-Cookie"))
				}
			}
		}
		if len(met) != 4 {
			t.Errorf("%s: 400 clients met %v; want all 4", policy, met)
		}
	}
}

// TestTCP: what is no HTTP is carried as it is: the server may speak first, ends and resets arrive as such.
func TestTCP(t *testing.T) {
	w := newWorld(t)
	serve := func(nc net.Conn) {
		defer nc.Close()
		_, _ = io.WriteString(nc, "220 hello\r\n")
		b, err := io.ReadAll(nc)
		if err != nil {
			return
		}
		fmt.Fprintf(nc, "bye %s", b)
		if cw, ok := nc.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite()
		}
	}
	for _, where := range []string{"in the mesh", "outside"} {
		w.endpoints["raw"] = nil
		if where == "outside" {
			w.plainTCP("raw", 1, serve)
		} else {
			w.pod("raw", 1, backendID, serve)
		}
		w.plainEndpoint("raw", 2, "") // is passed over
		w.apply(all)
		for range 5 {
			s := w.mustTunnel(rawPort)
			b := make([]byte, 11)
			if _, err := io.ReadFull(s, b); err != nil || string(b) != "220 hello\r\n" {
				t.Fatalf("%s: %q, %v", where, b, err)
			}
			_, _ = io.WriteString(s, "you")
			if err := s.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(s); err != nil || string(b) != "bye you" {
				t.Errorf("%s: %q, %v", where, b, err)
			}
			_ = s.Close()
		}
		await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "bytes_sent=18 bytes_recv=3") })
	}
	w.endpoints["raw"] = nil
	w.plainEndpoint("raw", 3, "")
	w.apply(all)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := w.tunnel(ctx, rawPort); err == nil || !strings.Contains(err.Error(), "no such pod") {
		t.Errorf("error %v; want why the backend cannot be reached", err)
	}
}

// TestDrain: a proxy that ends finishes what it has, tells clients to go elsewhere, and is over when nothing is open.
func TestDrain(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		arrived, goOn := make(chan struct{}), make(chan struct{})
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(arrived)
				<-goOn
			}
			_, _ = io.WriteString(rw, "whole")
		}))
		w.apply(all)
		do(t, c, "GET", "/", "")
		var wg sync.WaitGroup
		wg.Go(func() {
			if a, err := try(c, "GET", "/slow", ""); err != nil || a.body != "whole" {
				t.Errorf("the request in flight: %q, %v", a.body, err)
			}
		})
		<-arrived
		drained := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		go func() { drained <- w.proxy.Drain(ctx) }()
		await(t, "no new connections are taken", func() bool {
			nc, err := net.Dial("tcp", w.addr.String())
			if err == nil {
				_ = nc.Close()
			}
			return err != nil
		})
		select {
		case err := <-drained:
			t.Fatalf("drained with a request in flight: %v", err)
		default:
		}
		close(goOn)
		wg.Wait()
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if n := w.proxy.Open(); n != 0 {
			t.Errorf("%d tunnels are open", n)
		}
	})
}

// TestDrainLeavesWebSockets: what is open for long goes on while a proxy drains, until it ends by itself or the grace period is over.
func TestDrainLeavesWebSockets(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		nc, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		fmt.Fprint(buf, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
		_ = buf.Flush()
		_, _ = io.Copy(nc, buf)
	}))
	w.apply(all)
	open := func() *bufio.ReadWriter {
		s := w.mustTunnel(webPort)
		fmt.Fprint(s, "GET / HTTP/1.1\r\nhost: stock.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
		rw := bufio.NewReadWriter(bufio.NewReader(s), bufio.NewWriter(s))
		if resp, err := http.ReadResponse(rw.Reader, nil); err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v, %v", resp, err)
		}
		return rw
	}
	echo := func(rw *bufio.ReadWriter) error {
		_, _ = rw.WriteString("hello")
		_ = rw.Flush()
		_, err := io.ReadFull(rw, make([]byte, 5))
		return err
	}
	socket := open()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- w.proxy.Drain(ctx) }()
	await(t, "no new connections are taken", func() bool {
		nc, err := net.Dial("tcp", w.addr.String())
		if err == nil {
			_ = nc.Close()
		}
		return err != nil
	})
	for range 3 {
		if err := echo(socket); err != nil {
			t.Fatalf("while the proxy drains: %v", err)
		}
	}
	cancel() // the grace period is over
	if err := <-drained; err == nil {
		t.Error("Drain does not tell that something is open")
	}
	w.proxy.Close()
	if err := echo(socket); err == nil {
		t.Error("the WebSocket outlives the proxy")
	}
}
