package route

import (
	"strconv"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// limitFilter names the rate limit of a virtual host in typed_per_filter_config.
const limitFilter = "envoy.filters.http.local_ratelimit"

// Limit bounds the requests of a virtual host.
type Limit struct {
	LimitRule
	shared *Bucket
}

// LimitRule is what a Limit says. It is comparable.
type LimitRule struct {
	// Fill tokens come to a bucket in each Interval, evenly; it holds Burst. None of them is 0.
	Fill, Burst uint32
	Interval    time.Duration
	// PerConnection: each connection of a client has a bucket.
	PerConnection bool
	// Headers: responses say what is left. RetryAfter: refusals say when there will be more. Exhausted: gRPC clients are told
	// RESOURCE_EXHAUSTED, else UNAVAILABLE.
	Headers, RetryAfter, Exhausted bool
}

// Shared is the bucket that all connections have in common.
func (l *Limit) Shared() *Bucket { return l.shared }

// Bucket counts tokens without a lock. What it keeps is the time at which it will be full again (the generic cell rate algorithm):
// a request moves that on by the time that a token takes to come, unless it would be further away than an empty bucket is.
type Bucket struct {
	token time.Duration // how long one takes to come
	depth time.Duration // how long an empty bucket takes to be full
	epoch time.Time
	full  atomic.Int64 // since the epoch, in nanoseconds
}

// NewBucket makes a bucket that is full.
func NewBucket(r LimitRule) *Bucket {
	b := &Bucket{token: max(1, r.Interval/time.Duration(r.Fill)), depth: maxDepth, epoch: time.Now()}
	if b.token < maxDepth/time.Duration(r.Burst) {
		b.depth = b.token * time.Duration(r.Burst)
	}
	return b
}

// maxDepth, decades, is as long as a bucket may take to be full, so that no sum of times overflows.
const maxDepth = 1 << 61 * time.Nanosecond

// Quota is what a request found in a bucket.
type Quota struct {
	// Left are the tokens that are there after it.
	Left uint32
	// Wait is how long it takes until there is one; 0 if the request had one.
	Wait time.Duration
	// Full is how long it takes until the bucket is.
	Full time.Duration
}

// Take takes a token if there is one.
func (b *Bucket) Take() Quota {
	for {
		now := time.Since(b.epoch)
		was := b.full.Load()
		full := max(now, time.Duration(was)) + b.token
		if over := full - now - b.depth; over > 0 {
			return Quota{Wait: over, Full: full - b.token - now}
		}
		if b.full.CompareAndSwap(was, int64(full)) {
			return Quota{Left: uint32((b.depth - (full - now)) / b.token), Full: full - now}
		}
	}
}

// Tell says in a response what a request found in its bucket. What the backend says of a limit of its own stays.
func (l *Limit) Tell(h *message.Fields, q Quota) {
	if q.Wait > 0 && l.RetryAfter {
		h.Set("retry-after", seconds(q.Wait))
	}
	if !l.Headers || h.Has("x-ratelimit-limit") {
		return
	}
	h.Set("x-ratelimit-limit", strconv.FormatUint(uint64(l.Burst), 10))
	h.Set("x-ratelimit-remaining", strconv.FormatUint(uint64(q.Left), 10))
	h.Set("x-ratelimit-reset", seconds(q.Full))
}

// seconds is a duration in whole seconds, none of which is too early.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// limit reads the rate limit of a virtual host; nil if it has none.
func (c *compiler) limit(configs map[string]*anypb.Any, at *strict.Path) *Limit {
	if configs[limitFilter] == nil {
		return nil
	}
	at = at.Field("typed_per_filter_config").Key(limitFilter)
	var m localv3.LocalRateLimit
	if !supported.Unpack(configs[limitFilter], &m, at, c.report) {
		return nil
	}
	for _, f := range []struct {
		name string
		of   *corev3.RuntimeFractionalPercent
	}{{"filter_enabled", m.GetFilterEnabled()}, {"filter_enforced", m.GetFilterEnforced()}} {
		if p := f.of.GetDefaultValue(); p.GetNumerator() < denominator(p) {
			c.report.Add(at.Field(f.name).Field("default_value"), "must be all requests")
		}
	}
	b, bucket := m.GetTokenBucket(), at.Field("token_bucket")
	out := &Limit{LimitRule: LimitRule{
		Burst: b.GetMaxTokens(), Fill: 1, Interval: c.duration(b.GetFillInterval(), bucket.Field("fill_interval"), 0),
		PerConnection: m.GetLocalRateLimitPerDownstreamConnection(), RetryAfter: m.GetEnableRetryAfterHeader(), Exhausted: m.GetRateLimitedAsResourceExhausted(),
		Headers: m.GetEnableXRatelimitHeaders() == ratelimitv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03,
	}}
	if b.GetTokensPerFill() != nil {
		out.Fill = b.GetTokensPerFill().GetValue()
	}
	if out.Burst == 0 || out.Fill == 0 || out.Interval <= 0 {
		c.report.Add(bucket, "max_tokens, tokens_per_fill and fill_interval must be more than 0")
		return nil
	}
	out.shared = NewBucket(out.LimitRule)
	return out
}
