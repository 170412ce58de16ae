// Package xdstest is a delta ADS client for tests: it says what it is told to say, and hands over each response as it came.
package xdstest

import (
	"context"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// Deadline is how long a test waits for what must come.
const Deadline = 30 * time.Second

// Client is one stream. It is for one goroutine.
type Client struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	node   *corev3.Node
	got    chan *discoveryv3.DeltaDiscoveryResponse
	err    chan error
	cancel context.CancelFunc

	// Resources are what is known after the responses that were taken, by type and name: their versions.
	Resources [resource.Types]map[string]string
}

// Open opens a stream, which ends with the test at the latest. The node is sent with the first request.
func Open(ctx context.Context, t testing.TB, conn grpc.ClientConnInterface, node *corev3.Node) *Client {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(256<<20))
	if err != nil {
		cancel()
		t.Fatalf("open stream: %v", err)
	}
	c := &Client{t: t, stream: stream, node: node, cancel: cancel,
		got: make(chan *discoveryv3.DeltaDiscoveryResponse, 1024), err: make(chan error, 1)}
	for typ := range c.Resources {
		c.Resources[typ] = map[string]string{}
	}
	done := make(chan struct{})
	go func() { defer close(done); c.receive() }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func (c *Client) receive() {
	for {
		r, err := c.stream.Recv()
		if err != nil {
			c.err <- err
			close(c.got)
			return
		}
		c.got <- r
	}
}

// Close ends the stream.
func (c *Client) Close() { c.cancel() }

// Send sends a request. An error is found by Err.
func (c *Client) Send(req *discoveryv3.DeltaDiscoveryRequest) {
	req.Node, c.node = c.node, nil
	_ = c.stream.Send(req) // the stream's own error comes with Recv
}

// Subscribe asks for resources of a type, all if no name is given, bringing versions that are known.
func (c *Client) Subscribe(t resource.Type, known map[string]string, names ...string) {
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: t.URL(), InitialResourceVersions: known, ResourceNamesSubscribe: names})
}

// Next returns the next response of the stream, and fails the test if none comes.
func (c *Client) Next() *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	select {
	case r, ok := <-c.got:
		if !ok {
			c.t.Fatalf("stream ended: %v", <-c.err)
		}
		typ, ok := resource.TypeOf(r.GetTypeUrl())
		if !ok {
			c.t.Fatalf("response of type %s", r.GetTypeUrl())
		}
		for _, res := range r.GetResources() {
			c.Resources[typ][res.GetName()] = res.GetVersion()
		}
		for _, name := range r.GetRemovedResources() {
			delete(c.Resources[typ], name)
		}
		return r
	case <-time.After(Deadline):
		c.t.Fatalf("no response within %s", Deadline)
		return nil
	}
}

// Ack acknowledges a response.
func (c *Client) Ack(r *discoveryv3.DeltaDiscoveryResponse) {
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

// Nack rejects a response.
func (c *Client) Nack(r *discoveryv3.DeltaDiscoveryResponse, why string) {
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: why}})
}

// NextAck takes the next response and acknowledges it.
func (c *Client) NextAck() *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	r := c.Next()
	c.Ack(r)
	return r
}

// Until takes and acknowledges responses until the condition holds; it fails the test if none comes in time.
func (c *Client) Until(what string, holds func() bool) {
	c.t.Helper()
	for !holds() {
		select {
		case <-c.t.Context().Done():
			c.t.Fatalf("test ended before %s", what)
		default:
		}
		c.NextAck()
	}
}

// Pending returns a response that has come already, nil if none has.
func (c *Client) Pending() *discoveryv3.DeltaDiscoveryResponse {
	select {
	case r := <-c.got:
		return r
	default:
		return nil
	}
}

// Err waits for the stream's end and returns its cause.
func (c *Client) Err() error {
	c.t.Helper()
	deadline := time.After(Deadline)
	for {
		select {
		case _, ok := <-c.got:
			if !ok {
				return <-c.err
			}
		case <-deadline:
			c.t.Fatalf("the stream did not end within %s", Deadline)
		}
	}
}

// Names lists the resources and removals of a response; removals start with "-".
func Names(r *discoveryv3.DeltaDiscoveryResponse) []string {
	var out []string
	for _, res := range r.GetResources() {
		out = append(out, res.GetName())
	}
	for _, name := range r.GetRemovedResources() {
		out = append(out, "-"+name)
	}
	return out
}
