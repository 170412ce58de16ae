package route_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// benchTable is a table of n routes: exact paths, prefixes, some with conditions on a header, and a regular expression.
func benchTable(b testing.TB, n int) *route.Table {
	var text strings.Builder
	for i := range n {
		match := fmt.Sprintf("path_separated_prefix: /api/v1/things%d", i)
		switch i % 4 {
		case 0:
			match = fmt.Sprintf("path: /pkg.Service%d/Method", i)
		case 1:
			match += `, headers: [{name: version, string_match: {exact: two}}]`
		}
		fmt.Fprintf(&text, "  - {name: r%d, match: {%s}, route: {weighted_clusters: {clusters: [{name: a, weight: 90}, {name: b, weight: 10}]}}}\n", i, match)
	}
	return compile(b, text.String())
}

func benchRequest(path string) *message.Request {
	return &message.Request{Method: "GET", Scheme: "http", Authority: "echo:80", Path: path, Header: message.Fields{
		{Name: "user-agent", Value: "curl/8"}, {Name: "accept", Value: "*/*"}, {Name: "version", Value: "one"}, {Name: "x-request-id", Value: "1"}}}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 1000} {
		table := benchTable(b, n)
		for name, path := range map[string]string{
			"exact": fmt.Sprintf("/pkg.Service%d/Method", (n-1)/4*4), "prefix": fmt.Sprintf("/api/v1/things%d/17?a=b", (n-3)/4*4+2), "none": "/api/v1/other",
		} {
			req := benchRequest(path)
			if r := table.Match(req, route.Client{}); (r == nil) != (name == "none") {
				b.Fatalf("%s: %v", path, r)
			}
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					table.Match(req, route.Client{})
				}
			})
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	table := compile(t, `  - {match: {safe_regex: {regex: "/r/[0-9]+"}}, route: {cluster: c}}
  - {match: {prefix: /q, query_parameters: [{name: a, string_match: {exact: b}}], filter_state: [{key: io.istio.peer_principal, string_match: {safe_regex: {regex: "^spiffe://[^/]+/ns/shop/.*"}}}]}, route: {cluster: c}}
  - {match: {prefix: /, headers: [{name: version, string_match: {prefix: o}}]}, route: {cluster: c}}
`)
	for _, path := range []string{"/r/17", "/q?x=y&a=b", "/other/thing"} {
		req := benchRequest(path)
		client := route.Client{Principal: "spiffe://cluster.local/ns/shop/sa/web"}
		if table.Match(req, client) == nil {
			t.Fatalf("%s: no route", path)
		}
		if n := testing.AllocsPerRun(100, func() { table.Match(req, client) }); n != 0 {
			t.Errorf("%s: %v allocations", path, n)
		}
	}
}
