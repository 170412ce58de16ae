package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// port is where resolvers listen.
	port = 53
	// forwardTimeout bounds a query that is sent on, all attempts together; resolvers of programs give up after 5 s.
	forwardTimeout = 4500 * time.Millisecond
	// attemptTimeout is how long one server is waited for before the next attempt, and rounds how often each is tried.
	attemptTimeout = 1500 * time.Millisecond
	rounds         = 2
)

// errNoServer is why a query cannot be sent on.
var errNoServer = errors.New("no resolver of the pod is known")

// Sockets makes sockets in the pod's network namespace, whose packets are not captured.
type Sockets interface {
	// Dial connects to a resolver; network is "udp" or "tcp".
	Dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error)
	// Original returns where a query was sent before it was redirected, and whether that is known.
	Original(network string, client, local netip.AddrPort) (netip.AddrPort, bool)
}

// forward asks servers in turn until one answers. The answer has the query's own ID.
func forward(ctx context.Context, s Sockets, q *dns.Msg, servers []netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	err := errNoServer
	for range rounds {
		for _, server := range servers {
			if ctx.Err() != nil {
				return nil, err
			}
			var m *dns.Msg
			if m, err = ask(ctx, s, q, server); err == nil {
				return m, nil
			}
		}
	}
	return nil, err
}

// ask asks one server by UDP, and by TCP if the answer does not fit.
func ask(ctx context.Context, s Sockets, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	out := q.Copy()
	out.Id = dns.Id()
	if opt := out.IsEdns0(); opt != nil && opt.UDPSize() > maxUDP {
		opt.SetUDPSize(maxUDP) // more is fragmented, and fragments are dropped by many
	}
	wire, err := out.Pack()
	if err != nil {
		return nil, fmt.Errorf("encode query: %w", err)
	}
	m, err := exchange(ctx, s, "udp", server, out, wire)
	if err == nil && m.Truncated {
		if whole, err := exchange(ctx, s, "tcp", server, out, wire); err == nil {
			m = whole
		} // else the program may try TCP itself
	}
	if err != nil {
		return nil, fmt.Errorf("ask resolver %s: %w", server, err)
	}
	m.Id = q.Id
	return m, nil
}

func exchange(ctx context.Context, s Sockets, network string, server netip.AddrPort, q *dns.Msg, wire []byte) (*dns.Msg, error) {
	conn, err := s.Dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if network == "tcp" {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := conn.Write(wire); err != nil {
		return nil, err
	}
	var buf []byte
	if network == "udp" {
		buf = make([]byte, maxUDP)
	}
	for {
		answer, err := readMessage(conn, network, buf)
		if err != nil {
			return nil, err
		}
		var m dns.Msg
		if err := m.Unpack(answer); (err == nil || m.Truncated) && belongs(&m, q) {
			return &m, nil
		}
		if network == "tcp" {
			return nil, errors.New("the answer belongs to another query, or is malformed")
		}
		// Somebody guesses, or it is late: the real one may still come.
	}
}

// readMessage reads one message, into buf if that is large enough.
func readMessage(conn net.Conn, network string, buf []byte) ([]byte, error) {
	if network == "udp" {
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf = make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(conn, buf)
	return buf, err
}

// belongs tells whether m answers q.
func belongs(m, q *dns.Msg) bool {
	if !m.Response || m.Id != q.Id || len(m.Question) > 1 {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess // as servers answer that do not understand
	}
	return strings.EqualFold(m.Question[0].Name, q.Question[0].Name) && m.Question[0].Qtype == q.Question[0].Qtype &&
		m.Question[0].Qclass == q.Question[0].Qclass
}
