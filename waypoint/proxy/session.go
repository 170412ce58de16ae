package proxy

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// pick chooses the target of a request, once for all its tries: the one that has the endpoint that the request's session names, if it
// has a session and one of them does; else by weight.
func (r *request) pick(f *route.Forward) *route.Target {
	req := &r.x.Request
	if len(f.Keys) > 0 {
		var cookie string
		if r.key, r.keyed, cookie = f.Key(req, r.c.client.Addr()); cookie != "" {
			r.cookies = append(r.cookies, cookie)
		}
	}
	if f.Session == nil || !f.Session.For(req.Path) {
		return f.Choose()
	}
	r.session = f.Session
	if r.named = f.Session.Endpoint(req); !r.named.IsValid() {
		return f.Choose()
	}
	for _, t := range f.Targets {
		if c := r.c.proxy.cfg.Clusters.Lookup(t.Cluster); c != nil {
			if r.pinned = c.Named(r.named); r.pinned != nil {
				return t
			}
		}
	}
	return f.Choose()
}

// choose chooses an endpoint for the next try.
func (r *request) choose(tried []*upstream.Endpoint) (*upstream.Endpoint, error) {
	if e, err := r.cluster.Before(r.ctx, r.c.destination); e != nil || err != nil {
		return e, err
	}
	switch {
	case r.pinned != nil && !r.pinned.PassedOver() && !slices.Contains(tried, r.pinned):
		return r.pinned, nil
	case r.keyed:
		return r.cluster.ChooseFor(r.key, tried)
	}
	return r.cluster.Choose(tried)
}

// remind adds to a backend's response what keeps the client where it is.
func (r *request) remind(resp *message.Response) {
	for _, line := range r.cookies {
		resp.Header.Add("set-cookie", line)
	}
	if r.session != nil && (r.endpoint.Addr() != r.named || r.session.Header != "") {
		r.session.Name(&resp.Header, r.endpoint.Addr())
	}
}

// httpOf are the statuses of HTTP that statuses of gRPC have for clients that do not speak it (google.rpc.Code).
var httpOf = [...]int{0: 200, 1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401}

// meet has the request meet the fault that its route injects.
func (r *request) meet(f *route.Fault) *refusal {
	delay, abort := f.Meet(&r.x.Request)
	if delay > 0 {
		over := time.NewTimer(delay)
		defer over.Stop()
		select {
		case <-over.C:
		case <-r.x.Context().Done():
			return &refusal{flag: telemetry.RequestClientGone, text: fmt.Sprintf("the client is gone: %v", context.Cause(r.x.Context()))}
		}
	}
	if !abort {
		return nil
	}
	out := &refusal{status: f.Status, flag: telemetry.RequestFault, text: fmt.Sprintf("route %s injects this fault, as a VirtualService of the service says", r.route.Name)}
	if f.GRPC >= 0 {
		out.status, out.grpc = httpOf[f.GRPC], f.GRPC
	}
	return out
}
