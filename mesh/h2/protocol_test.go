package h2

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

func TestOddFrames(t *testing.T) {
	p, _ := rawClient(t, Config{}, echo)
	p.must(p.WriteRawFrame(0xbe, 0xff, 5, []byte("unknown")))
	p.must(p.WriteRawFrame(0x10, 0, 0, []byte("priority update")))
	p.must(p.WritePriority(7, http2.PriorityParam{StreamDep: 3}))
	p.must(p.WriteSettings(http2.Setting{ID: 0x99, Val: 1}))

	// A header block in three frames, with padding and priority.
	block := p.block(append(connect[:2:2], Field{Name: "x-long", Value: strings.Repeat("v", 500)}))
	p.must(p.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block[:100], PadLength: 20, Priority: http2.PriorityParam{StreamDep: 9, Weight: 1},
	}))
	p.must(p.WriteContinuation(1, false, block[100:200]))
	p.must(p.WriteContinuation(1, true, block[200:]))
	until(p, "response", func(f *http2.MetaHeadersFrame) bool { return f.StreamID == 1 && f.PseudoValue("status") == "200" })

	p.must(p.WriteDataPadded(1, false, []byte("padded"), make([]byte, 200)))
	p.must(p.WriteDataPadded(1, false, nil, make([]byte, 10)))
	p.must(p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{0, 'x'}))
	p.must(p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded|http2.FlagDataEndStream, 1, []byte{1, 'y', 0}))
	var got bytes.Buffer
	until(p, "end of the echo", func(f *http2.DataFrame) bool {
		got.Write(f.Data())
		return f.StreamEnded()
	})
	if got.String() != "paddedxy" {
		t.Errorf("echo %q", got.String())
	}
	// The server's stream is gone; frames on it that were on their way are no fault.
	p.must(p.WriteWindowUpdate(1, 100))
	p.must(p.WriteRSTStream(1, Cancel))
	p.ping()
}

// violations returns what a client must not do, and the error that ends its connection.
func violations() []breach {
	return []breach{
		{"DATA on stream 0", func(p *rawPeer) { p.must(p.WriteRawFrame(http2.FrameData, 0, 0, []byte("x"))) }, ProtocolError},
		{"DATA on an idle stream", func(p *rawPeer) { p.must(p.WriteData(5, false, []byte("x"))) }, ProtocolError},
		{"padding too long", func(p *rawPeer) {
			p.headers(1, connect, false)
			p.must(p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{2, 0}))
		}, ProtocolError},
		{"padded without length", func(p *rawPeer) {
			p.headers(1, connect, false)
			p.must(p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, nil))
		}, FrameSizeError},
		{"frame too large", func(p *rawPeer) {
			p.headers(1, connect, false)
			p.must(p.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20+1)))
		}, FrameSizeError},
		{"HEADERS on an even stream", func(p *rawPeer) { p.headers(2, connect, false) }, ProtocolError},
		{"HEADERS on stream 0", func(p *rawPeer) { p.headers(0, connect, false) }, ProtocolError},
		{"CONTINUATION alone", func(p *rawPeer) { p.must(p.WriteContinuation(1, true, nil)) }, ProtocolError},
		{"block interrupted by another stream", func(p *rawPeer) {
			p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect)}))
			p.must(p.WriteContinuation(3, true, nil))
		}, ProtocolError},
		{"block interrupted by DATA", func(p *rawPeer) {
			p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect)}))
			p.must(p.WriteData(1, true, nil))
		}, ProtocolError},
		{"bad compression", func(p *rawPeer) {
			p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, EndHeaders: true}))
		}, CompressionError},
		{"compression cut off", func(p *rawPeer) {
			p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x40, 5, 'a'}, EndHeaders: true}))
		}, CompressionError},
		{"WINDOW_UPDATE of zero", func(p *rawPeer) { p.must(p.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 4))) }, ProtocolError},
		{"WINDOW_UPDATE overflow", func(p *rawPeer) {
			p.must(p.WriteWindowUpdate(0, 1<<31-1))
		}, FlowControlError},
		{"WINDOW_UPDATE on an idle stream", func(p *rawPeer) { p.must(p.WriteWindowUpdate(9, 1)) }, ProtocolError},
		{"RST_STREAM on an idle stream", func(p *rawPeer) { p.must(p.WriteRSTStream(9, Cancel)) }, ProtocolError},
		{"PING of a wrong size", func(p *rawPeer) { p.must(p.WriteRawFrame(http2.FramePing, 0, 0, []byte("x"))) }, FrameSizeError},
		{"SETTINGS of a wrong size", func(p *rawPeer) { p.must(p.WriteRawFrame(http2.FrameSettings, 0, 0, []byte("x"))) }, FrameSizeError},
		{"SETTINGS with a bad window", func(p *rawPeer) {
			p.must(p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, FlowControlError},
		{"SETTINGS with a bad frame size", func(p *rawPeer) {
			p.must(p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}))
		}, ProtocolError},
		{"PUSH_PROMISE", func(p *rawPeer) { p.must(p.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 4))) }, ProtocolError},
		{"more than the connection's window", func(p *rawPeer) {
			p.headers(1, connect, false)
			p.must(p.WriteData(1, false, make([]byte, 65<<10)))
		}, FlowControlError},
		{"a header block far over the limit", func(p *rawPeer) {
			p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect)}))
			for range 20 {
				p.must(p.WriteContinuation(1, false, p.block([]Field{{Name: "x", Value: strings.Repeat("~", 15<<10), Sensitive: true}})))
			}
		}, EnhanceYourCalm},
		{"endless CONTINUATION", func(p *rawPeer) {
			p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connect)}))
			for range 100 {
				p.must(p.WriteContinuation(1, false, nil))
			}
		}, EnhanceYourCalm},
		{"PRIORITY on stream 0", func(p *rawPeer) {
			p.must(p.WriteRawFrame(http2.FramePriority, 0, 0, make([]byte, 5)))
		}, ProtocolError},
		{"PRIORITY of a wrong size", func(p *rawPeer) {
			p.must(p.WriteRawFrame(http2.FramePriority, 0, 3, make([]byte, 4)))
		}, FrameSizeError},
	}
}

type breach struct {
	name string
	do   func(p *rawPeer)
	want ErrCode
}

func TestViolations(t *testing.T) {
	for _, c := range violations() {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{StreamWindow: 1 << 20, ConnWindow: 65536, MaxBuffered: 65536}
			p, server := rawClient(t, cfg, func(s *Stream) { _ = s.WriteHeaders(ok200, false); _, _ = s.Headers(t.Context()) })
			// What the server says meanwhile must be read, or it would not be a matter of the frames alone.
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.goAway(c.want)
				_ = p.nc.Close()
			}()
			writes(c.do, p)
			<-done
			if err := server.result(t); !errors.As(err, new(*ConnError)) {
				t.Errorf("server: %v", err)
			}
		})
	}
}

// writes runs do, which may find that the server has closed the connection: that is for the reader to judge.
func writes(do func(*rawPeer), p *rawPeer) {
	q := *p
	q.t = ignoreFatal{p.t}
	defer func() {
		if r := recover(); r != nil && r != errIgnored {
			panic(r)
		}
	}()
	do(&q)
}

type ignoreFatal struct{ testing.TB }

var errIgnored = errors.New("ignored")

func (ignoreFatal) Fatal(...any) { panic(errIgnored) }
func (ignoreFatal) Helper()      {}

func TestNotHTTP2(t *testing.T) {
	a, b := tcpPair(t)
	server := run(t, NewServer(NetTransport(b), Config{}, echo))
	p := newRawPeer(t, a)
	_, _ = io.WriteString(a, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	p.goAway(ProtocolError)
	_ = a.Close()
	if err := server.result(t); !contains(err, "does not speak HTTP/2") {
		t.Errorf("server: %v", err)
	}

	a, b = tcpPair(t)
	run(t, NewServer(NetTransport(b), Config{}, echo))
	p = newRawPeer(t, a)
	_, _ = io.WriteString(a, preface)
	p.must(p.WritePing(false, [8]byte{}))
	p.goAway(ProtocolError)
}

func TestStreamErrors(t *testing.T) {
	with := func(extra ...Field) []Field { return append(connect[:2:2], extra...) }
	cases := []struct {
		name   string
		fields []Field
	}{
		{"upper case", with(Field{Name: "X-Up", Value: "v"})},
		{"no token", with(Field{Name: "a b", Value: "v"})},
		{"bad value", with(Field{Name: "x", Value: "a\nb"})},
		{"pseudo after regular", append(with(Field{Name: "x", Value: "v"}), Field{Name: ":path", Value: "/"})},
		{"unknown pseudo", append([]Field{{Name: ":what", Value: "v"}}, connect...)},
		{"pseudo twice", append([]Field{{Name: ":method", Value: "GET"}}, connect...)},
		{"connection header", with(Field{Name: "connection", Value: "close"})},
		{"te", with(Field{Name: "te", Value: "gzip"})},
		{"no method", connect[1:]},
		{"CONNECT with a path", append([]Field{{Name: ":path", Value: "/"}}, connect...)},
		{"CONNECT without authority", connect[:1]},
		{"GET without a path", get[:2]},
		{"a status in a request", append([]Field{{Name: ":status", Value: "200"}}, connect...)},
	}
	p, _ := rawClient(t, Config{}, echo)
	id := uint32(1)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p.headers(id, c.fields, false)
			p.reset(id, ProtocolError)
		})
		id += 2
	}
	p.headers(id, connect, false)
	until(p, "a good stream after the bad ones", func(f *http2.MetaHeadersFrame) bool { return f.StreamID == id })
	p.must(p.WriteData(id, true, nil))
	p.must(p.WriteData(id, true, []byte("after the end")))
	p.ping()
}

func TestRequestHeaderTooLarge(t *testing.T) {
	p, _ := rawClient(t, Config{MaxHeaderList: 8 << 10}, echo)
	big := append(connect[:2:2], Field{Name: "x-big", Value: strings.Repeat("v", 10<<10)}, Field{Name: "x-after", Value: "indexed"})
	p.headers(1, big, false)
	f := until[*http2.MetaHeadersFrame](p, "response", nil)
	if got := f.PseudoValue("status"); got != "431" || !f.StreamEnded() {
		t.Errorf("status %s, ended %v, want 431 and the end", got, f.StreamEnded())
	}
	p.reset(1, NoError)
	// The compression state is still right: the field comes from the table now.
	p.headers(3, append(connect[:2:2], Field{Name: "x-after", Value: "indexed"}), false)
	until(p, "response", func(f *http2.MetaHeadersFrame) bool { return f.StreamID == 3 && f.PseudoValue("status") == "200" })
}

func TestResponseHeaderTooLarge(t *testing.T) {
	client, _ := pair(t, Config{MaxHeaderList: 8 << 10}, Config{}, func(s *Stream) {
		req, _ := s.Headers(t.Context())
		size := 100
		if _, big := Value(req, "x-big"); big {
			size = 10 << 10
		}
		// Past the limit that the peer announced, which WriteHeaders keeps.
		c := s.c
		c.mu.Lock()
		c.appendHeadersLocked(s.id, append(ok200[:1:1], Field{Name: "x", Value: strings.Repeat("v", size)}), true)
		c.endLocalLocked(s)
		c.kickLocked()
		c.mu.Unlock()
	})
	s := opened(t, client, append(connect[:2:2], Field{Name: "x-big", Value: "1"}), true)
	if _, err := s.Headers(t.Context()); !isStreamError(err, StreamError{Code: Cancel}) || !contains(err, "8192 bytes") {
		t.Errorf("too large a response: %v", err)
	}
	open(t, client, connect, true)
}

func TestSendHeaderTooLarge(t *testing.T) {
	p, client := rawServer(t, Config{}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000})
	await(t, "SETTINGS", client.SettingsSeen)
	_, err := client.Open(append(connect[:2:2], Field{Name: "x", Value: strings.Repeat("v", 1000)}), false)
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("open with too large a header: %v", err)
	}
	if _, err := client.Open(connect, false); err != nil {
		t.Errorf("open: %v", err)
	}
	until(p, "HEADERS", func(f *http2.MetaHeadersFrame) bool { return f.StreamID == 1 })
}

func TestBadResponses(t *testing.T) {
	cases := []struct {
		name string
		do   func(p *rawPeer)
	}{
		{"no status", func(p *rawPeer) { p.headers(1, []Field{{Name: "x", Value: "y"}}, false) }},
		{"long status", func(p *rawPeer) { p.headers(1, []Field{{Name: ":status", Value: "2000"}}, false) }},
		{"status 101", func(p *rawPeer) { p.headers(1, []Field{{Name: ":status", Value: "101"}}, false) }},
		{"end with an informational response", func(p *rawPeer) { p.headers(1, []Field{{Name: ":status", Value: "103"}}, true) }},
		{"DATA first", func(p *rawPeer) { p.must(p.WriteData(1, false, []byte("x"))) }},
		{"trailers without end", func(p *rawPeer) { p.headers(1, ok200, false); p.headers(1, []Field{{Name: "x", Value: "y"}}, false) }},
		{"pseudo-field in trailers", func(p *rawPeer) { p.headers(1, ok200, false); p.headers(1, ok200, true) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, client := rawServer(t, Config{})
			s := opened(t, client, connect, false)
			c.do(p)
			if _, err := io.ReadAll(s); !isStreamError(err, StreamError{Code: ProtocolError}) {
				t.Errorf("read: %v", err)
			}
			p.reset(1, ProtocolError)
			p.ping()
		})
	}
}

func TestRefusesTooManyStreams(t *testing.T) {
	var handlers atomic.Int32
	release := make(chan struct{})
	defer close(release)
	p, _ := rawClient(t, Config{MaxStreams: 2}, func(*Stream) { handlers.Add(1); <-release })
	for id := uint32(1); id <= 7; id += 2 {
		p.headers(id, connect, false)
	}
	p.reset(5, RefusedStream)
	p.reset(7, RefusedStream)
	// Streams that are reset free their place, but not without bound while their handlers run.
	for id := uint32(1); id <= 3; id += 2 {
		p.must(p.WriteRSTStream(id, Cancel))
		p.headers(8+id, connect, false)
		p.must(p.WriteRSTStream(8+id, Cancel))
	}
	p.headers(21, connect, false)
	p.reset(21, RefusedStream)
	if got := handlers.Load(); got != 4 {
		t.Errorf("%d handlers, want 4", got)
	}
	p.ping()
}

// TestManyPings sends more PINGs at once than any peer was seen to: all are answered.
func TestManyPings(t *testing.T) {
	p, _ := rawClient(t, Config{}, echo)
	const n = 1_500
	go func() {
		for i := range n {
			if p.WritePing(false, [8]byte{byte(i), byte(i >> 8)}) != nil {
				return
			}
		}
	}()
	for i := range n {
		want := [8]byte{byte(i), byte(i >> 8)}
		f := until(p, "PING answer", func(f *http2.PingFrame) bool { return f.IsAck() })
		if f.Data != want {
			t.Fatalf("answer %d is %v, want %v", i, f.Data, want)
		}
	}
}

func TestPingsWhoseAnswersNobodyReads(t *testing.T) {
	before := buffer.InUse()
	cfg := Config{KeepaliveInterval: 50 * time.Millisecond, KeepaliveTimeout: 100 * time.Millisecond}
	p, server := rawClient(t, cfg, func(s *Stream) { _, _ = io.Copy(io.Discard, s) })
	p.headers(1, connect, false)
	var most int64
	for i := 0; p.WritePing(false, [8]byte{}) == nil; i++ {
		if i%1000 == 0 { // something useful, so that it is no flood
			_ = p.WriteData(1, false, make([]byte, 1<<10))
		}
		most = max(most, buffer.InUse()-before)
	}
	if err := server.result(t); !errors.Is(err, ErrKeepalive) {
		t.Errorf("server: %v", err)
	}
	if most > 2<<20 {
		t.Errorf("%d bytes of buffers were lent meanwhile", most)
	}
}

func TestTrickle(t *testing.T) {
	var in bytes.Buffer
	f := http2.NewFramer(&in, nil)
	q := &rawPeer{t: t, Framer: f}
	in.WriteString(preface)
	q2 := newRawPeer(t, nopConn{})
	q.henc, q.hbuf = q2.henc, q2.hbuf
	q.must(f.WriteSettings())
	q.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: q2.block(connect), EndHeaders: true}))
	q.must(f.WriteData(1, true, []byte("slowly")))

	a, b := tcpPair(t)
	run(t, NewServer(NetTransport(b), Config{}, echo))
	go func() {
		for _, c := range in.Bytes() {
			if _, err := a.Write([]byte{c}); err != nil {
				return
			}
		}
	}()
	p := newRawPeer(t, a)
	var got bytes.Buffer
	until(p, "end of the echo", func(f *http2.DataFrame) bool {
		got.Write(f.Data())
		return f.StreamEnded()
	})
	if got.String() != "slowly" {
		t.Errorf("echo %q", got.String())
	}
}
