package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/share"
	"github.com/ambit-mesh/ambit/mesh/wire"
)

// Defaults of ServerConfig.
const (
	DefaultServerStreams = 200
	DefaultMaxHandshakes = 256
)

// slowHandshake is the age from which a handshake makes place for another one.
const slowHandshake = time.Second

// Pauses of Serve when the process is short of descriptors or memory.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// ErrTooManyConnections is why a tunnel was not opened, or not taken: there are as many connections as the settings allow.
var ErrTooManyConnections = errors.New("hbone: as many tunnel connections as are allowed")

// Of looking for a connection that makes place for another one.
const (
	// placeLooks is how many connections are looked at: whoever is at its bound must not make each attempt costly.
	placeLooks = 64
	// placeAge is how old a connection is at least: the first stream of a new one is on its way.
	placeAge = time.Second
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("hbone: server closed")

// errSilent is why a connection ended whose client has said nothing: somebody looked whether the port is open.
var errSilent = errors.New("the client left without a word")

// ServerConfig holds a server's settings. TLS and Handler are required.
type ServerConfig struct {
	// TLS gives the configuration for one handshake: certificate, client verification, ALPN. It is not changed. An error ends
	// the handshake.
	TLS func(*tls.ClientHelloInfo) (*tls.Config, error)
	// HandshakeTimeout bounds a TLS handshake. Zero means 10 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds the handshakes under way. Once it is reached, the oldest that has lasted over a second makes place,
	// or else new connections wait. Zero means 256.
	MaxHandshakes int
	// MaxConnections bounds the connections, handshakes included. Once it is reached, one that has had no stream for a second
	// makes place (by GOAWAY), or else new ones are reset. Zero means no bound.
	MaxConnections int
	// Full, if set, is told of each connection that was reset because of MaxConnections. It must not block.
	Full func()
	// MaxStreams is how many streams a client may have open on one connection. Zero means 200.
	MaxStreams int
	// H2 are the settings of the HTTP/2 connections. MaxStreams above holds over its own; OnChange must be nil.
	H2 h2.Config
	// Handler serves one CONNECT request, in a goroutine of its own. Exactly one of Accept and Reject must be called before
	// it returns; the stream is closed, if it was not, when it returns, unless it was given to Relayer.Start. The context ends
	// with the stream, when the server is closed, and, as long as neither was called, when the client resets the stream or
	// the connection ends.
	Handler func(ctx context.Context, in *Incoming)
	// Revoked, if set, says why a client's certificates (leaf first) are not good any more; nil if they are. It is asked after
	// each handshake and by Recheck.
	Revoked func(client []*x509.Certificate) error
	// Refused, if set, is told of each connection that ends in its handshake, with the error: *identity.VerifyError is among
	// its causes if the client's certificate was refused. It is not told of clients that leave without a word, nor of those
	// that the server's end cuts. It must not block.
	Refused func(nc net.Conn, err error)
	// Violated, if set, is told why a client lost its connection. It must not block.
	Violated func(h2.Cause)
	// Party, if set, does the work, and slows connections down that make much of it.
	Party *share.Party
	// Logger gets one line for each connection that fails before its first stream. If nil, nothing is logged.
	Logger *slog.Logger
}

// Server takes tunnels. All methods may be called concurrently.
type Server struct {
	cfg    ServerConfig
	ctx    context.Context // of handlers
	cancel context.CancelFunc
	slots  chan struct{} // of handshakes
	wg     sync.WaitGroup
	size   atomic.Int64        // conns and shaking
	idle   map[*h2.Conn]uint32 // of EndIdle: connections that were idle, and their latest streams

	mu        sync.Mutex // guards what follows; never held across I/O
	draining  bool
	closed    bool
	listeners map[net.Listener]struct{}
	shaking   []*handshake
	leaving   int // of conns: those that were told to make place
	conns     map[*h2.Conn]*connState
	changed   sync.Cond // shaking or conns have changed
}

// handshake is a connection whose TLS handshake is under way.
type handshake struct {
	nc    net.Conn
	since time.Time // zero while it waits for a place
}

// NewServer returns a server that has nothing to serve yet.
func NewServer(cfg ServerConfig) *Server {
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = DefaultMaxHandshakes
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = DefaultServerStreams
	}
	cfg.H2.MaxStreams = uint32(cfg.MaxStreams)
	if p := cfg.Party; p != nil {
		cfg.H2.Worked = func(n int) { p.Did(workPerByte * share.Work(n)) }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:       cfg,
		slots:     make(chan struct{}, cfg.MaxHandshakes),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*h2.Conn]*connState),
	}
	s.changed.L = &s.mu
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve accepts connections and serves each in its own goroutine. It owns ln and closes it. It returns the context's error
// or ErrServerClosed once it accepts no more; connections go on until Shutdown or Close.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	s.mu.Lock()
	if s.draining || s.closed {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
	}()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()

	pause := minAcceptPause
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = minAcceptPause
			if s.full() {
				s.refuse(nc)
				continue
			}
			// Here, so that what comes meanwhile stays in the queue: it takes no place and does not grow old.
			s.cfg.Party.Asks(workPerHandshake)
			if !s.start(ctx, nc) {
				_ = nc.Close()
				return ErrServerClosed
			}
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case s.stopped():
			return ErrServerClosed
		case errors.Is(err, syscall.ECONNABORTED):
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
			errors.Is(err, syscall.ENOMEM):
			s.cfg.Logger.Warn("cannot accept tunnel connections for now", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			case <-s.ctx.Done():
			}
			pause = min(2*pause, maxAcceptPause)
		default:
			return fmt.Errorf("accept tunnel connections: %w", err)
		}
	}
}

func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining || s.closed
}

// start waits for a place among the handshakes and then serves the connection in a goroutine. It returns false if the
// server is closed.
func (s *Server) start(ctx context.Context, nc net.Conn) bool {
	for {
		var oldest time.Duration
		select {
		case s.slots <- struct{}{}:
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closed {
				<-s.slots
				return false
			}
			h := &handshake{nc, time.Now()}
			s.shaking = append(s.shaking, h)
			s.size.Add(1)
			s.wg.Go(func() { s.serve(ctx, h, false) })
			return true
		default:
			oldest = s.evictHandshake()
		}
		// All places are taken by handshakes that are not old.
		timer := time.NewTimer(oldest)
		select {
		case s.slots <- struct{}{}:
			<-s.slots
		case <-timer.C:
		case <-s.ctx.Done():
		}
		timer.Stop()
	}
}

// full tells whether there may be no further connection. It has one make place that is not used.
func (s *Server) full() bool {
	most := s.cfg.MaxConnections
	if most <= 0 {
		return false
	}
	s.mu.Lock()
	if len(s.conns)+len(s.shaking)-s.leaving < most {
		s.mu.Unlock()
		return false
	}
	// Those that make place do not do so at once, and a hostile client takes its time, so they may not become many.
	var unused *h2.Conn
	if s.leaving <= most/8 {
		looks := 0
		for c, cs := range s.conns {
			if looks++; looks > placeLooks {
				break
			}
			if !cs.leaving && time.Since(cs.since) >= placeAge && c.Idle() {
				unused, cs.leaving = c, true
				s.leaving++
				break
			}
		}
	}
	s.mu.Unlock()
	if unused == nil {
		return true
	}
	unused.Shutdown()
	return false
}

// refuse resets a connection for which there is no place.
func (s *Server) refuse(nc net.Conn) {
	if s.cfg.Full != nil {
		s.cfg.Full()
	}
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = nc.Close()
}

// Size returns how many connections there are, handshakes included. It takes no lock.
func (s *Server) Size() int { return int(s.size.Load()) }

// evictHandshake ends the oldest handshake if it is slow, and returns how long until there is something to do.
func (s *Server) evictHandshake() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest *handshake
	for _, h := range s.shaking {
		if !h.since.IsZero() && (oldest == nil || h.since.Before(oldest.since)) {
			oldest = h
		}
	}
	if oldest == nil {
		return time.Millisecond
	}
	if wait := slowHandshake - time.Since(oldest.since); wait > 0 {
		return wait
	}
	_ = oldest.nc.Close()
	s.shaking = slices.DeleteFunc(s.shaking, func(h *handshake) bool { return h == oldest })
	return time.Millisecond
}

// ServeConn serves one connection, which it owns and closes, and returns when it has ended and its handlers have returned.
// The end of the context cuts it. It returns ErrTooManyConnections if there is no place for it.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	if s.full() {
		s.refuse(nc)
		return ErrTooManyConnections
	}
	s.mu.Lock()
	if s.closed || s.draining {
		s.mu.Unlock()
		_ = nc.Close()
		return ErrServerClosed
	}
	h := &handshake{nc: nc}
	s.shaking = append(s.shaking, h)
	s.size.Add(1)
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() }) // while waiting for a slot
	s.cfg.Party.Asks(workPerHandshake)
	s.slots <- struct{}{}
	s.mu.Lock()
	h.since = time.Now()
	s.mu.Unlock()
	stop()
	return s.serve(ctx, h, true)
}

// serve does the handshake, for which it has a slot, and serves the connection. The end of the context cuts the connection
// if cut is set, and the handshake in any case.
func (s *Server) serve(ctx context.Context, h *handshake, cut bool) error {
	defer s.size.Add(-1)
	c, cs, err := s.accept(ctx, h)
	<-s.slots
	s.mu.Lock()
	s.shaking = slices.DeleteFunc(s.shaking, func(o *handshake) bool { return o == h })
	if err == nil {
		s.conns[c] = cs
	}
	draining, closed := s.draining, s.closed
	s.changed.Broadcast()
	s.mu.Unlock()
	if err != nil {
		s.cfg.Logger.Debug("tunnel connection refused", "peer", h.nc.RemoteAddr(), "error", err)
		if s.cfg.Refused != nil && !closed && ctx.Err() == nil && !errors.Is(err, errSilent) {
			s.cfg.Refused(h.nc, err)
		}
		return err
	}
	if s.revoked(cs) {
		c.Close() // it was revoked during the handshake
	}
	switch {
	case closed:
		c.Close()
	case draining:
		c.Shutdown()
	}
	if cut {
		defer context.AfterFunc(ctx, c.Close)()
	}
	err = c.Run()
	if cause, ok := h2.Violation(err); ok {
		s.cfg.Logger.Warn("a client lost its tunnel connection", "peer", h.nc.RemoteAddr(), "error", err)
		if s.cfg.Violated != nil {
			s.cfg.Violated(cause)
		}
	}
	s.mu.Lock()
	delete(s.conns, c)
	if cs.leaving {
		s.leaving--
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	return err
}

// accept does a handshake and returns the connection, ready to run.
func (s *Server) accept(ctx context.Context, h *handshake) (*h2.Conn, *connState, error) {
	ctx, cancel := withTimeout(ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	spoke := false
	w, err := wire.Server(ctx, h.nc, func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		spoke = true
		return s.cfg.TLS(hello)
	})
	if err != nil {
		if !spoke && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
			err = fmt.Errorf("%w: %w", errSilent, err)
		}
		return nil, nil, fmt.Errorf("tls handshake: %w", err)
	}
	state := w.ConnectionState()
	cs := &connState{local: addrPort(w.LocalAddr()), remote: addrPort(w.RemoteAddr()), since: time.Now()}
	switch {
	case state.NegotiatedProtocol != alpn:
		err = fmt.Errorf("the client speaks protocol %q, not %q", state.NegotiatedProtocol, alpn)
	case len(state.PeerCertificates) == 0:
		err = errors.New("the client showed no certificate")
	default:
		cs.certs = state.PeerCertificates
		cs.peer, err = identity.FromCertificate(cs.certs[0])
	}
	if err != nil {
		w.Abort()
		w.Release()
		return nil, nil, err
	}
	return h2.NewServer(w, s.cfg.H2, func(st *h2.Stream) { s.handle(cs, st) }), cs, nil
}

func (s *Server) revoked(cs *connState) bool {
	return s.cfg.Revoked != nil && s.cfg.Revoked(cs.certs) != nil
}

// Recheck ends at once the connections whose client's certificates are not good any more, and returns how many.
func (s *Server) Recheck() int {
	var out []*h2.Conn
	s.mu.Lock()
	conns := maps.Clone(s.conns)
	s.mu.Unlock()
	for c, cs := range conns {
		if s.revoked(cs) {
			out = append(out, c)
		}
	}
	for _, c := range out {
		c.Close()
	}
	return len(out)
}

// connState is what the streams of a connection have in common.
type connState struct {
	certs         []*x509.Certificate // the client's, leaf first
	peer          identity.Identity   // in the leaf
	local, remote netip.AddrPort
	since         time.Time // its handshake was done
	leaving       bool      // it was told to make place; guarded by the server's lock
}

// Shutdown closes the listeners, tells every client to open no more streams on its connection (GOAWAY in two steps: streams
// that were on their way are served), and waits until all streams have ended. It returns the context's error if the context
// ends first; then connections still go on, until Close.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	for ln := range s.listeners {
		_ = ln.Close()
	}
	conns := make([]*h2.Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.Shutdown()
	}
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.changed.Broadcast()
		s.mu.Unlock()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) > 0 || len(s.shaking) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("shut down tunnel server: %d connections left: %w", len(s.conns)+len(s.shaking), err)
		}
		s.changed.Wait()
	}
	return nil
}

// EndIdle tells clients by GOAWAY to give up the connections on which there was no stream since EndIdle was called last.
// Only one goroutine may call it.
func (s *Server) EndIdle() {
	var idle []*h2.Conn
	last := make(map[*h2.Conn]uint32)
	s.mu.Lock()
	for c := range s.conns {
		if !c.Idle() {
			continue
		}
		last[c] = c.LastStream()
		if before, ok := s.idle[c]; ok && before == last[c] {
			idle = append(idle, c)
		}
	}
	s.mu.Unlock()
	s.idle = last
	for _, c := range idle {
		c.Shutdown()
	}
}

// Close ends all listeners and connections at once and waits for the handlers.
func (s *Server) Close() error {
	s.cancel()
	s.mu.Lock()
	s.draining, s.closed = true, true
	for ln := range s.listeners {
		_ = ln.Close()
	}
	for _, h := range s.shaking {
		_ = h.nc.Close()
	}
	conns := make([]*h2.Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	s.wg.Wait()
	return nil
}

// GoAway tells every client to open no more streams on the connections that there are (as Shutdown does); each closes
// with its last stream. New connections are taken as before.
func (s *Server) GoAway() {
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		c.Shutdown()
	}
}

// ServerStats counts what a server holds.
type ServerStats struct {
	Handshakes  int // under way
	Connections int // past their handshake
	Streams     int // open
}

// Stats returns a snapshot.
func (s *Server) Stats() ServerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := ServerStats{Handshakes: len(s.shaking), Connections: len(s.conns)}
	for c := range s.conns {
		st.Streams += c.Streams()
	}
	return st
}
