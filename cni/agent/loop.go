package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/discover"
	"github.com/ambit-mesh/ambit/cni/enrolment"
)

const (
	// workers bounds the jobs that run at once; starters those for pods that start, which do not queue behind the others.
	workers  = 8
	starters = 16
	// tellAfter is after how many failures in a row that are not a restart of something they are told on the pod.
	tellAfter = 3
)

// loop owns all state of the agent.
type loop struct {
	*Agent
	log  *slog.Logger
	t    Timings
	jobs jobs

	pods       map[string]*podState
	namespaces map[string]map[string]string // labels
	order      Order
	doomed     bool

	running  sync.WaitGroup
	work     chan struct{} // a token a job
	starting chan struct{}
	hostAt   time.Time
	hostBusy bool
	install  func() // ends the installation's goroutine and waits for it; nil when it does not run

	cleaned      bool // the node was, after an order to release all pods
	cleanFailure error
	cleanAgain   time.Time
}

func newLoop(a *Agent) *loop {
	return &loop{
		Agent: a, log: a.cfg.Logger, t: a.cfg.Timings, jobs: jobs{a.cfg},
		pods: map[string]*podState{}, namespaces: map[string]map[string]string{},
		work: make(chan struct{}, workers), starting: make(chan struct{}, starters),
	}
}

// run goes round until the context ends, and then until the last job has ended.
func (l *loop) run(ctx context.Context) {
	tick := time.NewTicker(l.t.Tick)
	defer tick.Stop()
	for ctx.Err() == nil {
		// One of three things happens: the context ends, somebody posts, or time passes. Then whatever is due is begun.
		select {
		case <-ctx.Done():
		case <-l.mail.wake:
			l.receive()
		case <-tick.C:
		}
		l.beat.Store(time.Now().UnixNano())
		if ctx.Err() == nil {
			l.begin(ctx)
			l.publish()
		}
	}
	l.keepInstalled(ctx, false)
	l.running.Wait()
	l.receive() // what the last jobs achieved
	close(l.stopped)
}

// close gives back what the loop holds of pods.
func (l *loop) close() {
	for _, s := range l.pods {
		l.closeNetNS(s)
	}
}

func (l *loop) closeNetNS(s *podState) {
	if s.netns != nil {
		s.netns.Close()
		s.netns, s.inode = nil, 0
	}
}

// receive takes all messages.
func (l *loop) receive() {
	for _, m := range l.mail.take() {
		switch m := m.(type) {
		case podChanged:
			l.podChanged(m.pod)
		case podDeleted:
			if s := l.pods[m.uid]; s != nil {
				s.deleted = true
			}
		case namespaceChanged:
			l.namespaceChanged(m)
		case orderChanged:
			l.orderChanged(m)
		case proxiesChanged:
			if m.connected > 0 {
				l.hurry()
			}
			l.lookSoon()
		case startPod:
			l.startPod(m)
		case jobDone:
			l.jobDone(m)
		case hostDone:
			l.hostDone(m)
		}
	}
}

func (l *loop) podChanged(p Pod) {
	s := l.pods[p.UID]
	if s == nil {
		s = &podState{}
		l.pods[p.UID] = s
		if p.Enrolment.Ended {
			s.phase = outside // it took everything with it
		}
	}
	if p.Redirection != s.pod.Redirection || len(s.pod.IPs) == 0 {
		s.due = time.Time{}
	}
	s.pod, s.seen = p, true
	if p.Enrolment.HostNetwork {
		s.phase = outside // nobody ever changes anything there
	}
	l.decide(s)
}

func (l *loop) namespaceChanged(m namespaceChanged) {
	if m.deleted {
		delete(l.namespaces, m.name)
		return // its pods go, too, and are left as they are until then
	}
	l.namespaces[m.name] = m.labels
	for _, s := range l.pods {
		if s.pod.Namespace == m.name {
			l.decide(s)
		}
	}
}

// decide decides about a pod anew, and says on it what was not understood.
func (l *loop) decide(s *podState) {
	labels, known := l.namespaces[s.pod.Namespace]
	before := s.decision
	s.decision = enrolment.Decide(s.pod.Enrolment, labels, l.cfg.ExcludeNamespaces)
	s.decided = known
	if before.Capture != s.decision.Capture || before.BypassInbound != s.decision.BypassInbound || before.DNS != s.decision.DNS {
		s.due, s.failures, s.verifyAt = time.Time{}, 0, time.Time{}
	}
	said := ""
	for _, p := range s.decision.Problems {
		said += p + ". "
	}
	if said != "" && said != s.told && s.seen {
		l.cfg.Cluster.Warn(s.pod, "UnknownValue", said)
	}
	s.told = said
}

func (l *loop) orderChanged(m orderChanged) {
	l.doomed = m.gone
	if m.order == l.order {
		return
	}
	l.log.Info("order for all pods of this node", "order", string(m.order))
	l.order, l.cleaned, l.cleanFailure = m.order, false, nil
	l.hurry()
}

// hurry makes everything that waits after a failure due.
func (l *loop) hurry() {
	for _, s := range l.pods {
		s.due = time.Time{}
	}
}

// lookSoon has captured pods looked at, since the proxy that has come or gone may take name queries, and the others not. They are
// looked at more than once, less and less often: the proxy may not serve a pod at the first time, or have come while a job ran
// that had looked before.
func (l *loop) lookSoon() {
	at := time.Now().Add(l.t.Names)
	for _, s := range l.pods {
		if s.phase == captured || s.busy {
			s.look = l.t.Names
		}
		if s.holdAt.After(at) {
			s.holdAt = at
		}
	}
}

// startPod queues the start of a pod's sandbox, and ends whatever is being done about a former sandbox.
func (l *loop) startPod(m startPod) {
	s := l.pods[m.pod.UID]
	if s == nil {
		s = &podState{pod: m.pod, unseenAt: time.Now().Add(l.t.Unseen)}
		l.pods[m.pod.UID] = s
	}
	if _, known := l.namespaces[m.pod.Namespace]; !known {
		l.namespaces[m.pod.Namespace] = m.labels
	}
	if !s.seen {
		l.decide(s)
	}
	s.starts = append(s.starts, m)
	if s.cancel != nil {
		s.cancel()
	}
}

// begin starts whatever is due.
func (l *loop) begin(ctx context.Context) {
	now := time.Now()
	for uid, s := range l.pods {
		if s.busy {
			continue
		}
		if len(s.starts) > 0 {
			l.beginStart(ctx, s)
			continue
		}
		switch a := s.plan(now, l.order); a {
		case nothing:
		case forget:
			if s.deleted && s.phase == outside && s.netns == nil && s.pod.Redirection == "" {
				delete(l.pods, uid) // never ours
				continue
			}
			l.beginJob(ctx, s, a)
		default:
			l.beginJob(ctx, s, a)
		}
	}
	l.beginHost(ctx, now)
	l.beginRelease(ctx, now)
}

// beginJob runs one action on a pod.
func (l *loop) beginJob(ctx context.Context, s *podState, a action) {
	in := input{
		pod: s.pod, netns: s.netns, phase: s.phase, bypass: s.decision.BypassInbound, failures: s.failures,
		dns: s.decision.DNS.Or(l.cfg.DNS), names: s.names,
		graceOver: l.graceOver(s),
		drainOver: l.order == Now || (!s.drainEnd.IsZero() && time.Now().After(s.drainEnd)),
	}
	l.spawn(ctx, s, a, l.work, func(ctx context.Context) result { return l.jobs.do(ctx, a, in) })
}

func (l *loop) beginStart(ctx context.Context, s *podState) {
	m := s.starts[0]
	s.starts = s.starts[1:]
	if s.deleted {
		m.answered <- errors.New("the pod is deleted")
		return
	}
	l.closeNetNS(s) // that of a former sandbox
	s.phase = unknown
	l.spawn(ctx, s, start, l.starting, func(ctx context.Context) result {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stop := context.AfterFunc(m.ctx, cancel)
		defer stop()
		r := l.jobs.start(ctx, m)
		m.answered <- r.err
		return r
	})
}

// spawn gives the pod to a job. The loop does not touch its network namespace before jobDone.
func (l *loop) spawn(ctx context.Context, s *podState, a action, tokens chan struct{}, f func(context.Context) result) {
	ctx, cancel := context.WithCancel(ctx)
	s.busy, s.cancel = true, cancel
	uid := s.pod.UID
	l.running.Go(func() {
		defer cancel()
		select {
		case tokens <- struct{}{}:
			r := f(ctx)
			<-tokens
			l.mail.post(jobDone{uid, a, r})
		case <-ctx.Done():
			l.mail.post(jobDone{uid, a, result{phase: unknown, err: ctx.Err()}})
		}
	})
}

func (l *loop) jobDone(m jobDone) {
	s, now := l.pods[m.uid], time.Now()
	s.busy, s.cancel, s.err, s.doneAt = false, nil, m.result.err, now
	if m.result.netns != nil {
		l.closeNetNS(s)
		s.netns = m.result.netns
		s.inode, _ = discover.Inode(s.netns)
	}
	s.phase, s.use, s.due = m.result.phase, m.result.use, time.Time{}
	if m.result.names != nil {
		s.names = *m.result.names
	}
	if m.action == start {
		s.settleAt = now.Add(l.t.StartSettle)
	}
	if m.result.annotated != nil {
		s.pod.Redirection = *m.result.annotated
	}
	s.unseenAt = now.Add(l.t.Unseen)
	s.deleted = s.deleted || m.result.gone
	if m.result.err != nil {
		l.jobFailed(s, m)
		return
	}
	s.failures = 0
	switch s.phase {
	case captured:
		if m.action == start || m.action == enrol {
			s.verifyAt = now.Add(jitter(l.t.Verify))
		}
		s.holdAt, s.drainEnd = now.Add(jitter(l.t.Hold)), time.Time{}
		if s.look > 0 {
			s.holdAt = now.Add(min(s.look, l.t.Hold))
			if s.look *= 2; s.look >= l.t.Hold {
				s.look = 0
			}
		}
		if m.result.again {
			s.verifyAt = time.Time{}
		}
	case draining:
		s.due = now.Add(l.t.DrainLook)
		if s.drainEnd.IsZero() {
			s.drainEnd = now.Add(l.t.DrainLimit)
		}
	case outside:
		l.closeNetNS(s)
		s.use, s.drainEnd = conntrack.Use{}, time.Time{}
		if s.deleted {
			for _, r := range s.starts {
				r.answered <- errors.New("the pod is deleted")
			}
			delete(l.pods, m.uid)
		}
	}
}

func (l *loop) jobFailed(s *podState, m jobDone) {
	log := l.log.With("pod", s.pod.Namespace+"/"+s.pod.Name, "uid", m.uid, "error", m.result.err)
	if errors.Is(m.result.err, context.Canceled) {
		log.Debug("job ended early")
		s.due = time.Now().Add(l.t.RetryMin)
		return
	}
	if s.failures++; s.failures == 1 {
		s.failing = time.Now()
	}
	s.due = time.Now().Add(backoff(s.failures, l.t.RetryMin, l.t.RetryMax))
	l.cfg.Metrics.JobFailed()
	level := slog.LevelWarn
	transient := passing(m.result.err)
	if transient && !l.graceOver(s) {
		level = slog.LevelDebug
	}
	if a := m.result.annotated; a != nil && *a == api.RedirectionPending {
		log.Warn("pod cannot be proved captured: peers are refused until it is")
		l.cfg.Cluster.Warn(s.pod, "CapturePending", "it cannot be proved that the pod is captured; peers do not speak to it in plain "+
			"and are refused until it is repaired, which is tried again and again: "+m.result.err.Error())
	}
	log.Log(context.Background(), level, "will be tried again", "failures", s.failures, "after", time.Until(s.due).Round(time.Millisecond).String())
	if s.seen && (l.graceOver(s) || (!transient && s.failures == tellAfter)) {
		l.cfg.Cluster.Warn(s.pod, "CaptureFailed", m.result.err.Error())
	}
}

// graceOver says whether attempts on the pod have failed for so long that it is more than a restart of something.
func (l *loop) graceOver(s *podState) bool {
	return s.failures > 0 && time.Since(s.failing) > l.t.Grace
}

// backoff doubles from least to most, with jitter.
func backoff(failures int, least, most time.Duration) time.Duration {
	d := least
	for range failures - 1 {
		if d *= 2; d >= most {
			d = most
			break
		}
	}
	return jitter(d)
}

// jitter spreads what would otherwise happen at once, by up to a fifth.
func jitter(d time.Duration) time.Duration {
	return d*9/10 + rand.N(d/5+1)
}

// beginHost compares the host's probe exemption with what it must be.
func (l *loop) beginHost(ctx context.Context, now time.Time) {
	if l.hostBusy || l.cleaned || now.Before(l.hostAt) {
		return
	}
	l.hostBusy, l.hostAt = true, now.Add(l.t.Host)
	l.running.Go(func() {
		if err := l.cfg.Probes.Ensure(ctx); err != nil {
			l.mail.post(hostDone{begun: now, err: err})
			return
		}
		entries, err := l.cfg.Probes.Entries()
		running, rerr := l.cfg.Node.Running()
		l.mail.post(hostDone{now, entries, running, errors.Join(err, rerr)})
	})
}

// hostDone puts right what the host's sets have too much or too little. Entries were read before this: a pod that was
// added since is in the loop's state, so that it is not taken for a leftover.
func (l *loop) hostDone(m hostDone) {
	l.hostBusy = false
	if m.err != nil {
		l.log.Error("probe exemption and sandboxes", "error", m.err)
		l.hostAt = time.Now().Add(l.t.RetryMax)
		return
	}
	stale := map[string]bool{}
	for _, uid := range m.entries {
		if s := l.pods[uid]; s == nil || s.clean() {
			stale[uid] = true
		}
	}
	for uid := range stale {
		if err := l.cfg.Probes.Delete(uid); err != nil {
			l.log.Error("probe exemption", "error", err)
		}
	}
	for uid, s := range l.pods {
		if s.phase != captured || s.busy || s.doneAt.After(m.begun) {
			continue // what was read may be older than what is known
		}
		now := m.running[s.pod.kubeletUID()]
		if len(now) > 0 && !slices.Contains(now, s.inode) {
			l.log.Warn("pod has another sandbox, which did not come by the plugin", "pod", s.pod.Namespace+"/"+s.pod.Name)
			l.closeNetNS(s)
			s.phase = unknown
		}
		if missing(m.entries, s.pod.IPs, uid) {
			s.verifyAt = time.Time{}
		}
	}
}

func missing(entries map[netip.Addr]string, addrs []netip.Addr, uid string) bool {
	for _, a := range addrs {
		if entries[a.Unmap()] != uid {
			return true
		}
	}
	return false
}

// keepInstalled starts or ends the goroutine that keeps the plugin installed.
func (l *loop) keepInstalled(ctx context.Context, yes bool) {
	switch {
	case yes && l.install == nil:
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := l.cfg.Installation.Run(ctx); err != nil {
				l.log.Error("keep the plugin installed", "error", err)
			}
		}()
		l.install = func() { cancel(); <-done }
	case !yes && l.install != nil:
		l.install()
		l.install = nil
	}
}
