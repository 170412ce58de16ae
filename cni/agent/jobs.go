package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
	zdsapi "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/discover"
	"github.com/ambit-mesh/ambit/cni/resolver"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/cni/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

const (
	// jobLimit bounds one job, node proxy and API included.
	jobLimit = time.Minute
	// ackLimit bounds the wait for a node proxy's answer about a pod that runs: its job is tried again anyhow.
	ackLimit = 10 * time.Second
	// undoLimit bounds what is done after a failure or an end, when the job's own context may have ended.
	undoLimit = 5 * time.Second
)

// input is what a job is given.
type input struct {
	pod       Pod
	netns     ns.NetNS // nil if not known yet
	phase     phase
	bypass    bool
	dns       bool // its name queries are to be redirected, if somebody takes them
	names     bool // they were, when last looked at
	failures  int
	graceOver bool // attempts have failed for long
	drainOver bool
}

// result is what a job achieved.
type result struct {
	phase     phase
	netns     ns.NetNS // if it found one, which is the loop's from now on
	annotated *string  // the annotation's value, if it changed it
	use       conntrack.Use
	names     *bool // whether name queries are redirected, if it knows
	again     bool  // the pod is to be verified at once
	gone      bool  // the pod does not exist any more
	err       error // nil if there is nothing to try again
}

// jobs are the agent's actions on one pod. Each is idempotent and can be cut off or fail at every step; the comments on
// them say what that leaves.
type jobs struct{ cfg Config }

// do runs an action.
func (j jobs) do(ctx context.Context, a action, in input) result {
	ctx, cancel := context.WithTimeout(ctx, jobLimit)
	defer cancel()
	r := result{phase: in.phase}
	if a == confirm {
		now, _, err := j.cfg.Cluster.Look(ctx, in.pod.Namespace, in.pod.Name)
		r.gone = errors.Is(err, ErrPodGone) || (err == nil && now.UID != in.pod.UID)
		return r // if the API does not answer, it is asked again
	}
	netns := in.netns
	if netns == nil && a != forget {
		found, err := j.cfg.Node.Find(in.pod.kubeletUID(), in.pod.IPs)
		if err != nil && (!errors.Is(err, discover.ErrNotRunning) || a == enrol || a == hold) {
			r.phase, r.err = unknown, err
			j.doubt(ctx, in, &r)
			return r
		}
		netns, r.netns = found, found
	}
	switch a {
	case forget:
		j.forget(ctx, in, &r)
	case enrol:
		j.enrol(ctx, in, netns, &r)
	case hold:
		r.err = j.cfg.Connections.Hold(netns)
		if r.err == nil {
			var now bool
			now, r.err = j.names(netns, in.dns, in.names)
			r.again = now != in.names
		}
	case withdraw:
		j.withdraw(ctx, in, netns, &r)
	case drain:
		j.drain(ctx, in, netns, &r)
	}
	return r
}

func (j jobs) set(bypass, names bool) rules.Set {
	return rules.For(rules.Config{BypassInbound: bypass, IPv6: j.cfg.IPv6, DNS: names})
}

// start captures a pod whose sandbox has just come and in which nothing runs yet: the node proxy, then the hooks, then
// the annotation. If a step fails the pod does not start, and what was done is undone; what cannot be undone is in a
// network namespace that the runtime throws away.
func (j jobs) start(ctx context.Context, m startPod) (r result) {
	ctx, cancel := context.WithTimeout(ctx, jobLimit)
	defer cancel()
	netns, err := j.cfg.Node.Open(m.path)
	if err != nil {
		return result{phase: unknown, err: err}
	}
	err = j.proxy(ctx, m.pod, netns, false)
	names := false
	if err == nil {
		names, err = j.names(netns, m.dns, false)
	}
	set := j.set(m.bypass, names)
	if err == nil {
		err = j.cfg.Kernel.Fill(ctx, netns, set)
	}
	if err == nil {
		err = j.cfg.Kernel.Hook(ctx, netns, set)
	}
	if err == nil {
		err = j.cfg.Probes.Put(m.pod.UID, m.addrs)
	}
	if err == nil {
		err = j.annotate(ctx, m.pod, api.RedirectionEnabled, &r)
	}
	if err == nil {
		r.phase, r.netns, r.names = captured, netns, &names
		return r
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	undone := errors.Join(j.cfg.Proxies.Delete(undo, m.pod.UID), j.cfg.Probes.Delete(m.pod.UID), j.cfg.Kernel.Remove(undo, netns), netns.Close())
	if undone != nil {
		j.cfg.Logger.Warn("undo the start of a pod", "pod", m.pod.Namespace+"/"+m.pod.Name, "error", undone)
	}
	return result{phase: unknown, err: err, annotated: r.annotated}
}

// enrol captures a pod that runs, or verifies that it is captured and repairs what is not. Until the last step before the
// annotation, the hooks, nothing has changed for the pod; and by then a node proxy serves it. A pod that was captured
// before stays so whatever fails.
func (j jobs) enrol(ctx context.Context, in input, netns ns.NetNS, r *result) {
	names, err := j.names(netns, in.dns, in.names)
	set := j.set(in.bypass, names)
	var now rules.State
	if err == nil {
		now, err = j.cfg.Kernel.Inspect(ctx, netns, set)
	}
	if err == nil && now.Foreign {
		err = fmt.Errorf("another program, such as a sidecar, redirects the pod's traffic: %w", rules.ErrForeign)
	}
	if err == nil && len(now.Differences) > 0 {
		err = j.cfg.Kernel.Fill(ctx, netns, set)
	}
	if err == nil {
		err = j.proxyNow(ctx, in.pod, netns)
		if err == nil {
			// It may take name queries from now on.
			var served bool
			if served, err = j.names(netns, in.dns, names); err == nil && served != names {
				names, set = served, j.set(in.bypass, served)
				now.Differences = append(now.Differences, "name queries")
				err = j.cfg.Kernel.Fill(ctx, netns, set)
			}
		}
	}
	if err == nil {
		err = j.cfg.Probes.Put(in.pod.UID, in.pod.IPs)
	}
	if err == nil && len(now.Differences) > 0 {
		if _, err = j.cfg.Connections.Exempt(netns); err == nil {
			err = j.cfg.Kernel.Hook(ctx, netns, set)
		}
		if err == nil && now.Names != names {
			_, err = j.cfg.Connections.ForgetNames(netns, names)
		}
		if err == nil && in.phase == captured {
			j.cfg.Logger.Warn("repaired rules", "pod", in.pod.Namespace+"/"+in.pod.Name, "differences", now.Differences)
		}
	}
	if err == nil && in.pod.Redirection != api.RedirectionEnabled {
		err = j.annotate(ctx, in.pod, api.RedirectionEnabled, r)
	}
	if err != nil {
		r.phase, r.err = unknown, err
		j.doubt(ctx, in, r)
		return
	}
	r.phase, r.names = captured, &names
}

// names says whether the pod's name queries are to be redirected: if that is wanted and somebody takes them, since they must
// never go nowhere. While no proxy is connected they stay as they are; the next will take them.
func (j jobs) names(netns ns.NetNS, wanted, before bool) (bool, error) {
	if !wanted {
		return false, nil
	}
	if before && j.cfg.Proxies.Connected() == 0 {
		return true, nil
	}
	if j.cfg.Depot != nil {
		// What is kept of a proxy that was there before looks as if somebody took queries.
		var st unix.Stat_t
		if err := unix.Fstat(int(netns.Fd()), &st); err != nil {
			return false, fmt.Errorf("look at network namespace %s: %w", netns.Path(), err)
		}
		j.cfg.Depot.Superseded(handover.NetNS{Dev: st.Dev, Ino: st.Ino})
	}
	return j.cfg.Connections.NamesServed(netns)
}

// resolver is how a pod resolves names, nil if that is not known. Of one that runs it is what its containers see.
func (j jobs) resolver(p Pod, running bool) *zdsapi.Resolver {
	if running {
		if s, err := j.cfg.Node.Resolver(p.kubeletUID()); err == nil {
			return resolverMessage(s)
		}
	}
	if s, known := j.cfg.Resolvers.Predict(p.Namespace, p.DNS); known {
		return resolverMessage(s)
	}
	return nil
}

func resolverMessage(s resolver.Settings) *zdsapi.Resolver {
	return &zdsapi.Resolver{Servers: s.Servers, Search: s.Search, Ndots: uint32(s.NDots)}
}

// doubt is for a pod that says that it is captured, and that an attempt could not prove to be: once that is more than a
// restart of something it becomes pending. Peers go on speaking HBONE to it, and are refused if nobody answers, but never
// speak to it in plain, which they would without the annotation.
func (j jobs) doubt(ctx context.Context, in input, r *result) {
	if in.pod.Redirection != api.RedirectionEnabled {
		return
	}
	if !in.graceOver && (passing(r.err) || in.failures+1 < tellAfter) {
		return
	}
	if err := j.annotate(ctx, in.pod, api.RedirectionPending, r); err != nil {
		r.err = errors.Join(r.err, err)
	}
}

// passing tells whether an error is one of a pod or node proxy that is about to start or has just ended, or of a job that was
// cut off.
func passing(err error) bool {
	return errors.Is(err, discover.ErrNotRunning) || errors.Is(err, zds.ErrNoProxy) || errors.Is(err, context.Canceled)
}

// proxy has the newest node proxy serve the pod.
func (j jobs) proxy(ctx context.Context, p Pod, netns ns.NetNS, running bool) error {
	file, err := openNetNS(netns)
	if err != nil {
		return err
	}
	defer file.Close()
	return j.cfg.Proxies.Add(ctx, zds.Pod{UID: p.UID, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount, NetNS: file,
		Resolver: j.resolver(p, running)})
}

// proxyNow is proxy for a pod that runs: it does not wait for a proxy to come, which makes its work due anyhow.
func (j jobs) proxyNow(ctx context.Context, p Pod, netns ns.NetNS) error {
	if j.cfg.Proxies.Connected() == 0 {
		return fmt.Errorf("add pod %s: %w", p.UID, zds.ErrNoProxy)
	}
	ctx, cancel := context.WithTimeout(ctx, ackLimit)
	defer cancel()
	return j.proxy(ctx, p, netns, true)
}

// openNetNS opens a network namespace once more; the caller closes what it returns.
func openNetNS(netns ns.NetNS) (*os.File, error) {
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", netns.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", netns.Path(), err)
	}
	return file, nil
}

// withdraw releases a pod that runs: first the annotation, so that peers stop tunnelling to it; then the hooks, so that
// its new connections are plain; then the node proxy, which goes on with the tunnels that there are. If a step fails, the
// steps before it are done again, harmlessly; while the hooks are in place, so is the proxy.
func (j jobs) withdraw(ctx context.Context, in input, netns ns.NetNS, r *result) {
	r.phase = unknown
	if netns != nil && in.phase == unknown && in.pod.Redirection == "" {
		// A pod that was not looked at since the agent started, or that an attempt left half-way.
		now, err := j.cfg.Kernel.Inspect(ctx, netns, j.set(in.bypass, in.names))
		if err != nil {
			r.err = err
			return
		}
		if !now.Leftover && in.failures == 0 {
			r.phase = outside
			return
		}
	}
	if in.pod.Redirection != "" || in.phase == captured {
		if err := j.annotate(ctx, in.pod, "", r); err != nil {
			r.err = err
			return
		}
	}
	if netns != nil {
		if err := j.cfg.Kernel.Unhook(ctx, netns); err != nil {
			r.err = err
			return
		}
		r.names = new(bool)
		// Programs' sockets that queries were redirected from go on, with the resolver itself.
		if _, err := j.cfg.Connections.ForgetNames(netns, false); err != nil {
			r.err = err
			return
		}
	}
	r.err = errors.Join(j.cfg.Proxies.Delete(ctx, in.pod.UID), j.cfg.Probes.Delete(in.pod.UID))
	switch {
	case r.err != nil:
	case netns == nil:
		r.phase = outside
	default:
		r.phase = draining
	}
}

// drain removes what un-enrolment left on a pod once nothing uses it any more.
func (j jobs) drain(ctx context.Context, in input, netns ns.NetNS, r *result) {
	if netns == nil {
		r.phase = outside
		return
	}
	r.phase = draining
	if r.use, r.err = j.cfg.Connections.Usage(netns); r.err != nil {
		return
	}
	if !r.use.Idle() && !in.drainOver {
		r.err = j.cfg.Connections.Hold(netns)
		return
	}
	if r.err = j.cfg.Kernel.Remove(ctx, netns); r.err == nil {
		j.cfg.Logger.Info("nothing of the mesh is left on the pod", "pod", in.pod.Namespace+"/"+in.pod.Name, "cut", r.use.Connections)
		r.phase = outside
	}
}

// forget tells whoever served a pod that it has ended. Its rules go with its network namespace.
func (j jobs) forget(ctx context.Context, in input, r *result) {
	r.err = errors.Join(j.cfg.Proxies.Delete(ctx, in.pod.UID), j.cfg.Probes.Delete(in.pod.UID))
	if r.err == nil {
		r.phase = outside
	}
}

// annotate writes the pod's status annotation; an empty value removes it. A pod that is gone needs none.
func (j jobs) annotate(ctx context.Context, p Pod, value string, r *result) error {
	err := j.cfg.Cluster.Annotate(ctx, p, value)
	if errors.Is(err, ErrPodGone) && value == "" {
		err = nil
	}
	if err == nil {
		r.annotated = &value
	}
	return err
}
