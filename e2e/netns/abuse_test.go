package netns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// abuse is what a peer does to make a proxy work or remember; f gathers what is sent at once.
type abuse struct {
	name, cause string // the cause as the metric says it
	do          func(f *http2.Framer, block []byte) error
}

// open writes a request.
func open(f *http2.Framer, id uint32, block []byte) error {
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
}

// times calls f n times, until it fails.
func times(n uint32, f func(i uint32) error) error {
	for i := range n {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

// abuses do more than docs/limits.md allows.
func abuses() []abuse {
	return []abuse{
		{"rapid reset", "rapid_reset", func(f *http2.Framer, block []byte) error {
			return times(4000, func(i uint32) error {
				if err := open(f, 2*i+1, block); err != nil {
					return err
				}
				return f.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			})
		}},
		{"CONTINUATION flood", "header_block", func(f *http2.Framer, block []byte) error {
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block}); err != nil {
				return err
			}
			return times(1000, func(uint32) error { return f.WriteContinuation(1, false, nil) })
		}},
		{"SETTINGS flood", "settings_flood", func(f *http2.Framer, _ []byte) error {
			return times(1000, func(i uint32) error {
				return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 + i%2})
			})
		}},
		{"PING flood", "ping_flood", func(f *http2.Framer, _ []byte) error {
			return times(10_000, func(uint32) error { return f.WritePing(false, [8]byte{}) })
		}},
		{"HPACK bomb", "header_block", func(f *http2.Framer, block []byte) error {
			// One field that fills the table, and then its index again and again: each byte stands for 4 KiB.
			var bomb bytes.Buffer
			bomb.Write(block)
			if err := hpack.NewEncoder(&bomb).WriteField(hpack.HeaderField{Name: "x-bomb", Value: strings.Repeat("b", 4000)}); err != nil {
				return err
			}
			bomb.Write(bytes.Repeat([]byte{0x80 | 62}, 10_000))
			return open(f, 1, bomb.Bytes())
		}},
		{"empty frames", "empty_data", func(f *http2.Framer, block []byte) error {
			if err := open(f, 1, block); err != nil {
				return err
			}
			return times(10_000, func(uint32) error { return f.WriteData(1, false, nil) })
		}},
		{"tiny windows", "tiny_windows", func(f *http2.Framer, block []byte) error {
			if err := open(f, 1, block); err != nil {
				return err
			}
			return times(40_000, func(uint32) error { return f.WriteWindowUpdate(1, 1) })
		}},
		{"WINDOW_UPDATE overflow", "flow_control", func(f *http2.Framer, _ []byte) error {
			return times(2, func(uint32) error { return f.WriteWindowUpdate(0, 1<<31-1) })
		}},
	}
}

// TestTunnelAbuse has a peer with a good certificate abuse HTTP/2 on a pod's tunnel port. It loses that connection, and the
// reason is counted; other connections of the same peer, and tunnels of others to the same pod, do not notice.
func TestTunnelAbuse(t *testing.T) {
	w, client, server, cert := tunnelWorld(t)
	to := addr(server, false, 8080)
	neighbour := w.captured(server.Node, "neighbour")
	w.settle()
	tunnelled := w.hold(neighbour, to)
	unharmed := func(t *testing.T, innocent *peer) {
		t.Helper()
		w := w.in(t)
		if err := tunnelled.works(); err != nil {
			t.Errorf("a connection in another's tunnel: %v", err)
		}
		w.must(innocent.conn.SetDeadline(time.Now().Add(ioTimeout)))
		if status, err := innocent.connect(to); err != nil || status != "200" {
			t.Errorf("the same peer's other connection: status %q, %v; want 200", status, err)
		}
		w.expect(neighbour, to, neighbour.IPv4)
	}
	// other is another connection of the abuser's.
	other := func(t *testing.T) *peer {
		t.Helper()
		w := w.in(t)
		p, err := dialPeer(client, server, cert)
		w.must(err)
		t.Cleanup(p.close)
		return p
	}
	unharmed(t, other(t))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range connectTo(to) {
		w.must(enc.WriteField(f))
	}
	for _, a := range abuses() {
		t.Run(a.name, func(t *testing.T) {
			w := w.in(t)
			innocent := other(t)
			cause := `cause="` + a.cause + `"`
			before := w.metric(w.proxies[0], "ambit_http2_violations_total", cause)
			var all bytes.Buffer
			f := http2.NewFramer(&all, nil)
			f.AllowIllegalWrites = true
			w.must(a.do(f, block.Bytes()))
			p, err := dialPeer(client, server, cert)
			w.must(err)
			defer p.close()
			sent := make(chan error, 1)
			go func() {
				_, err := p.conn.Write(all.Bytes())
				sent <- err
			}()
			// What the proxy says is read all the while, so that it is a matter of the frames alone.
			if _, err := io.Copy(io.Discard, p.conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("its connection is still open after %v", ioTimeout)
			}
			p.close()
			<-sent
			w.eventually("the reason is counted", func() error {
				if n := w.metric(w.proxies[0], "ambit_http2_violations_total", cause); n != before+1 {
					return fmt.Errorf("%s: %v, want %v", a.cause, n, before+1)
				}
				return nil
			})
			unharmed(t, innocent)
		})
	}
	t.Run("window stall", func(t *testing.T) {
		// What it sends to an echo is within the windows, and it opens none for the answers: its stream stands, and nobody else waits.
		w := w.in(t)
		innocent := other(t)
		p, err := dialPeer(client, server, cert)
		w.must(err)
		defer p.close()
		status, err := p.connect(to)
		w.must(err)
		if status != "200" {
			t.Fatalf("status %s", status)
		}
		w.must(times(128, func(uint32) error { return p.framer.WriteData(1, false, make([]byte, 16<<10)) }))
		unharmed(t, innocent)
	})
}
