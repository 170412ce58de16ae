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
)

// Pauses of an accept loop while descriptors or memory run out.
const (
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseMax   = time.Second
)

// listener is a net.Listener that waits out a lack of descriptors, and that can be closed without losing connections which
// wait in its queue.
type listener struct {
	*net.TCPListener
	ctx      context.Context // ends pauses
	logger   *slog.Logger
	draining atomic.Bool
	once     sync.Once
	drained  chan struct{} // closed when Accept has returned all that there was
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
		l.logger.Error("cannot accept connections; trying again", "error", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
	}
}

func (l *listener) acceptOnce() (net.Conn, error) {
	if !l.draining.Load() {
		c, err := l.AcceptTCP()
		if err == nil {
			return c, nil
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
	case errors.Is(err, syscall.EAGAIN):
		l.Close()
		l.once.Do(func() { close(l.drained) })
		return nil, net.ErrClosed
	case err != nil:
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "accepted")
	defer file.Close()
	return net.FileConn(file)
}

// drain has Accept close the listener once its queue is empty.
func (l *listener) drain() {
	l.draining.Store(true)
	l.SetDeadline(time.Unix(1, 0)) // wakes an Accept that waits
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
		if p.node.full(p.conns.descriptors()) {
			p.logFull()
			reset(conn)
			continue
		}
		p.crew.do(func() { handle(conn) })
	}
}

// logFull says now and then that connections are refused since the pod has too many.
func (p *Pod) logFull() {
	now := time.Now().Unix()
	if last := p.fullLogged.Load(); now-last >= 10 && p.fullLogged.CompareAndSwap(last, now) {
		p.logger.Error("connections of the pod have as many descriptors as those of one pod may have; new ones are refused",
			"limit", p.node.MaxFiles)
	}
}

// reset closes a connection with a RST.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}
