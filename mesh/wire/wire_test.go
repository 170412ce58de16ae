package wire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const patience = 20 * time.Second

// spy counts, splits or spoils what is written to a connection.
type spy struct {
	net.Conn
	mu     sync.Mutex
	writes int
	spoil  func([]byte)
	piece  int // write in pieces of this size; zero: as it comes
}

func (s *spy) Write(p []byte) (int, error) {
	s.mu.Lock()
	s.writes++
	spoil, piece := s.spoil, s.piece
	s.mu.Unlock()
	if spoil != nil {
		p = bytes.Clone(p)
		spoil(p)
	}
	if piece == 0 {
		return s.Conn.Write(p)
	}
	for n := 0; n < len(p); n += piece {
		if _, err := s.Conn.Write(p[n:min(len(p), n+piece)]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (s *spy) CloseWrite() error { return s.Conn.(*net.TCPConn).CloseWrite() }

func (s *spy) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

// certificate is self-signed.
func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pair returns the two ends of a connection, and the spy on what the client writes.
func pair(t testing.TB, piece int) (client, server *Conn, clientSide *spy) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = a.SetDeadline(time.Now().Add(patience))
	_ = b.SetDeadline(time.Now().Add(patience))
	clientSide = &spy{Conn: a, piece: piece}
	cert := certificate(t)
	var wg sync.WaitGroup
	var serr error
	wg.Go(func() {
		server, serr = Server(t.Context(), b, func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}, nil
		})
	})
	client, err = Client(t.Context(), clientSide, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		err = client.Flush()
	}
	wg.Wait()
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []*Conn{client, server} {
			c.Abort()
			c.Release()
		}
	})
	return client, server, clientSide
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16*29)
	}
	return b
}

// send writes and flushes.
func send(t testing.TB, c *Conn, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := c.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

func receive(t testing.TB, c *Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, or wrong ones: %v", n, len(want), err)
	}
}

func TestManyRecordsInOneWrite(t *testing.T) {
	client, server, side := pair(t, 0)
	before := side.count()
	data := pattern(15 * maxRecordPayload)
	send(t, client, data)
	receive(t, server, data)
	if n := side.count() - before; n != 1 {
		t.Errorf("%d bytes went out in %d writes, want 1", len(data), n)
	}
	before = side.count()
	for range 100 {
		if _, err := client.Write(data[:10]); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Flush(); err != nil {
		t.Fatal(err)
	}
	receive(t, server, bytes.Repeat(data[:10], 100))
	if n := side.count() - before; n != 1 {
		t.Errorf("100 small writes went out in %d writes, want 1", n)
	}
}

func TestLargeWritesDoNotPileUp(t *testing.T) {
	client, server, side := pair(t, 0)
	before, lent := side.count(), buffer.InUse()
	data := pattern(3 << 20)
	go func() {
		_, _ = client.Write(data)
		if n := buffer.InUse() - lent; n > 3*buffer.Large {
			t.Errorf("%d bytes of buffers in a write of %d", n, len(data))
		}
		_ = client.Flush()
	}()
	receive(t, server, data)
	if n := side.count() - before; n < 10 || n > 20 {
		t.Errorf("%d writes", n)
	}
}

// The last flight of the handshake waits for the first data, so that both go out together.
func TestHandshakeIsSentWithTheFirstData(t *testing.T) {
	a, b := net.Pipe()
	side := &spy{Conn: a}
	cert := certificate(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		server, err := Server(t.Context(), b, func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}, nil
		})
		if err != nil {
			t.Errorf("server: %v", err)
			return
		}
		receive(t, server, []byte("hello"))
		server.Abort()
		server.Release()
	})
	client, err := Client(t.Context(), side, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := side.count(); n != 1 {
		t.Errorf("%d writes in the handshake, want the ClientHello alone", n)
	}
	send(t, client, []byte("hello"))
	if n := side.count(); n != 2 {
		t.Errorf("%d writes with the first data, want 2", n)
	}
	wg.Wait()
	client.Abort()
	client.Release()
}

func TestBuffered(t *testing.T) {
	client, server, _ := pair(t, 0)
	if n := server.Buffered(); n != 0 {
		t.Errorf("%d bytes buffered before anything came", n)
	}
	send(t, client, pattern(maxRecordPayload+100))
	if err := server.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	if n := server.Buffered(); n < 100 {
		t.Errorf("%d bytes buffered", n)
	}
	// A read of less than the record leaves the rest, which must be known of.
	receive(t, server, pattern(100))
	if server.Buffered() == 0 {
		t.Error("nothing buffered after a part of a record was read")
	}
	if err := server.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	receive(t, server, pattern(maxRecordPayload + 100)[100:])
	// The last read was exactly filled, so one more may be needed to know. A larger one tells.
	send(t, client, []byte("x"))
	if n, err := server.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("read: %d, %v", n, err)
	}
	if n := server.Buffered(); n != 0 {
		t.Errorf("%d bytes buffered after everything was read", n)
	}
}

func TestNoBufferWhileIdle(t *testing.T) {
	client, server, _ := pair(t, 0)
	send(t, client, pattern(1<<20))
	receive(t, server, pattern(1<<20))
	waits := make(chan error)
	go func() { waits <- server.WaitReadable() }()
	deadline := time.Now().Add(patience)
	for buffer.InUse() != 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of buffers are lent while nothing comes", buffer.InUse())
		}
		<-time.After(time.Millisecond)
	}
	send(t, client, []byte("x"))
	if err := <-waits; err != nil {
		t.Errorf("wait: %v", err)
	}
}

func TestTrickle(t *testing.T) {
	client, server, _ := pair(t, 1)
	data := pattern(2 * maxRecordPayload)
	go func() {
		_, _ = client.Write(data)
		_ = client.Flush()
	}()
	if err := server.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	if n := server.Buffered(); n < maxRecordPayload {
		t.Errorf("%d bytes buffered, want a whole record", n)
	}
	receive(t, server, data)
}

func TestTamper(t *testing.T) {
	for name, spoil := range map[string]func([]byte){
		"payload":          func(p []byte) { p[recordHeader+1] ^= 1 },
		"tag":              func(p []byte) { p[len(p)-1] ^= 0x80 },
		"type":             func(p []byte) { p[0] = 99 },
		"length too large": func(p []byte) { p[3] = 0xff },
		"length too small": func(p []byte) { p[4]-- },
	} {
		t.Run(name, func(t *testing.T) {
			client, server, side := pair(t, 0)
			send(t, client, []byte("good"))
			receive(t, server, []byte("good"))
			side.mu.Lock()
			side.spoil = spoil
			side.mu.Unlock()
			send(t, client, []byte("spoilt"))
			_ = side.CloseWrite()
			if err := server.WaitReadable(); err == nil {
				n, err := server.Read(make([]byte, 100))
				if err == nil || n != 0 {
					t.Errorf("read: %d, %v", n, err)
				}
			}
			if n, err := server.Read(make([]byte, 100)); err == nil || n != 0 {
				t.Errorf("read again: %d, %v", n, err)
			}
		})
	}
}

func TestEnds(t *testing.T) {
	client, server, _ := pair(t, 0)
	send(t, client, []byte("bye"))
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	receive(t, server, []byte("bye"))
	if n, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after close_notify: %d, %v", n, err)
	}
	send(t, server, []byte("bye yourself"))
	receive(t, client, []byte("bye yourself"))
}

func TestAbort(t *testing.T) {
	client, server, _ := pair(t, 0)
	errs := make(chan error, 2)
	go func() { errs <- server.WaitReadable() }()
	go func() {
		for { // until the socket's buffers are full
			if _, err := server.Write(make([]byte, 1<<20)); err != nil {
				errs <- err
				return
			}
		}
	}()
	receive(t, client, make([]byte, 1<<20))
	server.Abort()
	for range 2 {
		if err := <-errs; err == nil {
			t.Error("no error after Abort")
		}
	}
}

func TestHandshakeEndsWithContext(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	go func() { _, _ = io.Copy(io.Discard, b) }()
	if _, err := Client(ctx, a, &tls.Config{InsecureSkipVerify: true}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("client: %v", err)
	}
	if n := buffer.InUse(); n != 0 {
		t.Errorf("%d bytes of buffers are still lent", n)
	}
}
