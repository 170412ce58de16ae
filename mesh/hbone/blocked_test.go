package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// TestResetWhileTheTunnelIsFull has a relay send to a peer that reads nothing, and the peer reset its stream meanwhile. The
// other streams of the tunnel must be read on: the peer may do the same as this side.
func TestResetWhileTheTunnelIsFull(t *testing.T) {
	near, far := net.Pipe()
	_ = far.SetDeadline(time.Now().Add(2 * patience))
	peer := http2.NewFramer(far, far)
	tunnel := h2.NewClient(h2.NetTransport(near), h2.Config{})
	ran := make(chan error, 1)
	go func() { ran <- tunnel.Run() }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	opened := make(chan *h2.Stream, 2)
	open := func() {
		s, err := tunnel.Open([]h2.Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "a:1"}}, false)
		if err != nil {
			t.Errorf("open: %v", err)
		}
		opened <- s
	}
	awaitFrame := func(kind http2.FrameType) {
		t.Helper()
		for {
			f, err := peer.ReadFrame()
			must(err)
			if f.Header().Type == kind {
				return
			}
		}
	}
	go open()
	_, err := io.ReadFull(far, make([]byte, len(http2.ClientPreface)))
	must(err)
	awaitFrame(http2.FrameHeaders)
	must(peer.WriteSettings())
	awaitFrame(http2.FrameSettings) // it is acknowledged
	go open()
	awaitFrame(http2.FrameHeaders)
	first, second := <-opened, <-opened

	app, conn := tcpPair(t)
	ended := make(chan error, 1)
	Relayer{}.Start(context.Background(), conn, &Stream{s: first}, nil, func(err error) { ended <- err })
	_, err = io.WriteString(app, "ambit")
	must(err)
	_, err = io.ReadFull(far, make([]byte, h2.Headroom)) // and the rest of the frame waits
	must(err)
	go func() {
		_ = peer.WriteRSTStream(first.ID(), h2.InternalError)
		_ = peer.WriteHeaders(http2.HeadersFrameParam{StreamID: second.ID(), BlockFragment: []byte{0x88}, EndHeaders: true})
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := second.Headers(ctx); err != nil {
		t.Errorf("the answer to another request: %v", err)
	}
	_ = far.Close()
	var reset *h2.StreamError
	if err := <-ended; !errors.As(err, &reset) || reset.Code != h2.InternalError {
		t.Errorf("the relay ended: %v", err)
	}
	<-ran
	app.Close()
}
