package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/extauthz"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/trace"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// request is one request on its way.
type request struct {
	c     *connection
	x     *codec.Exchange
	start time.Time
	http  *config.HTTP
	route *route.Route // nil until one matched

	method, authority, path string // as the client sent them, without tokens
	origin                  string // the field of that name
	grpc                    bool

	ctx       context.Context // of tries
	cancel    context.CancelCauseFunc
	tryCancel context.CancelCauseFunc // of the last try
	body      *source                 // nil: it goes to one try as it is

	mu     sync.Mutex // guards what follows: a body's end comes from whoever pulls it
	timers []*time.Timer
	sent   bool     // the body has ended, or there is none
	onSent []func() // to be called then
	over   bool

	cluster  *upstream.Cluster
	endpoint *upstream.Endpoint                // of the last try
	target   atomic.Pointer[upstream.Endpoint] // the same, for Messages
	begun    bool                              // and it is not over
	key      uint64                            // by which endpoints are chosen, if keyed
	keyed    bool
	cookies  []string           // that the response gives
	session  *route.Session     // that the request is part of
	named    netip.AddrPort     // the endpoint that it names
	pinned   *upstream.Endpoint // which that is
	req      message.Request    // of the last try
	retrying bool               // counted as such with the cluster
	tries    int
	answered time.Duration // from when the last try was sent until its response began
	taken    bool          // the body was given to a try as it is
	idle     idleState
	status   int
	result   int8 // of gRPC
	flag     telemetry.RequestFlag
	audits   []*policy.RequestPolicy
	claims   map[string]any // of the token that was verified
	followed bool           // it is among the connection's that may take long
	err      error

	limited *route.Limit // that the request was counted by; nil if there is none
	quota   route.Quota

	tracing *config.Tracing // nil: nothing says how the request is to be traced
	span    trace.Span      // of tracing; the zero Span: the request is not recorded

	asCame     message.Fields // the header before those outside changed it, for routes; nil: Request.Header
	toClient   extauthz.Edits
	denied     *extauthz.Answer // the answer of those outside, if it is no
	failedOpen []string         // authorizers without whose decision it is served
}

// serve answers one request.
func (c *connection) serve(x *codec.Exchange) {
	req := &x.Request
	r := &request{
		c: c, x: x, start: time.Now(), http: c.chain.HTTP, method: req.Method, authority: req.Authority, path: req.Path,
		grpc: isGRPC(req.Header), result: telemetry.NoGRPC, ctx: x.Context(),
	}
	if r.grpc {
		x.CountMessages(r)
	}
	resp, refused := r.answer()
	if refused != nil {
		r.flag, r.err = refused.flag, errors.New(refused.text)
		if resp = refused.response(r.grpc); r.denied != nil {
			resp = refused.denial(r.denied, r.grpc)
		}
		if r.route != nil {
			r.route.EditResponse(&resp.Header)
			r.cross(resp)
		}
	}
	if r.flag == telemetry.RequestClientGone {
		x.Abort()
	} else {
		r.respond(resp)
	}
	r.finish()
}

// forwardedCert is the field in which proxies tell a backend who the client has proved to be. What a client says there itself is
// no proof, and backends that trust the mesh's proxies might believe it (Envoy's forward_client_cert_details: SANITIZE, its default).
const forwardedCert = "x-forwarded-client-cert"

// answer finds out what the request is answered.
func (r *request) answer() (*message.Response, *refusal) {
	req := &r.x.Request
	req.Header.Del(forwardedCert)
	if refused := r.checkHeader(req); refused != nil {
		return nil, refused
	}
	path, verdict := r.http.Paths.Apply(req.Path)
	switch verdict {
	case route.PathRefused:
		return nil, &refusal{status: 400, flag: telemetry.RequestOK, text: "the path has an escaped slash or a null character, which services here do not take"}
	case route.PathRedirected:
		return &message.Response{Status: 307, Header: message.Fields{{Name: "location", Value: path}}}, nil
	}
	req.Path = path

	snapshot := r.c.proxy.snapshot.Load()
	chain := r.judging(snapshot)
	if chain.Authentication != nil {
		r.path = chain.Authentication.Bare(r.path) // neither logs nor spans have tokens
	}
	r.trace(snapshot)
	if refused := r.authorize(chain, snapshot); refused != nil {
		return nil, refused
	}
	table := r.table(snapshot)
	if table == nil {
		return nil, &refusal{status: 503, flag: telemetry.RequestNoRoute, text: fmt.Sprintf(
			"the control plane has not sent the routes %q yet; try again in a moment", r.http.Routes)}
	}
	match := *req
	if r.asCame != nil {
		match.Header = r.asCame
	}
	r.route = table.Match(&match, route.Client{Principal: r.c.principal})
	if r.route == nil {
		return nil, &refusal{status: 404, flag: telemetry.RequestNoRoute, text: fmt.Sprintf(
			"no rule of the routes for %s matches %s %s: look at the HTTPRoutes and GRPCRoutes of the service", r.http.Routes, r.method, printable(r.path))}
	}
	if cors := r.route.CORS; cors != nil {
		if resp := cors.Preflight(req); resp != nil {
			r.route.EditResponse(&resp.Header)
			return resp, nil
		}
		r.origin = req.Header.Get("origin")
	}
	if l := r.route.Limit; l != nil {
		if refused := r.limit(l); refused != nil {
			return nil, refused
		}
	}
	if f := r.route.Fault; f != nil {
		if refused := r.meet(f); refused != nil {
			return nil, refused
		}
	}
	switch {
	case r.route.Redirect != nil:
		resp := r.route.Redirect.Response(req, r.c.destination.Port())
		r.route.EditResponse(&resp.Header)
		r.cross(resp)
		return resp, nil
	case r.route.Direct != nil:
		return r.direct()
	}
	return r.forward(r.route.Forward)
}

// direct is a route's own answer.
func (r *request) direct() (*message.Response, *refusal) {
	resp := r.route.Direct.Response()
	if r.grpc || resp.Body == nil && resp.Status >= 400 {
		if resp.Body != nil {
			resp.Body.Close()
		}
		return nil, &refusal{status: resp.Status, flag: telemetry.RequestOK, text: fmt.Sprintf(
			"route %s answers %d by itself: its backends are missing or not allowed, or it is meant to; its status says which", r.route.Name, resp.Status)}
	}
	r.route.EditResponse(&resp.Header)
	r.cross(resp)
	return resp, nil
}

// table returns the routes of the request; nil if there are none. A connection that came before the service left this waypoint may
// bring requests still, until its client has heard that it ends: they are served as the last ones were.
func (r *request) table(snapshot *config.Snapshot) *route.Table {
	c, name := r.c, r.http.Routes
	table := snapshot.Routes(name)
	if table == nil && !c.stillServed(snapshot.Chain(c.destination)) {
		if last := c.routes.Load(); last != nil {
			return last
		}
	}
	if table == nil {
		table = c.proxy.await(r.x.Context(), func(s *config.Snapshot) bool { return s.Routes(name) != nil }).Routes(name)
	}
	if table != nil && table != c.routes.Load() {
		c.routes.Store(table)
	}
	return table
}

// checkHeader refuses, or takes out, what the chain's settings do not allow.
func (r *request) checkHeader(req *message.Request) *refusal {
	if r.http.Underscores == config.UnderscoresAllow {
		return nil
	}
	under := func(f message.Field) bool { return strings.Contains(f.Name, "_") }
	if r.http.Underscores == config.UnderscoresReject && slices.ContainsFunc(req.Header, under) {
		return &refusal{status: 400, flag: telemetry.RequestOK, text: "a header name has an underscore, which services here do not take"}
	}
	req.Header = slices.DeleteFunc(req.Header, under)
	return nil
}

// cross adds what the route's cross-origin policy says.
func (r *request) cross(resp *message.Response) {
	if r.route.CORS != nil {
		r.route.CORS.Respond(r.origin, &resp.Header)
	}
}

// respond sends the response.
func (r *request) respond(resp *message.Response) {
	r.toClient.Apply(&resp.Header)
	if r.limited != nil {
		r.limited.Tell(&resp.Header, r.quota)
	}
	r.status = resp.Status
	header, body, tunnel := resp.Header, resp.Body, resp.Tunnel != nil
	if r.grpc {
		r.result = grpcResult(header, nil)
	}
	switch {
	case r.http.ServerHeader == config.ServerPassThrough:
	case r.http.ServerHeader == config.ServerOverwrite || !resp.Header.Has("server"):
		resp.Header.Set("server", r.http.ServerName)
	}
	err := r.x.Respond(resp)
	switch cause := context.Cause(r.ctx); {
	case errors.Is(cause, errPolicyChange) && (err != nil || tunnel):
		r.flag, r.err = telemetry.RequestDenied, cause
	case err == nil:
		if r.grpc && r.result == telemetry.NoGRPC && body != nil {
			r.result = grpcResult(nil, body.Trailers())
		}
	case errors.Is(err, codec.ErrResponseBody):
		r.err = err
		if r.ctx.Err() != nil && r.x.Context().Err() == nil {
			r.flag, r.err = telemetry.RequestTimeout, fmt.Errorf("the response was cut: %w", context.Cause(r.ctx))
		} else {
			r.flag = telemetry.RequestUpstreamEnded
		}
	default:
		r.flag, r.err = telemetry.RequestClientGone, err
	}
}

// finish gives back what the request holds, counts it and logs it.
func (r *request) finish() {
	if r.body != nil {
		r.body.close()
	} else if b := r.x.Request.Body; b != nil && !r.taken {
		b.Close()
	}
	r.unfollow()
	r.stopTimers()
	r.c.proxy.watchdog.remove(r)
	r.leaveTry()
	if r.cancel != nil {
		r.cancel(nil)
	}
	r.endRetry()
	took := time.Since(r.start)
	r.count(took)
	r.log(took)
	r.endSpan(took)
}

// cancelable makes ctx one that can be ended before the client's.
func (r *request) cancelable() {
	if r.cancel == nil {
		r.ctx, r.cancel = context.WithCancelCause(r.x.Context())
	}
}

// after calls f after a while, unless the request is over by then. The timer can be stopped before.
func (r *request) after(d time.Duration, f func()) *time.Timer {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := time.AfterFunc(d, f)
	if r.over {
		t.Stop()
	}
	r.timers = append(r.timers, t)
	return t
}

func (r *request) stopTimers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	for _, t := range r.timers {
		t.Stop()
	}
}

// whenSent calls f once the request's body has ended; at once if there is none.
func (r *request) whenSent(f func()) {
	r.mu.Lock()
	sent := r.sent
	if !sent {
		r.onSent = append(r.onSent, f)
	}
	r.mu.Unlock()
	if sent {
		f()
	}
}

// bodySent notes that the request's body has ended.
func (r *request) bodySent() {
	r.mu.Lock()
	r.sent = true
	todo := r.onSent
	r.onSent = nil
	r.mu.Unlock()
	for _, f := range todo {
		f()
	}
}

// printable shortens what a client sent for a message.
func printable(s string) string {
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return s
}
