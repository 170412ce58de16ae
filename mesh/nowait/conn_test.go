package nowait

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// ends returns a connection and its peer, on loopback.
func ends(t *testing.T) (*Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(nc.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = peer.Close()
	})
	return c, peer.(*net.TCPConn)
}

func TestConnReads(t *testing.T) {
	c, peer := ends(t)
	send := func(s string) {
		if _, err := io.WriteString(peer, s); err != nil {
			t.Error(err)
		}
	}
	send("some")
	p := make([]byte, 10)
	if n, err := c.Read(p); string(p[:n]) != "some" || err != nil {
		t.Fatalf("Read: %q, %v", p[:n], err)
	}
	before := buffer.InUse()
	held := make(chan int64, 1)
	time.AfterFunc(50*time.Millisecond, func() {
		held <- buffer.InUse() - before
		send("more")
	})
	b, n, err := c.ReadLent(buffer.Tiny)
	if string(b[:n]) != "more" || len(b) != buffer.Tiny || err != nil {
		t.Fatalf("ReadLent: %q, %v", b[:n], err)
	}
	if got := <-held; got != 0 {
		t.Errorf("while nothing came %d bytes of buffers were held", got)
	}
	buffer.Put(b)
	_ = peer.CloseWrite()
	for range 2 {
		if b, n, err := c.ReadLent(buffer.Tiny); b != nil || n != 0 || err != io.EOF {
			t.Errorf("ReadLent at the end: %d bytes, %v", n, err)
		}
	}
	if n, err := c.Read(p); n != 0 || err != io.EOF {
		t.Errorf("Read at the end: %d bytes, %v", n, err)
	}
	if got := buffer.InUse() - before; got != 0 {
		t.Errorf("%d bytes of buffers are held in the end", got)
	}
}

func TestConnDeadline(t *testing.T) {
	c, _ := ends(t)
	time.AfterFunc(20*time.Millisecond, func() { _ = c.SetReadDeadline(time.Now()) })
	b, n, err := c.ReadLent(buffer.Tiny)
	var op *net.OpError
	if b != nil || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &op) || op.Op != "read" || !op.Timeout() {
		t.Errorf("ReadLent: %d bytes, %v", n, err)
	}
	_ = c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read of a closed connection: %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write to a closed connection: %v", err)
	}
}

// TestConnWritesAll writes more than sockets hold.
func TestConnWritesAll(t *testing.T) {
	c, peer := ends(t)
	want := bytes.Repeat([]byte("ambit"), 4<<20)
	wrote := make(chan error, 1)
	go func() {
		n, err := c.Write(want)
		if err == nil && n != len(want) {
			err = io.ErrShortWrite
		}
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came of %d: %v", len(got), len(want), err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

// TestConnReset: what the peer does to a connection is told as package net tells it.
func TestConnReset(t *testing.T) {
	c, peer := ends(t)
	_ = peer.SetLinger(0)
	_ = peer.Close()
	_, err := c.Read(make([]byte, 1))
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Addr.String() != c.RemoteAddr().String() {
		t.Errorf("Read after a reset: %v", err)
	}
	for err = nil; err == nil; {
		_, err = c.Write(make([]byte, 1))
	}
	if !errors.Is(err, syscall.EPIPE) || !errors.As(err, &op) || op.Op != "write" {
		t.Errorf("Write after a reset: %v", err)
	}
}
