package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Type URLs of the resources that a node proxy learns, in the order in which to subscribe to them.
const (
	TypeAuthorization = "type.googleapis.com/istio.security.Authorization"
	TypeAddress       = "type.googleapis.com/istio.workload.Address"
)

// Type URLs of the resources that an L7 proxy learns, Envoy's, in the order in which to subscribe to them: what is referred to
// before what refers to it.
const (
	TypeCluster   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEndpoints = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	TypeListener  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeRoutes    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Pauses between attempts to get a stream. They are Istio's ztunnel's, but spread by a fifth, so that a restarted control
// plane does not get all its clients at once.
const (
	retryFirst  = 10 * time.Millisecond
	retryMax    = 15 * time.Second
	retryJitter = 0.2
	// settled is how long a stream must have lived for the pause to begin anew, so that a server that answers and then
	// fails is not asked for everything again without end.
	settled = 5 * time.Second
)

// maxReasons bounds how many rejected resources a NACK and a log line spell out.
const maxReasons = 50

// Conn is a channel to the control plane; *grpc.ClientConn is one.
type Conn interface {
	grpc.ClientConnInterface
	io.Closer
}

// Rejection says that a resource was not taken, and why.
type Rejection struct {
	Name string
	Err  error
	// Replaced: what was in force under the name is so no more; what the rejected resource is made into, the form that fails
	// closed, is. Otherwise nothing has changed.
	Replaced bool
}

// Handler takes the resources of one type.
type Handler struct {
	TypeURL string
	// Apply takes one push: what is new or changed, and the names of what is gone. It is called from one goroutine,
	// must not block for long, and returns the resources that it rejects; the others are in force when it returns. It may
	// get a resource again that it has already, and the name of one that it has not.
	Apply func(upserts []*discoveryv3.Resource, removed []string) []Rejection
	// Ended, unless it is nil, is called when a stream has ended, from the goroutine of Apply: what the control plane had on its way
	// may not have come. The next Apply takes the first push of another stream, which brings all that differs.
	Ended func()
	// Optional types are not waited for by Synced: a control plane need not serve them.
	Optional bool
}

// Config configures a Client.
type Config struct {
	// Connect makes a channel; it is called for each attempt, and the client closes what it returns. Credentials are the
	// channel's. Required.
	Connect func() (Conn, error)
	// Node introduces the client. Required.
	Node *corev3.Node
	// Handlers, one a type, in the order in which their types are subscribed. Required.
	Handlers []Handler
	// Logger takes connects, disconnects and rejections. Required.
	Logger *slog.Logger
	// Registerer takes the istio_xds_* metrics; nil for none.
	Registerer prometheus.Registerer
}

// Client is one delta ADS client.
type Client struct {
	cfg     Config
	metrics *metrics
	types   []*typeState
	synced  chan struct{}

	// announce: known versions are sent when the stream is made again. It is Run's.
	announce bool

	mu     sync.Mutex // guards the fields below
	status Status
}

// typeState is what is known of one type. All but the handler is Run's.
type typeState struct {
	handler Handler
	// versions of what is in force, by name. Empty for what was rejected, so that it is sent again, and told of when it
	// goes.
	versions map[string]string
	rejected map[string]string // the cause, by name
	applied  bool              // a push was applied
	fresh    bool              // no push has come on this stream yet
}

// Status describes the client.
type Status struct {
	// Connected: the control plane has said something on the present stream.
	Connected bool
	// Opened is when the present stream was opened, zero if there is none: the control plane is there, if not more. Heard is when
	// it last said something, be it on another stream; zero if never.
	Opened, Heard time.Time
	// LastError is why the last stream ended; nil while there was none.
	LastError error
	// Rejected names the resources that are rejected at present, by type URL, with the cause.
	Rejected map[string]map[string]string
}

// NewClient makes a Client, which does nothing until Run is called.
func NewClient(cfg Config) (*Client, error) {
	if cfg.Connect == nil || cfg.Node == nil || cfg.Logger == nil || len(cfg.Handlers) == 0 {
		return nil, errors.New("xDS client: Connect, Node, Logger and Handlers are required")
	}
	c := &Client{cfg: cfg, synced: make(chan struct{}), announce: true}
	seen := map[string]bool{}
	for _, h := range cfg.Handlers {
		if h.Apply == nil || h.TypeURL == "" || seen[h.TypeURL] {
			return nil, fmt.Errorf("xDS client: type %q needs one handler", h.TypeURL)
		}
		seen[h.TypeURL] = true
		c.types = append(c.types, &typeState{handler: h, versions: map[string]string{}, rejected: map[string]string{}})
	}
	var err error
	if c.metrics, err = newMetrics(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("xDS client: %w", err)
	}
	return c, nil
}

// Restore applies resources of a type that are known from an earlier time, with the versions that they had, so that the control
// plane sends only what has changed. Those that are rejected now are asked for again. It does not count for Synced. Call it
// before Run.
func (c *Client) Restore(typeURL string, resources []*discoveryv3.Resource) error {
	i := slices.IndexFunc(c.types, func(t *typeState) bool { return t.handler.TypeURL == typeURL })
	if i < 0 {
		return fmt.Errorf("restore: no handler of type %q", typeURL)
	}
	t := c.types[i]
	t.note(resources, nil, t.handler.Apply(resources, nil))
	return nil
}

// Run connects, and connects again whenever the stream ends, until ctx ends, and then returns nil. What handlers have
// applied stays in force while there is no stream. Call it once.
func (c *Client) Run(ctx context.Context) error {
	pause := retryFirst
	for {
		start := time.Now()
		progress, err := c.stream(ctx)
		if ctx.Err() != nil {
			c.setStatus(false, nil)
			return nil
		}
		c.setStatus(false, err)
		for _, t := range c.types {
			if progress && t.handler.Ended != nil {
				t.handler.Ended()
			}
		}
		lived := progress && time.Since(start) >= settled
		if lived {
			pause = retryFirst
		}
		wait := time.Duration(float64(pause) * (1 + retryJitter*(2*rand.Float64()-1)))
		if lived && errors.Is(err, io.EOF) {
			wait = 0
		} else {
			pause = min(2*pause, retryMax)
		}
		c.cfg.Logger.Warn("no discovery stream", "was_up", progress, "error", err, "retry_in", wait.String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// stream runs one stream to its end, and reports whether any response came on it.
func (c *Client) stream(ctx context.Context) (progress bool, err error) {
	conn, err := c.cfg.Connect()
	if err != nil {
		c.metrics.terminated(reasonConnect)
		return false, fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		c.metrics.terminated(reasonConnect)
		return false, err
	}
	c.setOpened()
	for _, t := range c.types {
		t.fresh = true
		if err := stream.Send(c.subscription(t)); errors.Is(err, io.EOF) {
			break // Recv has the cause
		} else if err != nil {
			c.metrics.terminated(reasonError)
			return false, fmt.Errorf("subscribe: %w", err)
		}
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			c.ended(progress, err)
			return progress, err
		}
		c.setHeard()
		if !progress {
			progress = true
			c.setStatus(true, nil)
			c.cfg.Logger.Info("discovery stream is up")
		}
		if err := stream.Send(c.receive(resp)); err != nil && !errors.Is(err, io.EOF) {
			c.ended(progress, err)
			return progress, fmt.Errorf("acknowledge: %w", err)
		}
	}
}

// ended counts the end of a stream, and draws the conclusion from one that the server ended at the first request.
func (c *Client) ended(progress bool, err error) {
	switch {
	case errors.Is(err, io.EOF):
		c.metrics.terminated(reasonComplete)
	case progress:
		c.metrics.terminated(reasonReconnect)
	default:
		c.metrics.terminated(reasonError)
		// Istio's control plane takes requests of up to 4 MiB, which the versions of some 50,000 resources exceed.
		if status.Code(err) == codes.ResourceExhausted && c.announce {
			c.announce = false
			c.cfg.Logger.Warn("the control plane does not take all known versions; asking for everything from now on")
		}
	}
}

// subscription is the first request of a type on a stream: to all of it, and what is known already.
func (c *Client) subscription(t *typeState) *discoveryv3.DeltaDiscoveryRequest {
	req := &discoveryv3.DeltaDiscoveryRequest{Node: c.cfg.Node, TypeUrl: t.handler.TypeURL}
	if c.announce && len(t.versions) > 0 {
		req.InitialResourceVersions = t.versions
	}
	return req
}

// receive applies one response and returns its acknowledgement.
func (c *Client) receive(resp *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	i := slices.IndexFunc(c.types, func(t *typeState) bool { return t.handler.TypeURL == resp.GetTypeUrl() })
	if i < 0 {
		ack.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: "type was not subscribed to"}
		return ack
	}
	t := c.types[i]
	c.metrics.received(t.handler.TypeURL, proto.Size(resp))
	removed := resp.GetRemovedResources()
	if t.fresh {
		t.fresh = false
		removed = append(slices.Clone(removed), t.vanished(resp, c.announce)...)
	}
	rejections := t.handler.Apply(resp.GetResources(), removed)
	t.note(resp.GetResources(), removed, rejections)
	if len(rejections) > 0 {
		reason := reasons(rejections)
		ack.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: reason}
		c.cfg.Logger.Warn("resources rejected", "type", t.handler.TypeURL, "count", len(rejections), "error", reason)
	}
	c.applied(t)
	return ack
}

// vanished returns the names that the first push on a stream removes without saying so. A server that was told of the
// known versions, and heeds them, sends what differs and names what is gone. One that was not told, or sends
// a version again that we have, sends everything: what it leaves out is gone.
func (t *typeState) vanished(resp *discoveryv3.DeltaDiscoveryResponse, announced bool) []string {
	if len(t.versions) == 0 {
		return nil
	}
	everything := !announced
	sent := make(map[string]bool, len(resp.GetResources()))
	for _, r := range resp.GetResources() {
		sent[r.GetName()] = true
		version, known := t.versions[r.GetName()]
		everything = everything || known && version == r.GetVersion()
	}
	if !everything {
		return nil
	}
	var gone []string
	for name := range t.versions {
		if !sent[name] {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	return gone
}

// note keeps the books after a push was applied.
func (t *typeState) note(upserts []*discoveryv3.Resource, removed []string, rejections []Rejection) {
	for _, name := range removed {
		delete(t.versions, name)
		delete(t.rejected, name)
	}
	for _, r := range upserts {
		t.versions[r.GetName()] = r.GetVersion()
		delete(t.rejected, r.GetName())
	}
	for _, r := range rejections {
		t.versions[r.Name] = ""
		t.rejected[r.Name] = r.Err.Error()
	}
}

func reasons(rejections []Rejection) string {
	var all []string
	for _, r := range rejections[:min(len(rejections), maxReasons)] {
		all = append(all, fmt.Sprintf("%s: %v", r.Name, r.Err))
	}
	if more := len(rejections) - len(all); more > 0 {
		all = append(all, fmt.Sprintf("%d more", more))
	}
	return strings.Join(all, "; ")
}

// applied publishes what a push has changed of the client's state.
func (c *Client) applied(t *typeState) {
	c.mu.Lock()
	rejected := maps.Clone(c.status.Rejected)
	if rejected == nil {
		rejected = map[string]map[string]string{}
	}
	delete(rejected, t.handler.TypeURL)
	if len(t.rejected) > 0 {
		rejected[t.handler.TypeURL] = maps.Clone(t.rejected)
	}
	c.status.Rejected = rejected
	c.mu.Unlock()

	if t.applied {
		return
	}
	t.applied = true
	for _, o := range c.types {
		if !o.applied && !o.handler.Optional {
			return
		}
	}
	select {
	case <-c.synced:
	default:
		close(c.synced)
	}
}

func (c *Client) setStatus(connected bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Connected = connected
	if !connected {
		c.status.Opened = time.Time{}
	}
	if err != nil {
		c.status.LastError = err
	}
}

func (c *Client) setOpened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Opened = time.Now()
}

func (c *Client) setHeard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Heard = time.Now()
}

// Synced is closed once the first push of every type that is not optional has been applied, be it with rejections.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Status may be called concurrently with Run. Its map must not be changed.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}
