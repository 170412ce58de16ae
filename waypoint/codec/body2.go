package codec

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// body2 is the payload of a message that comes on an HTTP/2 stream.
type body2 struct {
	s     *h2.Stream
	chunk h2.Chunk // that was handed out
	have  bool     // chunk is set
	left  int64    // of what content-length said, Unknown without one
	over  error    // what Next returns from now on

	pulled   atomic.Uint64 // bytes
	messages *messages     // of gRPC; nil: nobody counts them

	before func()    // once, before something is waited for; may be nil
	owner  bodyOwner // is told of the end
	told   bool      // owner knows of the end
}

// Next is of message.Body.
func (b *body2) Next() ([]byte, error) {
	if err := b.next(); err != nil {
		return nil, err
	}
	return b.chunk.Bytes(), nil
}

// nextScratch is Next with h2.Headroom bytes before the piece, if the second result says so.
func (b *body2) nextScratch() ([]byte, bool, error) {
	if err := b.next(); err != nil {
		return nil, false, err
	}
	if p := b.chunk.Scratch(); p != nil {
		return p, true, nil
	}
	return b.chunk.Bytes(), false, nil
}

func (b *body2) next() error {
	b.release()
	if b.over != nil {
		return b.over
	}
	if b.before != nil {
		b.before()
		b.before = nil
	}
	c, _, err := b.s.Next(nil)
	if err == nil {
		b.chunk, b.have = c, true
		if n := int64(len(c.Bytes())); b.left >= 0 {
			if b.left -= n; b.left < 0 {
				err = fmt.Errorf("more payload than content-length says")
				b.s.Reset(h2.ProtocolError)
			}
		}
	} else if err == io.EOF && b.left > 0 {
		err = fmt.Errorf("%d bytes less than content-length says", b.left)
		b.s.Reset(h2.ProtocolError)
	}
	if err == nil {
		p := b.chunk.Bytes()
		b.pulled.Add(uint64(len(p)))
		b.messages.scan(p)
		return nil
	}
	b.release()
	b.over = err
	if err != io.EOF {
		b.over = b.owner.fault(err)
	}
	b.finish(err == io.EOF)
	return b.over
}

func (b *body2) release() {
	if b.have {
		b.chunk.Release()
		b.chunk, b.have = h2.Chunk{}, false
	}
}

// Leave is of message.Lender.
func (b *body2) Leave() {
	if b.have {
		b.chunk.Leave()
		b.chunk, b.have = h2.Chunk{}, false
	}
}

func (b *body2) finish(whole bool) {
	if !b.told {
		b.told = true
		b.owner.end(whole)
	}
}

func (b *body2) got() uint64       { return b.pulled.Load() }
func (b *body2) count(m *messages) { b.messages = m }

// Ready is of message.Body.
func (b *body2) Ready() bool { return b.over != nil || b.before == nil && b.s.Ready() }

// Trailers is of message.Body.
func (b *body2) Trailers() message.Fields {
	if b.over != io.EOF {
		return nil
	}
	return b.s.Trailers()
}

// Close is of message.Body.
func (b *body2) Close() {
	b.release()
	if b.over == nil {
		b.over = b.owner.fault(io.ErrClosedPipe)
	}
	b.finish(false)
}

// scratcher is a body whose pieces have room for a frame's header.
type scratcher interface{ nextScratch() ([]byte, bool, error) }

// sending2 is a body on its way out on a stream.
type sending2 struct {
	s      *h2.Stream
	body   message.Body
	length int64          // of body, or Unknown
	moved  *atomic.Uint64 // bytes; may be nil
	counts *messages      // of gRPC; nil: nobody counts them

	sent    int64 // bytes
	bodyErr error // why body broke off
	err     error // why the stream cannot be written
}

// run sends the body and its end, and tells whether it is over. What is pending goes out when there is nothing more at the
// moment. Inline it does not wait: it returns false when it would have to, or has sent inlineBody. It does not close the body.
func (t *sending2) run(inline bool) bool {
	c := t.s.Conn()
	scratch, _ := t.body.(scratcher)
	for {
		if inline && (t.sent >= inlineBody || !t.body.Ready() || !t.s.Writable()) {
			c.Flush()
			return false
		}
		if !inline && !t.body.Ready() {
			c.Flush()
		}
		var p []byte
		var room bool
		var err error
		if scratch != nil {
			p, room, err = scratch.nextScratch()
		} else {
			p, err = t.body.Next()
		}
		n := int64(len(p))
		if room {
			n -= h2.Headroom
		}
		switch {
		case err == io.EOF && t.length > t.sent:
			t.bodyErr = fmt.Errorf("the body ended after %d of %d bytes", t.sent, t.length)
		case err == io.EOF:
			t.err = sendEnd(t.s, t.body.Trailers())
			return true
		case err != nil:
			t.bodyErr = err
		case t.length >= 0 && t.sent+n > t.length:
			t.bodyErr = fmt.Errorf("the body is longer than the %d bytes that it should have", t.length)
		}
		if t.bodyErr != nil {
			c.Flush()
			return true
		}
		if room {
			t.counts.scan(p[h2.Headroom:])
			_, _, t.err = t.s.AddScratch(p)
		} else {
			t.counts.scan(p)
			_, t.err = t.s.Add(p)
		}
		if t.err != nil {
			return true
		}
		t.sent += n
		if t.moved != nil {
			t.moved.Add(uint64(n))
		}
	}
}

// sendEnd ends a stream, with trailers if there are any, and sends what is pending.
func sendEnd(s *h2.Stream, trailers message.Fields) error {
	if len(trailers) == 0 {
		return s.CloseWrite()
	}
	l := fieldLists.Get().(*[]message.Field)
	defer putFields(l)
	*l = appendTrailers(*l, trailers)
	if len(*l) == 0 {
		return s.CloseWrite()
	}
	return s.WriteHeaders(*l, true)
}
