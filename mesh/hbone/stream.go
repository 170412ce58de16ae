package hbone

import (
	"context"
	"crypto/x509"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// Stream is an open tunnel. It is a net.Conn, with half-close and reset besides. One goroutine may read and another write
// at a time; all other methods may be called by anyone.
type Stream struct {
	s       *h2.Stream
	header  []h2.Field
	certs   []*x509.Certificate // the peer's
	release context.CancelFunc  // ends the context of the handler that accepted it; nil at a client
	early   *Early              // of the request; may be nil
}

var _ net.Conn = (*Stream)(nil)

// Read returns io.EOF after the peer's clean end, *h2.StreamError after its reset, and *h2.ConnError after the end of the
// connection.
func (s *Stream) Read(p []byte) (int, error) { return s.s.Read(p) }

// WaitReadable blocks until Read would not.
func (s *Stream) WaitReadable() error { return s.s.WaitReadable() }

// Readable tells whether Read would return at once.
func (s *Stream) Readable() bool { return s.s.Ready() }

// OnReadable has f called, once, when Read would not wait any more, whatever its deadline: at once if that is so. Nil takes it back. f is
// not called after Reset or Close, and must not block.
func (s *Stream) OnReadable(f func()) { s.s.OnReadable(f) }

// Write blocks while the peer's flow-control window is closed. It returns *h2.StreamError after the peer's reset, and
// *h2.ConnError after the end of the connection.
func (s *Stream) Write(p []byte) (int, error) { return s.s.Write(p) }

// CloseWrite tells the peer that no more will be written: its read returns io.EOF. It must not be called during a Write.
func (s *Stream) CloseWrite() error { return s.s.CloseWrite() }

// Reset ends the stream in both directions at once. With h2.ConnectError the peer's side sees a TCP reset.
func (s *Stream) Reset(code h2.ErrCode) { s.s.Reset(code) }

// Close ends the stream: silently if both directions have ended, else as Reset(h2.Cancel), which the peer takes as a clean
// end. It never blocks and returns nil.
func (s *Stream) Close() error {
	s.s.Close()
	return nil
}

// Leaving tells whether the tunnel's connection opens no more tunnels, since its peer is going, for example; what is open goes on.
func (s *Stream) Leaving() bool { return s.s.Leaving() }

// Header returns a header of the peer's response, or of its request at a server (name in lower case); "" if there is none.
func (s *Stream) Header(name string) string { return header(s.header, name) }

// PeerCertificates returns the certificates that the peer showed, leaf first. They must not be changed.
func (s *Stream) PeerCertificates() []*x509.Certificate { return s.certs }

// header joins the values of all fields of one name by commas (RFC 9110 section 5.3).
func header(fields []h2.Field, name string) string {
	value, n := "", 0
	for _, f := range fields {
		if f.Name != name {
			continue
		}
		if n++; n == 1 {
			value = f.Value
		} else {
			value = strings.Join([]string{value, f.Value}, ",")
		}
	}
	return value
}

// LocalAddr and RemoteAddr are those of the connection beneath.
func (s *Stream) LocalAddr() net.Addr { return s.s.LocalAddr() }

// RemoteAddr is the address of the peer of the connection beneath.
func (s *Stream) RemoteAddr() net.Addr { return s.s.RemoteAddr() }

// SetDeadline sets both deadlines, as in net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.s.SetReadDeadline(t)
	return s.s.SetWriteDeadline(t)
}

// SetReadDeadline is as in net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.s.SetReadDeadline(t) }

// SetWriteDeadline is as in net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }

// addrPort returns the address and port of a TCP address, without IPv4 in IPv6; zero for others.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
