package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"
)

// readers are two processes' ends of one UDP socket, and a program that sends to it.
func readers(t *testing.T, ctx context.Context) (older, newer *queries, send func(string)) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	older = &queries{UDPConn: pc.(*net.UDPConn), ctx: ctx}
	t.Cleanup(func() { older.Close() })
	file, err := older.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dup, err := net.FilePacketConn(file)
	if err != nil {
		t.Fatal(err)
	}
	newer = &queries{UDPConn: dup.(*net.UDPConn), ctx: ctx}
	t.Cleanup(func() { newer.Close() })
	program, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return older, newer, func(s string) {
		t.Helper()
		if _, err := program.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
}

// read reads on as a server does, with a deadline before each read, until the socket ends.
func read(q *queries) <-chan string {
	got := make(chan string, 16)
	go func() { // ends with the socket
		defer close(got)
		b := make([]byte, 64)
		for {
			q.SetReadDeadline(time.Now().Add(time.Minute))
			n, _, err := q.ReadFrom(b)
			if err != nil {
				got <- fmt.Sprint(errors.Is(err, net.ErrClosed))
				return
			}
			got <- string(b[:n])
		}
	}()
	return got
}

// awaitRead returns once a goroutine of read waits for the network.
func awaitRead(t *testing.T) {
	t.Helper()
	all := make([]byte, 1<<20)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		for _, g := range bytes.Split(all[:runtime.Stack(all, true)], []byte("\n\n")) {
			if bytes.Contains(g, []byte("[IO wait")) && bytes.Contains(g, []byte("proxy.read.func1")) {
				return
			}
		}
	}
	t.Fatal("nobody reads")
}

func want(t *testing.T, got <-chan string, text string) {
	t.Helper()
	select {
	case s := <-got:
		if s != text {
			t.Fatalf("got %q, want %q", s, text)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%q does not come", text)
	}
}

// TestPausedQueriesAreLeft: who is paused, in the midst of a read, leaves every query in the socket, and reads them when it
// goes on.
func TestPausedQueriesAreLeft(t *testing.T) {
	older, newer, send := readers(t, t.Context())
	got := read(older)
	send("before")
	want(t, got, "before")
	awaitRead(t)
	older.Pause()
	older.Pause()
	next := read(newer)
	awaitRead(t)
	for i := range 50 {
		text := fmt.Sprintf("query %d", i)
		send(text)
		want(t, next, text)
	}
	newer.Close()
	send("waits")
	older.Resume()
	want(t, got, "waits")
	older.end()
	want(t, got, "true")
}

// TestEndOfQueries: reading ends for good, whether the socket is paused or not, by end or by the context.
func TestEndOfQueries(t *testing.T) {
	for _, paused := range []bool{false, true} {
		for _, cut := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			q, _, _ := readers(t, ctx)
			got := read(q)
			if paused {
				q.Pause()
			}
			if cut && paused {
				cancel()
			} else {
				q.end()
			}
			want(t, got, "true")
			q.Resume()
			if _, _, err := q.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("paused %v, cut %v: %v after the end", paused, cut, err)
			}
			cancel()
		}
	}
}
