package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequestAndResponse(t *testing.T) {
	request := append([]Field{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/x"}, {Name: ":authority", Value: "a"},
	}, Field{Name: "x-one", Value: "1"}, Field{Name: "x-two", Value: "2", Sensitive: true})
	response := []Field{{Name: ":status", Value: "200"}, {Name: "x-three", Value: "3"}}
	early := []Field{{Name: ":status", Value: "103"}, {Name: "link", Value: "l"}}
	requestTrailers := []Field{{Name: "x-four", Value: "4"}}
	responseTrailers := []Field{{Name: "grpc-status", Value: "0"}}

	type seen struct {
		header, trailers []Field
		body             string
	}
	got := make(chan seen, 1)
	client, _ := pair(t, Config{}, Config{}, func(s *Stream) {
		var g seen
		var err error
		if g.header, err = s.Headers(context.Background()); err != nil {
			t.Errorf("request header: %v", err)
		}
		if err := s.WriteHeaders(early, false); err != nil {
			t.Errorf("write early hints: %v", err)
		}
		body, err := io.ReadAll(s)
		if err != nil {
			t.Errorf("request body: %v", err)
		}
		g.body, g.trailers = string(body), s.Trailers()
		if err := s.WriteHeaders(response, false); err != nil {
			t.Errorf("write header: %v", err)
		}
		if _, err := io.WriteString(s, "pong"); err != nil {
			t.Errorf("write body: %v", err)
		}
		if err := s.WriteHeaders(responseTrailers, true); err != nil {
			t.Errorf("write trailers: %v", err)
		}
		got <- g
	})

	s := opened(t, client, request, false)
	if _, err := io.WriteString(s, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteHeaders(requestTrailers, true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, ErrWriteAfterEnd) {
		t.Errorf("write after the end: %v", err)
	}
	for _, want := range [][]Field{early, response} {
		fields, err := s.Headers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, fields); diff != "" {
			t.Errorf("response header (-want +got):\n%s", diff)
		}
	}
	body, err := io.ReadAll(s)
	if err != nil || string(body) != "pong" {
		t.Errorf("response body %q, %v", body, err)
	}
	if diff := cmp.Diff(responseTrailers, s.Trailers()); diff != "" {
		t.Errorf("response trailers (-want +got):\n%s", diff)
	}
	want := seen{header: request, trailers: requestTrailers, body: "ping"}
	if diff := cmp.Diff(want, <-got, cmp.AllowUnexported(seen{})); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	await(t, "the stream's place is free", func() bool { return client.Streams() == 0 })
}

func TestEchoManyStreams(t *testing.T) {
	client, server := pair(t, Config{}, Config{}, echo)
	data := pattern(3<<20 + 12345)
	await(t, "SETTINGS", func() bool {
		client.Flush()
		return client.SettingsSeen()
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			s, err := client.Open(connect, false)
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			wg.Go(func() {
				for p := data; len(p) > 0; {
					n := min(len(p), 1+len(p)/3)
					if _, err := s.Write(p[:n]); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					p = p[n:]
				}
				_ = s.CloseWrite()
			})
			if _, err := s.Headers(t.Context()); err != nil {
				t.Errorf("header: %v", err)
			}
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("echo of %d bytes: %d bytes, %v", len(data), len(got), err)
			}
		})
	}
	wg.Wait()
	client.Shutdown()
	if err := client.result(t); err != nil {
		t.Errorf("client after an orderly end: %v", err)
	}
	if err := server.result(t); err != nil {
		t.Errorf("server after an orderly end: %v", err)
	}
	noBuffers(t)
}

func TestOpenLimits(t *testing.T) {
	release := make(chan struct{})
	client, _ := pair(t, Config{MaxSendStreams: 3}, Config{MaxStreams: 2}, func(s *Stream) {
		<-release
		echo(s)
	})
	defer close(release)
	first, err := client.Open(connect, true)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "SETTINGS", client.SettingsSeen)
	if got := client.Available(); got != 1 {
		t.Errorf("available: %d, want 1 of 2", got)
	}
	if !client.Reserve() || client.Reserve() {
		t.Error("reserve: want one stream exactly")
	}
	if _, err := client.Open(connect, true); !errors.Is(err, ErrNoStreams) {
		t.Errorf("open beyond the peer's limit: %v", err)
	}
	client.Unreserve()
	second := opened(t, client, connect, true)
	first.Reset(Cancel)
	third := opened(t, client, connect, true)
	second.Reset(Cancel)
	third.Reset(Cancel)
	client.Shutdown()
	if _, err := client.Open(connect, true); !errors.Is(err, ErrDraining) && !errors.As(err, new(*ConnError)) {
		t.Errorf("open after Shutdown: %v", err)
	}
}

func TestResets(t *testing.T) {
	got := make(chan error, 1)
	client, _ := pair(t, Config{}, Config{}, func(s *Stream) {
		_ = s.WriteHeaders(ok200, false)
		_, _ = io.WriteString(s, "last words")
		_, err := io.ReadAll(s)
		got <- err
		if contains(err, "CONNECT") {
			return // Close: CANCEL, if the stream were still open
		}
		s.Reset(InternalError)
	})

	s := open(t, client, connect, false)
	s.Reset(ConnectError)
	if err := <-got; !isStreamError(err, StreamError{Code: ConnectError, Remote: true}) {
		t.Errorf("server read after the client's reset: %v", err)
	}
	if _, err := s.Write([]byte("x")); !isStreamError(err, StreamError{Code: ConnectError}) {
		t.Errorf("write after own reset: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); !isStreamError(err, StreamError{Code: ConnectError}) {
		t.Errorf("read after own reset: %v", err)
	}

	s = open(t, client, connect, false)
	_ = s.CloseWrite()
	if err := <-got; err != nil {
		t.Errorf("server read after the client's end: %v", err)
	}
	body, err := io.ReadAll(s)
	if string(body) != "last words" || !isStreamError(err, StreamError{Code: InternalError, Remote: true}) {
		t.Errorf("read after the server's reset: %q, %v", body, err)
	}
}

func TestHandlerReturnCloses(t *testing.T) {
	client, _ := pair(t, Config{}, Config{}, func(s *Stream) { _ = s.WriteHeaders(ok200, false) })
	s := open(t, client, connect, false)
	if _, err := io.ReadAll(s); !isStreamError(err, StreamError{Code: Cancel, Remote: true}) {
		t.Errorf("read: %v, want CANCEL", err)
	}
}

func TestConnectionLoss(t *testing.T) {
	client, server := pair(t, Config{}, Config{}, echo)
	s := open(t, client, connect, false)
	reset := make(chan struct{})
	s.OnReset(func() { close(reset) })
	server.Close()
	if _, err := io.ReadAll(s); !errors.As(err, new(*ConnError)) {
		t.Errorf("read after the connection was lost: %v", err)
	}
	<-reset
	if _, err := s.Write([]byte("x")); !errors.As(err, new(*ConnError)) {
		t.Errorf("write after the connection was lost: %v", err)
	}
	if err := client.result(t); !errors.As(err, new(*ConnError)) {
		t.Errorf("connection: %v", err)
	}
	if _, err := client.Open(connect, false); !errors.As(err, new(*ConnError)) {
		t.Errorf("open: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	client, _ := pair(t, Config{}, Config{StreamWindow: 64 << 10}, func(s *Stream) {
		_ = s.WriteHeaders(ok200, false)
		_ = s.WaitReadable()
		wait := make(chan struct{})
		s.OnReset(func() { close(wait) })
		<-wait
	})
	s := open(t, client, connect, false)
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("read: %v", err)
	}
	_ = s.SetReadDeadline(time.Time{})
	_ = s.SetWriteDeadline(time.Now().Add(2 * time.Second)) // enough to fill the window on a busy machine
	if n, err := s.Write(make([]byte, 1<<20)); !isTimeout(err) || n != 64<<10 {
		t.Errorf("write of 1 MiB into a window of 64 KiB: %d, %v", n, err)
	}
	if _, err := s.WaitWritable(); !isTimeout(err) {
		t.Errorf("wait for a window: %v", err)
	}
	_ = s.SetWriteDeadline(time.Now().Add(-time.Second))
	if _, err := s.Write([]byte("x")); !isTimeout(err) {
		t.Errorf("write after the deadline: %v", err)
	}
	s.Reset(Cancel)
}

func isTimeout(err error) bool {
	var ne interface{ Timeout() bool }
	return errors.As(err, &ne) && ne.Timeout()
}

func TestHeaderTimesOut(t *testing.T) {
	client, _ := pair(t, Config{}, Config{}, func(s *Stream) { _, _ = io.ReadAll(s) })
	s := opened(t, client, connect, false)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := s.Headers(ctx); !errors.Is(err, why) {
		t.Errorf("header with a cancelled context: %v", err)
	}
	_ = s.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := s.Headers(t.Context()); !isTimeout(err) {
		t.Errorf("header after the deadline: %v", err)
	}
	s.Close()
}
