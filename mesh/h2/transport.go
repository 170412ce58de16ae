package h2

import (
	"net"
	"sync"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// Transport is what a connection runs over: bytes in both directions, in order. One goroutine reads and, at a time, one
// writes; Abort comes from anyone at any time.
type Transport interface {
	// Read is as in io.Reader. It may overwrite all of p.
	Read(p []byte) (int, error)
	// WaitReadable blocks until Read would return without blocking, with data or an error. It should hold no buffer
	// meanwhile.
	WaitReadable() error
	// Buffered returns about how many bytes Read would return, over several calls, without waiting; zero if it might wait. It
	// is rather too many, and with room for so many Read may copy less.
	Buffered() int
	// Write takes p, which the caller may use again at once. Until it returns, p and the byte behind it, where p has that
	// capacity, are its own; then they are as before. What it took is sent by Flush at the latest.
	Write(p []byte) (int, error)
	Flush() error
	// CloseWrite says that nothing more will be written.
	CloseWrite() error
	// Abort ends both directions at once and makes all other calls return.
	Abort()
	// Release is the last call, after Abort, when no other is under way.
	Release()
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
}

// netTransport is a Transport over any net.Conn.
type netTransport struct {
	net.Conn
	in    []byte // pooled; nil while r == w
	r, w  int
	err   error // of a read, to be returned when in is empty
	out   []byte
	n     int
	abort sync.Once
}

// lender is a connection that reads into a buffer of package buffer, which it takes once there is something to read.
type lender interface {
	ReadLent(size int) ([]byte, int, error)
}

// NetTransport runs a connection over nc, which it then owns. It holds a buffer while it waits, unless nc has a method
// WaitReadable as Stream does, or ReadLent as nowait.Conn.
func NetTransport(nc net.Conn) Transport { return &netTransport{Conn: nc} }

func (t *netTransport) WaitReadable() error {
	if t.r < t.w {
		return nil
	}
	if t.err != nil {
		return t.err
	}
	t.r = 0
	if l, ok := t.Conn.(lender); ok {
		t.drop()
		t.in, t.w, t.err = l.ReadLent(buffer.Small)
		return t.err
	}
	if t.in == nil {
		if w, ok := t.Conn.(interface{ WaitReadable() error }); ok {
			if t.err = w.WaitReadable(); t.err != nil {
				return t.err
			}
		}
		t.in = buffer.Get(buffer.Small)
	}
	t.w, t.err = t.Conn.Read(t.in)
	if t.w == 0 {
		t.drop()
	}
	if t.w > 0 {
		return nil
	}
	return t.err
}

// drop gives the read buffer back.
func (t *netTransport) drop() {
	buffer.Put(t.in)
	t.in, t.r, t.w = nil, 0, 0
}

func (t *netTransport) Read(p []byte) (int, error) {
	if err := t.WaitReadable(); err != nil {
		return 0, err
	}
	n := copy(p, t.in[t.r:t.w])
	t.r += n
	if t.r == t.w {
		t.drop()
	}
	return n, nil
}

func (t *netTransport) Buffered() int { return t.w - t.r }

func (t *netTransport) Write(p []byte) (int, error) {
	if t.out == nil {
		t.out = buffer.Get(len(p))
	}
	if len(t.out)-t.n < len(p) {
		if err := t.Flush(); err != nil {
			return 0, err
		}
		if len(p) >= buffer.Small {
			return t.Conn.Write(p)
		}
		t.out = buffer.Get(buffer.Small)
	}
	t.n += copy(t.out[t.n:], p)
	return len(p), nil
}

func (t *netTransport) Flush() error {
	if t.out == nil {
		return nil
	}
	var err error
	if t.n > 0 {
		_, err = t.Conn.Write(t.out[:t.n])
	}
	buffer.Put(t.out)
	t.out, t.n = nil, 0
	return err
}

func (t *netTransport) CloseWrite() error {
	if cw, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

func (t *netTransport) Abort() { t.abort.Do(func() { _ = t.Conn.Close() }) }

func (t *netTransport) Release() {
	t.drop()
	buffer.Put(t.out)
	t.out, t.n = nil, 0
}
