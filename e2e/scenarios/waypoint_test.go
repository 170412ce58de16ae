package scenarios

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// waypoint: one command gives a namespace a waypoint; routes and policies act on requests, what is not HTTP is carried as it was, every hop is
// a tunnel between identities, and without the waypoint everything goes on at layer 4.
func waypoint() scenario {
	const ns = "ambit-waypoint"
	return scenario{
		name: "18-waypoint", manifest: "waypoint.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			out, err := w.Run(w.ctx, ambit(w.Cluster), "waypoint", "apply", "-n", ns, "--enroll-namespace", "--wait", "--waypoint-timeout", "3m")
			w.must(t, err)
			t.Logf("ambit waypoint apply:\n%s", out)
			w.apply(t, "waypoint-route.yaml")
			start := time.Now()
			w.awaitRoutes(t, ns)
			w.routes(t, ns)
			w.split(t, ns)
			w.throughWaypoint(t, ns, start)
			w.judged(t, ns)
			w.tokens(t, ns)

			// Services without a route of their own, and ports that are not HTTP, work as they did. The server sees the waypoint's address.
			ways := w.everyWay(t, ns, ns, w.pairs())
			for i := range ways {
				ways[i].source = nil
			}
			w.expect(t, ways)

			w.remove(t, "waypoint-route.yaml")
			_, err = w.Run(w.ctx, ambit(w.Cluster), "waypoint", "delete", "-n", ns, "--all")
			w.must(t, err)
			w.eventually(t, "connections go to servers directly again", w.everyWay(t, ns, ns, w.pairs()))
		},
	}
}

// ask sends requests from client1, which is on another node than server2.
func (w *world) ask(ctx context.Context, ns string, request traffic.HTTPRequest) ([]traffic.HTTPReply, error) {
	return w.askFrom(ctx, harness.Pod{Namespace: ns, Name: "client1"}, request)
}

func (w *world) askFrom(ctx context.Context, from harness.Pod, request traffic.HTTPRequest) ([]traffic.HTTPReply, error) {
	report, err := harness.Do[traffic.HTTPReport](ctx, w.Cluster, from, traffic.VerbHTTP, request)
	if err != nil {
		return nil, err
	}
	if len(report.Replies) != max(1, request.Count) {
		return nil, fmt.Errorf("%d replies to %d requests", len(report.Replies), max(1, request.Count))
	}
	return report.Replies, nil
}

// awaitRoutes waits until both clients' requests take the route.
func (w *world) awaitRoutes(t *testing.T, ns string) {
	t.Helper()
	until := harness.Until{What: "the route acts on requests", Within: converged, InARow: 3}
	w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
		for _, client := range []string{"client1", "client2"} {
			report, err := harness.Do[traffic.HTTPReport](ctx, w.Cluster, harness.Pod{Namespace: ns, Name: client}, traffic.VerbHTTP,
				traffic.HTTPRequest{URL: "http://server:8080/split"})
			if err != nil {
				return err
			}
			if len(report.Replies) != 1 || report.Replies[0].Header.Get("X-Through") != "waypoint" {
				return fmt.Errorf("%s got %+v", client, report.Replies)
			}
		}
		return nil
	}))
}

// routes asks for each thing that the route does, by both versions of HTTP.
func (w *world) routes(t *testing.T, ns string) {
	t.Helper()
	const server = "http://server:8080"
	pod := func(name string) func(traffic.HTTPReply) error {
		return func(r traffic.HTTPReply) error {
			if r.Who.Pod != name {
				return fmt.Errorf("%q answered, want %s", r.Who.Pod, name)
			}
			return nil
		}
	}
	nothing := func(traffic.HTTPReply) error { return nil }
	for _, tc := range []struct {
		what    string
		request traffic.HTTPRequest
		status  int
		check   func(traffic.HTTPReply) error
	}{
		{"a header chooses the backend", traffic.HTTPRequest{URL: server + "/plain", Header: map[string]string{"X-Tester": "yes"}, Count: 20}, 200, pod("server2")},
		{"path, host and header are rewritten", traffic.HTTPRequest{URL: server + "/old/menu?headers"}, 200, func(r traffic.HTTPReply) error {
			if r.Who.Request != "GET /new/menu?headers" || r.Who.Host != "rewritten.example" || r.Who.Header.Get("X-Colour") != "blue" {
				return fmt.Errorf("the server saw %q for %q with %v", r.Who.Request, r.Who.Host, r.Who.Header)
			}
			return pod("server1")(r)
		}},
		{"a prefix is one of whole segments", traffic.HTTPRequest{URL: server + "/older"}, 404, nothing},
		{"a redirect", traffic.HTTPRequest{URL: server + "/moved"}, 301, func(r traffic.HTTPReply) error {
			if got := r.Header.Get("Location"); got != "https://elsewhere.example/there" {
				return fmt.Errorf("location is %q", got)
			}
			return nil
		}},
		{"a retry hides every other failure", traffic.HTTPRequest{URL: server + traffic.PathFlaky, Count: 10}, 200, pod("server1")},
		{"a request has its time", traffic.HTTPRequest{URL: server + traffic.PathSlow}, 504, nothing},
		{"a backend that is not there", traffic.HTTPRequest{URL: server + "/nowhere"}, 500, nothing},
		{"no rule matches", traffic.HTTPRequest{URL: server + "/else"}, 404, nothing},
		{"a service without a route", traffic.HTTPRequest{URL: "http://server2:8080/any"}, 200, pod("server2")},
	} {
		for _, tc.request.HTTP2 = range []bool{false, true} {
			replies, err := w.ask(w.ctx, ns, tc.request)
			if err != nil {
				t.Errorf("%s: %v", tc.what, err)
				continue
			}
			for i, reply := range replies {
				var err error
				if reply.Kind != "" || reply.Status != tc.status {
					err = fmt.Errorf("status %d, want %d", reply.Status, tc.status)
				} else {
					err = tc.check(reply)
				}
				if err != nil {
					t.Errorf("%s (HTTP/2: %t, request %d): %v: %+v", tc.what, tc.request.HTTP2, i, err, reply)
					break
				}
			}
		}
	}
}

// split counts who answers: weights hold for requests, not for connections.
func (w *world) split(t *testing.T, ns string) {
	t.Helper()
	const count, share = 500, 0.1
	replies, err := w.ask(w.ctx, ns, traffic.HTTPRequest{URL: "http://server:8080/split", Count: count})
	w.must(t, err)
	got := map[string]int{}
	for _, reply := range replies {
		got[reply.Who.Pod]++
	}
	// Four standard deviations of a binomial distribution: one run in ten thousand is beyond it by chance.
	if deviation := 4 * math.Sqrt(count*share*(1-share)); math.Abs(float64(got["server2"])-count*share) > deviation || got["server1"]+got["server2"] != count {
		t.Errorf("of %d requests %v, want %.0f of server2, give or take %.0f", count, got, count*share, deviation)
	}
}

// throughWaypoint looks for both hops in the access logs: from the client to the waypoint, and from the waypoint to the server.
func (w *world) throughWaypoint(t *testing.T, ns string, since time.Time) {
	t.Helper()
	identity := func(account string) string {
		return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", api.DefaultTrustDomain, ns, account)
	}
	until := harness.Until{What: "both hops of requests in access logs", Within: converged}
	w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
		hops := map[string]bool{}
		for _, node := range nodes() {
			lines, err := w.AccessLog(ctx, node, since)
			if err != nil {
				return err
			}
			for _, line := range lines {
				hops[line.Direction+" "+line.SourceIdentity+" "+line.DestIdentity] = true
			}
		}
		var missing error
		for _, hop := range []string{
			"outbound " + identity("client") + " " + identity("waypoint"),
			"inbound " + identity("waypoint") + " " + identity("server"),
		} {
			if !hops[hop] {
				missing = errors.Join(missing, fmt.Errorf("no line %s", hop))
			}
		}
		return missing
	}))
}

// judged: policies of a service are decided by the waypoint on who asks and for what, they say so, and its log names whom they refused.
func (w *world) judged(t *testing.T, ns string) {
	t.Helper()
	since := time.Now()
	const split, menu = "http://server:8080/split", "http://server:8080/old/menu"
	await := func(what string, want map[string]int) {
		t.Helper()
		until := harness.Until{What: what, Within: converged, InARow: 3}
		w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
			var wrong error
			for line, status := range want {
				from, rest, _ := strings.Cut(line, " ")
				method, url, _ := strings.Cut(rest, " ")
				for _, http2 := range []bool{false, true} {
					replies, err := w.askFrom(ctx, harness.Pod{Namespace: ns, Name: from}, traffic.HTTPRequest{Method: method, URL: url, HTTP2: http2})
					if err != nil {
						return err
					}
					if replies[0].Status != status {
						wrong = errors.Join(wrong, fmt.Errorf("%s (HTTP/2: %t): status %d, want %d: %s", line, http2, replies[0].Status, status, replies[0].Error))
					}
				}
			}
			return wrong
		}))
	}
	all := map[string]int{"client1 GET " + split: 200, "client2 GET " + menu: 200, "client1 POST " + split: 200, "server2 GET " + split: 200}
	await("requests are served before the policies", all)
	w.apply(t, "waypoint-policy.yaml")
	await("requests are judged", map[string]int{
		"client1 GET " + split: 200, "client2 GET " + split: 200, "client2 GET " + menu: 403, "client1 POST " + split: 403, "server2 GET " + split: 403})
	for _, name := range []string{"readers", "no-menu"} {
		w.condition(t, ns, name, "WaypointAccepted", "True", "Accepted")
	}
	lines := [][2]string{{"sa/client", "denied by policy " + ns + "/no-menu"}, {"sa/server", "no ALLOW policy matches; there are " + ns + "/readers"}}
	w.must(t, harness.Await(w.ctx, harness.Until{What: "who was refused, in the log of the waypoint", Within: converged}, func(ctx context.Context) error {
		pods, err := w.Pods(ctx, ns, api.LabelGatewayName+"=waypoint")
		if err != nil {
			return err
		}
		var all string
		for i := range pods {
			text, err := w.Logs(ctx, harness.Pod{Namespace: ns, Name: pods[i].Name}, since)
			if err != nil {
				return err
			}
			all += text
		}
		for _, want := range lines {
			found := false
			for line := range strings.Lines(all) {
				found = found || strings.Contains(line, want[0]) && strings.Contains(line, want[1])
			}
			if !found {
				err = errors.Join(err, fmt.Errorf("no line with %s and %q", want[0], want[1]))
			}
		}
		return err
	}))
	w.remove(t, "waypoint-policy.yaml")
	await("requests are served after the policies", all)
}
