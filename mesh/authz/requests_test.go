package authz_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

const attach = "targetRefs: [{kind: Service, group: '', name: web}]"

// passes decides on a request by a policy alone.
func passes(t *testing.T, p *authz.Policy, r policy.Request) bool {
	t.Helper()
	q := p.RequestPolicy(mesh)
	if q == nil {
		t.Fatal("not for waypoints")
	}
	kind := policy.StepAllow
	if q.Policy.Action == policy.Deny {
		kind = policy.StepDeny
	}
	return policy.Steps{{Kind: kind, Enforced: true, Policies: []*policy.RequestPolicy{q}}}.Decide(&r).Allowed()
}

func request(client, method, authority, path string, fields ...string) policy.Request {
	id, err := identity.Parse("spiffe://cluster.local/ns/" + client)
	if err != nil {
		panic(err)
	}
	head := &policy.Head{Method: method, Authority: authority, Path: path}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		head.Header = append(head.Header, h2.Field{Name: name, Value: value})
	}
	return policy.Request{
		Connection: policy.Connection{Peer: id, Source: netip.MustParseAddr("10.1.2.3"), Destination: netip.MustParseAddrPort("10.96.0.1:80")},
		Remote:     netip.MustParseAddr("192.0.2.9"), Head: head,
	}
}

// TestRequests: whether a rule, in an ALLOW policy, matches a request. A DENY policy of the same rule denies the same.
func TestRequests(t *testing.T) {
	web := request("shop/sa/cart", "GET", "Web.shop:80", "/v1/items/7?x=/admin", "x-role: admin", "user-agent: curl/8")
	for _, c := range []struct {
		rule string
		want bool
	}{
		{``, true},
		{`to: [{operation: {methods: [GET]}}]`, true},
		{`to: [{operation: {methods: [POST, "G*"]}}]`, true},
		{`to: [{operation: {methods: [get]}}]`, false},
		{`to: [{operation: {notMethods: [GET]}}]`, false},
		{`to: [{operation: {methods: [POST]}}, {operation: {paths: ["/v1/*"]}}]`, true},
		{`to: [{operation: {methods: [POST], paths: ["/v1/*"]}}]`, false},
		{`to: [{operation: {paths: ["*/admin"]}}]`, false},
		{`to: [{operation: {paths: [/v1/items/7]}}]`, true},
		{`to: [{operation: {paths: ["/v1/{*}/7"]}}]`, true},
		{`to: [{operation: {paths: ["/{**}"], notPaths: ["/v1/{*}/{*}"]}}]`, false},
		{`to: [{operation: {hosts: ["WEB.shop:*"]}}]`, true},
		{`to: [{operation: {hosts: ["*.shop:80"]}}]`, true},
		{`to: [{operation: {ports: ["80"], methods: ["*"]}}]`, true},
		{`to: [{operation: {ports: ["8080"], methods: ["*"]}}]`, false},
		{`from: [{source: {namespaces: [shop]}}]`, true},
		{`from: [{source: {namespaces: ["sh*"], notNamespaces: [sh]}}]`, true},
		{`from: [{source: {namespaces: [sho]}}]`, false},
		{`from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]`, true},
		{`from: [{source: {principals: ["*/sa/cart"]}}]`, true},
		{`from: [{source: {principals: ["*"]}}]`, true},
		{`from: [{source: {notPrincipals: ["*"]}}]`, false},
		{`from: [{source: {serviceAccounts: [cart]}}]`, true},
		{`from: [{source: {serviceAccounts: [bank/cart, shop/car]}}]`, false},
		{`from: [{source: {trustDomains: [cluster.local], principals: ["*cart"]}}]`, true},
		{`from: [{source: {ipBlocks: [10.0.0.0/8]}}]`, true},
		{`from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]`, false},
		{`from: [{source: {remoteIpBlocks: [192.0.2.0/24], notRemoteIpBlocks: [192.0.2.1]}}]`, true},
		{`from: [{source: {namespaces: [bank]}}, {source: {ipBlocks: [10.1.2.3]}}]`, true},
		{`when: [{key: "request.headers[X-Role]", values: [admin]}]`, true},
		{`when: [{key: "request.headers[x-role]", notValues: [admin]}]`, false},
		{`when: [{key: "request.headers[x-none]", notValues: [admin]}]`, true},
		{`when: [{key: "request.headers[x-none]", values: ["*"]}]`, false},
		{`when: [{key: "request.headers[user-agent]", values: ["curl*"]}, {key: source.namespace, values: [shop]}]`, true},
		{`when: [{key: "request.headers[user-agent]", values: ["curl*"]}, {key: destination.ip, values: [10.96.0.2]}]`, false},
		{`when: [{key: connection.sni, values: [web.shop]}]`, false},
		{`when: [{key: connection.sni, notValues: [web.shop]}]`, true},
		{`when: [{key: remote.ip, values: [192.0.2.9]}, {key: destination.port, values: ["80"]}]`, true},
	} {
		for action, want := range map[string]bool{"ALLOW": c.want, "DENY": !c.want, "CUSTOM": !c.want} {
			p := read(t, fmt.Sprintf("spec: {%s, action: %s, rules: [{%s}]}", attach, action, c.rule))
			if len(p.Requests.Problems) > 0 && action != "CUSTOM" {
				t.Errorf("%s: %v", c.rule, p.Requests.Problems)
			}
			if got := passes(t, p, web); got != want {
				t.Errorf("%s %s: passes: %v", action, c.rule, got)
			}
		}
	}
}

// TestServerNames: which servers clients of TLS may ask for; where what they ask for is not known, the worse is assumed.
func TestServerNames(t *testing.T) {
	r := request("shop/sa/cart", "", "", "")
	r.Head = nil
	for rule, want := range map[string]struct{ asks, other, unnamed bool }{ // whether it matches; nothing matches what is not known
		`when: [{key: connection.sni, values: [A.example]}]`:                                {true, false, false},
		`when: [{key: connection.sni, values: ["*.example"], notValues: ["b*"]}]`:           {true, false, false},
		`when: [{key: connection.sni, values: ["*"]}]`:                                      {true, true, false},
		`when: [{key: connection.sni, notValues: [a.example]}]`:                             {false, true, true},
		`when: [{key: connection.sni, values: ["a*"]}], to: [{operation: {ports: ["81"]}}]`: {false, false, false},
	} {
		for action, matches := range map[string]bool{"ALLOW": true, "DENY": false} {
			p := read(t, fmt.Sprintf("spec: {%s, action: %s, rules: [{%s}]}", attach, action, rule))
			if len(p.Requests.Problems) > 0 {
				t.Errorf("%s: %v", rule, p.Requests.Problems)
			}
			for _, c := range []struct {
				server  string
				unnamed bool
				want    bool
			}{{"a.Example", false, want.asks}, {"b.example", false, want.other}, {"", true, want.unnamed}} {
				r.Server, r.Unnamed = c.server, c.unnamed
				if got := passes(t, p, r); got != (c.want == matches) {
					t.Errorf("%s %s: %q passes: %v", action, rule, c.server, got)
				}
			}
			if r.Server, r.Unnamed = "", false; !strings.Contains(rule, "81") && passes(t, p, r) {
				t.Errorf("%s %s: lets a client through of which nothing is known", action, rule)
			}
		}
	}
}

// TestHostsAnyPort: a host means its other spellings where that lets less through, and only there.
func TestHostsAnyPort(t *testing.T) {
	for _, authority := range []string{"a.example:8080", "a.example.", "A.EXAMPLE.:80"} {
		r := request("shop/sa/cart", "GET", authority, "/")
		for spec, want := range map[string]bool{
			`action: DENY, rules: [{to: [{operation: {hosts: [a.example]}}]}]`:       false,
			`action: DENY, rules: [{to: [{operation: {hosts: ["*.example"]}}]}]`:     false,
			`action: DENY, rules: [{to: [{operation: {notHosts: [a.example]}}]}]`:    false,
			`action: ALLOW, rules: [{to: [{operation: {hosts: [a.example]}}]}]`:      false,
			`action: ALLOW, rules: [{to: [{operation: {notHosts: [a.example]}}]}]`:   false,
			`action: ALLOW, rules: [{to: [{operation: {notHosts: ["b.example"]}}]}]`: true,
		} {
			if got := passes(t, read(t, "spec: {"+attach+", "+spec+"}"), r); got != want {
				t.Errorf("%s to %s: passes: %v", spec, authority, got)
			}
		}
	}
}

// TestRequestsNeverWeaker: a part that is malformed, or not supported, makes an ALLOW policy allow nobody and a DENY policy deny
// all that its other parts match.
func TestRequestsNeverWeaker(t *testing.T) {
	r := request("shop/sa/cart", "GET", "web", "/")
	for _, part := range []string{
		`from: [{source: {requestPrincipals: [issuer]}}]`,
		`from: [{source: {notRequestPrincipals: ["https://issuer*"]}}]`,
		`from: [{source: {requestPrincipals: ["*a*/b"]}}]`,
		`from: [{source: {remoteIpBlocks: [x]}}]`,
		`from: [{source: {namespaces: [other], requestPrincipals: [""]}}, {source: {requestPrincipals: [x]}}]`,
		`from: [{source: {}}]`,
		`to: [{operation: {}}]`,
		`to: [{operation: {methods: ["*E*"]}}]`,
		`to: [{operation: {methods: [""]}}]`,
		`to: [{operation: {paths: ["/{**}/{*}"]}}]`,
		`to: [{operation: {paths: ["/x", "/{*}x"]}}]`,
		`to: [{operation: {hosts: ["*a*"]}}]`,
		`to: [{operation: {notHosts: ["*a*"]}}]`,
		`to: [{operation: {words: [x]}}]`,
		`when: [{key: "request.auth.claims", values: [x]}]`,
		`when: [{key: "request.auth.claims[a][b", notValues: [x]}]`,
		`when: [{key: "request.auth.claims[a]b", values: [x]}]`,
		`when: [{key: "request.auth.claims[iss]", values: ["*x*"]}]`,
		`when: [{key: "request.auth.colour", notValues: [x]}]`,
		`when: [{key: "request.headers[", values: [x]}]`,
		`when: [{key: "request.headers[a b]", values: [x]}]`,
		`when: [{key: connection.sni, values: ["*x*"]}]`,
		`when: [{key: connection.sni, notValues: [""]}]`,
		`when: [{key: experimental.envoy.filters.a.b, values: [x]}]`,
		`when: [{key: source.colour, values: [x]}]`,
		`when: [{key: remote.ip}]`,
	} {
		for _, action := range []string{"ALLOW", "DENY", "CUSTOM"} {
			p := read(t, fmt.Sprintf("spec: {%s, action: %s, rules: [{%s}]}", attach, action, part))
			if len(p.Requests.Problems) == 0 {
				t.Errorf("%s %s: no problem", action, part)
			}
			if passes(t, p, r) {
				t.Errorf("%s %s: lets a request through", action, part)
			}
		}
	}
	for _, spec := range []string{`action: NEVER`, `action: [DENY]`, `rules: {}`, `action: DENY, rules: {}`, `colour: red`, `action: DENY, colour: red`, `rules: []`, `action: ALLOW`} {
		if passes(t, read(t, "spec: {"+attach+", "+spec+"}"), r) {
			t.Errorf("%s: lets a request through", spec)
		}
	}
	if p := read(t, "spec: {"+attach+", rules: [{}]}"); !passes(t, p, r) || p.Authorization(mesh) != nil {
		t.Error("a policy with targetRefs that allows all does not, or node proxies are given it")
	}
}

// TestTargets: what policies can be attached to.
func TestTargets(t *testing.T) {
	for refs, want := range map[string]string{
		`targetRefs: [{kind: Service, group: "", name: a}, {kind: Service, group: core, name: a}]`:             "[Service a] []",
		`targetRef: {kind: ServiceEntry, group: networking.istio.io, name: a}`:                                 "[ServiceEntry a] []",
		`targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]`:                             "[Gateway w] []",
		`targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]`:           "[GatewayClass istio-waypoint] []",
		`targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio}]`:                    `[] [targetRefs[0]: there is GatewayClass istio-waypoint, not "istio"]`,
		`targetRefs: [{kind: Pod, group: "", name: a}]`:                                                        `[] [targetRefs[0]: kind "Pod" of group "": want Service, ServiceEntry, Gateway or GatewayClass]`,
		`targetRefs: [{kind: Service, group: "", name: a, namespace: b}, {kind: Service, group: "", name: c}]`: "[Service c] [targetRefs[0]: namespace: a policy is for what is in its own namespace; leave it out]",
		`targetRefs: 3`: "[] [targetRefs: is not a list]",
		`targetRefs: [{kind: Service, group: "", name: a}], selector: {matchLabels: {a: b}}`: "[Service a] [selector: must not be there beside targetRefs: the policy is for what these name]",
	} {
		p := read(t, "spec: {rules: [{}], "+refs+"}")
		if got := fmt.Sprint(p.Requests.Targets, " ", p.Requests.Problems); got != want {
			t.Errorf("%s: %s", refs, got)
		}
		if p.Enforced() {
			t.Errorf("%s: node proxies enforce it", refs)
		}
	}
}
