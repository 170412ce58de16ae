package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// outside is a pod that discovery does not know: a host beyond the mesh.
func (w *world) outside(n *lab.Node, name string) *lab.Pod {
	w.t.Helper()
	p, err := n.AddPod(name)
	w.must(err)
	return p
}

// resolve serves names by DNS in a pod, and returns the setting that has a proxy ask it.
func (w *world) resolve(p *lab.Pod, names func() map[string]netip.Addr, asked *atomic.Int32) string {
	w.t.Helper()
	var packets net.PacketConn
	w.must(p.Do(func() (err error) {
		packets, err = net.ListenPacket("udp", net.JoinHostPort(p.IPv4.String(), "53"))
		return err
	}))
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		addr, ok := names()[strings.TrimSuffix(q.Question[0].Name, ".")]
		header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 1}
		switch {
		case !ok:
			m.Rcode = dns.RcodeNameError
		case header.Rrtype == dns.TypeA && addr.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
		case header.Rrtype == dns.TypeAAAA && addr.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
		_ = rw.WriteMsg(m)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	w.t.Cleanup(func() {
		packets.Close()
		<-ended
	})
	file := filepath.Join(w.t.TempDir(), "resolv.conf")
	w.must(os.WriteFile(file, []byte("nameserver "+p.IPv4.String()+"\n"), 0o600))
	return "AMBIT_RESOLV_CONF=" + file
}

// entry is a host of a ServiceEntry.
func entry(host string, mode workload.LoadBalancing_Mode, addresses ...string) *workload.Address {
	s := &workload.Service{Name: "entry", Namespace: "default", Hostname: host, Canonical: true,
		Ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080}}, LoadBalancing: &workload.LoadBalancing{Mode: mode}}
	for _, a := range addresses {
		prefix := netip.MustParsePrefix(a)
		na := &workload.NetworkAddress{Address: prefix.Addr().AsSlice()}
		if !prefix.IsSingleIP() {
			na.Length = wrapperspb.UInt32(uint32(prefix.Bits()))
		}
		s.Addresses = append(s.Addresses, na)
	}
	return &workload.Address{Type: &workload.Address_Service{Service: s}}
}

// entryEndpoint is one endpoint of a host: an address, or a name to look up.
func entryEndpoint(host, at string) *workload.Address {
	wl := &workload.Workload{
		Uid: "Kubernetes/networking.istio.io/ServiceEntry/default/entry/" + at, Name: "entry", Namespace: "default",
		Services: map[string]*workload.PortList{"default/" + host: {Ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080}}}},
	}
	if addr, err := netip.ParseAddr(at); err == nil {
		wl.Addresses = [][]byte{addr.AsSlice()}
	} else {
		wl.Hostname = at
	}
	return &workload.Address{Type: &workload.Address_Workload{Workload: wl}}
}

// abroad has an entry, or an endpoint of one, belong to another namespace.
func abroad(a *workload.Address, visible workload.Service_Visibility) *workload.Address {
	if s := a.GetService(); s != nil {
		s.Namespace, s.Visibility = "elsewhere", visible
		return a
	}
	wl := a.GetWorkload()
	wl.Uid, wl.Namespace = strings.Replace(wl.Uid, "/default/", "/elsewhere/", 1), "elsewhere"
	for name, ports := range wl.Services {
		delete(wl.Services, name)
		wl.Services[strings.Replace(name, "default/", "elsewhere/", 1)] = ports
	}
	return a
}

// TestEgress leads a captured pod out of the mesh: by host name, by address, by range, and not at all.
func TestEgress(t *testing.T) {
	w := newWorld(t)
	resolverNode, err := w.AddNode("outside")
	w.must(err)
	resolver := w.outside(resolverNode, "resolver")
	far, other, third := w.outside(resolverNode, "far"), w.outside(resolverNode, "other"), w.outside(resolverNode, "third")
	var known atomic.Pointer[map[string]netip.Addr]
	var asked atomic.Int32
	known.Store(&map[string]netip.Addr{"v4.example.com": far.IPv4, "v6.example.com": far.IPv6})
	setting := w.resolve(resolver, func() map[string]netip.Addr { return *known.Load() }, &asked)

	n := w.node("node1", setting)
	client := w.captured(n, "client")
	for _, p := range []*lab.Pod{far, other, third} {
		w.listen(p, ":8080", echo)
		w.listen(p, ":80", echo)
	}
	standard, passthrough := workload.LoadBalancing_UNSPECIFIED_MODE, workload.LoadBalancing_PASSTHROUGH
	w.Control.SetAddresses(
		entry("v4.example.com", standard, "240.240.0.1/32"), entryEndpoint("v4.example.com", "v4.example.com"),
		entry("v6.example.com", standard, "240.240.0.2/32", "2001:2::2/128"), entryEndpoint("v6.example.com", "v6.example.com"),
		entry("missing.example.com", standard, "240.240.0.3/32"), entryEndpoint("missing.example.com", "missing.example.com"),
		entry("static.example.com", standard, "240.240.0.4/32"), entryEndpoint("static.example.com", other.IPv4.String()),
		entry("range.example.com", passthrough, netip.PrefixFrom(far.IPv4, 24).Masked().String()),
		abroad(entry("shared.example.com", standard, "240.240.0.5/32"), workload.Service_PUBLIC),
		abroad(entryEndpoint("shared.example.com", third.IPv4.String()), 0),
		abroad(entry("hidden.example.com", standard, "240.240.0.6/32"), workload.Service_NAMESPACE),
		abroad(entryEndpoint("hidden.example.com", third.IPv6.String()), 0),
	)
	w.settle()

	check := func(t *testing.T) {
		w := w.in(t)
		w.expect(client, "240.240.0.1:80", client.IPv4)
		w.expect(client, "240.240.0.2:80", client.IPv6) // asked for by IPv4, and it has IPv6 only
		w.expect(client, "[2001:2::2]:80", client.IPv6)
		w.expect(client, "240.240.0.4:80", client.IPv4)
		w.expect(client, addr(far, false, 80), client.IPv4)
		w.expect(client, "240.240.0.5:80", client.IPv4)
		w.refused(client, "240.240.0.3:80")
		w.refused(client, "240.240.0.6:80")
	}
	t.Run("allow any", func(t *testing.T) {
		check(t)
		w.in(t).expect(client, addr(other, true, 8080), client.IPv6)
		w.in(t).logged(w.proxies[0], "missing.example.com", "no such host")
	})
	t.Run("registry only", func(t *testing.T) {
		w := w.in(t)
		w.Control.SetSettings(&extension.Settings{TrustDomain: "cluster.local", OutboundPolicy: extension.Settings_REGISTRY_ONLY})
		w.eventually("refusal of what the mesh does not know", func() error {
			if _, err := call(client, addr(other, true, 8080), "hello"); err == nil {
				return fmt.Errorf("it works")
			}
			return nil
		})
		check(t)
		w.refused(client, addr(far, false, 8080))                 // a port that the range does not have
		w.logged(w.proxies[0], "240.240.0.6:80", "REGISTRY_ONLY") // what its namespace does not see it does not know
		w.logged(w.proxies[0], addr(other, true, 8080), "REGISTRY_ONLY", "ServiceEntry")
		w.eventually("a metric with the flag", func() error {
			_, body, err := w.proxies[0].Get(w.ctx, 15020, "/metrics")
			for line := range strings.SplitSeq(body, "\n") {
				if strings.HasPrefix(line, "istio_tcp_connections_failed_total") && strings.Contains(line, `response_flags="REGISTRY_ONLY"`) {
					return nil
				}
			}
			return fmt.Errorf("no such series: %v", err)
		})
	})
	t.Run("lifted", func(t *testing.T) {
		w := w.in(t)
		w.Control.SetSettings(&extension.Settings{TrustDomain: "cluster.local"})
		w.eventually("what the mesh does not know", func() error {
			_, err := call(client, addr(other, true, 8080), "hello")
			return err
		})
	})
	t.Run("another address", func(t *testing.T) {
		w := w.in(t)
		known.Store(&map[string]netip.Addr{"v4.example.com": other.IPv4})
		w.eventually("a query once the TTL is over", func() error {
			before := asked.Load()
			if _, err := call(client, "240.240.0.1:80", "hello"); err != nil {
				return err
			}
			if asked.Load() == before {
				return fmt.Errorf("the former answer is used")
			}
			return nil
		})
	})
}
