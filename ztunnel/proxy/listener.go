package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// Pauses of an accept loop while descriptors or memory run out.
const (
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseMax   = time.Second
)

// listener is a net.Listener that waits out a lack of descriptors, that can be closed without losing connections which
// wait in its queue, and that can leave them to another process.
type listener struct {
	*net.TCPListener
	ctx      context.Context // ends pauses
	logger   *slog.Logger
	draining atomic.Bool
	once     sync.Once
	drained  chan struct{} // closed when Accept has returned all that there was
	bounds   *telemetry.Bounds
	said     time.Time // of Accept: when it was last said that connections cannot be accepted
	shared   sharing
}

func newListener(ctx context.Context, ln *net.TCPListener, logger *slog.Logger) *listener {
	return &listener{TCPListener: ln, ctx: ctx, logger: logger, drained: make(chan struct{})}
}

// Accept returns the next connection; after drain those that are left in the queue, and then net.ErrClosed.
func (l *listener) Accept() (net.Conn, error) { return l.acceptWith(l.acceptOnce) }

func (l *listener) acceptWith(accept func() (net.Conn, error)) (net.Conn, error) {
	for pause := acceptPauseFirst; ; pause = min(2*pause, acceptPauseMax) {
		c, err := accept()
		if err == nil || !outOfResources(err) {
			return c, err
		}
		l.outOf(err)
		select {
		case <-time.After(pause):
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
	}
}

// shortLogPeriod is how often it is said that connections cannot be accepted.
const shortLogPeriod = 10 * time.Second

// outOf counts a failure for lack of descriptors or memory, and says so now and then.
func (l *listener) outOf(err error) {
	var no syscall.Errno
	errors.As(err, &no)
	l.bounds.AcceptFailed(unix.ErrnoName(no))
	if now := time.Now(); now.Sub(l.said) >= shortLogPeriod {
		l.said = now
		l.logger.Error("cannot accept connections; they wait, and it is tried again", "error", err)
	}
}

func (l *listener) acceptOnce() (net.Conn, error) {
	for !l.draining.Load() {
		if l.shared.wait(l.ctx) {
			if l.ctx.Err() != nil {
				l.finish()
				return nil, net.ErrClosed
			}
			continue
		}
		c, err := l.AcceptTCP()
		if err == nil {
			l.shared.adopt(c)
			return c, nil
		}
		if errors.Is(err, syscall.EINVAL) {
			l.finish() // another process that had it, too, has ended it
			return nil, net.ErrClosed
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
	return l.acceptQueued()
}

// acceptQueued takes a connection that is in the queue already. If there is none it closes the listener.
func (l *listener) acceptQueued() (net.Conn, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return nil, net.ErrClosed
	}
	if l.shared.paused() {
		l.finish() // the queue is another process's
		return nil, net.ErrClosed
	}
	fd := -1
	// Not the net package's accept: it looks at the deadline, which has passed, before it looks into the queue.
	ctl := rc.Control(func(ln uintptr) {
		for {
			fd, _, err = unix.Accept4(int(ln), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if !errors.Is(err, syscall.EINTR) && !errors.Is(err, syscall.ECONNABORTED) {
				return
			}
		}
	})
	switch {
	case ctl != nil:
		return nil, net.ErrClosed
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINVAL):
		if l.shared.last.Load() {
			rc.Control(func(ln uintptr) { unix.Shutdown(int(ln), unix.SHUT_RDWR) })
		}
		l.finish()
		return nil, net.ErrClosed
	case err != nil:
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "accepted")
	defer file.Close()
	c, err := net.FileConn(file)
	if err == nil {
		l.shared.adopt(c.(*net.TCPConn))
	}
	return c, err
}

// finish closes the listener of which Accept has returned everything.
func (l *listener) finish() {
	l.Close()
	l.once.Do(func() { close(l.drained) })
}

// drain has Accept close the listener once its queue is empty.
func (l *listener) drain() {
	l.draining.Store(true)
	l.shared.wake(l)
}

func outOfResources(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serve accepts until the listener is closed, and gives each connection to handle in a goroutine of the pod.
func (p *Pod) serve(l *listener, handle func(*net.TCPConn)) {
	l.bounds = p.node.Bounds
	for {
		c, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				l.Close()
				p.fail(l.Addr().(*net.TCPAddr).Port, err)
			}
			return
		}
		conn := c.(*net.TCPConn)
		if p.full() {
			reset(conn)
			continue
		}
		p.party.Asks(workPerConnection)
		p.crew.Do(func() { handle(conn) })
	}
}

// reset closes a connection with a RST.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}
