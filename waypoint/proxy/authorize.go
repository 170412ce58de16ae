package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// accessDenied is all that a client is told whom a policy refuses: which policies there are is nothing for it to know. Envoy's words.
const accessDenied = "RBAC: access denied"

// errPolicyChange is why a connection ended that was open when policy changed.
var errPolicyChange = errors.New("closed due to policy change")

// judgedAs is what policies look at. head is nil for a connection that is not of HTTP, claims for who has no token.
func (c *connection) judgedAs(head *policy.Head, claims map[string]any) policy.Request {
	r := policy.Request{
		Connection: policy.Connection{Peer: c.peer, Source: c.holder, Destination: c.destination},
		URI:        c.principal, Remote: c.holder, Head: head, Claims: claims, Server: c.asked, Unnamed: c.unnamed,
	}
	if head != nil {
		r.Remote = remote(head.Header, c.holder)
	}
	return r
}

// counted asks the policies of a chain about what begins now.
func (c *connection) counted(chain *config.Chain, r policy.Request) policy.RequestDecision {
	d := chain.Authorization.Decide(&r)
	if c.proxy.cfg.Policies != nil {
		c.proxy.cfg.Policies.Decided(d.Decision)
	}
	return d
}

// remote is the client's address before all proxies: that which the last of them has added to x-forwarded-for, the sender's if there
// is no such field. One that is none is not known.
func remote(header message.Fields, sender netip.Addr) netip.Addr {
	for i := len(header) - 1; i >= 0; i-- {
		if header[i].Name != "x-forwarded-for" {
			continue
		}
		value := header[i].Value
		value = strings.TrimSpace(value[strings.LastIndexByte(value, ',')+1:])
		if ap, err := netip.ParseAddrPort(value); err == nil {
			return ap.Addr().Unmap()
		}
		addr, _ := netip.ParseAddr(strings.Trim(value, "[]"))
		return addr.Unmap()
	}
	return sender
}

// authorize asks whether the request may be served, by a chain of a snapshot: those outside whom its token does not concern, who may
// give it one, then the issuers of tokens, then the others and the mesh's own policies. Istio's order.
func (r *request) authorize(chain *config.Chain, snapshot *config.Snapshot) *refusal {
	if refused := r.ask(chain.AsksFirst); refused != nil {
		return refused
	}
	if refused := r.authenticate(chain); refused != nil {
		return refused
	}
	if refused := r.ask(chain.Asks); refused != nil {
		return refused
	}
	if len(chain.Authorization) == 0 {
		return r.follow(snapshot)
	}
	d := r.c.counted(chain, r.judged())
	r.audits = d.Audits
	if d.Allowed() {
		return r.follow(snapshot)
	}
	return &refusal{status: 403, flag: telemetry.RequestDenied, text: d.Reason}
}

// auditAttrs names the policies that ask for what they match to be told.
func auditAttrs(attrs []slog.Attr, audits []*policy.RequestPolicy) []slog.Attr {
	if len(audits) == 0 {
		return attrs
	}
	names := make([]string, len(audits))
	for i, p := range audits {
		names[i] = p.Policy.Key()
	}
	return append(attrs, slog.String("audit", strings.Join(names, ",")))
}

// authorizeTCP asks whether the connection may be served, and sees to it that it is asked again when policy changes, until stop is
// called; cancel ends the connection then. It reports whether it may; if not, the client has been told.
func (c *connection) authorizeTCP(cl *caller, cancel context.CancelCauseFunc) (stop func(), ok bool) {
	p, start := c.proxy, time.Now()
	p.mu.Lock()
	p.carried[c] = cancel
	p.mu.Unlock()
	stop = func() {
		p.mu.Lock()
		delete(p.carried, c)
		p.mu.Unlock()
	}
	// After that, so that a change is seen here or there.
	chain := c.now(p.snapshot.Load())
	if chain == nil {
		chain = c.chain
	}
	c.judged.CompareAndSwap(nil, chain)
	if len(chain.Authorization) == 0 {
		return stop, true
	}
	d := c.counted(chain, c.judgedAs(nil, nil))
	c.audits = d.Audits
	if d.Allowed() {
		return stop, true
	}
	stop()
	p.counts.Refused.Add(1)
	p.cfg.Requests.Failed(telemetry.ConnectionLabels{Ends: c.ends(nil, nil), Flag: telemetry.RequestDenied, MutualTLS: true})
	c.logTCP(start, nil, nil, nil, telemetry.RequestDenied, errors.New(d.Reason))
	cl.refuse(403, accessDenied)
	return nil, false
}

// follow sees to it that a request that may take long, since it becomes a connection of its own or is one of gRPC, is judged again when
// policy changes. It was let in by a snapshot.
func (r *request) follow(by *config.Snapshot) *refusal {
	req := &r.x.Request
	if !r.grpc && req.Upgrade == "" {
		return nil
	}
	r.cancelable()
	head := &policy.Head{Method: req.Method, Authority: req.Authority, Path: req.Path, Header: req.Header.Clone()} // routes change it
	c := r.c
	c.mu.Lock()
	if c.long == nil {
		c.long = map[*request]*policy.Head{}
	}
	c.long[r] = head
	c.mu.Unlock()
	r.followed = true
	// After that, so that a change is seen here or there.
	if now := c.proxy.snapshot.Load(); now != by {
		if chain := now.Chain(c.destination); chain != nil {
			q := c.judgedAs(head, r.claims)
			if d := chain.Authorization.Decide(&q); !d.Allowed() {
				return &refusal{status: 403, flag: telemetry.RequestDenied, text: d.Reason}
			}
		}
	}
	return nil
}

// unfollow is the counterpart of follow.
func (r *request) unfollow() {
	if r.followed {
		r.c.mu.Lock()
		delete(r.c.long, r)
		r.c.mu.Unlock()
	}
}

// live is something that was let in and is judged again.
type live struct {
	c      *connection
	chain  *config.Chain
	head   *policy.Head
	claims map[string]any
	cancel context.CancelCauseFunc
}

// rejudge asks again for what is open where the policies of its destination are others now, and ends what is denied: connections that
// are not of HTTP, and requests that may take long. Other requests are asked for when they come.
func (p *Proxy) rejudge(s *config.Snapshot) {
	var all []live
	changed := func(c *connection) *config.Chain {
		now := c.now(s)
		if now == nil || c.judged.Swap(now) == now || len(now.Authorization) == 0 {
			return nil
		}
		return now
	}
	p.mu.Lock()
	for c, cancel := range p.carried {
		if now := changed(c); now != nil {
			all = append(all, live{c: c, chain: now, cancel: cancel})
		}
	}
	for c := range p.conns {
		now := changed(c)
		if now == nil {
			continue
		}
		c.mu.Lock()
		for r, head := range c.long {
			all = append(all, live{c, now, head, r.claims, r.cancel})
		}
		c.mu.Unlock()
	}
	p.mu.Unlock()
	for _, one := range all {
		q := one.c.judgedAs(one.head, one.claims)
		d := one.chain.Authorization.Decide(&q)
		if d.Allowed() {
			continue
		}
		if p.cfg.Policies != nil {
			p.cfg.Policies.Closed(d.Decision)
		}
		one.cancel(fmt.Errorf("%w: %s", errPolicyChange, d.Reason))
	}
}
