package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// guarded is the listener with an RBAC filter before what each chain does; "" is none.
func guarded(http, tcp string) string {
	out := configtest.Listener("0s")
	if http != "" {
		out = strings.Replace(out, "      - {name: envoy.filters.http.cors", "      - {name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, "+http+"}}\n      - {name: envoy.filters.http.cors", 1)
	}
	if tcp != "" {
		out = strings.Replace(out, "  - name: envoy.filters.network.tcp_proxy", "  - {name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, "+tcp+"}}\n  - name: envoy.filters.network.tcp_proxy", 1)
	}
	return out
}

const (
	denyAdmin = `rules: {action: DENY, policies: {"ns[shop]-policy[no-admin]-rule[0]": {principals: [{any: true}], permissions: [{url_path: {path: {prefix: /admin}}}]}}},
      shadow_rules: {action: DENY, policies: {"ns[shop]-policy[try]-rule[0]": {principals: [{direct_remote_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}], permissions: [{any: true}]}}}`
	denyCurl  = `rules: {action: DENY, policies: {"ns[shop]-policy[no-curl]-rule[0]": {permissions: [{any: true}], principals: [{filter_state: {key: io.istio.peer_principal, string_match: {safe_regex: {regex: "spiffe://[^/]+/ns/shop/sa/curl"}}}}]}}}`
	allowBank = `rules: {action: ALLOW, policies: {"ns[shop]-policy[bank]-rule[0]": {permissions: [{any: true}], principals: [{filter_state: {key: io.istio.peer_principal, string_match: {prefix: "spiffe://cluster.local/ns/bank/"}}}]}}}`
	auditAll  = `rules: {action: LOG, policies: {"ns[shop]-policy[seen]-rule[0]": {permissions: [{any: true}], principals: [{any: true}]}}}`
)

func newGuardedWorld(t *testing.T) (*world, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(c *Config) {
		c.Policies = telemetry.NewPolicies(reg, func(string) bool { return true })
		c.Sampling = 0
	})
	w.httpPod("v1", 1, name("v1"))
	w.pod("raw", 2, backendID, func(nc net.Conn) {
		_, _ = io.Copy(nc, nc)
		_ = nc.Close()
	})
	return w, reg
}

const toV1 = `  - {name: shop/r, match: {prefix: /}, route: {cluster: v1}}`

// TestPolicyOfRequests: each request is judged by policy as it is then, on the path that is routed, also on connections that are
// older. Who is refused hears nothing of the policy; the log and the metrics name it.
func TestPolicyOfRequests(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w, reg := newGuardedWorld(t)
			w.applyWith(toV1, guarded(denyAdmin, ""))
			c := w.client(version)
			if a := do(t, c, "GET", "http://stock/", ""); a.StatusCode != 200 || !strings.HasPrefix(a.body, "v1 ") {
				t.Fatalf("what no policy denies: %d %q", a.StatusCode, a.body)
			}
			for _, path := range []string{"/admin", "/admin/x?y", "/x/../admin", "/%61dmin"} {
				if a := do(t, c, "GET", "http://stock"+path, ""); a.StatusCode != 403 || a.body != accessDenied {
					t.Errorf("%s: %d %q", path, a.StatusCode, a.body)
				}
			}
			if a := do(t, c, "POST", "http://stock/admin", "", "content-type: application/grpc"); a.Header.Get("grpc-status") != "7" || a.Header.Get("grpc-message") != accessDenied {
				t.Errorf("gRPC: %v", a.Header)
			}
			await(t, "a line that names the policy", func() bool {
				return strings.Contains(w.log.String(), "denied by policy shop/no-admin") && strings.Contains(w.log.String(), "response_flags=RBAC")
			})
			want := `# HELP ambit_policy_decisions_total Connections that a policy decided on, or would have (mode dry_run); policy is - where none of the ALLOW policies matched.
# TYPE ambit_policy_decisions_total counter
ambit_policy_decisions_total{decision="deny",mode="enforced",policy="shop/no-admin"} 5
ambit_policy_decisions_total{decision="deny",mode="dry_run",policy="shop/try"} 6
`
			if err := testutil.GatherAndCompare(reg, bytes.NewBufferString(want), "ambit_policy_decisions_total"); err != nil {
				t.Error(err)
			}
			w.applyWith(toV1, guarded(allowBank, ""))
			if a := do(t, c, "GET", "http://stock/", ""); a.StatusCode != 403 {
				t.Errorf("after a change, of whom no policy allows: %d", a.StatusCode)
			}
			w.applyWith(toV1, guarded(auditAll, ""))
			if a := do(t, c, "GET", "http://stock/seen", ""); a.StatusCode != 200 {
				t.Errorf("a request that is audited: %d", a.StatusCode)
			}
			await(t, "a line for the audit", func() bool { return strings.Contains(w.log.String(), "audit=shop/seen") })
		})
	}
}

// TestPolicyOfConnections: a connection that is not of HTTP is judged when it comes and when policy changes.
func TestPolicyOfConnections(t *testing.T) {
	w, reg := newGuardedWorld(t)
	w.applyWith(toV1, guarded("", auditAll))
	echo := func(s io.ReadWriter) error {
		if _, err := s.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(s, make([]byte, 1))
		return err
	}
	s := w.mustTunnel(81)
	defer s.Close()
	if err := echo(s); err != nil {
		t.Fatal(err)
	}
	w.applyWith(toV1, guarded(denyAdmin, auditAll)) // the other chain's
	if err := echo(s); err != nil {
		t.Fatalf("after a change that is none for it: %v", err)
	}
	w.applyWith(toV1, guarded("", denyCurl))
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a connection that is denied now ended with %v, not with a reset", err)
	}
	await(t, "a line that says why", func() bool {
		return strings.Contains(w.log.String(), "closed due to policy change: denied by policy shop/no-curl")
	})
	if n, err := testutil.GatherAndCount(reg, "ambit_policy_connections_closed_total"); n != 1 || err != nil {
		t.Errorf("%d policies have closed connections, %v", n, err)
	}
	if s, err := w.tunnel(t.Context(), 81); err == nil {
		s.Close()
		t.Error("a connection that is denied was made")
	} else if !strings.Contains(err.Error(), "403") {
		t.Errorf("a connection that is denied: %v", err)
	}
	w.proxy.mu.Lock()
	defer w.proxy.mu.Unlock()
	if n := len(w.proxy.carried); n != 0 {
		t.Errorf("%d connections are still watched", n)
	}
}

// TestRemote: who the client was before all proxies.
func TestRemote(t *testing.T) {
	w, _ := newGuardedWorld(t)
	w.applyWith(toV1, guarded(`rules: {action: ALLOW, policies: {p: {permissions: [{any: true}], principals: [{remote_ip: {address_prefix: 192.0.2.0, prefix_len: 24}}]}}}`, ""))
	c := w.client("HTTP/1.1")
	for header, want := range map[string]int{
		"x-forwarded-for: 192.0.2.1": 200, "x-forwarded-for: 10.0.0.1, 192.0.2.1:80": 200, "x-forwarded-for: 192.0.2.1, 10.0.0.1": 403,
		"x-forwarded-for: 192.0.2.1, unknown": 403, "x-other: y": 403, "x-forwarded-for: ::ffff:192.0.2.7": 200,
	} {
		if a := do(t, c, "GET", "http://stock/", "", header); a.StatusCode != want {
			t.Errorf("%s: %d", header, a.StatusCode)
		}
	}
}

// TestPolicyOfLongRequests: a WebSocket and a call of gRPC end when policy denies them, and go on while it does not; what came as
// another request is answered.
func TestPolicyOfLongRequests(t *testing.T) {
	w, reg := newGuardedWorld(t)
	delete(w.endpoints, "v1")
	release := make(chan struct{})
	w.httpPod("v1", 3, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			nc, buf, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			fmt.Fprint(buf, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
			_ = buf.Flush()
			_, _ = io.Copy(nc, buf)
			return
		}
		rw.Header().Set("content-type", r.Header.Get("content-type"))
		_, _ = io.WriteString(rw, "x")
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-release:
			_, _ = io.WriteString(rw, "end")
		case <-r.Context().Done():
		}
	}))
	const toChange = `  - {name: shop/r, match: {prefix: /}, request_headers_to_remove: [x-role], route: {cluster: v1}}`
	denyRole := func(role string) string {
		return `rules: {action: DENY, policies: {"ns[shop]-policy[no-role]-rule[0]": {principals: [{any: true}], permissions: [{header: {name: x-role, string_match: {exact: ` + role + `}}}]}}}`
	}
	w.applyWith(toChange, guarded("", ""))

	socket := w.mustTunnel(webPort)
	defer socket.Close()
	fmt.Fprint(socket, "GET / HTTP/1.1\r\nhost: stock.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-role: guest\r\n\r\n")
	in := bufio.NewReader(socket)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	open := func(version, kind string) io.ReadCloser {
		req, err := http.NewRequest("POST", "http://stock.shop/call", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("content-type", kind)
		req.Header.Set("x-role", "guest")
		resp, err := w.client(version).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return resp.Body
	}
	call, other := open("HTTP/2.0", "application/grpc"), open("HTTP/2.0", "text/plain")
	defer call.Close()
	defer other.Close()

	w.applyWith(toChange, guarded(denyRole("host"), ""))
	fmt.Fprint(socket, "hello")
	if _, err := io.ReadFull(in, make([]byte, 5)); err != nil {
		t.Fatalf("a WebSocket that no policy denies: %v", err)
	}
	w.applyWith(toChange, guarded(denyRole("guest"), ""))
	if b, err := io.ReadAll(in); err == nil {
		t.Logf("the WebSocket ended with %q", b) // or with a reset: it has no other way to say so
	}
	if _, err := io.ReadAll(call); err == nil {
		t.Error("a call of gRPC that is denied now ended as if it were whole")
	}
	close(release)
	if b, err := io.ReadAll(other); err != nil || string(b) != "end" {
		t.Errorf("another request that was let in: %q, %v", b, err)
	}
	await(t, "two lines that say why", func() bool {
		return strings.Count(w.log.String(), "closed due to policy change: denied by policy shop/no-role") == 2 && strings.Count(w.log.String(), "response_flags=RBAC") == 2
	})
	if err := testutil.GatherAndCompare(reg, bytes.NewBufferString(`# HELP ambit_policy_connections_closed_total Connections that were open when a change of policy or workload denied them.
# TYPE ambit_policy_connections_closed_total counter
ambit_policy_connections_closed_total{policy="shop/no-role"} 2
`), "ambit_policy_connections_closed_total"); err != nil {
		t.Error(err)
	}
	await(t, "nothing is followed any more", func() bool {
		w.proxy.mu.Lock()
		defer w.proxy.mu.Unlock()
		for c := range w.proxy.conns {
			c.mu.Lock()
			n := len(c.long)
			c.mu.Unlock()
			if n > 0 {
				return false
			}
		}
		return true
	})
}
