package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// maxHello bounds what a client says before the name of the server is known, in bytes: crypto/tls's bound of a ClientHello.
const maxHello = 64 << 10

var (
	errHelloRead    = errors.New("the ClientHello is read")
	errHelloTooLong = fmt.Errorf("it is longer than %d bytes", maxHello)
)

// caller is the client of a connection that is carried as it is: it waits for an answer to its CONNECT, or it was answered already
// since it had to speak first.
type caller struct {
	in    *hbone.Incoming
	s     *hbone.Stream // nil until the tunnel is there
	said  []byte        // what has been read of it
	speak bool          // it speaks TLS
}

// accept returns the client's end of its tunnel.
func (cl *caller) accept() (*hbone.Stream, error) {
	if cl.s != nil {
		return cl.s, nil
	}
	return cl.in.Accept()
}

// alerts are what clients of TLS are told where others get a status of HTTP (RFC 8446 section 6).
var alerts = map[int]byte{403: 49 /* access_denied */, 404: 112 /* unrecognized_name */, 503: 80 /* internal_error */}

// refuse tells the client that nothing becomes of its connection.
func (cl *caller) refuse(status int, reason string) {
	if cl.s == nil {
		_ = cl.in.Reject(status, reason)
		return
	}
	if !cl.speak {
		cl.s.Reset(h2.ConnectError)
		_ = cl.s.Close()
		return
	}
	const record, fatal = 21, 2 // of type alert
	_ = cl.s.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := cl.s.Write([]byte{record, 3, 3, 0, 2, fatal, alerts[status]}); err == nil {
		_ = cl.s.CloseWrite()
	}
	_ = cl.s.Close()
}

// byName carries a connection as the chain of the server says that its client asks for. What the client said until then, the server
// gets as it was.
func (c *connection) byName(ctx context.Context, in *hbone.Incoming) {
	start, names := time.Now(), c.chain.Names
	s, err := in.Accept()
	if err != nil {
		return // the client is gone
	}
	cl := &caller{in: in, s: s}
	c.asked, cl.said, err = serverName(s, names.Timeout)
	cl.speak = err == nil
	c.unnamed = c.asked == "" && !errors.Is(err, os.ErrDeadlineExceeded) // who said nothing yet may still ask for one
	chain := c.chain.For(c.asked)
	if chain == nil || chain.TCP == nil {
		c.unknown(start, cl, err)
		return
	}
	c.chain = chain
	c.tcp(ctx, cl)
}

// unknown refuses a connection that asks for no server that there is. The error is why it asks for none.
func (c *connection) unknown(start time.Time, cl *caller, err error) {
	flag := telemetry.RequestNoRoute
	reason := fmt.Errorf("no TLSRoute of the port is for the server %q", printable(c.asked))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		flag, reason = telemetry.RequestMalformed, fmt.Errorf("the client has not said in %v which server it asks for, by a ClientHello of TLS", c.chain.Names.Timeout)
	case err != nil && len(cl.said) == 0:
		flag, reason = telemetry.RequestClientGone, fmt.Errorf("the client is gone before it has said which server it asks for: %w", err)
	case err != nil:
		flag, reason = telemetry.RequestMalformed, fmt.Errorf("the client does not begin with a ClientHello of TLS, as the port's TLSRoutes need it: %w", err)
	case c.asked == "":
		reason = errors.New("the client's ClientHello names no server, and no TLSRoute of the port is for all")
	}
	c.proxy.counts.Refused.Add(1)
	c.proxy.cfg.Requests.Failed(telemetry.ConnectionLabels{Ends: c.ends(nil, nil), Flag: flag, MutualTLS: true})
	c.logTCP(start, nil, nil, nil, flag, reason)
	cl.refuse(404, reason.Error())
}

// serverName reads the beginning of a connection up to the name of the server that the client asks for (SNI), which may be "". It
// returns what it has read. An error is why there is no ClientHello; limit 0 is no limit.
func serverName(nc net.Conn, limit time.Duration) (name string, said []byte, err error) {
	if limit > 0 {
		_ = nc.SetReadDeadline(time.Now().Add(limit))
		defer func() { _ = nc.SetReadDeadline(time.Time{}) }()
	}
	r := &recorder{Conn: nc}
	err = tls.Server(r, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name = hello.ServerName
		return nil, errHelloRead
	}}).Handshake()
	if errors.Is(err, errHelloRead) {
		err = nil
	}
	return name, r.said, err
}

// recorder is a connection that keeps what is read, up to maxHello, and to which nothing is written: the client is to hear the server
// that it asks for.
type recorder struct {
	net.Conn
	said []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	room := maxHello - len(r.said)
	if room == 0 {
		return 0, errHelloTooLong
	}
	n, err := r.Conn.Read(p[:min(len(p), room)])
	r.said = append(r.said, p[:n]...)
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

// now returns the chain of the connection in a snapshot, nil if there is none any more.
func (c *connection) now(s *config.Snapshot) *config.Chain {
	return s.Chain(c.destination).For(c.asked)
}
