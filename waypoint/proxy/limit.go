package proxy

import (
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// connectionBucket is the bucket that a connection has by a rule.
type connectionBucket struct {
	rule   route.LimitRule
	bucket *route.Bucket
}

// bucketOf is the bucket from which a request of the connection takes. When the rule becomes another one it begins full.
func (c *connection) bucketOf(l *route.Limit) *route.Bucket {
	if !l.PerConnection {
		return l.Shared()
	}
	for {
		has := c.bucket.Load()
		if has != nil && has.rule == l.LimitRule {
			return has.bucket
		}
		c.bucket.CompareAndSwap(has, &connectionBucket{l.LimitRule, route.NewBucket(l.LimitRule)})
	}
}

// limit counts the request, and refuses it if it is one too many.
func (r *request) limit(l *route.Limit) *refusal {
	r.limited, r.quota = l, r.c.bucketOf(l).Take()
	if r.quota.Wait == 0 {
		return nil
	}
	out := &refusal{status: 429, flag: telemetry.RequestLimited, text: fmt.Sprintf(
		"more requests than the rate limit of %s lets through, which is %d each %v and %d at once; try again in %v",
		r.http.Routes, l.Fill, l.Interval, l.Burst, r.quota.Wait.Round(time.Millisecond))}
	if l.Exhausted {
		out.grpc = grpcExhausted
	}
	return out
}
