package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// policyTimeout is how long a state of the workload that names policies which are not there is held back.
const policyTimeout = 5 * time.Second

// judgeInterval is the least time between two judgements of all connections: changes that come meanwhile are judged together.
const judgeInterval = 100 * time.Millisecond

// errDestinationChanged is why a tunnel was cut whose other end is not whom it was opened to.
var errDestinationChanged = errors.New("closed because the destination changed")

// judging is by what connections to the pod are judged. It is immutable, and made when policies or the workload change.
type judging struct {
	workload   *directory.Workload
	generation uint64 // of policies
	set        policy.Set
	// Where set lacks policies that the workload names: until when they are waited for, and the workload as it was when none
	// was lacking, with what applies to it now, which is in force until then. Both are nil if there is none.
	until time.Time
	was   *directory.Workload
	held  *policy.Set
}

// judged is by what all connections to a pod were judged at some time.
type judged struct {
	set     *policy.Set
	domains *identity.Domains
}

// judging returns by what connections are judged now. Discovery must have known the pod.
func (p *Pod) judging() *judging {
	self, generation := p.lookUp(), p.node.Directory.PolicyGeneration()
	if j := p.judgedBy.Load(); j != nil && j.workload == self && j.generation == generation {
		return j
	}
	p.judgeMu.Lock()
	defer p.judgeMu.Unlock()
	self, generation = p.lookUp(), p.node.Directory.PolicyGeneration() // never older than what is there already
	old := p.judgedBy.Load()
	j := &judging{workload: self, generation: generation, set: p.node.Directory.Policies(self)}
	switch {
	case len(j.set.Missing) == 0:
	case old == nil:
		j.until = time.Now().Add(policyTimeout)
	case len(old.set.Missing) > 0: // as before, so that no succession of changes prolongs it
		j.until, j.was = old.until, old.was
		if j.was != nil {
			j.hold(p.node.Directory, *old.held)
		}
	default:
		j.until, j.was = time.Now().Add(policyTimeout), old.workload
		j.hold(p.node.Directory, old.set)
	}
	p.judgedBy.Store(j)
	return j
}

// hold has the workload as it was decide. Only that is held back: policies are those of now, but for those that it named and that
// are gone, which are as they were in last.
func (j *judging) hold(d *directory.Directory, last policy.Set) {
	held := d.PoliciesSince(j.was, last)
	j.held = &held
}

// decide asks policy. A known DENY policy that matches denies at once. Otherwise, where policies are missing that the workload
// names, those that it named before decide for a while; if it was not known, the connection waits. After that it is refused.
func (p *Pod) decide(ctx context.Context, c policy.Connection) (policy.Decision, error) {
	j := p.judging()
	d := p.node.evaluate(&j.set, c)
	if d.Verdict != policy.Undecided {
		return d, nil
	}
	if j.held != nil && time.Now().Before(j.until) {
		return p.node.evaluate(j.held, c), nil
	}
	return p.decideLater(ctx, c)
}

// evaluate asks policies. A peer under another name of the mesh's trust domain must be allowed under the mesh's own too: the control
// plane names aliases in policies, but tells of those and of the aliases themselves one after the other, and while one of
// them is late that must let nobody through.
func (n *Node) evaluate(set *policy.Set, c policy.Connection) policy.Decision {
	d := set.Evaluate(c)
	own := n.Trust.Domains().Canonical(c.Peer)
	if own == c.Peer || d.Verdict == policy.Denied {
		return d
	}
	c.Peer = own
	if o := set.Evaluate(c); o.Verdict == policy.Denied || d.Verdict == policy.Allowed {
		o.DryRun = d.DryRun
		return o
	}
	return d
}

// decideLater waits for policies that the workload names and that are not there.
func (p *Pod) decideLater(ctx context.Context, c policy.Connection) (policy.Decision, error) {
	for {
		changed := p.node.nextChange()
		j := p.judging() // the workload may name other policies now
		d := p.node.evaluate(&j.set, c)
		if d.Verdict != policy.Undecided {
			return d, nil
		}
		left := time.Until(j.until)
		if left <= 0 {
			return d, fmt.Errorf("%s; was it removed, or is the control plane late?", d.Reason)
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return d, fmt.Errorf("%s: %w", d.Reason, context.Cause(ctx))
		}
		timer.Stop()
	}
}

// judge asks policy whether a connection may be, and has it asked again when policies change.
func (p *Pod) judge(ctx context.Context, c *conn, what policy.Connection) *refusal {
	// Registered before it is judged: a policy that comes between the two judges it again.
	c.update(func(c *conn) { c.judged = what })
	decision, err := p.decide(ctx, what)
	p.countDecision(ctx, what, decision)
	if err != nil {
		return refuse(statusUnavailable, telemetry.FlagDenied, "%w", err)
	}
	if !decision.Allowed() {
		return refuse(statusDenied, telemetry.FlagDenied, "%s", decision.Reason)
	}
	return nil
}

// countDecision counts a decision and what dry-run policies would have decided, and tells of the latter.
func (p *Pod) countDecision(ctx context.Context, c policy.Connection, d policy.Decision) {
	p.node.Policies.Decided(d)
	if len(d.DryRun) == 0 {
		return
	}
	level := slog.LevelDebug
	if p.node.PolicyInfo {
		level = slog.LevelInfo
	}
	for _, dry := range d.DryRun {
		p.logger.Log(ctx, level, "dry-run policy matched", "policy", dry.Policy.Key(), "would_be", dry.Verdict.String(),
			"src.identity", c.Peer.String(), "src.addr", c.Source, "dst.addr", c.Destination)
	}
}

// judgeAgain cuts the connections to the pod that policy denies by now. Only the loop of Node.Run calls it.
func (p *Pod) judgeAgain() {
	if p.lookUp() == nil {
		return // then there is no connection that was judged
	}
	j, domains := p.judging(), p.node.Trust.Domains()
	if by := p.judgedAll; by != nil && by.domains == domains && by.set.Equal(j.set) {
		return
	}
	p.judgedAll = &judged{&j.set, domains}
	for _, c := range p.conns.judged() {
		if d := p.node.evaluate(&j.set, c.judged); d.Verdict == policy.Denied {
			p.node.Policies.Closed(d)
			c.conn.cut(fmt.Errorf("%w: %s", errPolicyChanged, d.Reason))
		}
	}
}

// judgeAll judges the connections of all pods again, as far as something has changed for them. Only the loop of Run calls it.
func (n *Node) judgeAll() {
	n.mu.Lock()
	moved, renamed := n.displaced, n.renamed
	n.displaced, n.renamed = map[netip.Addr]bool{}, false
	n.mu.Unlock()
	if renamed {
		n.Recheck()
	}
	pods := n.snapshot()
	for _, p := range pods {
		p.judgeAgain()
	}
	n.judgeTunnels(moved, pods)
}

// judgedConn is a connection to the pod, and what policy decided on.
type judgedConn struct {
	conn   *conn
	judged policy.Connection
}

// judged lists the connections that policy has decided on.
func (t *table) judged() []judgedConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []judgedConn
	for c := range t.conns {
		if c.judged.Source.IsValid() {
			all = append(all, judgedConn{c, c.judged})
		}
	}
	return all
}

// tunnel is a connection from the pod by a tunnel, and to whom it was opened.
type tunnel struct {
	conn *conn
	to   *directory.Workload
	addr netip.Addr
}

// tunnelsTo lists the connections by tunnels to one of the addresses.
func (t *table) tunnelsTo(addrs map[netip.Addr]bool) []tunnel {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []tunnel
	for c := range t.conns {
		if r := &c.record; !r.Inbound && r.MutualTLS && r.Destination != nil && addrs[r.DestinationAddr.Addr()] {
			all = append(all, tunnel{c, r.Destination, r.DestinationAddr.Addr()})
		}
	}
	return all
}

// judgeTunnels cuts connections from the pods whose other end is not whom they were opened to any more. Of what a pod sends
// that is all that can be judged on its side: the policies of a destination are its own node's to enforce.
func (n *Node) judgeTunnels(moved map[netip.Addr]bool, pods []*Pod) {
	if len(moved) == 0 {
		return
	}
	for _, p := range pods {
		for _, t := range p.conns.tunnelsTo(moved) {
			if err := n.stranger(t.to, t.addr); err != nil {
				t.conn.cut(fmt.Errorf("%w: %w", errDestinationChanged, err))
			}
		}
	}
}

// stranger says why nobody with the identity of a workload is at its address any more, nil if somebody is.
func (n *Node) stranger(was *directory.Workload, addr netip.Addr) error {
	now := n.Directory.Workload(was.UID)
	if now == nil || !slices.Contains(now.Addrs, addr) {
		now = n.workloadAt(addr)
	}
	switch {
	case now == nil:
		return fmt.Errorf("workload %s is gone", was.UID)
	case now.Identity != was.Identity:
		return fmt.Errorf("at %s there is workload %s with identity %s now, and not %s", addr, now.UID, now.Identity, was.Identity)
	}
	return nil
}

// displaced lists the addresses of the workloads of a change that are gone, or are not whom and where they were.
func displaced(c directory.Change) []netip.Addr {
	var addrs []netip.Addr
	for _, w := range c.Workloads {
		if w.Old != nil && (w.New == nil || w.New.Identity != w.Old.Identity || !slices.Equal(w.New.Addrs, w.Old.Addrs)) {
			addrs = append(addrs, w.Old.Addrs...)
		}
	}
	return addrs
}
