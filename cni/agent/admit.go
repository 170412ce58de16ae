package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/enrolment"
	"github.com/ambit-mesh/ambit/cni/zds"
)

// lookLimit bounds reading a pod and its namespace from the API.
const lookLimit = 3 * time.Second

// admit answers the plugin about a pod that starts: nil if it may. What the pod wants is read from the API and not from the
// informers, which may lag behind a label that somebody relies on.
func (a *Agent) admit(ctx context.Context, r agentapi.AddRequest) error {
	log := a.cfg.Logger.With("pod", r.PodNamespace+"/"+r.PodName)
	looking, cancel := context.WithTimeout(ctx, lookLimit)
	pod, labels, err := a.cfg.Cluster.Look(looking, r.PodNamespace, r.PodName)
	cancel()
	if err != nil {
		// The plugin looks with its own credential then, and refuses if it cannot either.
		return fmt.Errorf("%w: %w", agentapi.ErrNoAnswer, err)
	}
	if r.PodUID != "" && r.PodUID != pod.UID && r.PodUID != pod.kubeletUID() {
		return fmt.Errorf("the API knows pod %s/%s with UID %s, and %s is to be started", r.PodNamespace, r.PodName, pod.UID, r.PodUID)
	}
	d := enrolment.Decide(pod.Enrolment, labels, a.cfg.ExcludeNamespaces)
	if !d.Capture || a.report.Load().Phase != phaseServing {
		log.Debug("pod starts outside the mesh", "because", d.Reason)
		return nil
	}
	begin := time.Now()
	answered := make(chan error, 1)
	m := startPod{ctx: ctx, pod: pod, labels: labels, bypass: d.BypassInbound, dns: d.DNS.Or(a.cfg.DNS), path: r.Netns, answered: answered}
	for _, ip := range r.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			m.addrs = append(m.addrs, addr.Unmap())
		}
	}
	a.mail.post(m)
	select {
	case err = <-answered:
	case <-a.stopped:
		err = agentapi.ErrNoAnswer
	}
	switch {
	case err == nil:
		log.Info("pod starts captured", "because", d.Reason, "took", time.Since(begin).Round(time.Millisecond))
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		err = fmt.Errorf("%w: the agent is stopping, or the pod's sandbox was replaced", agentapi.ErrNoAnswer)
	case errors.Is(err, zds.ErrNoProxy):
		err = fmt.Errorf("%w. The pod starts by itself once a node proxy runs on this node: look at DaemonSet %s/%s (kubectl -n %[2]s get pods -o wide)",
			zds.ErrNoProxy, a.cfg.Namespace, api.NodeProxy)
	case errors.Is(err, zds.ErrRefused):
		err = fmt.Errorf("%w. It goes on trying; what is wrong is in its log: kubectl -n %s logs daemonset/%s", err, a.cfg.Namespace, api.NodeProxy)
	case !errors.Is(err, agentapi.ErrNoAnswer):
		err = fmt.Errorf("%w. The agent's log says more: kubectl -n %s logs daemonset/%s", err, a.cfg.Namespace, api.NodeAgent)
	}
	return err
}
