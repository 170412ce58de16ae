package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api"
)

// Phases of a Report.
const (
	phaseServing  = "serving"
	phaseDraining = "draining"
	phaseClean    = "clean"
)

// Report tells how far the node is with an order to release all pods. It is the JSON of GET /release.
type Report struct {
	Node  string `json:"node"`
	Phase string `json:"phase"` // serving, draining or clean
	// Pods is the number of pods on which something is left, Connections that of their redirected and tunnelled connections.
	Pods        int    `json:"pods"`
	Connections int    `json:"connections"`
	Error       string `json:"error,omitempty"`
}

// publish makes the report of the loop's state.
func (l *loop) publish() {
	r := &Report{Node: l.cfg.NodeName, Phase: phaseServing}
	counts := map[phase]int{}
	for _, s := range l.pods {
		counts[s.phase]++
		if !s.clean() && !s.deleted {
			r.Pods++
			r.Connections += s.use.Connections
		}
		if s.err != nil && l.order != Serve {
			r.Error = s.err.Error()
		}
	}
	switch {
	case l.order == Serve:
		r.Pods, r.Connections = 0, 0
	case l.cleaned:
		r.Phase = phaseClean
	default:
		r.Phase = phaseDraining
	}
	if l.cleanFailure != nil {
		r.Error = l.cleanFailure.Error()
	}
	l.report.Store(r)
	l.cfg.Metrics.Pods(counts[captured], counts[draining])
}

// beginRelease keeps the plugin installed while the agent serves; after an order to release all pods it cleans the node
// when no pod has anything left.
func (l *loop) beginRelease(ctx context.Context, now time.Time) {
	if l.order == Serve {
		l.keepInstalled(ctx, true)
		return
	}
	if l.cleaned || now.Before(l.cleanAgain) || l.hostBusy {
		return
	}
	for _, s := range l.pods {
		if !s.clean() && !s.deleted {
			return
		}
	}
	l.keepInstalled(ctx, false)
	l.cleanFailure = errors.Join(l.cfg.Installation.Uninstall(), l.cfg.Probes.Remove(ctx))
	l.cleaned = l.cleanFailure == nil
	if !l.cleaned {
		l.log.Error("clean the node", "error", l.cleanFailure)
		l.cleanAgain = now.Add(l.t.RetryMin)
		return
	}
	l.log.Info("node is clean: no pod is captured and the plugin is gone")
}

// doomed says whether the agent ends because its DaemonSet is deleted.
func (a *Agent) doomed(l *loop) bool {
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	return a.cfg.Cluster.Doomed(ctx, l.doomed)
}

// cleanNode is the clean-up at the end of an agent whose DaemonSet is deleted. Annotations are removed as far as the API still
// lets it.
func (a *Agent) cleanNode(l *loop) error {
	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.Timings.Cleanup)
	defer cancel()
	var wait sync.WaitGroup
	limit := make(chan struct{}, workers)
	for _, s := range l.pods {
		if s.pod.Redirection == "" || s.deleted {
			continue
		}
		wait.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			if err := a.cfg.Cluster.Annotate(ctx, s.pod, ""); err != nil && !errors.Is(err, ErrPodGone) {
				a.cfg.Logger.Warn("clean the node", "error", err)
			}
		})
	}
	wait.Wait()
	return Cleanup(ctx, CleanupConfig{
		Node: a.cfg.Node, Kernel: a.cfg.Kernel, Probes: a.cfg.Probes, Installation: a.cfg.Installation,
		Leftovers: Leftovers(a.cfg.RunDir, a.cfg.ZDSSocket), StateDir: a.cfg.StateDir,
	})
}

// Leftovers lists the files of sockets of agent and node proxies, and the folder of the proxies' keys.
func Leftovers(runDir, zdsSocket string) []string {
	return []string{
		filepath.Join(runDir, api.AgentSocket), zdsSocket, zdsSocket + api.HandoverSuffix, zdsSocket + api.DepotSuffix,
		filepath.Join(filepath.Dir(zdsSocket), api.KeyDir),
	}
}

// CleanupConfig is what Cleanup works on.
type CleanupConfig struct {
	Node         Node
	Kernel       Kernel
	Probes       Probes
	Installation Installation
	// Leftovers are files and folders that go last; see the function.
	Leftovers []string
	// StateDir, if not empty, is the folder whose files of node proxies are removed; one that runs still saves no more then. The
	// folder itself stays, since it is mounted, and so does what others have in it.
	StateDir string
}

// Cleanup takes everything of the mesh away from the node at once: the plugin first, so that pods start without it, then
// the rules in every pod's network namespace, then the host's own. It needs neither the API nor a memory, and does as much
// as it can. Connections that are redirected or tunnelled are cut.
func Cleanup(ctx context.Context, c CleanupConfig) error {
	errs := []error{c.Installation.Uninstall()}
	pods, err := c.Node.All()
	errs = append(errs, err)
	var mu sync.Mutex // guards errs
	var wait sync.WaitGroup
	limit := make(chan struct{}, workers)
	for uid, list := range pods {
		wait.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			for _, netns := range list {
				err := errors.Join(c.Kernel.Remove(ctx, netns), netns.Close())
				if err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("clean pod %s: %w", uid, err))
					mu.Unlock()
				}
			}
		})
	}
	wait.Wait()
	errs = append(errs, c.Probes.Remove(ctx))
	for _, path := range c.Leftovers {
		errs = append(errs, os.RemoveAll(path))
	}
	if c.StateDir != "" {
		errs = append(errs, removeState(c.StateDir))
	}
	return errors.Join(errs...)
}

// removeState removes what node proxies saved in a folder, which need not be there. Whoever installs chooses the folder, and may have
// chosen one that is not the mesh's alone.
func removeState(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Type().IsRegular() && (e.Name() == api.StateFile || strings.HasPrefix(e.Name(), api.StatePrefix)) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
