package wire

import (
	"crypto/cipher"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// narrow makes the connection beneath take little.
func narrow(t *testing.T, conns ...*Conn) {
	t.Helper()
	for _, c := range conns {
		nc := c.sock.nc.(*net.TCPConn)
		if err := errors.Join(nc.SetReadBuffer(16<<10), nc.SetWriteBuffer(16<<10)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReaderDoesNotSendForTheWriter has one side read while it holds more than the connection takes. Were it the reader that
// sends it, two sides could wait for each other for ever.
func TestReaderDoesNotSendForTheWriter(t *testing.T) {
	client, server := between(t, tls.TLS_AES_128_GCM_SHA256)
	narrow(t, client, server)
	data := pattern(14 * maxRecordPayload)
	if _, err := client.Write(data); err != nil {
		t.Fatal(err)
	}
	send(t, server, []byte("x"))
	receive(t, client, []byte("x"))
	go func() { _ = client.Flush() }()
	receive(t, server, data)
}

// TestCloseWriteWaitsForWhoSends has another goroutine send when the direction ends: nothing of it may be lost.
func TestCloseWriteWaitsForWhoSends(t *testing.T) {
	client, server := between(t, tls.TLS_AES_128_GCM_SHA256)
	narrow(t, client, server)
	data := pattern(14 * maxRecordPayload)
	if _, err := client.Write(data); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := client.Flush(); err != nil {
			t.Errorf("flush: %v", err)
		}
	})
	sending := func() bool {
		client.sock.mu.Lock()
		defer client.sock.mu.Unlock()
		return client.sock.flushing && client.sock.out == nil
	}
	for end := time.Now().Add(patience); !sending(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody sends")
		}
	}
	wg.Go(func() {
		if err := client.CloseWrite(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	receive(t, server, data)
	if n, err := server.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	wg.Wait()
}

// TestNothingIsSealedWithoutKeys has the keys of a direction fail to be replaced.
func TestNothingIsSealedWithoutKeys(t *testing.T) {
	client, server := between(t, tls.TLS_AES_128_GCM_SHA256)
	r := own(t, client)
	broken := *r.out.suite
	broken.aead = func([]byte) (cipher.AEAD, error) { return nil, errors.New("no such cipher") }
	r.out.suite, r.maxSeq = &broken, 1
	send(t, client, []byte("x"))
	for range 2 {
		if n, err := client.Write([]byte("y")); n != 0 || err == nil || !strings.Contains(err.Error(), "no such cipher") {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	if err := client.CloseWrite(); err != nil {
		t.Errorf("close: %v", err)
	}
	receive(t, server, []byte("x"))
	if n, err := server.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
}
