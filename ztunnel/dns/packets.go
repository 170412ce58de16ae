package dns

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/mesh/share"
)

const (
	// podQueries bounds the queries of a pod that came by UDP and are being answered: some more than may wait for resolvers,
	// so that while all of those do the mesh's own names are answered. What is beyond waits in the socket, where the kernel
	// drops what does not fit.
	podQueries = podForwards + 64
	// headerSize is that of a message's header (RFC 1035, section 4.1.1).
	headerSize = 12
	// readPause is how long nothing is read after reading failed.
	readPause = 100 * time.Millisecond
)

// Estimates of work for share.Party: a query, each record of its answer (to find, write and fit it), sending one on, and taking a
// connection.
const (
	workPerQuery   share.Work = 25 * time.Microsecond
	workPerRecord  share.Work = time.Microsecond
	workPerForward share.Work = 150 * time.Microsecond
	workPerConn    share.Work = 50 * time.Microsecond
)

// servePackets answers what comes on a UDP socket until Close, and returns when all is answered. A query is read only when
// there is room for it, and not before the pod's turn has come.
func (s *Server) servePackets(c net.PacketConn) {
	var answering sync.WaitGroup
	defer func() {
		answering.Wait()
		c.Close()
	}()
	buf := make([]byte, maxUDP)
	for {
		select {
		case s.queries <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			<-s.queries
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				s.logger.Error("read queries of a pod", "error", err)
				s.pause()
			}
			continue
		}
		s.begin()
		q, refusal := parse(buf[:n])
		s.cfg.Party.Asks(workPerQuery)
		answering.Go(func() {
			defer func() { s.pending.Add(-1); <-s.queries }()
			m := refusal
			if q != nil {
				m = s.answer("udp", q, addrPort(from), addrPort(c.LocalAddr()))
				s.finish(m, q, "udp")
			}
			if m != nil {
				s.send(c, m, from)
			}
		})
	}
}

// pause waits for a moment, or until Close.
func (s *Server) pause() {
	t := time.NewTimer(readPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ctx.Done():
	}
}

func (s *Server) send(c net.PacketConn, m *dns.Msg, to net.Addr) {
	wire, err := m.Pack()
	if err == nil {
		_, err = c.WriteTo(wire, to)
	}
	if err != nil && s.ctx.Err() == nil {
		s.logger.Debug("answer a query", "error", err)
	}
}

// parse reads a query. Of what is none it makes the answer that says so; of an answer, and of what is no message, it makes
// nothing, as answering could be abused.
func parse(b []byte) (q, refusal *dns.Msg) {
	if len(b) < headerSize {
		return nil, nil
	}
	field := func(i int) uint16 { return binary.BigEndian.Uint16(b[2*i:]) }
	header := dns.Header{Id: field(0), Bits: field(1), Qdcount: field(2), Ancount: field(3), Nscount: field(4), Arcount: field(5)}
	refusal = &dns.Msg{MsgHdr: dns.MsgHdr{Id: header.Id, Response: true, Rcode: dns.RcodeFormatError}}
	switch dns.DefaultMsgAcceptFunc(header) {
	case dns.MsgIgnore:
		return nil, nil
	case dns.MsgRejectNotImplemented:
		refusal.Opcode, refusal.Rcode = int(header.Bits>>11&0xF), dns.RcodeNotImplemented
	case dns.MsgAccept:
		q = new(dns.Msg)
		if q.Unpack(b) == nil {
			return q, nil
		}
	}
	return nil, refusal
}
