package h2

import (
	"testing"

	"golang.org/x/net/http2"
)

// TestFramesOnEndedStreams: what a peer can have had on its way is ignored, what it must not send is not.
func TestFramesOnEndedStreams(t *testing.T) {
	reset := func(s *Stream) { s.Reset(Cancel) }
	t.Run("reset by this side", func(t *testing.T) {
		p, _ := rawClient(t, Config{}, reset)
		p.headers(1, connect, false)
		p.reset(1, Cancel)
		p.must(p.WriteData(1, false, []byte("on its way")))
		p.headers(1, []Field{{Name: "x-sum", Value: "1"}}, true)
		p.ping()
	})
	t.Run("refused", func(t *testing.T) {
		p, _ := rawClient(t, Config{}, echo)
		p.headers(1, []Field{{Name: ":method", Value: "GET"}}, false)
		p.reset(1, ProtocolError)
		p.must(p.WriteData(1, true, []byte("on its way")))
		p.ping()
	})
	t.Run("after the last GOAWAY", func(t *testing.T) {
		p, server := rawClient(t, Config{}, echo)
		p.headers(1, connect, false)
		until(p, "response", func(f *http2.MetaHeadersFrame) bool { return f.StreamID == 1 })
		server.Shutdown()
		ping := until(p, "PING", func(f *http2.PingFrame) bool { return !f.IsAck() })
		p.must(p.WritePing(true, ping.Data))
		until(p, "the last GOAWAY", func(f *http2.GoAwayFrame) bool { return f.LastStreamID == 1 })
		p.headers(3, connect, false)
		p.must(p.WriteData(3, true, []byte("on its way")))
		p.must(p.WriteData(1, true, []byte("served")))
		until(p, "the echo", func(f *http2.DataFrame) bool { return f.StreamID == 1 && string(f.Data()) == "served" })
	})
	t.Run("reset by the peer", func(t *testing.T) {
		p, _ := rawClient(t, Config{}, echo)
		p.headers(1, connect, false)
		p.must(p.WriteRSTStream(1, Cancel))
		p.must(p.WriteData(1, true, []byte("x")))
		p.reset(1, StreamClosed)
		p.ping()
	})
	t.Run("ended", func(t *testing.T) {
		p, _ := rawClient(t, Config{}, echo)
		p.headers(1, connect, true)
		until(p, "the end", func(f *http2.DataFrame) bool { return f.StreamEnded() })
		p.must(p.WriteData(1, true, []byte("x")))
		p.goAway(StreamClosed)
	})
	t.Run("passed over", func(t *testing.T) {
		p, _ := rawClient(t, Config{}, echo)
		p.headers(1, connect, true)
		p.headers(9, connect, true)
		p.headers(5, connect, true)
		p.goAway(ProtocolError)
	})
	t.Run("forgotten", func(t *testing.T) {
		p, _ := rawClient(t, Config{}, reset)
		for id := uint32(1); id <= 2*maxClosed+3; id += 2 {
			p.headers(id, connect, false)
			p.reset(id, Cancel)
		}
		p.must(p.WriteData(1, true, []byte("x")))
		p.ping()
	})
}

// TestGatheredAnswer wants a small answer's header, payload and end in one write, and the end on the last payload.
func TestGatheredAnswer(t *testing.T) {
	p, _ := rawClient(t, Config{}, func(s *Stream) {
		if err := s.AddHeaders(ok200, false); err != nil {
			t.Error(err)
		}
		for _, piece := range []string{"one", "two"} {
			if kept, err := s.Add([]byte(piece)); err != nil || !kept {
				t.Errorf("Add: kept %v, %v", kept, err)
			}
		}
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	p.headers(1, connect, true)
	first := until(p, "one", func(f *http2.DataFrame) bool { return true })
	if string(first.Data()) != "one" || first.StreamEnded() {
		t.Errorf("first DATA: %q, end %v", first.Data(), first.StreamEnded())
	}
	second := until(p, "two", func(f *http2.DataFrame) bool { return true })
	if string(second.Data()) != "two" || !second.StreamEnded() {
		t.Errorf("second DATA: %q, end %v, want the end on it", second.Data(), second.StreamEnded())
	}
}
