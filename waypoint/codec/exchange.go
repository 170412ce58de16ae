package codec

import (
	"context"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Handler answers one request. It must call Respond or Abort before it returns; if it did not, the exchange is aborted. It
// may be called concurrently for requests of one HTTP/2 connection. The exchange must not be used after it has returned.
type Handler func(*Exchange)

// Exchange is one request and its response.
type Exchange struct {
	// Request is the handler's, to change it. Whoever pulls its Body closes it: RoundTrip does.
	Request message.Request

	ctx   context.Context
	w     responder
	head  bool // HEAD was asked for
	begun bool // Respond or Abort was called
	sent  int64

	abortOnce atomic.Bool   // abort was called
	given     atomic.Uint64 // bytes of the response's body; of a tunnel, in both directions
	pulled    requestBody   // nil: there is none
	outgoing  *messages     // of gRPC; nil: nobody counts them
	counts    [2]messages   // what CountMessages sets
}

// requestBody is the body of a request as it comes.
type requestBody interface {
	got() uint64 // bytes so far
	count(*messages)
}

// responder is one side of an exchange, in a version of HTTP.
type responder interface {
	inform(*message.Response) error
	respond(x *Exchange, resp *message.Response) error
	abort()
}

// Context ends when the client gives the request up or its connection ends, and when the handler has returned.
func (x *Exchange) Context() context.Context { return x.ctx }

// Inform sends a response of status 1xx, but not 101, ahead of the final one. A client of HTTP/1.0 gets none. It must not be
// called after Respond.
func (x *Exchange) Inform(resp *message.Response) error {
	if x.begun {
		return ErrResponded
	}
	return x.w.inform(resp)
}

// Respond sends the response, its whole body and its trailers, and returns when all was given to the connection; with a
// Tunnel, when both directions of that have ended. It takes resp over, and closes its Body or Tunnel in any case. It returns an error
// that is ErrClient or ErrResponseBody; the exchange is then over, and the client has noticed.
func (x *Exchange) Respond(resp *message.Response) error {
	if x.begun {
		discard(resp)
		return ErrResponded
	}
	x.begun = true
	return x.w.respond(x, resp)
}

// Abort ends the exchange without a response, or what has not gone out of it: a reset of the stream (HTTP/2) or of the connection
// (HTTP/1). It may be called during Respond by another goroutine.
func (x *Exchange) Abort() { x.w.abort() }

func (x *Exchange) aborted() bool { return x.abortOnce.Load() }

// Sent returns how many bytes of body Respond has sent. It must not be called during Respond.
func (x *Exchange) Sent() int64 { return x.sent }

// Received returns how many bytes of the request's body were pulled, and of a tunnel how many the client has sent. It must not be
// called during Respond.
func (x *Exchange) Received() int64 { return int64(x.Moved()) - x.sent }

// CountMessages has the messages of gRPC counted as they go by. It must be called before the request's body is pulled.
func (x *Exchange) CountMessages(c MessageCounter) {
	if x.pulled != nil {
		x.counts[0] = messages{counter: c, received: true}
		x.pulled.count(&x.counts[0])
	}
	x.counts[1] = messages{counter: c}
	x.outgoing = &x.counts[1]
}

// Moved returns how many bytes of the request's body were pulled, and how many of the response's body, or of a tunnel either way, were
// given to the connection: a number that stays shows that nothing moves. Anyone may call it until the handler returns.
func (x *Exchange) Moved() uint64 {
	n := x.given.Load()
	if x.pulled != nil {
		n += x.pulled.got()
	}
	return n
}

// discard closes what a response holds.
func discard(resp *message.Response) {
	if resp.Body != nil {
		resp.Body.Close()
	}
	if resp.Tunnel != nil {
		_ = resp.Tunnel.Close()
	}
}

// refusal is the response to a request that does not get to the handler.
func (s *Server) refusal(status int, reason string) *message.Response {
	if s.cfg.OnRefuse != nil {
		s.cfg.OnRefuse(status, reason)
	}
	text := reason + "\n"
	return &message.Response{
		Status: status, Header: message.Fields{{Name: "content-type", Value: "text/plain; charset=utf-8"}},
		Body: message.String(text), Length: int64(len(text)),
	}
}

// bodyless tells whether a response has no body whatever its header says (RFC 9110 section 6.4.1).
func (x *Exchange) bodyless(status int) bool {
	return x.head || status < 200 || status == 204 || status == 304
}
