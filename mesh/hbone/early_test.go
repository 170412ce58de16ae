package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// earlyCase is a client that says something around the time at which its tunnel is opened.
type earlyCase struct {
	name   string
	said   []byte
	before bool // it is there before the request
	awaits bool // the server answers only once it has it
	reject int  // so many requests are refused, with what came with them
}

func earlyCases() []earlyCase {
	word, much := []byte("ambit"), bytes.Repeat([]byte("ambit"), 50_000)
	return []earlyCase{
		{name: "before the request", said: word, before: true, awaits: true},
		{name: "while the answer is awaited", said: word, awaits: true},
		{name: "after the answer", said: word},
		{name: "much before the request", said: much, before: true, awaits: true},
		{name: "much while the answer is awaited", said: much, awaits: true},
		{name: "refused once, before the request", said: word, before: true, awaits: true, reject: 1},
		{name: "refused twice, while the answer is awaited", said: word, awaits: true, reject: 2},
		{name: "much, refused once", said: much, before: true, awaits: true, reject: 1},
	}
}

// TestEarly wants that what the client says arrives once and whole, and where possible before the answer.
func TestEarly(t *testing.T) {
	for _, c := range earlyCases() {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c earlyCase) run(t *testing.T) {
	lent := buffer.InUse()
	parker := newParker(t)
	relayer := Relayer{Parker: parker}
	proxySide, server := tcpPair(t)
	ended := make(chan error, 2)
	var refused atomic.Int32
	asked := make(chan struct{}, 8)
	w := newWorld(t, func(_ context.Context, in *Incoming) {
		asked <- struct{}{}
		if c.awaits {
			_ = in.s.SetReadDeadline(time.Now().Add(patience))
			if err := in.s.WaitReadable(); err != nil {
				t.Errorf("nothing came with the request: %v", err)
			}
			_ = in.s.SetReadDeadline(time.Time{})
		}
		if int(refused.Add(1)) <= c.reject {
			_ = in.Reject(503, "")
			return
		}
		s, err := in.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		relayer.Start(context.Background(), proxySide, s, nil, func(err error) { ended <- err })
	}, nil)
	p := w.pool(nil)
	client, proxied := tcpPair(t)
	say := func() {
		if _, err := client.Write(c.said); err != nil {
			t.Errorf("the client writes: %v", err)
		}
		_ = client.CloseWrite()
	}
	var counters Counters
	budget := buffer.NewBudget(1 << 20)
	early := NewEarly(proxied, budget)
	switch {
	case c.before:
		say()
		awaitReadable(t, proxied)
	case c.awaits:
		go func() {
			<-asked // the request is on its way without anything
			say()
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r := request
	r.Early = early
	s, err := p.Open(ctx, w.target(), r)
	for range c.reject {
		var status *StatusError
		if !errors.As(err, &status) {
			t.Fatalf("open: %v, want a refusal", err)
		}
		s, err = p.Open(ctx, w.target(), r)
	}
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	relayer.Start(context.Background(), proxied, s, &counters, func(err error) { ended <- err })
	if !c.before && !c.awaits {
		say()
	}
	_ = server.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, c.said) {
		t.Errorf("the server got %d bytes, %v, want the %d that the client said", len(got), err, len(c.said))
	}
	_ = server.CloseWrite()
	for range 2 {
		if err := <-ended; err != nil {
			t.Errorf("a relay ended: %v", err)
		}
	}
	if n := counters.Sent.Load(); n != uint64(len(c.said)) {
		t.Errorf("counted %d bytes, want %d", n, len(c.said))
	}
	_ = p.Close()
	await(t, "all buffers are given back", func() bool { return buffer.InUse() <= lent })
}

// awaitReadable waits until something can be read from a connection, and leaves it there.
func awaitReadable(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	err = raw.Read(func(fd uintptr) bool {
		n, _, _ := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return n > 0
	})
	_ = c.SetReadDeadline(time.Time{})
	if err != nil {
		t.Fatalf("nothing came: %v", err)
	}
}

// TestEarlyStop wants what was said back, and the connection with the rest.
func TestEarlyStop(t *testing.T) {
	for _, before := range []bool{true, false} {
		w := newWorld(t, func(_ context.Context, in *Incoming) { _ = in.Reject(503, "") }, nil)
		p := w.pool(nil)
		client, proxied := tcpPair(t)
		say := func(word string) {
			if _, err := io.WriteString(client, word); err != nil {
				t.Fatal(err)
			}
		}
		if before {
			say("am")
			awaitReadable(t, proxied)
		}
		r := request
		r.Early = NewEarly(proxied, nil)
		if _, err := p.Open(context.Background(), w.target(), r); err == nil {
			t.Fatal("the tunnel was opened")
		}
		said, err := r.Early.Stop()
		if want := map[bool]string{true: "am", false: ""}[before]; string(said) != want || err != nil {
			t.Errorf("Stop = %q, %v, want %q", said, err, want)
		}
		say("bit")
		_ = client.CloseWrite()
		_ = proxied.SetDeadline(time.Now().Add(patience))
		if rest, err := io.ReadAll(proxied); string(rest) != "bit" || err != nil {
			t.Errorf("the rest is %q, %v", rest, err)
		}
		client.Close()
		proxied.Close()
	}
}
