package proxy

import (
	"fmt"
	"strings"
	"testing"
)

// limitConfig lets 3 requests through, and then one in an hour.
const limitConfig = `typed_per_filter_config: {envoy.filters.http.local_ratelimit: {
  '@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: s,
  token_bucket: {max_tokens: %d, tokens_per_fill: 1, fill_interval: 3600s}, filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}},
  enable_x_ratelimit_headers: DRAFT_VERSION_03, enable_retry_after_header: true, rate_limited_as_resource_exhausted: true, local_rate_limit_per_downstream_connection: %v}}`

const limitRoutes = `- {name: cors, match: {prefix: /cors}, direct_response: {status: 200}, typed_per_filter_config: {envoy.filters.http.cors: {
    '@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: "https://a.example"}], allow_methods: GET}}}
- {name: r, match: {prefix: /there}, route: {cluster: c}}`

// TestRateLimit: requests beyond the limit are refused by the waypoint alone, and all are told what is left; a push that does not
// change the limit changes nothing of that.
func TestRateLimit(t *testing.T) {
	w := newWorld(t)
	w.httpPod("c", 1, name("pod"))
	w.host = fmt.Sprintf(limitConfig, 3, false)
	w.apply(limitRoutes)
	c := w.client("HTTP/1.1")
	ask := func(path, left string, status int, headers ...string) answer {
		t.Helper()
		a := do(t, c, "GET", path, "", headers...)
		if a.StatusCode != status || a.Header.Get("X-Ratelimit-Remaining") != left {
			t.Errorf("%s: %d, %q left; want %d, %q", path, a.StatusCode, a.Header.Get("X-Ratelimit-Remaining"), status, left)
		}
		return a
	}
	ask("/there", "2", 200)
	ask("/nowhere", "", 404) // no route, so nothing that is bounded
	if a := do(t, c, "OPTIONS", "/cors", "", "origin: https://a.example", "access-control-request-method: GET"); a.StatusCode != 200 || a.Header.Get("X-Ratelimit-Limit") != "" {
		t.Errorf("a preflight counts: %d %v", a.StatusCode, a.Header)
	}
	ask("/there", "1", 200)
	w.apply("- {name: new, match: {prefix: /new}, direct_response: {status: 200}}\n" + limitRoutes)
	ask("/new", "0", 200)
	c = w.client("HTTP/2.0") // another connection has the same bucket
	a := ask("/there", "0", 429)
	if a.Header.Get("X-Ratelimit-Limit") != "3" || a.Header.Get("X-Ratelimit-Reset") == "" || !(a.Header.Get("Retry-After") > "35" && len(a.Header.Get("Retry-After")) == 4) {
		t.Errorf("a refusal says %v", a.Header)
	}
	if !strings.Contains(a.body, "rate limit") {
		t.Errorf("a refusal says %q", a.body)
	}
	if a := ask("/cors", "0", 429, "origin: https://a.example"); a.Header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("a page of another origin cannot read its refusal: %v", a.Header)
	}
	if a := do(t, c, "POST", "/there", "", "content-type: application/grpc"); a.Header.Get("Grpc-Status") != "8" {
		t.Errorf("gRPC: %d, status %q", a.StatusCode, a.Header.Get("Grpc-Status"))
	}
	if log := w.log.String(); !strings.Contains(log, "response_flags=RL") {
		t.Errorf("the log does not tell refusals: %s", log)
	}
	w.host = fmt.Sprintf(limitConfig, 4, false) // another limit begins anew
	w.apply(limitRoutes)
	ask("/there", "3", 200)
	w.host = ""
	w.apply(limitRoutes)
	ask("/there", "", 200)
}

// TestRateLimitOfConnections: each connection has a bucket, whichever version of HTTP it speaks.
func TestRateLimitOfConnections(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			w.httpPod("c", 1, name("pod"))
			w.host = fmt.Sprintf(limitConfig, 2, true)
			w.apply(limitRoutes)
			for range 2 {
				c := w.client(version)
				for i, want := range []int{200, 200, 429, 429} {
					if a := do(t, c, "GET", "/there", ""); a.StatusCode != want {
						t.Errorf("request %d: %d, want %d", i, a.StatusCode, want)
					}
				}
			}
		})
	}
}
