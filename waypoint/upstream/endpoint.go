package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
	"unique"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// How long an endpoint that could not be connected to is passed over: passFirst, and twice as long each time in a row, up to
// passMost.
const (
	passFirst = time.Second
	passMost  = 30 * time.Second
)

// endpointKey tells endpoints apart: one whose identity, TLS or workload is another is another, also at the same address.
type endpointKey struct {
	addr     netip.AddrPort
	hbone    bool
	id       identity.Identity
	workload config.Workload
	tls      string // secured.key; "" for none
}

// Endpoint is one address of a workload, with the connections to it. Its methods may be called concurrently.
type Endpoint struct {
	cluster *Cluster
	key     endpointKey
	party   unique.Handle[telemetry.Party]
	tls     *secured // nil for none

	active   atomic.Int64  // requests and connections under way
	out      atomic.Int64  // passed over until then, in Unix nanoseconds
	failures atomic.Uint32 // in a row
	health   health

	http1, http2 pool
}

func newEndpoint(c *Cluster, key endpointKey, tls *secured) *Endpoint {
	party := telemetry.Party{
		Workload: key.workload.Name, Namespace: key.workload.Namespace, App: key.workload.Canonical, Version: key.workload.Revision,
		CanonicalName: key.workload.Canonical, CanonicalRevision: key.workload.Revision, Cluster: key.workload.Cluster,
	}
	if !key.id.IsZero() {
		party.Principal = key.id.String()
	}
	e := &Endpoint{cluster: c, key: key, party: unique.Make(party), tls: tls}
	e.http1.init(e, message.HTTP11)
	e.http2.init(e, message.HTTP2)
	return e
}

// Addr is the application's address.
func (e *Endpoint) Addr() netip.AddrPort { return e.key.addr }

// Identity is whom the endpoint must prove to be; zero for one outside the mesh.
func (e *Endpoint) Identity() identity.Identity { return e.key.id }

// Workload is what the endpoint belongs to.
func (e *Endpoint) Workload() config.Workload { return e.key.workload }

// Party names the endpoint in metrics.
func (e *Endpoint) Party() unique.Handle[telemetry.Party] { return e.party }

// HBONE tells whether it is reached by a tunnel.
func (e *Endpoint) HBONE() bool { return e.key.hbone }

// Active returns how many requests and connections are under way.
func (e *Endpoint) Active() int { return int(e.active.Load()) }

// Connections returns how many connections of HTTP to the endpoint are open.
func (e *Endpoint) Connections() int { return e.http1.size() + e.http2.size() }

// PassedOver tells whether the endpoint failed to connect lately, or is ejected.
func (e *Endpoint) PassedOver() bool { return !e.usable(now()) }

func (e *Endpoint) String() string {
	if e.key.workload.Name == "" {
		return e.key.addr.String()
	}
	return e.key.addr.String() + " (" + e.key.workload.Name + ")"
}

// Begin counts a request to the endpoint, and End its end; Choose looks at the count. It returns an error that is ErrOverflow,
// and counts nothing, if the cluster has as many as may be.
func (e *Endpoint) Begin() error {
	c := e.cluster
	if err := take(&c.usage.requests, c.limits().Requests, "requests"); err != nil {
		return err
	}
	if b := c.budget.Load(); b != nil {
		b.tries.add(now())
	}
	e.active.Add(1)
	return nil
}

// End is the counterpart of Begin.
func (e *Endpoint) End() {
	e.active.Add(-1)
	e.cluster.usage.requests.Add(-1)
}

// BeginConnection is Begin for a connection that is no HTTP, EndConnection its counterpart.
func (e *Endpoint) BeginConnection() error {
	c := e.cluster
	if err := take(&c.usage.connections, c.limits().Connections, "connections"); err != nil {
		return err
	}
	e.active.Add(1)
	return nil
}

// EndConnection is the counterpart of BeginConnection.
func (e *Endpoint) EndConnection() {
	e.active.Add(-1)
	e.cluster.usage.connections.Add(-1)
}

func (e *Endpoint) usable(now int64) bool {
	return e.out.Load() <= now && (e.health.ejected.Load() <= now || e.cluster.panic.Load() > now)
}

// failed has the endpoint passed over for a while.
func (e *Endpoint) failed() {
	n := e.failures.Add(1)
	pass := passMost
	if n <= 5 {
		pass = min(passMost, passFirst<<(n-1))
	}
	e.out.Store(now() + int64(pass))
}

// worked forgets failures.
func (e *Endpoint) worked() {
	if e.failures.Load() != 0 {
		e.failures.Store(0)
		e.out.Store(0)
	}
}

// ConnectError says that an endpoint could not be connected to. Nothing was sent.
type ConnectError struct {
	Endpoint *Endpoint
	Err      error
}

func (e *ConnectError) Error() string { return fmt.Sprintf("connect to %v: %v", e.Endpoint, e.Err) }

// Unwrap returns Err.
func (e *ConnectError) Unwrap() error { return e.Err }

// Client reserves a request on a connection to the endpoint that speaks a version of HTTP (HTTP11 or HTTP2), and makes one if
// need be. The caller must call RoundTrip or Unreserve. The error is a *ConnectError, or the context's cause.
func (e *Endpoint) Client(ctx context.Context, p message.Protocol) (codec.Client, error) {
	if p == message.HTTP2 {
		return e.http2.acquire(ctx)
	}
	return e.http1.acquire(ctx)
}

// Dial opens a connection to the application for what is not HTTP: a *hbone.Stream, a *net.TCPConn to an endpoint outside the
// mesh, or a *tls.Conn over either. It takes the cluster's ConnectTimeout at most. The caller closes it. The error is a *ConnectError,
// or the context's cause.
func (e *Endpoint) Dial(ctx context.Context) (net.Conn, error) {
	if e.tls == nil {
		return e.connect(ctx, nil)
	}
	return e.connect(ctx, e.tls.plain)
}

// dialHTTP is Dial for a version of HTTP.
func (e *Endpoint) dialHTTP(ctx context.Context, p message.Protocol) (net.Conn, error) {
	if e.tls == nil {
		return e.connect(ctx, nil)
	}
	return e.connect(ctx, e.tls.of(p))
}

// connect is Dial; secure is nil for plain.
func (e *Endpoint) connect(ctx context.Context, secure *tls.Config) (net.Conn, error) {
	limit := e.cluster.Settings().ConnectTimeout
	dctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not connected in %v", limit))
	defer cancel()
	nc, err := e.dial(dctx)
	if err == nil && secure != nil {
		nc, err = e.tls.client(dctx, nc, secure)
	}
	switch {
	case err == nil:
		e.worked()
		return nc, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, hbone.ErrTooManyConnections), errors.Is(err, hbone.ErrPoolClosed):
	default:
		e.failed()
	}
	if dctx.Err() != nil {
		err = context.Cause(dctx)
	}
	return nil, &ConnectError{e, err}
}

func (e *Endpoint) dial(ctx context.Context) (net.Conn, error) {
	cfg := &e.cluster.manager.cfg
	if !e.key.hbone {
		nc, err := cfg.Dial(ctx, e.key.addr)
		if err == nil {
			keepAlive(nc, e.cluster.Settings().Keepalive)
		}
		return nc, err
	}
	if e.key.id.IsZero() {
		return nil, errors.New("the control plane names no identity of the endpoint, so nobody can be trusted to be it")
	}
	s, err := cfg.Tunnels.Open(ctx, hbone.Target{
		Addr:   netip.AddrPortFrom(e.key.addr.Addr(), api.PortHBONE),
		UID:    e.peer().uid(),
		Source: cfg.Source,
		Expect: []identity.Identity{e.key.id},
	}, hbone.Request{Authority: e.key.addr.String(), Baggage: cfg.Baggage})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// keepAlive has a connection probed as the settings say. Where that cannot be it goes without: it only finds dead peers sooner.
func keepAlive(nc net.Conn, k *config.Keepalive) {
	if tcp, ok := nc.(*net.TCPConn); ok && k != nil {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: k.Idle, Interval: k.Interval, Count: k.Count})
	}
}

// peer is whom the endpoint's tunnel leads to.
func (e *Endpoint) peer() peerKey { return peerKey{e.key.addr.Addr(), e.key.id} }

// retire takes the endpoint out of use: its connections end with their last request.
func (e *Endpoint) retire() {
	e.http1.shutdown()
	e.http2.shutdown()
}
