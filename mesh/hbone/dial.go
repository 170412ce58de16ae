package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/wire"
)

// alpn is the protocol that both sides must agree on in the TLS handshake.
const alpn = "h2"

// reasonHeader carries, beside a refusal's status, what a person wants to know. Peers of other makes do not send it, and
// ignore it.
const reasonHeader = "x-ambit-reason"

// dial makes one connection and gives its streams to those who wait.
func (p *Pool) dial(pe *peer) {
	p.cfg.Counts.Dials.Add(1)
	w, err := p.connect(&pe.target)
	p.cfg.Counts.failed(err)
	p.mu.Lock()
	pe.dials--
	if err == nil && p.closed {
		w.Abort()
		w.Release()
		err = ErrPoolClosed
	}
	if err != nil {
		p.places--
		p.size.Add(-1)
		p.failLocked(pe, err)
		p.dialLocked(pe)
		p.forgetLocked(pe)
		p.mu.Unlock()
		return
	}
	pc := &poolConn{peer: pe, certs: w.ConnectionState().PeerCertificates, idleSince: time.Now()}
	cfg := p.cfg.H2
	cfg.OnChange = func(*h2.Conn) { p.changed(pc) }
	pc.h2 = h2.NewClient(w, cfg)
	pc.idleTimer = time.AfterFunc(p.cfg.IdleTimeout, func() { p.checkIdle(pc) })
	p.conns[pc] = struct{}{}
	pe.conns = append(pe.conns, pc)
	p.wg.Go(func() { p.run(pc) })
	p.serveLocked(pe)
	evicted := pe.evicted
	if evicted {
		pe.conns = slices.DeleteFunc(pe.conns, func(c *poolConn) bool { return c == pc })
	}
	p.mu.Unlock()
	if evicted {
		pc.h2.Shutdown()
	}
	if p.revoked(pc) {
		pc.h2.Close() // it was revoked since the handshake, and Recheck may not have seen it
	}
	// Whoever waited opens a stream now, and so sends the preface with it; this is for when nobody does.
	runtime.Gosched()
	pc.h2.Flush()
}

// connect does the steps of a dial up to the TLS handshake. Errors are *DialError.
func (p *Pool) connect(t *Target) (*wire.Conn, error) {
	fail := func(stage string, err error) (*wire.Conn, error) {
		return nil, &DialError{stage, *t, err}
	}
	ctx, cancel := withTimeout(p.ctx, p.cfg.Timeouts.Handshake)
	cfg, err := p.prepare(ctx, t)
	cancel()
	if err != nil {
		return fail(StageTLS, err)
	}
	defer func() { <-p.slots }()
	ctx, cancel = withTimeout(p.ctx, p.cfg.Timeouts.Connect)
	nc, err := p.cfg.Dial(ctx, t.Addr)
	cancel()
	if err != nil {
		return fail(StageConnect, err)
	}
	ctx, cancel = withTimeout(p.ctx, p.cfg.Timeouts.Handshake)
	defer cancel()
	w, err := wire.Client(ctx, nc, cfg)
	if err != nil {
		return fail(StageTLS, err)
	}
	if got := w.ConnectionState().NegotiatedProtocol; got != alpn {
		w.Abort()
		w.Release()
		return fail(StageTLS, fmt.Errorf("the peer speaks protocol %q, not %q", got, alpn))
	}
	if p.cfg.Revoked != nil {
		if err := p.cfg.Revoked(t, w.ConnectionState().PeerCertificates); err != nil {
			w.Abort()
			w.Release()
			return fail(StageTLS, err)
		}
	}
	return w, nil
}

// prepare does what a handshake needs before there is a connection, whose peer must not be left waiting for it: it gets the
// TLS config, waits for the party's turn, and takes a slot.
func (p *Pool) prepare(ctx context.Context, t *Target) (*tls.Config, error) {
	cfg, err := p.cfg.TLS(ctx, *t)
	if err != nil {
		return nil, fmt.Errorf("get certificate: %w", err)
	}
	p.cfg.Party.Asks(workPerHandshake)
	select {
	case p.slots <- struct{}{}:
		return cfg, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%d other dials are under way: %w", p.cfg.MaxHandshakes, context.Cause(ctx))
	}
}

// withTimeout is context.WithTimeout where d is not negative.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d < 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// run reads a connection until it ends.
func (p *Pool) run(pc *poolConn) {
	err := pc.h2.Run()
	settled := pc.h2.SettingsSeen()
	if cause, ok := h2.Violation(err); ok && p.cfg.Violated != nil {
		p.cfg.Violated(cause)
	}
	if err != nil && !errors.Is(err, h2.ErrClosed) {
		p.cfg.Logger.Debug("tunnel connection ended", "peer", pc.peer.target.Addr, "uid", pc.peer.target.UID, "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := pc.peer
	pe.conns = slices.DeleteFunc(pe.conns, func(c *poolConn) bool { return c == pc })
	delete(p.conns, pc)
	pc.idleTimer.Stop()
	if !pc.leaving {
		p.places--
	}
	p.size.Add(-1)
	if !settled {
		unsettled := unsettledError(&pe.target, err)
		p.cfg.Counts.failed(unsettled)
		p.failLocked(pe, unsettled)
	}
	p.serveLocked(pe)
	p.forgetLocked(pe)
	if p.closed && len(p.conns) == 0 {
		close(p.empty)
	}
}

// unsettledError is the error of a connection that ended before the peer's SETTINGS came. With TLS 1.3 a client learns only
// then that the server does not take its certificate.
func unsettledError(t *Target, err error) error {
	var remote *net.OpError
	if errors.As(err, &remote) && remote.Op == "remote error" {
		return &DialError{StageTLS, *t, remote}
	}
	return &DialError{StageSettings, *t, err}
}

// changed is called when a connection may have become able to open streams, or unable.
func (p *Pool) changed(pc *poolConn) {
	idle, draining, seen := pc.h2.Idle(), pc.h2.Draining(), pc.h2.SettingsSeen()
	useless := seen && idle && !draining && pc.h2.Available() == 0
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := pc.peer
	if useless {
		// The peer allows no stream at all. Another dial would find the same.
		pe.conns = slices.DeleteFunc(pe.conns, func(c *poolConn) bool { return c == pc })
		p.failLocked(pe, &DialError{StageSettings, pe.target, errNoCapacity})
		defer p.wg.Go(pc.h2.Shutdown)
	}
	if idle {
		pc.idleSince = time.Now()
		if slices.Index(pe.conns, pc) > 0 {
			pc.idleTimer.Reset(min(p.cfg.IdleTimeout, p.cfg.SpareTimeout))
		}
	}
	pc.settled = pc.settled || seen
	if draining && pc.settled {
		pe.conns = slices.DeleteFunc(pe.conns, func(c *poolConn) bool { return c == pc })
	}
	if len(pe.waiters) > 0 {
		p.serveLocked(pe)
	}
	if draining {
		p.forgetLocked(pe)
	}
}

// checkIdle ends a connection that has had no stream for the idle time, or for that of a spare one.
func (p *Pool) checkIdle(pc *poolConn) {
	p.mu.Lock()
	pe := pc.peer
	wait := p.cfg.IdleTimeout
	if pc.h2.Idle() {
		idle := time.Since(pc.idleSince)
		if pe.spare(pc) {
			wait = min(wait, p.cfg.SpareTimeout)
		}
		wait -= idle
		if wait <= 0 {
			pe.conns = slices.DeleteFunc(pe.conns, func(c *poolConn) bool { return c == pc })
			p.mu.Unlock()
			pc.h2.Shutdown()
			return
		}
		if slices.Index(pe.conns, pc) > 0 {
			wait = min(wait, p.cfg.SpareTimeout) // it may have become a spare one by then
		}
	}
	pc.idleTimer.Reset(wait)
	p.mu.Unlock()
}

// request sends CONNECT on a connection on which a stream is reserved, and waits for the answer.
func (p *Pool) request(ctx context.Context, pc *poolConn, t *Target, r *Request) (*Stream, error) {
	fail := func(err error) error {
		if !pc.h2.SettingsSeen() && errors.As(err, new(*h2.ConnError)) {
			return unsettledError(t, err)
		}
		return &DialError{StageResponse, *t, err}
	}
	var early *Early // what goes along
	if pc.h2.HeardWithin(p.earlyFresh) {
		early = r.Early
	}
	s, n, err := pc.h2.OpenReservedWith(r.fields(), early.look())
	if err != nil {
		return nil, fail(err)
	}
	early.follow(s, n)
	if p.cfg.Timeouts.Response > 0 {
		_ = s.SetReadDeadline(time.Now().Add(p.cfg.Timeouts.Response))
	}
	for {
		fields, err := s.Headers(ctx)
		if err != nil {
			s.Close()
			if early.leave() && !errors.Is(err, h2.ErrUnprocessed) {
				return nil, fail(fmt.Errorf("%w: %w", err, ErrMayHaveArrived))
			}
			switch {
			case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
				return nil, err
			case errors.Is(err, os.ErrDeadlineExceeded):
				err = fmt.Errorf("no response from the peer in %v: %w", p.cfg.Timeouts.Response, err)
			}
			return nil, fail(err)
		}
		status, _ := h2.Value(fields, ":status")
		switch status[0] {
		case '1':
			continue
		case '2':
			_ = s.SetReadDeadline(time.Time{})
			return &Stream{s: s, header: fields, certs: pc.certs, early: r.Early}, nil
		}
		s.Close()
		early.leave()
		reason, _ := h2.Value(fields, reasonHeader)
		return nil, &StatusError{Status: atoi(status), Reason: reason}
	}
}

// atoi reads a status, which is three digits.
func atoi(status string) int {
	n := 0
	for _, d := range []byte(status) {
		n = 10*n + int(d-'0')
	}
	return n
}

// fields returns the header of a request. What differs from stream to stream must not fill the compression tables.
func (r *Request) fields() []h2.Field {
	fields := make([]h2.Field, 0, 6)
	fields = append(fields,
		h2.Field{Name: ":method", Value: "CONNECT"},
		h2.Field{Name: ":authority", Value: r.Authority})
	for _, f := range []h2.Field{
		{Name: "baggage", Value: r.Baggage},
		{Name: "forwarded", Value: r.Forwarded, Sensitive: true},
		{Name: "traceparent", Value: r.Traceparent, Sensitive: true},
		{Name: "x-forwarded-network", Value: r.ForwardedNetwork},
	} {
		if f.Value != "" {
			fields = append(fields, f)
		}
	}
	return fields
}
