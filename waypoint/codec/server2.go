package codec

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// run2 serves HTTP/2.
func (s *Server) run2(ctx context.Context, in *input) error {
	_ = s.nc.SetReadDeadline(time.Time{})
	idle := &idle2{limit: s.cfg.IdleTimeout, since: time.Now()}
	conn := h2.NewServer(h2.NetTransport(&unread{Conn: s.nc, in: in}), s.cfg.H2, func(st *h2.Stream) {
		idle.enter()
		defer idle.leave()
		s.stream(ctx, st)
	})
	s.mu.Lock()
	s.two, s.one = conn, nil
	draining, closed := s.draining, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		conn.Close()
	case draining:
		conn.Shutdown()
	}
	idle.start(conn)
	defer idle.stop()
	err := conn.Run()
	if errors.Is(err, h2.ErrClosed) && s.ending() {
		return nil
	}
	return err
}

// idle2 shuts a connection down that has had no streams for limit.
type idle2 struct {
	limit time.Duration

	mu    sync.Mutex // guards what follows
	busy  int
	since time.Time // busy is zero
	timer *time.Timer
}

func (i *idle2) start(conn *h2.Conn) {
	if i.limit <= 0 {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer = time.AfterFunc(i.limit, func() {
		i.mu.Lock()
		left := i.limit
		if i.busy == 0 {
			left -= time.Since(i.since)
		}
		if left > 0 {
			i.timer.Reset(left)
		}
		i.mu.Unlock()
		if left <= 0 {
			conn.Shutdown()
		}
	})
}

func (i *idle2) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.timer != nil {
		i.timer.Stop()
	}
}

func (i *idle2) enter() {
	i.mu.Lock()
	i.busy++
	i.mu.Unlock()
}

func (i *idle2) leave() {
	i.mu.Lock()
	if i.busy--; i.busy == 0 {
		i.since = time.Now()
	}
	i.mu.Unlock()
}

// exchange2 is an exchange on a stream.
type exchange2 struct {
	Exchange
	s    *h2.Stream
	gate *gate // nil: the client does not wait for status 100
}

// gate lets nothing more through once the final response is on its way.
type gate struct {
	mu     sync.Mutex
	closed bool
}

func (g *gate) close() {
	if g != nil {
		g.mu.Lock()
		g.closed = true
		g.mu.Unlock()
	}
}

var exchanges2 = sync.Pool{New: func() any { return new(exchange2) }}

// stream serves one request.
func (s *Server) stream(ctx context.Context, st *h2.Stream) {
	fields, err := st.Headers(ctx)
	if err != nil {
		return // it was reset
	}
	x := exchanges2.Get().(*exchange2)
	x.s, x.w = st, x
	defer func() {
		*x = exchange2{}
		exchanges2.Put(x)
	}()
	switch err := x.read(fields, s.cfg).(type) {
	case nil:
	case *malformed:
		_ = x.Respond(s.refusal(err.status, err.reason))
		return
	default: // nothing can be said
		if s.cfg.OnRefuse != nil {
			s.cfg.OnRefuse(400, err.Error())
		}
		st.Reset(h2.ProtocolError)
		return
	}
	life := new(lifetime)
	defer life.end()
	x.ctx = life
	st.OnReset(life.end)
	defer st.OnReset(nil)
	s.serve(&x.Exchange)
}

// errUnframed says that a header tells something else of the stream's payload than the stream.
var errUnframed = errors.New("content-length without payload")

// read makes the request of a header, or returns why it is refused. mesh/h2 has looked at names, values and pseudo-fields.
func (x *exchange2) read(fields []h2.Field, cfg *ServerConfig) error {
	req := &x.Request
	req.Proto = message.HTTP2
	n := 0
	for ; n < len(fields) && strings.HasPrefix(fields[n].Name, ":"); n++ {
		switch v := fields[n].Value; fields[n].Name {
		case ":method":
			req.Method = v
		case ":scheme":
			req.Scheme = v
		case ":authority":
			req.Authority = v
		case ":path":
			req.Path = v
		}
	}
	if len(fields)-n > cfg.MaxFields {
		return refuse(431, "more than %d header fields", cfg.MaxFields)
	}
	x.head = req.Method == "HEAD"
	kept := fields[:n]
	for _, f := range fields[n:] {
		switch {
		case f.Name == "host":
			if req.Authority == "" {
				req.Authority = f.Value
			} else if !strings.EqualFold(req.Authority, f.Value) {
				return refuse(400, ":authority and host differ")
			}
		case f.Name == "expect":
			if !strings.EqualFold(f.Value, "100-continue") {
				return refuse(417, "expect %q", f.Value)
			}
			req.Expect = true
		case f.Name != "te" && message.Hop(f.Name):
		default:
			kept = append(kept, f)
		}
	}
	req.Header = message.Fields(kept[n:])
	joinCookies(&req.Header)
	length, ok := declared(req.Header)
	if !ok {
		return refuse(400, "content-length is no number, or there are several")
	}
	if err := checkRequest(req); err != nil {
		return err
	}
	if !x.body(length) {
		return errUnframed
	}
	return nil
}

// body gives the request its body, if it has one. It returns false if that is not as long as it should be.
func (x *exchange2) body(length int64) bool {
	req := &x.Request
	if x.s.Ended() && x.s.Trailers() == nil {
		req.Length = 0
		req.Expect = false
		return length <= 0
	}
	st := x.s
	b := &body2{s: st, left: length, owner: sender2{}}
	if req.Expect {
		g := new(gate)
		x.gate = g
		b.before = func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			if !g.closed {
				_ = st.WriteHeaders([]message.Field{{Name: ":status", Value: "100"}}, false)
			}
		}
	}
	req.Body, req.Length, x.pulled = b, length, b
	return true
}

// sender2 is the owner of a request's body: what is wrong with it is the client's doing.
type sender2 struct{}

func (sender2) end(bool) {}

func (sender2) fault(err error) error {
	var reset *h2.StreamError
	if errors.As(err, &reset) && !reset.Remote && reset.Code == h2.ProtocolError {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return clientErr(err)
}

// checkRequest normalises a request, or returns why it is refused.
func checkRequest(req *message.Request) error {
	switch {
	case req.Method == "CONNECT":
		return refuse(501, "CONNECT is not for this proxy")
	case !message.ValidMethod(req.Method):
		return refuse(400, "method %q", req.Method)
	case !message.ValidPath(req.Path) || req.Path == "*" && req.Method != "OPTIONS":
		return refuse(400, "path %q", req.Path)
	case req.Authority == "" && req.Proto == message.HTTP10:
	case req.Authority == "":
		return refuse(400, "no host")
	case !message.ValidAuthority(req.Authority):
		return refuse(400, "host %q", req.Authority)
	}
	req.Authority = strings.ToLower(req.Authority)
	req.Scheme = strings.ToLower(req.Scheme)
	if req.Scheme != "http" && req.Scheme != "https" {
		return refuse(400, "scheme %q", req.Scheme)
	}
	return nil
}

func (x *exchange2) inform(resp *message.Response) error {
	l := fieldLists.Get().(*[]message.Field)
	defer putFields(l)
	*l = append(*l, message.Field{Name: ":status", Value: statusText(resp.Status)})
	*l = appendHeader(*l, resp.Header)
	if err := x.s.WriteHeaders(*l, false); err != nil {
		return clientErr(err)
	}
	return nil
}

func (x *exchange2) respond(_ *Exchange, resp *message.Response) error {
	defer discard(resp)
	x.gate.close()
	if resp.Tunnel != nil {
		x.s.Reset(h2.InternalError)
		return fmt.Errorf("%w: %w", ErrResponseBody, ErrUpgrade)
	}
	bodyless := x.bodyless(resp.Status)
	length := resp.Length
	if resp.Body == nil && !bodyless {
		length = 0
	}
	said := resp.Body != nil && !bodyless || resp.Header.Has("content-length")
	l := fieldLists.Get().(*[]message.Field)
	*l = append(*l, message.Field{Name: ":status", Value: statusText(resp.Status)})
	*l = appendHeader(*l, resp.Header)
	if length >= 0 && resp.Status != 204 && said {
		*l = append(*l, message.Field{Name: "content-length", Value: lengthText(resp.Header, length)})
	}
	end := bodyless || resp.Body == nil
	err := x.s.AddHeaders(*l, end)
	putFields(l)
	if err != nil {
		x.s.Reset(h2.InternalError)
		return clientErr(err)
	}
	if end {
		x.s.Conn().Flush()
		return nil
	}
	t := sending2{s: x.s, body: resp.Body, length: length, moved: &x.given, counts: x.outgoing}
	t.run(false)
	x.sent = t.sent
	switch {
	case t.bodyErr != nil:
		x.s.Reset(h2.InternalError)
		return fmt.Errorf("%w: %w", ErrResponseBody, t.bodyErr)
	case t.err != nil:
		return clientErr(t.err)
	}
	return nil
}

func (x *exchange2) abort() { x.s.Reset(h2.InternalError) }

// unread is a connection of which some bytes were read already.
type unread struct {
	net.Conn
	in *input // nil once everything in it was read again
}

func (u *unread) Read(p []byte) (int, error) {
	if u.in == nil {
		return u.Conn.Read(p)
	}
	n := copy(p, u.in.bytes())
	u.in.take(n)
	if len(u.in.bytes()) == 0 {
		u.in.release()
		u.in = nil
	}
	return n, nil
}

// ReadLent is for whoever would hold no buffer meanwhile.
func (u *unread) ReadLent(size int) ([]byte, int, error) {
	if u.in == nil {
		switch nc := u.Conn.(type) {
		case lender:
			return nc.ReadLent(size)
		case waiter:
			if err := nc.WaitReadable(); err != nil {
				return nil, 0, err
			}
		}
	}
	b := buffer.Get(size)
	n, err := u.Read(b)
	if n == 0 {
		buffer.Put(b)
		b = nil
	}
	return b, n, err
}

// CloseWrite ends the direction to the peer, if the connection has such a thing.
func (u *unread) CloseWrite() error { return closeWrite(u.Conn) }

func closeWrite(nc net.Conn) error {
	if cw, ok := nc.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}
