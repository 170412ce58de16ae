// Package subscriber is a node proxy that only learns: it holds the discovery client and the directory that ztunnel holds, and
// nothing else, so that its memory is what knowing a mesh costs. It is driven by lines on its input and tells what it has seen,
// and when, on its output. It imports only what data planes share.
package subscriber

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// Commands, one a line of the input.
const (
	// Cut ends the stream, and keeps the client from making another until Join.
	Cut = "cut"
	// Join lets it make streams again.
	Join = "join"
	// Rest gives memory that is not used back to the kernel, as ztunnel does once a burst is over. A Rested event follows.
	Rest = "rest"
)

// Kinds of Event.
const (
	Synced = "synced" // the first push of each type is applied
	Pushed = "pushed" // a push is applied: look-ups see it
	Ended  = "ended"  // the stream was cut
	Rested = "rested"
)

// Event is one line of the output, in JSON.
type Event struct {
	Kind string `json:"kind"`
	// At is when it happened, in nanoseconds of the Unix epoch: both processes are on one machine.
	At int64 `json:"at"`
	// Took is the time from the start of the first stream, for Synced.
	Took time.Duration `json:"took,omitempty"`
	// Upserts and Removed count the resources of a push.
	Upserts int `json:"upserts,omitempty"`
	Removed int `json:"removed,omitempty"`
	// Changes are the resources of a push by name; none for the first push of a type.
	Changes []Change `json:"changes,omitempty"`
	// Sent and Received are the bytes of messages so far, before HTTP/2's framing.
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
}

// Change is one resource.
type Change struct {
	Name string `json:"name"`
	// Revision is the canonical revision of a workload.
	Revision string `json:"revision,omitempty"`
	Removed  bool   `json:"removed,omitempty"`
}

// Run subscribes to everything that the control plane at address serves (see identity.ChannelConfig) until ctx or the input ends.
func Run(ctx context.Context, address string, in io.Reader, out io.Writer, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &proxy{
		directory: directory.New(directory.Config{Node: "node-0", Logger: log}), address: address,
		out: json.NewEncoder(out), seen: map[string]bool{}, joined: make(chan struct{}),
	}
	close(p.joined)
	handlers := []xds.Handler{
		{TypeURL: xds.TypeAuthorization, Apply: p.observe(xds.TypeAuthorization, p.directory.HandleAuthorizations)},
		{TypeURL: xds.TypeAddress, Apply: p.observe(xds.TypeAddress, p.directory.HandleAddresses)},
		p.settings.Handler(),
	}
	client, err := xds.NewClient(xds.Config{
		Connect: func() (xds.Conn, error) { return p.connect(ctx) },
		Node:    &corev3.Node{Id: "ztunnel~127.0.0.1~ztunnel-0.istio-system~istio-system.svc.cluster.local"}, Handlers: handlers, Logger: log,
	})
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	start := time.Now()
	work.Go(func() { p.run(ctx, client) })
	work.Go(func() {
		select {
		case <-client.Synced():
			p.tell(Event{Kind: Synced, Took: time.Since(start)})
		case <-ctx.Done():
		}
	})
	lines := make(chan string)
	go read(ctx, in, lines) // ends with the process if the input does not end
	for {
		select {
		case <-ctx.Done():
			return p.failure()
		case line, ok := <-lines:
			if !ok {
				return p.failure()
			}
			if err := p.command(line); err != nil {
				return err
			}
		}
	}
}

func read(ctx context.Context, in io.Reader, lines chan<- string) {
	defer close(lines)
	for s := bufio.NewScanner(in); s.Scan(); {
		select {
		case lines <- s.Text():
		case <-ctx.Done():
			return
		}
	}
}

type proxy struct {
	directory *directory.Directory
	settings  settings.Holder
	address   string
	seen      map[string]bool // types of which a push was applied; the client's goroutine's

	sent, received atomic.Int64

	mu     sync.Mutex // guards the fields below
	out    *json.Encoder
	failed error // the first error of out
	conn   *counted
	joined chan struct{} // closed while streams may be made
}

func (p *proxy) run(ctx context.Context, client *xds.Client) {
	if err := client.Run(ctx); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.failed = errors.Join(p.failed, err)
	}
}

func (p *proxy) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *proxy) command(line string) error {
	switch line {
	case Cut:
		p.mu.Lock()
		p.joined = make(chan struct{})
		conn := p.conn
		p.mu.Unlock()
		if conn != nil {
			conn.Close()
		}
		p.tell(Event{Kind: Ended})
	case Join:
		p.mu.Lock()
		close(p.joined)
		p.mu.Unlock()
	case Rest:
		debug.FreeOSMemory()
		p.tell(Event{Kind: Rested})
	default:
		return fmt.Errorf("command %q: want %s, %s or %s", line, Cut, Join, Rest)
	}
	return nil
}

// tell writes an event.
func (p *proxy) tell(e Event) {
	e.At = time.Now().UnixNano()
	e.Sent, e.Received = p.sent.Load(), p.received.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.out.Encode(e); err != nil && p.failed == nil {
		p.failed = fmt.Errorf("tell %s: %w", e.Kind, err)
	}
}

type apply func([]*discoveryv3.Resource, []string) []xds.Rejection

// observe tells of each push once it is applied.
func (p *proxy) observe(typeURL string, next apply) apply {
	return func(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
		rejected := next(upserts, removed)
		e := Event{Kind: Pushed, Upserts: len(upserts), Removed: len(removed)}
		if p.seen[typeURL] {
			for _, r := range upserts {
				c := Change{Name: r.GetName()}
				if w := p.directory.Workload(c.Name); w != nil {
					c.Revision = w.CanonicalRevision // what a look-up finds, not what came
				}
				e.Changes = append(e.Changes, c)
			}
			for _, name := range removed {
				e.Changes = append(e.Changes, Change{Name: name, Removed: true})
			}
		}
		p.seen[typeURL] = true
		p.tell(e)
		return rejected
	}
}

// connect makes a channel once streams may be made.
func (p *proxy) connect(ctx context.Context) (xds.Conn, error) {
	p.mu.Lock()
	joined := p.joined
	p.mu.Unlock()
	select {
	case <-joined:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn, err := identity.NewChannel(identity.ChannelConfig{Address: p.address})
	if err != nil {
		return nil, err
	}
	c := &counted{ClientConn: conn, proxy: p}
	p.mu.Lock()
	p.conn = c
	p.mu.Unlock()
	return c, nil
}

// counted is a channel whose messages are counted.
type counted struct {
	*grpc.ClientConn
	proxy *proxy
}

func (c *counted) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := c.ClientConn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &countedStream{s, c.proxy}, nil
}

type countedStream struct {
	grpc.ClientStream
	proxy *proxy
}

func (s *countedStream) SendMsg(m any) error {
	if msg, ok := m.(proto.Message); ok {
		s.proxy.sent.Add(int64(proto.Size(msg)))
	}
	return s.ClientStream.SendMsg(m)
}

func (s *countedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if msg, ok := m.(proto.Message); ok && err == nil {
		s.proxy.received.Add(int64(proto.Size(msg)))
	}
	return err
}
