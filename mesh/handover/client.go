package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrRefused is wrapped by errors for what the other side does not do. The connection goes on.
var ErrRefused = errors.New("refused")

// Client asks another process for its sockets, or has it keep ours. It is one session: who answers knows by its end that
// this process is gone. Its methods may be called concurrently. After an error that is not ErrRefused the session is over.
type Client struct {
	conn    *net.UnixConn
	timeout time.Duration
	peer    string
	done    chan struct{} // closed by Close, and after an error

	mu   sync.Mutex // held over an exchange, which its time-out bounds
	once sync.Once
}

// Dial connects to the socket at path and introduces this process as name. A timeout of zero means DefaultTimeout; it bounds
// each exchange, this one included. The caller closes the client.
func Dial(ctx context.Context, path, name string, timeout time.Duration) (*Client, error) {
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn.(*net.UnixConn), timeout: timeout, done: make(chan struct{})}
	defer context.AfterFunc(ctx, c.Close)() // until the hello is over
	if err := proveRoot(c.conn); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r, _, err := c.ask(request{Op: opHello, Newest: newest, Oldest: oldest, Name: name}, nil)
	if err == nil {
		_, err = agree(r.Newest, r.Oldest)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: hello: %w", path, err)
	}
	c.peer = r.Name
	return c, nil
}

// Peer is the name by which the other side introduced itself.
func (c *Client) Peer() string { return c.peer }

// Done is closed when the session is over as far as this side knows; see Watch.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the session.
func (c *Client) Close() {
	c.once.Do(func() {
		close(c.done)
		c.conn.Close()
	})
}

// Lent is what a Lend found.
type Lent struct {
	// Sockets are the caller's, to use and to close.
	Sockets []Socket
	// Orphaned says that nobody serves them: who deposited them is gone.
	Orphaned bool
}

// Lend asks for the sockets of a network namespace. The other side goes on serving them until Taken. What it says of them is
// compared with the kernel; an error may come with those sockets that are right.
func (c *Client) Lend(ns NetNS) (Lent, error) {
	r, sockets, err := c.ask(request{Op: opLend, NetNS: ns}, nil)
	if err != nil {
		return Lent{}, fmt.Errorf("lend sockets of %s: %w", ns, err)
	}
	sockets, err = verify(ns, sockets)
	if err != nil {
		err = fmt.Errorf("lend sockets of %s: %w", ns, err)
	}
	return Lent{Sockets: sockets, Orphaned: r.Orphaned}, err
}

// Taken says that this process serves the sockets of the namespace from now on, until the session's end: the other side
// leaves what is in their queues.
func (c *Client) Taken(ns NetNS) error {
	if _, _, err := c.ask(request{Op: opTaken, NetNS: ns}, nil); err != nil {
		return fmt.Errorf("take sockets of %s: %w", ns, err)
	}
	return nil
}

// Deposit has the other side keep sockets of a namespace, at most MaxDescriptors, for whoever comes after this process. They
// replace all that it keeps of the namespace; none gives up what this session has deposited. The descriptors stay the
// caller's.
func (c *Client) Deposit(ns NetNS, sockets []Socket) error {
	if _, _, err := c.ask(request{Op: opDeposit, NetNS: ns, Sockets: namesOf(sockets)}, sockets); err != nil {
		return fmt.Errorf("deposit sockets of %s: %w", ns, err)
	}
	return nil
}

// ask sends a request and returns the last response and all sockets, which are the caller's.
func (c *Client) ask(r request, attached []Socket) (last response, sockets []Socket, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		if err != nil && !errors.Is(err, ErrRefused) {
			closeSockets(sockets)
			sockets = nil
			c.Close()
		}
	}()
	if err := send(c.conn, r, attached, c.timeout); err != nil {
		return last, nil, err
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return last, nil, err
	}
	for {
		last = response{}
		fds, err := receive(c.conn, &last)
		if err != nil {
			return last, sockets, err
		}
		some, err := join(last.Sockets, fds)
		sockets = append(sockets, some...)
		if err != nil {
			return last, sockets, err
		}
		if last.Error != "" {
			closeSockets(sockets)
			return last, nil, fmt.Errorf("%w: %s", ErrRefused, last.Error)
		}
		if !last.More {
			return last, sockets, nil
		}
	}
}

// Watch waits until the other side has gone, or the session is over for another reason. It reads nothing, so exchanges may
// go on meanwhile; it looks every interval.
func (c *Client) Watch(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.done:
			return net.ErrClosed
		case <-tick.C:
			if gone(c.conn) {
				c.Close()
				return io.EOF
			}
		}
	}
}
