package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// named gives a service ports with names: "http 80 8080" is name, port and target. A target of 0 each endpoint says itself.
func named(t testing.TB, s *workload.Service, ports ...string) *workload.Service {
	t.Helper()
	options := &extension.ServiceOptions{PortNames: map[uint32]string{}}
	for _, text := range ports {
		var name string
		p := &workload.Port{}
		if _, err := fmt.Sscan(text, &name, &p.ServicePort, &p.TargetPort); err != nil {
			t.Fatal(err)
		}
		s.Ports = append(s.Ports, p)
		options.PortNames[p.ServicePort] = name
	}
	body, err := anypb.New(options)
	if err != nil {
		t.Fatal(err)
	}
	s.Extensions = append(s.Extensions, &workload.Extension{Name: extension.ServiceOptionsName, Config: body})
	return s
}

// onPort has an endpoint serve a port of its service on another.
func onPort(a *workload.Address, service string, port, target uint32) *workload.Address {
	a.GetWorkload().Services[service].Ports = []*workload.Port{{ServicePort: port, TargetPort: target}}
	return a
}

// ports is a mesh of services whose ports have names, before others that are told of none.
func ports(t testing.TB) *directory.Directory {
	const db = "shop/db.shop.svc.cluster.local"
	dual := pod("shop", "db-2", true, "10.0.0.12", db)
	dual.GetWorkload().Addresses = append(dual.GetWorkload().Addresses, netip.MustParseAddr("fd00::c").AsSlice())
	entry := pod("shop", "by.hand", true, "10.0.0.13", db)
	entry.GetWorkload().Capacity = nil
	secret := named(t, service("food", "pantry.food.svc.cluster.local", "10.96.0.9"), "http 80 80")
	secret.Visibility = workload.Service_NAMESPACE
	bare := service("shop", "bare.shop.svc.cluster.local", "10.96.0.3")
	bare.Ports = []*workload.Port{{ServicePort: 80, TargetPort: 80}}
	return meshOf(t,
		ofService(named(t, service("shop", "web.shop.svc.cluster.local", "10.96.0.1", "fd96::1"), "http 80 8080", "HTTPS 443 8443")),
		ofService(bare),
		ofService(named(t, service("shop", "db.shop.svc.cluster.local"), "mysql 3306 0", "metrics 9090 9090")),
		ofService(named(t, service("shop", "gone.shop.svc.cluster.local"), "mysql 3306 3306")),
		ofService(secret),
		ofService(named(t, service("shop", "api.example.com", "240.240.0.1"), "tls 443 443", "mongodb 27017 27017")),
		ofService(named(t, service("shop", "*.wild.example.com", "240.240.0.2"), "tls 443 443")),
		onPort(pod("shop", "db-0", true, "10.0.0.10", db), db, 3306, 13306),
		onPort(pod("shop", "db-1", false, "10.0.0.11", db), db, 3306, 3306),
		onPort(dual, db, 3306, 3306),
		onPort(entry, db, 3306, 3307),
	)
}

// showPort writes an answer to a query for a port in short: what it says, and the addresses that it brings along.
func showPort(m *dns.Msg) string {
	var extra []string
	for _, rr := range m.Extra {
		switch rr := rr.(type) {
		case *dns.A:
			extra = append(extra, rr.Hdr.Name+" "+rr.A.String())
		case *dns.AAAA:
			extra = append(extra, rr.Hdr.Name+" "+rr.AAAA.String())
		}
	}
	slices.Sort(extra)
	return strings.TrimSpace(show(m) + " | " + strings.Join(extra, ", "))
}

// outside is what others know: a service of the cluster's as its DNS has it, and records of a database of the world.
func outside(network string, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	name := q.Question[0].Name
	srv := func(target string, port uint16) *dns.Msg {
		m.Answer = append(m.Answer, &dns.SRV{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 60}, Target: target, Port: port})
		return m
	}
	switch {
	case q.Question[0].Qtype == dns.TypeSRV && name == "_http._tcp.bare.shop.svc.cluster.local.":
		return srv("bare.", 1)
	case q.Question[0].Qtype == dns.TypeSRV && name == "_dns._udp.web.shop.svc.cluster.local.":
		return srv("udp.", 2)
	case q.Question[0].Qtype == dns.TypeSRV && name == "_mongodb._tcp.api.example.com.":
		return srv("member.example.com.", 3)
	case q.Question[0].Qtype == dns.TypeSRV && name == "_tls._tcp.fails.wild.example.com.":
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	case q.Question[0].Qtype == dns.TypeSRV && name == "_tls._tcp.refused.wild.example.com.":
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	return world(network, q)
}

func TestPorts(t *testing.T) {
	u := newUpstream(t, outside)
	p := newProxyOf(t, ports(t), &hostSockets{original: u.addr}, Settings{})
	const web = "web.shop.svc.cluster.local"
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"_http._tcp." + web, dns.TypeSRV,
			"NOERROR _http._tcp." + web + " SRV 0 0 80 " + web + ". | " + web + ". 10.96.0.1, " + web + ". fd96::1"},
		{"_HTTPS._TCP." + web, dns.TypeSRV,
			"NOERROR _HTTPS._TCP." + web + " SRV 0 0 443 " + web + ". | " + web + ". 10.96.0.1, " + web + ". fd96::1"},
		// By the search path, and with a search domain too many.
		{"_http._tcp.web", dns.TypeSRV, "NOERROR _http._tcp.web CNAME _http._tcp." + web + "., _http._tcp." + web + " SRV 0 0 80 " + web + ". | " +
			web + ". 10.96.0.1, " + web + ". fd96::1"},
		// Neither a port of that name nor a service: nothing there is. Of one that tells no names, and of UDP, others may know.
		{"_grpc._tcp." + web, dns.TypeSRV, "NXDOMAIN |"},
		{"_http._tcp.none.shop.svc.cluster.local", dns.TypeSRV, "NXDOMAIN |"},
		{"_http._tcp.pantry.food.svc.cluster.local", dns.TypeSRV, "NXDOMAIN |"},
		{"_http._tcp.bare.shop.svc.cluster.local", dns.TypeSRV, "NOERROR _http._tcp.bare.shop.svc.cluster.local SRV 0 0 1 bare. |"},
		{"_dns._udp." + web, dns.TypeSRV, "NOERROR _dns._udp." + web + " SRV 0 0 2 udp. |"},
		// The name of a port is a name, though it has no address.
		{"_http._tcp." + web, dns.TypeA, "NOERROR |"},
		{web, dns.TypeSRV, "NOERROR |"},
		// A headless service's endpoints that are ready, each with its own port; a name that is no label is one by address.
		{"_mysql._tcp.db.shop.svc.cluster.local", dns.TypeSRV, "NOERROR " +
			"_mysql._tcp.db.shop.svc.cluster.local SRV 0 1 13306 db-0.db.shop.svc.cluster.local., " +
			"_mysql._tcp.db.shop.svc.cluster.local SRV 0 1 3306 db-2.db.shop.svc.cluster.local., " +
			"_mysql._tcp.db.shop.svc.cluster.local SRV 0 1 3307 10-0-0-13.db.shop.svc.cluster.local. | " +
			"10-0-0-13.db.shop.svc.cluster.local. 10.0.0.13, db-0.db.shop.svc.cluster.local. 10.0.0.10, " +
			"db-2.db.shop.svc.cluster.local. 10.0.0.12, db-2.db.shop.svc.cluster.local. fd00::c"},
		{"10-0-0-13.db.shop.svc.cluster.local", dns.TypeA, "NOERROR 10-0-0-13.db.shop.svc.cluster.local A 10.0.0.13 |"},
		{"fd00--c.db.shop.svc.cluster.local", dns.TypeAAAA, "NOERROR fd00--c.db.shop.svc.cluster.local AAAA fd00::c |"},
		{"10-0-0-11.db.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN |"}, // not ready
		{"_mysql._tcp.gone.shop.svc.cluster.local", dns.TypeSRV, "NXDOMAIN |"},
		// Hosts outside: what they say of themselves counts, and else the entry.
		{"_mongodb._tcp.api.example.com", dns.TypeSRV, "NOERROR _mongodb._tcp.api.example.com SRV 0 0 3 member.example.com. |"},
		{"_tls._tcp.api.example.com", dns.TypeSRV, "NOERROR _tls._tcp.api.example.com SRV 0 0 443 api.example.com. | api.example.com. 240.240.0.1"},
		{"_tls._tcp.a.wild.example.com", dns.TypeSRV, "NOERROR _tls._tcp.a.wild.example.com SRV 0 0 443 a.wild.example.com. | a.wild.example.com. 240.240.0.2"},
		{"_tls._tcp.refused.wild.example.com", dns.TypeSRV,
			"NOERROR _tls._tcp.refused.wild.example.com SRV 0 0 443 refused.wild.example.com. | refused.wild.example.com. 240.240.0.2"},
		{"_tls._tcp.fails.wild.example.com", dns.TypeSRV, "SERVFAIL |"},
		// The program's resolver is to go on to the name itself.
		{"_mongodb._tcp.api.example.com.shop.svc.cluster.local", dns.TypeSRV, "NXDOMAIN |"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := p.ask(t, network, tc.name, tc.qtype, func(q *dns.Msg) { q.SetEdns0(maxUDP, false) })
			if got := showPort(m); got != tc.want {
				t.Errorf("%s %s by %s:\n%s, want\n%s", dns.TypeToString[tc.qtype], tc.name, network, got, tc.want)
			}
		}
	}
	// Go's own resolver makes sense of it.
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, p.addr)
	}}
	_, targets, err := r.LookupSRV(t.Context(), "mysql", "tcp", "db.shop.svc.cluster.local")
	if err != nil || len(targets) != 3 {
		t.Errorf("%v, %v", targets, err)
	}
}

// TestAdditional: addresses that do not fit are left out, and that is no reason to ask again by TCP.
func TestAdditional(t *testing.T) {
	p := newProxyOf(t, ports(t), &hostSockets{}, Settings{})
	m := p.ask(t, "udp", "_mysql._tcp.db.shop.svc.cluster.local", dns.TypeSRV)
	if m.Truncated || len(m.Answer) != 3 || len(m.Extra) != 4 {
		t.Fatalf("all of it should fit: %v", m)
	}
	q := new(dns.Msg).SetQuestion("_mysql._tcp.db.shop.svc.cluster.local.", dns.TypeSRV)
	for size, extra := range map[int]int{dns.MinMsgSize: 0, maxUDP: 60} {
		m := new(dns.Msg).SetReply(q)
		f := found{targets: []target{{name: "a.example"}, {name: "b.example"}}}
		for i := range 60 {
			f.targets[i%2].addrs = append(f.targets[i%2].addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		}
		addTargets(m, q.Question[0].Name, f)
		q := q.Copy()
		if size > dns.MinMsgSize {
			q.SetEdns0(uint16(size), false)
		}
		fit(m, q, "udp")
		if m.Truncated || len(m.Answer) != 2 || len(m.Extra) < extra || extra == 0 && len(m.Extra) > 0 {
			t.Errorf("of %d bytes: truncated %v, %d answers, %d more; want %d", size, m.Truncated, len(m.Answer), len(m.Extra), extra)
		}
	}
}

// TestPortsOfSingleFamily: what serves a port brings along only addresses that the pod can connect to, and is left out if it
// has none.
func TestPortsOfSingleFamily(t *testing.T) {
	u := newUpstream(t, outside)
	p := newProxyOf(t, ports(t), &hostSockets{original: u.addr}, Settings{})
	p.without.Store(4)
	for name, want := range map[string]string{
		"_http._tcp.web.shop.svc.cluster.local": "NOERROR _http._tcp.web.shop.svc.cluster.local SRV 0 0 80 web.shop.svc.cluster.local. | web.shop.svc.cluster.local. fd96::1",
		"_mysql._tcp.db.shop.svc.cluster.local": "NOERROR _mysql._tcp.db.shop.svc.cluster.local SRV 0 1 3306 db-2.db.shop.svc.cluster.local. | db-2.db.shop.svc.cluster.local. fd00::c",
	} {
		if got := showPort(p.ask(t, "tcp", name, dns.TypeSRV)); got != want {
			t.Errorf("%s:\n%s, want\n%s", name, got, want)
		}
	}
}
