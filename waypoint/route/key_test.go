package route_test

import (
	"net/netip"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// keyed compiles a route with that hash_policy, a YAML list.
func keyed(t *testing.T, policy string) *route.Forward {
	t.Helper()
	text := "name: t\nvirtual_hosts: [{name: h, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: c, hash_policy: " + policy + "}}]}]\n"
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var rc routev3.RouteConfiguration
	if err := protojson.Unmarshal(data, &rc); err != nil {
		t.Fatal(err)
	}
	table, err := route.Compile(&rc)
	if err != nil {
		t.Fatal(err)
	}
	return table.Match(&message.Request{Path: "/"}, route.Client{}).Forward
}

// TestKey: requests have the same key if they have in common what the policy names, and none if they have nothing of it.
func TestKey(t *testing.T) {
	from, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	type ask struct {
		path, header, cookie string
		from                 netip.Addr
	}
	key := func(f *route.Forward, a ask) (uint64, bool) {
		req := &message.Request{Path: "/" + a.path}
		if a.header != "" {
			req.Header.Add("x-user", a.header)
		}
		if a.cookie != "" {
			req.Header.Add("cookie", "a=b; "+a.cookie)
		}
		k, ok, set := f.Key(req, a.from)
		if set != "" {
			t.Errorf("a cookie is given that nobody asked for: %s", set)
		}
		return k, ok
	}
	for _, c := range []struct {
		policy       string
		one, same    ask
		other, empty ask
	}{
		{"[{header: {header_name: X-User}}]", ask{header: "u", path: "x"}, ask{header: "u", from: from}, ask{header: "v"}, ask{path: "x?user=u"}},
		{"[{query_parameter: {name: user}}]", ask{path: "x?user=u"}, ask{path: "?a=b&user=%75"}, ask{path: "?user=v"}, ask{header: "u"}},
		{"[{cookie: {name: sid}}]", ask{cookie: "sid=1"}, ask{cookie: `x=y; sid="1"`}, ask{cookie: "sid=2"}, ask{cookie: "xsid=1; sidx=1"}},
		{"[{connection_properties: {source_ip: true}}]", ask{from: from}, ask{from: from, path: "x"}, ask{from: other}, ask{header: "u"}},
		{"[{header: {header_name: x-user}, terminal: true}, {query_parameter: {name: user}}]", ask{header: "u", path: "?user=1"}, ask{header: "u", path: "?user=2"}, ask{path: "?user=1"}, ask{}},
		{"[{header: {header_name: x-user}}, {query_parameter: {name: user}}]", ask{header: "u", path: "?user=1"}, ask{header: "u", path: "x?user=1"}, ask{header: "u", path: "?user=2"}, ask{}},
	} {
		f := keyed(t, c.policy)
		one, ok := key(f, c.one)
		if !ok {
			t.Errorf("%s: %+v has no key", c.policy, c.one)
		}
		if same, ok := key(f, c.same); !ok || same != one {
			t.Errorf("%s: %+v and %+v have keys %x and %x", c.policy, c.one, c.same, one, same)
		}
		if other, ok := key(f, c.other); !ok || other == one {
			t.Errorf("%s: %+v and %+v both have key %x", c.policy, c.one, c.other, one)
		}
		if k, ok := key(f, c.empty); ok {
			t.Errorf("%s: %+v has key %x", c.policy, c.empty, k)
		}
	}
}

// TestCookieGiven: who has no cookie is given one, with which the next request has the key of the first.
func TestCookieGiven(t *testing.T) {
	f := keyed(t, "[{cookie: {name: sid, ttl: 3600s, path: /app, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}}]")
	first, ok, set := f.Key(&message.Request{Path: "/"}, netip.Addr{})
	pair, tail, _ := strings.Cut(set, ";")
	if want := " Max-Age=3600; Path=/app; SameSite=Lax; Secure; HttpOnly"; !ok || tail != want {
		t.Errorf("cookie %q; want it to end with %q", set, want)
	}
	req := &message.Request{Path: "/"}
	req.Header.Add("cookie", pair)
	if again, ok, set := f.Key(req, netip.Addr{}); !ok || again != first || set != "" {
		t.Errorf("with the cookie the key is %x, %t and %q is given; want %x", again, ok, set, first)
	}
	if other, _, _ := f.Key(&message.Request{Path: "/"}, netip.Addr{}); other == first {
		t.Error("two clients are given the same cookie")
	}
}
