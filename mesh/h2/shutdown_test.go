package h2

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

func TestGoAwayServesStreamsInTheGap(t *testing.T) {
	p, server := rawClient(t, Config{}, echo)
	p.headers(1, connect, false)
	until(p, "response", func(f *http2.MetaHeadersFrame) bool { return f.StreamID == 1 })

	server.Shutdown()
	first := p.goAway(NoError)
	if first.LastStreamID != maxStreamID {
		t.Errorf("first GOAWAY names stream %d", first.LastStreamID)
	}
	question := until(p, "PING", func(f *http2.PingFrame) bool { return !f.IsAck() })
	data := question.Data
	// This one was on its way when the peer sent GOAWAY.
	p.headers(3, connect, false)
	p.must(p.WriteData(3, true, []byte("gap")))
	p.must(p.WritePing(true, data))
	// This one was not.
	p.headers(5, connect, true)
	last := uint32(0)
	got := ""
	until(p, "echo in the gap", func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			last = f.LastStreamID
		case *http2.DataFrame:
			got += string(f.Data())
			return f.StreamEnded()
		case *http2.MetaHeadersFrame:
			if f.StreamID == 5 {
				t.Error("a stream after the last GOAWAY is served")
			}
		}
		return false
	})
	if got != "gap" {
		t.Errorf("echo %q", got)
	}
	if last == 0 {
		last = p.goAway(NoError).LastStreamID
	}
	if last != 3 {
		t.Errorf("last GOAWAY names stream %d, want 3", last)
	}
	select {
	case <-server.Done():
		t.Fatal("the server ended with a stream open")
	default:
	}
	p.must(p.WriteData(1, true, nil))
	for {
		if _, err := p.ReadFrame(); err != nil {
			if err != io.EOF {
				t.Errorf("after the last stream: %v", err)
			}
			break
		}
	}
	_ = p.nc.Close()
	if err := server.result(t); err != nil {
		t.Errorf("server: %v", err)
	}
}

func TestGoAwayFromThePeer(t *testing.T) {
	var mu sync.Mutex
	changes := 0
	p, client := rawServer(t, Config{OnChange: func(*Conn) {
		mu.Lock()
		changes++
		mu.Unlock()
	}})
	await(t, "SETTINGS", client.SettingsSeen)
	a := opened(t, client, connect, false)
	b := opened(t, client, connect, false)
	p.headers(1, ok200, false)
	p.must(p.WriteGoAway(1, NoError, nil))
	if _, err := b.Headers(t.Context()); !errors.Is(err, ErrUnprocessed) {
		t.Errorf("stream above the last: %v", err)
	}
	header(t, a)
	if _, err := client.Open(connect, false); !errors.Is(err, ErrDraining) {
		t.Errorf("open after GOAWAY: %v", err)
	}
	if !client.Draining() || client.Available() != 0 {
		t.Error("connection does not say that it is draining")
	}
	p.must(p.WriteData(1, true, []byte("rest")))
	if got, err := io.ReadAll(a); string(got) != "rest" || err != nil {
		t.Errorf("stream below the last: %q, %v", got, err)
	}
	_ = a.CloseWrite()
	p.goAway(NoError)
	_ = p.nc.Close()
	if err := client.result(t); err != nil {
		t.Errorf("client: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if changes < 3 {
		t.Errorf("%d changes told, want several", changes)
	}
}

func TestRefusedStreamIsUnprocessed(t *testing.T) {
	p, client := rawServer(t, Config{})
	s := opened(t, client, connect, false)
	p.must(p.WriteRSTStream(1, RefusedStream))
	if _, err := s.Headers(t.Context()); !errors.Is(err, ErrUnprocessed) {
		t.Errorf("refused stream: %v", err)
	}
}

// pipePair connects two connections in memory, for virtual time.
func pipePair(ccfg, scfg Config, handle func(*Stream)) (client, server *running, a, b net.Conn) {
	a, b = net.Pipe()
	start := func(c *Conn) *running {
		r := &running{Conn: c, over: make(chan struct{})}
		go func() {
			defer close(r.over)
			r.err = c.Run()
		}()
		return r
	}
	return start(NewClient(NetTransport(a), ccfg)), start(NewServer(NetTransport(b), scfg, handle)), a, b
}

func TestKeepaliveKeepsLivingPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _, _ := pipePair(Config{}, Config{}, echo)
		client.Flush()
		time.Sleep(time.Hour)
		if err := errors.Join(client.Err(), server.Err()); err != nil {
			t.Errorf("after an idle hour: %v", err)
		}
		client.Shutdown()
		<-client.over
		<-server.over
		if err := errors.Join(client.err, server.err); err != nil {
			t.Errorf("orderly end: %v", err)
		}
	})
}

func TestKeepaliveFindsDeadPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		client := &running{Conn: NewClient(NetTransport(a), Config{}), over: make(chan struct{})}
		go func() {
			defer close(client.over)
			client.err = client.Run()
		}()
		// A peer that reads everything and says nothing but SETTINGS.
		go func() { _, _ = io.Copy(io.Discard, b) }()
		_ = http2.NewFramer(b, nil).WriteSettings()
		s, err := client.Open(connect, false)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := s.Headers(t.Context()); !errors.Is(err, ErrKeepalive) {
			t.Errorf("stream of a dead peer: %v", err)
		}
		// SETTINGS were read in the first interval, so the question came after the second one.
		if got := time.Since(start); got < 30*time.Second || got > 40*time.Second {
			t.Errorf("found after %v, want 2 x 10 s + 20 s", got)
		}
		<-client.over
		_ = b.Close()
	})
}

// TestWaitingForTheBudgetIsNotDeath has payload that nobody reads for half an hour fill the budget: a tunnel that waits for it
// stays, on both sides, and answers PINGs in time unless far too much is held.
func TestWaitingForTheBudgetIsNotDeath(t *testing.T) {
	const size = 3 << 20
	for _, c := range []struct {
		name  string
		limit int64
		all   bool // everything is read in the end
	}{{"over", size - size/4, true}, {"beyond", 256 << 10, false}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				budget := buffer.NewBudget(c.limit)
				read := make(chan struct{})
				got := make(chan int64, 1)
				handle := func(s *Stream) {
					_ = s.WriteHeaders(ok200, false)
					<-read
					n, _ := io.Copy(io.Discard, s)
					got <- n
				}
				client, server, _, _ := pipePair(Config{WriteTimeout: time.Hour}, Config{Budget: budget}, handle)
				client.Flush()
				synctest.Wait()
				s, err := client.Open(connect, false)
				if err != nil {
					t.Fatal(err)
				}
				wrote := make(chan error, 1)
				go func() {
					_, err := s.Write(make([]byte, size))
					wrote <- errors.Join(err, s.CloseWrite())
				}()
				time.Sleep(30 * time.Minute)
				if !budget.Over() {
					t.Error("the budget is not used up")
				}
				if used := budget.Used(); c.all != (len(wrote) == 1) || used > 2*c.limit+2*buffer.Large {
					t.Errorf("everything was read: %v, %d bytes are held of %d", len(wrote) == 1, used, c.limit)
				}
				if err := errors.Join(client.Err(), server.Err()); err != nil {
					t.Errorf("after half an hour: %v", err)
				}
				close(read)
				if err := <-wrote; err != nil {
					t.Errorf("write: %v", err)
				}
				if n := <-got; n != size {
					t.Errorf("%d bytes arrived, want %d", n, size)
				}
				client.Close()
				server.Close()
				<-client.over
				<-server.over
			})
		})
	}
}

func TestSettingsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		client := NewClient(NetTransport(a), Config{SettingsTimeout: 3 * time.Second})
		go func() { _, _ = io.Copy(io.Discard, b) }()
		start := time.Now()
		if err := client.Run(); !errors.Is(err, ErrSettingsTimeout) {
			t.Errorf("run: %v", err)
		}
		if got := time.Since(start); got != 3*time.Second {
			t.Errorf("after %v", got)
		}
		_ = b.Close()
	})
}

func TestShutdownDoesNotWaitForeverForThePing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		server := NewServer(NetTransport(a), Config{KeepaliveInterval: -1}, echo)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, b) })
		wg.Go(func() {
			if err := server.Run(); err != nil {
				t.Errorf("run: %v", err)
			}
		})
		_, _ = io.WriteString(b, preface)
		_ = http2.NewFramer(b, nil).WriteSettings()
		synctest.Wait()
		start := time.Now()
		server.Shutdown()
		<-server.Done()
		if got := time.Since(start); got != DefaultKeepaliveTimeout+lingerTime {
			t.Errorf("ended after %v", got)
		}
		_ = b.Close()
		wg.Wait()
	})
}

func TestWriterOfADeadPeerReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		client := NewClient(NetTransport(a), Config{})
		done := make(chan struct{})
		go func() { _ = client.Run(); close(done) }()
		_ = http2.NewFramer(b, nil).WriteSettings()
		synctest.Wait()
		// Nobody reads: the first write of the connection blocks, and with it whoever writes after it.
		for range 3 {
			go func() { _, _ = client.Open(connect, false) }()
		}
		<-done
		if err := client.Err(); !errors.Is(err, ErrKeepalive) {
			t.Errorf("ended by %v", err)
		}
		synctest.Wait()
		_ = b.Close()
	})
}
