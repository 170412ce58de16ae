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

	abortOnce atomic.Bool                  // abort was called
	given     atomic.Uint64                // pieces of the response's body
	pulled    interface{ pieces() uint64 } // the request's body; nil: there is none
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

// Moved returns a number that grows with every piece of the request's body that is pulled, every piece of the response's body
// that is given to the connection, and every piece that a tunnel carries either way: one that stays shows that nothing moves.
// Anyone may call it until the handler returns.
func (x *Exchange) Moved() uint64 {
	n := x.given.Load()
	if x.pulled != nil {
		n += x.pulled.pieces()
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
