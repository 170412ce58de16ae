package h2

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// scripted is a transport whose peer says what is in it, in pieces, and then closes.
type scripted struct {
	in    *bytes.Reader
	piece int
	stop  sync.Once
	gone  chan struct{}
}

func (s *scripted) Read(p []byte) (int, error) {
	select {
	case <-s.gone:
		return 0, net.ErrClosed
	default:
		return s.in.Read(p[:min(len(p), s.piece)])
	}
}
func (s *scripted) WaitReadable() error         { return nil }
func (s *scripted) Buffered() int               { return min(s.in.Len(), s.piece) }
func (s *scripted) Write(p []byte) (int, error) { return len(p), nil }
func (s *scripted) Flush() error                { return nil }
func (s *scripted) CloseWrite() error           { return nil }
func (s *scripted) Abort()                      { s.stop.Do(func() { close(s.gone) }) }
func (s *scripted) Release()                    {}
func (s *scripted) LocalAddr() net.Addr         { return nil }
func (s *scripted) RemoteAddr() net.Addr        { return nil }

// FuzzFrames lets a peer say anything. The connection must end, with its handlers, and give its buffers back; with a stream
// that reads and one that does not.
func FuzzFrames(f *testing.F) {
	add := func(do func(fr *http2.Framer, block []byte)) {
		var b, h bytes.Buffer
		enc := hpack.NewEncoder(&h)
		for _, field := range connect {
			_ = enc.WriteField(field)
		}
		fr := http2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
		do(fr, h.Bytes())
		f.Add(b.Bytes(), uint16(4096))
		f.Add(b.Bytes(), uint16(1))
	}
	add(func(*http2.Framer, []byte) {})
	add(func(fr *http2.Framer, block []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
		_ = fr.WriteDataPadded(1, false, []byte("payload"), make([]byte, 9))
		_ = fr.WriteWindowUpdate(1, 1000)
		_ = fr.WriteWindowUpdate(0, 1000)
		_ = fr.WritePing(false, [8]byte{1})
		_ = fr.WriteData(1, true, []byte("end"))
		_ = fr.WriteRSTStream(1, Cancel)
	})
	add(func(fr *http2.Framer, block []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:1], PadLength: 3})
		_ = fr.WriteContinuation(1, false, block[1:2])
		_ = fr.WriteContinuation(1, true, block[2:])
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: nil, EndHeaders: true, EndStream: true})
		_ = fr.WriteGoAway(0, NoError, []byte("bye"))
		_ = fr.WriteRawFrame(0xbb, 0xff, 77, []byte("what"))
		_ = fr.WritePriority(3, http2.PriorityParam{})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block, EndHeaders: true, EndStream: true})
	})
	f.Fuzz(func(t *testing.T, in []byte, piece uint16) {
		for _, server := range []bool{true, false} {
			tr := &scripted{piece: max(1, int(piece)), gone: make(chan struct{})}
			cfg := Config{MaxStreams: 3, StreamWindow: 100, ConnWindow: 70_000, MaxHeaderList: 2000, KeepaliveInterval: -1}
			var c *Conn
			var wg sync.WaitGroup
			if server {
				tr.in = bytes.NewReader(append([]byte(preface), in...))
				c = NewServer(tr, cfg, func(s *Stream) {
					if s.ID()%4 == 1 {
						echo(s)
						return
					}
					_ = s.WriteHeaders(ok200, true)
				})
			} else {
				tr.in = bytes.NewReader(in)
				c = NewClient(tr, cfg)
				if s, err := c.Open(connect, false); err == nil {
					wg.Go(func() {
						_, _ = io.Copy(io.Discard, s)
						s.Close()
					})
				}
			}
			wg.Go(func() { _ = c.Run() })
			ended := make(chan struct{})
			go func() {
				wg.Wait()
				close(ended)
			}()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("the connection has not ended")
			}
		}
		noBuffers(t)
	})
}

// FuzzHeaderBlock lets a client send any bytes as a header block, in frames of any size. What a server keeps of it is within
// the limit, and after a block that it did not lose the connection for the next request is understood.
func FuzzHeaderBlock(f *testing.F) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, field := range append(connect[:2:2], Field{Name: "x-big", Value: string(bytes.Repeat([]byte("v"), 1500))}) {
		_ = enc.WriteField(field)
	}
	f.Add(b.Bytes(), uint8(0))
	f.Add(append(b.Bytes(), bytes.Repeat([]byte{0x80 | 62}, 200)...), uint8(7)) // its last field again and again
	f.Add([]byte{0x20, 0x3f, 0xe1, 0x1f}, uint8(1))                             // sizes of the table
	f.Fuzz(func(t *testing.T, block []byte, piece uint8) {
		const limit = 2000
		step := max(1, int(piece)*16)
		var in bytes.Buffer
		in.WriteString(preface)
		fr := http2.NewFramer(&in, nil)
		_ = fr.WriteSettings()
		n := min(step, len(block))
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:n], EndHeaders: n == len(block), EndStream: true})
		for rest := block[n:]; len(rest) > 0; rest = rest[n:] {
			n = min(step, len(rest))
			_ = fr.WriteContinuation(1, n == len(rest), rest[:n])
		}
		var plain bytes.Buffer
		next := hpack.NewEncoder(&plain)
		next.SetMaxDynamicTableSize(0)
		for _, field := range connect {
			field.Sensitive = true // not from the table, whatever is in it
			_ = next.WriteField(field)
		}
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: plain.Bytes(), EndHeaders: true, EndStream: true})

		served := make(chan uint32, 2)
		tr := &scripted{in: bytes.NewReader(in.Bytes()), piece: 4096, gone: make(chan struct{})}
		c := NewServer(tr, Config{MaxHeaderList: limit, KeepaliveInterval: -1}, func(s *Stream) {
			fields, err := s.Headers(t.Context())
			if err == nil && listSize(fields) > limit {
				t.Errorf("a header list of %d bytes, the limit is %d", listSize(fields), limit)
			}
			served <- s.ID()
		})
		err := c.Run()
		close(served)
		understood := false
		for id := range served {
			understood = understood || id == 3
		}
		if _, violated := Violation(err); !violated && !understood {
			t.Errorf("the request after the block was not served, and the connection ended with %v", err)
		}
		noBuffers(t)
	})
}
