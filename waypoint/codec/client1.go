package codec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// client1 is an HTTP/1 connection to a backend: one request at a time.
type client1 struct {
	nc     net.Conn
	cfg    *ClientConfig
	in     input
	out    output
	parser parser1
	done   chan struct{}
	look   looker         // for the backend's end
	idle   *time.Timer    // begins the wait for the backend's end, some time after a request
	quiet  sync.WaitGroup // of who waits

	mu       sync.Mutex // guards what follows
	waiting  bool       // somebody waits for the backend's end
	busy     bool       // reserved or under way
	rested   bool       // it was idle, for a request answered or for nobody: the backend may have ended it
	draining bool
	closed   bool
	parts    int // of a request under way that still use the connection
	err      error
}

func newClient1(nc net.Conn, cfg *ClientConfig) *client1 {
	c := &client1{nc: nc, cfg: cfg, done: make(chan struct{})}
	c.in.nc, c.out.nc = nc, nc
	c.parser.maxFields = cfg.MaxFields
	return c
}

func (c *client1) Reserve() bool {
	c.mu.Lock()
	if c.busy || c.draining || c.closed {
		c.mu.Unlock()
		return false
	}
	c.busy = true
	fresh, waiting := !c.rested, c.waiting
	c.mu.Unlock()
	if fresh {
		return true
	}
	if c.idle != nil {
		c.idle.Stop()
	}
	if waiting {
		_ = c.nc.SetReadDeadline(time.Now())
		c.quiet.Wait()
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	if c.look.ended(c.nc) {
		c.close(nil)
		c.Unreserve()
		return false
	}
	return true
}

// idleWait is how long a connection must have been idle before somebody waits for the backend's end. Most are used again before
// that, and look then.
const idleWait = time.Second

// restLocked sees to it that somebody waits for the backend's end once the connection has been idle for a while.
func (c *client1) restLocked() {
	c.rested = true
	switch {
	case c.closed:
	case c.idle == nil:
		c.idle = time.AfterFunc(idleWait, c.awaitEnd)
	default:
		c.idle.Reset(idleWait)
	}
}

// notifier is a connection that tells when it has something to read, so that nobody need wait for it: a tunnel.
type notifier interface{ OnReadable(f func()) }

// ended is told that there is something to read. On an idle connection that is its end.
func (c *client1) ended() {
	c.mu.Lock()
	idle := !c.busy && !c.closed
	c.draining = c.draining || idle
	c.mu.Unlock()
	if idle {
		go c.Close() // Done waits for it
	}
}

// awaitEnd waits until the backend ends the idle connection, or Reserve ends the wait.
func (c *client1) awaitEnd() {
	if n, ok := c.nc.(notifier); ok {
		n.OnReadable(c.ended)
		return
	}
	c.mu.Lock()
	wait := !c.busy && !c.closed
	c.waiting = wait
	if wait {
		c.quiet.Add(1)
	}
	c.mu.Unlock()
	if !wait {
		return
	}
	defer c.quiet.Done()
	err := awaitReadable(c.nc)
	c.mu.Lock()
	c.waiting = false
	c.settleLocked()
	c.mu.Unlock()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.close(nil)
	}
	c.cfg.OnChange()
}

func (c *client1) Unreserve() {
	c.mu.Lock()
	c.busy = false
	end := c.draining && !c.closed
	c.settleLocked()
	c.restLocked()
	c.mu.Unlock()
	if end {
		c.close(nil)
	}
	c.cfg.OnChange()
}

func (c *client1) Available() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy || c.draining || c.closed {
		return 0
	}
	return 1
}

func (c *client1) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy {
		return 1
	}
	return 0
}

func (c *client1) Draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining || c.closed
}

func (c *client1) Protocol() message.Protocol { return message.HTTP11 }
func (c *client1) LocalAddr() net.Addr        { return c.nc.LocalAddr() }
func (c *client1) RemoteAddr() net.Addr       { return c.nc.RemoteAddr() }
func (c *client1) Done() <-chan struct{}      { return c.done }

func (c *client1) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *client1) Shutdown() {
	c.mu.Lock()
	c.draining = true
	idle := !c.busy && !c.closed
	c.mu.Unlock()
	if idle {
		c.close(nil)
	}
	c.cfg.OnChange()
}

func (c *client1) Close() {
	c.close(nil)
	c.cfg.OnChange()
}

// close ends the connection, because of err unless that is nil.
func (c *client1) close(err error) {
	c.mu.Lock()
	if c.err == nil && !c.closed {
		c.err = err
	}
	c.closed = true
	c.settleLocked()
	c.mu.Unlock()
	_ = c.nc.Close()
}

// settleLocked says that the connection is over once nobody uses it.
func (c *client1) settleLocked() {
	if !c.closed || c.busy || c.parts > 0 || c.waiting {
		return
	}
	select {
	case <-c.done:
	default:
		if c.idle != nil {
			c.idle.Stop()
		}
		close(c.done)
	}
}

// call1 is a request under way, and its response.
type call1 struct {
	message.Response
	c       *client1
	ctx     context.Context
	body    body1
	bound   bound         // to ctx
	proceed chan struct{} // closed when the body may be sent; nil: it may
	// unwanted says that the response came instead; it is set before proceed is closed.
	unwanted bool
	given    atomic.Bool // the context has ended, and so has the connection
	heard    bool        // a byte of an answer has come
	keep     bool        // the connection, by what the response says
	bodyErr  atomic.Pointer[error]
}

func (c *client1) RoundTrip(ctx context.Context, req *message.Request, inform func(*message.Response)) (*message.Response, error) {
	c.mu.Lock()
	unusable, stale := c.closed, c.rested
	c.parts = 1
	c.mu.Unlock()
	if unusable || ctx.Err() != nil {
		err := ErrUnusable
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		closeBody(req.Body)
		c.leave()
		return nil, &Error{Stage: Unsent, Err: err}
	}
	k := &call1{c: c, ctx: ctx}
	k.bound.begin(ctx, k)
	k.write(req)
	err := k.await(req, inform)
	if err != nil {
		stage := Sent
		err = k.failure(err, stage)
		if e := err.(*Error); stale && !k.heard && !errors.Is(err, ErrRequestBody) && ctx.Err() == nil {
			e.Stale = true
		}
		k.end(false)
		return nil, err
	}
	k.answer(req)
	return &k.Response, nil
}

// leave is called by each part of a request that uses the connection no more.
func (c *client1) leave() {
	c.mu.Lock()
	over := false
	if c.parts--; c.parts == 0 {
		c.busy = false
		over = c.draining && !c.closed
		c.settleLocked()
		c.restLocked()
	}
	c.mu.Unlock()
	if over {
		c.close(nil)
	}
	c.cfg.OnChange()
}

// write sends the request's head, and its body: what is there and small at once, else in a goroutine of its own.
func (k *call1) write(req *message.Request) {
	c := k.c
	out := &c.out
	out.text(req.Method, " ", req.Path, " HTTP/1.1\r\nhost: ", req.Authority, "\r\n")
	writeFields(out, req.Header)
	chunked := false
	switch {
	case req.Body == nil && (req.Header.Has("content-length") || req.Method == "POST" || req.Method == "PUT" || req.Method == "PATCH"):
		out.text("content-length: 0\r\n")
	case req.Body == nil:
	case req.Length >= 0 && !req.Header.Has("trailer"): // only chunks can have one
		out.text("content-length: ", lengthText(req.Header, req.Length), "\r\n")
	default:
		chunked = true
		out.text("transfer-encoding: chunked\r\n")
	}
	te := req.Header.Get("te") == "trailers"
	switch {
	case req.Upgrade != "":
		out.text("connection: upgrade\r\nupgrade: ", req.Upgrade, "\r\n")
	case te:
		out.text("connection: te\r\nte: trailers\r\n")
	}
	if req.Body == nil {
		out.text("\r\n")
		_ = out.flush()
		return
	}
	t := &sending1{out: out, body: req.Body, length: req.Length, chunked: chunked}
	if req.Expect {
		out.text("expect: 100-continue\r\n\r\n")
		_ = out.flush()
		k.proceed = make(chan struct{})
	} else {
		out.text("\r\n")
		if t.run(true) {
			k.sendDone(t)
			return
		}
	}
	c.mu.Lock()
	c.parts++
	c.mu.Unlock()
	go k.send(t, k.proceed) // Done waits for it, by leave
}

// send sends the rest of the body.
func (k *call1) send(t *sending1, proceed chan struct{}) {
	defer k.c.leave()
	if proceed != nil {
		late := time.NewTimer(k.c.cfg.ExpectTimeout)
		defer late.Stop()
		select {
		case <-proceed:
			if k.unwanted {
				k.c.mu.Lock()
				k.c.draining = true // the backend may go on to wait for the body
				k.c.mu.Unlock()
				t.body.Close()
				return
			}
		case <-late.C:
		}
	}
	t.run(false)
	k.sendDone(t)
}

// sendDone looks at how sending the body ended.
func (k *call1) sendDone(t *sending1) {
	t.body.Close()
	switch {
	case t.bodyErr != nil:
		err := fmt.Errorf("%w: %w", ErrRequestBody, t.bodyErr)
		k.bodyErr.Store(&err)
		k.c.close(err)
	case t.err != nil:
		// The response may say why. Only afterwards the connection is of no more use.
		k.c.mu.Lock()
		k.c.draining = true
		k.c.mu.Unlock()
	}
}

// goOn lets the body be sent, or ends the wait for that.
func (k *call1) goOn() {
	if k.proceed != nil {
		close(k.proceed)
		k.proceed = nil
	}
}

// await reads responses until the final one. If that comes before the body was asked for, the body is not sent (RFC 9110 section
// 10.1.1): to pull it would ask the client for it.
func (k *call1) await(req *message.Request, inform func(*message.Response)) error {
	defer func() {
		k.unwanted = k.proceed != nil
		k.goOn()
	}()
	c := k.c
	for informational := 0; ; informational++ {
		head, err := c.in.head(c.cfg.MaxHeader, false, func() error { return nil })
		k.heard = k.heard || len(c.in.bytes()) > 0
		if err == errTooLarge || err == errBareLF {
			return fmt.Errorf("%w: %w", ErrBadResponse, err)
		}
		if err == io.EOF && k.heard {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		h, err := c.parser.response(head, &k.Response, req.Method)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadResponse, err)
		}
		c.in.take(len(head))
		c.parser.fields = nil // the response's now
		k.keep = h.keep
		switch {
		case k.Status == 101 && (req.Upgrade == "" || h.upgrade == ""):
			return fmt.Errorf("%w: status 101 that nobody asked for", ErrBadResponse)
		case k.Status == 101:
			k.Upgrade = h.upgrade
			return nil
		case k.Status >= 200:
			return k.prepare(h, req.Method)
		case informational == maxInformational:
			return fmt.Errorf("%w: more than %d responses of status 1xx", ErrBadResponse, maxInformational)
		case k.Status == 100:
			k.goOn()
		case inform != nil:
			inform(&k.Response)
		}
		k.Response = message.Response{}
	}
}

// maxInformational is how many responses of status 1xx may come before the final one.
const maxInformational = 100

// prepare makes the body of a final response's head.
func (k *call1) prepare(h head1, method string) error {
	k.Length = h.length
	switch {
	case method == "HEAD" || k.Status == 204 || k.Status == 304:
		if k.Status == 204 {
			k.Length = 0
			k.Header.Del("content-length")
		}
		return nil
	case h.length == 0:
		return nil
	}
	b := &k.body
	b.in, b.left, b.maxHead, b.maxFields = &k.c.in, h.length, k.c.cfg.MaxHeader, k.c.cfg.MaxFields
	b.owner = k
	switch {
	case h.chunked:
		b.setChunked()
	case h.length < 0:
		k.keep = false // it ends with the connection
	}
	k.Body = b
	return nil
}

// answer ends what has no body, and makes a tunnel of what was upgraded.
func (k *call1) answer(req *message.Request) {
	c := k.c
	switch {
	case k.Status == 101:
		behind := c.in
		c.in.buf, c.in.r, c.in.w = nil, 0, 0
		k.Tunnel = &tunnel1{nc: c.nc, in: &behind, after: func() { k.end(false) }}
	case k.Body == nil:
		k.end(true)
	}
}

// ended is called when the context has.
func (k *call1) ended() {
	k.given.Store(true)
	_ = k.c.nc.Close()
}

func (k *call1) fault(err error) error { return k.failure(err, Answered) }

// end gives the connection back, if all of the response was read, and it can be used again; else it closes it.
func (k *call1) end(whole bool) {
	if !k.bound.end(k) {
		whole = false // it is being closed
	}
	c := k.c
	c.mu.Lock()
	sending := c.parts > 1
	c.mu.Unlock()
	if !whole || !k.keep || sending || len(c.in.bytes()) > 0 || k.bodyErr.Load() != nil || c.out.err != nil {
		c.close(nil)
	}
	if c.in.buf != nil && len(c.in.bytes()) == 0 || !whole {
		c.in.release()
	}
	c.leave()
}

// failure makes a connection's error one of the caller's.
func (k *call1) failure(err error, stage Stage) error {
	switch {
	case k.given.Load() || k.ctx.Err() != nil:
		err = context.Cause(k.ctx)
	case k.bodyErr.Load() != nil:
		err = *k.bodyErr.Load()
	}
	var bad *malformed
	if stage == Answered && (errors.As(err, &bad) || err == errBareLF || err == errTooLarge) {
		err = fmt.Errorf("%w: %w", ErrBadResponse, err)
	}
	return &Error{Stage: stage, Err: err}
}

func closeBody(b message.Body) {
	if b != nil {
		b.Close()
	}
}
