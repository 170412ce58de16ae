package codec

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/nowait"
)

// input is what an HTTP/1 connection brings: bytes that were read and are not used yet, in a pooled buffer. One goroutine at
// a time uses it.
type input struct {
	nc   net.Conn
	buf  []byte // nil while nothing is in it, as a rule
	r, w int
}

// Connections that can wait without a buffer.
type (
	waiter interface{ WaitReadable() error }
	lender interface {
		ReadLent(size int) ([]byte, int, error)
	}
)

// quiet returns nc, as one that wakes no scheduler and waits without a buffer where it can be.
func quiet(nc net.Conn) net.Conn {
	if tcp, ok := nc.(*net.TCPConn); ok {
		if c, err := nowait.New(tcp); err == nil {
			return c
		}
	}
	return nc
}

// Errors of reading a head.
var (
	errBareLF   = errors.New("a line ends without CR")
	errTooLarge = errors.New("the header is too large")
)

// bytes returns what is there. It is valid until fill or release.
func (in *input) bytes() []byte { return in.buf[in.r:in.w] }

// take takes n bytes off the beginning.
func (in *input) take(n int) {
	if in.r += n; in.r == in.w {
		in.r, in.w = 0, 0
	}
}

// release gives the buffer back, with what is in it.
func (in *input) release() {
	buffer.Put(in.buf)
	in.buf, in.r, in.w = nil, 0, 0
}

// leave moves what is there to another buffer: somebody may still use this one.
func (in *input) leave() {
	var b []byte
	if rest := in.bytes(); len(rest) > 0 {
		b = buffer.Get(len(rest))
		copy(b, rest)
	}
	buffer.Leave(in.buf)
	in.buf, in.r, in.w = b, 0, in.w-in.r
}

// fill reads more, waiting for it: into a buffer of at least size bytes. Before it waits it gives an empty buffer back, if the
// connection can wait without one.
func (in *input) fill(size int) error {
	if in.r == in.w {
		in.r, in.w = 0, 0
		switch nc := in.nc.(type) {
		case lender:
			in.release()
			var err error
			in.buf, in.w, err = nc.ReadLent(size)
			return err
		case waiter:
			in.release()
			if err := nc.WaitReadable(); err != nil {
				return err
			}
		default:
			if len(in.buf) < size {
				in.release()
			}
		}
	}
	switch {
	case in.buf == nil:
		in.buf = buffer.Get(size)
	case in.w < len(in.buf):
	case in.r > 0:
		in.w = copy(in.buf, in.bytes())
		in.r = 0
	case len(in.buf) >= buffer.Medium:
		return errTooLarge
	default:
		bigger := buffer.Get(len(in.buf) + 1)
		in.w = copy(bigger, in.bytes())
		buffer.Put(in.buf)
		in.buf, in.r = bigger, 0
	}
	n, err := in.nc.Read(in.buf[in.w:])
	in.w += n
	switch {
	case n > 0:
		return nil
	case err == nil:
		return fmt.Errorf("read nothing")
	}
	return err
}

// head reads a start line and header, or a trailer, up to and with the empty line, and returns it without taking it. empty
// says that the first line may be the empty one. more is called before it waits for more.
func (in *input) head(limit int, empty bool, more func() error) ([]byte, error) {
	begin, at := 0, 0 // of the line; where to look on
	for {
		b := in.bytes()
		for {
			i := bytes.IndexByte(b[at:], '\n')
			if i < 0 {
				break
			}
			end := at + i
			switch {
			case end >= limit:
				return nil, errTooLarge
			case end == 0 || b[end-1] != '\r':
				return nil, errBareLF
			case end == begin+1 && (begin > 0 || empty):
				return b[:end+1], nil
			}
			begin, at = end+1, end+1
		}
		at = len(b)
		if len(b) >= limit {
			return nil, errTooLarge
		}
		if err := more(); err != nil {
			return nil, err
		}
		if err := in.fill(buffer.Tiny); err != nil {
			return nil, err
		}
	}
}

// output gathers what goes out on an HTTP/1 connection, in a pooled buffer, until flush. One goroutine at a time uses it.
type output struct {
	nc  net.Conn
	buf []byte // nil while n is zero
	n   int
	err error // of a write: nothing more goes out
}

// direct is the size from which on a piece is not copied into the buffer, in bytes.
const direct = 4 << 10

func (o *output) text(s ...string) {
	for _, s := range s {
		for len(s) > 0 {
			o.room()
			n := copy(o.buf[o.n:], s)
			o.n += n
			s = s[n:]
		}
	}
}

// payload adds bytes, and may send some.
func (o *output) payload(p []byte) {
	for len(p) > 0 && o.err == nil {
		if o.n == 0 && len(p) >= direct {
			_, o.err = o.nc.Write(p)
			return
		}
		o.room()
		n := copy(o.buf[o.n:], p)
		o.n += n
		p = p[n:]
		if o.n == len(o.buf) {
			o.flush()
		}
	}
}

// room sees to it that there is room in the buffer.
func (o *output) room() {
	if o.n == len(o.buf) {
		o.flush()
	}
	if o.buf == nil {
		o.buf = buffer.Get(buffer.Small)
	}
}

// flush sends what was gathered, and returns why nothing can be sent.
func (o *output) flush() error {
	if o.n > 0 && o.err == nil {
		_, o.err = o.nc.Write(o.buf[:o.n])
	}
	o.release()
	return o.err
}

// release forgets what was gathered.
func (o *output) release() {
	buffer.Put(o.buf)
	o.buf, o.n = nil, 0
}

// unread puts bytes back before what is there.
func (in *input) unread(p []byte) {
	if len(p) == 0 {
		return
	}
	if in.r >= len(p) {
		in.r -= copy(in.buf[in.r-len(p):], p)
		return
	}
	b := buffer.Get(len(p) + len(in.bytes()))
	n := copy(b, p)
	n += copy(b[n:], in.bytes())
	buffer.Put(in.buf)
	in.buf, in.r, in.w = b, 0, n
}
