package wire

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// Conn is TLS over a connection. One goroutine may read, and another write, at a time; Abort may be called by anyone at any
// time. It implements h2.Transport.
type Conn struct {
	sock  *socket
	state tls.ConnectionState
	body  body

	abort sync.Once
}

// body is what goes on after the handshake: records of ours, or those of crypto/tls. Its methods are as Conn's.
type body interface {
	Read(p []byte) (int, error)
	waitReadable() error
	buffered() int
	Write(p []byte) (int, error)
	closeWrite() error
	// wipe is the last call.
	wipe()
}

// Client does the client's side of a TLS handshake over nc, which Conn then owns. The end of ctx ends the handshake. On an
// error nc is closed. cfg is not changed.
func Client(ctx context.Context, nc net.Conn, cfg *tls.Config) (*Conn, error) {
	sock, sec := newSocket(nc), new(secrets)
	cfg, own := tap(largeRecords(cfg), false, sec)
	if !own {
		sec = nil
	}
	return handshake(ctx, sock, tls.Client(sock, cfg), true, &sec)
}

// Server does the server's side of a TLS handshake, with the configuration that choose returns for it: see Client.
func Server(ctx context.Context, nc net.Conn, choose func(*tls.ClientHelloInfo) (*tls.Config, error)) (*Conn, error) {
	sock, sec := newSocket(nc), (*secrets)(nil)
	return handshake(ctx, sock, tls.Server(sock, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			cfg, err := choose(hello)
			if err != nil {
				return nil, err
			}
			s := new(secrets)
			cfg, own := tap(largeRecords(cfg), true, s)
			if own {
				sec = s
			}
			return cfg, nil
		},
	}), false, &sec)
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
// before the next read that has to wait. sec is set by then if crypto/tls tells the secrets.
func handshake(ctx context.Context, sock *socket, conn *tls.Conn, client bool, sec **secrets) (*Conn, error) {
	sock.cork(true)
	err := conn.HandshakeContext(ctx)
	c := &Conn{sock: sock}
	if err == nil {
		c.state = conn.ConnectionState()
		c.body, err = bodyOf(sock, conn, &c.state, client, *sec)
	}
	if *sec != nil {
		(*sec).wipe()
	}
	if err != nil {
		// A peer is told by an alert, which crypto/tls has written.
		_ = sock.flush()
		_ = sock.Close()
		sock.drop()
		return nil, err
	}
	sock.shaken()
	return c, nil
}

// bodyOf takes the connection over from crypto/tls, where that can be. It forgets crypto/tls's state then.
func bodyOf(sock *socket, conn *tls.Conn, state *tls.ConnectionState, client bool, sec *secrets) (body, error) {
	suite := suiteOf(state.CipherSuite)
	if sec == nil || sec.client == nil || sec.server == nil || suite == nil || state.Version != tls.VersionTLS13 || sock.left != 0 {
		return &library{tls: conn, sock: sock}, nil
	}
	return newRecords(sock, client, suite, sec)
}

// ConnectionState returns what the handshake found out.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.state }

// Read is as in io.Reader. It blocks, holding no buffer of its own unless a part of a record has come. An end of the
// connection beneath without a close_notify alert is io.EOF too: what is carried must know itself whether that was the end.
// What is behind the bytes read may be overwritten.
func (c *Conn) Read(p []byte) (int, error) { return c.body.Read(p) }

// WaitReadable blocks until a record has come, or the connection has ended. While nothing comes it holds no buffer.
func (c *Conn) WaitReadable() error { return c.body.waitReadable() }

// Buffered returns about how many bytes Read would return without waiting, over several calls. Zero means that it might
// wait. With room for so many Read copies nothing.
func (c *Conn) Buffered() int { return c.body.buffered() }

// Write takes p into records. They are sent by Flush, or when there are many. Until it returns p belongs to it, with the byte
// behind it if p has that capacity; both are then as before.
func (c *Conn) Write(p []byte) (int, error) { return c.body.Write(p) }

// Flush sends what was written.
func (c *Conn) Flush() error { return c.sock.flush() }

// CloseWrite sends a close_notify alert and ends the direction to the peer. Write must not be called any more.
func (c *Conn) CloseWrite() error {
	c.sock.cork(false)
	if err := c.body.closeWrite(); err != nil {
		return err
	}
	if err := c.sock.drain(); err != nil {
		return err
	}
	return c.sock.closeWrite()
}

// Abort closes the connection at once, with no word to the peer. Whoever is in Read, Write or Flush gets an error.
func (c *Conn) Abort() { c.abort.Do(func() { _ = c.sock.Close() }) }

// Release gives back the buffers and forgets the keys. Nothing else may be under way or come after it; the connection must be
// aborted.
func (c *Conn) Release() {
	c.body.wipe()
	c.sock.drop()
}

// LocalAddr returns the address of this side of the connection beneath.
func (c *Conn) LocalAddr() net.Addr { return c.sock.LocalAddr() }

// RemoteAddr returns the address of the peer of the connection beneath.
func (c *Conn) RemoteAddr() net.Addr { return c.sock.RemoteAddr() }

// library has crypto/tls go on with its records.
type library struct {
	tls  *tls.Conn
	sock *socket
	more bool // of the reader: crypto/tls may hold decrypted bytes
}

func (l *library) Read(p []byte) (int, error) {
	n, err := l.tls.Read(p)
	l.more = n == len(p)
	return n, err
}

func (l *library) waitReadable() error {
	if l.more {
		return nil
	}
	return l.sock.waitReadable()
}

func (l *library) buffered() int {
	n := l.sock.buffered()
	if l.more {
		n++
	}
	return n
}

func (l *library) Write(p []byte) (int, error) { return l.tls.Write(p) }

func (l *library) closeWrite() error { return l.tls.CloseWrite() }

func (l *library) wipe() {}
