package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/sockets"
)

// sharing is what a listener knows of other processes that have the same socket.
type sharing struct {
	// keepAlive is for connections of a listener that was taken over: Go gives them settings of its own. Nil for others.
	keepAlive *net.KeepAliveConfig
	// last: the socket is to end with this listener, for whoever else has it.
	last atomic.Bool

	mu   sync.Mutex    // guards what follows, and the listener's deadline
	stop chan struct{} // nil while this process serves; closed when it does again
}

// past is a deadline that wakes an Accept which waits.
var past = time.Unix(1, 0)

// Pause implements sockets.Socket.
func (l *listener) Pause() {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	if l.shared.stop == nil {
		l.shared.stop = make(chan struct{})
		l.SetDeadline(past)
	}
}

// Resume implements sockets.Socket.
func (l *listener) Resume() {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	if l.shared.stop == nil || l.draining.Load() {
		return
	}
	l.SetDeadline(time.Time{})
	close(l.shared.stop)
	l.shared.stop = nil
}

// paused tells whether another process serves the socket.
func (s *sharing) paused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop != nil
}

// wait returns false at once if this process serves, and else true when that may have changed.
func (s *sharing) wait(ctx context.Context) bool {
	s.mu.Lock()
	stop := s.stop
	s.mu.Unlock()
	if stop == nil {
		return false
	}
	select {
	case <-stop:
	case <-ctx.Done():
	}
	return true
}

// wake has an Accept look at draining, which is set.
func (s *sharing) wake(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.SetDeadline(past)
	if s.stop != nil {
		select {
		case <-s.stop:
		default:
			close(s.stop) // and stays, so that it is seen as paused
		}
	}
}

// adopt gives a connection its keepalive.
func (s *sharing) adopt(c *net.TCPConn) {
	if s.keepAlive != nil {
		c.SetKeepAliveConfig(*s.keepAlive)
	}
}

// awaitTakeover gets the pod's certificate before the pod is taken over from another process, which serves it meanwhile.
// Where nobody serves the pod there is nothing to wait for.
func (p *Pod) awaitTakeover(claim *sockets.Claim) error {
	served := claim.Served
	if !served && claim.Empty() && p.node.PortReuse {
		// A proxy that hands nothing over: another release, or another program.
		var err error
		if served, err = p.ns.Listening(api.PortHBONE); err != nil {
			return err
		}
	}
	if !served {
		return nil
	}
	if err := p.node.awaitCertificate(p.identity()); err != nil {
		return fmt.Errorf("left to the proxy that serves it: %w: %w", errNoCertificate, err)
	}
	return nil
}

// listen opens one port in the pod, or takes it over if the claim has it.
func (p *Pod) listen(claim *sockets.Claim, port uint16) (*listener, error) {
	keepAlive := p.node.KeepAlive
	logger := p.logger.With("port", port)
	taken, err := claim.TCP(port)
	if err != nil {
		logger.Warn("cannot take the port over; listening beside", "error", err)
	}
	if taken != nil {
		l := newListener(p.ctx, taken, logger)
		l.shared.keepAlive = &keepAlive
		return l, nil
	}
	how := netns.Listener{IPv4Only: !p.node.IPv6, Shared: p.node.PortReuse, KeepAlive: keepAlive}
	if port == api.PortHBONE {
		// What goes back through a tunnel is not redirected, even if connection tracking has lost the connection.
		how.Mark = p.node.Mark
	}
	tcp, err := p.ns.ListenTCP(how, port)
	if err != nil {
		return nil, fmt.Errorf("listen on port %d of the pod: %w", port, err)
	}
	return newListener(p.ctx, tcp, logger), nil
}

// openSockets opens, or takes over, what the pod needs: all or nothing.
func (p *Pod) openSockets(claim *sockets.Claim) error {
	var err error
	if p.tunnels, err = p.listen(claim, api.PortHBONE); err != nil {
		return err
	}
	if err := p.openCapture(claim); err != nil {
		p.tunnels.Close()
		return err
	}
	return nil
}

// openCapture opens the ports that the pod's rules redirect to: both or none.
func (p *Pod) openCapture(claim *sockets.Claim) error {
	for _, port := range []uint16{api.PortInbound, api.PortOutbound} {
		l, err := p.listen(claim, port)
		if err != nil {
			for _, l := range p.capture {
				l.Close()
			}
			p.capture = nil
			return err
		}
		p.capture = append(p.capture, l)
	}
	return nil
}

// share lends the pod's sockets to who comes after, and stops whoever served them before.
func (p *Pod) share(claim *sockets.Claim) {
	all := []sockets.Socket{p.tunnels}
	for _, l := range p.capture {
		all = append(all, l)
	}
	for _, q := range p.asked.packets {
		all = append(all, q)
	}
	for _, l := range p.asked.streams {
		all = append(all, l)
	}
	p.shared = claim.Settle(all...)
}

// unshare ends that. Unless it is only this process that ends, the sockets end, too, once their queues are empty.
func (p *Pod) unshare(cause error) {
	processEnds := errors.Is(cause, errGraceOver)
	p.shared.Close(processEnds)
	if !processEnds {
		p.tunnels.shared.last.Store(true)
	}
}

// endCapture is closeCapture for a pod that is not captured any more: its ports end with the last connection in their
// queues, whoever else has them.
func (p *Pod) endCapture() {
	p.shared.Private(true)
	for _, l := range p.capture {
		l.shared.last.Store(true)
	}
	p.closeCapture()
}

// shareAgain undoes endCapture, with new sockets.
func (p *Pod) shareAgain() {
	for _, l := range p.capture {
		p.shared.Add(l)
	}
	p.shared.Private(false)
}
