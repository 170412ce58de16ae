package message

import "io"

// Body is the payload of a message, pulled piece by piece. It is used by one goroutine at a time; Close may be called by
// another once no Next is under way.
type Body interface {
	// Next returns the next piece, never an empty one, waiting for it; io.EOF after the last, and any other error if the
	// message broke off: then what was said must not be taken for whole. The piece is valid until the next call of Next or
	// Close; its reader may overwrite it. A body that lends that memory to others afterwards is a Lender.
	Next() ([]byte, error)
	// Ready tells whether Next would return at once. It may be wrong by saying no: what is written is then sent a little sooner.
	Ready() bool
	// Trailers returns the trailers, once Next has returned io.EOF; nil if there were none.
	Trailers() Fields
	// Close says that nobody will read on: the sender is told, if it has not ended. It may be called more than once, and must
	// be called also after io.EOF.
	Close()
}

// Lender is a Body whose pieces are in memory that others get after Next or Close.
type Lender interface {
	Body
	// Leave keeps the last piece valid for good, for whoever may still use it when another calls Next or Close. It is called as
	// those are.
	Leave()
}

// Tunnel is a connection after an upgrade: bytes in both directions. Close ends both at once; CloseWrite ends the direction
// to the peer and leaves the other open.
type Tunnel interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Bytes is a body that is there already. Its Next returns b, once: whoever reads it may overwrite it.
func Bytes(b []byte, trailers Fields) Body { return &bytesBody{b: b, trailers: trailers} }

// String is Bytes of a copy of s, without trailers.
func String(s string) Body { return Bytes([]byte(s), nil) }

type bytesBody struct {
	b        []byte
	trailers Fields
}

func (b *bytesBody) Next() ([]byte, error) {
	p := b.b
	b.b = nil
	if len(p) == 0 {
		return nil, io.EOF
	}
	return p, nil
}

func (*bytesBody) Ready() bool        { return true }
func (b *bytesBody) Trailers() Fields { return b.trailers }
func (b *bytesBody) Close()           { b.b = nil }
