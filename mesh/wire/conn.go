package wire

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
)

// Conn is TLS over a connection. One goroutine may read, and another write, at a time; Abort may be called by anyone at any
// time. It implements h2.Transport.
type Conn struct {
	sock *socket
	tls  *tls.Conn
	more bool // of the reader: crypto/tls may hold decrypted bytes

	abort sync.Once
}

// Client does the client's side of a TLS handshake over nc, which Conn then owns. The end of ctx ends the handshake. On an
// error nc is closed. cfg is not changed.
func Client(ctx context.Context, nc net.Conn, cfg *tls.Config) (*Conn, error) {
	sock := newSocket(nc)
	return handshake(ctx, sock, tls.Client(sock, largeRecords(cfg)))
}

// Server does the server's side of a TLS handshake, with the configuration that choose returns for it: see Client.
func Server(ctx context.Context, nc net.Conn, choose func(*tls.ClientHelloInfo) (*tls.Config, error)) (*Conn, error) {
	sock := newSocket(nc)
	return handshake(ctx, sock, tls.Server(sock, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			cfg, err := choose(hello)
			if err != nil {
				return nil, err
			}
			return largeRecords(cfg), nil
		},
	}))
}

// largeRecords turns off the small records with which crypto/tls starts, for the sake of browsers that show half a page.
func largeRecords(cfg *tls.Config) *tls.Config {
	if cfg.DynamicRecordSizingDisabled {
		return cfg
	}
	cfg = cfg.Clone()
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

// handshake leaves the socket corked: the last flight of the handshake goes out with the first thing that is flushed, or
// before the next read that has to wait.
func handshake(ctx context.Context, sock *socket, conn *tls.Conn) (*Conn, error) {
	sock.cork(true)
	err := conn.HandshakeContext(ctx)
	if err != nil {
		// A peer is told by an alert, which crypto/tls has written.
		_ = sock.flush()
		_ = sock.Close()
		sock.drop()
		return nil, err
	}
	return &Conn{sock: sock, tls: conn}, nil
}

// ConnectionState returns what the handshake found out.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// Read is as in io.Reader. It blocks, holding no buffer of its own unless a part of a record has come. An end of the
// connection beneath without a close_notify alert is io.EOF too: what is carried must know itself whether that was the end.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.tls.Read(p)
	c.more = n == len(p)
	return n, err
}

// WaitReadable blocks until a record has come, or the connection has ended. While nothing comes it holds no buffer.
func (c *Conn) WaitReadable() error {
	if c.more {
		return nil
	}
	return c.sock.waitReadable()
}

// Buffered returns about how many bytes Read would return without waiting, over several calls. Zero means that it might
// wait.
func (c *Conn) Buffered() int {
	n := c.sock.buffered()
	if c.more {
		n++
	}
	return n
}

// Write takes p into records. They are sent by Flush, or when there are many.
func (c *Conn) Write(p []byte) (int, error) { return c.tls.Write(p) }

// Flush sends what was written.
func (c *Conn) Flush() error { return c.sock.flush() }

// CloseWrite sends a close_notify alert and ends the direction to the peer. Write must not be called any more.
func (c *Conn) CloseWrite() error {
	c.sock.cork(false)
	if err := c.tls.CloseWrite(); err != nil {
		return err
	}
	return c.sock.closeWrite()
}

// Abort closes the connection at once, with no word to the peer. Whoever is in Read, Write or Flush gets an error.
func (c *Conn) Abort() { c.abort.Do(func() { _ = c.sock.Close() }) }

// Release gives back the buffers. Nothing else may be under way or come after it; the connection must be aborted.
func (c *Conn) Release() { c.sock.drop() }

// LocalAddr returns the address of this side of the connection beneath.
func (c *Conn) LocalAddr() net.Addr { return c.sock.LocalAddr() }

// RemoteAddr returns the address of the peer of the connection beneath.
func (c *Conn) RemoteAddr() net.Addr { return c.sock.RemoteAddr() }

var _ io.ReadWriter = (*Conn)(nil)
