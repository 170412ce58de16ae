package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/mesh/share"
)

// stuckSockets are those of a pod whose resolver cannot be reached for as long as it takes.
type stuckSockets struct {
	hostSockets
	dialed chan struct{}
}

func (s *stuckSockets) Dial(ctx context.Context, _ string, _ netip.AddrPort) (net.Conn, error) {
	select {
	case s.dialed <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// TestRoom: what comes while as many queries are worked on as may be is neither read nor given a goroutine. It waits in the
// socket, and is answered once there is room.
func TestRoom(t *testing.T) {
	s := &stuckSockets{dialed: make(chan struct{}, 1)}
	s.setOriginal(netip.MustParseAddrPort("192.0.2.1:53"))
	p := newProxy(t, s, Settings{})
	for range podQueries { // with the reader's own token that is all
		p.queries <- struct{}{}
	}
	conn, err := net.Dial("udp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn}
	ask := func(name string) uint16 {
		t.Helper()
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		return q.Id
	}
	read := func(patience time.Duration) (uint16, error) {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return 0, err
		}
		m, err := c.ReadMsg()
		if err != nil {
			return 0, err
		}
		return m.Id, nil
	}
	ask("www.example.org.")
	<-s.dialed // by the last token there was
	id := ask("web.shop.svc.cluster.local.")
	if _, err := read(quietLook); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered without room: %v", err)
	}
	<-p.queries
	if got, err := read(patience); got != id {
		t.Errorf("once there was room: answer %d to query %d, %v", got, id, err)
	}
	for range podQueries - 1 {
		<-p.queries
	}
}

// TestShare: who asks is charged, by UDP and TCP, and more for what is sent on.
func TestShare(t *testing.T) {
	u := newUpstream(t, world)
	party := share.New(share.Config{}).Join()
	p := serve(t, mesh(t), Config{Namespace: "shop", Sockets: &hostSockets{original: u.addr}, Party: party,
		Source: func() (string, string) { return "", "" }})
	want := share.Work(0)
	for _, network := range []string{"udp", "tcp"} {
		p.ask(t, network, "web.shop.svc.cluster.local", dns.TypeA)
		p.ask(t, network, network+".example.org", dns.TypeA)
		if want += 2*workPerQuery + 2*workPerRecord + workPerForward; network == "tcp" {
			want += 2 * workPerConn
		}
		if got := party.Work(); got != want {
			t.Errorf("by %s: %v of work, want %v", network, got, want)
		}
	}
}

// TestShareOfLargeAnswers: a query for many endpoints costs as much as twenty others, and is charged so.
func TestShareOfLargeAnswers(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		party := share.New(share.Config{}).Join()
		p := serve(t, many{n: 2 * maxEndpoints}, Config{Namespace: "shop", Sockets: &hostSockets{}, Party: party,
			Source: func() (string, string) { return "", "" }})
		if m := p.ask(t, network, "db.shop.svc.cluster.local", dns.TypeA); m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
			t.Errorf("by %s: %v", network, m)
		}
		if got, least := party.Work(), workPerQuery+maxEndpoints*workPerRecord; got < least {
			t.Errorf("by %s: %v of work, want %v at least", network, got, least)
		}
	}
}

// TestNoQuery: an answer and what is no message get no answer, so that nobody is made to ask each other for ever; what cannot
// be understood is refused.
func TestNoQuery(t *testing.T) {
	q := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	pack := func(m *dns.Msg) []byte {
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	two, update := q.Copy(), q.Copy()
	two.Question = append(two.Question, two.Question[0])
	update.Opcode = dns.OpcodeUpdate
	for _, tc := range []struct {
		name  string
		bytes []byte
		want  int // rcode; -1: no answer
	}{
		{"short", pack(q)[:11], -1},
		{"an answer", pack(new(dns.Msg).SetReply(q)), -1},
		{"two questions", pack(two), dns.RcodeFormatError},
		{"cut off", pack(q)[:20], dns.RcodeFormatError},
		{"an update", pack(update), dns.RcodeNotImplemented},
	} {
		asked, m := parse(tc.bytes)
		got := -1
		if m != nil {
			got = m.Rcode
		}
		if asked != nil || got != tc.want || m != nil && (m.Id != q.Id || !m.Response) {
			t.Errorf("%s: %v, %v; want rcode %d", tc.name, asked, m, tc.want)
		}
	}
	if asked, m := parse(pack(q)); asked == nil || m != nil {
		t.Errorf("a query: %v, %v", asked, m)
	}
}
