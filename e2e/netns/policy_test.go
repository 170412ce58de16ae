package netns

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// strict is a STRICT PeerAuthentication as it arrives at a node proxy: whoever has no identity is denied.
func strict(namespace string) *security.Authorization {
	return &security.Authorization{
		Name: "strict", Namespace: namespace, Scope: security.Scope_NAMESPACE, Action: security.Action_DENY,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
			NotPrincipals: []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &security.Empty{}}}},
		}}}}}},
	}
}

// deny denies a port to a pod's identity.
func deny(name string, p *lab.Pod, port uint32) *security.Authorization {
	return &security.Authorization{
		Name: name, Namespace: "default", Scope: security.Scope_NAMESPACE, Action: security.Action_DENY,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
			Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{
				Exact: "cluster.local/ns/default/sa/" + p.ServiceAccount}}},
			DestinationPorts: []uint32{port},
		}}}}}},
	}
}

func TestStrict(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server, plain := w.captured(n1, "client"), w.captured(n2, "server"), w.pod(n2, "plain")
	w.listen(server, ":8080", echo)
	w.listen(plain, ":8080", echo)
	w.settle()
	families(t, func(t *testing.T, v6 bool) {
		w := w.in(t)
		w.expect(plain, addr(server, v6, 8080), ip(plain, v6))
		w.Control.SetAuthorizations(strict("default"))
		w.settle()
		w.refused(plain, addr(server, v6, 8080))
		w.expect(client, addr(server, v6, 8080), ip(client, v6))
		w.expect(client, addr(plain, v6, 8080), ip(client, v6))
		w.Control.Remove(lab.AuthorizationType, "default/strict")
		w.settle()
		w.expect(plain, addr(server, v6, 8080), ip(plain, v6))
	})
	w.logged(w.proxies[1], "default/strict", "src.addr", plain.IPv4.String())
}

// TestPolicySeesTheRealPort denies one port of two; the service's port is another one.
func TestPolicySeesTheRealPort(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, other, server := w.captured(n1, "client"), w.captured(n1, "other"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.listen(server, ":8081", echo)
	s := w.serve("web", 1, true, server)
	w.Control.SetAuthorizations(deny("no-8080", client, 8080))
	w.settle()
	w.refused(client, addr(server, false, 8080))
	w.refused(client, s.at(false, 80))
	w.expect(client, addr(server, false, 8081), client.IPv4)
	w.expect(other, s.at(false, 80), other.IPv4)
	w.logged(w.proxies[1], "default/no-8080", client.Identity())
}

// TestPolicyChangeCutsConnections opens connections and then denies some of them.
func TestPolicyChangeCutsConnections(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server, plain := w.captured(n1, "client"), w.captured(n2, "server"), w.pod(n2, "plain")
	w.listen(server, ":8080", echo)
	w.settle()
	open := func(from *lab.Pod) *net.TCPConn {
		c, err := from.Dial(addr(server, false, 8080))
		w.must(err)
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(ioTimeout))
		buf := make([]byte, 64)
		if _, err := c.Read(buf); err != nil { // the echo's first line
			t.Fatal(err)
		}
		return c
	}
	alive := func(c *net.TCPConn) error {
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	tunnelled, plainly := open(client), open(plain)
	w.Control.SetAuthorizations(strict("default"))
	w.eventually("the plain connection is cut", func() error {
		if alive(plainly) == nil {
			return fmt.Errorf("it works")
		}
		return nil
	})
	if err := alive(tunnelled); err != nil {
		t.Errorf("the tunnelled connection, which is still allowed, ended: %v", err)
	}
	w.Control.SetAuthorizations(deny("no-client", client, 8080))
	w.eventually("the tunnelled connection is cut", func() error {
		if alive(tunnelled) == nil {
			return fmt.Errorf("it works")
		}
		return nil
	})
}
