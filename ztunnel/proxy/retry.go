package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

const (
	// maxEndpoints is how many endpoints of a service are tried for one connection.
	maxEndpoints = 3
	// answerPatience is how long an endpoint may take to answer as long as there is another one to try: a host that is gone
	// answers nothing, and two repetitions of the SYN, after 1 s and 3 s, tell it from one lost packet.
	answerPatience = 3 * time.Second
)

// errNoAnswer is why an endpoint was left for another one.
var errNoAnswer = fmt.Errorf("no answer within %v, and another endpoint is there to be tried", answerPatience)

// upstream is an open way: a stream or a connection.
type upstream struct {
	stream *hbone.Stream
	tcp    *net.TCPConn
}

// connect opens the way to dst. Another endpoint of the service is tried when one fails, unless what the application said
// may have arrived there.
func (p *Pod) connect(ctx context.Context, c *conn, self *directory.Workload, dst netip.AddrPort) (upstream, error) {
	var tried []string
	var failed error
	for {
		d, err := p.node.route(self, dst, tried)
		c.describe(&d)
		if err != nil {
			p.node.Balance.Retried(len(tried), false)
			return upstream{}, firstCause(failed, err)
		}
		last := len(tried) == maxEndpoints-1 || !d.more
		up, err := p.attempt(ctx, c, self, &d, last)
		if err == nil {
			p.node.Balance.Retried(len(tried), true)
			return up, nil
		}
		failed = firstCause(failed, err)
		if d.picked == nil || last || ctx.Err() != nil || !worthAnother(err) {
			p.node.Balance.Retried(len(tried), false)
			return upstream{}, failed
		}
		p.logger.Debug("endpoint failed; trying another", "endpoint", d.workload.UID, "service", d.picked.String(), "error", err)
		tried = append(tried, d.workload.UID)
	}
}

// firstCause is the first of two errors, if there was one: it tells more than that nothing else was left to try. That an
// endpoint was left before its time tells less than what became of the next one.
func firstCause(first, err error) error {
	if first == nil || errors.Is(first, errNoAnswer) && !errors.Is(err, directory.ErrNoEndpoint) {
		return err
	}
	return first
}

// attempt opens a way, counts it as the endpoint's load, and tells balancing what the endpoint did.
func (p *Pod) attempt(ctx context.Context, c *conn, self *directory.Workload, d *destination, last bool) (upstream, error) {
	d.workload.Hold()
	var up upstream
	var err error
	if d.host != "" {
		limited, cancel := patience(ctx, last, nil)
		err = p.lookUpHost(limited, c, self, d)
		cancel()
	}
	if err == nil {
		up, err = p.openInTime(ctx, c, self, d, last)
	}
	if err == nil {
		c.endpoint = d.workload
	} else {
		d.workload.Release()
	}
	if d.picked != nil && ctx.Err() == nil {
		p.node.judgeEndpoint(d, err)
	}
	return up, err
}

// openInTime opens a way. Unless it is the last one, it does not wait long.
func (p *Pod) openInTime(ctx context.Context, c *conn, self *directory.Workload, d *destination, last bool) (upstream, error) {
	limited, cancel := patience(ctx, last, c.saidTo(d))
	defer cancel()
	up, err := p.open(limited, c, self, d)
	if err == nil || ctx.Err() != nil || limited.Err() == nil || errors.Is(err, hbone.ErrMayHaveArrived) {
		return up, err
	}
	if d.tunnel && !p.hasCertificate(self.Identity) {
		return p.open(ctx, c, self, d) // it is not the endpoint that is waited for
	}
	return up, fmt.Errorf("endpoint %s: %w", d.workload.UID, errNoAnswer)
}

// patience bounds a step of an attempt that is not the last one, unless, by said (which may be nil), something that the
// application said is on its way by then: that is not said again elsewhere, so the answer is waited for.
func patience(ctx context.Context, last bool, said func() bool) (context.Context, context.CancelFunc) {
	switch {
	case last:
		return ctx, func() {}
	case said == nil:
		return context.WithTimeoutCause(ctx, answerPatience, errNoAnswer)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(answerPatience, func() {
		if !said() {
			cancel(errNoAnswer)
		}
	})
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// saidTo tells whether something that the application said is on its way to d; it is nil where that does not happen before the
// way is open.
func (c *conn) saidTo(d *destination) func() bool {
	if d.tunnel || d.host != "" && d.workload.Tunnel == directory.TunnelHBONE {
		return c.early.Said
	}
	return nil
}

// hasCertificate tells whether there is a certificate now.
func (p *Pod) hasCertificate(id identity.Identity) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := p.node.Certificates.SVID(ctx, id)
	return err == nil
}

// judgeEndpoint has balancing know whether an endpoint took a connection.
func (n *Node) judgeEndpoint(d *destination, err error) {
	switch {
	case err == nil:
		n.Directory.Succeeded(d.picked.ServiceKey, d.workload.UID)
	case endpointFault(err):
		if out := n.Directory.Failed(d.picked.ServiceKey, d.workload.UID); out > 0 {
			n.Balance.Ejected(d.picked.ServiceKey)
			n.Logger.Warn("endpoint ejected: connections to it failed one after the other", "endpoint", d.workload.UID,
				"service", d.picked.String(), "for", out, "error", err)
		}
	}
}

// worthAnother tells whether another endpoint may be tried after a failure, and may do better.
func worthAnother(err error) bool {
	return !errors.Is(err, hbone.ErrMayHaveArrived) && byEndpoint(err)
}

// byEndpoint tells whether a connection failed for a reason that another endpoint may not have: not by a refusal of policy,
// and not by a want of this side.
func byEndpoint(err error) bool {
	var status *hbone.StatusError
	if errors.As(err, &status) {
		return status.Status == statusUnavailable
	}
	return !isAny(err, errNoCertificate, hbone.ErrPoolClosed, hbone.ErrTooManyConnections, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM)
}

// endpointFault tells whether that was the endpoint's fault: not if the pod has no way to its address, as one has not whose
// interface is gone, or which lacks the family; not if resolvers know no address for it; and not if the peer does not take
// the pod's certificate. Else one pod, or a resolver, could have endpoints ejected that serve others well.
func endpointFault(err error) bool {
	var unasked noAddressError
	return byEndpoint(err) && !errors.As(err, &unasked) && !certificateRefused(err) &&
		!isAny(err, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EPERM)
}

// certificateRefused tells whether the peer has ended the handshake because of this side's certificate: all such alerts of TLS
// (bad, unknown, expired, revoked, ...) have the word in their text, which is all that crypto/tls shows of them.
func certificateRefused(err error) bool {
	var alert *net.OpError
	return errors.As(err, &alert) && alert.Op == "remote error" && strings.Contains(alert.Err.Error(), "certificate")
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}
