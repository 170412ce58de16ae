package codec

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// server1 serves HTTP/1 on one connection: one request after the other.
type server1 struct {
	s      *Server
	in     *input
	out    output
	parser parser1
	x      Exchange
	body   *body1 // of the request under way; nil: it has none
	head   head1
	watch  watch
	armed  time.Time // when the read deadline was set to the idle time; zero: it is set to something else

	mu       sync.Mutex // guards what follows
	waiting  bool       // for a request
	answered bool       // the final response is on its way: nothing comes before it any more
}

// Bounds of what is read of a request that nobody wants any more, so that its connection can be used again, or its client reads the
// answer before it notices the end.
const (
	maxDrained = 256 << 10
	drainTime  = time.Second
)

// awaitFirst waits until n bytes of a request are there, for as long as the connection may be idle.
func (o *server1) awaitFirst(n int) error {
	if len(o.in.bytes()) >= n {
		return nil
	}
	o.mu.Lock()
	o.waiting = true
	if o.s.ending() {
		o.setDeadline(o.s.cfg.DrainIdle)
	} else if idle := o.s.cfg.IdleTimeout; idle < 0 {
		o.noDeadline()
	} else if now := time.Now(); o.armed.IsZero() || now.Sub(o.armed) > idle/8 {
		o.setDeadline(idle)
		o.armed = now
	}
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.waiting = false
		o.mu.Unlock()
	}()
	for len(o.in.bytes()) < n {
		if err := o.in.fill(buffer.Tiny); err != nil {
			return err
		}
	}
	return nil
}

// setDeadline bounds reads.
func (o *server1) setDeadline(d time.Duration) {
	o.armed = time.Time{}
	_ = o.s.nc.SetReadDeadline(time.Now().Add(d))
}

func (o *server1) noDeadline() {
	o.armed = time.Time{}
	_ = o.s.nc.SetReadDeadline(time.Time{})
}

// drain ends the wait for a request soon.
func (o *server1) drain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting {
		_ = o.s.nc.SetReadDeadline(time.Now().Add(o.s.cfg.DrainIdle))
	}
}

// run1 serves HTTP/1 from the first request on, of which some is there.
func (s *Server) run1(in *input) error {
	o := s.one
	o.out.nc = s.nc
	o.parser.maxFields = s.cfg.MaxFields
	o.watch.init(o)
	defer o.watch.stop()
	defer in.release()
	for {
		err := o.awaitFirst(1)
		if err == nil {
			err = o.request()
		} else if s.orderly(err) {
			return nil
		}
		switch {
		case err == nil:
		case err == errLast:
			o.linger()
			return nil
		default:
			if s.ending() {
				return nil
			}
			return err
		}
	}
}

// errLast says that the connection is to be closed, in order.
var errLast = errors.New("the last request")

// request reads and serves a request.
func (o *server1) request() error {
	o.x = Exchange{w: o}
	o.mu.Lock()
	o.answered = false
	o.mu.Unlock()
	if err := o.readHead(); err != nil {
		var bad *malformed
		if !errors.As(err, &bad) {
			return fmt.Errorf("read a request's header: %w", err)
		}
		o.head.keep = false
		_ = o.x.Respond(o.s.refusal(bad.status, bad.reason))
		o.linger()
		return fmt.Errorf("refused with status %d: %w", bad.status, bad)
	}
	o.makeBody()
	life := new(lifetime)
	defer life.end()
	o.x.ctx = life
	if !o.s.begin(life) {
		return net.ErrClosed
	}
	defer o.s.begin(nil)
	o.watch.begin(life.end, o.body)
	o.s.serve(&o.x)
	o.watch.end()
	return o.finish()
}

// readHead reads the request's head into the exchange.
func (o *server1) readHead() error {
	for range 2 { // clients of old sent an empty line after a body (RFC 9112 section 2.2)
		if err := o.awaitFirst(2); err != nil {
			return err
		}
		if b := o.in.bytes(); b[0] == '\r' && b[1] == '\n' {
			o.in.take(2)
		}
	}
	late := false
	head, err := o.in.head(o.s.cfg.MaxHeader, false, func() error {
		if !late {
			late = true
			o.setDeadline(o.s.cfg.HeaderTimeout)
		}
		return nil
	})
	switch {
	case err == errTooLarge:
		return refuse(431, "the header is larger than %d bytes", o.s.cfg.MaxHeader)
	case err == errBareLF:
		return refuse(400, "%v", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(408, "the header did not come in %v", o.s.cfg.HeaderTimeout)
	case err != nil:
		return err
	}
	o.head, err = o.parser.request(head, &o.x.Request)
	o.x.head = o.x.Request.Method == "HEAD"
	o.in.take(len(head))
	if len(o.in.bytes()) == 0 {
		o.in.release() // the handler may take its time
	}
	return err
}

// makeBody gives the request its body.
func (o *server1) makeBody() {
	o.body = nil
	if o.head.length == 0 {
		return
	}
	o.noDeadline() // whoever pulls it has one of their own
	b := &body1{in: o.in, left: o.head.length, owner: sender1{}, maxHead: o.s.cfg.MaxHeader, maxFields: o.s.cfg.MaxFields}
	if o.head.chunked {
		b.setChunked()
	}
	if o.x.Request.Expect {
		b.before = o.proceed
	}
	o.body, o.x.pulled = b, b
	o.x.Request.Body, o.x.Request.Length = b, o.head.length
}

// proceed tells the client to send the body. Nothing has been said yet, or a response is on its way, after which this would be
// out of place.
func (o *server1) proceed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.answered {
		o.out.text("HTTP/1.1 100 Continue\r\n\r\n")
		_ = o.out.flush()
	}
}

// sender1 is the owner of a request's body: what is wrong with it is the client's doing.
type sender1 struct{}

func (sender1) end(bool) {}

func (sender1) fault(err error) error {
	var bad *malformed
	switch {
	case errors.As(err, &bad), err == errBareLF, err == errTooLarge:
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	case err == io.ErrUnexpectedEOF || err == io.ErrClosedPipe || errors.Is(err, os.ErrDeadlineExceeded):
		return clientErr(err)
	}
	var netErr interface{ Timeout() bool }
	if errors.As(err, &netErr) {
		return clientErr(err)
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// finish sees to it that the connection can be used for the next request, or returns why not.
func (o *server1) finish() error {
	if o.x.aborted() {
		return fmt.Errorf("the exchange was aborted")
	}
	if b := o.body; b != nil && !b.whole() {
		_ = o.s.nc.SetReadDeadline(time.Now()) // somebody may wait in Next
		o.armed = time.Time{}
		whole, begun := b.detach()
		o.noDeadline()
		if !whole && (begun || !o.head.keep || !o.drainBody()) {
			return errLast
		}
	}
	if !o.head.keep {
		return errLast
	}
	return nil
}

// drainBody reads a body that nobody has looked at, and tells whether it was there to its end.
func (o *server1) drainBody() bool {
	if o.x.Request.Expect {
		return false // the client has not sent it
	}
	b := &body1{in: o.in, left: o.head.length, owner: sender1{}, maxHead: o.s.cfg.MaxHeader, maxFields: o.s.cfg.MaxFields}
	if o.head.chunked {
		b.setChunked()
	}
	defer b.Close()
	o.setDeadline(drainTime)
	defer o.noDeadline()
	for n := 0; n < maxDrained; {
		p, err := b.Next()
		if err != nil {
			return err == io.EOF
		}
		n += len(p)
	}
	return false
}

// linger closes the connection so that the client reads what it was told before it notices.
func (o *server1) linger() {
	if closeWrite(o.s.nc) != nil {
		return
	}
	o.setDeadline(drainTime)
	for n := 0; n < maxDrained; {
		o.in.release()
		if o.in.fill(buffer.Tiny) != nil {
			return
		}
		n += len(o.in.bytes())
	}
}

func (o *server1) inform(resp *message.Response) error {
	if o.x.Request.Proto == message.HTTP10 {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	writeStatus(&o.out, resp.Status)
	writeFields(&o.out, resp.Header)
	o.out.text("\r\n")
	if err := o.out.flush(); err != nil {
		return clientErr(err)
	}
	return nil
}

func (o *server1) respond(x *Exchange, resp *message.Response) error {
	if resp.Tunnel != nil {
		return o.upgrade(x, resp)
	}
	defer discard(resp)
	t := sending1{out: &o.out, body: resp.Body, length: resp.Length, moved: &x.given, counts: x.outgoing}
	o.mu.Lock()
	o.answered = true
	bodyless := x.bodyless(resp.Status)
	o.writeHead(x, resp, bodyless, &t)
	o.mu.Unlock()
	if bodyless || resp.Body == nil {
		if err := o.out.flush(); err != nil {
			return clientErr(err)
		}
		return nil
	}
	t.run(false)
	x.sent = t.sent
	switch {
	case t.bodyErr != nil:
		o.abort()
		return fmt.Errorf("%w: %w", ErrResponseBody, t.bodyErr)
	case t.err != nil:
		o.abort()
		return clientErr(t.err)
	}
	return nil
}

// writeHead writes the response's head, and says how the body is sent and whether the connection stays.
func (o *server1) writeHead(x *Exchange, resp *message.Response, bodyless bool, t *sending1) {
	if o.body != nil && x.Request.Expect && !o.asked() || o.s.ending() {
		o.head.keep = false
	}
	out := &o.out
	writeStatus(out, resp.Status)
	writeFields(out, resp.Header)
	old := x.Request.Proto == message.HTTP10
	switch {
	case resp.Status == 204 || resp.Status < 200:
	case bodyless:
		if resp.Length >= 0 && resp.Header.Has("content-length") {
			out.text("content-length: ", lengthText(resp.Header, resp.Length), "\r\n")
		}
	case resp.Body == nil:
		out.text("content-length: 0\r\n")
	case resp.Length >= 0 && (old || !resp.Header.Has("trailer")):
		out.text("content-length: ", lengthText(resp.Header, resp.Length), "\r\n")
	case old:
		o.head.keep = false
	default:
		t.chunked = true
		out.text("transfer-encoding: chunked\r\n")
	}
	switch {
	case !o.head.keep:
		out.text("connection: close\r\n")
	case old:
		out.text("connection: keep-alive\r\n")
	}
	out.text("\r\n")
}

// asked tells whether the client was told to send the body it has announced.
func (o *server1) asked() bool { return o.body.asked.Load() }

// upgrade sends status 101 and carries bytes until both directions have ended.
func (o *server1) upgrade(x *Exchange, resp *message.Response) error {
	defer discard(resp)
	o.head.keep = false
	if x.Request.Upgrade == "" || o.body != nil {
		o.abort()
		return fmt.Errorf("%w: nobody asked for an upgrade", ErrResponseBody)
	}
	o.watch.end()
	o.noDeadline()
	writeStatus(&o.out, 101)
	writeFields(&o.out, resp.Header)
	o.out.text("connection: upgrade\r\nupgrade: ", resp.Upgrade, "\r\n\r\n")
	if err := o.out.flush(); err != nil {
		return clientErr(err)
	}
	behind := *o.in
	o.in.buf, o.in.r, o.in.w = nil, 0, 0
	client := &tunnel1{nc: o.s.nc, in: &behind}
	defer client.Close()
	var err error
	if x.sent, err = relay(client, resp.Tunnel, &x.given); err != nil {
		return fmt.Errorf("%w: %w", ErrResponseBody, err)
	}
	return nil
}

func (o *server1) abort() {
	o.x.abortOnce.Store(true)
	reset(o.s.nc)
}
