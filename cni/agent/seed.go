package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/ambit-mesh/ambit/cni/discover"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/cni/zds"
)

// seed makes the node proxies' snapshot complete before the first of them connects: a proxy stops serving what a snapshot
// does not name. It names the pods that say that they are captured and those that are, whatever they want to be by now.
// The loop then verifies each of them, and withdraws those that are not wanted.
func (l *loop) seed(ctx context.Context) {
	var wait sync.WaitGroup
	for _, s := range l.pods {
		if s.pod.Enrolment.HostNetwork || s.pod.Enrolment.Ended || s.deleted || (len(s.pod.IPs) == 0 && s.pod.Redirection == "") {
			continue
		}
		wait.Go(func() {
			l.work <- struct{}{}
			defer func() { <-l.work }()
			if err := l.jobs.seed(ctx, s); err != nil {
				l.log.Error("look at a pod that may be captured", "pod", s.pod.Namespace+"/"+s.pod.Name, "error", err)
			}
		})
	}
	wait.Wait()
}

// seed finds what is there of one pod and makes it known to the node proxies' server; in doubt only by name, so that a
// proxy which serves it goes on. It may touch the state, since the loop does not run yet.
func (j jobs) seed(ctx context.Context, s *podState) error {
	netns, err := j.cfg.Node.Find(s.pod.kubeletUID(), s.pod.IPs)
	var now rules.State
	if err == nil {
		s.netns = netns
		s.inode, _ = discover.Inode(netns)
		now, err = j.cfg.Kernel.Inspect(ctx, netns, j.set(s.decision.BypassInbound, false))
		s.names = now.Names
	}
	p := zds.Pod{UID: s.pod.UID, Name: s.pod.Name, Namespace: s.pod.Namespace, ServiceAccount: s.pod.ServiceAccount,
		Resolver: j.resolver(s.pod, true)}
	switch {
	case err != nil && s.pod.Redirection == "":
	case err != nil:
		err = errors.Join(err, j.cfg.Proxies.Set(p))
	case now.Captured || s.pod.Redirection != "":
		file, err := openNetNS(netns)
		if err != nil {
			return err
		}
		defer file.Close()
		p.NetNS = file
		return j.cfg.Proxies.Set(p)
	case !now.Leftover:
		s.phase = outside
	}
	if errors.Is(err, discover.ErrNotRunning) {
		return nil // its sandbox may be on its way
	}
	return err
}
