package netns

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestSingleFamily has nodes, pods, services and the control plane of one address family: what the other tests show on both.
func TestSingleFamily(t *testing.T) {
	for _, family := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run(family.String(), func(t *testing.T) {
			t.Run("paths", func(t *testing.T) { testPaths(newWorldOf(t, family)) })
			t.Run("probes", func(t *testing.T) { testProbes(newWorldOf(t, family)) })
			t.Run("names", func(t *testing.T) { testNamesOfOneFamily(newWorldOf(t, family)) })
			t.Run("rollout", func(t *testing.T) { testRollout(newWorldOf(t, family), true) })
		})
	}
}

// TestProbes: what comes from the address that the host gives to the kubelet's probes reaches the application in plain, whatever
// the policy; what comes from the host otherwise does not.
func TestProbes(t *testing.T) { testProbes(newWorld(t)) }

func testProbes(w *world) {
	server := w.captured(w.node("node1"), "server")
	w.listen(server, ":8080", echo)
	w.Control.SetAuthorizations(strict("default"))
	w.settle()
	w.families(func(t *testing.T, v6 bool) {
		w := w.in(t)
		source := api.ProbeSourceIPv4
		if v6 {
			source = api.ProbeSourceIPv6
		}
		w.must(w.Router().Do(func() error {
			link, err := netlink.LinkByName(lab.Bridge)
			if err != nil {
				return err
			}
			mask := net.CIDRMask(source.BitLen(), source.BitLen())
			return netlink.AddrAdd(link, &netlink.Addr{
				IPNet: &net.IPNet{IP: source.AsSlice(), Mask: mask},
				Flags: unix.IFA_F_NODAD, // else it may be used only when the kernel has come to look for a duplicate
			})
		}))
		to := addr(server, v6, 8080)
		if seen, err := w.fromRouter(source, to); err != nil || seen != source.String() {
			t.Errorf("a probe: the application sees %q, %v; want %s", seen, err, source)
		}
		if seen, err := w.fromRouter(netip.Addr{}, to); err == nil {
			t.Errorf("plaintext of the host works (the server sees %s), want it refused", seen)
		}
	})
}

// fromRouter is call from the router, from one of its addresses; the zero Addr leaves it to the kernel which.
func (w *world) fromRouter(source netip.Addr, to string) (string, error) {
	d := net.Dialer{Timeout: ioTimeout}
	if source.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: source.AsSlice()}
	}
	var c net.Conn
	err := w.Router().Do(func() (err error) {
		c, err = d.Dial("tcp", to)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return converse(c.(*net.TCPConn), "hello")
}

// testNamesOfOneFamily: a pod is told addresses of its own family only, also of services that have both, and its queries go on to
// a resolver of that family.
func testNamesOfOneFamily(w *world) {
	n := w.node("node1", namesOn)
	r := w.resolver("resolver")
	server := w.captured(n, "web-0")
	s := w.serve("web", 1, true, server)
	const both = "both.default.svc.cluster.local"
	w.Control.SetAddresses(&workload.Address{Type: &workload.Address_Service{Service: &workload.Service{
		Name: "both", Namespace: "default", Hostname: both, Ports: s.ports,
		Addresses: []*workload.NetworkAddress{
			{Address: netip.MustParseAddr("10.96.0.9").AsSlice()}, {Address: netip.MustParseAddr("fd96::9").AsSlice()}},
	}}})
	client, err := n.AddPod("client")
	w.must(err)
	client.Resolver = &zds.Resolver{Servers: []string{r.Addrs()[0].String()}, Search: []string{"default.svc.cluster.local"}, Ndots: 5}
	w.captureNames(client)
	w.settle()
	w.families(func(t *testing.T, v6 bool) {
		own, other, service, ofBoth := dns.TypeA, dns.TypeAAAA, s.v4, "10.96.0.9"
		if v6 {
			own, other, service, ofBoth = dns.TypeAAAA, dns.TypeA, s.v6, "fd96::9"
		}
		for _, network := range []string{"udp", "tcp"} {
			a := w.asker(client, network, r.Addrs()[0])
			before := r.asked(client.Addrs()[0])
			for _, tc := range []struct {
				name  string
				qtype uint16
				want  string
			}{
				{s.host, own, "NOERROR " + service.String()},
				{s.host, other, "NOERROR"},
				{"web", own, "NOERROR " + service.String()},
				{both, own, "NOERROR " + ofBoth},
				{both, other, "NOERROR"},
				{"a.upstream.example", dns.TypeA, "NOERROR " + upstreamAddr}, // what others say goes unchanged
				{"none.example", own, "NXDOMAIN"},
			} {
				got, err := a.ask(tc.name, tc.qtype, ioTimeout)
				if err != nil || got != tc.want {
					t.Errorf("%s %s by %s: %q, %v; want %q", dns.TypeToString[tc.qtype], tc.name, network, got, err, tc.want)
				}
			}
			if after := r.asked(client.Addrs()[0]); after == before {
				t.Errorf("by %s the resolver was not asked by the pod itself", network)
			}
		}
	})
}

// TestMixedFamilies: in a mesh of both families, a pod that has one reaches, of a service's endpoints, those that have it too, and
// is not led to another even once; a pod of both families reaches all, whichever address of the service it asks for.
func TestMixedFamilies(t *testing.T) {
	const calls = 40
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	of := func(n *lab.Node, f lab.Family, name string) *lab.Pod {
		p, err := n.AddPodOf(f, name)
		w.must(err)
		w.capture(p)
		return p
	}
	clients := []*lab.Pod{of(n1, lab.IPv4, "client4"), of(n1, lab.IPv6, "client6"), of(n1, lab.Dual, "client")}
	servers := []*lab.Pod{of(n2, lab.IPv4, "server4"), of(n2, lab.IPv6, "server6"), of(n2, lab.Dual, "server")}
	s := w.serve("web", 1, true, servers...)
	for _, p := range servers {
		w.listen(p, ":8080", func(c *net.TCPConn) {
			c.SetDeadline(time.Now().Add(ioTimeout))
			fmt.Fprint(c, p.Name, "\n")
			c.Close()
		})
	}
	w.settle()
	for _, client := range clients {
		families(t, func(t *testing.T, v6 bool) {
			if !ip(client, v6).IsValid() {
				return // it has no such address
			}
			reached := map[string]int{}
			for range calls {
				c, err := client.Dial(s.at(v6, 80))
				w.must(err)
				c.SetDeadline(time.Now().Add(ioTimeout))
				var name string
				if _, err := fmt.Fscanln(c, &name); err != nil {
					t.Errorf("%s: %v", client.Name, err)
				}
				c.Close()
				reached[name]++
			}
			for _, server := range servers {
				can := client.IPv4.IsValid() && server.IPv4.IsValid() || client.IPv6.IsValid() && server.IPv6.IsValid()
				if got := reached[server.Name]; can != (got > 0) {
					t.Errorf("%s reached %v, want %s among them: %v", client.Name, reached, server.Name, can)
				}
			}
		})
	}
	only6 := w.serve("only6", 2, true, servers[1])
	w.settle()
	w.refused(clients[0], only6.at(false, 80))
	w.logged(w.proxies[0], "default/"+only6.host, "no healthy endpoint with an IPv4 address")
	for _, result := range []string{`result="opened"`, `result="failed"`} {
		if n := w.metric(w.proxies[0], "ambit_connect_retries_total", result); n > 0 {
			t.Errorf("%v connections were led to an endpoint that they cannot reach at first (%s)", n, result)
		}
	}
}

// TestProxyWithoutIPv6: where the proxy is not to serve IPv6, what is captured of it is refused, and never goes in clear.
func TestProxyWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	n := w.node("node1", "IPV6_ENABLED=false", namesOn)
	client, server := w.captured(n, "client"), w.captured(n, "server")
	plain := w.pod(n, "plain")
	w.listen(server, ":8080", echo)
	w.listen(plain, ":8080", echo)
	w.settle()
	for _, to := range []*lab.Pod{server, plain} {
		w.expect(client, addr(to, false, 8080), client.IPv4)
		w.refused(client, addr(to, true, 8080))
	}
	w.expect(plain, addr(server, false, 8080), plain.IPv4)
	w.refused(plain, addr(server, true, 8080))
}
