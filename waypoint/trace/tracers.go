package trace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// maxQueued bounds the spans that wait for a collector, each of about 3 KiB; what is beyond is dropped.
	maxQueued = 2048
	// maxBatch is how many go at once, and batchEvery how long the first of them waits.
	maxBatch   = 512
	batchEvery = 5 * time.Second
	// defaultTimeout bounds sending a batch, with what is tried again: meanwhile others queue.
	defaultTimeout = 10 * time.Second
	// endTimeout bounds sending what is left when a collector is not used any more.
	endTimeout = 3 * time.Second
	// complainEvery is how often a collector that fails is logged.
	complainEvery = time.Minute
	// scope is what the spans' library is called.
	scope = "github.com/ambit-mesh/ambit/waypoint"
)

// Collector is where spans go, and as whose. It is comparable.
type Collector struct {
	// Cluster is the collector's backend.
	Cluster string
	// URL is set for OTLP over HTTP: where to post. Otherwise it is gRPC, to Authority, or what Cluster is called if that is "".
	URL, Authority string
	// Header has fields for requests over HTTP, each as "name: value" with a line break behind it.
	Header string
	// Timeout bounds sending a batch. 0 is 10 s.
	Timeout time.Duration
	// Service is the resource's service.name.
	Service string
}

// CheckURL returns why a URL is none to post spans to.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is no URL", s)
	case u.Scheme != "http" || u.Host == "" || u.User != nil:
		return fmt.Errorf("%q: a URL such as http://collector:4318/v1/traces is required; TLS, if any, is the cluster's", s)
	}
	return nil
}

// Config says how collectors are reached. Dial, Registerer and Logger are required.
type Config struct {
	// Dial connects to an endpoint of a cluster. It may take as long as its context.
	Dial func(ctx context.Context, cluster string) (net.Conn, error)
	// Resource are attributes of all that is sent, beside service.name.
	Resource   []attribute.KeyValue
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Tracers are the ways to collectors that the configuration names. Its methods may be called concurrently.
type Tracers struct {
	cfg   Config
	spans *prometheus.CounterVec
	now   atomic.Pointer[map[Collector]*Tracer]

	mu     sync.Mutex // guards changes of now, and closed
	closed bool
	ending sync.WaitGroup
}

// Results that spans are counted by.
const (
	resultSent    = "sent"
	resultFailed  = "failed"
	resultDropped = "dropped"
)

// New returns Tracers without a collector. The caller must Close it. It panics if its metric is registered already.
func New(cfg Config) *Tracers {
	t := &Tracers{cfg: cfg, spans: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_spans_total",
		Help: "Spans of requests, by what became of them: sent to the collector, failed to be, or dropped since too many wait.",
	}, []string{"result"})}
	for _, result := range []string{resultSent, resultFailed, resultDropped} {
		t.spans.WithLabelValues(result)
	}
	cfg.Registerer.MustRegister(t.spans)
	t.now.Store(&map[Collector]*Tracer{})
	return t
}

// Apply makes these the collectors that there are. What waits for one that is not among them any more is sent first, in the
// background.
func (t *Tracers) Apply(wanted map[Collector]struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	now, next := *t.now.Load(), map[Collector]*Tracer{}
	for c := range wanted {
		if next[c] = now[c]; next[c] != nil {
			continue
		}
		tracer, err := t.open(c)
		if err != nil { // of settings, which were checked before
			t.cfg.Logger.Error("spans are not sent", "cluster", c.Cluster, "error", err)
			delete(next, c)
			continue
		}
		next[c] = tracer
	}
	t.now.Store(&next)
	for c, tracer := range now {
		if next[c] != tracer {
			t.ending.Go(tracer.close)
		}
	}
}

// Close sends what waits, for a few seconds at most, and lets go of all collectors.
func (t *Tracers) Close() {
	t.Apply(nil)
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.ending.Wait()
}

// Tracer returns the way to a collector; nil if Apply was not told of it.
func (t *Tracers) Tracer(c Collector) *Tracer { return (*t.now.Load())[c] }

// Tracer is the way to one collector.
type Tracer struct {
	tracers  *Tracers
	tracer   oteltrace.Tracer
	provider *sdktrace.TracerProvider
	conn     *grpc.ClientConn // nil with HTTP
	idle     func()           // closes idle connections of HTTP; nil with gRPC
	queue    *queue
	ctx      context.Context // of sending
	cancel   context.CancelFunc
}

func (t *Tracers) open(c Collector) (*Tracer, error) {
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	out := &Tracer{tracers: t}
	out.ctx, out.cancel = context.WithCancel(context.Background())
	var exporter sdktrace.SpanExporter
	var err error
	if c.URL != "" {
		exporter, err = out.overHTTP(c)
	} else {
		exporter, err = out.overGRPC(c)
	}
	if err != nil {
		return nil, errors.Join(err, out.letGo())
	}
	attrs := append([]attribute.KeyValue{attribute.String("service.name", c.Service)}, t.cfg.Resource...)
	watched := &watched{SpanExporter: exporter, tracers: t, cluster: c.Cluster, ended: out.ctx}
	out.queue = &queue{spans: t.spans, SpanProcessor: sdktrace.NewBatchSpanProcessor(watched,
		sdktrace.WithMaxQueueSize(2*maxQueued), sdktrace.WithMaxExportBatchSize(maxBatch), sdktrace.WithBatchTimeout(batchEvery), sdktrace.WithExportTimeout(c.Timeout))}
	watched.queue = out.queue
	out.provider = sdktrace.NewTracerProvider(
		sdktrace.WithResource(resource.NewSchemaless(attrs...)),
		sdktrace.WithSampler(sdktrace.AlwaysSample()), // what is not sampled gets no span
		sdktrace.WithSpanProcessor(out.queue),
	)
	out.tracer = out.provider.Tracer(scope)
	return out, nil
}

func (t *Tracer) overGRPC(c Collector) (sdktrace.SpanExporter, error) {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the cluster has its own: a tunnel, or TLS
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return t.tracers.cfg.Dial(ctx, c.Cluster) }),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
	}
	authority := c.Authority
	if authority == "" {
		authority = strings.Trim(strings.ReplaceAll(c.Cluster, "|", "."), ".")
	}
	var err error
	if t.conn, err = grpc.NewClient("passthrough:///collector", append(opts, grpc.WithAuthority(authority))...); err != nil {
		return nil, fmt.Errorf("collector %s: %w", c.Cluster, err)
	}
	return otlptracegrpc.New(context.Background(), otlptracegrpc.WithGRPCConn(t.conn), otlptracegrpc.WithTimeout(c.Timeout))
}

func (t *Tracer) overHTTP(c Collector) (sdktrace.SpanExporter, error) {
	transport := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return t.tracers.cfg.Dial(ctx, c.Cluster) },
		IdleConnTimeout: time.Minute,
	}
	t.idle = transport.CloseIdleConnections
	fields := map[string]string{}
	for line := range strings.Lines(c.Header) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		fields[name] = value
	}
	return otlptracehttp.New(context.Background(), otlptracehttp.WithEndpointURL(c.URL), otlptracehttp.WithHeaders(fields),
		otlptracehttp.WithTimeout(c.Timeout), otlptracehttp.WithHTTPClient(&http.Client{Transport: transport}))
}

// close sends what waits and lets go of the collector.
func (t *Tracer) close() {
	defer time.AfterFunc(endTimeout, t.cancel).Stop()
	// Without a time of its own: it would return while its goroutines live on.
	if err := errors.Join(t.provider.Shutdown(context.Background()), t.letGo()); err != nil {
		t.tracers.cfg.Logger.Debug("a collector was let go with spans that wait", "error", err)
	}
}

func (t *Tracer) letGo() error {
	t.cancel()
	if t.idle != nil {
		t.idle()
	}
	if t.conn != nil {
		return t.conn.Close()
	}
	return nil
}

// queue bounds what waits for a collector, which the SDK's own bound would drop without a word.
type queue struct {
	sdktrace.SpanProcessor
	waiting atomic.Int64
	spans   *prometheus.CounterVec
}

// OnEnd is of SpanProcessor.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if q.waiting.Add(1) > maxQueued {
		q.waiting.Add(-1)
		q.spans.WithLabelValues(resultDropped).Inc()
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// watched counts what an exporter does.
type watched struct {
	sdktrace.SpanExporter
	tracers *Tracers
	cluster string
	queue   *queue
	ended   context.Context // nothing is sent after it

	complained time.Time // of ExportSpans, which the SDK calls once at a time
}

// ExportSpans is of SpanExporter.
func (w *watched) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.ended, cancel)()
	err := w.SpanExporter.ExportSpans(ctx, spans)
	w.queue.waiting.Add(-int64(len(spans)))
	if err == nil {
		w.tracers.spans.WithLabelValues(resultSent).Add(float64(len(spans)))
		return nil
	}
	w.tracers.spans.WithLabelValues(resultFailed).Add(float64(len(spans)))
	if time.Since(w.complained) >= complainEvery {
		w.complained = time.Now()
		w.tracers.cfg.Logger.Warn("spans were not taken by their collector; requests are not held up by that", "cluster", w.cluster, "spans", len(spans), "error", err)
	}
	return nil // the SDK would tell a global handler
}

// Collectors returns those that there are, for who asks.
func (t *Tracers) Collectors() []Collector {
	var out []Collector
	for c := range maps.Keys(*t.now.Load()) {
		out = append(out, c)
	}
	return out
}
