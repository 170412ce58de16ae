package netns

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// rule is a policy of the namespace of all pods whose only rule has these matches.
func rule(name string, action security.Action, matches ...*security.Match) *security.Authorization {
	return &security.Authorization{
		Name: name, Namespace: "default", Scope: security.Scope_NAMESPACE, Action: action,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: matches}}}},
	}
}

func exactly(s string) []*security.StringMatch {
	return []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: s}}}
}

// TestAuthorization: ALLOW and DENY by identity, service account, namespace, port and address, for a captured client and for one
// without an identity.
func TestAuthorization(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, other, server, plain := w.captured(n1, "client"), w.captured(n1, "other"), w.captured(n2, "server"), w.pod(n2, "plain")
	w.listen(server, ":8080", echo)
	w.listen(server, ":8081", echo)
	w.settle()
	bits := func(p *lab.Pod) []*security.Address {
		return []*security.Address{{Address: p.IPv4.AsSlice(), Length: 32}}
	}
	const allow, deny = security.Action_ALLOW, security.Action_DENY
	for _, tt := range []struct {
		name   string
		policy *security.Authorization
		// who gets to which port; whoever is not named is refused there.
		first, second string
	}{
		{"identity", rule("p", allow, &security.Match{Principals: exactly("cluster.local/ns/default/sa/" + client.ServiceAccount)}), "client", "client"},
		{"service account and port", rule("p", allow, &security.Match{
			ServiceAccounts: []*security.ServiceAccountMatch{{Namespace: "default", ServiceAccount: client.ServiceAccount}}, DestinationPorts: []uint32{8081}}), "", "client"},
		{"namespace", rule("p", allow, &security.Match{Namespaces: exactly("default")}), "client other", "client other"},
		{"no such namespace", rule("p", allow, &security.Match{Namespaces: exactly("elsewhere")}), "", ""},
		{"port", rule("p", deny, &security.Match{DestinationPorts: []uint32{8080}}), "", "client other plain"},
		{"address", rule("p", deny, &security.Match{SourceIps: bits(plain)}, &security.Match{SourceIps: bits(other)}), "client", "client"},
		{"not the address", rule("p", deny, &security.Match{NotSourceIps: bits(plain)}), "plain", "plain"},
		{"allow nothing", &security.Authorization{Name: "p", Namespace: "default", Scope: security.Scope_NAMESPACE}, "", ""},
		{"invalid", rule("p", deny, &security.Match{DestinationPorts: []uint32{70000}}), "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := w.in(t)
			w.Control.SetAuthorizations(tt.policy)
			w.settle()
			for port, allowed := range map[int]string{8080: tt.first, 8081: tt.second} {
				for _, from := range []*lab.Pod{client, other, plain} {
					if strings.Contains(" "+allowed+" ", " "+from.Name+" ") {
						w.expect(from, addr(server, false, port), from.IPv4)
					} else {
						w.refused(from, addr(server, false, port))
					}
				}
			}
		})
	}
	w.logged(w.proxies[1], "denied by policy default/p", "direction=inbound", "response_flags=DENY")
	w.logged(w.proxies[1], "no ALLOW policy matches; there are default/p")
}

// talk opens a connection to an echo that lives until the test ends, and returns a function that uses it.
func (w *world) talk(from *lab.Pod, to string) func() error {
	w.t.Helper()
	c, err := from.Dial(to)
	w.must(err)
	w.t.Cleanup(func() { c.Close() })
	if _, err := c.Read(make([]byte, 64)); err != nil { // the echo's first line
		w.t.Fatal(err)
	}
	return func() error { return exchange(c) }
}

func exchange(c *net.TCPConn) error {
	c.SetDeadline(time.Now().Add(ioTimeout))
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// withPolicies is a captured pod's workload that names policies.
func withPolicies(p *lab.Pod, names ...string) *workload.Address {
	wl := p.Workload(true)
	wl.AuthorizationPolicies = names
	return &workload.Address{Type: &workload.Address_Workload{Workload: wl}}
}

// TestLiveConnectionsAreJudgedAgain: within a second after the proxy has heard of it, a change of the workload closes what is
// denied now, and a tunnel whose destination is somebody else now ends on the client's side.
func TestLiveConnectionsAreJudgedAgain(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, other, server := w.captured(n1, "client"), w.captured(n1, "other"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	denied, kept := w.talk(client, addr(server, false, 8080)), w.talk(other, addr(server, false, 8080))
	within := func(what string, alive func() error) {
		t.Helper()
		start := time.Now()
		w.eventually(what, func() error {
			if alive() == nil {
				return fmt.Errorf("it works")
			}
			return nil
		})
		// A second, and the rest for two proxies and a control plane on a busy machine.
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s after %s", what, took)
		} else {
			t.Logf("%s after %s", what, took)
		}
	}
	p := deny("by-selector", client, 8080)
	p.Scope = security.Scope_WORKLOAD_SELECTOR
	w.Control.SetAuthorizations(p)
	w.settle()
	if err := denied(); err != nil {
		t.Errorf("a policy that the workload does not name cut its connection: %v", err)
	}
	w.Control.SetAddresses(withPolicies(server, "default/by-selector"))
	within("the workload names the policy, the connection is cut", denied)
	w.logged(w.proxies[1], "closed due to policy change", "denied by policy default/by-selector", client.Identity())
	if err := kept(); err != nil {
		t.Errorf("the connection that is allowed ended: %v", err)
	}
	if got := w.counter(w.proxies[1], "ambit_policy_connections_closed_total", `policy="default/by-selector"`); got != 1 {
		t.Errorf("%v connections are counted as closed", got)
	}

	stranger := server.Workload(true)
	stranger.ServiceAccount = "somebody-else"
	w.Control.SetAddresses(&workload.Address{Type: &workload.Address_Workload{Workload: stranger}})
	within("the destination is somebody else, the connection is cut", kept)
	w.logged(w.proxies[0], "closed because the destination changed", "sa/somebody-else", "direction=outbound")
}

// TestMissingPolicyIsHeld: an update of a workload that names a policy which is not there changes nothing for some seconds; then
// new connections are refused at once, and live ones go on, until the policy comes.
func TestMissingPolicyIsHeld(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	live := w.talk(client, addr(server, false, 8080))
	begin := time.Now()
	w.Control.SetAddresses(withPolicies(server, "default/late"))
	w.settle()
	const held = 4 * time.Second // less than the proxy holds the update, which begins when it hears of it
	if _, err := call(client, addr(server, false, 8080), "hello"); err != nil && time.Since(begin) < held {
		t.Errorf("while the policy may still come: %v", err)
	}
	w.eventually("new connections are refused", func() error {
		start := time.Now()
		if _, err := call(client, addr(server, false, 8080), "hello"); err == nil {
			return fmt.Errorf("they work")
		} else if took := time.Since(start); took > 5*time.Second {
			return fmt.Errorf("refused only after %s: %w", took, err)
		}
		return nil
	})
	w.logged(w.proxies[1], "policy default/late selects the workload and is not known yet")
	if err := live(); err != nil {
		t.Errorf("the live connection was cut by a policy that is not there: %v", err)
	}
	late := deny("late", client, 9999)
	late.Scope = security.Scope_WORKLOAD_SELECTOR
	w.Control.SetAuthorizations(late)
	w.eventually("new connections work again", func() error {
		_, err := call(client, addr(server, false, 8080), "hello")
		return err
	})
	if err := live(); err != nil {
		t.Errorf("the live connection ended: %v", err)
	}
}

// TestDryRun: a dry run refuses nothing, and counts what it would have refused.
func TestDryRun(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	wouldDeny := deny("would-deny", client, 8080)
	wouldDeny.DryRun = true
	wouldAllow := rule("would-allow", security.Action_ALLOW, &security.Match{DestinationPorts: []uint32{9999}})
	wouldAllow.DryRun = true
	w.Control.SetAuthorizations(wouldDeny, wouldAllow)
	w.settle()
	for range 3 {
		w.expect(client, addr(server, false, 8080), client.IPv4)
	}
	for _, name := range []string{"would-deny", "would-allow"} {
		labels := []string{`policy="default/` + name + `"`, `decision="deny"`, `mode="dry_run"`}
		if got := w.counter(w.proxies[1], "ambit_policy_decisions_total", labels...); got != 3 {
			t.Errorf("%s: %v decisions are counted, want 3", name, got)
		}
	}
}

// counter is the value of a proxy's series with these labels; 0 if there is none.
func (w *world) counter(p *lab.Proxy, name string, labels ...string) float64 {
	w.t.Helper()
	code, body, err := p.Get(w.ctx, 15020, "/metrics")
	w.must(err)
	if code != 200 {
		w.t.Fatalf("/metrics: status %d", code)
	}
lines:
	for line := range strings.Lines(body) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok || !strings.HasPrefix(series, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(series, l) {
				continue lines
			}
		}
		n, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
		w.must(err)
		return n
	}
	return 0
}
