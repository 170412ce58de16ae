package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// tcpPair returns the two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// running is a connection in Run.
type running struct {
	*Conn
	over chan struct{} // closed when Run has returned
	err  error         // what it returned
}

// run starts a connection, and sees to it that it has ended at the end of the test.
func run(t testing.TB, c *Conn) *running {
	r := &running{Conn: c, over: make(chan struct{})}
	go func() {
		defer close(r.over)
		r.err = c.Run()
	}()
	t.Cleanup(func() {
		c.Close()
		<-r.over
	})
	return r
}

// result waits for the end of the connection and returns what Run returned.
func (r *running) result(t testing.TB) error {
	t.Helper()
	select {
	case <-r.over:
	case <-time.After(patience):
		t.Fatal("connection has not ended")
	}
	return r.err
}

// pair connects a client and a server over a.
func pair(t testing.TB, ccfg, scfg Config, handle func(*Stream)) (client, server *running) {
	t.Helper()
	a, b := tcpPair(t)
	server = run(t, NewServer(NetTransport(b), scfg, handle))
	client = run(t, NewClient(NetTransport(a), ccfg))
	return client, server
}

var get = []Field{
	{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/"}, {Name: ":authority", Value: "test"},
}

var connect = []Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "10.0.0.1:80"}}

var ok200 = []Field{{Name: ":status", Value: "200"}}

// echo answers with 200 and sends back what it reads.
func echo(s *Stream) {
	if err := s.WriteHeaders(ok200, false); err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				return
			}
		}
		if err == io.EOF {
			_ = s.CloseWrite()
			return
		}
		if err != nil {
			return
		}
	}
}

// open opens a stream, waiting for the peer's SETTINGS if need be, and reads the response's header.
func open(t testing.TB, c *running, fields []Field, end bool) *Stream {
	t.Helper()
	s := opened(t, c, fields, end)
	header(t, s)
	return s
}

func opened(t testing.TB, c *running, fields []Field, end bool) *Stream {
	t.Helper()
	var s *Stream
	await(t, "a stream is free", func() bool {
		var err error
		s, err = c.Open(fields, end)
		if err != nil && !errors.Is(err, ErrNoStreams) {
			t.Fatalf("open: %v", err)
		}
		return err == nil
	})
	return s
}

// header reads a response's header and wants status 200.
func header(t testing.TB, s *Stream) []Field {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	fields, err := s.Headers(ctx)
	if err != nil {
		t.Fatalf("read header: %v", err)
	}
	if got, _ := Value(fields, ":status"); got != "200" {
		t.Fatalf("status %s, want 200", got)
	}
	return fields
}

// await waits for a condition.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}

// rawPeer speaks frames by hand.
type rawPeer struct {
	t testing.TB
	*http2.Framer
	nc   net.Conn
	hbuf *bytes.Buffer
	henc *hpack.Encoder
}

func newRawPeer(t testing.TB, nc net.Conn) *rawPeer {
	_ = nc.SetDeadline(time.Now().Add(patience))
	p := &rawPeer{t: t, Framer: http2.NewFramer(nc, nc), nc: nc}
	p.Framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.Framer.SetMaxReadFrameSize(1 << 20)
	p.Framer.AllowIllegalWrites = true
	p.hbuf = new(bytes.Buffer)
	p.henc = hpack.NewEncoder(p.hbuf)
	t.Cleanup(func() { _ = nc.Close() })
	return p
}

// everFlooded has what a peer does count as a flood however long it takes: on a busy machine that is long.
func everFlooded(c *Conn) *Conn {
	c.rd.meter.init(time.Now().Add(time.Hour))
	return c
}

// rawClient returns a hand-driven client of a server of ours. The preface and SETTINGS are sent.
func rawClient(t testing.TB, cfg Config, handle func(*Stream)) (*rawPeer, *running) {
	t.Helper()
	a, b := tcpPair(t)
	server := run(t, everFlooded(NewServer(NetTransport(b), cfg, handle)))
	p := newRawPeer(t, a)
	if _, err := io.WriteString(a, preface); err != nil {
		t.Fatal(err)
	}
	p.must(p.WriteSettings())
	return p, server
}

// rawServer returns a hand-driven server of a client of ours. SETTINGS are sent and the preface is read.
func rawServer(t testing.TB, cfg Config, settings ...http2.Setting) (*rawPeer, *running) {
	t.Helper()
	a, b := tcpPair(t)
	client := run(t, everFlooded(NewClient(NetTransport(a), cfg)))
	p := newRawPeer(t, b)
	p.must(p.WriteSettings(settings...))
	client.Flush()
	got := make([]byte, len(preface))
	if _, err := io.ReadFull(b, got); err != nil || string(got) != preface {
		t.Fatalf("preface: %q, %v", got, err)
	}
	return p, client
}

func (p *rawPeer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// block encodes a header block.
func (p *rawPeer) block(fields []Field) []byte {
	p.hbuf.Reset()
	for _, f := range fields {
		p.must(p.henc.WriteField(f))
	}
	return bytes.Clone(p.hbuf.Bytes())
}

// headers sends a header block in one frame.
func (p *rawPeer) headers(id uint32, fields []Field, end bool) {
	p.t.Helper()
	p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(fields), EndStream: end, EndHeaders: true}))
}

// until reads frames until one is as wanted, and returns it.
func until[F http2.Frame](p *rawPeer, what string, want func(F) bool) F {
	p.t.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			p.t.Fatalf("waiting for %s: %v", what, err)
		}
		if f, ok := f.(F); ok && (want == nil || want(f)) {
			return f
		}
	}
}

// goAway waits for a GOAWAY and wants its code.
func (p *rawPeer) goAway(want ErrCode) *http2.GoAwayFrame {
	p.t.Helper()
	f := until[*http2.GoAwayFrame](p, "GOAWAY", nil)
	if f.ErrCode != want {
		p.t.Errorf("GOAWAY with %v (%s), want %v", f.ErrCode, f.DebugData(), want)
	}
	return f
}

// reset waits for RST_STREAM of a stream and wants its code.
func (p *rawPeer) reset(id uint32, want ErrCode) {
	p.t.Helper()
	f := until(p, "RST_STREAM", func(f *http2.RSTStreamFrame) bool { return f.StreamID == id })
	if f.ErrCode != want {
		p.t.Errorf("RST_STREAM of %d with %v, want %v", id, f.ErrCode, want)
	}
}

// ping makes sure that the peer lives and has handled what was sent.
func (p *rawPeer) ping() {
	p.t.Helper()
	data := [8]byte{1, 2, 3}
	p.must(p.WritePing(false, data))
	until(p, "PING answer", func(f *http2.PingFrame) bool { return f.IsAck() && f.Data == data })
}

// isStreamError tells whether err is a StreamError like want, whatever the reason.
func isStreamError(err error, want StreamError) bool {
	var se *StreamError
	return errors.As(err, &se) && se.Code == want.Code && se.Remote == want.Remote
}

// pattern returns n bytes that show what is missing or moved.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16*29)
	}
	return b
}

// noBuffers wants that all pooled buffers come back.
func noBuffers(t testing.TB) {
	t.Helper()
	await(t, "all buffers are given back", func() bool { return buffer.InUse() == 0 })
}

func contains(err error, s string) bool { return err != nil && strings.Contains(err.Error(), s) }

// nopConn is a connection that does nothing.
type nopConn struct{ net.Conn }

func (nopConn) SetDeadline(time.Time) error { return nil }
func (nopConn) Close() error                { return nil }
