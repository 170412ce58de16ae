package codec

import (
	"bufio"
	"fmt"
	"io"
	"net/http/httputil"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// body1 is the payload of a message that comes on an HTTP/1 connection. Whoever pulls it uses the connection's input meanwhile;
// detach takes that back.
type body1 struct {
	in        *input
	left      int64 // bytes still to come; Unknown: chunked, or until the connection closes
	chunked   *chunks
	maxHead   int // of a trailer, in bytes
	maxFields int

	before func() // once, before something is waited for; may be nil
	owner  bodyOwner

	asked    atomic.Bool   // before was called
	pulled   atomic.Uint64 // bytes
	messages *messages     // of gRPC; nil: nobody counts them

	mu       sync.Mutex // held during Next: guards what follows, and in
	piece    int        // bytes of in that were handed out
	began    bool       // Next was called
	told     bool       // owner knows of the end
	over     error      // what Next returns from now on; io.EOF: all was read
	orphan   bool       // in is this body's: its Close releases it
	trailers message.Fields
}

// bodyOwner is who gave a body away.
type bodyOwner interface {
	// fault makes an error one for whoever has the body.
	fault(error) error
	// end is told once that the body has ended, all of it read or not, or was closed.
	end(whole bool)
}

// chunks reads chunked payload, by way of net/http's reader.
type chunks struct {
	br  *bufio.Reader
	r   io.Reader
	out []byte // pooled: what was handed out
}

var chunkReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}

// setChunked makes b read chunks.
func (b *body1) setChunked() {
	b.left = message.Unknown
	br := chunkReaders.Get().(*bufio.Reader)
	br.Reset(chunkSource{b.in})
	b.chunked = &chunks{br: br, r: httputil.NewChunkedReader(br)}
}

// chunkSource is the input for a reader with a buffer of its own.
type chunkSource struct{ in *input }

func (s chunkSource) Read(p []byte) (int, error) {
	if len(s.in.bytes()) == 0 {
		if err := s.in.fill(buffer.Small); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
	n := copy(p, s.in.bytes())
	s.in.take(n)
	return n, nil
}

// Next is of message.Body.
func (b *body1) Next() ([]byte, error) {
	b.mu.Lock()
	p, err := b.nextLocked()
	tell := err != nil && !b.told
	b.told = b.told || tell
	b.mu.Unlock()
	if tell {
		b.owner.end(err == io.EOF)
	}
	return p, err
}

func (b *body1) nextLocked() ([]byte, error) {
	if b.piece > 0 {
		b.in.take(b.piece)
		b.piece = 0
	}
	if b.over != nil {
		return nil, b.over
	}
	b.began = true
	if b.before != nil {
		b.asked.Store(true)
		b.before()
		b.before = nil
	}
	p, err := b.read()
	if err == nil {
		b.pulled.Add(uint64(len(p)))
		b.messages.scan(p)
		return p, nil
	}
	b.over = err
	if err != io.EOF {
		b.over = b.owner.fault(err)
	}
	b.releaseChunks()
	return nil, b.over
}

// read returns the next piece, or io.EOF at the end.
func (b *body1) read() ([]byte, error) {
	switch {
	case b.chunked != nil:
		return b.readChunks()
	case b.left == 0:
		return nil, io.EOF
	}
	if len(b.in.bytes()) == 0 {
		if err := b.in.fill(b.room()); err != nil {
			if err == io.EOF && b.left > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	p := b.in.bytes()
	if b.left >= 0 {
		p = p[:min(int64(len(p)), b.left)]
		b.left -= int64(len(p))
	}
	b.piece = len(p)
	return p, nil
}

// longBody is from how many bytes on a body is a long one, for which a larger buffer pays.
const longBody = 4 * buffer.Small

// room is the size of the buffer that is read into next.
func (b *body1) room() int {
	if b.pulled.Load() > longBody && (b.left < 0 || b.left > buffer.Small) {
		return buffer.Medium
	}
	return buffer.Small
}

func (b *body1) readChunks() ([]byte, error) {
	c := b.chunked
	if n := b.room(); len(c.out) < n {
		buffer.Put(c.out)
		c.out = buffer.Get(n)
	}
	for {
		n, err := c.r.Read(c.out)
		switch {
		case n > 0:
			return c.out[:n], nil
		case err == io.EOF:
			return nil, b.readTrailers()
		case err != nil:
			return nil, err
		}
	}
}

// readTrailers reads what comes after the last chunk, and returns io.EOF.
func (b *body1) readTrailers() error {
	c := b.chunked
	rest, err := c.br.Peek(c.br.Buffered())
	if err != nil {
		return err
	}
	b.in.unread(rest)
	head, err := b.in.head(b.maxHead, true, func() error { return nil })
	switch {
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case err != nil:
		return fmt.Errorf("trailer: %w", err)
	}
	if len(head) > 2 {
		p := parser1{maxFields: b.maxFields}
		p.begin()
		defer p.end()
		if err := p.splitFields(head, 0); err != nil {
			return fmt.Errorf("trailer: %w", err)
		}
		b.trailers = appendTrailers(nil, p.fields)
	}
	b.in.take(len(head))
	return io.EOF
}

func (b *body1) releaseChunks() {
	if c := b.chunked; c != nil {
		buffer.Put(c.out)
		c.br.Reset(nil)
		chunkReaders.Put(c.br)
		b.chunked = nil
	}
}

func (b *body1) got() uint64       { return b.pulled.Load() }
func (b *body1) count(m *messages) { b.messages = m }

// Ready is of message.Body.
func (b *body1) Ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.over != nil || b.left == 0:
		return true
	case b.before != nil:
		return false
	case b.chunked == nil:
		return len(b.in.bytes()) > b.piece
	}
	return b.chunked.br.Buffered() > 0 || len(b.in.bytes()) > 0
}

// Leave is of message.Lender.
func (b *body1) Leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.piece > 0 {
		b.in.take(b.piece)
		b.piece = 0
		b.in.leave()
	}
	if c := b.chunked; c != nil {
		buffer.Leave(c.out)
		c.out = nil
	}
}

// Trailers is of message.Body.
func (b *body1) Trailers() message.Fields {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.trailers
}

// Close is of message.Body.
func (b *body1) Close() {
	b.mu.Lock()
	whole := b.over == io.EOF
	if b.over == nil {
		b.over = b.owner.fault(io.ErrClosedPipe)
	}
	b.releaseChunks()
	if b.orphan {
		b.in.release()
	}
	tell := !b.told
	b.told = true
	b.mu.Unlock()
	if tell {
		b.owner.end(whole)
	}
}

// ended tells whether nothing more is read for the body. It does not wait for a Next that is under way.
func (b *body1) ended() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.over != nil
}

// whole tells whether all was read. It does not wait for a Next that is under way.
func (b *body1) whole() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.over == io.EOF
}

// detach takes the input back from whoever may still pull, and tells whether all of the body was read. It waits for a Next
// that is under way; the caller sees to it that its read ends. If somebody may still look at a piece, they keep the input.
func (b *body1) detach() (whole, begun bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.over == io.EOF:
		return true, true
	case !b.began:
		b.over = b.owner.fault(io.ErrClosedPipe)
		b.releaseChunks()
		return false, false
	}
	if b.over == nil { // its last piece may be in use
		b.over = b.owner.fault(io.ErrClosedPipe)
		b.orphan = true
		kept := *b.in
		b.in.buf, b.in.r, b.in.w = nil, 0, 0
		b.in = &kept
	}
	return false, true
}
