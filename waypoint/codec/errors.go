package codec

import (
	"errors"
	"fmt"
)

// Stage is how far a request came before it failed. It tells what may be tried again.
type Stage uint8

// Stages.
const (
	// Unsent: nothing of the request left for the backend. Any request can be sent again.
	Unsent Stage = iota
	// Refused: the backend said that it has not looked at the request (REFUSED_STREAM, or a GOAWAY that names an earlier
	// stream). Any request can be sent again, if its body is still there.
	Refused
	// Sent: the request, or some of it, was sent, and nothing of a final response has come. The backend may have acted on it.
	Sent
	// Answered: the response's header came, and then the response broke off. Only errors of bodies say this.
	Answered
)

// String is as logs write it.
func (s Stage) String() string {
	switch s {
	case Unsent:
		return "not sent"
	case Refused:
		return "refused unprocessed"
	case Sent:
		return "no response"
	}
	return "response broke off"
}

// Error is why a request failed at a Client: of RoundTrip, and of the bodies of its responses.
type Error struct {
	Stage Stage
	// Stale says that the connection had been idle before and ended without a byte of answer (Stage Sent): most likely it had been
	// closed before the request reached the backend.
	Stale bool
	// Err is why: the context's cause, ErrBadResponse, ErrRequestBody, or what the connection said.
	Err error
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %v", e.Stage, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Errors that tell whose fault it was.
var (
	// ErrClient is what Respond and the request's body return when the connection to the client failed, or the client gave up.
	ErrClient = errors.New("the client is gone")
	// ErrMalformed is what a request's body returns when what the client sends is not as HTTP has it.
	ErrMalformed = errors.New("malformed request body")
	// ErrResponseBody is what Respond returns when the response's body broke off: the client has been told by a reset.
	ErrResponseBody = errors.New("the response broke off")
	// ErrRequestBody is why a request failed whose body broke off.
	ErrRequestBody = errors.New("the request's body broke off")
	// ErrBadResponse is why a request failed whose response was not as HTTP has it, or was larger than allowed.
	ErrBadResponse = errors.New("malformed response")
	// ErrUnusable is why a request failed that was given to a connection that takes no more.
	ErrUnusable = errors.New("the connection takes no more requests")
	// ErrUpgrade is why a request failed that asks for an upgrade on an HTTP/2 connection.
	ErrUpgrade = errors.New("HTTP/2 has no upgrade")
	// ErrResponded is what Respond returns the second time.
	ErrResponded = errors.New("there was a response already")
)
