package lookup

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// parrot is a connection to a resolver that says the same to every query, under the query's ID, as by TCP.
type parrot struct {
	net.Conn // nil: nothing else is called
	says     []byte
	left     []byte
}

func (p *parrot) Write(query []byte) (int, error) {
	says := append([]byte(nil), p.says...)
	if len(says) >= 2 {
		copy(says, query[2:4])
	}
	p.left = append(binary.BigEndian.AppendUint16(nil, uint16(len(says))), says...)
	return len(query), nil
}

func (p *parrot) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

func (*parrot) SetDeadline(time.Time) error      { return nil }
func (*parrot) SetReadDeadline(time.Time) error  { return nil }
func (*parrot) SetWriteDeadline(time.Time) error { return nil }
func (*parrot) Close() error                     { return nil }

// FuzzAnswer: whatever a resolver says, what is kept of it are addresses of other hosts, not too many and not for too long.
func FuzzAnswer(f *testing.F) {
	const host = "www.example.org"
	for _, records := range [][]string{
		{}, {"www.example.org. 60 A 192.0.2.1", "www.example.org. 60 A 127.0.0.1", "www.example.org. 0 A 0.0.0.0"},
		{"www.example.org. 60 CNAME a.example.org.", "a.example.org. 0 CNAME www.example.org."},
		{"www.example.org. 60 CNAME a.example.org.", "a.example.org. 4294967295 A 192.0.2.2"},
	} {
		m := new(dns.Msg).SetQuestion(dns.Fqdn(host), dns.TypeA)
		m.Response = true
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		for _, rcode := range []int{dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeFormatError} {
			m.Rcode = rcode
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, says []byte) {
		r := New(Config{
			Servers: func() ([]netip.AddrPort, error) {
				return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}, nil
			},
			Dial: func(context.Context, string, string) (net.Conn, error) { return &parrot{says: says}, nil },
		})
		defer r.Close()
		begin := r.now()
		a, err := r.askAny(t.Context(), []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}, host, dns.TypeA)
		if err != nil {
			return
		}
		if len(a.addrs) > maxAddrs || a.until.Before(begin.Add(minTTL)) || a.until.After(r.now().Add(maxTTL)) {
			t.Fatalf("%d addresses for %v", len(a.addrs), a.until.Sub(begin))
		}
		for _, addr := range a.addrs {
			if !isHost(addr) || addr.Is4In6() {
				t.Fatalf("address %v", addr)
			}
		}
	})
}
