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
