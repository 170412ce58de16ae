package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// authorizer answers as a test says, and keeps what it was asked.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer

	mu     sync.Mutex
	asked  []*authv3.AttributeContext
	answer func(context.Context) (*authv3.CheckResponse, error)
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.mu.Lock()
	a.asked = append(a.asked, r.GetAttributes())
	answer := a.answer
	a.mu.Unlock()
	return answer(ctx)
}

// says sets the answer, and forgets what was asked.
func (a *authorizer) says(answer func(context.Context) (*authv3.CheckResponse, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked, a.answer = nil, answer
}

func (a *authorizer) questions() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.asked)
}

// last is what was asked last, after n questions.
func (a *authorizer) last(t *testing.T, n int) *authv3.AttributeContext {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.asked) != n {
		t.Fatalf("%d questions, want %d", len(a.asked), n)
	}
	return a.asked[n-1]
}

// always gives one answer.
func always(r *authv3.CheckResponse) func(context.Context) (*authv3.CheckResponse, error) {
	return func(context.Context) (*authv3.CheckResponse, error) { return r, nil }
}

func option(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}}
}

func ok(r *authv3.OkHttpResponse) *authv3.CheckResponse {
	return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: r}}
}

// asking is the listener with filters that ask cluster authz about /ask and what is below it; more are fields of ext_authz.
func asking(service, more, after string) string {
	filters := `      - {name: select, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, shadow_rules_stat_prefix: ext_authz_x_,
          shadow_rules: {action: DENY, policies: {"istio-ext-authz-x-ns[shop]-policy[ask]-rule[0]": {principals: [{any: true}], permissions: [{url_path: {path: {prefix: /ask}}}]}}}}}
      - {name: ask, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, stat_prefix: x, transport_api_version: V3, ` + service + more + `
          filter_enabled_metadata: {filter: envoy.filters.http.rbac, path: [{key: ext_authz_x_shadow_effective_policy_id}], value: {string_match: {prefix: istio-ext-authz}}}}}
`
	if after != "" {
		filters += "      - {name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, " + after + "}}\n"
	}
	return strings.Replace(configtest.Listener("0s"), "      - {name: envoy.filters.http.cors", filters+"      - {name: envoy.filters.http.cors", 1)
}

const (
	byGRPC = `grpc_service: {timeout: 20s, envoy_grpc: {cluster_name: authz, authority: authz.shop}}, `
	byHTTP = `http_service: {path_prefix: /check, server_uri: {uri: "http://authz.shop:80", cluster: authz, timeout: 20s},
          authorization_request: {headers_to_add: [{key: x-from, value: waypoint}]},
          authorization_response: {allowed_upstream_headers: {patterns: [{prefix: x-user}]}, allowed_client_headers: {patterns: [{exact: set-cookie}]}, allowed_client_headers_on_success: {patterns: [{exact: x-seen}]}}},
          allowed_headers: {patterns: [{exact: cookie}]}, `
)

// newAskingWorld has a backend that tells what it got, and an authorizer that is asked by gRPC.
func newAskingWorld(t *testing.T) (*world, *authorizer) {
	w, _ := newGuardedWorld(t)
	delete(w.endpoints, "v1")
	w.httpPod("v1", 3, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("x-seen", "by the backend")
		fmt.Fprintf(w, "%s %s user=%q secret=%q body=%d", r.Method, r.RequestURI, r.Header.Values("x-user"), r.Header.Values("x-secret"), len(b))
	}))
	a := &authorizer{answer: always(ok(&authv3.OkHttpResponse{}))}
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, a)
	ln := newStreams()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	w.pod("authz", 4, backendID, ln.carry)
	return w, a
}

// TestAskGRPC: what a policy selects is served as the authorizer says, who is told what the request is.
func TestAskGRPC(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w, a := newAskingWorld(t)
			w.applyWith(toV1, asking(byGRPC, ``, `rules: {action: DENY, policies: {"ns[shop]-policy[not-bob]-rule[0]": {principals: [{any: true}], permissions: [{header: {name: x-user, string_match: {exact: bob}}}]}}}`))
			c := w.client(version)
			if r := do(t, c, "GET", "/other", "", "x-user: eve"); r.StatusCode != 200 || a.questions() != 0 {
				t.Errorf("what no policy selects: %d, %d questions", r.StatusCode, a.questions())
			}
			a.says(always(ok(&authv3.OkHttpResponse{
				Headers: []*corev3.HeaderValueOption{option("X-User", "alice")}, HeadersToRemove: []string{"x-secret", ":path"},
				ResponseHeadersToAdd: []*corev3.HeaderValueOption{option("x-seen", "by the authorizer")},
			})))
			r := do(t, c, "POST", "/ask/it?q=1", "abc", "x-user: eve", "x-user: mallory", "x-secret: 1", "x-b: é", "x-b: \xff")
			if r.StatusCode != 200 || r.body != `POST /ask/it?q=1 user=["alice"] secret=[] body=3` || len(r.Header.Values("x-seen")) != 2 {
				t.Errorf("what is allowed: %d %q %q", r.StatusCode, r.body, r.Header.Values("x-seen"))
			}
			q := a.last(t, 1)
			h := q.GetRequest().GetHttp()
			if q.GetSource().GetPrincipal() != clientID.String() || q.GetSource().GetAddress().GetSocketAddress().GetAddress() != "10.9.9.9" ||
				q.GetDestination().GetAddress().GetSocketAddress().GetPortValue() != webPort || h.GetMethod() != "POST" || h.GetPath() != "/ask/it?q=1" ||
				h.GetHost() != "stock.shop" || h.GetHeaders()["x-user"] != "eve,mallory" || h.GetHeaders()[":path"] != "/ask/it?q=1" || h.GetHeaders()["x-b"] != "é,!" ||
				h.GetSize() != 3 || h.GetBody() != "" || !strings.HasPrefix(h.GetProtocol(), version[:6]) {
				t.Errorf("it was asked %v", q)
			}
			a.says(always(ok(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option("x-user", "bob")}})))
			if r := do(t, c, "GET", "/ask", ""); r.StatusCode != 403 || r.body != accessDenied {
				t.Errorf("what is allowed, and then denied by another policy for what was added: %d %q", r.StatusCode, r.body)
			}
			a.says(always(&authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{
				DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 401}, Body: "who are you?",
					Headers: []*corev3.HeaderValueOption{option("www-authenticate", "Bearer"), option("Content-Length", "7")}}}}))
			if r := do(t, c, "GET", "/ask", ""); r.StatusCode != 401 || r.body != "who are you?" || r.Header.Get("www-authenticate") != "Bearer" {
				t.Errorf("what is denied: %d %q %v", r.StatusCode, r.body, r.Header)
			}
			if r := do(t, c, "POST", "/ask", "", "content-type: application/grpc"); r.StatusCode != 200 || r.Header.Get("grpc-status") != "16" || r.Header.Get("grpc-message") != "who are you?" {
				t.Errorf("gRPC that is denied: %d %v", r.StatusCode, r.Header)
			}
			a.says(always(&authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}))
			if r := do(t, c, "GET", "/ask", ""); r.StatusCode != 403 || r.body != "" {
				t.Errorf("what is denied without a word: %d %q", r.StatusCode, r.body)
			}
			await(t, "a line that names policy and authorizer", func() bool {
				return strings.Contains(w.log.String(), "policy shop/ask: denied by authorizer x") && strings.Contains(w.log.String(), "response_flags=UAEX")
			})
		})
	}
}

// TestAskHTTP: the same by HTTP.
func TestAskHTTP(t *testing.T) {
	w, _ := newAskingWorld(t)
	delete(w.endpoints, "authz")
	var mu sync.Mutex
	var seen *http.Request
	w.httpPod("authz", 5, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = r.Clone(context.Background())
		mu.Unlock()
		w.Header().Set("x-user-id", "alice")
		w.Header().Set("x-other", "1")
		w.Header().Set("x-seen", "by the authorizer")
		w.Header().Set("x-envoy-auth-headers-to-remove", "x-secret, x-none")
		switch r.Header.Get("cookie") {
		case "":
			w.Header().Set("location", "http://login/")
			w.Header().Set("set-cookie", "a=b")
			w.WriteHeader(302)
			_, _ = io.WriteString(w, "sign in")
		case "down":
			w.WriteHeader(503)
		}
	}))
	w.applyWith(toV1, asking(byHTTP, `failure_mode_allow: false, status_on_error: {code: 502}, `, ``))
	c := w.client("HTTP/1.1")
	r := do(t, c, "PUT", "/ask?x", "body", "cookie: ok", "x-secret: s", "x-user-id: eve", "authorization: Basic x", "x-hidden: 1")
	if r.StatusCode != 200 || r.body != `PUT /ask?x user=[] secret=[] body=4` || len(r.Header.Values("x-seen")) != 1 || r.Header.Get("x-seen") != "by the authorizer" || r.Header.Get("x-other") != "" {
		t.Errorf("what is allowed: %d %q %v", r.StatusCode, r.body, r.Header)
	}
	mu.Lock()
	if seen.Method != "PUT" || seen.RequestURI != "/check/ask?x" || seen.Host != "stock.shop" || seen.Header.Get("cookie") != "ok" || seen.Header.Get("authorization") == "" ||
		seen.Header.Get("x-hidden") != "" || seen.Header.Get("x-from") != "waypoint" || seen.ContentLength != 0 {
		t.Errorf("it was asked %s %s of %s with %v, %d bytes", seen.Method, seen.RequestURI, seen.Host, seen.Header, seen.ContentLength)
	}
	mu.Unlock()
	r = do(t, c, "GET", "/ask", "")
	if r.StatusCode != 302 || r.body != "sign in" || r.Header.Get("location") != "http://login/" || r.Header.Get("set-cookie") != "a=b" || r.Header.Get("x-other") != "" {
		t.Errorf("what is denied: %d %q %v", r.StatusCode, r.body, r.Header)
	}
	if r := do(t, c, "GET", "/ask", "", "cookie: down"); r.StatusCode != 502 || strings.TrimSpace(r.body) != noDecision {
		t.Errorf("an answer that is none: %d %q", r.StatusCode, r.body)
	}
}

// TestAskFails: without an answer, or with one that cannot be carried out, requests are refused, unless the settings say otherwise.
func TestAskFails(t *testing.T) {
	w, a := newAskingWorld(t)
	answers := map[string]func(context.Context) (*authv3.CheckResponse, error){
		"an error": func(context.Context) (*authv3.CheckResponse, error) {
			return nil, grpcstatus.Error(codes.Unavailable, "not today")
		},
		"no answer in time": func(ctx context.Context) (*authv3.CheckResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"a header that cannot be":   always(ok(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option("x\r\nevil", "1")}})),
		"a value that cannot be":    always(ok(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option("x", "1\r\nevil: 2")}})),
		"a field of a connection":   always(ok(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option("Transfer-Encoding", "chunked")}})),
		"a new path":                always(ok(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option(":path", "/x")}})),
		"a new query":               always(ok(&authv3.OkHttpResponse{QueryParametersToRemove: []string{"q"}})),
		"a status that is none":     always(&authv3.CheckResponse{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 99}}}}),
		"more than is taken in":     always(ok(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option("x", strings.Repeat("x", 2<<20))}})),
		"an answer with a bad edit": always(ok(&authv3.OkHttpResponse{ResponseHeadersToAdd: []*corev3.HeaderValueOption{option("content-length", "1")}})),
	}
	hurry := strings.Replace(byGRPC, "20s", "0.2s", 1)
	for _, step := range []struct {
		listener string
		status   int
	}{
		{asking(hurry, ``, ``), 403}, {asking(hurry, `status_on_error: {code: 503}, `, ``), 503}, {asking(hurry, `failure_mode_allow: true, `, ``), 200},
		{asking(strings.Replace(hurry, "cluster_name: authz", "cluster_name: none", 1), ``, ``), 403},
	} {
		w.applyWith(toV1, step.listener)
		c := w.client("HTTP/1.1")
		for what, answer := range answers {
			a.says(answer)
			r := do(t, c, "GET", "/ask", "")
			if r.StatusCode != step.status {
				t.Errorf("%s: %d %q, want %d", what, r.StatusCode, r.body, step.status)
			}
			if r.StatusCode != 200 && strings.TrimSpace(r.body) != noDecision {
				t.Errorf("%s: the client is told %q", what, r.body)
			}
		}
	}
	await(t, "a line about each end", func() bool {
		log := w.log.String()
		return strings.Contains(log, "authorizer x has not decided") && strings.Contains(log, "not today") && strings.Contains(log, "ext_authz_failed_open=x")
	})
}

// TestAskWithBody: the authorizer is shown as much of the body as the settings say, and the backend gets all of it.
func TestAskWithBody(t *testing.T) {
	for _, version := range versions {
		w, a := newAskingWorld(t)
		w.applyWith(toV1, asking(byGRPC, `with_request_body: {max_request_bytes: 10, pack_as_bytes: true}, `, ``))
		c := w.client(version)
		if r := do(t, c, "POST", "/ask", "0123456789"); r.StatusCode != 200 || !strings.HasSuffix(r.body, "body=10") || string(a.last(t, 1).GetRequest().GetHttp().GetRawBody()) != "0123456789" {
			t.Errorf("%s: a body that fits: %d %q", version, r.StatusCode, r.body)
		}
		if r := do(t, c, "POST", "/ask", "0123456789a"); r.StatusCode != 413 || a.questions() != 1 {
			t.Errorf("%s: a body that does not fit: %d %q", version, r.StatusCode, r.body)
		}
		w.applyWith(toV1, asking(byGRPC, `with_request_body: {max_request_bytes: 10, allow_partial_message: true}, `, ``))
		c = w.client(version) // the connection was told to end, which a request that is no GET may meet
		r := do(t, c, "POST", "/ask", strings.Repeat("0123456789", 50_000))
		h := a.last(t, 2).GetRequest().GetHttp()
		if r.StatusCode != 200 || !strings.HasSuffix(r.body, "body=500000") || h.GetBody() != "0123456789" || h.GetHeaders()["x-envoy-auth-partial-body"] != "true" {
			t.Errorf("%s: the beginning of a body: %d %q", version, r.StatusCode, r.body)
		}
		if r := do(t, c, "GET", "/ask", ""); r.StatusCode != 200 || a.last(t, 3).GetRequest().GetHttp().GetHeaders()["x-envoy-auth-partial-body"] != "false" {
			t.Errorf("%s: no body: %d %q", version, r.StatusCode, r.body)
		}
	}
}
