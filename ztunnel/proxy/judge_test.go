package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
)

// bench is a pod "web" at 10.0.0.1 that is judged, of a node whose discovery the test plays.
type bench struct {
	*Pod
	t   *testing.T
	reg *prometheus.Registry
}

func newBench(t *testing.T) *bench {
	d := directory.New(directory.Config{Logger: slog.New(slog.DiscardHandler), Node: "node1"})
	reg := prometheus.NewRegistry()
	n := NewNode(NodeConfig{Directory: d, Certificates: noCertificates{}, Trust: &identity.Trust{}, Policies: telemetry.NewPolicies(reg, d.HasPolicy), Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(d.Subscribe(n.onChange))
	p := &Pod{node: n, pod: inpod.Pod{UID: "u", Name: "web", Namespace: "ns", ServiceAccount: "web"}, logger: n.Logger, conns: table{conns: map[*conn]bool{}}}
	p.id.Store(&identity.Identity{})
	n.pods[p] = true
	return &bench{p, t, reg}
}

// know tells of the pod, and which policies its workload names.
func (b *bench) know(policies ...string) {
	b.tell(pod("web", "10.0.0.1", func(w *workload.Workload) { w.Node, w.AuthorizationPolicies = "node1", policies }))
}

func (b *bench) tell(a *workload.Address) {
	b.t.Helper()
	if rejected := b.node.Directory.HandleAddresses([]*discoveryv3.Resource{pack(b.t, a.GetWorkload().GetUid(), xds.TypeAddress, a)}, nil); len(rejected) > 0 {
		b.t.Fatal(rejected)
	}
}

func pack(t *testing.T, name, typeURL string, m proto.Message) *discoveryv3.Resource {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &discoveryv3.Resource{Name: name, Resource: &anypb.Any{TypeUrl: typeURL, Value: body}}
}

// deny tells of a policy of the pod's namespace, by selector, that denies ports.
func (b *bench) deny(name string, dryRun bool, ports ...uint32) {
	b.t.Helper()
	b.policy(name, security.Scope_WORKLOAD_SELECTOR, security.Action_DENY, dryRun, ports...)
}

func (b *bench) policy(name string, scope security.Scope, action security.Action, dryRun bool, ports ...uint32) {
	b.t.Helper()
	a := &security.Authorization{Name: name, Namespace: "ns", Scope: scope, Action: action, DryRun: dryRun,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{DestinationPorts: ports}}}}}}}
	if rejected := b.node.Directory.HandleAuthorizations([]*discoveryv3.Resource{pack(b.t, "ns/"+name, xds.TypeAuthorization, a)}, nil); len(rejected) > 0 {
		b.t.Fatal(rejected)
	}
}

func to(port uint16) policy.Connection {
	return policy.Connection{Source: netip.MustParseAddr("10.0.0.9"), Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port)}
}

// try judges a connection, and returns what it was refused for, and after how long.
func (b *bench) try(port uint16) (refused string, took time.Duration) {
	b.t.Helper()
	start := time.Now()
	c := b.conns.open(context.Background(), func(*conn) {})
	defer c.forget()
	if r := b.judge(c.ctx, c, to(port)); r != nil {
		refused = r.Error()
	}
	return refused, time.Since(start)
}

// forget takes the connection out of the table without telling anybody.
func (c *conn) forget() {
	c.cancel(nil)
	c.update(func(c *conn) { delete(c.table.conns, c) })
}

// TestMissingPolicy: an update that names a policy which is not there is held back; then new connections are refused at once.
func TestMissingPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.know()
		expect := func(what string, port uint16, reason string, least, most time.Duration) {
			t.Helper()
			refused, took := b.try(port)
			if (reason == "") != (refused == "") || !strings.Contains(refused, reason) || took < least || took > most {
				t.Errorf("%s: %q after %s, want %q after %s to %s", what, refused, took, reason, least, most)
			}
		}
		expect("before", 80, "", 0, 0)
		b.know("ns/late")
		expect("while the update is held", 80, "", 0, 0)
		time.Sleep(policyTimeout - time.Millisecond) // of the bubble's clock
		b.know("ns/late", "ns/later")
		expect("while the update is still held", 80, "", 0, 0)
		time.Sleep(2 * time.Millisecond)
		expect("after it was held", 80, "ns/late", 0, 0)
		b.know("ns/later")
		expect("another change of the workload", 80, "ns/later", 0, 0)
		b.deny("later", false, 8080)
		expect("with the policy", 80, "", 0, 0)
		expect("with the policy, denied", 8080, "denied by policy ns/later", 0, 0)
	})
}

// TestOnlyTheWorkloadIsHeld: while an update of the workload is held that names a policy which is not there, all other policies
// are those of now: a right that is taken away is not kept for 5 s, and one that is given not withheld.
func TestOnlyTheWorkloadIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		expect := func(what string, port uint16, reason string) {
			t.Helper()
			if refused, took := b.try(port); (reason == "") != (refused == "") || !strings.Contains(refused, reason) || took != 0 {
				t.Errorf("%s: port %d: %q after %s, want %q", what, port, refused, took, reason)
			}
		}
		b.policy("allow", security.Scope_NAMESPACE, security.Action_ALLOW, false, 80, 81, 82, 83)
		b.policy("no-81", security.Scope_NAMESPACE, security.Action_DENY, false, 81)
		b.deny("mine", false, 82)
		b.deny("other", false, 83)
		b.know("ns/mine", "ns/other")
		expect("before", 80, "")
		expect("before", 81, "ns/no-81")
		expect("before", 82, "ns/mine")
		b.know("ns/late")
		expect("held", 80, "")
		expect("held", 82, "ns/mine")
		expect("held", 83, "ns/other")

		b.node.Directory.HandleAuthorizations(nil, []string{"ns/no-81"})
		expect("what denied is gone", 81, "")
		b.policy("allow", security.Scope_NAMESPACE, security.Action_ALLOW, false, 81, 82, 83)
		expect("a right is taken away", 80, "no ALLOW policy matches")
		b.policy("allow", security.Scope_NAMESPACE, security.Action_ALLOW, false, 80, 81, 82, 83, 84)
		expect("a right is given", 84, "")
		b.deny("mine", false, 84)
		expect("what the workload named denies something else", 82, "")
		expect("what the workload named denies something else", 84, "ns/mine")
		b.node.Directory.HandleAuthorizations(nil, []string{"ns/other"})
		expect("what the workload named is gone", 83, "ns/other")
		b.policy("allow", security.Scope_NAMESPACE, security.Action_ALLOW, false, 80, 81, 82, 83, 84, 85)
		expect("and remains as it was after another change", 83, "ns/other")

		time.Sleep(policyTimeout)
		expect("after it was held", 80, "ns/late")
		b.deny("late", false, 80)
		expect("with the policy", 80, "ns/late")
		expect("with the policy", 83, "")
		expect("with the policy", 84, "")
	})
}

// TestMissingFromTheStart: where nothing was known before, connections wait for the policy.
func TestMissingFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.know("ns/late")
		go func() { // ends by itself
			time.Sleep(time.Second)
			b.deny("late", false, 8080)
		}()
		if refused, took := b.try(80); refused != "" || took != time.Second {
			t.Errorf("%q after %s", refused, took)
		}
		synctest.Wait()

		b = newBench(t)
		b.know("ns/never")
		if refused, took := b.try(80); !strings.Contains(refused, "ns/never") || took != policyTimeout {
			t.Errorf("%q after %s", refused, took)
		}
		if refused, took := b.try(80); !strings.Contains(refused, "ns/never") || took != 0 {
			t.Errorf("the second: %q after %s", refused, took)
		}
	})
}

// TestForgottenAtOnce: a pod that discovery forgets as soon as it was found is known as it was found.
func TestForgottenAtOnce(t *testing.T) {
	b := newBench(t)
	b.know()
	found, err := b.node.Directory.WaitForPod(t.Context(), "ns", "web", "web")
	if err != nil {
		t.Fatal(err)
	}
	b.node.Directory.HandleAddresses(nil, []string{found.UID})
	if w := b.lookUp(); w != nil {
		t.Fatalf("it is known as %v already: this shows nothing", w)
	}
	if w := b.remember(found); w != found {
		t.Errorf("remember = %v, want what was found", w)
	}
	if w, err := b.self(t.Context()); w != found || err != nil {
		t.Errorf("self = %v, %v; want what was found", w, err)
	}
	if got := *b.id.Load(); got != found.Identity {
		t.Errorf("its identity is %v, want %v", got, found.Identity)
	}
}

// TestJudgeAgain: a change cuts what it denies, by the workload as it is now, and only that; a missing policy cuts nothing.
func TestJudgeAgain(t *testing.T) {
	b := newBench(t)
	b.know()
	open := func(port uint16) *conn {
		c := b.conns.open(context.Background(), func(*conn) {})
		if r := b.judge(c.ctx, c, to(port)); r != nil {
			t.Fatal(r)
		}
		return c
	}
	web, admin := open(80), open(8080)
	check := func(what string, c *conn, want string) {
		t.Helper()
		b.node.judgeAll()
		switch cause := context.Cause(c.ctx); {
		case want == "" && cause != nil, want != "" && (cause == nil || !errors.Is(cause, errPolicyChanged) || !strings.Contains(cause.Error(), want)):
			t.Errorf("%s: cut by %v, want %q", what, cause, want)
		}
	}
	b.deny("p", false, 8080)
	check("a policy that nobody names", admin, "")
	b.know("ns/missing")
	check("a policy that is missing", admin, "")
	b.know("ns/missing", "ns/p")
	check("the workload names it now", admin, "denied by policy ns/p")
	check("what it does not deny", web, "")
	b.deny("p", true, 80)
	check("a dry run", web, "")
	b.deny("p", false, 80)
	check("and in force", web, "denied by policy ns/p")
	if endFlag(context.Cause(web.ctx)) != telemetry.FlagDenied {
		t.Error("it is not shown as denied")
	}
	if got := b.value("ambit_policy_connections_closed_total", "ns/p"); got != 2 {
		t.Errorf("%v connections are counted as closed", got)
	}
}

// TestAliasPolicies: whatever comes first, policies or the names of the trust domain, a peer under an alias gets no more than it may
// have under the mesh's own name; and what the names change is judged again.
func TestAliasPolicies(t *testing.T) {
	b := newBench(t)
	b.know()
	name := func(domain string) string { return domain + "/ns/ns/sa/peer" }
	tell := func(action security.Action, principals ...string) {
		t.Helper()
		m := &security.Match{}
		for _, p := range principals {
			m.Principals = append(m.Principals, &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: name(p)}})
		}
		a := &security.Authorization{Name: "p", Namespace: "ns", Scope: security.Scope_NAMESPACE, Action: action,
			Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}}}
		if rejected := b.node.Directory.HandleAuthorizations([]*discoveryv3.Resource{pack(t, "ns/p", xds.TypeAuthorization, a)}, nil); len(rejected) > 0 {
			t.Fatal(rejected)
		}
	}
	open := func() (*conn, *refusal) {
		c := b.conns.open(context.Background(), func(*conn) {})
		what := to(80)
		what.Peer = identity.Identity{TrustDomain: "old", Namespace: "ns", ServiceAccount: "peer"}
		return c, b.judge(c.ctx, c, what)
	}
	for _, tc := range []struct {
		name       string
		action     security.Action
		principals []string
		aliases    []string
		good       bool
	}{
		{"allowed under both names", security.Action_ALLOW, []string{"td", "old"}, []string{"old"}, true},
		{"the policy does not name the alias yet", security.Action_ALLOW, []string{"td"}, []string{"old"}, false},
		{"the policy names the alias alone", security.Action_ALLOW, []string{"old"}, []string{"old"}, false},
		{"it is no alias", security.Action_ALLOW, []string{"old"}, nil, true},
		{"denied under both names", security.Action_DENY, []string{"td", "old"}, []string{"old"}, false},
		{"the policy does not name the alias any more", security.Action_DENY, []string{"td"}, []string{"old"}, false},
		{"denied under the alias", security.Action_DENY, []string{"old"}, []string{"old"}, false},
		{"somebody else is denied", security.Action_DENY, []string{"other"}, []string{"old"}, true},
	} {
		b.node.Trust.SetDomains(identity.NewDomains("td", tc.aliases))
		tell(tc.action, tc.principals...)
		c, refused := open()
		c.forget()
		if (refused == nil) != tc.good {
			t.Errorf("%s: refused: %v", tc.name, refused)
		}
	}

	// The same for connections that live.
	b.node.Trust.SetDomains(identity.NewDomains("td", nil))
	tell(security.Action_DENY, "td")
	c, refused := open()
	if refused != nil {
		t.Fatal(refused)
	}
	b.node.judgeAll()
	if cause := context.Cause(c.ctx); cause != nil {
		t.Errorf("cut by %v before it has an alias", cause)
	}
	b.node.Trust.SetDomains(identity.NewDomains("td", []string{"old"}))
	b.node.judgeAll()
	if cause := context.Cause(c.ctx); !errors.Is(cause, errPolicyChanged) {
		t.Errorf("cut by %v, want the policy that denies its other name", cause)
	}
}

// value is that of a series by its first label.
func (b *bench) value(name string, labels ...string) float64 {
	b.t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if f.GetName() == name && strings.Join(values, " ") == strings.Join(labels, " ") {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestDecisionsAreCounted by policy, with those that a dry run would have made.
func TestDecisionsAreCounted(t *testing.T) {
	b := newBench(t)
	b.know("ns/real", "ns/dry")
	b.deny("real", false, 8080)
	b.deny("dry", true, 80)
	for _, port := range []uint16{80, 80, 8080, 1} {
		b.try(port)
	}
	const name = "ambit_policy_decisions_total" // labels in order: decision, mode, policy
	if real, dry := b.value(name, "deny", "enforced", "ns/real"), b.value(name, "deny", "dry_run", "ns/dry"); real != 1 || dry != 2 {
		t.Errorf("%v enforced and %v dry-run decisions", real, dry)
	}
}

// TestJudgeTunnels: a tunnel whose other end is gone, or is somebody else now, is cut.
func TestJudgeTunnels(t *testing.T) {
	b := newBench(t)
	b.know()
	b.tell(pod("server", "10.0.1.1", tunnelled))
	b.tell(pod("plain", "10.0.1.2"))
	connect := func(name string) *conn {
		to := b.node.Directory.Workload("Kubernetes//Pod/ns/" + name)
		return b.conns.open(context.Background(), func(c *conn) {
			c.record.Destination, c.record.DestinationIdentity = to, to.Identity
			c.record.MutualTLS = name != "plain"
			c.record.DestinationAddr = netip.AddrPortFrom(to.Addrs[0], 15008)
		})
	}
	check := func(what string, c *conn, want string) {
		t.Helper()
		b.node.judgeAll()
		switch cause := context.Cause(c.ctx); {
		case want == "" && cause != nil, want != "" && (!errors.Is(cause, errDestinationChanged) || !strings.Contains(cause.Error(), want)):
			t.Errorf("%s: cut by %v, want %q", what, cause, want)
		}
	}
	first, plain := connect("server"), connect("plain")
	b.tell(pod("server", "10.0.1.1", tunnelled, func(w *workload.Workload) { w.Status = workload.WorkloadStatus_UNHEALTHY }))
	check("not ready", first, "")
	b.tell(pod("server", "10.0.1.1", tunnelled, func(w *workload.Workload) { w.ServiceAccount = "other" }))
	check("another identity", first, "sa/other")
	second := connect("server")
	b.tell(pod("server", "10.0.1.3", tunnelled, func(w *workload.Workload) { w.ServiceAccount = "other" }))
	check("moved away", second, "is gone")
	third := connect("server")
	b.tell(pod("twin", "10.0.1.3", tunnelled, func(w *workload.Workload) { w.ServiceAccount = "other" }))
	b.node.Directory.HandleAddresses(nil, []string{"Kubernetes//Pod/ns/server", "Kubernetes//Pod/ns/plain"})
	check("known by another name with the same identity", third, "")
	check("plain", plain, "")
	b.node.Directory.HandleAddresses(nil, []string{"Kubernetes//Pod/ns/twin"})
	check("gone", third, "is gone")
}
