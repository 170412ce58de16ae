package wire_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// others are the services that spoilt routes have as parents and backends.
const others = `
apiVersion: v1
kind: Service
metadata: {name: a, namespace: ns}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: x, port: 84}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: ns}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}
`

// Values that are put in the place of good ones: of text, of numbers, and of anything. Most of them no API server lets pass, as
// long as its definitions of the kinds are those of this release.
var (
	spoiltText = []any{
		"", "(", "a\r\nb: c", "%", "/", "//x", "/a?b#c", "no slash", "*", ":path", "host", "\x00", "\\1", "é", "0s", "-1s", "1000000h",
		strings.Repeat("x", 5000), int64(1),
	}
	spoiltNumber = []any{int64(-1), int64(0), int64(1 << 40), "1"}
	spoiltAny    = []any{nil, true, []any{}, map[string]any{}}
)

// TestSpoilt: whatever one value in a route is, the waypoint takes what becomes of it: a route can spoil itself only.
func TestSpoilt(t *testing.T) {
	names, err := filepath.Glob("../../istiod-lite/l7/testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	parsed, err := clustertest.Parse([]byte(others))
	if err != nil {
		t.Fatal(err)
	}
	hosts := index{hosts: map[cluster.ObjectRef]*l7.Host{}}
	for _, o := range parsed {
		h := l7.ServiceHost(stories, translate.ServiceInput{Service: o.(*cluster.Service)})
		hosts.hosts[h.Ref] = h
	}
	tried, fields := 0, spoiler{}
	for _, name := range names {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range archive.Files {
			if file.Name != "in.yaml" {
				continue
			}
			for document := range strings.SplitSeq(string(file.Data), "\n---\n") {
				text, err := yaml.YAMLToJSON([]byte(document))
				if err != nil {
					t.Fatal(err)
				}
				var o map[string]any
				if err := utiljson.Unmarshal(text, &o); err != nil {
					t.Fatal(err)
				}
				kind, _ := o["kind"].(string)
				reduce := reducers[kind]
				if reduce == nil {
					continue
				}
				spec := o["spec"]
				fields.each(kind, spec, func(v any) { spec = v }, func() {
					tried++
					takes(t, hosts, reduce, spec)
				})
			}
		}
	}
	if tried < 1000 {
		t.Errorf("only %d values were tried", tried)
	}
}

var reducers = map[string]func(*unstructured.Unstructured) *cluster.Route{
	"HTTPRoute": cluster.HTTPRouteOf, "GRPCRoute": cluster.GRPCRouteOf, "TLSRoute": cluster.TLSRouteOf, "TCPRoute": cluster.TCPRouteOf,
}

// spoiler goes through values. It knows which fields it has been at.
type spoiler map[string]bool

// each calls try once for each field within v where it has not been yet, and each value that spoils it, which is then in its
// place. A field is told by its path and by the type that is written beside it.
func (sp spoiler) each(path string, v any, set func(any), try func()) {
	spoil := func(values []any) {
		for _, bad := range values {
			set(bad)
			try()
		}
		set(v)
	}
	if !sp[path] {
		sp[path] = true
		spoil(spoiltAny)
		switch v.(type) {
		case string:
			spoil(spoiltText)
		case int64:
			spoil(spoiltNumber)
		}
	}
	switch v := v.(type) {
	case map[string]any:
		typ, _ := v["type"].(string)
		for k, value := range v {
			sp.each(path+"("+typ+")."+k, value, func(bad any) { v[k] = bad }, try)
		}
	case []any:
		for i, value := range v {
			sp.each(path+"[]", value, func(bad any) { v[i] = bad }, try)
		}
	}
}

// index has one route, and some services.
type index struct {
	hosts map[cluster.ObjectRef]*l7.Host
	route *cluster.Route
}

func (ix index) Host(ref cluster.ObjectRef) *l7.Host              { return ix.hosts[ref] }
func (ix index) Fault(*l7.Host) *cluster.Injection                { return nil }
func (ix index) Rule(*l7.Host) *cluster.DestinationRule           { return nil }
func (ix index) Routes(parent cluster.ObjectRef) []*cluster.Route { return []*cluster.Route{ix.route} }
func (index) IsWaypoint(cluster.Key) bool                         { return false }

func (index) BackendTLS(cluster.ObjectRef) []*cluster.BackendTLSPolicy { return nil }

func (index) BackendTraffic(cluster.ObjectRef) []*cluster.BackendTrafficPolicy { return nil }
func (index) Bundle(cluster.Key) *cluster.Bundle                               { return nil }
func (ix index) Named(string, string) *l7.Host                                 { return nil }
func (ix index) Gateway() cluster.Key                                          { return cluster.Key{} }
func (index) WaypointPolicies(cluster.ObjectRef) []*cluster.WaypointPolicy {
	return nil
}

// takes reports an error if the waypoint rejects something of what it is told because of a route.
func takes(t *testing.T, ix index, reduce func(*unstructured.Unstructured) *cluster.Route, spec any) {
	t.Helper()
	ix.route = reduce(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": "ns", "name": "r"}, "spec": spec,
	}})
	l7.Status(ix.route, ix)
	for _, h := range ix.hosts {
		for _, port := range h.Ports {
			table := l7.RouteTable(h, port, ix)
			if table == nil {
				continue
			}
			if _, err := route.Compile(table); err != nil {
				text, _ := json.Marshal(spec)
				t.Errorf("%v\n%.2000s", err, text)
			}
		}
		if ix.route.Kind != cluster.KindTCPRoute && ix.route.Kind != cluster.KindTLSRoute {
			continue
		}
		sent := map[string][]*discoveryv3.Resource{}
		send(t, sent, xds.TypeListener, l7.ListenerMain, l7.MainInternal([]*l7.Part{l7.HostPart(h, ix, l7.Policies{})}))
		for _, handler := range config.NewStore(nil).Handlers() {
			for _, rejected := range handler.Apply(sent[handler.TypeURL], nil) {
				t.Errorf("%s: %v", rejected.Name, rejected.Err)
			}
		}
	}
}
