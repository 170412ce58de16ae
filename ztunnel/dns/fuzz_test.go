package dns

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// FuzzAnswer: whatever bytes come, what goes back, if anything, belongs to them, is an answer, and fits.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.shop.svc.cluster.local.", "web.", "a.wild.example.com.", `a\.b.example.com.`, "."} {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(512, true).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	n := NewNode(NodeConfig{Directory: ports(f), ClusterID: "Kubernetes", ClusterDomain: "cluster.local",
		Metrics: telemetry.NewDNS(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler)})
	s := n.Serve(Config{Namespace: "shop", Sockets: &hostSockets{}, Source: func() (string, string) { return "", "" },
		Families: func() (bool, bool) { return true, true }}, nil, nil)
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, b []byte) {
		q, m := parse(b)
		for _, network := range []string{"udp", "tcp"} {
			if q != nil {
				m = s.answer(network, q, netip.AddrPort{}, netip.AddrPort{})
				fit(m, q, network)
			}
			if m == nil {
				continue
			}
			wire, err := m.Pack()
			if err != nil {
				continue // the question is one that cannot be repeated
			}
			if !m.Response || binary.BigEndian.Uint16(wire) != binary.BigEndian.Uint16(b) {
				t.Fatalf("answer %v to %v", m, q)
			}
			if network == "udp" && len(wire) > maxUDP {
				t.Fatalf("%d bytes", len(wire))
			}
		}
	})
}

// parrot is a resolver that says the same to every query, under the query's ID.
type parrot struct {
	hostSockets
	says []byte
}

func (p *parrot) Dial(_ context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
	return &parrotConn{says: append([]byte(nil), p.says...), stream: network == "tcp"}, nil
}

type parrotConn struct {
	net.Conn // nil: nothing else is called
	says     []byte
	stream   bool
	left     []byte
}

func (c *parrotConn) Write(query []byte) (int, error) {
	n := len(query)
	if c.stream {
		query = query[2:]
	}
	if len(c.says) >= 2 {
		copy(c.says, query[:2])
	}
	c.left = c.says
	if c.stream {
		c.left = append(binary.BigEndian.AppendUint16(nil, uint16(len(c.says))), c.says...)
	}
	return n, nil
}

func (c *parrotConn) Read(b []byte) (int, error) {
	if len(c.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.left)
	if c.left = c.left[n:]; !c.stream {
		c.left = nil // the rest of a packet is lost
	}
	return n, nil
}

func (*parrotConn) SetDeadline(time.Time) error { return nil }
func (*parrotConn) Close() error                { return nil }

// FuzzUpstream: whatever a resolver says, the program gets an answer to what it asked, which fits, and the same again from
// what is remembered.
func FuzzUpstream(f *testing.F) {
	const name = "www.example.org."
	for _, records := range [][]string{
		{}, {name + " 60 A 192.0.2.1"}, {name + " 60 CNAME a.example.org.", "a.example.org. 0 A 192.0.2.1"},
		{name + " 4294967295 A 192.0.2.1", `www.example.org. 1 TXT "text"`},
	} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Response = true
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		for _, change := range []func(){func() {}, func() { m.SetEdns0(4096, true) }, func() { m.Rcode = dns.RcodeNameError }, func() { m.Truncated = true }} {
			change()
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	n := NewNode(NodeConfig{Directory: mesh(f), ClusterID: "Kubernetes", ClusterDomain: "cluster.local",
		Metrics: telemetry.NewDNS(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, says []byte) {
		s := n.Serve(Config{Namespace: "shop", Sockets: &parrot{hostSockets: hostSockets{original: netip.MustParseAddrPort("192.0.2.53:53")}, says: says},
			Source: func() (string, string) { return "", "" }, Families: func() (bool, bool) { return true, true }}, nil, nil)
		defer s.Close()
		for _, network := range []string{"udp", "tcp"} {
			for _, q := range []*dns.Msg{new(dns.Msg).SetQuestion(name, dns.TypeA), new(dns.Msg).SetQuestion("WWW.example.org.", dns.TypeA).SetEdns0(1232, false)} {
				m := s.answer(network, q, netip.AddrPort{}, netip.AddrPort{})
				fit(m, q, network)
				wire, err := m.Pack()
				if err != nil {
					continue // of records that can be read but not written
				}
				if m.Id != q.Id || !m.Response || len(m.Question) != 1 || m.Question[0] != q.Question[0] {
					t.Fatalf("answer %v to %v", m, q)
				}
				if limit := map[string]int{"udp": maxUDP, "tcp": dns.MaxMsgSize}[network]; len(wire) > limit || q.IsEdns0() == nil && network == "udp" && len(wire) > dns.MinMsgSize {
					t.Fatalf("%d bytes by %s", len(wire), network)
				}
				if (m.IsEdns0() != nil) != (q.IsEdns0() != nil) {
					t.Fatalf("EDNS in the answer, but not in the query, or the other way: %v", m)
				}
			}
		}
		if len(s.cache.entries) > 2 || s.cache.order.Len() != len(s.cache.entries) {
			t.Fatalf("%d answers are remembered", len(s.cache.entries))
		}
	})
}
