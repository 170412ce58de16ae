package upstream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// ErrOverflow is why something is refused at once: the cluster has as many as its circuit breakers allow. Its errors say of what.
var ErrOverflow = errors.New("a circuit breaker is open")

// usage is what a cluster has at a time, over all endpoints.
type usage struct{ requests, connections, pending, retries, copies atomic.Int64 }

// take counts one more unless that is over the limit.
func take(n *atomic.Int64, limit uint32, of string) error {
	if now := n.Add(1); limit != config.Unlimited && now > int64(limit) {
		n.Add(-1)
		return fmt.Errorf("%w: the settings of the service allow %d %s at a time", ErrOverflow, limit, of)
	}
	return nil
}

// limits are those in force; all of Unlimited if none are configured.
func (c *Cluster) limits() config.Limits {
	if l := c.Settings().Limits; l != nil {
		return *l
	}
	return config.Limits{Connections: config.Unlimited, Pending: config.Unlimited, Requests: config.Unlimited, Retries: config.Unlimited}
}

// Waiting returns how many requests wait for a connection.
func (c *Cluster) Waiting() int { return int(c.usage.pending.Load()) }

// BeginRetry counts a further try of a request, EndRetry its end. It returns an error that is ErrOverflow if there are as many
// under way as may be. TakeRetry comes before.
func (c *Cluster) BeginRetry() error {
	l := c.limits()
	limit := l.Retries
	switch b := l.Budget; {
	case b == nil:
	case b.Interval > 0:
		limit = config.Unlimited // TakeRetry bounds them
	default:
		active := float64(c.usage.requests.Load() + c.usage.pending.Load())
		limit = max(b.Min, uint32(min(active*b.Percent/100, 1<<31)))
	}
	return take(&c.usage.retries, limit, "retries")
}

// EndRetry is the counterpart of BeginRetry.
func (c *Cluster) EndRetry() { c.usage.retries.Add(-1) }

// BeginCopy counts a copy of a request, for which nobody waits, EndCopy its end. It returns false, and counts nothing, if there are as
// many under way as limit says.
func (c *Cluster) BeginCopy(limit int) bool {
	if c.usage.copies.Add(1) > int64(limit) {
		c.usage.copies.Add(-1)
		return false
	}
	return true
}

// EndCopy is the counterpart of BeginCopy.
func (c *Cluster) EndCopy() { c.usage.copies.Add(-1) }

// health is what responses tell of an endpoint.
type health struct {
	errors, gateway, local atomic.Uint32 // in a row
	ejected                atomic.Int64  // until then, in Unix nanoseconds
	times                  atomic.Int64  // how often, less each time that it went well since
}

// Responded notes the status of a response, for outlier ejection.
func (e *Endpoint) Responded(status int) {
	o := e.cluster.Settings().Outlier
	if o == nil {
		return
	}
	e.health.local.Store(0)
	e.judge(o, status)
}

// Failed notes that there was no response, by no fault of the client, for outlier ejection.
func (e *Endpoint) Failed() {
	o := e.cluster.Settings().Outlier
	if o == nil {
		return
	}
	if !o.SplitLocal {
		e.judge(o, 503)
		return
	}
	if reached(&e.health.local, o.ConsecutiveLocal) {
		e.eject(o, o.EnforceLocal)
	}
}

// judge counts errors in a row.
func (e *Endpoint) judge(o *config.Outlier, status int) {
	h := &e.health
	if status < 500 {
		h.errors.Store(0)
		h.gateway.Store(0)
		return
	}
	if status >= 502 && status <= 504 {
		if reached(&h.gateway, o.ConsecutiveGateway) {
			e.eject(o, o.EnforceGateway)
		}
	} else {
		h.gateway.Store(0)
	}
	if reached(&h.errors, o.Consecutive5xx) {
		e.eject(o, o.Enforce5xx)
	}
}

// reached counts one more, and tells whether there are now as many as the limit; then it begins anew.
func reached(n *atomic.Uint32, limit uint32) bool {
	if now := n.Add(1); limit == 0 || now < limit {
		return false
	}
	n.Store(0)
	return true
}

// eject takes the endpoint out of balancing for a time, unless chance or the share of those that are out says otherwise.
func (e *Endpoint) eject(o *config.Outlier, enforce uint32) {
	if enforce < 100 && rand.Uint32N(100) >= enforce {
		return
	}
	at := now()
	total := 0
	var out []int64 // until when others are
	e.cluster.Endpoints(func(x *Endpoint) {
		total++
		if until := x.health.ejected.Load(); until > at && x != e {
			out = append(out, until)
		}
	})
	if !(o.AlwaysOne && len(out) == 0) && (len(out)+1)*100 > total*int(o.MaxPercent) {
		return
	}
	h := &e.health
	if last := h.ejected.Load(); last > at {
		return // it is out
	} else if last > 0 {
		// For each stretch of the base time that it was in, it is forgiven once.
		if o.BaseTime > 0 {
			h.times.Store(max(0, h.times.Load()-(at-last)/int64(o.BaseTime)))
		}
	}
	d := time.Duration(h.times.Add(1)) * o.BaseTime
	if o.MaxTime > 0 {
		d = min(d, max(o.MaxTime, o.BaseTime))
	}
	if o.Jitter > 0 {
		d += rand.N(o.Jitter)
	}
	h.ejected.Store(at + int64(d))
	e.cluster.panicAfter(append(out, at+int64(d)), total)
}

// panicAfter looks whether enough endpoints are in, of all that there are, when those that are out come back at these times. If not,
// it does not matter for a while who is out: those that are in would break down too.
func (c *Cluster) panicAfter(out []int64, total int) {
	may := int(float64(total) * (100 - c.Settings().Panic) / 100) // be out
	if len(out) <= may {
		return
	}
	slices.Sort(out)
	c.panic.Store(out[len(out)-may-1])
}

// Ejected tells whether the endpoint is out of balancing since its responses were bad.
func (e *Endpoint) Ejected() bool { return e.health.ejected.Load() > now() }
