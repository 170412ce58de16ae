package hbone

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// errAnswered is what the second answer to a request returns.
var errAnswered = errors.New("hbone: the request was already accepted or rejected")

// maxReason bounds, in bytes, what a refusal says.
const maxReason = 512

// Header is a header field of a response.
type Header struct{ Name, Value string }

// Incoming is a request to open a tunnel.
type Incoming struct {
	conn      *connState
	s         *h2.Stream
	header    []h2.Field
	authority string
	answered  atomic.Bool
	cancel    context.CancelFunc // of the handler's context
}

// Peer returns the identity that the client proved in the TLS handshake.
func (in *Incoming) Peer() identity.Identity { return in.conn.peer }

// PeerCertificates returns the client's certificates, leaf first. They must not be changed.
func (in *Incoming) PeerCertificates() []*x509.Certificate { return in.conn.certs }

// Authority returns what the client wants to reach: host:port or ip:port, syntactically valid (see ParseAuthority).
func (in *Incoming) Authority() string { return in.authority }

// Header returns the value of a request header (name in lower case), or "". Several fields of one name are joined by commas.
func (in *Incoming) Header(name string) string { return header(in.header, name) }

// LocalAddr is this side's address of the connection beneath; zero if that has no IP addresses.
func (in *Incoming) LocalAddr() netip.AddrPort { return in.conn.local }

// RemoteAddr is the client's address of the connection beneath; zero if that has no IP addresses.
func (in *Incoming) RemoteAddr() netip.AddrPort { return in.conn.remote }

// Accept answers 200, with extra headers, and returns the stream, which the caller must close (Relay does).
func (in *Incoming) Accept(extra ...Header) (*Stream, error) {
	if in.answered.Swap(true) {
		return nil, errAnswered
	}
	in.s.OnReset(nil)
	fields := make([]h2.Field, 0, 1+len(extra))
	fields = append(fields, h2.Field{Name: ":status", Value: "200"})
	for _, h := range extra {
		fields = append(fields, h2.Field{Name: h.Name, Value: h.Value})
	}
	if err := in.s.WriteHeaders(fields, false); err != nil {
		in.s.Close()
		return nil, err
	}
	return &Stream{s: in.s, header: in.header, certs: in.conn.certs, release: in.cancel}, nil
}

// Reject answers another status (400 to 599) and ends the stream. The reason goes to the client in the header
// x-ambit-reason, so it must not hold secrets.
func (in *Incoming) Reject(status int, reason string) error {
	if in.answered.Swap(true) {
		return errAnswered
	}
	in.s.OnReset(nil)
	fields := []h2.Field{{Name: ":status", Value: strconv.Itoa(status)}}
	if reason != "" {
		fields = append(fields, h2.Field{Name: reasonHeader, Value: printable(reason), Sensitive: true})
	}
	err := in.s.WriteHeaders(fields, true)
	in.s.Close()
	return err
}

// printable makes a text fit for a header value.
func printable(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// handle serves one stream.
func (s *Server) handle(cs *connState, st *h2.Stream) {
	fields, err := st.Headers(context.Background())
	if err != nil {
		return
	}
	in := &Incoming{conn: cs, s: st, header: fields, cancel: func() {}}
	if method, _ := h2.Value(fields, ":method"); method != "CONNECT" {
		_ = in.Reject(400, "the method is not CONNECT")
		return
	}
	if _, extended := h2.Value(fields, ":protocol"); extended {
		_ = in.Reject(400, "extended CONNECT is not for tunnels")
		return
	}
	in.authority, _ = h2.Value(fields, ":authority")
	if _, err := ParseAuthority(in.authority); err != nil {
		_ = in.Reject(400, err.Error())
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	in.cancel = cancel
	st.OnReset(cancel)
	s.cfg.Handler(ctx, in)
	if !st.Detached() {
		defer cancel()
	}
	if !in.answered.Load() {
		s.cfg.Logger.Error("tunnel request was neither accepted nor rejected", "authority", in.authority, "peer", cs.peer)
		_ = in.Reject(500, "no answer")
	}
}
