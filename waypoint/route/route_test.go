package route_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// compile compiles routes, given as YAML list, under one virtual host.
func compile(t testing.TB, routes string) *route.Table {
	t.Helper()
	table, err := route.Compile(parse(t, []byte("name: t\nvirtual_hosts:\n- name: v\n  domains: ['*']\n  routes:\n"+routes)))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestFirstRouteWins: whatever the index finds is what looking at one route after the other finds.
func TestFirstRouteWins(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	path := func() string {
		p := ""
		for range 1 + rng.IntN(4) {
			p += "/" + [...]string{"a", "ab", "b", "c"}[rng.IntN(4)]
		}
		return p
	}
	matches := func() *routev3.RouteMatch {
		switch p := path(); rng.IntN(7) {
		case 0:
			return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: p}}
		case 1:
			return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p}}
		case 2:
			return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p + "/"}}
		case 3:
			return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: p + ".*"}}}
		case 4:
			return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: strings.ToUpper(p)}, CaseSensitive: wrapperspb.Bool(false)}
		case 5:
			return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
		default:
			return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: p}}
		}
	}
	compile := func(routes ...*routev3.Route) *route.Table {
		table, err := route.Compile(&routev3.RouteConfiguration{Name: "t", VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: routes}}})
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	for range 30 {
		var all []*routev3.Route
		var alone []*route.Table
		for i := range 1 + rng.IntN(40) {
			m := matches()
			if rng.IntN(3) == 0 || m.GetPrefix() == "/" {
				m.Headers = []*routev3.HeaderMatcher{{Name: "h", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
					StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: fmt.Sprint(rng.IntN(4))}}}}}
			}
			r := &routev3.Route{Name: fmt.Sprintf("r%d", i), Match: m, Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}}}
			all, alone = append(all, r), append(alone, compile(r))
		}
		table := compile(all...)
		for range 100 {
			req := &message.Request{Method: "GET", Path: path() + [...]string{"", "/", "?q"}[rng.IntN(3)], Header: message.Fields{{Name: "h", Value: fmt.Sprint(rng.IntN(4))}}}
			got, want := "none", "none"
			if r := table.Match(req, route.Client{}); r != nil {
				got = r.Name
			}
			for _, a := range alone {
				if r := a.Match(req, route.Client{}); r != nil {
					want = r.Name
					break
				}
			}
			if got != want {
				t.Fatalf("%s %v: %s, want %s of %v", req.Path, req.Header, got, want, all)
			}
		}
	}
}

// TestPrefixesWithinPrefixes: more of them than the index merges.
func TestPrefixesWithinPrefixes(t *testing.T) {
	routes, path := "", ""
	for i := range 40 {
		path += "/a"
		routes = fmt.Sprintf("  - {name: r%d, match: {path_separated_prefix: %s}, direct_response: {status: 200}}\n", i, path) + routes
	}
	table := compile(t, routes)
	for i := range 40 {
		r := table.Match(&message.Request{Method: "GET", Path: strings.Repeat("/a", i+1) + "/b"}, route.Client{})
		if want := fmt.Sprintf("r%d", i); r == nil || r.Name != want {
			t.Fatalf("%d deep: %v, want %s", i+1, r, want)
		}
	}
}

// TestWeights: each target has its share of any run of requests, from many goroutines as from one.
func TestWeights(t *testing.T) {
	table := compile(t, "  - {match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 70}, {name: b, weight: 29}, {name: c, weight: 1}]}}}\n")
	f := table.Match(&message.Request{Method: "GET", Path: "/"}, route.Client{}).Forward
	const each, goroutines = 500, 20
	var mu sync.Mutex
	total := map[string]int{}
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			own := map[string]int{}
			for range each {
				own[f.Choose().Cluster]++
			}
			mu.Lock()
			defer mu.Unlock()
			for name, n := range own {
				total[name] += n
			}
		})
	}
	wg.Wait()
	for name, share := range map[string]int{"a": 70, "b": 29, "c": 1} {
		if want := each * goroutines * share / 100; total[name] < want-3 || total[name] > want+3 {
			t.Errorf("%s has %d of %d, want %d", name, total[name], each*goroutines, want)
		}
	}
	for run := range 20 {
		n := 0
		for range 100 {
			if f.Choose().Cluster == "a" {
				n++
			}
		}
		if n < 67 || n > 73 {
			t.Errorf("run %d: %d of 100, want 70", run, n)
		}
	}
}

func TestMirrorFraction(t *testing.T) {
	for _, tt := range []struct {
		m        route.Mirror
		min, max int
	}{
		{route.Mirror{Numerator: 1, Denominator: 1}, 10_000, 10_000},
		{route.Mirror{Numerator: 0, Denominator: 100}, 0, 0},
		{route.Mirror{Numerator: 20, Denominator: 100}, 1_700, 2_300}, // 7 sigma
	} {
		n := 0
		for range 10_000 {
			if tt.m.Chosen() {
				n++
			}
		}
		if n < tt.min || n > tt.max {
			t.Errorf("%d/%d: %d of 10000", tt.m.Numerator, tt.m.Denominator, n)
		}
	}
}

func TestRetry(t *testing.T) {
	get := func(policy string) *route.Retry {
		return compile(t, "  - {match: {prefix: /}, route: {cluster: c, retry_policy: {"+policy+"}}}\n").Match(&message.Request{Path: "/"}, route.Client{}).Forward.Retry
	}
	before := get("retry_on: 'connect-failure,refused-stream'")
	if !before.Before(route.OnConnectFailure) || !before.Before(route.OnRefusedStream) || before.Before(route.OnReset) || before.Before(route.OnResetBeforeRequest) || before.Status(503) || before.GRPC("14") {
		t.Errorf("connect-failure,refused-stream: %+v", before)
	}
	if before.Number != 1 || before.BackOffBase != 25*time.Millisecond || before.BackOffMax != 250*time.Millisecond {
		t.Errorf("defaults: %+v", before)
	}
	any5xx := get("retry_on: 5xx")
	if !any5xx.Before(route.OnReset) || !any5xx.Status(500) || any5xx.Status(404) || any5xx.Status(600) {
		t.Errorf("5xx: %+v", any5xx)
	}
	if g := get("retry_on: gateway-error"); g.Status(500) || !g.Status(502) || !g.Status(504) || g.Status(505) {
		t.Errorf("gateway-error: %+v", g)
	}
	if c := get("retry_on: 'retriable-status-codes,retriable-4xx', retriable_status_codes: [418, 400]"); !c.Status(400) || !c.Status(409) || !c.Status(418) || c.Status(401) {
		t.Errorf("codes: %+v", c)
	}
	if g := get("retry_on: 'unavailable,cancelled'"); !g.GRPC("14") || !g.GRPC("1") || g.GRPC("13") || g.GRPC("") || g.Status(503) {
		t.Errorf("grpc: %+v", g)
	}
	most := []time.Duration{25, 75, 175, 250, 250}
	for n := 1; n <= len(most); n++ {
		for range 100 {
			if d := before.BackOff(n); d < 0 || d >= most[n-1]*time.Millisecond {
				t.Fatalf("try %d: pause %v, want less than %v", n, d, most[n-1]*time.Millisecond)
			}
		}
	}
	explicit := get("retry_on: 5xx, retry_back_off: {base_interval: 0.1s, max_interval: 0.5s}")
	for n, most := range []time.Duration{100, 300, 500, 500} {
		for range 100 {
			if d := explicit.BackOff(n + 1); d < 100*time.Millisecond || d > most*time.Millisecond {
				t.Fatalf("try %d: pause %v, want 100ms to %v", n+1, d, most*time.Millisecond)
			}
		}
	}
	if d := before.BackOff(1000); d < 0 || d >= 250*time.Millisecond {
		t.Errorf("try 1000: pause %v", d)
	}
}

func TestClusters(t *testing.T) {
	table := compile(t, `  - {match: {prefix: /a}, route: {weighted_clusters: {clusters: [{name: b, weight: 1}, {name: a, weight: 1}]}, request_mirror_policies: [{cluster: m}]}}
  - {match: {prefix: /}, route: {cluster: a}}
`)
	if got := fmt.Sprint(table.Clusters()); got != "[a b m]" || table.Len() != 2 {
		t.Errorf("%s of %d routes", got, table.Len())
	}
}

// FuzzCompile: nothing that can come over the wire makes Compile or Match panic, and what one takes the other can use.
func FuzzCompile(f *testing.F) {
	for _, text := range seeds(f) {
		data, err := yaml.YAMLToJSON(text)
		if err != nil {
			f.Fatal(err)
		}
		var rc routev3.RouteConfiguration
		if err := protojson.Unmarshal(data, &rc); err != nil {
			f.Fatal(err)
		}
		wire, err := proto.Marshal(&rc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, "/one?animal=big", "x", "spiffe://td/ns/shop/sa/a")
	}
	f.Fuzz(func(t *testing.T, wire []byte, path, header, peer string) {
		var rc routev3.RouteConfiguration
		if len(wire) > 64<<10 || proto.Unmarshal(wire, &rc) != nil {
			return
		}
		table, err := route.Compile(&rc)
		if err != nil {
			if len(err.Error()) == 0 || bytes.ContainsRune([]byte(err.Error()), 0) {
				t.Fatalf("error %q", err)
			}
			return
		}
		req := &message.Request{Method: "OPTIONS", Scheme: "http", Authority: "echo:80", Path: path, Header: message.Fields{
			{Name: "version", Value: header}, {Name: "origin", Value: header}, {Name: "access-control-request-method", Value: "GET"}}}
		r := table.Match(req, route.Client{Principal: peer})
		if r == nil {
			return
		}
		if r.CORS != nil {
			r.CORS.Preflight(req)
			r.CORS.Respond(header, &message.Fields{})
		}
		switch {
		case r.Forward != nil:
			target := r.Forward.Choose()
			target.EditRequest(req)
			target.EditResponse(&message.Fields{})
			if req.Path == "" {
				t.Fatal("no path is left")
			}
		case r.Redirect != nil:
			r.Redirect.Response(req, 80)
		case r.Direct != nil:
			r.Direct.Response()
		default:
			t.Fatal("a route without an action")
		}
	})
}
