package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/logfilter"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// loggedListener is configtest's with an access log for both ports: of what an expression is true for, or of all if it is empty.
func loggedListener(expression string) string {
	filter := ""
	if expression != "" {
		filter = fmt.Sprintf(`
        filter:
          extension_filter:
            name: cel
            typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter, expression: %q}`, expression)
	}
	l := configtest.Listener("0s")
	for _, name := range []string{"web", "raw"} {
		l = strings.Replace(l, "      stat_prefix: "+name+"\n", "      stat_prefix: "+name+`
      access_log:
      - name: file
        typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/stdout}`+filter+"\n", 1)
	}
	return l
}

// TestLoggedByChain: what a chain says of the access log takes the place of the proxy's own rule, at once and for connections that
// there are; without it what went badly is logged.
func TestLoggedByChain(t *testing.T) {
	for _, version := range versions {
		w := newWorld(t, func(c *Config) { c.Sampling = 0 })
		c := w.client(version)
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/bad" {
				rw.WriteHeader(500)
			}
		}))
		for number, step := range []struct{ listener, want string }{
			{configtest.Listener("0s"), "/bad"},
			{loggedListener(""), "/good /bad"},
			{loggedListener("response.code < 400"), "/good"},
			{loggedListener("request.headers['x-number'] == '3' && response.code == 500"), "/bad"},
			{loggedListener("false"), ""},
			{configtest.Listener("0s"), "/bad"},
		} {
			w.applyWith(all, step.listener)
			before := len(w.log.String())
			for _, path := range []string{"/good", "/bad"} {
				do(t, c, "GET", path, "", fmt.Sprintf("x-number: %d", number))
			}
			w.counted(float64(2*(number+1)), "istio_requests_total")
			var got []string
			lines := func() []string {
				got = nil
				for line := range strings.Lines(w.log.String()[before:]) {
					if _, rest, found := strings.Cut(line, "path="); found {
						path, _, _ := strings.Cut(rest, " ")
						got = append(got, path)
					}
				}
				return got
			}
			await(t, fmt.Sprintf("step %d logs %q", number, step.want), func() bool { return len(lines()) >= len(strings.Fields(step.want)) })
			if strings.Join(lines(), " ") != step.want {
				t.Errorf("step %d: %q is logged, want %q", number, got, step.want)
			}
		}
	}
}

// everything is true if all attributes are known, each of its type.
const everything = `request.path == '/items?a=b' && request.url_path == '/items' && request.query == 'a=b' && request.host == 'stock.shop' &&
	request.scheme == 'http' && request.method == 'POST' && request.protocol.startsWith('HTTP/') && request.headers['x-twice'] == 'one,two' &&
	request.referer == 'there' && request.useragent == 'tests' && request.id == '4711' && request.time > timestamp('2020-01-01T00:00:00Z') &&
	request.duration >= duration('0s') && request.size == 4 && response.code == 200 && response.grpc_status == 5 && response.size == 0 &&
	response.backend_latency > duration('0s') && connection.mtls && connection.uri_san_peer_certificate.startsWith('spiffe://') &&
	source.address.startsWith('10.9.9.9') && source.port >= 0 && destination.address == '10.96.0.1:80' && destination.port == 80 &&
	upstream.address.contains(':') && upstream.port > 0 && xds.cluster_name == 'c' && xds.route_name == 'one' &&
	xds.filter_chain_name == 'inbound-vip|80|http|stock.shop.svc.cluster.local'`

// TestLogAttributes: a request has all attributes that there are.
func TestLogAttributes(t *testing.T) {
	for _, name := range logfilter.Attributes() {
		if !strings.Contains(everything, name) {
			t.Errorf("%s is not asked for", name)
		}
	}
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.httpPod("c", 1, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			rw.Header().Set("content-type", "application/grpc")
			rw.Header().Set("grpc-status", "5")
		}))
		w.applyWith(`- {name: one, match: {prefix: /}, route: {cluster: c}}`, loggedListener(everything))
		do(t, c, "POST", "/items?a=b", "four", "content-type: application/grpc", "referer: there", "user-agent: tests", "x-request-id: 4711", "x-twice: one", "x-twice: two")
		await(t, "the request is logged", func() bool { return strings.Contains(w.log.String(), "request complete") })
	})
}

// TestConnectionsLogged: connections that are none of HTTP have no request, and are logged by what is known of them.
func TestConnectionsLogged(t *testing.T) {
	for expression, want := range map[string]bool{
		"":                     true,
		"response.code >= 400": false,
		"has(request.path)":    false,
		"destination.port == 81 && xds.cluster_name == 'raw' && connection.mtls": true,
	} {
		w := newWorld(t)
		w.pod("raw", 1, backendID, func(nc net.Conn) { _ = nc.Close() })
		w.applyWith(all, loggedListener(expression))
		_ = w.mustTunnel(rawPort).Close()
		w.counted(1, "istio_tcp_connections_closed_total")
		if !want {
			// The next connection is logged, and after this one.
			w.applyWith(all, loggedListener(""))
			_ = w.mustTunnel(rawPort).Close()
			w.counted(2, "istio_tcp_connections_closed_total")
		}
		await(t, expression+": one connection is logged", func() bool { return strings.Contains(w.log.String(), "connection complete") })
		if n := strings.Count(w.log.String(), "connection complete"); n != 1 {
			t.Errorf("%s: %d connections are logged", expression, n)
		}
	}
}
