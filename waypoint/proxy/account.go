package proxy

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
	"unique"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/trace"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// count counts a request that is over.
func (r *request) count(took time.Duration) {
	r.c.proxy.cfg.Requests.Done(telemetry.RequestLabels{
		Ends: r.c.ends(r.cluster, r.endpoint), Status: uint16(r.status), GRPC: r.grpc, GRPCStatus: r.result, Flag: r.flag,
		MutualTLS: r.c.principal != "",
	}, telemetry.RequestSize{Took: took, Received: r.x.Received(), Sent: r.x.Sent()})
}

// Messages counts messages of gRPC, as codec.MessageCounter.
func (r *request) Messages(received bool, n int) {
	r.c.proxy.cfg.Requests.Messages(r.c.ends(r.cluster, r.target.Load()), received, n)
}

// ends names the client and who it came to: either may be nil. A request that got to no cluster counts as one to the service that
// the client connected to.
func (c *connection) ends(cluster *upstream.Cluster, e *upstream.Endpoint) telemetry.Ends {
	ends := telemetry.Ends{Source: c.source}
	switch {
	case e != nil:
		ends.Destination = e.Party()
	default:
		ends.Destination = unique.Make(telemetry.Party{})
	}
	switch {
	case cluster != nil:
		ends.Service = cluster.Service()
	default:
		ends.Service = c.service()
	}
	return ends
}

// refused counts and logs a request that was answered before it could be read.
func (c *connection) refused(status int, reason string) {
	c.proxy.cfg.Requests.Done(telemetry.RequestLabels{
		Ends: c.ends(nil, nil), Status: uint16(status), GRPCStatus: telemetry.NoGRPC, Flag: telemetry.RequestMalformed,
		MutualTLS: c.principal != "",
	}, telemetry.RequestSize{})
	if log := c.proxy.cfg.AccessLog; log != nil && c.wanted(entry{c: c, status: status}, true, false) {
		attrs := append(make([]slog.Attr, 0, 12), slog.Int("status", status))
		attrs = append(c.attrs(attrs, time.Now(), nil), slog.String("response_flags", telemetry.RequestMalformed.String()), slog.String("error", reason))
		log.LogAttrs(context.Background(), slog.LevelWarn, "request refused", attrs...)
	}
}

// sampled tells whether something that went well is one of those that are logged.
func (p *Proxy) sampled() bool {
	return p.cfg.Sampling > 0 && (p.cfg.Sampling >= 1 || rand.Float64() < p.cfg.Sampling)
}

// log writes the line of a request, if it is wanted. Bad ones are those that the proxy had to answer itself, or the backend failed.
func (r *request) log(took time.Duration) {
	log := r.c.proxy.cfg.AccessLog
	bad := r.flag != telemetry.RequestOK || r.status >= 500
	if log == nil {
		return
	}
	about := entry{c: r.c, r: r, status: r.status, cluster: r.cluster, endpoint: r.endpoint, took: took}
	if !r.c.wanted(about, bad, len(r.audits)+len(r.failedOpen) > 0) {
		return
	}
	level := slog.LevelInfo
	if bad {
		level = slog.LevelWarn
	}
	if log.Enabled(context.Background(), level) {
		r.writeLine(log, level, took)
	}
}

// writeLine is no part of log, whose stack every request pays for.
func (r *request) writeLine(log *slog.Logger, level slog.Level, took time.Duration) {
	attrs := make([]slog.Attr, 0, 30)
	attrs = append(attrs, slog.String("method", r.method), slog.String("authority", r.authority), slog.String("path", printable(r.path)),
		slog.String("protocol", r.x.Request.Proto.String()), slog.Int("status", r.status))
	attrs = r.c.attrs(attrs, r.start, r.endpoint)
	if r.route != nil {
		attrs = append(attrs, slog.String("route", r.route.Name))
	}
	if r.tries > 1 {
		attrs = append(attrs, slog.Int("tries", r.tries))
	}
	if r.cluster != nil {
		attrs = append(attrs, slog.String("upstream.cluster", r.cluster.Name()))
	}
	if r.answered > 0 {
		attrs = append(attrs, slog.String("upstream.duration", milliseconds(r.answered)))
	}
	attrs = append(attrs, slog.Int64("bytes_sent", r.x.Sent()), slog.Int64("bytes_recv", r.x.Received()))
	for _, f := range [...]struct{ name, field string }{{"request_id", "x-request-id"}, {"user_agent", "user-agent"}} {
		if value := r.x.Request.Header.Get(f.field); value != "" {
			attrs = append(attrs, slog.String(f.name, printable(value)))
		}
	}
	if c, ok := trace.Parse(r.x.Request.Header.Get(trace.Parent)); ok {
		attrs = append(attrs, slog.String("trace_id", c.TraceID()))
	}
	if r.flag != telemetry.RequestOK {
		attrs = append(attrs, slog.String("response_flags", r.flag.String()))
	}
	if r.grpc && r.result != telemetry.NoGRPC {
		attrs = append(attrs, slog.Int("grpc_status", int(r.result)))
	}
	attrs = auditAttrs(attrs, r.audits)
	if len(r.failedOpen) > 0 {
		attrs = append(attrs, slog.String("ext_authz_failed_open", strings.Join(r.failedOpen, ",")))
	}
	if r.err != nil {
		attrs = append(attrs, slog.String("error", r.err.Error()))
	}
	log.LogAttrs(context.Background(), level, "request complete", attrs...)
}

// attrs adds what is known of both ends.
func (c *connection) attrs(attrs []slog.Attr, start time.Time, e *upstream.Endpoint) []slog.Attr {
	src := c.source.Value()
	attrs = append(attrs, slog.String("src.addr", c.client.String()), slog.String("src.identity", c.principal))
	if src.Workload != "" {
		attrs = append(attrs, slog.String("src.workload", src.Workload))
	}
	attrs = append(attrs, slog.String("dst.addr", c.destination.String()), slog.String("chain", c.chain.Name))
	if e != nil {
		attrs = append(attrs, slog.String("upstream.addr", e.Addr().String()))
		if w := e.Workload(); w.Name != "" {
			attrs = append(attrs, slog.String("upstream.workload", w.Name))
		}
		if id := e.Identity(); !id.IsZero() {
			attrs = append(attrs, slog.String("upstream.identity", id.String()))
		}
	}
	return append(attrs, slog.String("duration", milliseconds(time.Since(start))))
}

// milliseconds is a duration as logs have it.
func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }
