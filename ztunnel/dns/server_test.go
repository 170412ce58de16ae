package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

const patience = 30 * time.Second

// upstream is a real DNS server on loopback, by UDP and TCP.
type upstream struct {
	addr    netip.AddrPort
	queries atomic.Int64
	tcp     atomic.Int64
}

// listen opens one port of loopback for UDP and TCP.
func listen(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err == nil {
			return pc, ln
		}
		ln.Close() // another program has this port for UDP
	}
	t.Fatal("no port is free for both")
	return nil, nil
}

func newUpstream(t *testing.T, handle func(network string, q *dns.Msg) *dns.Msg) *upstream {
	t.Helper()
	u := &upstream{}
	pc, ln := listen(t)
	u.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	handler := func(network string) dns.Handler {
		return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			u.queries.Add(1)
			if network == "tcp" {
				u.tcp.Add(1)
			}
			if m := handle(network, q); m != nil {
				w.WriteMsg(m)
			}
		})
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler("udp")}, {Listener: ln, Handler: handler("tcp")}} {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return u
}

// hostSockets are those of the test's own namespace, before an upstream.
type hostSockets struct {
	mu       sync.Mutex
	original netip.AddrPort // zero: not known; guarded by mu
}

func (s *hostSockets) setOriginal(addr netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.original = addr
}

func (s *hostSockets) Dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, server.String())
}

func (s *hostSockets) Original(string, netip.AddrPort, netip.AddrPort) (netip.AddrPort, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.original, s.original.IsValid()
}

// proxy is a Server and how to ask it.
type proxy struct {
	*Server
	addr     string
	registry *prometheus.Registry
	without  atomic.Int32 // the family that the pod has not; zero: it has both
}

func newProxy(t *testing.T, s Sockets, settings Settings) *proxy {
	t.Helper()
	return newProxyOf(t, mesh(t), s, settings)
}

// newProxyOf makes one of another mesh.
func newProxyOf(t *testing.T, d Directory, s Sockets, settings Settings) *proxy {
	t.Helper()
	return serve(t, d, Config{Namespace: "shop", Settings: settings, Sockets: s, Source: func() (string, string) { return "client", "v1" }})
}

func serve(t *testing.T, d Directory, c Config) *proxy {
	t.Helper()
	p := &proxy{registry: prometheus.NewRegistry()}
	n := NewNode(NodeConfig{Directory: d, ClusterID: "Kubernetes", ClusterDomain: "cluster.local",
		Metrics: telemetry.NewDNS(p.registry), Logger: slog.New(slog.DiscardHandler)})
	pc, ln := listen(t)
	p.addr = ln.Addr().String()
	if c.Families == nil {
		c.Families = func() (bool, bool) { return p.without.Load() != 4, p.without.Load() != 6 }
	}
	p.Server = n.Serve(c, []net.PacketConn{pc}, []net.Listener{ln})
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) ask(t *testing.T, network, name string, qtype uint16, change ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	for _, f := range change {
		f(q)
	}
	c := dns.Client{Net: network, Timeout: patience}
	m, _, err := c.Exchange(q, p.addr)
	if err != nil {
		t.Fatalf("%s %s by %s: %v", dns.TypeToString[qtype], name, network, err)
	}
	return m
}

// show writes an answer in short.
func show(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, fmt.Sprint(strings.TrimSuffix(rr.Header().Name, "."), " ", dns.TypeToString[rr.Header().Rrtype], " ",
			strings.TrimPrefix(rr.String(), rr.Header().String())))
	}
	slices.Sort(out)
	return strings.TrimSpace(dns.RcodeToString[m.Rcode] + " " + strings.Join(out, ", "))
}

// world answers one name of the world outside, and says that there are no others.
func world(_ string, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	if q.Question[0].Name == "www.example.org." && q.Question[0].Qtype == dns.TypeA {
		m.Answer = append(m.Answer, &dns.A{A: net.IPv4(192, 0, 2, 1), Hdr: dns.RR_Header{Name: "www.example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}})
		return m
	}
	m.Rcode = dns.RcodeNameError
	m.Ns = append(m.Ns, &dns.SOA{Hdr: dns.RR_Header{Name: "org.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 900}, Ns: "ns.", Mbox: "m.", Minttl: 900})
	return m
}

func TestServer(t *testing.T) {
	u := newUpstream(t, world)
	p := newProxy(t, &hostSockets{original: u.addr}, Settings{})
	for _, network := range []string{"udp", "tcp"} {
		for _, tc := range []struct {
			name  string
			qtype uint16
			want  string
		}{
			{"web.shop.svc.cluster.local", dns.TypeA, "NOERROR web.shop.svc.cluster.local A 10.96.0.1"},
			{"WEB.shop.svc.Cluster.local", dns.TypeA, "NOERROR WEB.shop.svc.Cluster.local A 10.96.0.1"},
			{"web.shop.svc.cluster.local", dns.TypeAAAA, "NOERROR web.shop.svc.cluster.local AAAA fd96::1"},
			{"api.example.com", dns.TypeA, "NOERROR api.example.com A 240.240.0.1"},
			{"api.example.com", dns.TypeAAAA, "NOERROR"},
			{"api.example.com", dns.TypeTXT, "NOERROR"}, // and not NXDOMAIN, as the world outside says
			{"api.example.com.shop.svc.cluster.local", dns.TypeA, "NOERROR api.example.com A 240.240.0.1, api.example.com.shop.svc.cluster.local CNAME api.example.com."},
			{"db-0.db.shop.svc.cluster.local", dns.TypeA, "NOERROR db-0.db.shop.svc.cluster.local A 10.0.0.10"},
			{"www.example.org", dns.TypeA, "NOERROR www.example.org A 192.0.2.1"},
			{"nothing.example.org", dns.TypeA, "NXDOMAIN"},
		} {
			if got := show(p.ask(t, network, tc.name, tc.qtype)); got != tc.want {
				t.Errorf("%s %s by %s:\n%s, want\n%s", dns.TypeToString[tc.qtype], tc.name, network, got, tc.want)
			}
		}
	}
	if n := testutil.CollectAndCount(p.registry, "istio_dns_requests_total"); n == 0 {
		t.Error("no istio_dns_requests_total")
	}
}

// TestSingleFamily: a pod gets no address that it cannot connect to, and still no "no such name" from others.
func TestSingleFamily(t *testing.T) {
	u := newUpstream(t, world)
	p := newProxy(t, &hostSockets{original: u.addr}, Settings{})
	const none = "NOERROR"
	for _, tc := range []struct {
		without int32
		name    string
		a, aaaa string
	}{
		{0, "web.shop.svc.cluster.local", "A 10.96.0.1", "AAAA fd96::1"},
		{6, "web.shop.svc.cluster.local", "A 10.96.0.1", ""},
		{4, "web.shop.svc.cluster.local", "", "AAAA fd96::1"},
		{4, "api.example.com", "", ""},
		{6, "api.example.com", "A 240.240.0.1", ""},
		{4, "db-0.db.shop.svc.cluster.local", "", ""},
	} {
		p.without.Store(tc.without)
		for qtype, want := range map[uint16]string{dns.TypeA: tc.a, dns.TypeAAAA: tc.aaaa} {
			if want != "" {
				want = " " + tc.name + " " + want
			}
			if got := show(p.ask(t, "udp", tc.name, qtype)); got != none+want {
				t.Errorf("a pod without IPv%d asks for %s %s: %s, want %s", tc.without, dns.TypeToString[qtype], tc.name, got, none+want)
			}
		}
	}
	if n := u.queries.Load(); n != 0 {
		t.Errorf("%d queries for names of the mesh were sent on", n)
	}
	p.without.Store(4)
	if got := show(p.ask(t, "udp", "www.example.org", dns.TypeA)); got != "NOERROR www.example.org A 192.0.2.1" {
		t.Errorf("what is not the mesh's: %s", got)
	}
}

// TestCache: an answer is used again while it lasts, also that there is nothing, and only for the server that gave it.
func TestCache(t *testing.T) {
	first, second := newUpstream(t, world), newUpstream(t, world)
	s := &hostSockets{original: first.addr}
	p := newProxy(t, s, Settings{})
	for range 3 {
		p.ask(t, "udp", "www.example.org", dns.TypeA)
		p.ask(t, "udp", "nothing.example.org", dns.TypeA)
	}
	if n := first.queries.Load(); n != 2 {
		t.Errorf("%d queries reached the resolver, want 2", n)
	}
	p.ask(t, "udp", "www.example.org", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, true) })
	if n := first.queries.Load(); n != 3 {
		t.Errorf("a query for signatures was answered from the cache: %d queries, want 3", n)
	}
	s.setOriginal(second.addr)
	p.ask(t, "udp", "www.example.org", dns.TypeA)
	if n := second.queries.Load(); n != 1 {
		t.Errorf("%d queries reached the second resolver, want 1", n)
	}
}

func TestCacheLifetime(t *testing.T) {
	q := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
	key, ok := keyOf(q, netip.AddrPort{})
	if !ok {
		t.Fatal("not kept")
	}
	var c cache
	now := time.Now()
	c.put(key, world("", q), now)
	m := c.get(key, now.Add(59*time.Second))
	if m == nil || m.Answer[0].Header().Ttl != 1 {
		t.Errorf("after 59 of 60 s: %v", m)
	}
	if m := c.get(key, now.Add(60*time.Second)); m != nil {
		t.Errorf("after 60 s: %v", m)
	}
	none := new(dns.Msg).SetQuestion("nothing.example.org.", dns.TypeA)
	key, _ = keyOf(none, netip.AddrPort{})
	c.put(key, world("", none), now)
	if c.get(key, now.Add(4*time.Second)) == nil || c.get(key, now.Add(5*time.Second)) != nil {
		t.Error("that there is nothing is not kept for 5 s")
	}
	for i := range 2 * maxCached {
		q := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
		key, _ := keyOf(q, netip.AddrPort{})
		key.name = fmt.Sprint(i)
		c.put(key, world("", q), now)
	}
	if len(c.entries) != maxCached || c.order.Len() != maxCached {
		t.Errorf("%d and %d entries, want %d", len(c.entries), c.order.Len(), maxCached)
	}
}

// TestTruncation: what does not fit into a datagram is fetched by TCP, and told to the program that it does not fit.
func TestTruncation(t *testing.T) {
	u := newUpstream(t, func(network string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		if network == "udp" {
			m.Truncated = true
			return m
		}
		for i := range 100 {
			m.Answer = append(m.Answer, &dns.A{A: net.IPv4(192, 0, 2, byte(i)), Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}})
		}
		return m
	})
	p := newProxy(t, &hostSockets{original: u.addr}, Settings{})
	m := p.ask(t, "udp", "big.example.org", dns.TypeA)
	if m.Compress = true; !m.Truncated || m.Len() > dns.MinMsgSize || m.IsEdns0() != nil {
		t.Errorf("by UDP: truncated %v, %d bytes, EDNS %v", m.Truncated, m.Len(), m.IsEdns0())
	}
	m = p.ask(t, "udp", "big.example.org", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(4096, false) })
	if m.Compress = true; !m.Truncated || m.Len() > maxUDP || len(m.Answer) < 30 || m.IsEdns0() == nil {
		t.Errorf("by UDP with EDNS: truncated %v, %d bytes, %d answers, EDNS %v", m.Truncated, m.Len(), len(m.Answer), m.IsEdns0())
	}
	if m = p.ask(t, "tcp", "big.example.org", dns.TypeA); m.Truncated || len(m.Answer) != 100 {
		t.Errorf("by TCP: truncated %v, %d answers", m.Truncated, len(m.Answer))
	}
	if u.tcp.Load() != 1 {
		t.Errorf("%d queries came by TCP, want 1: what it brought is remembered whole", u.tcp.Load())
	}
}

// TestUpstreams: a query goes where it was sent; if that is not known, to the pod's resolvers in order; an answer to another
// query is not believed; and with no resolver that answers there is SERVFAIL.
func TestUpstreams(t *testing.T) {
	good := newUpstream(t, world)
	liar := newUpstream(t, func(_ string, q *dns.Msg) *dns.Msg {
		m := world("", q)
		m.Id++
		return m
	})
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	silent.Close()
	p := newProxy(t, &hostSockets{}, Settings{Servers: []netip.AddrPort{closed, good.addr}, NDots: 1})
	if got := show(p.ask(t, "udp", "www.example.org", dns.TypeA)); got != "NOERROR www.example.org A 192.0.2.1" {
		t.Errorf("second resolver: %s", got)
	}
	p = newProxy(t, &hostSockets{original: closed}, Settings{Servers: []netip.AddrPort{good.addr}, NDots: 1})
	if got := show(p.ask(t, "udp", "www.example.org", dns.TypeA)); got != "SERVFAIL" {
		t.Errorf("sent to nobody: %s; it must not be asked elsewhere", got)
	}
	p = newProxy(t, &hostSockets{original: liar.addr}, Settings{})
	if got := show(p.ask(t, "udp", "www.example.org", dns.TypeA)); got != "SERVFAIL" {
		t.Errorf("a wrong answer is believed: %s", got)
	}
}

// TestBusy: queries beyond the bound are refused at once, and the mesh's own names are answered all the same.
func TestBusy(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(_ string, q *dns.Msg) *dns.Msg { <-release; return world("", q) })
	defer close(release)
	p := newProxy(t, &hostSockets{original: u.addr}, Settings{})
	for range podForwards {
		p.forwards <- struct{}{}
	}
	if got := show(p.ask(t, "udp", "www.example.org", dns.TypeA)); got != "SERVFAIL" || u.queries.Load() > 0 {
		t.Errorf("%s, and %d queries were sent on", got, u.queries.Load())
	}
	if got := show(p.ask(t, "udp", "web.shop.svc.cluster.local", dns.TypeA)); !strings.HasPrefix(got, "NOERROR web") {
		t.Error(got)
	}
	for range podForwards {
		<-p.forwards
	}
}

// TestLinger: the sockets stay while queries come.
func TestLinger(t *testing.T) {
	p := newProxy(t, &hostSockets{}, Settings{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan time.Time, 1)
	go func() { p.Linger(ctx, false); done <- time.Now() }()
	last, longest := time.Now(), time.Duration(0)
	for begin := last; time.Since(begin) < quietTime+quietTime/2; {
		longest, last = max(longest, time.Since(last)), time.Now()
		p.ask(t, "udp", "web.shop.svc.cluster.local", dns.TypeA)
	}
	// On a machine that stands still for a while there may be no query for so long.
	if quiet := (<-done).Sub(last); quiet < quietTime-quietLook && longest < quietTime/2 {
		t.Errorf("ended %v after the last query, want %v", quiet, quietTime)
	}
	if ctx.Err() != nil {
		t.Error("did not end by itself")
	}
}

func TestParseSettings(t *testing.T) {
	for text, want := range map[string]string{
		"": "[] [] 1",
		"nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5": "[10.96.0.10:53] [shop.svc.cluster.local svc.cluster.local cluster.local] 5",
		"# nameserver 1.1.1.1\nnameserver fd96::a\nnameserver nonsense\nsearch a\nsearch B.example.\n":          "[[fd96::a]:53] [b.example] 1",
		"options timeout:1 ndots:99":  "[] [] 15",
		"options ndots:-3\nsearch ..": "[] [] 0",
	} {
		s, err := ParseSettings(strings.NewReader(text))
		if got := fmt.Sprint(s.Servers, s.Search, s.NDots); err != nil || got != strings.ReplaceAll(want, "] [", "] [") {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
	if _, err := ParseSettings(failing{}); err == nil {
		t.Error("an error of the reader is lost")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("fails") }
