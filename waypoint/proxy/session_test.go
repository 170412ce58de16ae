package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const sessionConfig = `typed_per_filter_config: {envoy.filters.http.stateful_session: {
  '@type': type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute,
  stateful_session: {session_state: {name: s, typed_config: %s}}}}`

var sessionStates = map[string]string{
	"cookie": "{'@type': type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState, cookie: {name: sid, path: /, ttl: 60s}}",
	"header": "{'@type': type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState, name: X-Sid}",
}

// TestSession: a client that sends back what it was told meets the endpoint that answered it first, also where its route has several
// backends; when that endpoint fails it is told of another.
func TestSession(t *testing.T) {
	for kind, state := range sessionStates {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for i := range 3 {
				w.httpPod("c", i+1, name(fmt.Sprint("c-", i)))
				w.httpPod("d", i+11, name(fmt.Sprint("d-", i)))
			}
			w.apply(`- {name: r, match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 1}, {name: d, weight: 1}]}, timeout: 0s},
  ` + fmt.Sprintf(sessionConfig, state) + `}`)
			c := w.client("HTTP/1.1")
			told := func(a answer) string {
				if kind == "header" {
					return "x-sid: " + a.Header.Get("X-Sid")
				}
				line := a.Header.Get("Set-Cookie")
				pair, tail, _ := strings.Cut(line, ";")
				if line != "" && tail != " Max-Age=60; Path=/; HttpOnly" {
					t.Fatalf("cookie %q", line)
				}
				return "cookie: " + pair
			}
			first := do(t, c, "GET", "/", "")
			session := told(first)
			for range 20 {
				again := do(t, c, "GET", "/", "", session)
				if again.body != first.body {
					t.Fatalf("with %q it was %s after %s", session, again.body, first.body)
				}
				if kind == "cookie" && again.Header.Get("Set-Cookie") != "" {
					t.Fatal("a cookie is given to a client that has it")
				}
			}
			for _, bad := range []string{"cookie: sid=???", "cookie: sid=MTI3LjAuMC4xOjE1MDAw", "x-sid: AAAA", "cookie: sid="} { // the second: 127.0.0.1:15000
				if a := do(t, c, "GET", "/", "", bad); a.StatusCode != 200 {
					t.Errorf("with %q it is answered %d", bad, a.StatusCode)
				}
			}
			w.endpoints["c"], w.endpoints["d"] = w.endpoints["c"][:0], w.endpoints["d"][:1] // of d-0 alone
			w.apply(`- {name: r, match: {prefix: /}, route: {cluster: d, timeout: 0s}, ` + fmt.Sprintf(sessionConfig, state) + `}`)
			if a := do(t, c, "GET", "/", "", session); !strings.HasPrefix(a.body, "d-0 ") || a.body != first.body && told(a) == session {
				t.Errorf("with %q of %s, which is gone, it was %s and told %q", session, first.body, a.body, told(a))
			}
		})
	}
}

// TestFault: requests meet the delays and answers that their route injects, if they are those that are meant.
func TestFault(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, name("pod"))
	const fault = `typed_per_filter_config: {envoy.filters.http.fault: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, `
	w.apply(`- {name: abort, match: {prefix: /abort}, route: {cluster: c}, ` + fault + `abort: {http_status: 418, percentage: {numerator: 100}}, headers: [{name: x-test, string_match: {exact: "yes"}}]}}}
- {name: delay, match: {prefix: /delay}, route: {cluster: c}, ` + fault + `delay: {fixed_delay: 0.3s, percentage: {numerator: 1000000, denominator: MILLION}}}}}
- {name: grpc, match: {prefix: /grpc}, route: {cluster: c}, ` + fault + `abort: {grpc_status: 14, percentage: {numerator: 100}}}}}
- {name: never, match: {prefix: /never}, route: {cluster: c}, ` + fault + `abort: {http_status: 500, percentage: {numerator: 0}}}}}
- {name: half, match: {prefix: /half}, route: {cluster: c}, ` + fault + `abort: {http_status: 500, percentage: {numerator: 50}}}}}`)
	c := w.client("HTTP/1.1")
	for _, ask := range []struct {
		path    string
		headers []string
		status  int
	}{{"/abort", []string{"x-test: yes"}, 418}, {"/abort", nil, 200}, {"/grpc", nil, 503}, {"/never", nil, 200}} {
		if a := do(t, c, "GET", ask.path, "", ask.headers...); a.StatusCode != ask.status {
			t.Errorf("%s %v: %d, want %d", ask.path, ask.headers, a.StatusCode, ask.status)
		}
	}
	if a := do(t, w.client("HTTP/2"), "POST", "/grpc", "", "content-type: application/grpc"); a.Header.Get("Grpc-Status") != "14" {
		t.Errorf("gRPC: %d, status %q", a.StatusCode, a.Header.Get("Grpc-Status"))
	}
	begin := time.Now()
	if a := do(t, c, "GET", "/delay", ""); a.StatusCode != 200 || time.Since(begin) < 300*time.Millisecond {
		t.Errorf("delay: %d after %v", a.StatusCode, time.Since(begin))
	}
	good := 0
	for range 200 {
		if do(t, c, "GET", "/half", "").StatusCode == 200 {
			good++
		}
	}
	if good < 50 || good > 150 { // seven standard deviations
		t.Errorf("%d of 200 requests are answered where half are to fail", good)
	}
	if log := w.log.String(); !strings.Contains(log, "response_flags=FI") {
		t.Errorf("the log does not tell injected faults: %s", log)
	}
}
