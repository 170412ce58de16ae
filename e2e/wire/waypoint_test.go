package wire_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/meshconfig"
	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// stories is the mesh in which stories happen.
var stories = translate.Mesh{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}

// TestWaypointTakes: the waypoint rejects nothing of what the control plane makes of its own stories, in the order in which it is
// sent, and routes their requests as the stories say. A line of requests is
//
//	METHOD service:port path header=value ... -> what becomes of it
//
// where the pseudo-header from is the namespace of the client, or its namespace/account, sni the server that a client of TLS asks for, and
// token has the claims of one that was verified. What becomes of it is "denied", with the
// policy that does it if there is one; "ask", with who is asked outside and for which policies; a status, with the location of a redirect;
// "preflight" with the origin and the methods that are allowed;
// or the clusters with their weights, the path and the headers of what they get; or "rule" and the rule
// that is chosen, as route/rule.
func TestWaypointTakes(t *testing.T) {
	names, err := filepath.Glob("../../istiod-lite/l7/testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			story := map[string][]byte{}
			for _, f := range archive.Files {
				story[f.Name] = f.Data
			}
			snapshot, hosts := take(t, story)
			for line := range strings.Lines(string(story["requests"])) {
				request, want, _ := strings.Cut(strings.TrimSpace(line), " -> ")
				got, rule := answer(t, snapshot, hosts, request)
				if strings.HasPrefix(want, "rule ") {
					got = "rule " + rule
				}
				if got != want {
					t.Errorf("%s: %s, want %s", request, got, want)
				}
			}
		})
	}
}

// take gives a waypoint what the control plane tells it of a story: the one that is its gateway, or one that everything is bound to. It
// returns the addresses of services, and of pods that have not a service's name.
func take(t *testing.T, story map[string][]byte) (*config.Snapshot, map[string]netip.Addr) {
	t.Helper()
	store := config.NewStore(nil)
	hosts := load(t, store, story)
	return store.Load(), hosts
}

// load is take into a store.
func load(t *testing.T, store *config.Store, story map[string][]byte) map[string]netip.Addr {
	t.Helper()
	parsed, err := clustertest.Parse(story["in.yaml"])
	if err != nil {
		t.Fatal(err)
	}
	set, err := meshconfig.Parse(story["mesh.yaml"])
	if err != nil {
		t.Fatal(err)
	}
	in := stories
	in.Providers = set.ExtensionProviders
	c := l7.All(clustertest.Snapshot(in, parsed))
	if namespace, name, ok := strings.Cut(strings.TrimSpace(string(story["gateway"])), "/"); ok {
		c = l7.For(clustertest.Snapshot(in, parsed), cluster.Key{Namespace: namespace, Name: name})
	}
	sent := map[string][]*discoveryv3.Resource{}
	for _, r := range c.Clusters {
		send(t, sent, xds.TypeCluster, r.Name, r)
	}
	for _, r := range c.LoadAssignments {
		send(t, sent, xds.TypeEndpoints, r.ClusterName, r)
	}
	for _, r := range c.Listeners {
		send(t, sent, xds.TypeListener, r.Name, r)
	}
	for _, r := range c.Routes {
		send(t, sent, xds.TypeRoutes, r.Name, r)
	}
	for _, h := range store.Handlers() {
		for _, r := range h.Apply(sent[h.TypeURL], nil) {
			t.Errorf("%s %s: %v", h.TypeURL, r.Name, r.Err)
		}
	}
	for _, w := range c.Workloads {
		send(t, sent, xds.TypeAddress, w.Uid, &workload.Address{Type: &workload.Address_Workload{Workload: w}})
	}
	for _, r := range store.ApplyWorkloads(sent[xds.TypeAddress], nil) {
		t.Errorf("workload %s: %v", r.Name, r.Err)
	}
	now := store.Load()
	for _, r := range c.Routes {
		if now.Routes(r.Name) == nil {
			t.Errorf("route table %s is not in force", r.Name)
		}
	}
	for _, a := range c.LoadAssignments {
		if cl := now.Cluster(a.ClusterName); cl == nil || cl.Endpoints == nil {
			t.Errorf("cluster %s is not in force, or without its endpoints", a.ClusterName)
		}
	}
	hosts := map[string]netip.Addr{}
	for _, o := range parsed {
		if p, ok := o.(*cluster.Pod); ok && len(p.IPs) > 0 && !hosts[p.Name+"."+p.Namespace].IsValid() {
			hosts[p.Name+"."+p.Namespace] = p.IPs[0]
		}
		if s, ok := o.(*cluster.Service); ok && len(s.ClusterIPs) > 0 {
			hosts[s.Name+"."+s.Namespace] = s.ClusterIPs[0]
		}
	}
	return hosts
}

// answer says what the waypoint makes of a request, and by which rule.
func answer(t *testing.T, now *config.Snapshot, hosts map[string]netip.Addr, line string) (string, string) {
	t.Helper()
	words := strings.Fields(line)
	service, number, _ := strings.Cut(words[1], ":")
	key := service
	if !strings.Contains(key, ".") {
		key += ".ns"
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	server := ""
	for _, w := range words[3:] {
		if name, ok := strings.CutPrefix(w, "sni="); ok {
			server = name
		}
	}
	chain := now.Chain(netip.AddrPortFrom(hosts[key], uint16(port))).For(server)
	if chain == nil {
		return "refused", ""
	}
	req := &message.Request{Method: words[0], Scheme: "http", Authority: words[1], Path: words[2]}
	client := route.Client{Principal: "spiffe://cluster.local/ns/ns/sa/default"}
	var claims map[string]any
	for _, w := range words[3:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "sni":
		case "token":
			if err := json.Unmarshal([]byte(value), &claims); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		case "from":
			namespace, account, ok := strings.Cut(value, "/")
			if !ok {
				account = "default"
			}
			client.Principal = "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
		default:
			req.Header.Add(name, value)
		}
	}
	d, asked := decide(t, chain, uint16(port), server, req, client, claims)
	if asked != "" {
		return "ask " + asked, ""
	}
	if !d.Allowed() {
		return strings.TrimSpace("denied " + d.Policy), ""
	}
	if chain.TCP != nil {
		return "tcp " + shares(chain.TCP), ""
	}
	authority := req.Authority
	r := now.Routes(chain.HTTP.Routes).Match(req, client)
	if r == nil {
		return "404", ""
	}
	_, rule, _ := strings.Cut(r.Name, "/") // after the namespace
	rule = rule[:max(strings.LastIndexByte(rule, '/'), 0)]
	if r.CORS != nil {
		if resp := r.CORS.Preflight(req); resp != nil {
			return strings.TrimSpace(fmt.Sprint("preflight ", resp.Header.Get("access-control-allow-origin"), " ", resp.Header.Get("access-control-allow-methods"))), rule
		}
	}
	switch {
	case r.Direct != nil:
		return strconv.Itoa(r.Direct.Status), rule
	case r.Redirect != nil:
		return fmt.Sprint(r.Redirect.Status, " ", r.Redirect.Location(req, uint16(port))), rule
	}
	var out []string
	invalid := false
	for _, to := range r.Forward.Targets {
		word := short(to.Cluster)
		if len(r.Forward.Targets) > 1 {
			word += fmt.Sprint("*", to.Weight)
		}
		invalid = invalid || to.Cluster == l7.ClusterInvalid
		out = append(out, word)
	}
	if invalid {
		out = append(out, strconv.Itoa(r.Forward.NotFoundStatus))
	}
	r.Forward.Targets[0].EditRequest(req)
	out = append(out, req.Path)
	if req.Authority != authority {
		out = append(out, "host="+req.Authority)
	}
	seen := map[string]bool{}
	for _, f := range req.Header {
		if v, _ := req.Header.Joined(f.Name); !seen[f.Name] {
			seen[f.Name] = true
			out = append(out, f.Name+"="+strings.ReplaceAll(v, ", ", ","))
		}
	}
	return strings.Join(out, " "), rule
}

// decide asks the policies of a chain. It names those who would be asked outside before.
func decide(t *testing.T, chain *config.Chain, port uint16, server string, req *message.Request, client route.Client, claims map[string]any) (policy.RequestDecision, string) {
	t.Helper()
	id, err := identity.Parse(client.Principal)
	if err != nil {
		t.Fatal(err)
	}
	from := netip.MustParseAddr("192.168.0.1")
	r := policy.Request{
		Connection: policy.Connection{Peer: id, Source: from, Destination: netip.AddrPortFrom(from, port)}, Remote: from, Claims: claims, Server: server,
	}
	if chain.HTTP != nil {
		r.Head = &policy.Head{Method: req.Method, Authority: req.Authority, Path: req.Path, Header: req.Header}
	}
	var asked []string
	ask := func(asks []config.Ask, r policy.Request, when string) {
		for _, a := range asks {
			if p := policy.Matching(a.Policies, &r); p != nil {
				asked = append(asked, fmt.Sprintf("%s%s(%s) for %s", when, a.Provider.Name, short(a.Provider.Cluster), p.Policy.Key()))
			}
		}
	}
	first := r
	first.Claims = nil
	ask(chain.AsksFirst, first, "")
	if chain.Authentication != nil {
		ask(chain.Asks, r, "once its token is known ")
	} else {
		ask(chain.Asks, r, "")
	}
	return chain.Authorization.Decide(&r), strings.Join(asked, ", ")
}

// shares counts where connections go.
func shares(c *config.TCP) string {
	if len(c.Clusters) == 1 {
		return short(c.Clusters[0])
	}
	count := map[string]int{}
	for range 500 {
		count[c.Choose()]++
	}
	var out []string
	for _, name := range c.Clusters {
		out = append(out, fmt.Sprint(short(name), "*", (count[name]+50)/100))
	}
	return strings.Join(out, " ")
}

// short is "service.namespace:port" for the name of a cluster.
func short(name string) string {
	parts := strings.Split(name, "|")
	if len(parts) != 4 {
		return name
	}
	return strings.TrimSuffix(parts[3], ".svc.cluster.local") + ":" + parts[1]
}

func send(t *testing.T, to map[string][]*discoveryv3.Resource, typ, name string, m proto.Message) {
	t.Helper()
	body, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	to[typ] = append(to[typ], &discoveryv3.Resource{Name: name, Version: "1", Resource: body})
}
