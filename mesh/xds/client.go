package xds

import (
	"context"
	"io"
	"log/slog"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// Type URLs of the resources that a node proxy learns, in the order to subscribe and to apply them.
const (
	TypeAuthorization = "type.googleapis.com/istio.security.Authorization"
	TypeAddress       = "type.googleapis.com/istio.workload.Address"
)

// Conn is a channel to the control plane; *grpc.ClientConn is one.
type Conn interface {
	grpc.ClientConnInterface
	io.Closer
}

// Rejection says that a resource was not taken, and why.
type Rejection struct {
	Name string
	Err  error
}

// Handler takes the resources of one type.
type Handler struct {
	TypeURL string
	// Apply takes one push: what is new or changed, and the names of what is gone. It is called from one goroutine,
	// must not block for long, and returns the resources that it rejects; the others are in force when it returns.
	Apply func(upserts []*discoveryv3.Resource, removed []string) []Rejection
	// Optional types are not waited for by Synced: a control plane need not serve them.
	Optional bool
}

// Config configures a Client.
type Config struct {
	// Connect makes a channel; it is called for each attempt, and the client closes what it returns. Required.
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
type Client struct{}

// NewClient makes a Client, which does nothing until Run is called.
func NewClient(cfg Config) (*Client, error) { panic("unwritten") }

// Run connects, and connects again whenever the stream ends, until ctx ends, and then returns nil. What handlers have
// applied stays in force while there is no stream. Call it once.
func (c *Client) Run(ctx context.Context) error { panic("unwritten") }

// Synced is closed once the first push of every type that is not optional has been applied and acknowledged.
func (c *Client) Synced() <-chan struct{} { panic("unwritten") }

// Status describes the client.
type Status struct {
	Connected bool
	// LastError is why the last stream ended; nil while there was none.
	LastError error
	// Rejected names the resources that are rejected at present, by type URL, with the cause.
	Rejected map[string]map[string]string
}

// Status may be called concurrently with Run.
func (c *Client) Status() Status { panic("unwritten") }
