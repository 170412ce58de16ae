package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/lookup"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// freeTries is how many further tries a request gets, whatever its route says, since connections turned out to be dead that
// were good before: the backend has not seen it.
const freeTries = 3

// Why tries end.
var (
	errTimeout    = errors.New("the route's time for the request is over")
	errTryTimeout = errors.New("the route's time for one try is over")
	errIdleStream = errors.New("nothing came or went for as long as the route allows")
)

// forward sends the request to a backend and returns its response.
func (r *request) forward(f *route.Forward) (*message.Response, *refusal) {
	req := &r.x.Request
	target := r.pick(f)
	target.EditRequest(req)
	if req.Upgrade != "" && !r.mayUpgrade(f, req.Upgrade) {
		req.Upgrade = "" // RFC 9110 section 7.8: a server may ignore it
	}
	if r.cluster = r.c.proxy.cfg.Clusters.Lookup(target.Cluster); r.cluster == nil {
		return nil, &refusal{status: f.NotFoundStatus, flag: telemetry.RequestNoCluster, text: fmt.Sprintf(
			"the backend of route %s does not exist or may not be referred to: see the status of the route", r.route.Name)}
	}
	r.prepare(f)
	retries, free := 0, 0
	var tried []*upstream.Endpoint
	for {
		resp, failed := r.try(f, tried)
		if failed == nil {
			bad := f.Retry != nil && r.worthRetry(f.Retry, resp)
			if !bad || retries >= f.Retry.Number || !r.repeatable(false) {
				if bad && retries > 0 {
					r.flag = telemetry.RequestRetriesExhausted
				}
				return r.edited(target, resp), nil
			}
			if err := r.retry(); errors.Is(err, upstream.ErrBudget) {
				discard(resp)
				return nil, r.refuse(&failure{err: fmt.Errorf("it answered %d; not tried again: %w", resp.Status, err)})
			} else if err != nil {
				r.flag = telemetry.RequestOverflow
				return r.edited(target, resp), nil
			}
			if !r.repeatable(true) { // not any more
				return r.edited(target, resp), nil
			}
			discard(resp)
		} else {
			switch {
			case r.ctx.Err() != nil || !r.repeatable(true):
				return nil, r.refuse(failed)
			case failed.free && free < freeTries:
				free++
				continue
			case f.Retry == nil || retries >= f.Retry.Number || failed.happened == 0 || !f.Retry.Before(failed.happened):
				return nil, r.refuse(failed)
			}
			if err := r.retry(); err != nil {
				return nil, r.refuse(&failure{err: fmt.Errorf("%w; not tried again: %w", failed.err, err)})
			}
		}
		retries++
		if r.endpoint != nil && !slices.Contains(tried, r.endpoint) {
			tried = append(tried, r.endpoint)
		}
		r.c.proxy.counts.Retries.Add(1)
		if !r.pause(f.Retry.BackOff(retries)) {
			return nil, r.refuse(&failure{err: context.Cause(r.ctx)})
		}
	}
}

// retry counts a further try with the cluster: each with its budget, and once for all of a request's as under way.
func (r *request) retry() error {
	if err := r.cluster.TakeRetry(); err != nil {
		return err
	}
	if r.retrying {
		return nil
	}
	if err := r.cluster.BeginRetry(); err != nil {
		return err
	}
	r.retrying = true
	return nil
}

// endRetry is the counterpart of retry; it may be called where there was none.
func (r *request) endRetry() {
	if r.retrying {
		r.cluster.EndRetry()
		r.retrying = false
	}
}

// edited makes a backend's response the client's. There is no further try then, however long the response takes.
func (r *request) edited(target *route.Target, resp *message.Response) *message.Response {
	r.endRetry()
	target.EditResponse(&resp.Header)
	r.remind(resp)
	r.cross(resp)
	return resp
}

// mayUpgrade tells whether the route, or else the chain, allows an upgrade.
func (r *request) mayUpgrade(f *route.Forward, protocol string) bool {
	if allowed, ok := f.Upgrades[protocol]; ok {
		return allowed
	}
	for _, u := range r.http.Upgrades {
		if u == protocol {
			return true
		}
	}
	return false
}

// prepare sets what bounds all tries together, and who else gets the body.
func (r *request) prepare(f *route.Forward) {
	req := &r.x.Request
	length := req.Length
	if b := req.Body; b != nil {
		keep := f.Retry != nil && (length < 0 || length <= maxKept)
		if keep || f.Timeout > 0 || f.Retry != nil && f.Retry.PerTryTimeout > 0 || len(f.Mirrors) > 0 {
			r.body = newSource(b)
			r.body.keep, r.body.ended = keep, r.bodySent
		}
	}
	for _, m := range f.Mirrors {
		if m.Chosen() {
			r.mirror(m)
		}
	}
	r.sent = r.body == nil
	if d := r.longest(f); d > 0 {
		r.cancelable()
		cancel := r.cancel
		r.after(d, func() { cancel(errTimeout) })
	}
	if f.Timeout > 0 {
		r.cancelable()
		cancel := r.cancel
		r.whenSent(func() { r.after(f.Timeout, func() { cancel(errTimeout) }) })
	}
	idle := r.http.StreamIdleTimeout
	if f.IdleTimeout != route.NotSet {
		idle = f.IdleTimeout
	}
	if idle > 0 {
		r.cancelable()
		r.idle.limit = idle
		r.c.proxy.watchdog.add(r)
	}
}

// longest is how long the request and its response may take, from its first byte; 0 for as long as they like.
func (r *request) longest(f *route.Forward) time.Duration {
	d := r.http.MaxStreamDuration
	if f.MaxStreamDuration != route.NotSet {
		d = f.MaxStreamDuration
	}
	if f.GRPCTimeoutMax != route.NotSet {
		if asked, ok := grpcTimeout(r.x.Request.Header.Get("grpc-timeout")); ok {
			d = asked
			if f.GRPCTimeoutMax > 0 {
				d = min(d, f.GRPCTimeoutMax)
			}
		}
	}
	return d
}

// grpcTimeout reads a grpc-timeout: at most 8 digits and a unit.
func grpcTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond,
		'u': time.Microsecond, 'n': time.Nanosecond}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 31)
	if !ok || err != nil {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// repeatable tells whether the request can be sent once more. now: if so it will be, and the last try gets no more of it; its response
// must not be used then, since it may break off.
func (r *request) repeatable(now bool) bool {
	switch {
	case r.x.Request.Body == nil:
		return true
	case r.body != nil:
		return r.body.again(now)
	}
	return !r.taken
}

// worthRetry tells whether the route wants another try after a response.
func (r *request) worthRetry(retry *route.Retry, resp *message.Response) bool {
	if retry.Status(resp.Status) {
		return true
	}
	if !r.grpc {
		return false
	}
	status, ok := resp.Header.Lookup("grpc-status")
	return ok && retry.GRPC(status)
}

// failure is a try that has brought no response.
type failure struct {
	err      error
	happened route.RetryOn // 0: trying again is of no use
	free     bool          // the backend has not seen it, and it is not the endpoint's fault
}

// try sends the request to one endpoint.
func (r *request) try(f *route.Forward, tried []*upstream.Endpoint) (*message.Response, *failure) {
	r.leaveTry()
	e, err := r.choose(tried)
	if err != nil {
		return nil, &failure{err: err}
	}
	r.endpoint = e
	r.target.Store(e)
	if err := e.Begin(); err != nil {
		return nil, &failure{err: err}
	}
	r.begun = true
	r.tries++
	r.req = r.x.Request
	ctx, stop := r.boundTry(f)
	client, err := e.Client(ctx, r.protocol(&r.req))
	if err != nil {
		f := connectFailure(ctx, err)
		if f.happened == route.OnConnectFailure {
			e.Failed()
		}
		return nil, f
	}
	if r.body != nil {
		r.req.Body = r.body.attempt()
	} else {
		r.taken = true
	}
	r.answered = 0
	asked := time.Now()
	resp, err := client.RoundTrip(ctx, &r.req, r.inform)
	if err != nil {
		f := r.failure(ctx, err)
		if f.happened != 0 && !f.free && r.x.Context().Err() == nil {
			e.Failed()
		}
		return nil, f
	}
	stop()
	r.answered = time.Since(asked)
	e.Responded(resp.Status)
	return resp, nil
}

// boundTry returns the context of a try; stop ends its bound, since the response has come.
func (r *request) boundTry(f *route.Forward) (ctx context.Context, stop func()) {
	if f.Retry == nil || f.Retry.PerTryTimeout <= 0 {
		return r.ctx, func() {}
	}
	ctx, r.tryCancel = context.WithCancelCause(r.ctx)
	cancel := r.tryCancel
	var mu sync.Mutex // guards what follows: the body may end at any time
	var timer *time.Timer
	over := false
	r.whenSent(func() {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			timer = r.after(f.Retry.PerTryTimeout, func() { cancel(errTryTimeout) })
		}
	})
	return ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		if timer != nil {
			timer.Stop()
		}
	}
}

// leaveTry gives back what the last try holds.
func (r *request) leaveTry() {
	if r.tryCancel != nil {
		r.tryCancel(nil)
		r.tryCancel = nil
	}
	if r.begun {
		r.endpoint.End()
		r.begun = false
	}
}

// inform passes a response of status 1xx on.
func (r *request) inform(resp *message.Response) { _ = r.x.Inform(resp) }

// protocol is what the backend is spoken to in.
func (r *request) protocol(req *message.Request) message.Protocol {
	switch p := r.cluster.Settings().Protocol; {
	case req.Upgrade != "":
		return message.HTTP11
	case p == config.HTTP2, p == config.AsClient && req.Proto == message.HTTP2:
		return message.HTTP2
	}
	return message.HTTP11
}

// connectFailure says what to make of having no connection.
func connectFailure(ctx context.Context, err error) *failure {
	switch {
	case ctx.Err() != nil:
		return &failure{err: context.Cause(ctx), happened: route.OnReset}
	case errors.Is(err, upstream.ErrOverflow):
		return &failure{err: err}
	}
	return &failure{err: err, happened: route.OnConnectFailure, free: errors.Is(err, upstream.ErrRetired)}
}

// failure says what to make of a request that failed on a connection.
func (r *request) failure(ctx context.Context, err error) *failure {
	out := &failure{err: err, happened: route.OnReset}
	var e *codec.Error
	if !errors.As(err, &e) {
		return out
	}
	switch {
	case errors.Is(err, codec.ErrRequestBody):
		out.happened = 0 // it would break off again
	case ctx.Err() != nil:
		out.err = context.Cause(ctx)
	case e.Stage == codec.Unsent:
		out.happened, out.free = route.OnResetBeforeRequest, true
	case e.Stage == codec.Refused:
		out.happened, out.free = route.OnRefusedStream, true
	case e.Stale && idempotent(r.method):
		out.free = true
	}
	return out
}

// idempotent tells whether a request of this method can be repeated where it is not known whether the first has arrived
// (RFC 9110 section 9.2.2).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// refuse makes the answer of a failure.
func (r *request) refuse(f *failure) *refusal {
	var connect *upstream.ConnectError
	var denied *hbone.StatusError
	var reset *h2.StreamError
	to := fmt.Sprintf("of route %s", r.route.Name)
	switch err := f.err; {
	case r.x.Context().Err() != nil:
		return &refusal{status: 0, flag: telemetry.RequestClientGone, text: fmt.Sprintf("the client is gone: %v", err)}
	case errors.Is(err, errPolicyChange):
		return &refusal{status: 403, flag: telemetry.RequestDenied, text: err.Error()}
	case errors.Is(err, upstream.ErrBudget): // whatever happened before: the Gateway API wants this status
		return &refusal{status: 503, flag: telemetry.RequestOverflow, text: fmt.Sprintf("the backend %s: %v", to, err)}
	case errors.Is(err, errTimeout), errors.Is(err, errTryTimeout):
		return &refusal{status: 504, flag: telemetry.RequestTimeout, text: fmt.Sprintf("no answer in time from the backend %s: %v", to, err)}
	case errors.Is(err, errIdleStream):
		return &refusal{status: 504, flag: telemetry.RequestIdle, text: fmt.Sprintf("the backend %s: %v", to, err)}
	case errors.Is(err, upstream.ErrOverflow):
		return &refusal{status: 503, flag: telemetry.RequestOverflow, text: fmt.Sprintf("the backend %s: %v", to, err)}
	case errors.Is(err, upstream.ErrRefused):
		return &refusal{status: 503, flag: telemetry.RequestNoHealthy, text: fmt.Sprintf("the backend %s (%s): %v", to, r.cluster.Name(), err)}
	case errors.Is(err, lookup.ErrNotFound):
		return &refusal{status: 503, flag: telemetry.RequestNoHealthy, text: fmt.Sprintf("the backend %s (%s): %v", to, r.cluster.Name(), err)}
	case errors.Is(err, upstream.ErrNoEndpoint):
		return &refusal{status: 503, flag: telemetry.RequestNoHealthy, text: fmt.Sprintf("the backend %s (%s) has no endpoint that is ready", to, r.cluster.Name())}
	case errors.Is(err, codec.ErrRequestBody):
		return &refusal{status: 400, flag: telemetry.RequestOK, text: fmt.Sprintf("the request's body cannot be read: %v", err)}
	case errors.Is(err, codec.ErrBadResponse):
		return &refusal{status: 502, flag: telemetry.RequestUpstreamProtocol, text: fmt.Sprintf("the backend %s does not answer as HTTP has it: %v; does the port speak HTTP?", to, err)}
	case errors.As(err, &denied) && denied.Status == 401:
		return &refusal{status: 503, flag: telemetry.RequestConnectFailed, text: fmt.Sprintf(
			"the backend %s refused this waypoint: %v; its policies must allow the waypoint's identity", to, err)}
	case errors.As(err, &connect):
		return &refusal{status: 503, flag: telemetry.RequestConnectFailed, text: fmt.Sprintf("the backend %s could not be reached in %d tries: %v", to, r.tries, err)}
	case errors.As(err, &reset) && reset.Remote && r.protocol(&r.req) == message.HTTP2:
		return &refusal{status: 503, flag: telemetry.RequestUpstreamReset, text: fmt.Sprintf("the backend %s gave the request up before it answered: %v", to, err)}
	default:
		return &refusal{status: 503, flag: telemetry.RequestUpstreamEnded, text: fmt.Sprintf("the backend %s ended the connection before it answered: %v", to, err)}
	}
}

// pause waits before the next try. It returns false if the request has ended meanwhile.
func (r *request) pause(d time.Duration) bool {
	if d <= 0 {
		return r.ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// discard closes a response that nobody wants.
func discard(resp *message.Response) {
	if resp.Body != nil {
		resp.Body.Close()
	}
	if resp.Tunnel != nil {
		_ = resp.Tunnel.Close()
	}
}
