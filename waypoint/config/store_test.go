package config_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// edsCluster is a cluster whose endpoints come on their own.
func edsCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, LbPolicy: clusterv3.Cluster_LEAST_REQUEST,
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}},
	}
}

// assignment is n endpoints reached by HBONE, in one locality; the last has another weight.
func assignment(t testing.TB, name string, n int, weight uint32) *endpointv3.ClusterLoadAssignment {
	t.Helper()
	l := &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Region: "r", Zone: "z"}}
	for i := range n {
		addr := fmt.Sprintf("10.%d.%d.%d:8080", len(name), i/250, i%250+1)
		meta := map[string]*structpb.Struct{}
		for key, fields := range map[string]map[string]any{
			"envoy.filters.listener.original_dst": {"local": addr}, "envoy.transport_socket_match": {"tunnel": "h2"},
			"istio": {"workload": fmt.Sprintf("w%d;ns;w;v1;Kubernetes", i)}, "ambit.io/peer": {"identity": "spiffe://cluster.local/ns/ns/sa/w"},
		} {
			s, err := structpb.NewStruct(fields)
			if err != nil {
				t.Fatal(err)
			}
			meta[key] = s
		}
		e := &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{
				EnvoyInternalAddress: &corev3.EnvoyInternalAddress{AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: "connect_originate"}, EndpointId: addr},
			}}}},
			Metadata: &corev3.Metadata{FilterMetadata: meta},
		}
		if i == n-1 {
			e.LoadBalancingWeight = wrapperspb.UInt32(weight)
		}
		l.LbEndpoints = append(l.LbEndpoints, e)
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{l}}
}

func take(t testing.TB, s *config.Store, kind string, upserts map[string]proto.Message, removed ...string) {
	t.Helper()
	if r := push(t, s, kind, upserts, removed...); len(r) > 0 {
		t.Fatalf("rejected: %v", r)
	}
}

// changes tells which clusters differ: "+name" for those that are there, "-name" for those that are gone.
func changes(now, old *config.Snapshot) string {
	all := map[string]bool{}
	for name, c := range now.ChangedClusters(old) {
		if c == nil {
			name = "-" + name
		} else {
			name = "+" + name
		}
		all[name] = true
	}
	return strings.Join(sorted(all), " ")
}

// TestSharing: pointers tell what changed, down to endpoints.
func TestSharing(t *testing.T) {
	var seen []string
	s := config.NewStore(func(old, now *config.Snapshot) { seen = append(seen, changes(now, old)) })
	empty := s.Load()
	take(t, s, "cluster", map[string]proto.Message{"a": edsCluster("a"), "bb": edsCluster("bb")})
	take(t, s, "endpoints", map[string]proto.Message{"a": assignment(t, "a", 3, 1), "bb": assignment(t, "bb", 3, 1), "orphan": assignment(t, "orphan", 1, 1)})
	before := s.Load()
	if got := changes(before, empty); got != "+a +bb" {
		t.Errorf("from nothing: %s", got)
	}
	if got := changes(before, nil); got != "+a +bb" {
		t.Errorf("from nil: %s", got)
	}

	take(t, s, "endpoints", map[string]proto.Message{"a": assignment(t, "a", 3, 7)})
	now := s.Load()
	if got := changes(now, before); got != "+a" {
		t.Errorf("changed: %s", got)
	}
	if now.Cluster("bb") != before.Cluster("bb") || now.Cluster("a").Settings != before.Cluster("a").Settings {
		t.Error("what did not change is another")
	}
	was, is := before.Cluster("a").Endpoints.Priorities[0].Localities[0].Endpoints, now.Cluster("a").Endpoints.Priorities[0].Localities[0].Endpoints
	if was[0] != is[0] || was[1] != is[1] || was[2] == is[2] || is[2].Weight != 7 {
		t.Errorf("endpoints %v, then %v", was, is)
	}
	if before.Cluster("a").Endpoints.Priorities[0].Localities[0].Endpoints[2].Weight != 1 {
		t.Error("the snapshot before has changed")
	}

	// The same again, and the same in another form, change nothing.
	take(t, s, "endpoints", map[string]proto.Message{"a": assignment(t, "a", 3, 7)})
	same := edsCluster("bb")
	same.AltStatName = "other"
	take(t, s, "cluster", map[string]proto.Message{"bb": same})
	if s.Load() != now {
		t.Errorf("changed: %s", changes(s.Load(), now))
	}

	take(t, s, "cluster", nil, "a", "never was")
	take(t, s, "endpoints", nil, "bb")
	last := s.Load()
	if got := changes(last, now); got != "+bb -a" {
		t.Errorf("changed: %s", got)
	}
	if last.Cluster("a") != nil || last.Cluster("bb").Endpoints != nil || last.Cluster("orphan") != nil {
		t.Error("what was removed is there still, or an assignment without its cluster is")
	}
	take(t, s, "cluster", map[string]proto.Message{"a": edsCluster("a")})
	if s.Load().Cluster("a").Endpoints != now.Cluster("a").Endpoints {
		t.Error("the endpoints of a cluster that came back are not those that are known")
	}
	if got := fmt.Sprint(seen); got != "[+a +bb +a +bb +a -a +bb +a]" {
		t.Errorf("told of %s", got)
	}
}

// story returns the resources of a story, by "<type> <name>".
func story(t testing.TB, name string) map[string]proto.Message {
	t.Helper()
	archive, err := txtar.ParseFile("testdata/" + name + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]proto.Message{}
	for _, f := range archive.Files {
		if kind, _, _ := strings.Cut(f.Name, " "); slices.Contains(order, kind) {
			all[f.Name] = parse(t, kind, f.Data)
		}
	}
	return all
}

const httpChain = "inbound-vip|80|http|shop.ns.svc.cluster.local"

// TestRoutesComeLater: a destination that was TCP becomes HTTP: until the routes come, it is TCP still. One that was nothing
// waits for its routes.
func TestRoutesComeLater(t *testing.T) {
	all := story(t, "service")
	web := netip.MustParseAddrPort("10.96.0.1:80")
	s := config.NewStore(nil)
	listener := all["listener main_internal"].(*listenerv3.Listener)
	tcpFirst := proto.Clone(listener).(*listenerv3.Listener)
	tcpFirst.FilterChains[0].Filters = listener.FilterChains[1].Filters
	take(t, s, "listener", map[string]proto.Message{"main_internal": listener})
	if c := s.Load().Chain(web); c == nil || c.Name != httpChain || len(s.Load().Missing()) != 1 {
		t.Fatalf("chain %v, missing %v", c, s.Load().Missing())
	}
	take(t, s, "listener", nil, "main_internal")
	if s.Load().Chain(web) != nil {
		t.Fatal("a chain without a listener")
	}

	take(t, s, "listener", map[string]proto.Message{"main_internal": tcpFirst})
	if c := s.Load().Chain(web); c == nil || c.TCP == nil {
		t.Fatalf("chain %v", c)
	}
	take(t, s, "listener", map[string]proto.Message{"main_internal": listener})
	if c := s.Load().Chain(web); c == nil || c.TCP == nil {
		t.Fatalf("without routes the chain is %v", c)
	}
	take(t, s, "routes", map[string]proto.Message{httpChain: all["routes "+httpChain]})
	if c := s.Load().Chain(web); c == nil || c.HTTP == nil || len(s.Load().Missing()) != 0 {
		t.Fatalf("with routes the chain is %v", c)
	}
	if c := s.Load().Chain(netip.MustParseAddrPort("[::ffff:10.96.0.1]:80")); c == nil {
		t.Error("an IPv4 address in IPv6 form is not found")
	}
	for _, other := range []string{"10.96.0.1:81", "10.96.0.2:80"} {
		if c := s.Load().Chain(netip.MustParseAddrPort(other)); c != nil {
			t.Errorf("%s is served by %s", other, c.Name)
		}
	}
}

// TestAwait: whoever waits for something is told when it is there, and may give up.
func TestAwait(t *testing.T) {
	s := config.NewStore(nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			now, err := s.Await(ctx, func(now *config.Snapshot) bool { return now.Cluster("bb") != nil })
			if err != nil || now.Cluster("bb") == nil {
				t.Errorf("%v, %v", now, err)
			}
		})
	}
	take(t, s, "cluster", map[string]proto.Message{"a": edsCluster("a")})
	take(t, s, "cluster", map[string]proto.Message{"bb": edsCluster("bb")})
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Await(ctx, func(*config.Snapshot) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// TestDump: what is in force and what was rejected, in Envoy's shape.
func TestDump(t *testing.T) {
	s := config.NewStore(nil)
	for key, m := range story(t, "service") {
		kind, name, _ := strings.Cut(key, " ")
		take(t, s, kind, map[string]proto.Message{name: m})
	}
	bad := edsCluster("outbound|80||shop.ns.svc.cluster.local")
	bad.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	if r := push(t, s, "cluster", map[string]proto.Message{bad.Name: bad, "new": bad}); len(r) != 2 {
		t.Fatalf("rejected: %v", r)
	}
	var configs []map[string]any
	for c := range s.Dump() {
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var one map[string]any
		if err := json.Unmarshal(text, &one); err != nil {
			t.Fatal(err)
		}
		configs = append(configs, one)
	}
	at := func(path ...any) any {
		var v any = configs[path[0].(int)]
		for _, p := range path[1:] {
			switch p := p.(type) {
			case string:
				v = v.(map[string]any)[p]
			case int:
				v = v.([]any)[p]
			}
		}
		return v
	}
	for _, tt := range []struct {
		want any
		path []any
	}{
		{"type.googleapis.com/envoy.admin.v3.ClustersConfigDump", []any{0, "@type"}},
		{"connect_originate", []any{0, "dynamic_active_clusters", 0, "cluster", "name"}},
		{"NACKED", []any{0, "dynamic_active_clusters", 2, "client_status"}},
		{nil, []any{0, "dynamic_active_clusters", 2, "cluster"}},
		{"outbound|80||shop.ns.svc.cluster.local", []any{0, "dynamic_active_clusters", 3, "cluster", "name"}},
		{"LEAST_REQUEST", []any{0, "dynamic_active_clusters", 3, "cluster", "lb_policy"}},
		{"CLUSTER_PROVIDED", []any{0, "dynamic_active_clusters", 3, "error_state", "failed_configuration", "lb_policy"}},
		{"v", []any{1, "dynamic_endpoint_configs", 0, "version_info"}},
		{"outbound|80||shop.ns.svc.cluster.local", []any{1, "dynamic_endpoint_configs", 0, "endpoint_config", "cluster_name"}},
		{"connect_originate", []any{2, "dynamic_listeners", 0, "name"}},
		{"main_internal", []any{2, "dynamic_listeners", 2, "active_state", "listener", "name"}},
		{"type.googleapis.com/envoy.config.route.v3.RouteConfiguration", []any{3, "dynamic_route_configs", 0, "route_config", "@type"}},
	} {
		if got := at(tt.path...); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%v: %v, want %v", tt.path, got, tt.want)
		}
	}
	if details := at(0, "dynamic_active_clusters", 3, "error_state", "details"); !strings.Contains(fmt.Sprint(details), "lb_policy: CLUSTER_PROVIDED is not supported") {
		t.Errorf("details %v", details)
	}
}

// BenchmarkOneEndpoint: one endpoint of 20 changes in one cluster of 1,000.
func BenchmarkOneEndpoint(b *testing.B) {
	s := config.NewStore(nil)
	for i := range 1000 {
		name := fmt.Sprintf("outbound|80||svc-%d.ns.svc.cluster.local", i)
		take(b, s, "cluster", map[string]proto.Message{name: edsCluster(name)})
		take(b, s, "endpoints", map[string]proto.Message{name: assignment(b, name, 20, 1)})
	}
	const name = "outbound|80||svc-500.ns.svc.cluster.local"
	pushes := [2]map[string]proto.Message{{name: assignment(b, name, 20, 2)}, {name: assignment(b, name, 20, 3)}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		before := s.Load()
		take(b, s, "endpoints", pushes[i%2])
		n := 0
		for range s.Load().ChangedClusters(before) {
			n++
		}
		if n != 1 {
			b.Fatalf("%d clusters changed", n)
		}
	}
}

// BenchmarkStart: all of 1,000 services of 20 endpoints comes at once.
func BenchmarkStart(b *testing.B) {
	all := map[string][]*discoveryv3.Resource{}
	pack := func(kind, name string, m proto.Message) {
		a, err := anypb.New(m)
		if err != nil {
			b.Fatal(err)
		}
		all[kind] = append(all[kind], &discoveryv3.Resource{Name: name, Version: "1", Resource: a})
	}
	service := story(b, "service")
	listener := service["listener main_internal"].(*listenerv3.Listener)
	chain := listener.FilterChains[0]
	for i := range 1000 {
		name := fmt.Sprintf("outbound|80||svc-%d.ns.svc.cluster.local", i)
		pack("cluster", name, edsCluster(name))
		pack("endpoints", name, assignment(b, name, 20, 1))
		c := proto.Clone(chain).(*listenerv3.FilterChain)
		c.Name = fmt.Sprintf("inbound-vip|80|http|svc-%d.ns.svc.cluster.local", i)
		listener.FilterChains = append(listener.FilterChains, c)
		rc := proto.Clone(service["routes "+httpChain]).(*routev3.RouteConfiguration)
		rc.Name = c.Name
		pack("routes", rc.Name, rc)
	}
	pack("listener", "main_internal", listener)
	b.ReportAllocs()
	for b.Loop() {
		s := config.NewStore(nil)
		for i, h := range s.Handlers() {
			if r := h.Apply(all[order[i]], nil); len(r) > 0 {
				b.Fatal(r)
			}
		}
	}
}
