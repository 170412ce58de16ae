package h2

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// attack is what a client does to make a server work or remember.
type attack struct {
	name  string
	cause Cause
	do    func(p *rawPeer, f *http2.Framer) // f gathers what is sent at once
}

// repeat calls f as often as a flood is allowed, and once more.
func repeat(of flood, f func(i uint32)) {
	for i := range uint32(allowances[of].most + 1) {
		f(i)
	}
}

// attacksByStreams open many streams, or try to.
func attacksByStreams() []attack {
	return []attack{
		{"rapid reset", CauseRapidReset, func(p *rawPeer, f *http2.Framer) {
			block := p.block(connect)
			for i := range uint32(2 * allowances[floodReset].most) { // some may be answered before they are reset
				p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true}))
				p.must(f.WriteRSTStream(2*i+1, Cancel))
			}
		}},
		{"streams that must be reset", CauseFaults, func(p *rawPeer, f *http2.Framer) {
			block := p.block(connect)
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: true}))
			repeat(floodFault, func(i uint32) {
				id := 2*i + 3
				p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}))
				p.must(f.WriteWindowUpdate(id, 1<<31-1))
			})
		}},
		{"malformed requests", CauseFaults, func(p *rawPeer, f *http2.Framer) {
			block := p.block(connect[:1])
			repeat(floodFault, func(i uint32) {
				p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true}))
			})
		}},
		{"streams beyond the limit", CauseRefused, func(p *rawPeer, f *http2.Framer) {
			block := p.block(connect)
			repeat(floodRefused, func(i uint32) {
				p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true}))
			})
			for i := range uint32(20) { // those that were served
				i += uint32(allowances[floodRefused].most + 1)
				p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true}))
			}
		}},
		{"header lists too large", CauseRefused, func(p *rawPeer, f *http2.Framer) {
			big := append(connect[:2:2], Field{Name: "x-big", Value: strings.Repeat("v", 3000)})
			for range 30 { // the list is mostly from the table
				big = append(big, big[2])
			}
			fills, refers := p.block(big), p.block(big) // the table
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fills, EndHeaders: true}))
			repeat(floodRefused, func(i uint32) {
				p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 3, BlockFragment: refers, EndHeaders: true}))
			})
		}},
	}
}

// attacksOnTheConnection need no stream, or only one.
func attacksOnTheConnection() []attack {
	return []attack{
		{"endless CONTINUATION", CauseHeaderBlock, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect)}))
			for range maxContinuations + 1 {
				p.must(f.WriteContinuation(1, false, nil))
			}
		}},
		{"a header block without end", CauseHeaderBlock, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect)}))
			for range 20 {
				p.must(f.WriteContinuation(1, false, p.block([]Field{{Name: "x", Value: strings.Repeat("~", 15<<10), Sensitive: true}})))
			}
		}},
		{"HPACK bomb", CauseHeaderBlock, func(p *rawPeer, f *http2.Framer) {
			// One field that fills the table, and then its index again and again: each byte stands for 4 KiB.
			bomb := p.block(append(connect[:2:2], Field{Name: "x-bomb", Value: strings.Repeat("b", 4000)}))
			bomb = append(bomb, bytes.Repeat([]byte{0x80 | 62}, 10_000)...)
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bomb, EndHeaders: true}))
		}},
		{"SETTINGS", CauseSettings, func(p *rawPeer, f *http2.Framer) {
			repeat(floodSettings, func(i uint32) {
				p.must(f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: i % 2}))
			})
		}},
		{"SETTINGS acknowledgements", CauseSettings, func(p *rawPeer, f *http2.Framer) {
			repeat(floodSettings, func(uint32) { p.must(f.WriteSettingsAck()) })
		}},
		{"long SETTINGS", CauseSettings, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteSettings(make([]http2.Setting, maxSettings+1)...))
		}},
		{"PING", CausePings, func(p *rawPeer, f *http2.Framer) {
			repeat(floodPing, func(uint32) { p.must(f.WritePing(false, [8]byte{})) })
		}},
		{"answers to no PING", CausePings, func(p *rawPeer, f *http2.Framer) {
			repeat(floodPing, func(uint32) { p.must(f.WritePing(true, keepalivePing)) })
		}},
		{"empty DATA", CauseEmptyData, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect), EndHeaders: true}))
			repeat(floodEmptyData, func(uint32) { p.must(f.WriteData(1, false, nil)) })
		}},
		{"tiny DATA", CauseTinyData, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect), EndHeaders: true}))
			for range allowances[floodTinyData].most * 11 / 10 { // each read begins with one that might be all there was
				p.must(f.WriteData(1, false, []byte{'x'}))
			}
		}},
		{"tiny WINDOW_UPDATE", CauseTinyWindow, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect), EndHeaders: true}))
			repeat(floodTinyWindow, func(uint32) { p.must(f.WriteWindowUpdate(1, 1)) })
		}},
		{"frames on streams that have ended", CauseEnded, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect), EndHeaders: true}))
			p.must(f.WriteRSTStream(1, Cancel))
			repeat(floodEnded, func(uint32) { p.must(f.WriteRSTStream(1, Cancel)) })
		}},
		{"PRIORITY", CauseUnknown, func(p *rawPeer, f *http2.Framer) {
			repeat(floodUnknown, func(i uint32) { p.must(f.WritePriority(2*i+1, http2.PriorityParam{})) })
		}},
		{"unknown frames", CauseUnknown, func(p *rawPeer, f *http2.Framer) {
			repeat(floodUnknown, func(uint32) { p.must(f.WriteRawFrame(0xbe, 0, 0, nil)) })
		}},
		{"GOAWAY", CauseGoAway, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect), EndHeaders: true}))
			repeat(floodGoAway, func(uint32) { p.must(f.WriteGoAway(0, NoError, nil)) })
		}},
	}
}

// TestAbuse lets a client do one thing too often. It loses its connection with ENHANCE_YOUR_CALM, the cause is told, little
// memory was needed meanwhile, and another connection goes on.
func TestAbuse(t *testing.T) {
	for _, a := range append(attacksByStreams(), attacksOnTheConnection()...) {
		t.Run(a.name, func(t *testing.T) {
			serve := func(s *Stream) {
				if s.WriteHeaders(ok200, false) == nil {
					_, _ = io.Copy(io.Discard, s)
				}
			}
			innocent, _ := rawClient(t, Config{MaxStreams: 20}, serve)
			limit := uint32(20)
			if a.cause == CauseFaults {
				limit = uint32(allowances[floodFault].most) // or they would be refused
			}
			p, server := rawClient(t, Config{MaxStreams: limit}, serve)
			before := buffer.InUse()
			var all bytes.Buffer
			f := http2.NewFramer(&all, nil)
			f.AllowIllegalWrites = true
			a.do(p, f)

			// What the server says meanwhile must be read, or it would not be a matter of the frames alone.
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.goAway(EnhanceYourCalm)
				_ = p.nc.Close()
			}()
			var most int64
			for all.Len() > 0 {
				if _, err := p.nc.Write(all.Next(16 << 10)); err != nil {
					break // the server has ended it already
				}
				most = max(most, buffer.InUse()-before)
			}
			<-done
			err := server.result(t)
			if cause, ok := Violation(err); !ok || cause != a.cause {
				t.Errorf("server: cause %q, %v; want %q", cause, err, a.cause)
			}
			if most > 2<<20 {
				t.Errorf("%d bytes of buffers were lent meanwhile", most)
			}
			innocent.ping()
		})
	}
}

// attacksByServers are what a server does with the one stream that a client has opened, whose number is 1, or without it.
func attacksByServers() []attack {
	all := []attack{
		{"informational responses", CauseInformation, func(p *rawPeer, f *http2.Framer) {
			repeat(floodInformation, func(uint32) {
				p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block([]Field{{Name: ":status", Value: "103"}}), EndHeaders: true}))
			})
		}},
		{"endless CONTINUATION", CauseHeaderBlock, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(ok200)}))
			for range maxContinuations + 1 {
				p.must(f.WriteContinuation(1, false, nil))
			}
		}},
		{"HPACK bomb", CauseHeaderBlock, func(p *rawPeer, f *http2.Framer) {
			bomb := p.block(append(ok200[:1:1], Field{Name: "x-bomb", Value: strings.Repeat("b", 4000)}))
			bomb = append(bomb, bytes.Repeat([]byte{0x80 | 62}, 10_000)...)
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bomb, EndHeaders: true}))
		}},
		{"empty DATA", CauseEmptyData, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(ok200), EndHeaders: true}))
			repeat(floodEmptyData, func(uint32) { p.must(f.WriteData(1, false, nil)) })
		}},
		{"tiny WINDOW_UPDATE", CauseTinyWindow, func(p *rawPeer, f *http2.Framer) {
			repeat(floodTinyWindow, func(uint32) { p.must(f.WriteWindowUpdate(1, 1)) })
		}},
		{"windows that overflow", CauseFlowControl, func(p *rawPeer, f *http2.Framer) {
			p.must(f.WriteWindowUpdate(0, 1<<31-1))
			p.must(f.WriteWindowUpdate(0, 1<<31-1))
		}},
	}
	for _, a := range attacksOnTheConnection() {
		switch a.cause {
		case CauseSettings, CausePings, CauseUnknown:
			all = append(all, a)
		}
	}
	return all
}

// TestAbuseByServer is TestAbuse with a server, which those who speak to it are not to suffer from.
func TestAbuseByServer(t *testing.T) {
	for _, a := range attacksByServers() {
		t.Run(a.name, func(t *testing.T) {
			innocent, _ := rawServer(t, Config{})
			p, client := rawServer(t, Config{})
			s := opened(t, client, connect, false)
			response := make(chan error, 1)
			go func() {
				_, err := s.Headers(t.Context())
				for err == nil {
					_, err = s.Read(make([]byte, 1024))
				}
				response <- err
			}()
			until[*http2.MetaHeadersFrame](p, "the request", nil)
			before := buffer.InUse()
			var all bytes.Buffer
			f := http2.NewFramer(&all, nil)
			f.AllowIllegalWrites = true
			a.do(p, f)
			done := make(chan struct{})
			go func() { // until the client has ended it
				defer close(done)
				_, _ = io.Copy(io.Discard, p.nc)
				_ = p.nc.Close()
			}()
			var most int64
			for all.Len() > 0 {
				if _, err := p.nc.Write(all.Next(16 << 10)); err != nil {
					break // it was ended already
				}
				most = max(most, buffer.InUse()-before)
			}
			<-done
			if err := client.result(t); err == nil {
				t.Error("the client has ended without an error")
			} else if cause, ok := Violation(err); !ok || cause != a.cause {
				t.Errorf("client: cause %q, %v; want %q", cause, err, a.cause)
			}
			if err := <-response; err == nil {
				t.Error("who waits for the response is not told")
			}
			if most > 2<<20 {
				t.Errorf("%d bytes of buffers were lent meanwhile", most)
			}
			innocent.ping()
		})
	}
}

// TestAllowedAgain does as often as is allowed what would be a flood in less time.
func TestAllowedAgain(t *testing.T) {
	var m meter
	long := time.Now().Add(-floodTime)
	m.init(long)
	for range allowances[floodSettings].most {
		if err := m.count(floodSettings); err != nil {
			t.Fatalf("as many as are allowed in %v: %v", floodTime, err)
		}
	}
	for range allowances[floodSettings].most - 1 {
		if err := m.count(floodSettings); err != nil {
			t.Fatalf("less than are allowed: %v", err)
		}
	}
	if err := m.count(floodSettings); err == nil {
		t.Error("more than are allowed are no flood")
	}
}

// TestManyResetsAmongMoreStreams gives up some of many streams, which is no attack.
func TestManyResetsAmongMoreStreams(t *testing.T) {
	var m meter
	m.init(time.Now())
	for i := range 5 * allowances[floodReset].most {
		m.streams += 3
		if err := m.count(floodReset); err != nil {
			t.Fatalf("reset %d of %d streams: %v", i, m.streams, err)
		}
	}
}

// TestWriteStalled has a client that asks for much, says now and then that it lives, and reads nothing.
func TestWriteStalled(t *testing.T) {
	cfg := Config{KeepaliveInterval: 20 * time.Millisecond, WriteTimeout: 100 * time.Millisecond}
	p, server := rawClient(t, cfg, func(s *Stream) {
		_ = s.WriteHeaders(ok200, false)
		payload := make([]byte, 1<<20)
		for {
			if _, err := s.Write(payload); err != nil {
				return
			}
		}
	})
	p.must(p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}))
	p.must(p.WriteWindowUpdate(0, 1<<30))
	p.headers(1, connect, false)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = p.WriteWindowUpdate(0, tinyWindow)
			continue
		case <-server.over:
		}
		break
	}
	if err := server.result(t); !errors.Is(err, ErrWriteStalled) {
		t.Errorf("server: %v, want %v", err, ErrWriteStalled)
	}
}

// TestBudget fills the budget that several connections share with payload that nobody reads: not even twice as much is held, a
// connection that holds nothing works, and once somebody reads everything arrives.
func TestBudget(t *testing.T) {
	const limit, each = 1 << 20, 3 << 20
	budget := buffer.NewBudget(limit)
	read := make(chan struct{})
	handle := func(s *Stream) {
		_ = s.WriteHeaders(ok200, false)
		<-read
		n, _ := io.Copy(io.Discard, s)
		if n != each {
			t.Errorf("%d bytes arrived, want %d", n, each)
		}
		_ = s.CloseWrite()
	}
	cfg := Config{Budget: budget}
	var greedy []*Stream
	sent := make(chan error)
	for range 4 {
		client, _ := pair(t, Config{}, cfg, handle)
		s := open(t, client, connect, false)
		greedy = append(greedy, s)
		go func() {
			_, err := s.Write(make([]byte, each))
			if err == nil {
				err = s.CloseWrite()
			}
			sent <- err
		}()
	}
	await(t, "the budget is used up", budget.Over)
	modest, _ := rawClient(t, cfg, echo)
	for range 20 {
		modest.ping()
	}
	// Each connection may have one chunk on its way when the budget ends.
	if used := budget.Used(); used > 2*limit+4*buffer.Large {
		t.Errorf("%d bytes are held, the bound is twice %d", used, limit)
	}
	close(read)
	for range greedy {
		if err := <-sent; err != nil {
			t.Errorf("write: %v", err)
		}
	}
	for _, s := range greedy {
		if _, err := io.Copy(io.Discard, s); err != nil {
			t.Errorf("read: %v", err)
		}
		s.Close()
	}
	await(t, "the budget is unused", func() bool { return budget.Used() == 0 })
}
