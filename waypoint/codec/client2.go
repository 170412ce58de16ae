package codec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// client2 is an HTTP/2 connection to a backend.
type client2 struct {
	conn *h2.Conn
	cfg  *ClientConfig
	wg   sync.WaitGroup // of goroutines that send bodies
	done chan struct{}
	err  error // once done is closed
}

// newClient2 starts a connection over t.
func newClient2(t h2.Transport, cfg *ClientConfig) *client2 {
	c := &client2{cfg: cfg, done: make(chan struct{})}
	conf := cfg.H2
	conf.OnChange = func(*h2.Conn) { cfg.OnChange() }
	c.conn = h2.NewClient(t, conf)
	go c.run()
	c.conn.Flush()
	return c
}

// run has the connection until its end. Done tells of it.
func (c *client2) run() {
	c.err = c.conn.Run()
	c.wg.Wait()
	close(c.done)
	c.cfg.OnChange()
}

func (c *client2) Reserve() bool              { return c.conn.Reserve() }
func (c *client2) Unreserve()                 { c.conn.Unreserve() }
func (c *client2) Available() int             { return c.conn.Available() }
func (c *client2) Active() int                { return c.conn.Active() }
func (c *client2) Draining() bool             { return c.conn.Draining() }
func (c *client2) Protocol() message.Protocol { return message.HTTP2 }
func (c *client2) Shutdown()                  { c.conn.Shutdown() }
func (c *client2) Close()                     { c.conn.Close() }
func (c *client2) Done() <-chan struct{}      { return c.done }
func (c *client2) LocalAddr() net.Addr        { return c.conn.LocalAddr() }
func (c *client2) RemoteAddr() net.Addr       { return c.conn.RemoteAddr() }

func (c *client2) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// call2 is a request under way, and its response.
type call2 struct {
	message.Response
	body    body2
	s       *h2.Stream
	ctx     context.Context
	bound   bound         // to ctx
	proceed chan struct{} // closed when the body may be sent; nil: it may
	// unwanted says that the response came instead; it is set before proceed is closed.
	unwanted bool
	bodyErr  atomic.Pointer[error]
}

func (c *client2) RoundTrip(ctx context.Context, req *message.Request, inform func(*message.Response)) (*message.Response, error) {
	if req.Upgrade != "" {
		c.conn.Unreserve()
		closeBody(req.Body)
		return nil, &Error{Stage: Unsent, Err: ErrUpgrade}
	}
	if ctx.Err() != nil {
		c.conn.Unreserve()
		closeBody(req.Body)
		return nil, &Error{Stage: Unsent, Err: context.Cause(ctx)}
	}
	l := fieldLists.Get().(*[]message.Field)
	*l = appendRequest(*l, req, c.cfg.Secure)
	s, err := c.conn.AddReserved(*l, req.Body == nil)
	putFields(l)
	if err != nil {
		closeBody(req.Body)
		return nil, &Error{Stage: Unsent, Err: err}
	}
	k := &call2{s: s, ctx: ctx}
	k.bound.begin(ctx, k)
	if req.Body == nil {
		c.conn.Flush()
	} else {
		c.send(k, req)
	}
	if err := c.await(k, inform); err != nil {
		k.end(false)
		return nil, err
	}
	c.answer(k, req.Method == "HEAD")
	return &k.Response, nil
}

// appendRequest appends a request's header.
func appendRequest(l []message.Field, req *message.Request, secure bool) []message.Field {
	scheme := req.Scheme
	switch {
	case secure:
		scheme = "https"
	case scheme == "":
		scheme = "http"
	}
	l = append(l, message.Field{Name: ":method", Value: req.Method}, message.Field{Name: ":scheme", Value: scheme},
		message.Field{Name: ":path", Value: req.Path})
	if req.Authority != "" {
		l = append(l, message.Field{Name: ":authority", Value: req.Authority})
	}
	l = appendHeader(l, req.Header)
	if req.Expect && req.Body != nil {
		l = append(l, message.Field{Name: "expect", Value: "100-continue"})
	}
	switch {
	case req.Body != nil && req.Length >= 0:
		l = append(l, message.Field{Name: "content-length", Value: lengthText(req.Header, req.Length)})
	case req.Body == nil && req.Header.Has("content-length"):
		l = append(l, message.Field{Name: "content-length", Value: "0"})
	}
	return l
}

// inlineBody is how much of a body that is there already is sent before the response is waited for, in bytes.
const inlineBody = 16 << 10

// send sends the request's body: what is there and small at once, else in a goroutine of its own.
func (c *client2) send(k *call2, req *message.Request) {
	t := &sending2{s: k.s, body: req.Body, length: req.Length}
	var proceed chan struct{}
	if req.Expect {
		proceed = make(chan struct{})
		k.proceed = proceed
		c.conn.Flush()
	} else if t.run(true) {
		k.sendDone(t)
		return
	}
	c.wg.Go(func() {
		if proceed != nil {
			late := time.NewTimer(c.cfg.ExpectTimeout)
			defer late.Stop()
			select {
			case <-proceed:
				if k.unwanted {
					t.body.Close() // the stream ends with the response
					return
				}
			case <-late.C:
			}
		}
		t.run(false)
		k.sendDone(t)
	})
}

// sendDone looks at how sending the body ended.
func (k *call2) sendDone(t *sending2) {
	if t.bodyErr != nil {
		err := fmt.Errorf("%w: %w", ErrRequestBody, t.bodyErr)
		k.bodyErr.Store(&err)
		k.s.Reset(h2.Cancel)
	}
	t.body.Close()
}

// goOn lets the body be sent, or ends the wait for that.
func (k *call2) goOn() {
	if k.proceed != nil {
		close(k.proceed)
		k.proceed = nil
	}
}

// await waits for the response's header. If that comes before the body was asked for, the body is not sent (RFC 9110 section
// 10.1.1): to pull it would ask the client for it.
func (c *client2) await(k *call2, inform func(*message.Response)) error {
	defer func() {
		k.unwanted = k.proceed != nil
		k.goOn()
	}()
	for {
		fields, err := k.s.Headers(context.Background())
		if err == nil && len(fields) > c.cfg.MaxFields+1 {
			k.s.Reset(h2.Cancel)
			return &Error{Stage: Sent, Err: fmt.Errorf("%w: more than %d header fields", ErrBadResponse, c.cfg.MaxFields)}
		}
		if err != nil {
			return k.failure(err, Sent)
		}
		status, err := strconv.Atoi(fields[0].Value)
		if err != nil { // mesh/h2 has looked at it
			k.s.Reset(h2.ProtocolError)
			return &Error{Stage: Sent, Err: fmt.Errorf("%w: status: %w", ErrBadResponse, err)}
		}
		k.Status, k.Header, k.Proto = status, dropFramed(fields[1:]), message.HTTP2
		switch {
		case status >= 200:
			return nil
		case status == 100:
			k.goOn()
		case inform != nil:
			inform(&k.Response)
		}
	}
}

// dropFramed takes out what concerns one connection, but for the length, and is no part of a message.
func dropFramed(fields []message.Field) message.Fields {
	kept := fields[:0]
	for i := range fields {
		if !message.Hop(fields[i].Name) {
			kept = append(kept, fields[i])
		}
	}
	return kept
}

// answer makes the response of its header.
func (c *client2) answer(k *call2, head bool) {
	length, ok := declared(k.Header)
	if !ok {
		k.Header.Del("content-length")
	}
	k.Length = length
	if k.s.Ended() && k.s.Trailers() == nil || head || k.Status == 204 || k.Status == 304 {
		if !head && k.Status != 304 {
			k.Length = 0
		}
		k.end(true)
		return
	}
	k.body.s, k.body.left, k.body.owner = k.s, length, k
	k.Body = &k.body
}

// end gives the stream up, if it has not ended.
func (k *call2) end(bool) {
	k.bound.end(k)
	k.s.Close()
}

// ended is called when the context has.
func (k *call2) ended() { k.s.Reset(h2.Cancel) }

func (k *call2) fault(err error) error { return k.failure(err, Answered) }

// failure makes a stream's error one of the caller's.
func (k *call2) failure(err error, stage Stage) error {
	var reset *h2.StreamError
	switch own := errors.As(err, &reset) && !reset.Remote; {
	case errors.Is(err, h2.ErrUnprocessed):
		stage = Refused
	case own && k.ctx.Err() != nil:
		err = context.Cause(k.ctx)
	case own && k.bodyErr.Load() != nil:
		err = *k.bodyErr.Load()
	case own && reset.Code == h2.ProtocolError, err == io.EOF:
		err = fmt.Errorf("%w: %w", ErrBadResponse, err)
	}
	return &Error{Stage: stage, Err: err}
}
