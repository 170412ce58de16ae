package h2

import (
	"errors"
	"fmt"
)

// StreamError is the end of one stream by RST_STREAM.
type StreamError struct {
	Code   ErrCode
	Remote bool // the peer reset the stream; otherwise this side did
}

func (e *StreamError) Error() string {
	by := "this side"
	if e.Remote {
		by = "the peer"
	}
	return fmt.Sprintf("stream reset by %s: %v", by, e.Code)
}

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
