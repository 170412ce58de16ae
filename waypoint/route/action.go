package route

import (
	"math/rand/v2"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// NotSet is a duration that the route does not set.
const NotSet time.Duration = -1

// Route is one route of a Table: exactly one of Forward, Redirect and Direct is set.
type Route struct {
	// Name as the control plane gave it, for logs and metrics; may be empty.
	Name string
	// Forward sends the request to a cluster, Redirect sends the client elsewhere, Direct answers.
	Forward  *Forward
	Redirect *Redirect
	Direct   *Direct
	// CORS is the cross-origin policy; nil if there is none. It comes before all else: see CORS.Preflight.
	CORS *CORS
	// Limit bounds the requests of the route's virtual host; nil if nothing does. It comes after CORS and before Fault.
	Limit *Limit
	// Fault is what requests meet on purpose, before the action; nil if there is none.
	Fault *Fault

	match    conditions
	response edits // of the route, its virtual host and the table, for answers of our own
}

// Forward is the action of a route that sends requests on.
type Forward struct {
	// Targets are what Choose chooses from: at least one, of weights that are not all zero.
	Targets []*Target
	// NotFoundStatus is what a request to a cluster that is not known is answered: 503, 404 or 500.
	NotFoundStatus int
	// Timeout bounds the whole exchange with the backend, all tries together, from the end of the request to the end of the
	// response; 0 for none. (It is Envoy's 15 s if the route says nothing.)
	Timeout time.Duration
	// IdleTimeout is how long a stream may be silent in both directions; 0 for ever; NotSet: what HCM says.
	IdleTimeout time.Duration
	// MaxStreamDuration bounds a stream from its first byte to its last; 0 for none; NotSet: what HCM says.
	MaxStreamDuration time.Duration
	// GRPCTimeoutMax: with it, a request's grpc-timeout, at most this long (0: however long), takes the place of
	// MaxStreamDuration. NotSet: grpc-timeout is not looked at.
	GRPCTimeoutMax time.Duration
	// Retry is nil if nothing is tried again.
	Retry *Retry
	// Keys say what requests have in common that go to the same endpoint, if their cluster goes by keys; see Key.
	Keys []*KeyPart
	// Session keeps clients with an endpoint; nil if nothing does.
	Session *Session
	// Mirrors are sent copies of the request.
	Mirrors []*Mirror
	// Upgrades says which upgrades, in lower case, the route allows or forbids; those it does not have are as HCM says.
	Upgrades map[string]bool

	split *Split
}

// Target is one cluster that requests of a route go to, and what is done to them on the way.
type Target struct {
	// Cluster is its name. It need not be known.
	Cluster string
	// Weight is its share of the sum of all targets' weights.
	Weight uint32

	request, response edits // of the target, the route, its virtual host and the table, in their order
	rewrite           rewrite
	host              string // what Authority becomes; "" to keep it
	hostHeader        string // the header whose value Authority becomes, if it is there
	forwardedHost     bool   // the former Authority goes to x-forwarded-host
}

// Mirror is a cluster that gets copies of requests, whose answers nobody waits for.
type Mirror struct {
	Cluster string
	// Numerator of Denominator requests are copied.
	Numerator, Denominator uint32
	// HostSuffix is appended to the host of Authority, before a port: "-shadow", or "".
	HostSuffix string
}

// Choose returns the target for a request. Call it once a request: tries after the first go to the same target. Over any run
// of requests each target gets its share but for a request or two, in an order without a period.
func (f *Forward) Choose() *Target {
	return f.Targets[f.split.Choose()]
}

// EditRequest does to a request that goes to t what the route says: headers, then authority, then path. Call it once, on the
// request that was matched.
func (t *Target) EditRequest(req *message.Request) {
	t.request.apply(&req.Header)
	host := t.host
	if t.hostHeader != "" {
		if v := req.Header.Get(t.hostHeader); message.ValidAuthority(v) {
			host = v
		}
	}
	if host != "" {
		if t.forwardedHost && req.Authority != "" {
			req.Header.Add("x-forwarded-host", req.Authority)
		}
		req.Authority = host
	}
	req.Path = t.rewrite.apply(req.Path)
}

// EditResponse does to the header of a response that came from t's cluster what the route says.
func (t *Target) EditResponse(h *message.Fields) { t.response.apply(h) }

// EditResponse does to the header of an answer that came from no cluster (Redirect, Direct, a refusal of ours) what the route
// says.
func (r *Route) EditResponse(h *message.Fields) { r.response.apply(h) }

// Chosen decides whether this request is copied, at random.
func (m *Mirror) Chosen() bool {
	return m.Numerator >= m.Denominator || m.Numerator > 0 && rand.Uint32N(m.Denominator) < m.Numerator
}

// Authority returns the authority of a copy.
func (m *Mirror) Authority(of string) string {
	if m.HostSuffix == "" {
		return of
	}
	host, port := splitPort(of)
	if port != "" {
		port = ":" + port
	}
	return host + m.HostSuffix + port
}

// Direct is the action of a route that answers by itself.
type Direct struct {
	// Status is 200 to 599.
	Status int
	// Body is plain text; may be empty.
	Body string
}

// Response makes the answer, without what EditResponse adds.
func (d *Direct) Response() *message.Response {
	resp := &message.Response{Status: d.Status}
	if d.Body != "" {
		resp.Header.Add("content-type", "text/plain")
		resp.Body, resp.Length = message.String(d.Body), int64(len(d.Body))
	}
	return resp
}
