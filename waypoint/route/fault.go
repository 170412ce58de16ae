package route

import (
	"math/rand/v2"
	"time"

	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// faultFilter names the fault of a route in typed_per_filter_config.
const faultFilter = "envoy.filters.http.fault"

// Fault is what is done to requests on purpose, to see what becomes of their clients.
type Fault struct {
	// Delay holds a share of requests back.
	Delay      time.Duration
	delayShare share
	// Status answers a share of requests, or GRPC those of gRPC that have a status of theirs.
	Status     int
	GRPC       int // -1: none
	abortShare share

	match []headerMatch
}

// share is a part of all requests.
type share struct{ numerator, denominator uint32 }

func (s share) chosen() bool {
	return s.numerator >= s.denominator || s.numerator > 0 && rand.Uint32N(s.denominator) < s.numerator
}

// Meet decides, at random, what one request meets: a delay, 0 for none, and after it, if abort, an answer.
func (f *Fault) Meet(req *message.Request) (delay time.Duration, abort bool) {
	for i := range f.match {
		if !f.match[i].match(req) {
			return 0, false
		}
	}
	if f.Delay > 0 && f.delayShare.chosen() {
		delay = f.Delay
	}
	return delay, (f.Status != 0 || f.GRPC >= 0) && f.abortShare.chosen()
}

// fault reads the fault of a route; nil if it has none.
func (c *compiler) fault(configs map[string]*anypb.Any, at *strict.Path) *Fault {
	if configs[faultFilter] == nil {
		return nil
	}
	at = at.Field("typed_per_filter_config").Key(faultFilter)
	var m faultv3.HTTPFault
	if !supported.Unpack(configs[faultFilter], &m, at, c.report) {
		return nil
	}
	out := &Fault{GRPC: -1}
	if d := m.GetDelay(); d != nil {
		at := at.Field("delay")
		if _, fixed := d.GetFaultDelaySecifier().(*faultcommonv3.FaultDelay_FixedDelay); !fixed {
			c.report.Add(at.Field("fixed_delay"), "required")
		}
		out.Delay, out.delayShare = c.duration(d.GetFixedDelay(), at.Field("fixed_delay"), 0), shareOf(d.GetPercentage())
	}
	if a := m.GetAbort(); a != nil {
		at := at.Field("abort")
		out.abortShare = shareOf(a.GetPercentage())
		switch e := a.GetErrorType().(type) {
		case *faultv3.FaultAbort_HttpStatus:
			if out.Status = int(e.HttpStatus); out.Status < 200 || out.Status > 599 {
				c.report.Add(at.Field("http_status"), "200 to 599, not %d", out.Status)
			}
		case *faultv3.FaultAbort_GrpcStatus:
			if e.GrpcStatus > 16 {
				c.report.Add(at.Field("grpc_status"), "0 to 16, not %d", e.GrpcStatus)
			}
			out.GRPC = int(e.GrpcStatus)
		default:
			c.report.Add(at, "http_status or grpc_status is required")
		}
	}
	for i, h := range m.GetHeaders() {
		out.match = append(out.match, c.header(h, at.Field("headers").Index(i)))
	}
	return out
}

func shareOf(p *typev3.FractionalPercent) share {
	return share{p.GetNumerator(), denominator(p)}
}
