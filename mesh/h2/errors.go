package h2

import (
	"errors"
	"fmt"
)

// StreamError is the end of one stream by RST_STREAM.
type StreamError struct {
	Code   ErrCode
	Remote bool   // the peer reset the stream; otherwise this side did
	Reason string // may be empty
}

func (e *StreamError) Error() string {
	by := "this side"
	if e.Remote {
		by = "the peer"
	}
	if e.Reason == "" {
		return fmt.Sprintf("stream reset by %s: %v", by, e.Code)
	}
	return fmt.Sprintf("stream reset by %s: %v: %s", by, e.Code, e.Reason)
}

// Unwrap returns ErrUnprocessed if the peer refused the stream.
func (e *StreamError) Unwrap() error {
	if e.Remote && e.Code == RefusedStream {
		return ErrUnprocessed
	}
	return nil
}

// errOver is what using a stream returns whose owner has closed it after its end.
var errOver = &StreamError{Code: Cancel, Reason: "it is over"}

// ConnError is the end of a connection, as seen by each of its streams.
type ConnError struct {
	Code   ErrCode // what the GOAWAY said; NoError if there was none
	Remote bool    // the peer ended it
	Err    error   // why; never nil
}

func (e *ConnError) Error() string {
	by := "this side"
	if e.Remote {
		by = "the peer"
	}
	return fmt.Sprintf("http2 connection ended by %s: %v", by, e.Err)
}

func (e *ConnError) Unwrap() error { return e.Err }

// ErrUnprocessed is wrapped by errors of streams that the peer certainly did not process (REFUSED_STREAM, or a GOAWAY whose
// last stream is an earlier one): the request can be sent again elsewhere.
var ErrUnprocessed = errors.New("not processed by the peer")

// ErrNoStreams is what Open returns while the connection has its full number of streams.
var ErrNoStreams = errors.New("h2: all streams are in use")

// ErrDraining is what Open returns once the connection opens no more streams.
var ErrDraining = errors.New("h2: connection takes no new streams")

// Causes of a ConnError.
var (
	// ErrClosed: Close was called.
	ErrClosed = errors.New("closed")
	// ErrSettingsTimeout: the peer did not send its SETTINGS in time.
	ErrSettingsTimeout = errors.New("no SETTINGS from the peer in time")
	// ErrKeepalive: nothing came from the peer for the keepalive time-out, not even the answer to a PING.
	ErrKeepalive = errors.New("no answer to PING in time")
	// ErrWriteStalled: the peer took nothing of what was written for the write time-out.
	ErrWriteStalled = errors.New("the peer takes nothing of what is written")
	// ErrPeerClosed: the peer closed the connection while streams were open.
	ErrPeerClosed = errors.New("closed by the peer while streams were open")
	// ErrTooLarge is what sending a header list returns that is larger than the peer accepts.
	ErrTooLarge = errors.New("h2: header list is larger than the peer accepts")
	// ErrWriteAfterEnd is what writing returns after CloseWrite.
	ErrWriteAfterEnd = errors.New("h2: write after the end of the stream")
)
