package hbone

import (
	"errors"
	"net"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// Stream is an open tunnel. It is a net.Conn, with half-close and reset besides. One goroutine may read and another write
// at a time; all other methods may be called by anyone.
type Stream struct {
	s *h2.Stream
}

var _ net.Conn = (*Stream)(nil)

// Read returns io.EOF after the peer's clean end, and *h2.StreamError after its reset.
func (s *Stream) Read(p []byte) (int, error) { return 0, errors.ErrUnsupported }

// Write blocks while the peer's flow-control window is closed. It returns *h2.StreamError after the peer's reset.
func (s *Stream) Write(p []byte) (int, error) { return 0, errors.ErrUnsupported }

// CloseWrite tells the peer that no more will be written: its read returns io.EOF.
func (s *Stream) CloseWrite() error { return errors.ErrUnsupported }

// Reset ends the stream in both directions at once. With h2.ConnectError the peer's side sees a TCP reset.
func (s *Stream) Reset(code h2.ErrCode) {}

// Close ends the stream: silently if both directions have ended, else as Reset(h2.Cancel), which the peer takes as a clean
// end. It never blocks and returns nil.
func (s *Stream) Close() error { return nil }

// Header returns a header of the peer's response, or of its request at a server; "" if there is none.
func (s *Stream) Header(name string) string { return "" }

// LocalAddr and RemoteAddr are those of the connection beneath.
func (s *Stream) LocalAddr() net.Addr { return nil }

// RemoteAddr: see LocalAddr.
func (s *Stream) RemoteAddr() net.Addr { return nil }

// SetDeadline, SetReadDeadline and SetWriteDeadline are as in net.Conn.
func (s *Stream) SetDeadline(t time.Time) error { return errors.ErrUnsupported }

// SetReadDeadline: see SetDeadline.
func (s *Stream) SetReadDeadline(t time.Time) error { return errors.ErrUnsupported }

// SetWriteDeadline: see SetDeadline.
func (s *Stream) SetWriteDeadline(t time.Time) error { return errors.ErrUnsupported }
