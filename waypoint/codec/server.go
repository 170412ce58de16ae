package codec

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Server is one connection of a client, which may speak HTTP/1.1, or HTTP/2 by prior knowledge: its first bytes tell. Its
// methods may be called concurrently.
type Server struct {
	nc     net.Conn
	cfg    *ServerConfig
	handle Handler
	active atomic.Int64 // requests in the handler

	mu       sync.Mutex // guards what follows
	two      *h2.Conn   // the connection speaks HTTP/2
	one      *server1   // the connection speaks HTTP/1
	life     *lifetime  // of its request; nil: none is under way
	draining bool
	closed   bool
}

// NewServer returns a server for nc, which it owns. The caller must call Run. handle is called for each request, in a goroutine
// of Run's.
func NewServer(nc net.Conn, cfg *ServerConfig, handle Handler) *Server {
	return &Server{nc: quiet(nc), cfg: cfg.withDefaults(), handle: handle}
}

// Run serves the connection until it ends, waits for its handlers, and closes it. It returns nil after an orderly end: the
// client closed while no request was under way, the connection was idle for too long, or Shutdown was called. When ctx ends
// so does the connection, as by Close. It must be called exactly once.
func (s *Server) Run(ctx context.Context) error {
	defer s.nc.Close()
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	in := &input{nc: s.nc}
	two, err := s.detect(in)
	if err != nil {
		in.release()
		if s.orderly(err) {
			return nil
		}
		return err
	}
	if two {
		return s.run2(ctx, in)
	}
	return s.run1(in)
}

// begin notes the lifetime of the request that HTTP/1 serves, nil after it. It returns false if the connection is closed.
func (s *Server) begin(l *lifetime) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = l
	return !s.closed
}

// prior is how a client begins that speaks HTTP/2 by prior knowledge (RFC 9113 section 3.4). No method of HTTP/1 is "PRI".
const prior = "PRI "

// detect tells whether the client speaks HTTP/2.
func (s *Server) detect(in *input) (bool, error) {
	one := &server1{s: s, in: in}
	s.mu.Lock()
	s.one = one
	s.mu.Unlock()
	for n := 1; ; n++ {
		if err := one.awaitFirst(n); err != nil {
			return false, err
		}
		if s.cfg.HTTP2Only {
			return true, nil
		}
		got := in.bytes()
		for i := range min(len(got), len(prior)) {
			if got[i] != prior[i] {
				return false, nil
			}
		}
		if len(got) >= len(prior) {
			return true, nil
		}
		n = len(got)
	}
}

// orderly tells whether an error of the wait for a request is an end as it should be.
func (s *Server) orderly(err error) bool {
	return err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) || s.ending()
}

// ending tells whether the connection is to end, whatever comes.
func (s *Server) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining || s.closed
}

// Shutdown ends the connection in an orderly way: HTTP/2 says GOAWAY and serves what is on its way, HTTP/1 says "connection:
// close" with the next response. It returns at once; Run returns when it is over.
func (s *Server) Shutdown() {
	s.mu.Lock()
	s.draining = true
	one, two := s.one, s.two
	s.mu.Unlock()
	switch {
	case two != nil:
		two.Shutdown()
	case one != nil:
		one.drain()
	}
}

// Close ends the connection and its requests at once. Run returns soon after.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	two, life := s.two, s.life
	s.mu.Unlock()
	if life != nil {
		life.end()
	}
	if two != nil {
		two.Close()
	}
	_ = s.nc.Close()
}

// Active returns how many requests are being handled.
func (s *Server) Active() int { return int(s.active.Load()) }

// Protocol returns what the client speaks, HTTP11 as long as it has said nothing.
func (s *Server) Protocol() message.Protocol {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.two != nil {
		return message.HTTP2
	}
	return message.HTTP11
}

// serve calls the handler.
func (s *Server) serve(x *Exchange) {
	s.active.Add(1)
	defer s.active.Add(-1)
	s.handle(x)
	if !x.begun {
		x.begun = true
		x.w.abort()
	}
}

// clientErr is why something failed because of the client's connection.
func clientErr(err error) error {
	if errors.Is(err, ErrClient) {
		return err
	}
	return errors.Join(ErrClient, err)
}
