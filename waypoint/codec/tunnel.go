package codec

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// tunnel1 is an HTTP/1 connection after an upgrade.
type tunnel1 struct {
	nc    net.Conn
	after func() // once, when it was closed; may be nil

	mu sync.Mutex // guards what follows
	in *input     // what was read behind the head; nil once that was read
}

func (t *tunnel1) Read(p []byte) (int, error) {
	t.mu.Lock()
	if t.in != nil {
		n := copy(p, t.in.bytes())
		t.in.take(n)
		if len(t.in.bytes()) == 0 {
			t.dropLocked()
		}
		if n > 0 || len(p) == 0 {
			t.mu.Unlock()
			return n, nil
		}
	}
	t.mu.Unlock()
	return t.nc.Read(p)
}

// dropLocked forgets what was read behind the head.
func (t *tunnel1) dropLocked() {
	if t.in != nil {
		t.in.release()
		t.in = nil
	}
}

// WaitReadable blocks until Read would not, so that its caller need not hold a buffer; it returns at once if the connection cannot
// tell.
func (t *tunnel1) WaitReadable() error {
	t.mu.Lock()
	first := t.in != nil
	t.mu.Unlock()
	if w, ok := t.nc.(interface{ WaitReadable() error }); ok && !first {
		return w.WaitReadable()
	}
	return nil
}

func (t *tunnel1) Write(p []byte) (int, error) { return t.nc.Write(p) }
func (t *tunnel1) CloseWrite() error           { return closeWrite(t.nc) }

func (t *tunnel1) Close() error {
	err := t.nc.Close()
	t.mu.Lock()
	t.dropLocked()
	after := t.after
	t.after = nil
	t.mu.Unlock()
	if after != nil {
		after()
	}
	return err
}

// relay moves bytes between two tunnels until both directions have ended, or one has failed: then both are reset. It returns how
// many bytes went to a, and why it failed. moved counts bytes in both directions.
func relay(a, b message.Tunnel, moved *atomic.Uint64) (int64, error) {
	var up, down error
	var n int64
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, up = carry(b, a, moved); up != nil {
			_ = a.Close()
			_ = b.Close()
		}
	})
	if n, down = carry(a, b, moved); down != nil {
		_ = a.Close()
		_ = b.Close()
	}
	wg.Wait()
	if up != nil && !errors.Is(up, net.ErrClosed) {
		return n, up
	}
	return n, down
}

// carry moves bytes until from has ended, and ends that direction of to.
func carry(to, from message.Tunnel, moved *atomic.Uint64) (int64, error) {
	var total int64
	waiter, _ := from.(interface{ WaitReadable() error })
	for {
		if waiter != nil {
			if err := waiter.WaitReadable(); err == io.EOF {
				return total, to.CloseWrite()
			} else if err != nil {
				return total, err
			}
		}
		buf := buffer.Get(buffer.Small)
		n, err := from.Read(buf)
		if n > 0 {
			var werr error
			n, werr = to.Write(buf[:n])
			total += int64(n)
			moved.Add(uint64(n))
			if werr != nil && (err == nil || err == io.EOF) {
				err = werr
			}
		}
		buffer.Put(buf)
		switch {
		case err == io.EOF:
			return total, to.CloseWrite()
		case err != nil:
			return total, err
		}
	}
}

// reset ends a connection so that the peer cannot take what it got for whole.
func reset(nc net.Conn) {
	switch nc := nc.(type) {
	case interface{ Reset(h2.ErrCode) }:
		nc.Reset(h2.ConnectError)
	case interface{ SetLinger(sec int) error }:
		_ = nc.SetLinger(0)
	}
	_ = nc.Close()
}
