package app

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/saved"
)

// control is a control plane: what it says on a stream, and when. It is a channel to itself.
type control struct {
	says []saying
	// ends is when a stream ends; zero: never.
	ends time.Duration
}

// saying is one push, so long after the one before.
type saying struct {
	after   time.Duration
	typeURL string
}

func (c *control) Close() error { return nil }

func (c *control) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return errors.ErrUnsupported
}

func (c *control) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	s := &controlStream{ctx: ctx, says: c.says}
	if c.ends > 0 {
		s.end = time.After(c.ends)
	}
	return s, nil
}

type controlStream struct {
	grpc.ClientStream // what is not called
	ctx               context.Context
	says              []saying
	end               <-chan time.Time
}

func (s *controlStream) SendMsg(any) error { return nil }

func (s *controlStream) RecvMsg(m any) error {
	var next <-chan time.Time
	if len(s.says) > 0 {
		next = time.After(s.says[0].after)
	}
	select {
	case <-next:
		proto.Merge(m.(proto.Message), &discoveryv3.DeltaDiscoveryResponse{TypeUrl: s.says[0].typeURL})
		s.says = s.says[1:]
		return nil
	case <-s.end:
		return io.ErrUnexpectedEOF
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// TestAwaitState: a proxy with a saved configuration serves from it when the control plane is away, and not while that is there and
// tells what it knows.
func TestAwaitState(t *testing.T) {
	policies := func(after time.Duration) saying { return saying{after, xds.TypeAuthorization} }
	addresses := func(after time.Duration) saying { return saying{after, xds.TypeAddress} }
	var trickle []saying
	for range 100 {
		trickle = append(trickle, policies(10*time.Second))
	}
	for _, tt := range []struct {
		name     string
		control  *control // nil: it is away
		fromDisk bool
		took     time.Duration
		log      string
	}{
		{"away", nil, true, 3 * time.Second, "the control plane is away"},
		{"there", &control{says: []saying{policies(0), addresses(time.Second)}}, false, time.Second, "is known"},
		{"slow to begin", &control{says: []saying{policies(10 * time.Second), addresses(0)}}, false, 10 * time.Second, "is known"},
		{"slow in the middle", &control{says: []saying{policies(0), addresses(14 * time.Second)}}, false, 14 * time.Second, "is known"},
		{"silent", &control{}, true, 15 * time.Second, "there but has not told all"},
		{"never done", &control{says: trickle}, true, time.Minute, "there but has not told all"},
		{"another stream does not begin it anew", &control{ends: 10 * time.Second}, true, 15 * time.Second, "there but has not told all"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				p := &parts{logger: slog.New(slog.NewTextHandler(&log, nil))}
				p.state.restored = 1
				p.state.contact.Store(time.Now().Add(-time.Hour).UnixNano())
				ignore := func([]*discoveryv3.Resource, []string) []xds.Rejection { return nil }
				var err error
				p.discovery, err = xds.NewClient(xds.Config{
					Node: &corev3.Node{}, Logger: slog.New(slog.DiscardHandler),
					Handlers: []xds.Handler{{TypeURL: xds.TypeAuthorization, Apply: ignore}, {TypeURL: xds.TypeAddress, Apply: ignore}},
					Connect: func() (xds.Conn, error) {
						if tt.control == nil {
							return nil, errors.New("nobody there")
						}
						return tt.control, nil
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- p.discovery.Run(ctx) }()
				start := time.Now()
				if err := p.awaitState(ctx); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if p.state.fromDisk.Load() != tt.fromDisk || took < tt.took || took > tt.took+3*glance || !strings.Contains(log.String(), tt.log) {
					t.Errorf("from disk: %v, after %v; want %v after %v\n%s", p.state.fromDisk.Load(), took, tt.fromDisk, tt.took, log.String())
				}
				if tt.fromDisk && !strings.Contains(log.String(), "age=1h") {
					t.Errorf("the log does not tell the age: %s", log.String())
				}
			})
		})
	}
}

// TestStateMaxAge: what was saved is used for a day and no longer.
func TestStateMaxAge(t *testing.T) {
	cfg, err := config.Parse([]string{"NODE_NAME=n", "XDS_ADDRESS=http://localhost:1", "CA_ADDRESS=http://localhost:1"})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	p := &parts{cfg: cfg, logger: slog.New(slog.NewTextHandler(&log, nil))}
	now := time.Now()
	for age, want := range map[time.Duration]bool{0: true, 23 * time.Hour: true, 25 * time.Hour: false, -time.Hour: true} {
		log.Reset()
		got := p.usable(&saved.Contents{At: now.Add(-age)}, now)
		if (got != nil) != want || want == strings.Contains(log.String(), "too old") {
			t.Errorf("after %v: used: %v, want %v; log %q", age, got != nil, want, log.String())
		}
	}
	if p.usable(nil, now) != nil {
		t.Error("there is something where nothing was saved")
	}
}
