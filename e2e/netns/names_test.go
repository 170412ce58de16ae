package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// namesOn has a proxy answer name queries, which proxies of other tests do not.
const namesOn = "ISTIO_META_DNS_CAPTURE=true"

// upstreamAddr is what the fake resolver says of every name that it knows.
const upstreamAddr = "192.0.2.1"

// resolver is a host with a real DNS server that knows the names of upstream.example, and what others would say of web.
type resolver struct {
	*lab.Host

	mu   sync.Mutex
	from map[netip.Addr]int // queries, by who asked; guarded by mu
}

func (w *world) resolver(name string) *resolver {
	w.t.Helper()
	h, err := w.AddHost(name)
	w.must(err)
	r := &resolver{Host: h, from: map[netip.Addr]int{}}
	var pc net.PacketConn
	w.must(h.Do(func() error {
		var err error
		pc, err = net.ListenPacket("udp", ":53")
		return err
	}))
	ln, err := h.Listen(":53")
	w.must(err)
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: dns.HandlerFunc(r.answer)}, {Listener: ln, Handler: dns.HandlerFunc(r.answer)}} {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { // ends with Shutdown
			defer close(done)
			s.ActivateAndServe()
		}()
		<-started
		w.t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return r
}

func (r *resolver) answer(out dns.ResponseWriter, q *dns.Msg) {
	host, _, _ := net.SplitHostPort(out.RemoteAddr().String())
	if from, err := netip.ParseAddr(host); err == nil {
		r.mu.Lock()
		r.from[from.Unmap()]++
		r.mu.Unlock()
	}
	m := new(dns.Msg).SetReply(q)
	name := q.Question[0].Name
	switch {
	case !strings.HasSuffix(name, ".upstream.example.") && !strings.HasPrefix(name, "web.default."):
		m.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		m.Answer = append(m.Answer, &dns.A{A: net.ParseIP(upstreamAddr), Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}})
	}
	out.WriteMsg(m)
}

func (r *resolver) asked(from netip.Addr) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.from[from]
}

// captureNames does what the agent does for a pod that starts and whose names the proxy answers.
func (w *world) captureNames(p *lab.Pod) {
	w.t.Helper()
	w.Control.SetAddresses(p.Address(true))
	w.must(p.Offer(w.ctx))
	served, err := conntrack.Kernel{}.NamesServed(p.Handle())
	w.must(err)
	if !served {
		w.t.Fatal("the proxy does not take name queries")
	}
	w.must(w.Kernel.Apply(w.ctx, p.Handle(), rules.For(rules.Config{IPv6: true, DNS: true})))
	_, err = conntrack.Kernel{}.ForgetNames(p.Handle(), true)
	w.must(err)
}

// asker is a program's socket to its resolver.
type asker struct {
	*dns.Conn
}

func (w *world) asker(p *lab.Pod, network string, server netip.Addr) *asker {
	w.t.Helper()
	var c net.Conn
	w.must(p.Do(func() error {
		var err error
		c, err = net.DialTimeout(network, netip.AddrPortFrom(server, 53).String(), ioTimeout)
		return err
	}))
	w.t.Cleanup(func() { c.Close() })
	return &asker{&dns.Conn{Conn: c}}
}

// ask sends one query and returns the answer in short; an error that is a time-out means that the query was lost.
func (a *asker) ask(name string, qtype uint16, patience time.Duration) (string, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	if err := a.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if err := a.WriteMsg(q); err != nil {
		return "", err
	}
	for {
		m, err := a.ReadMsg()
		if err != nil {
			return "", err
		}
		if m.Id != q.Id {
			continue // to one that was given up
		}
		out := []string{dns.RcodeToString[m.Rcode]}
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				out = append(out, rr.A.String())
			case *dns.AAAA:
				out = append(out, rr.AAAA.String())
			case *dns.SRV:
				out = append(out, fmt.Sprintf("%s:%d", rr.Target, rr.Port))
			}
		}
		slices.Sort(out[1:])
		return strings.Join(out, " "), nil
	}
}

// entry makes a service that is of no pod, as a ServiceEntry's host is.
func (w *world) entry(host, addr string) {
	w.t.Helper()
	w.Control.SetAddresses(&workload.Address{Type: &workload.Address_Service{Service: &workload.Service{
		Name: host, Namespace: "default", Hostname: host, Ports: []*workload.Port{{ServicePort: 80, TargetPort: 80}},
		Addresses:  []*workload.NetworkAddress{{Address: netip.MustParseAddr(addr).AsSlice()}},
		Extensions: w.portNames(map[uint32]string{80: "http"}),
	}}})
}

// portNames are what the control plane tells beside a service.
func (w *world) portNames(names map[uint32]string) []*workload.Extension {
	w.t.Helper()
	body, err := anypb.New(&extension.ServiceOptions{PortNames: names})
	w.must(err)
	return []*workload.Extension{{Name: extension.ServiceOptionsName, Config: body}}
}

// TestNames: a pod with resolvers and a search list of its own (dnsPolicy None) asks for names of the mesh and of others, by
// UDP and TCP.
func TestNames(t *testing.T) {
	w := newWorld(t)
	n := w.node("node1", namesOn)
	r := w.resolver("resolver")
	server := w.captured(n, "web-0")
	w.serve("web", 1, true, server)
	w.entry("api.own.example", "240.240.0.1")
	w.entry("*.wild.example", "240.240.0.2")
	db := server.Workload(true)
	db.Services = map[string]*workload.PortList{"default/db.default.svc.cluster.local": {}, "default/web.default.svc.cluster.local": {}}
	w.Control.SetAddresses(&workload.Address{Type: &workload.Address_Workload{Workload: db}},
		&workload.Address{Type: &workload.Address_Service{Service: &workload.Service{
			Name: "db", Namespace: "default", Hostname: "db.default.svc.cluster.local",
			Ports: []*workload.Port{{ServicePort: 3306, TargetPort: 13306}}, Extensions: w.portNames(map[uint32]string{3306: "mysql"})}}})
	client, err := n.AddPod("client")
	w.must(err)
	client.Resolver = &zds.Resolver{Servers: []string{r.IPv4.String()}, Search: []string{"own.example"}, Ndots: 2}
	w.captureNames(client)
	w.settle()
	families(t, func(t *testing.T, v6 bool) {
		for _, network := range []string{"udp", "tcp"} {
			w := w.in(t)
			a := w.asker(client, network, ip(&lab.Pod{Host: r.Host}, v6))
			before := r.asked(ip(client, v6))
			for _, tc := range []struct {
				name  string
				qtype uint16
				want  string
			}{
				{"web.default.svc.cluster.local", dns.TypeA, "NOERROR 10.96.0.1"},
				{"web.default.svc.cluster.local", dns.TypeAAAA, "NOERROR fd96::1"},
				{"api", dns.TypeA, "NOERROR 240.240.0.1"},
				{"api.own.example", dns.TypeAAAA, "NOERROR"},
				{"some.wild.example", dns.TypeA, "NOERROR 240.240.0.2"},
				{"db.default.svc.cluster.local", dns.TypeA, "NOERROR " + server.IPv4.String()},
				{"web-0.db.default.svc.cluster.local", dns.TypeAAAA, "NOERROR " + server.IPv6.String()},
				{"_mysql._tcp.db.default.svc.cluster.local", dns.TypeSRV, "NOERROR web-0.db.default.svc.cluster.local.:13306"},
				{"_http._tcp.api.own.example", dns.TypeSRV, "NOERROR api.own.example.:80"},
				// web's ports are told no names: its own resolver knows the name, if not this.
				{"_http._tcp.web.default.svc.cluster.local", dns.TypeSRV, "NXDOMAIN"},
				// The pod's search list is not the cluster's.
				{"web", dns.TypeA, "NXDOMAIN"},
				{"a.upstream.example", dns.TypeA, "NOERROR " + upstreamAddr},
				{"none.example", dns.TypeA, "NXDOMAIN"},
			} {
				got, err := a.ask(tc.name, tc.qtype, ioTimeout)
				if err != nil || got != tc.want {
					t.Errorf("%s %s by %s: %q, %v; want %q", dns.TypeToString[tc.qtype], tc.name, network, got, err, tc.want)
				}
			}
			if after := r.asked(ip(client, v6)); after == before {
				t.Errorf("by %s the resolver was not asked by the pod itself, where the pod sent its queries", network)
			}
		}
	})
	// A program that asks another server than the pod's own has that one asked.
	other := w.resolver("other")
	if got, err := w.asker(client, "udp", other.IPv4).ask("b.upstream.example", dns.TypeA, ioTimeout); err != nil || got != "NOERROR "+upstreamAddr {
		t.Errorf("asking another server: %q, %v", got, err)
	}
	if other.asked(client.IPv4) == 0 {
		t.Error("the other server was not asked")
	}
	w.eventually("metrics tell of it", func() error {
		_, body, err := w.proxies[0].Get(w.ctx, 15020, "/metrics")
		if err == nil && !strings.Contains(body, `istio_dns_requests_total{request_protocol="udp",request_query_type="a",source_canonical_revision="latest",source_canonical_service="client"}`) {
			err = errors.New("no istio_dns_requests_total of the pod")
		}
		return err
	})
}

// TestOneSocketThroughItAll: a program that asks all its life with one UDP socket goes on through live enrolment, two rolls
// of the proxy, and un-enrolment; it is answered by the mesh exactly while it is captured, and no query is lost in a roll.
func TestOneSocketThroughItAll(t *testing.T) {
	const name = "web.default.svc.cluster.local"
	const own, mesh = "NOERROR " + upstreamAddr, "NOERROR 10.96.0.1"
	families(t, func(t *testing.T, v6 bool) {
		w := newWorld(t)
		n := w.node("node1", namesOn)
		r := w.resolver("resolver")
		client := w.pod(n, "client")
		w.serve("web", 1, false)
		w.settle()
		a := w.asker(client, "udp", ip(&lab.Pod{Host: r.Host}, v6))
		lost, wait := 0, 5*time.Second
		ask := func() string {
			t.Helper()
			for range 5 {
				got, err := a.ask(name, dns.TypeA, wait)
				if err == nil {
					return got
				}
				if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatal(err)
				}
				lost++
			}
			t.Fatal("the socket is of no more use")
			return ""
		}
		w.eventually("the pod's own resolver answers", func() error { return same(ask(), own) })
		w.captureNames(client)
		w.eventually("the mesh answers", func() error { return same(ask(), mesh) })
		if lost > 1 {
			t.Errorf("%d queries were lost in enrolment", lost)
		}
		wait = ioTimeout // nothing is to be lost, and so not to be repeated
		for range 2 {
			lost = 0
			old := w.proxies[len(w.proxies)-1]
			host, err := w.AddHost(n.Name) // as in Kubernetes, the new proxy has a network namespace of its own
			w.must(err)
			second := *n
			second.Host = host
			fresh := w.launch(&second, namesOn)
			w.eventually("the new proxy is ready", func() error {
				if got := ask(); got != mesh {
					return fmt.Errorf("%s", got)
				}
				code, _, err := fresh.Get(w.ctx, 15021, "/healthz/ready")
				if err == nil && code != 200 {
					err = fmt.Errorf("status %d", code)
				}
				return err
			})
			if got := w.series(fresh, `ambit_handover_sockets_total{source="proxy"}`); got != "7" {
				t.Errorf("%q sockets were taken over from the proxy before, want 3 for connections and 4 for names", got)
			}
			w.must(old.Signal(syscall.SIGTERM))
			for ended := false; !ended; {
				select {
				case <-old.Exited():
					ended = true
				default:
				}
				if got := ask(); got != mesh {
					t.Fatalf("while the old proxy ends: %s", got)
				}
			}
			if lost > 0 {
				t.Errorf("%d queries were lost in a roll of the proxy", lost)
			}
		}
		lost, wait = 0, 5*time.Second
		w.must(w.Kernel.Unhook(w.ctx, client.Handle()))
		deleted, err := conntrack.Kernel{}.ForgetNames(client.Handle(), false)
		w.must(err)
		if deleted == 0 {
			t.Error("no entry was deleted")
		}
		w.must(n.Agent.Delete(w.ctx, client.UID))
		if got := ask(); got != own {
			t.Errorf("after un-enrolment: %s", got)
		}
		if lost > 1 {
			t.Errorf("%d queries were lost in un-enrolment", lost)
		}
	})
}

func same(got, want string) error {
	if got != want {
		return fmt.Errorf("%q, want %q", got, want)
	}
	return nil
}
