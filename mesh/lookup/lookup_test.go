package lookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.MainWithSockets(m) }

// server is a DNS server on loopback, by UDP and TCP.
type server struct {
	addr  netip.AddrPort
	asked atomic.Int32

	mu      sync.Mutex // guards the fields below
	records map[string][]string
	rcode   int
	silent  bool
	hold    chan struct{} // if not nil, answers wait for it to be closed
	// cut truncates answers by UDP.
	cut bool
	// old is a server that does not understand EDNS.
	old bool
	// bend, if not nil, changes answers before they are sent.
	bend func(*dns.Msg)
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{records: map[string][]string{}}
	packets, streams := listenBoth(t)
	s.addr = packets.LocalAddr().(*net.UDPAddr).AddrPort()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // after both have been told
	for _, srv := range []*dns.Server{{PacketConn: packets, Handler: s}, {Listener: streams, Handler: s}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() {
			if err := srv.ActivateAndServe(); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
		<-started
		t.Cleanup(func() { srv.Shutdown() })
	}
	return s
}

// listenBoth finds a port that is free for UDP and TCP.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		streams, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, streams
		}
		packets.Close()
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

// set changes what the server does.
func (s *server) set(f func(*server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.asked.Add(1)
	s.mu.Lock()
	records, rcode, silent, hold, cut, bend := s.records[strings.ToLower(q.Question[0].Name)], s.rcode, s.silent, s.hold, s.cut, s.bend
	if s.old && q.IsEdns0() != nil {
		rcode, records = dns.RcodeFormatError, nil
	}
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if silent {
		return
	}
	m := new(dns.Msg)
	m.SetRcode(q, rcode)
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); cut && !tcp {
		m.Truncated = true
		_ = w.WriteMsg(m)
		return
	}
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err) // the test's own
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else if rr.Header().Rrtype == dns.TypeCNAME || rr.Header().Rrtype == q.Question[0].Qtype || rr.Header().Name != q.Question[0].Name {
			m.Answer = append(m.Answer, rr)
		}
	}
	if bend != nil {
		bend(m)
	}
	_ = w.WriteMsg(m)
}

// clock is a time that the test moves.
type clock struct{ atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.Load()) }
func (c *clock) advance(d time.Duration) { c.Add(int64(d)) }

func newResolver(t *testing.T, servers ...*server) (*Resolver, *clock) {
	t.Helper()
	r := New(Config{Servers: func() ([]netip.AddrPort, error) {
		var out []netip.AddrPort
		for _, s := range servers {
			out = append(out, s.addr)
		}
		return out, nil
	}})
	c := &clock{}
	c.Store(1e18)
	r.now = c.now
	t.Cleanup(func() { r.Close() })
	return r, c
}

func expect(t *testing.T, r *Resolver, host string, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got, err := r.Lookup(ctx, host)
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	var texts []string
	for _, a := range got {
		texts = append(texts, a.String())
	}
	if diff := cmp.Diff(want, texts, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", host, diff)
	}
}

func TestLookup(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) {
		s.records["a.example."] = []string{"a.example. 60 A 192.0.2.1", "a.example. 90 A 192.0.2.2", "a.example. 50 AAAA 2001:db8::1"}
	})
	s.set(func(s *server) {
		s.records["alias.example."] = []string{"alias.example. 60 CNAME x.example.", "y.example. 60 A 192.0.2.9", "x.example. 60 CNAME y.example.", "z.example. 60 A 192.0.2.10"}
	})
	s.set(func(s *server) {
		s.records["back.example."] = []string{"back.example. 60 A 127.0.0.1", "back.example. 60 AAAA ::", "back.example. 60 A 192.0.2.3"}
	})
	r, clock := newResolver(t, s)
	expect(t, r, "A.example", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	expect(t, r, "alias.example", "192.0.2.9")
	expect(t, r, "back.example", "192.0.2.3")

	s.set(func(s *server) { s.records["a.example."] = []string{"a.example. 60 A 192.0.2.7"} })
	asked := s.asked.Load()
	clock.advance(49 * time.Second)
	expect(t, r, "a.example", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	if n := s.asked.Load(); n != asked {
		t.Errorf("%d queries for an answer that holds", n-asked)
	}
	clock.advance(2 * time.Second)
	expectSoon(t, r, "a.example", "192.0.2.7")
}

// expectSoon is expect for a name of which an older answer is used while the new one is late.
func expectSoon(t *testing.T, r *Resolver, host, want string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		got, err := r.Lookup(t.Context(), host)
		if err == nil && len(got) == 1 && got[0].String() == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v, %v; want %s", got, err, want)
		}
	}
}

func TestTruncatedAnswerIsAskedForByTCP(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) { s.cut, s.records["a.example."] = true, []string{"a.example. 60 A 192.0.2.1"} })
	r, _ := newResolver(t, s)
	expect(t, r, "a.example", "192.0.2.1")
}

// A name without addresses is one for as long as the zone says, and no failure of the resolver passes for that.
func TestNotFound(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) {
		s.rcode, s.records["none.example."] = dns.RcodeNameError, []string{"example. 60 SOA ns.example. root.example. 1 2 3 4 5"}
	})
	r, clock := newResolver(t, s)
	for range 2 {
		if _, err := r.Lookup(t.Context(), "none.example"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "none.example") {
			t.Errorf("got %v", err)
		}
	}
	if n := s.asked.Load(); n != 2 { // A and AAAA, once
		t.Errorf("%d queries", n)
	}
	s.set(func(s *server) {
		s.rcode, s.records["none.example."] = dns.RcodeSuccess, []string{"none.example. 60 A 192.0.2.1"}
	})
	clock.advance(6 * time.Second)
	expect(t, r, "none.example", "192.0.2.1")

	s.set(func(s *server) { s.rcode = dns.RcodeServerFailure })
	if _, err := r.Lookup(t.Context(), "other.example"); err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("a resolver's failure: %v", err)
	}
}

// TestHalfAnswer: of a name whose addresses of one family could not be learnt, those of the other serve at once, and it is soon asked
// again, however long they hold: clients may have the other family only.
func TestHalfAnswer(t *testing.T) {
	s := newServer(t)
	half := func(m *dns.Msg) {
		if m.Question[0].Qtype == dns.TypeAAAA {
			m.Rcode, m.Answer = dns.RcodeServerFailure, nil
		}
	}
	s.set(func(s *server) {
		s.records["a.example."], s.bend = []string{"a.example. 3600 A 192.0.2.1", "a.example. 3600 AAAA 2001:db8::1"}, half
	})
	r, clock := newResolver(t, s)
	expect(t, r, "a.example", "192.0.2.1")
	s.set(func(s *server) { s.bend = nil })
	asked := s.asked.Load()
	clock.advance(retryAfter - time.Second)
	expect(t, r, "a.example", "192.0.2.1")
	if n := s.asked.Load(); n != asked {
		t.Errorf("asked again at once, %d times", n-asked)
	}
	clock.advance(2 * time.Second)
	for deadline := time.Now().Add(30 * time.Second); ; {
		got, err := r.Lookup(t.Context(), "a.example")
		if err == nil && len(got) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v, %v; want both families", got, err)
		}
	}
	clock.advance(5 * time.Minute) // that answer is whole, and holds
	asked = s.asked.Load()
	expect(t, r, "a.example", "192.0.2.1", "2001:db8::1")
	if n := s.asked.Load(); n != asked {
		t.Errorf("%d queries for an answer that holds", n-asked)
	}

	// What was known of the other family is used as long as any former answer.
	s.set(func(s *server) { s.bend, s.records["a.example."] = half, []string{"a.example. 3600 A 192.0.2.2"} })
	clock.advance(maxTTL)
	for deadline := time.Now().Add(30 * time.Second); ; {
		got, err := r.Lookup(t.Context(), "a.example")
		if err != nil || len(got) != 2 || time.Now().After(deadline) {
			t.Fatalf("%v, %v; want both families, with what was learnt", got, err)
		}
		if got[0].String() == "192.0.2.2" {
			break
		}
	}
	clock.advance(retryAfter)
	expect(t, r, "a.example", "192.0.2.2", "2001:db8::1")
	clock.advance(maxStale)
	expectSoon(t, r, "a.example", "192.0.2.2")
}

// While resolvers fail, the last answer is used, but not for ever.
func TestStaleAnswer(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) { s.records["a.example."] = []string{"a.example. 60 A 192.0.2.1"} })
	r, clock := newResolver(t, s)
	expect(t, r, "a.example", "192.0.2.1")
	s.set(func(s *server) { s.rcode = dns.RcodeServerFailure })
	clock.advance(maxStale)
	expect(t, r, "a.example", "192.0.2.1")
	clock.advance(2 * time.Minute)
	if _, err := r.Lookup(t.Context(), "a.example"); err == nil {
		t.Error("an answer is used long after it ran out")
	}
}

// TestStaleAnswerAtOnce: no connection waits for resolvers that do not answer while there is an answer of before. They are
// asked again, but not for each connection, and when they answer that holds.
func TestStaleAnswerAtOnce(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) { s.records["a.example."] = []string{"a.example. 60 A 192.0.2.1"} })
	r, clock := newResolver(t, s)
	var gate atomic.Pointer[chan struct{}] // queries wait for it to be closed, and fail
	var dialed atomic.Int32
	r.cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed.Add(1)
		if g := gate.Load(); g != nil {
			<-*g
			return nil, errors.New("no way to the resolver")
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	landed := func() {
		t.Helper()
		r.mu.Lock()
		f := r.flights["a.example"]
		r.mu.Unlock()
		if f != nil {
			<-f.done
		}
	}
	expect(t, r, "a.example", "192.0.2.1")
	s.set(func(s *server) { s.records["a.example."] = []string{"a.example. 60 A 192.0.2.2"} })
	clock.advance(61 * time.Second)
	for range 2 {
		before := dialed.Load()
		shut := make(chan struct{})
		gate.Store(&shut)
		for range 3 { // it would wait for ever for what is asked
			expect(t, r, "a.example", "192.0.2.1")
		}
		close(shut)
		landed()
		if n := dialed.Load(); n == before {
			t.Error("nobody was asked again")
		}
		asked := dialed.Load()
		clock.advance(retryAfter - time.Second)
		expect(t, r, "a.example", "192.0.2.1")
		if n := dialed.Load(); n != asked {
			t.Errorf("%d more attempts at once", n-asked)
		}
		clock.advance(time.Second)
	}
	gate.Store(nil)
	expectSoon(t, r, "a.example", "192.0.2.2")
}

// TestOldResolver: one that does not understand EDNS is asked without.
func TestOldResolver(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) { s.old, s.records["a.example."] = true, []string{"a.example. 60 A 192.0.2.1"} })
	r, _ := newResolver(t, s)
	expect(t, r, "a.example", "192.0.2.1")
	s.set(func(s *server) { s.rcode = dns.RcodeFormatError })
	if _, err := r.Lookup(t.Context(), "b.example"); err == nil || !strings.Contains(err.Error(), "FORMERR") {
		t.Errorf("of a resolver that understands nothing: %v", err)
	}
}

// TestBoundsOfAnswers: of many addresses some are kept, and aliases are followed neither far nor in circles.
func TestBoundsOfAnswers(t *testing.T) {
	r, _ := newResolver(t)
	message := func(records ...string) *dns.Msg {
		m := new(dns.Msg).SetQuestion("n0.example.", dns.TypeA)
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		return m
	}
	var many []string
	for i := range 2 * maxAddrs {
		many = append(many, fmt.Sprintf("n0.example. 60 A 192.0.2.%d", i+1))
	}
	if a, err := r.read(message(many...), dns.TypeA); err != nil || len(a.addrs) != maxAddrs {
		t.Errorf("of %d addresses %v, %v", len(many), a, err)
	}
	chain := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("n%d.example. 60 CNAME n%d.example.", i, i+1))
		}
		return append(out, fmt.Sprintf("n%d.example. 60 A 192.0.2.1", n))
	}
	if a, err := r.read(message(chain(maxAliases)...), dns.TypeA); err != nil || len(a.addrs) != 1 {
		t.Errorf("after %d aliases: %v, %v", maxAliases, a, err)
	}
	if a, err := r.read(message(chain(maxAliases+1)...), dns.TypeA); !errors.Is(err, errAliases) {
		t.Errorf("after more: %v, %v", a, err)
	}
	circle := message("n0.example. 60 CNAME n1.example.", "n1.example. 60 CNAME n0.example.", "n1.example. 60 A 192.0.2.1")
	if a, err := r.read(circle, dns.TypeA); !errors.Is(err, errAliases) {
		t.Errorf("in a circle: %v, %v", a, err)
	}
}

func TestNextResolver(t *testing.T) {
	broken, good := newServer(t), newServer(t)
	broken.set(func(s *server) { s.rcode = dns.RcodeRefused })
	good.set(func(s *server) { s.records["a.example."] = []string{"a.example. 60 A 192.0.2.1"} })
	r, _ := newResolver(t, broken, good)
	expect(t, r, "a.example", "192.0.2.1")
}

// What does not answer the question is no answer: an odd resolver, or somebody who guesses.
func TestAnswerToAnotherQuestion(t *testing.T) {
	for name, bend := range map[string]func(*dns.Msg){
		"no question":   func(m *dns.Msg) { m.Question = nil },
		"another name":  func(m *dns.Msg) { m.Question[0].Name = "b.example." },
		"another type":  func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT },
		"two questions": func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			odd, good := newServer(t), newServer(t)
			odd.set(func(s *server) {
				s.records["a.example."] = []string{"a.example. 60 A 203.0.113.1"}
				s.bend = bend
			})
			good.set(func(s *server) { s.records["a.example."] = []string{"a.example. 60 A 192.0.2.1"} })
			r, _ := newResolver(t, odd, good)
			expect(t, r, "a.example", "192.0.2.1")
		})
	}
}

// Connections that need the same name wait for one query; one that gives up does not take it from the others.
func TestOneQueryForMany(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) {
		s.hold, s.records["a.example."] = make(chan struct{}), []string{"a.example. 60 A 192.0.2.1"}
	})
	r, _ := newResolver(t, s)
	impatient, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() { _, err := r.Lookup(impatient, "a.example"); gaveUp <- err }()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { expect(t, r, "a.example", "192.0.2.1") })
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(s.hold)
	wg.Wait()
	if n := s.asked.Load(); n != 2 {
		t.Errorf("%d queries, want one of each family", n)
	}
}

func TestBounds(t *testing.T) {
	s := newServer(t)
	r, _ := newResolver(t, s)
	for i := range maxNames + 100 {
		r.remember(fmt.Sprint(i), &answer{until: r.now().Add(time.Minute)})
	}
	if n := r.names.Size(); n > maxNames {
		t.Errorf("%d names are remembered", n)
	}
	s.set(func(s *server) { s.silent = true })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer r.Close()
	for i := range maxFlights {
		if _, _, err := r.join(fmt.Sprint("h", i, ".example")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Lookup(ctx, "more.example"); !errors.Is(err, ErrBusy) {
		t.Errorf("beyond the bound: %v", err)
	}
	r.names.Store("old.example", &answer{addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, until: r.now().Add(-time.Minute)})
	expect(t, r, "old.example", "192.0.2.1")
}

func TestClose(t *testing.T) {
	s := newServer(t)
	s.set(func(s *server) { s.silent = true })
	r, _ := newResolver(t, s)
	failed := make(chan error)
	go func() { _, err := r.Lookup(t.Context(), "a.example"); failed <- err }()
	for s.asked.Load() == 0 {
		select {
		case err := <-failed:
			t.Fatalf("look-up ended: %v", err)
		default:
		}
	}
	r.Close()
	if err := <-failed; err == nil {
		t.Error("a look-up outlived its resolver")
	}
	if _, err := r.Lookup(t.Context(), "b.example"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
