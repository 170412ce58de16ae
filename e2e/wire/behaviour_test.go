package wire_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// services are a.ns and b.ns, of HTTP on port 80, each with one pod: 10.0.0.1 and 10.0.0.2.
const services = `
apiVersion: v1
kind: Service
metadata: {name: a, namespace: ns}
spec: {clusterIP: 10.96.0.1, ipFamilies: [IPv4], selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}, {name: http-alt, port: 8000, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: ns}
spec: {clusterIP: 10.96.0.2, ipFamilies: [IPv4], selector: {app: b}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a-1, namespace: ns, labels: {app: a}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: default}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b-1, namespace: ns, labels: {app: b}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: default}
status: {phase: Running, podIPs: [{ip: 10.0.0.2}], conditions: [{type: Ready, status: "True"}]}
`

// routed is services with an HTTPRoute on a.ns, in its namespace, that has these rules.
func routed(rules string) string {
	return services + `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: ns, generation: 1, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{group: "", kind: Service, name: a}]
  rules:
` + rules
}

// each runs a test for both versions of HTTP.
func each(t *testing.T, test func(t *testing.T, w *world, c *http.Client)) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			test(t, w, w.client(account("client"), version))
		})
	}
}

// says answers with what the request is like: who answers, method, host, target, and body.
func says(who string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Header().Set("x-who", who)
		fmt.Fprintf(w, "%s %s %s %s %s", who, r.Method, r.Host, r.RequestURI, b)
	}
}

// TestRedirectsArrive: a client gets the status and the Location that its route says, and nothing reaches a backend.
func TestRedirectsArrive(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.pod("10.0.0.1", func(http.ResponseWriter, *http.Request) { t.Error("a backend was asked") })
		w.apply(routed(`
  - {matches: [{path: {value: /host}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: other.example}}]}
  - {matches: [{path: {value: /scheme}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}
  - {matches: [{path: {value: /port}}], filters: [{type: RequestRedirect, requestRedirect: {port: 8083, statusCode: 303}}]}
  - {matches: [{path: {value: /prefix}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 307}}]}
  - {matches: [{path: {value: /full}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /whole}, statusCode: 308}}]}
`))
		for _, tc := range []struct {
			method, url string
			status      int
			location    string
		}{
			{"GET", "http://a.ns:80/host/x?q=1", 302, "http://other.example/host/x?q=1"},
			{"GET", "http://a.ns:8000/host", 302, "http://other.example:8000/host"},
			{"GET", "http://a.ns:80/scheme?q", 301, "https://a.ns/scheme?q"},
			{"POST", "http://a.ns:80/port", 303, "http://a.ns:8083/port"},
			{"GET", "http://a.ns:80/prefix/x/y?q=1", 307, "http://a.ns/new/x/y?q=1"},
			{"POST", "http://a.ns:8000/full/x", 308, "http://a.ns:8000/whole"},
		} {
			if a := do(t, c, tc.method, tc.url, ""); a.StatusCode != tc.status || a.Header.Get("location") != tc.location {
				t.Errorf("%s %s: %d %q, want %d %q", tc.method, tc.url, a.StatusCode, a.Header.Get("location"), tc.status, tc.location)
			}
		}
	})
}

// TestRewritesArrive: the backend gets the path and the host that the route says, with the query and the body as they were.
func TestRewritesArrive(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.pod("10.0.0.1", says("a"))
		w.apply(routed(`
  - matches: [{path: {value: /prefix}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: a, port: 80}]
  - matches: [{path: {value: /full}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /whole}}}]
    backendRefs: [{name: a, port: 80}]
  - matches: [{path: {value: /backend}}]
    backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: b.example}}]}]
`))
		for path, want := range map[string]string{
			"/prefix/x/y?q=/prefix": "a POST other.example /x/y?q=/prefix hello",
			"/prefix":               "a POST other.example / hello",
			"/prefix/":              "a POST other.example / hello",
			"/full/x?q=%2F":         "a POST a.ns /whole?q=%2F hello",
			"/backend/%41?":         "a POST b.example /backend/A? hello",
		} {
			if a := do(t, c, "POST", "http://a.ns"+path, "hello"); a.StatusCode != 200 || a.body != want {
				t.Errorf("%s: %d %q, want %q", path, a.StatusCode, a.body, want)
			}
		}
	})
}

// TestWeightsArePerRequest: the requests of one connection are shared as the weights say, within three standard deviations; a weight of 0
// gets nothing.
func TestWeightsArePerRequest(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		w.pod("10.0.0.1", says("a"))
		w.pod("10.0.0.2", says("b"))
		w.apply(routed(`
  - {backendRefs: [{name: a, port: 80, weight: 7}, {name: b, port: 80, weight: 3}, {name: missing, port: 80, weight: 0}]}
`))
		const n, share = 400, .3
		got := map[string]int{}
		for range n {
			got[do(t, c, "GET", "http://a.ns/", "").Header.Get("x-who")]++
		}
		if dev := math.Abs(float64(got["b"]) - n*share); dev > 3*math.Sqrt(n*share*(1-share)) || got["a"]+got["b"] != n {
			t.Errorf("%v of %d requests; b has a share of %v", got, n, share)
		}
	})
}

// TestRetriesAndTimeouts: what a rule says of codes, attempts and times is what happens.
func TestRetriesAndTimeouts(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		var mu sync.Mutex
		tries := map[string]int{}
		w.pod("10.0.0.1", func(rw http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			mu.Lock()
			tries[r.URL.Path]++
			n := tries[r.URL.Path]
			mu.Unlock()
			switch {
			case r.URL.Path == "/hangs" || r.URL.Path == "/hangs-once" && n == 1:
				<-r.Context().Done()
			case r.URL.Path == "/codes" && n <= 2, r.URL.Path == "/exhausted":
				rw.WriteHeader(503)
			case r.URL.Path == "/other":
				rw.WriteHeader(500)
			}
			fmt.Fprintf(rw, "%d %s", n, b)
		})
		w.apply(routed(`
  - {matches: [{path: {value: /codes}}], retry: {codes: [503], attempts: 2, backoff: 1ms}, backendRefs: [{name: a, port: 80}]}
  - {matches: [{path: {value: /exhausted}}], retry: {codes: [503], attempts: 3, backoff: 1ms}, backendRefs: [{name: a, port: 80}]}
  - {matches: [{path: {value: /other}}], retry: {codes: [503], attempts: 3}, backendRefs: [{name: a, port: 80}]}
  - {matches: [{path: {value: /hangs}}], timeouts: {request: 50ms}, backendRefs: [{name: a, port: 80}]}
  - {matches: [{path: {value: /hangs-once}}], timeouts: {backendRequest: 1s}, retry: {codes: [504], attempts: 20, backoff: 1ms}, backendRefs: [{name: a, port: 80}]}
`))
		for _, tc := range []struct {
			path   string
			status int
			body   string
		}{
			{"/codes", 200, "3 hello"}, {"/exhausted", 503, "4 hello"}, {"/other", 500, "1 hello"},
			{"/hangs", 504, "no answer in time"}, {"/hangs-once", 200, " hello"}, // how often it was tried is the machine's too
		} {
			if a := do(t, c, "POST", "http://a.ns"+tc.path, "hello"); a.StatusCode != tc.status || !strings.Contains(a.body, tc.body) {
				t.Errorf("%s: %d %q, want %d %q", tc.path, a.StatusCode, a.body, tc.status, tc.body)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if tries["/codes"] != 3 || tries["/exhausted"] != 4 || tries["/other"] != 1 || tries["/hangs"] > 1 || tries["/hangs-once"] < 2 {
			t.Errorf("tries: %v", tries)
		}
	})
}

// TestMirrorsGetCopies: a mirror gets each request with its body, the client only what the backend answers, whatever the mirror does.
func TestMirrorsGetCopies(t *testing.T) {
	each(t, func(t *testing.T, w *world, c *http.Client) {
		var mu sync.Mutex
		var copies []string
		w.pod("10.0.0.1", says("a"))
		w.pod("10.0.0.2", func(rw http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			mu.Lock()
			copies = append(copies, fmt.Sprint(r.Method, " ", r.URL.Path, " ", string(b)))
			mu.Unlock()
			rw.WriteHeader(500)
		})
		w.apply(routed(`
  - matches: [{path: {value: /copied}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}}}]
    backendRefs: [{name: a, port: 80}]
  - matches: [{path: {value: /never}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}, percent: 0}}]
    backendRefs: [{name: a, port: 80}]
`))
		var want []string
		for i := range 10 {
			body := fmt.Sprint("body ", i)
			for _, path := range []string{"/never", "/copied"} {
				if a := do(t, c, "POST", "http://a.ns"+path, body); a.StatusCode != 200 || a.body != "a POST a.ns "+path+" "+body {
					t.Fatalf("%s: %d %q", path, a.StatusCode, a.body)
				}
			}
			want = append(want, "POST /copied "+body)
		}
		await(t, "all copies have come", func() bool { mu.Lock(); defer mu.Unlock(); return len(copies) >= len(want) })
		mu.Lock()
		defer mu.Unlock()
		if slices.Sort(copies); !slices.Equal(copies, want) {
			t.Errorf("copies %q, want %q", copies, want)
		}
	})
}

// TestIdentityFromEndToEnd: who asks is who policy and consumers' routes see, by its certificate whatever it says in headers; the backend
// is asked by the waypoint only, and gets nothing if it is not who it should be.
func TestIdentityFromEndToEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world, _ *http.Client) {
		w.pod("10.0.0.1", says("a"))
		w.serve("10.0.0.2", account("impostor"), 8080, func(net.Conn) { t.Error("an impostor was spoken to") })
		w.apply(routed(`
  - {matches: [{path: {value: /b}}], backendRefs: [{name: b, port: 80}]}
  - {backendRefs: [{name: a, port: 80}]}
`) + `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: consumer, namespace: other, generation: 1, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{group: "", kind: Service, name: a, namespace: ns}]
  rules: [{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-consumer, value: "yes"}]}}], backendRefs: [{name: a, namespace: ns, port: 80}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: ns, generation: 1}
spec:
  targetRefs: [{group: "", kind: Service, name: a}]
  rules: [{from: [{source: {serviceAccounts: [client]}}, {source: {namespaces: [other]}}]}]
`)
		for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
			other := account("client")
			other.Namespace = "other"
			for _, tc := range []struct {
				id       identity.Identity
				path     string
				status   int
				consumer string
			}{
				{account("client"), "/", 200, ""}, {account("stranger"), "/", 403, ""}, {other, "/", 200, "yes"}, {account("client"), "/b", 503, ""},
			} {
				a := do(t, w.client(tc.id, version), "GET", "http://a.ns"+tc.path, "", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/other/sa/client")
				if a.StatusCode != tc.status || a.Header.Get("x-consumer") != tc.consumer {
					t.Errorf("%s %s: %d %q, x-consumer %q", tc.id, tc.path, a.StatusCode, a.body, a.Header.Get("x-consumer"))
				}
			}
		}
		await(t, "why nobody spoke to the impostor is logged", func() bool {
			return strings.Contains(w.log.String(), "response_flags=UF") && strings.Contains(w.log.String(), account("impostor").String())
		})
	})
}

// TestTLSRoutesArrive: clients of TLS get to the server that they ask for, by its own certificate, and nobody to one that no route has.
func TestTLSRoutesArrive(t *testing.T) {
	w := newWorld(t)
	for addr, name := range map[string]string{"10.0.0.1": "a.example", "10.0.0.2": "x.b.example"} {
		cert, key, err := w.ca.Server(name)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		w.serve(addr, account("default"), 8443, func(nc net.Conn) {
			c := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{pair}})
			defer c.Close()
			_, _ = io.WriteString(c, "this is "+name)
		})
	}
	w.apply(strings.ReplaceAll(services, "{name: http, port: 80, targetPort: 8080}", "{name: https, port: 443, targetPort: 8443}") + `---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: one, namespace: ns, generation: 1, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{group: "", kind: Service, name: a}]
  hostnames: [a.example]
  rules: [{backendRefs: [{name: a, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: two, namespace: ns, generation: 1, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{group: "", kind: Service, name: a}]
  hostnames: ["*.b.example"]
  rules: [{backendRefs: [{name: b, port: 443}]}]
`)
	dial := w.dialer(account("client"))
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.Certificate())
	ask := func(server string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		nc, err := dial(ctx, "a.ns:443")
		if err != nil {
			return "", err
		}
		c := tls.Client(nc, &tls.Config{RootCAs: roots, ServerName: server})
		defer c.Close()
		b, err := io.ReadAll(c)
		return string(b), err
	}
	for _, server := range []string{"a.example", "x.b.example"} {
		if got, err := ask(server); err != nil || got != "this is "+server {
			t.Errorf("%s: %q, %v", server, got, err)
		}
	}
	if got, err := ask("b.example"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that no route has: %q, %v", got, err)
	}
	await(t, "why is logged", func() bool {
		return strings.Contains(w.log.String(), "response_flags=NR") && strings.Contains(w.log.String(), "no TLSRoute of the port is for the server")
	})
}
