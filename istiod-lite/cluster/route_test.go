package cluster_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
)

func route(t *testing.T, text string) *cluster.Route {
	t.Helper()
	objects, err := clustertest.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return objects[0].(*cluster.Route)
}

// TestHTTPRoute reduces a route that has something of everything.
func TestHTTPRoute(t *testing.T) {
	r := route(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: ns, generation: 3, creationTimestamp: "2026-01-02T03:04:05Z"}
spec:
  parentRefs:
  - {group: core, kind: Service, name: a, port: 80}
  - {name: gw}
  - {group: networking.istio.io, kind: ServiceEntry, name: e, namespace: other, sectionName: http}
  rules:
  - name: first
    matches:
    - path: {type: PathPrefix, value: /v2/}
      method: POST
      headers: [{name: X-A, value: "1"}, {name: x-a, value: "2"}, {name: b, value: ".*", type: RegularExpression}]
      queryParams: [{name: Q, value: v}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: X-Set, value: s}], add: [{name: x-add, value: a}], remove: [X-Gone]}
    - type: URLRewrite
      urlRewrite: {hostname: h, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: m, port: 81}, fraction: {numerator: 1, denominator: 3}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: m2, port: 81}, percent: 5}
    - type: CORS
      cors: {allowOrigins: ["https://A.example:443"], allowMethods: [GET], allowCredentials: true, maxAge: 7}
    backendRefs:
    - {name: b, port: 8080, weight: 3}
    - {name: c, namespace: other, port: 8080, weight: 0, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x]}}]}
    timeouts: {request: 1m, backendRequest: 500ms}
    retry: {codes: [503, 500, 503], attempts: 0, backoff: 100ms}
  - {}
status:
  parents:
  - {controllerName: someone/else, parentRef: {name: gw}}
  - controllerName: istio.io/mesh-controller
    parentRef: {group: core, kind: Service, name: a, port: 80}
    conditions: [{type: ResolvedRefs, status: "True"}, {type: Accepted, status: "True", reason: Accepted, observedGeneration: 3}]
`)
	zero := uint32(0)
	service := func(ns, name string) cluster.ObjectRef {
		return cluster.ServiceRef(cluster.Key{Namespace: ns, Name: name})
	}
	want := &cluster.Route{
		Key: cluster.Key{Namespace: "ns", Name: "r"}, Kind: cluster.KindHTTPRoute, Generation: 3,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Parents: []cluster.RouteParent{
			{Ref: service("ns", "a"), Port: 80},
			{Ref: cluster.ObjectRef{Group: cluster.GroupGateway, Kind: cluster.KindGateway, Key: cluster.Key{Namespace: "ns", Name: "gw"}}},
			{Ref: cluster.ObjectRef{Group: cluster.GroupIstioNetworking, Kind: cluster.KindServiceEntry, Key: cluster.Key{Namespace: "other", Name: "e"}}, Section: "http"},
		},
		Rules: []cluster.RouteRule{{
			Name: "first",
			Matches: []cluster.RouteMatch{{
				Path: cluster.PathMatch{Kind: cluster.PathPrefix, Value: "/v2"}, Method: "POST",
				Headers: []cluster.ValueMatch{{Name: "x-a", Value: "1"}, {Name: "b", Value: ".*", Regex: true}},
				Query:   []cluster.ValueMatch{{Name: "Q", Value: "v"}},
			}},
			Filters: cluster.RouteFilters{
				Request: &cluster.HeaderChanges{Set: []cluster.Header{{Name: "x-set", Value: "s"}}, Add: []cluster.Header{{Name: "x-add", Value: "a"}}, Remove: []string{"x-gone"}},
				Rewrite: &cluster.Rewrite{Hostname: "h", Path: cluster.PathChange{Kind: cluster.PathPrefixReplaced}},
				CORS:    &cluster.CORS{Origins: []string{"https://a.example"}, Methods: []string{"GET"}, Credentials: true, MaxAge: 7 * time.Second},
				Mirrors: []cluster.Mirror{
					{Backend: cluster.BackendRef{Ref: service("ns", "m"), Port: 81}, PerMillion: 333_333},
					{Backend: cluster.BackendRef{Ref: service("ns", "m2"), Port: 81}, PerMillion: 50_000},
				},
			},
			Backends: []cluster.RouteBackend{
				{BackendRef: cluster.BackendRef{Ref: service("ns", "b"), Port: 8080}, Weight: 3},
				{BackendRef: cluster.BackendRef{Ref: service("other", "c"), Port: 8080}, Filters: cluster.RouteFilters{Response: &cluster.HeaderChanges{Remove: []string{"x"}}}},
			},
			Timeout: time.Minute, TryTimeout: 500 * time.Millisecond,
			Retry: &cluster.RouteRetry{Codes: []uint32{500, 503}, Attempts: &zero, Backoff: 100 * time.Millisecond},
		}, {Matches: []cluster.RouteMatch{{}}}},
		Seen: []cluster.ParentStatus{{Conditions: []cluster.Condition{
			{Type: "Accepted", Status: "True", Reason: "Accepted", Generation: 3}, {Type: "ResolvedRefs", Status: "True"},
		}}},
	}
	written := cmpopts.IgnoreTypes(gatewayv1.ParentReference{})
	if len(r.Seen) != 1 || !cmp.Equal(r.Seen[0].Conditions, want.Seen[0].Conditions) {
		t.Errorf("seen: %+v", r.Seen)
	}
	r.Created, want.Seen = r.Created.UTC(), r.Seen
	if diff := cmp.Diff(*want, *r, written); diff != "" {
		t.Errorf("route (-want +got):\n%s", diff)
	}
	if g := r.Parents[0].Written.Group; g == nil || *g != "core" || r.Parents[1].Written.Group != nil {
		t.Errorf("parents are not as they were written: %+v", r.Parents)
	}
	if g := r.Seen[0].Ref.Group; g == nil || *g != "core" {
		t.Errorf("the status' parent is not as it was written: %+v", r.Seen[0].Ref)
	}
}

// TestRouteFaults: what is malformed or not known is told with its field, and the rule keeps what it still matches.
func TestRouteFaults(t *testing.T) {
	const head = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: ns}\nspec:\n"
	for _, c := range []struct {
		name, spec string
		want       []cluster.Fault
		matches    int
	}{
		{"regular expression", `  rules: [{matches: [{path: {type: RegularExpression, value: "("}}, {path: {value: /a}}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].matches[0].path.value: error parsing regexp: missing closing ): `(`"}}, 1},
		{"only match", `  rules: [{matches: [{headers: [{name: a, type: RegularExpression, value: "["}]}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].matches[0].headers[0].value: error parsing regexp: missing closing ]: `[`"}}, 0},
		{"unknown field of a rule", `  rules: [{matches: [{path: {value: /a}}], newer: {x: 1}}]`,
			[]cluster.Fault{{Message: "spec.rules[0].newer is not known to this release"}}, 1},
		{"unknown field of the route", "  newer: 1\n  rules: [{matches: [{path: {value: /a}}]}]",
			[]cluster.Fault{{Message: "spec.newer is not known to this release"}}, 1},
		{"unknown filter", `  rules: [{filters: [{type: ExternalAuth}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].filters[0]: filter ExternalAuth is not supported"}}, 1},
		{"extension", `  rules: [{filters: [{type: ExtensionRef, extensionRef: {group: g, kind: K, name: x}}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].filters[0].extensionRef: K x is not supported"}}, 1},
		{"session of a header field that ends", `  rules: [{sessionPersistence: {type: Header, absoluteTimeout: 1h}}]`,
			[]cluster.Fault{{Message: "spec.rules[0].sessionPersistence.absoluteTimeout is not supported for type Header: a header field has no end"}}, 1},
		{"permanent session without an end", `  rules: [{sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}}]`,
			[]cluster.Fault{{Message: "spec.rules[0].sessionPersistence.absoluteTimeout is required with lifetimeType Permanent"}}, 1},
		{"session cookie with an end", `  rules: [{sessionPersistence: {absoluteTimeout: 1h}}]`,
			[]cluster.Fault{{Message: "spec.rules[0].sessionPersistence.absoluteTimeout is supported with cookieConfig.lifetimeType Permanent only"}}, 1},
		{"session of the host", `  rules: [{sessionPersistence: {type: Header, sessionName: Host}}]`,
			[]cluster.Fault{{Message: `spec.rules[0].sessionPersistence.sessionName: "Host" has a meaning of its own in HTTP`}}, 1},
		{"name of a session", `  rules: [{sessionPersistence: {sessionName: "a;b"}}]`,
			[]cluster.Fault{{Message: `spec.rules[0].sessionPersistence.sessionName: "a;b" cannot be the name of a cookie or header field`}}, 1},
		{"prefix of what is no prefix", `  rules: [{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}]`,
			[]cluster.Fault{{Incompatible: true, Message: "spec.rules[0].filters: ReplacePrefixMatch needs matches of type PathPrefix"}}, 1},
		{"two of a kind", `  rules: [{filters: [{type: CORS, cors: {}}, {type: CORS, cors: {}}]}]`,
			[]cluster.Fault{{Incompatible: true, Message: "spec.rules[0].filters[1]: there is a CORS already"}}, 1},
		{"header that would be two", `  rules: [{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: a, value: "b\r\nc: d"}]}}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].filters[0].responseHeaderModifier: \"b\\r\\nc: d\" is no value of a header"}}, 1},
		{"name of no header", `  rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [":path"]}}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].filters[0].requestHeaderModifier: \":path\" is no name of a header or a method"}}, 1},
		{"path with a query", `  rules: [{matches: [{path: {type: Exact, value: "/a?b"}}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].matches[0].path.value: \"/a?b\" is no path"}}, 0},
		{"redirect to no path", `  rules: [{filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: "/a b"}}}]}]`,
			[]cluster.Fault{{Message: "spec.rules[0].filters[0].requestRedirect.path.replaceFullPath: \"/a b\" is no path"}}, 1},
		{"wrong type", `  rules: [{name: 1}]`, []cluster.Fault{{Message: "spec: json: cannot unmarshal number into Go struct field HTTPRouteRule.rules.name of type v1.SectionName"}}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := route(t, head+c.spec+"\n  parentRefs: [{group: \"\", kind: Service, name: a}]\n")
			if diff := cmp.Diff(c.want, r.Rules[0].Faults); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
			if len(r.Rules[0].Matches) != c.matches {
				t.Errorf("%d matches are left, want %d", len(r.Rules[0].Matches), c.matches)
			}
			if len(r.Parents) != 1 || !r.Parents[0].Mesh() {
				t.Errorf("parents: %+v", r.Parents)
			}
		})
	}
}

// TestGRPCRoute reduces a route of gRPC methods.
func TestGRPCRoute(t *testing.T) {
	r := route(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: r, namespace: ns}
spec:
  parentRefs: [{group: "", kind: Service, name: a}]
  rules:
  - matches:
    - {method: {service: pkg.Svc, method: Do}, headers: [{name: X, value: v}]}
    - {method: {type: RegularExpression, method: "Get.*"}}
    - {method: {type: RegularExpression, method: "("}}
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}]
    backendRefs: [{name: b, port: 1}]
`)
	want := []cluster.RouteRule{{
		Matches: []cluster.RouteMatch{
			{GRPC: cluster.GRPCMatch{Service: "pkg.Svc", Method: "Do"}, Headers: []cluster.ValueMatch{{Name: "x", Value: "v"}}},
			{GRPC: cluster.GRPCMatch{Method: "Get.*", Regex: true}},
		},
		Filters:  cluster.RouteFilters{Request: &cluster.HeaderChanges{Remove: []string{"a"}}},
		Backends: []cluster.RouteBackend{{BackendRef: cluster.BackendRef{Ref: cluster.ServiceRef(cluster.Key{Namespace: "ns", Name: "b"}), Port: 1}, Weight: 1}},
		Faults:   []cluster.Fault{{Message: "spec.rules[0].matches[2].method.method: error parsing regexp: missing closing ): `(`"}},
	}}
	if diff := cmp.Diff(want, r.Rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}
