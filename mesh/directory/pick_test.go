package directory_test

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// picks returns how often each workload is picked in n times, and fails on an error.
func picks(t *testing.T, d *directory.Directory, r directory.PickRequest, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		e, err := d.Pick(r)
		if err != nil {
			t.Fatal(err)
		}
		got[e.Workload.Name]++
	}
	return got
}

func names(m map[string]int) string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func web(d *directory.Directory) *directory.Service {
	return d.Service(directory.ServiceKey{Namespace: "shop", Hostname: "web"})
}

func workload(d *directory.Directory, name string) *directory.Workload {
	return d.Workload("Kubernetes//Pod/shop/" + name)
}

func place(region, zone, node string) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) {
		w.Locality = &workloadpb.Locality{Region: region, Zone: zone}
		w.Node = node
	}
}

func unhealthy(w *workloadpb.Workload) { w.Status = workloadpb.WorkloadStatus_UNHEALTHY }

func inNetwork(network string) func(*workloadpb.Workload) {
	return func(w *workloadpb.Workload) { w.Network = network }
}

func balanced(mode workloadpb.LoadBalancing_Mode, scopes ...workloadpb.LoadBalancing_Scope) func(*workloadpb.Service) {
	return func(s *workloadpb.Service) {
		s.LoadBalancing = &workloadpb.LoadBalancing{Mode: mode, RoutingPreference: scopes}
	}
}

func TestPickErrors(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web"), service("direct", balanced(workloadpb.LoadBalancing_PASSTHROUGH)))
	pick := func(host string, port uint16) error {
		_, err := d.Pick(directory.PickRequest{Service: d.Service(directory.ServiceKey{Namespace: "shop", Hostname: host}), Port: port})
		return err
	}
	if err := pick("web", 81); !errors.Is(err, directory.ErrNoPort) || !strings.Contains(err.Error(), "shop/web") {
		t.Errorf("unknown port: %v", err)
	}
	if err := pick("web", 80); !errors.Is(err, directory.ErrNoEndpoint) {
		t.Errorf("no endpoint: %v", err)
	}
	if err := pick("direct", 80); !errors.Is(err, directory.ErrPassthrough) {
		t.Errorf("passthrough: %v", err)
	}
	apply(t, d, pod("sick", "10.0.0.1", serves("web"), unhealthy))
	if err := pick("web", 80); !errors.Is(err, directory.ErrNoEndpoint) {
		t.Errorf("only unhealthy ones: %v", err)
	}
	old := web(d)
	remove(t, d, "shop/web")
	if _, err := d.Pick(directory.PickRequest{Service: old, Port: 80}); !errors.Is(err, directory.ErrNoEndpoint) {
		t.Errorf("of a service that is gone: %v", err)
	}
}

func TestPickHealth(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web"), pod("a", "10.0.0.1", serves("web")), pod("b", "10.0.0.2", serves("web")), pod("c", "10.0.0.3"))
	r := func() directory.PickRequest { return directory.PickRequest{Service: web(d), Port: 80} }
	if got := names(picks(t, d, r(), 100)); got != "a b" {
		t.Errorf("picked %s", got)
	}
	apply(t, d, pod("a", "10.0.0.1", serves("web"), unhealthy))
	if got := names(picks(t, d, r(), 100)); got != "b" {
		t.Errorf("with an unhealthy one picked %s", got)
	}
	apply(t, d, pod("c", "10.0.0.3", serves("web")))
	if got := names(picks(t, d, r(), 100)); got != "b c" {
		t.Errorf("with a new one picked %s", got)
	}
	apply(t, d, service("web", func(s *workloadpb.Service) {
		s.LoadBalancing = &workloadpb.LoadBalancing{HealthPolicy: workloadpb.LoadBalancing_ALLOW_ALL}
	}))
	if got := names(picks(t, d, r(), 100)); got != "a b c" {
		t.Errorf("with all allowed picked %s", got)
	}
	apply(t, d, pod("b", "10.0.0.2"))
	remove(t, d, "Kubernetes//Pod/shop/c")
	if got := names(picks(t, d, r(), 100)); got != "a" {
		t.Errorf("after others went picked %s", got)
	}
}

func TestPickExclude(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web"))
	var all []string
	for i := range 50 {
		w := pod(fmt.Sprint("p", i), fmt.Sprintf("10.0.0.%d", i+1), serves("web"))
		apply(t, d, w)
		all = append(all, w.GetUid())
	}
	for n := range all {
		e, err := d.Pick(directory.PickRequest{Service: web(d), Port: 80, Exclude: all[:n]})
		if err != nil || slices.Contains(all[:n], e.Workload.UID) {
			t.Fatalf("with %d excluded: %v, %v", n, e.Workload, err)
		}
	}
	if _, err := d.Pick(directory.PickRequest{Service: web(d), Port: 80, Exclude: all}); !errors.Is(err, directory.ErrNoEndpoint) {
		t.Errorf("with all excluded: %v", err)
	}
}

// TestPickWeights: shares follow capacities, whatever power of two they are in, also where some cannot be picked.
func TestPickWeights(t *testing.T) {
	weights := map[string]uint32{"a": 1, "b": 2, "c": 3, "d": 7, "e": 100, "f": 0, "g": math.MaxUint32}
	for _, tt := range []struct {
		name    string
		exclude []string
	}{
		{"all but the giant", []string{"g"}},
		{"one left by chance alone", []string{"g", "e"}},
		{"two left", []string{"g", "e", "d", "c"}},
	} {
		d := newDirectory()
		apply(t, d, service("web"))
		r := directory.PickRequest{Service: web(d), Port: 80}
		sum := 0.0
		for name, w := range weights {
			apply(t, d, pod(name, "10.0.0.1", serves("web"), func(p *workloadpb.Workload) { p.Capacity = wrapperspb.UInt32(w) }))
			if slices.Contains(tt.exclude, name) {
				r.Exclude = append(r.Exclude, "Kubernetes//Pod/shop/"+name)
			} else {
				sum += float64(w)
			}
		}
		const n = 20000
		got := picks(t, d, r, n)
		for name, w := range weights {
			if slices.Contains(tt.exclude, name) {
				w = 0
			}
			want := float64(w) / sum * n
			if diff := math.Abs(float64(got[name]) - want); diff > 6*math.Sqrt(want)+1 {
				t.Errorf("%s: %s was picked %d times, want about %.0f", tt.name, name, got[name], want)
			}
		}
	}
}

// TestPickWeightsOfChanging: shares follow what capacities are now, drawn without a second look.
func TestPickWeightsOfChanging(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web"))
	r := directory.PickRequest{Service: web(d), Port: 80}
	for _, weights := range []map[string]uint32{
		{"a": 1, "b": 2, "c": 3, "d": 1},
		{"a": 3, "b": 3, "c": 2, "d": 7},
		{"a": 1, "b": 1, "c": 1, "d": 1},
		{"a": 2, "b": 0, "c": 3, "d": 4},
	} {
		sum := 0.0
		for name, w := range weights {
			apply(t, d, pod(name, "10.0.0.1", serves("web"), func(p *workloadpb.Workload) { p.Capacity = wrapperspb.UInt32(w) }))
			sum += float64(w)
		}
		const n = 20000
		got := picks(t, d, r, n)
		for name, w := range weights {
			want := float64(w) / sum * n
			if diff := math.Abs(float64(got[name]) - want); diff > 6*math.Sqrt(want)+1 {
				t.Errorf("%v: %s was picked %d times, want about %.0f", weights, name, got[name], want)
			}
		}
	}
}

func TestPickLocality(t *testing.T) {
	const (
		region, zone, node, network = workloadpb.LoadBalancing_REGION, workloadpb.LoadBalancing_ZONE, workloadpb.LoadBalancing_NODE, workloadpb.LoadBalancing_NETWORK
		standard, failover, strict  = workloadpb.LoadBalancing_UNSPECIFIED_MODE, workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_STRICT
	)
	gateway := func(w *workloadpb.Workload) {
		w.NetworkGateway = &workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Address{Address: vip("10.9.9.9")}}
	}
	tests := []struct {
		name   string
		mode   workloadpb.LoadBalancing_Mode
		scopes []workloadpb.LoadBalancing_Scope
		// want is what is picked, then what is picked once those are unhealthy, and so on; "" for an error.
		want []string
	}{
		{"no mode", standard, []workloadpb.LoadBalancing_Scope{region}, []string{"far here near node"}},
		{"failover", failover, []workloadpb.LoadBalancing_Scope{region, zone, node}, []string{"node", "here", "near", "far", ""}},
		{"failover by node alone", failover, []workloadpb.LoadBalancing_Scope{node}, []string{"node", "far here near", ""}},
		{"a zone of the same name elsewhere", failover, []workloadpb.LoadBalancing_Scope{zone, region}, []string{"here node", "far near", ""}},
		{"network first", failover, []workloadpb.LoadBalancing_Scope{network, region, zone}, []string{"here node", "near", "far", ""}},
		{"network last", failover, []workloadpb.LoadBalancing_Scope{region, network}, []string{"here near node", "far", ""}},
		{"strict", strict, []workloadpb.LoadBalancing_Scope{region, zone}, []string{"here node", ""}},
		{"strict, network first", strict, []workloadpb.LoadBalancing_Scope{network, node}, []string{"node", ""}},
		{"strict, network only", strict, []workloadpb.LoadBalancing_Scope{network}, []string{"far here near node", ""}},
		{"strict, nothing", strict, nil, []string{"far here near node", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDirectory()
			endpoints := map[string][]func(*workloadpb.Workload){
				"node":  {place("r1", "z1", "node1")},
				"here":  {place("r1", "z1", "node2")},
				"near":  {place("r1", "z2", "node3")},
				"far":   {place("r2", "z3", "node4")},
				"other": {place("r2", "z1x", "node5"), inNetwork("net2"), gateway},
			}
			apply(t, d, pod("client", "10.0.0.1", place("r1", "z1", "node1")), service("web", balanced(tt.mode, tt.scopes...)))
			r := directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, "client")}
			if _, err := d.Pick(r); !errors.Is(err, directory.ErrNoEndpoint) {
				t.Fatal(err) // and the view is there before its endpoints
			}
			for name, change := range endpoints {
				apply(t, d, pod(name, "10.0.0.2", append(change, serves("web"))...))
			}
			for i, want := range tt.want {
				if want == "" {
					if _, err := d.Pick(r); !errors.Is(err, directory.ErrNoEndpoint) {
						t.Errorf("after %v: error %v", tt.want[:i], err)
					}
					break
				}
				got := names(picks(t, d, r, 200))
				if got != want {
					t.Fatalf("after %v: picked %s, want %s", tt.want[:i], got, want)
				}
				for _, name := range strings.Fields(got) {
					apply(t, d, pod(name, "10.0.0.2", append(slices.Clone(endpoints[name]), serves("web"), unhealthy)...))
				}
			}
		})
	}
}

// TestPickWithoutSource: without a client nothing is near, and nothing strict is there.
func TestPickWithoutSource(t *testing.T) {
	d := newDirectory()
	scope := workloadpb.LoadBalancing_REGION
	apply(t, d, service("web", balanced(workloadpb.LoadBalancing_FAILOVER, scope)), service("tight", balanced(workloadpb.LoadBalancing_STRICT, scope)),
		pod("a", "10.0.0.1", serves("web"), serves("tight"), place("r1", "", "n1")), pod("b", "10.0.0.2", serves("web"), place("r2", "", "n2")))
	if got := names(picks(t, d, directory.PickRequest{Service: web(d), Port: 80}, 100)); got != "a b" {
		t.Errorf("picked %s", got)
	}
	tight := d.Service(directory.ServiceKey{Namespace: "shop", Hostname: "tight"})
	if _, err := d.Pick(directory.PickRequest{Service: tight, Port: 80}); !errors.Is(err, directory.ErrNoEndpoint) {
		t.Errorf("strict: %v", err)
	}
}

// TestPickOfClientsFamily: a client is led to endpoints only that have an address of a family that it has, too.
func TestPickOfClientsFamily(t *testing.T) {
	d := newDirectory()
	with := func(addrs ...string) func(*workloadpb.Workload) {
		return func(w *workloadpb.Workload) {
			w.Addresses = nil
			for _, a := range addrs {
				w.Addresses = append(w.Addresses, netip.MustParseAddr(a).AsSlice())
			}
		}
	}
	apply(t, d, service("web"),
		pod("p4", "", with("10.0.0.1"), serves("web")), pod("p6", "", with("fd00::1"), serves("web")),
		pod("both", "", with("10.0.0.2", "fd00::2"), serves("web")), pod("named", "", with(), serves("web"), func(w *workloadpb.Workload) { w.Hostname = "db.example.com" }),
		pod("client4", "", with("10.0.0.9")), pod("client6", "", with("fd00::9")), pod("client", "", with("10.0.0.8", "fd00::8")))
	for client, want := range map[string]string{"client4": "both named p4", "client6": "both named p6", "client": "both named p4 p6"} {
		r := directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, client)}
		if got := names(picks(t, d, r, 200)); got != want {
			t.Errorf("%s is led to %s, want %s", client, got, want)
		}
	}
	apply(t, d, pod("p4", "", with("10.0.0.1")), pod("both", "", with("10.0.0.2")), pod("named", "", with()))
	_, err := d.Pick(directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, "client4")})
	if !errors.Is(err, directory.ErrNoEndpoint) || !strings.Contains(err.Error(), "IPv4 address, the only family of the client's pod") {
		t.Errorf("with endpoints of the other family only: %v", err)
	}
	// An endpoint that gets the other family, too, is there for all at once.
	apply(t, d, pod("p6", "", with("10.0.0.3", "fd00::1"), serves("web")))
	r := directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, "client4")}
	if got, want := names(picks(t, d, r, 50)), "p6"; got != want {
		t.Errorf("afterwards client4 is led to %s, want %s", got, want)
	}
}

func TestPickAddress(t *testing.T) {
	v4, v6 := "10.0.0.1", "fd00::1"
	dual := func(w *workloadpb.Workload) {
		w.Addresses = [][]byte{netip.MustParseAddr(v4).AsSlice(), netip.MustParseAddr(v6).AsSlice()}
	}
	only6 := func(w *workloadpb.Workload) { w.Addresses = [][]byte{netip.MustParseAddr(v6).AsSlice()} }
	hostname := func(w *workloadpb.Workload) { w.Addresses, w.Hostname = nil, "db.example.com" }
	nothing := func(w *workloadpb.Workload) { w.Addresses = nil }
	gateway := func(w *workloadpb.Workload) {
		w.NetworkGateway = &workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Address{Address: vip("10.9.9.9")}}
	}
	families := func(f workloadpb.IPFamilies) func(*workloadpb.Service) {
		return func(s *workloadpb.Service) { s.IpFamilies = f }
	}
	any, ip4, ip6 := families(workloadpb.IPFamilies_AUTOMATIC), families(workloadpb.IPFamilies_IPV4_ONLY), families(workloadpb.IPFamilies_IPV6_ONLY)
	tests := []struct {
		name     string
		workload []func(*workloadpb.Workload)
		service  func(*workloadpb.Service)
		asked    string
		want     string // "-": an endpoint without an address; "": none
	}{
		{"v4 asked", []func(*workloadpb.Workload){dual}, any, "10.1.0.1", v4},
		{"v6 asked", []func(*workloadpb.Workload){dual}, any, "fd01::1", v6},
		{"none asked", []func(*workloadpb.Workload){dual}, any, "", v4},
		{"its own address asked", []func(*workloadpb.Workload){dual}, ip4, v6, v6},
		{"v6 asked, v4 only service", []func(*workloadpb.Workload){dual}, ip4, "fd01::1", v4},
		{"v4 asked, v6 only service", []func(*workloadpb.Workload){dual}, ip6, "10.1.0.1", v6},
		{"v4 asked, v6 there", []func(*workloadpb.Workload){only6}, any, "10.1.0.1", v6},
		{"v6 there, v4 only service", []func(*workloadpb.Workload){only6}, ip4, "10.1.0.1", ""},
		{"mapped asked", []func(*workloadpb.Workload){dual}, any, "::ffff:10.1.0.1", v4},
		{"host name", []func(*workloadpb.Workload){hostname}, any, "10.1.0.1", "-"},
		{"no address", []func(*workloadpb.Workload){nothing}, any, "10.1.0.1", ""},
		{"other network", []func(*workloadpb.Workload){dual, inNetwork("net2")}, any, "10.1.0.1", ""},
		{"other network, gateway", []func(*workloadpb.Workload){dual, inNetwork("net2"), gateway}, any, "10.1.0.1", ""},
		{"no address, gateway, same network", []func(*workloadpb.Workload){nothing, gateway}, any, "10.1.0.1", ""},
	}
	for _, tt := range tests {
		d := newDirectory()
		apply(t, d, service("web", tt.service), pod("a", v4, append(tt.workload, serves("web"))...), pod("client", "10.0.0.9", func(w *workloadpb.Workload) {
			w.Addresses = append(w.Addresses, netip.MustParseAddr("fd00::9").AsSlice())
		}))
		r := directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, "client")}
		if tt.asked != "" {
			r.Addr = netip.MustParseAddr(tt.asked)
		}
		e, err := d.Pick(r)
		got := e.Addr.Addr().String()
		switch {
		case err != nil:
			got = ""
		case !e.Addr.Addr().IsValid():
			got = "-"
		}
		if got != tt.want || err == nil && e.Addr.Port() != 8080 {
			t.Errorf("%s: %v, %v; want %s", tt.name, e.Addr, err, tt.want)
		}
	}
}

func TestPickTargetPort(t *testing.T) {
	tunnel := func(p uint32) func(*workloadpb.Workload) {
		return func(w *workloadpb.Workload) {
			w.ApplicationTunnel = &workloadpb.ApplicationTunnel{Protocol: workloadpb.ApplicationTunnel_PROXY, Port: p}
		}
	}
	named := func(s *workloadpb.Service) { s.Ports = []*workloadpb.Port{port(80, 0), port(81, 8081)} }
	tests := []struct {
		name     string
		service  func(*workloadpb.Service)
		workload []func(*workloadpb.Workload)
		port     uint16
		want     uint16 // 0: none
	}{
		{"the service's", named, []func(*workloadpb.Workload){serves("web")}, 81, 8081},
		{"the endpoint's own", named, []func(*workloadpb.Workload){serves("web", port(81, 9))}, 81, 9},
		{"the endpoint's own named port", named, []func(*workloadpb.Workload){serves("web", port(80, 9))}, 80, 9},
		{"a named port that it has not", named, []func(*workloadpb.Workload){serves("web", port(81, 9))}, 80, 0},
		{"own mapping without a target", named, []func(*workloadpb.Workload){serves("web", port(81, 0))}, 81, 8081},
		{"tunnel", named, []func(*workloadpb.Workload){serves("web"), tunnel(15088)}, 80, 80},
		{"tunnel without a port", named, []func(*workloadpb.Workload){serves("web"), tunnel(0)}, 80, 0},
		{"tunnel, but a target", named, []func(*workloadpb.Workload){serves("web"), tunnel(15088)}, 81, 8081},
	}
	for _, tt := range tests {
		d := newDirectory()
		apply(t, d, service("web", tt.service), pod("a", "10.0.0.1", tt.workload...))
		e, err := d.Pick(directory.PickRequest{Service: web(d), Port: tt.port})
		if got := e.Addr.Port(); got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("%s: %v, %v; want %d", tt.name, e.Addr, err, tt.want)
		}
		got, ok := web(d).TargetPort(workload(d, "a"), tt.port)
		if ok != (tt.want != 0) || ok && got != tt.want {
			t.Errorf("%s: TargetPort = %d, %v", tt.name, got, ok)
		}
	}
	// Endpoints that have not the port are passed over, also where nearly all have not.
	d := newDirectory()
	apply(t, d, service("web", named), pod("has", "10.0.0.1", serves("web", port(80, 9))))
	for i := range 200 {
		apply(t, d, pod(fmt.Sprint("p", i), "10.0.0.2", serves("web")))
	}
	if got := names(picks(t, d, directory.PickRequest{Service: web(d), Port: 80}, 100)); got != "has" {
		t.Errorf("picked %s", got)
	}
}
