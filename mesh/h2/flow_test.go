package h2

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

func TestStalledStreamsLeaveOthersAlone(t *testing.T) {
	const window = 256 << 10
	cfg := Config{StreamWindow: window, ConnWindow: 4 * window, MaxBuffered: 12 * window}
	release := make(chan struct{})
	var sums sync.Map
	client, server := pair(t, Config{}, cfg, func(s *Stream) {
		req, _ := s.Headers(t.Context())
		if _, stalls := Value(req, "x-stall"); !stalls {
			echo(s)
			return
		}
		_ = s.WriteHeaders(ok200, false)
		<-release
		got, err := io.ReadAll(s)
		if err != nil {
			t.Errorf("read after the stall: %v", err)
		}
		sums.Store(s.ID(), len(got))
		_ = s.CloseWrite()
	})
	stall := append(connect[:2:2], Field{Name: "x-stall", Value: "1"})

	// Eight streams fill their windows: together twice the connection's window, and less than what may be buffered.
	const size = window + 1000
	var writers sync.WaitGroup
	var stalled []*Stream
	for range 8 {
		s := open(t, client, stall, false)
		stalled = append(stalled, s)
		writers.Go(func() {
			if _, err := s.Write(pattern(size)); err != nil {
				t.Errorf("write: %v", err)
			}
			_ = s.CloseWrite()
		})
	}
	buffered := func() int64 {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.recv.buffered
	}
	await(t, "the stalled streams have filled their windows", func() bool { return buffered() == 8*window })

	s := open(t, client, connect, false)
	data := pattern(3 * window)
	writers.Go(func() {
		_, _ = s.Write(data)
		_ = s.CloseWrite()
	})
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
		t.Errorf("echo beside stalled streams: %d bytes, %v", len(got), err)
	}

	close(release)
	for _, s := range stalled {
		if _, err := io.ReadAll(s); err != nil {
			t.Errorf("stalled stream: %v", err)
		}
		if n, _ := sums.Load(s.ID()); n != size {
			t.Errorf("stalled stream brought %v bytes, want %d", n, size)
		}
	}
	writers.Wait()
	if n := buffered(); n != 0 {
		t.Errorf("%d bytes buffered after all was read", n)
	}
}

func TestBufferedIsBounded(t *testing.T) {
	const window = 256 << 10
	cfg := Config{StreamWindow: window, ConnWindow: 2 * window, MaxBuffered: 4 * window}
	client, server := pair(t, Config{}, cfg, func(s *Stream) {
		_ = s.WriteHeaders(ok200, false)
		gone := make(chan struct{})
		s.OnReset(func() { close(gone) })
		<-gone
	})
	var wg sync.WaitGroup
	var streams []*Stream
	for range 10 {
		s := open(t, client, connect, false)
		streams = append(streams, s)
		wg.Go(func() { _, _ = s.Write(make([]byte, window)) })
	}
	await(t, "writers are stopped by the connection's window", func() bool {
		client.mu.Lock()
		defer client.mu.Unlock()
		return client.send.window == 0 && len(client.send.windowq) > 0
	})
	server.mu.Lock()
	buffered := server.recv.buffered
	server.mu.Unlock()
	if buffered > 4*window {
		t.Errorf("%d bytes buffered, want at most %d", buffered, 4*window)
	}
	// What is not read any more makes room.
	for _, s := range streams {
		s.Reset(Cancel)
	}
	wg.Wait()
	await(t, "nothing is buffered", func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.recv.buffered == 0
	})
	client.Close()
	server.Close()
	noBuffers(t)
}

func TestSmallPiecesDoNotPinLargeBuffers(t *testing.T) {
	p, server := rawClient(t, Config{}, func(s *Stream) {
		_ = s.WriteHeaders(ok200, false)
		gone := make(chan struct{})
		s.OnReset(func() { close(gone) })
		<-gone
	})
	const n = 20_000
	p.headers(1, connect, false)
	for range n {
		p.must(p.WriteData(1, false, []byte("x")))
	}
	p.ping()
	if lent := buffer.InUse(); lent > 10*n {
		t.Errorf("%d bytes of buffers are lent for %d bytes of payload", lent, n)
	}
	p.must(p.WriteRSTStream(1, Cancel))
	p.ping()
	server.Close()
}

func TestHonoursFrameSize(t *testing.T) {
	for _, limit := range []uint32{16 << 10, 100_000, 1 << 20} {
		p, client := rawServer(t, Config{}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: limit},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		await(t, "SETTINGS", client.SettingsSeen)
		p.must(p.WriteWindowUpdate(0, 1<<30))
		s := opened(t, client, connect, false)
		data := pattern(3 << 20)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Write(data); err != nil {
				t.Errorf("write: %v", err)
			}
			_ = s.CloseWrite()
		})
		var got bytes.Buffer
		largest := 0
		until(p, "end", func(f *http2.DataFrame) bool {
			largest = max(largest, len(f.Data()))
			got.Write(f.Data())
			return f.StreamEnded()
		})
		wg.Wait()
		if !bytes.Equal(got.Bytes(), data) {
			t.Errorf("limit %d: %d bytes arrived wrong", limit, got.Len())
		}
		if largest > int(limit) {
			t.Errorf("limit %d: frame of %d", limit, largest)
		}
		if least := min(int(limit)*3/4, 250_000); largest < least {
			t.Errorf("limit %d: largest frame is %d, want at least %d", limit, largest, least)
		}
	}
}

func TestWindowsOfThePeer(t *testing.T) {
	p, client := rawServer(t, Config{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	await(t, "SETTINGS", client.SettingsSeen)
	s := opened(t, client, connect, false)
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := s.Write(pattern(100)); n != 100 || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
		_ = s.CloseWrite()
	})
	data := func(want int) {
		t.Helper()
		f := until[*http2.DataFrame](p, "DATA", nil)
		if len(f.Data()) != want {
			t.Errorf("%d bytes, want %d", len(f.Data()), want)
		}
	}
	data(10)
	p.must(p.WriteWindowUpdate(1, 5))
	data(5)
	// A smaller window takes back what was not used: the stream's becomes negative.
	p.must(p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	p.must(p.WriteWindowUpdate(1, 10))
	p.ping()
	p.must(p.WriteWindowUpdate(1, 7))
	data(7)
	p.must(p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
	data(78)
	wg.Wait()
}

func TestConnectionWindowIsShared(t *testing.T) {
	p, client := rawServer(t, Config{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	await(t, "SETTINGS", client.SettingsSeen)
	const each = 200 << 10
	var wg sync.WaitGroup
	for range 4 {
		s := opened(t, client, connect, false)
		wg.Go(func() {
			if _, err := s.Write(make([]byte, each)); err != nil {
				t.Errorf("write: %v", err)
			}
		})
	}
	got := map[uint32]int{}
	total, window := 0, initialWindow
	rounds := map[uint32]int{} // how many streams had something in a round of window
	for total < 4*each {
		f := until[*http2.DataFrame](p, "DATA", nil)
		got[f.StreamID] += len(f.Data())
		total += len(f.Data())
		window -= len(f.Data())
		rounds[f.StreamID]++
		if window < 0 {
			t.Fatalf("%d bytes more than the window", -window)
		}
		if window == 0 {
			await(t, "all streams that are left wait", func() bool {
				client.mu.Lock()
				defer client.mu.Unlock()
				return len(client.send.windowq) == left(got, each)
			})
			p.must(p.WriteWindowUpdate(0, 100<<10))
			window += 100 << 10
		}
	}
	wg.Wait()
	if len(rounds) != 4 {
		t.Errorf("%d streams sent, want 4", len(rounds))
	}
}

// left counts the streams that have not sent everything.
func left(got map[uint32]int, each int) int {
	n := 4
	for _, g := range got {
		if g == each {
			n--
		}
	}
	return n
}

func TestResetWhileWaitingForWindow(t *testing.T) {
	p, client := rawServer(t, Config{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	await(t, "SETTINGS", client.SettingsSeen)
	s := opened(t, client, connect, false)
	done := make(chan error, 1)
	go func() {
		_, err := s.Write([]byte("never"))
		done <- err
	}()
	p.must(p.WriteRSTStream(1, ConnectError))
	if err := <-done; !isStreamError(err, StreamError{Code: ConnectError, Remote: true}) {
		t.Errorf("write: %v", err)
	}
}

func TestGrantsAreCoalesced(t *testing.T) {
	p, _ := rawClient(t, Config{}, func(s *Stream) {
		_ = s.WriteHeaders(ok200, false)
		_, _ = io.Copy(io.Discard, s)
		_ = s.CloseWrite()
	})
	p.headers(1, connect, false)
	until(p, "SETTINGS", func(f *http2.SettingsFrame) bool { return !f.IsAck() })

	const total, chunk = 20 << 20, 32 << 10
	var mu sync.Mutex
	changed := sync.Cond{L: &mu}
	stream, conn := DefaultStreamWindow, initialWindow
	go func() {
		for sent := 0; sent < total; sent += chunk {
			mu.Lock()
			for stream < chunk || conn < chunk {
				changed.Wait()
			}
			stream -= chunk
			conn -= chunk
			mu.Unlock()
			if p.WriteData(1, sent+chunk == total, make([]byte, chunk)) != nil {
				return
			}
		}
	}()
	updates := 0
	until(p, "end", func(f http2.Frame) bool {
		if w, ok := f.(*http2.WindowUpdateFrame); ok {
			updates++
			mu.Lock()
			if w.StreamID == 1 {
				stream += int(w.Increment)
			} else {
				conn += int(w.Increment)
			}
			changed.Broadcast()
			mu.Unlock()
		}
		d, ok := f.(*http2.DataFrame)
		return ok && d.StreamEnded()
	})
	if updates > 20 {
		t.Errorf("%d WINDOW_UPDATE frames for %d bytes", updates, total)
	}
}

// pushed is a sink with a limited appetite.
type pushed struct {
	mu     sync.Mutex
	room   int
	got    bytes.Buffer
	behind chan struct{}
	end    chan error
}

func (p *pushed) TryWrite(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(b), p.room)
	p.room -= n
	p.got.Write(b[:n])
	return n, nil
}
func (p *pushed) Behind()       { p.behind <- struct{}{} }
func (p *pushed) End(err error) { p.end <- err }

func TestSink(t *testing.T) {
	client, server := pair(t, Config{}, Config{}, echo)
	s := open(t, client, connect, false)
	sink := &pushed{room: 1000, behind: make(chan struct{}, 1), end: make(chan error, 2)}
	if _, ok, err := s.Next(sink); ok || err != nil {
		t.Fatalf("next: %v, %v", ok, err)
	}
	data := pattern(300_000)
	if _, err := s.Write(data); err != nil {
		t.Fatal(err)
	}
	<-sink.behind
	// Now it is ours to pull, until the sink is put back.
	for sink.got.Len() < 200_000 {
		c, ok, err := s.Next(nil)
		if !ok || err != nil {
			t.Fatalf("next: %v, %v", ok, err)
		}
		sink.got.Write(c.Bytes())
		c.Release()
	}
	sink.room = 1 << 20
	for {
		c, ok, err := s.Next(sink)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		sink.mu.Lock()
		sink.got.Write(c.Bytes())
		sink.mu.Unlock()
		c.Release()
	}
	_ = s.CloseWrite()
	select {
	case err := <-sink.end:
		if err != io.EOF {
			t.Errorf("end: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("no end")
	}
	if !bytes.Equal(sink.got.Bytes(), data) {
		t.Errorf("%d of %d bytes arrived, or wrong", sink.got.Len(), len(data))
	}
	client.Close()
	server.Close()
	noBuffers(t)
}

func TestSinkIsToldOfReset(t *testing.T) {
	p, client := rawServer(t, Config{})
	s := opened(t, client, connect, false)
	sink := &pushed{room: 2, behind: make(chan struct{}, 1), end: make(chan error, 2)}
	_, _, _ = s.Next(sink)
	p.headers(1, ok200, false)
	p.must(p.WriteData(1, false, []byte("abcd")))
	<-sink.behind
	p.must(p.WriteRSTStream(1, ConnectError))
	want := StreamError{Code: ConnectError, Remote: true}
	if err := <-sink.end; !isStreamError(err, want) {
		t.Errorf("end: %v", err)
	}
	// What came before can still be pulled.
	c, ok, err := s.Next(sink)
	if !ok || err != nil || string(c.Bytes()) != "cd" {
		t.Fatalf("next: %q, %v, %v", c.Bytes(), ok, err)
	}
	c.Release()
	if _, _, err := s.Next(sink); !isStreamError(err, want) {
		t.Errorf("next at the end: %v", err)
	}
	s.Close()
	client.Close()
	noBuffers(t)
}

func TestSinkIsToldOfAResetAfterTheEnd(t *testing.T) {
	for _, first := range []bool{true, false} {
		p, client := rawServer(t, Config{})
		s := opened(t, client, connect, false)
		p.headers(1, ok200, false)
		p.must(p.WriteData(1, true, []byte("ab")))
		if first {
			p.must(p.WriteRSTStream(1, ConnectError))
		}
		p.ping()
		sink := &pushed{room: 2, behind: make(chan struct{}, 1), end: make(chan error, 2)}
		c, ok, err := s.Next(sink)
		if !ok || err != nil || string(c.Bytes()) != "ab" {
			t.Fatalf("next: %q, %v, %v", c.Bytes(), ok, err)
		}
		c.Release()
		want := StreamError{Code: ConnectError, Remote: true}
		if first {
			if _, _, err = s.Next(sink); !isStreamError(err, want) {
				t.Errorf("next: %v", err)
			}
			continue
		}
		if _, _, err = s.Next(sink); err != io.EOF {
			t.Errorf("next: %v", err)
		}
		p.must(p.WriteRSTStream(1, ConnectError))
		if err := <-sink.end; !isStreamError(err, want) {
			t.Errorf("end: %v", err)
		}
	}
}

// TestOnReadable: who waits for something to read is told of payload, of an end, of a reset, and of the connection's end; once, and at
// once if it is there.
func TestOnReadable(t *testing.T) {
	client, server := pair(t, Config{}, Config{}, func(s *Stream) {
		if s.WriteHeaders(ok200, false) != nil {
			return
		}
		p := make([]byte, 1)
		for {
			if _, err := s.Read(p); err != nil {
				return
			}
			switch p[0] {
			case 'e':
				_ = s.CloseWrite()
			case 'r':
				s.Reset(Cancel)
			default:
				_, _ = s.Write(p)
			}
		}
	})
	told := make(chan string, 10)
	watch := func(what string) (s *Stream) {
		s = open(t, client, connect, false)
		s.OnReadable(func() { told <- "not taken back" })
		s.OnReadable(nil)
		s.OnReadable(func() { told <- what })
		return s
	}
	want := func(what string) {
		t.Helper()
		select {
		case got := <-told:
			if got != what {
				t.Errorf("told of %q, want %q", got, what)
			}
		case <-time.After(patience):
			t.Errorf("not told of %s", what)
		}
	}
	write := func(s *Stream, p string) {
		if _, err := s.Write([]byte(p)); err != nil {
			t.Error(err)
		}
	}
	s := watch("payload")
	write(s, "xx")
	want("payload")
	s.OnReadable(func() { told <- "what is there" })
	want("what is there")
	if _, err := io.ReadFull(s, make([]byte, 2)); err != nil {
		t.Error(err)
	}
	s.OnReadable(func() { told <- "close" })
	s.Close()
	s.OnReadable(func() { told <- "closed" })
	write(watch("end"), "e")
	want("end")
	write(watch("reset"), "r")
	want("reset")
	watch("connection")
	server.Close()
	want("connection")
	if len(told) > 0 {
		t.Errorf("told of %s", <-told)
	}
}
