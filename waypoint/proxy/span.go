package proxy

import (
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/trace"
)

// trace makes the request part of a trace: that which it says to be part of, or a new one. Whether it is recorded is the caller's
// decision if there is one.
func (r *request) trace(s *config.Snapshot) {
	how := r.c.told(s).tracing
	if how == nil {
		return
	}
	r.tracing = how
	header := &r.x.Request.Header
	parent, has := trace.Parse(header.Get(trace.Parent))
	sampled := parent.Sampled()
	if !has {
		sampled = how.Sampling > 0 && (how.Sampling >= 1 || rand.Float64() < how.Sampling)
		header.Del(trace.State) // it belongs to no trace
	}
	if sampled && r.c.proxy.cfg.Tracers != nil {
		if t := r.c.proxy.cfg.Tracers.Tracer(how.Collector); t != nil {
			state, _ := header.Joined(trace.State)
			r.span = t.Start(parent, has, state, r.operation(), r.start)
			ctx := r.span.Context()
			header.Set(trace.Parent, ctx.String())
			return
		}
	}
	if !has {
		ctx := trace.Begin()
		header.Set(trace.Parent, ctx.String())
	}
}

// operation is what the span is called: as Istio does, by the service and its port.
func (r *request) operation() string {
	if parts := strings.Split(r.c.chain.Name, "|"); len(parts) == 4 {
		return parts[3] + ":" + parts[1] + "/*"
	}
	return r.c.chain.Name
}

// endSpan ends the span of the request, if it has one: by OpenTelemetry's conventions for HTTP servers and by the names that Envoy
// gives the same things, which dashboards for Istio look for.
func (r *request) endSpan(took time.Duration) {
	if !r.span.Recorded() {
		return
	}
	req := &r.x.Request
	path, query, _ := strings.Cut(r.path, "?")
	host, port, err := net.SplitHostPort(r.authority)
	if err != nil {
		host, port = r.authority, strconv.Itoa(int(r.c.destination.Port()))
	}
	status, agent := strconv.Itoa(r.status), req.Header.Get("user-agent")
	text := make([]attribute.KeyValue, 0, 44)
	add := func(name, value string) {
		if value != "" {
			text = append(text, attribute.String(name, strings.ToValidUTF8(value, "")))
		}
	}
	number := func(name string, value int64) { text = append(text, attribute.Int64(name, value)) }
	add("http.request.method", r.method)
	add("url.scheme", req.Scheme)
	add("url.path", cutTo(path, r.tracing.MaxPath))
	add("url.query", cutTo(query, r.tracing.MaxPath))
	add("server.address", host)
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		number("server.port", int64(n))
	}
	add("client.address", r.c.client.Addr().String())
	add("network.protocol.name", "http")
	add("network.protocol.version", strings.TrimPrefix(req.Proto.String(), "HTTP/"))
	add("user_agent.original", agent)
	if r.status > 0 {
		number("http.response.status_code", int64(r.status))
	}
	number("http.request.body.size", r.x.Received())
	number("http.response.body.size", r.x.Sent())

	add("component", "proxy")
	add("http.method", r.method)
	add("http.url", req.Scheme+"://"+r.authority+cutTo(r.path, r.tracing.MaxPath))
	add("http.protocol", req.Proto.String())
	add("http.status_code", status)
	add("user_agent", agent)
	add("guid:x-request-id", req.Header.Get("x-request-id"))
	add("downstream_cluster", "-")
	add("peer.address", r.c.client.Addr().String())
	add("request_size", strconv.FormatInt(r.x.Received(), 10))
	add("response_size", strconv.FormatInt(r.x.Sent(), 10))
	add("response_flags", r.flag.String())
	if r.cluster != nil {
		add("upstream_cluster", r.cluster.Name())
		add("upstream_cluster.name", r.cluster.Name())
	}
	if r.endpoint != nil {
		add("upstream_address", r.endpoint.Addr().String())
	}
	if r.route != nil {
		add("ambit.route", r.route.Name)
	}
	add("source.principal", r.c.principal)
	if r.tries > 1 {
		number("http.request.resend_count", int64(r.tries-1))
	}
	r.grpcAttributes(add, number)
	for _, t := range r.tracing.Tags {
		value := t.Value
		if t.Header != "" {
			if v, has := req.Header.Lookup(t.Header); has {
				value = v
			}
		}
		add(t.Name, value)
	}
	failed := r.failed()
	if failed != "" {
		add("error", "true")
		add("error.type", failed)
	}
	why := failed
	if r.err != nil {
		why = r.err.Error()
	}
	r.span.End(r.start.Add(took), failed != "", why, text...)
}

// grpcAttributes adds what gRPC calls have more.
func (r *request) grpcAttributes(add func(name, value string), number func(name string, value int64)) {
	if !r.grpc {
		return
	}
	add("rpc.system", "grpc")
	if service, method, ok := strings.Cut(strings.TrimPrefix(r.path, "/"), "/"); ok {
		add("rpc.service", service)
		add("rpc.method", method)
	}
	add("grpc.path", r.path)
	add("grpc.authority", r.authority)
	add("grpc.content_type", r.x.Request.Header.Get("content-type"))
	add("grpc.timeout", r.x.Request.Header.Get("grpc-timeout"))
	if r.result != telemetry.NoGRPC {
		number("rpc.grpc.status_code", int64(r.result))
		add("grpc.status_code", strconv.Itoa(int(r.result)))
	}
}

// failed is the kind of failure that a request is one of; "" for none. Where a server is concerned, a status of 4xx is none.
func (r *request) failed() string {
	switch {
	case r.status >= 500:
		return strconv.Itoa(r.status)
	case r.grpc && r.result > 0:
		switch r.result {
		case grpcUnknown, grpcDeadlineExceeded, grpcUnimplemented, grpcInternal, grpcUnavailable, grpcDataLoss:
			return strconv.Itoa(int(r.result))
		}
	case r.flag == telemetry.RequestClientGone, r.flag == telemetry.RequestUpstreamEnded:
		return r.flag.String()
	}
	return ""
}

// cutTo shortens a text to so many bytes.
func cutTo(s string, most int) string { return s[:min(len(s), most)] }
