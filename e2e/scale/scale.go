// Package scale measures the control plane with many pods: a real API server and etcd without nodes, filled from a cache, istiod-lite
// started against it, and one node proxy that subscribes to everything, each a process of its own, on loopback. It needs no root.
// Everything that it starts ends with it.
package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/scale/subscriber"
)

// Config configures a run. All fields are required.
type Config struct {
	// Pods is how many there are; at least minPods.
	Pods int
	// Programs is the folder of etcd and kube-apiserver.
	Programs string
	// Build makes the binaries to measure, in a folder that goes with the run, however that ends.
	Build func(ctx context.Context, dir string) (Binaries, error)
	// Created is how many pods are created one after another.
	Created int
	// Storm is how long pods are changed as fast as the API server takes it.
	Storm time.Duration
	// Report takes progress.
	Report io.Writer
}

// Binaries are paths of what is measured: istiod-lite, a node proxy that only learns, and ztunnel.
type Binaries struct{ ControlPlane, Subscriber, Ztunnel string }

// What is changed in the storm, and while the node proxy is away.
const (
	stormPods  = 1000
	awayPods   = 10 // changed, and half as many each created and deleted
	minPods    = 100
	seenLimit  = time.Minute
	startGrace = 10 * time.Minute
)

// Result is what was measured. Sizes are bytes.
type Result struct {
	Pods, Services int
	// Ready is from the start of the process until /ready says so; the others are of the same moment.
	Ready              time.Duration
	ReadyCPU           time.Duration
	ReadyRSS, ReadyMax uint64
	// Snapshot is from the proxy's first attempt to connect until it has everything.
	Snapshot          time.Duration
	SnapshotResources int
	SnapshotBytes     int64
	ProxyRSS          uint64 // at rest, after the snapshot
	ProxyMax          uint64
	// Seen is from the request that gives a pod its address until the proxy has it; Answered until the API server has answered.
	Seen, Answered []time.Duration
	// Differing resources, and what was sent when the proxy came back.
	Differing, Resent         int
	ResentBytes, VersionBytes int64
	// The storm: changes, over that time; states that the proxy saw; and how long after the last change it had all of them.
	Changes, States   int
	ChangeTime, Lag   time.Duration
	StormMax, LastRSS uint64 // of istiod-lite: the peak in the storm, and at the end
	StormCPU          time.Duration
	ProxyLast         uint64
	// Of ztunnel itself, started when all else is over: from its start until it has everything, and its memory then, after
	// restTime, and at its peak.
	Ztunnel                                time.Duration
	ZtunnelRSS, ZtunnelRested, ZtunnelPeak uint64
}

// Run measures. It returns an error if anything that is promised at every size does not hold: a change that never arrives, or
// changes of one resource out of order.
func Run(ctx context.Context, c Config) (_ *Result, err error) {
	if c.Pods < minPods {
		return nil, fmt.Errorf("%d pods: want at least %d", c.Pods, minPods)
	}
	cache, err := openCache()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cache.release()) }()
	dir, err := cache.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binaries, err := c.Build(ctx, dir)
	if err != nil {
		return nil, err
	}
	etcd := filepath.Join(dir, "etcd")
	if err := cache.get(ctx, c, dir, etcd); err != nil {
		return nil, err
	}
	fmt.Fprintln(c.Report, "start etcd and the API server on a copy")
	s, err := startServer(ctx, c.Programs, etcd, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.expect(ctx, c.Pods); err != nil {
		return nil, err
	}
	f, err := newFiller(s, c.Report)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(c.Report, "wait until the API server has read all pods itself")
	if err := f.warm(ctx); err != nil {
		return nil, err
	}
	m := &measurement{config: c, binaries: binaries, server: s, filler: f, dir: dir, result: &Result{Pods: c.Pods, Services: services(c.Pods)}}
	defer func() { err = errors.Join(err, m.stop()) }()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"start istiod-lite", m.ready},
		{"subscribe a node proxy to everything", m.snapshot},
		{fmt.Sprintf("create %d pods one after another", c.Created), m.create},
		{"cut the node proxy off, change some pods, let it come back", m.reconnect},
		{fmt.Sprintf("change %d pods again and again for %s", min(stormPods, c.Pods-2*awayPods), c.Storm), m.storm},
		{"start ztunnel, which subscribes to everything", m.ztunnel},
	} {
		fmt.Fprintln(c.Report, step.name)
		if err := step.run(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return m.result, nil
}

type measurement struct {
	config   Config
	binaries Binaries
	server   *server
	filler   *filler
	dir      string
	result   *Result
	control  *process
	xds      string
	proxy    *proxy
}

func (m *measurement) stop() error {
	var errs []error
	if m.proxy != nil {
		errs = append(errs, m.proxy.stop())
	}
	if m.control != nil {
		errs = append(errs, m.control.stop())
	}
	return errors.Join(errs...)
}

func (m *measurement) ready(ctx context.Context) error {
	var addrs [3]string
	var err error
	for i := range addrs {
		if addrs[i], err = freePort(); err != nil {
			return err
		}
	}
	m.xds = "http://" + addrs[0]
	begin := time.Now()
	m.control, err = start("istiod-lite", filepath.Join(m.dir, "istiod-lite.log"), nil, nil, nil, m.binaries.ControlPlane,
		"--kubeconfig="+m.server.kubeconfig, "--namespace="+api.DefaultNamespace, "--plaintext-addr="+addrs[0], "--grpc-addr="+addrs[1],
		"--monitoring-addr="+addrs[2], "--debug-addr=", "--drain-delay=0s")
	if err != nil {
		return err
	}
	err = m.control.await(ctx, "is ready", startGrace, func(ctx context.Context) error {
		return get(ctx, http.DefaultClient, "http://"+addrs[2]+"/ready")
	})
	if err != nil {
		return err
	}
	r := m.result
	r.Ready = time.Since(begin)
	u, err := m.control.usage()
	r.ReadyCPU, r.ReadyRSS, r.ReadyMax = u.cpu, u.rss, u.peak
	return err
}

func (m *measurement) snapshot(ctx context.Context) error {
	var err error
	if m.proxy, err = startProxy(m.binaries.Subscriber, m.xds, m.dir); err != nil {
		return err
	}
	e, err := m.proxy.awaitKind(ctx, subscriber.Synced, startGrace)
	if err != nil {
		return err
	}
	t, err := m.proxy.now()
	if err != nil {
		return err
	}
	r := m.result
	r.Snapshot, r.SnapshotResources, r.SnapshotBytes = e.Took, t.resources, t.received
	if want := r.Pods + r.Services; r.SnapshotResources < want {
		return fmt.Errorf("the first snapshot has %d resources; there are %d pods and services", r.SnapshotResources, want)
	}
	u, err := m.rest(ctx)
	r.ProxyRSS, r.ProxyMax = u.rss, u.peak
	return err
}

// rest has the proxy give back what it does not use, and returns what it uses then.
func (m *measurement) rest(ctx context.Context) (usage, error) {
	if err := m.proxy.say(subscriber.Rest); err != nil {
		return usage{}, err
	}
	if _, err := m.proxy.awaitKind(ctx, subscriber.Rested, seenLimit); err != nil {
		return usage{}, err
	}
	return m.proxy.process.usage()
}

func (m *measurement) create(ctx context.Context) error {
	for i := range m.config.Created {
		p := pod(m.config.Pods + i)
		created, err := m.filler.create(ctx, p)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := m.filler.run(ctx, p, created); err != nil {
			return err
		}
		m.result.Answered = append(m.result.Answered, time.Since(begin))
		at, err := m.proxy.awaitRevision(ctx, p.resource(), "", seenLimit)
		if err != nil {
			return err
		}
		m.result.Seen = append(m.result.Seen, at.Sub(begin))
	}
	return nil
}

func (m *measurement) reconnect(ctx context.Context) error {
	if err := m.proxy.say(subscriber.Cut); err != nil {
		return err
	}
	if _, err := m.proxy.awaitKind(ctx, subscriber.Ended, seenLimit); err != nil {
		return err
	}
	before, err := m.proxy.now()
	if err != nil {
		return err
	}
	const changed, made = awayPods, awayPods / 2
	fresh := m.config.Pods + m.config.Created
	for i := range changed {
		o, err := m.pod(ctx, pod(i))
		if err != nil {
			return err
		}
		if _, err := m.filler.revise(ctx, o, "0"); err != nil {
			return err
		}
	}
	for i := range made {
		created, err := m.filler.create(ctx, pod(fresh+i))
		if err != nil {
			return err
		}
		if err := m.filler.run(ctx, pod(fresh+i), created); err != nil {
			return err
		}
		if err := m.filler.remove(ctx, pod(changed+i)); err != nil {
			return err
		}
	}
	if err := m.proxy.say(subscriber.Join); err != nil {
		return err
	}
	err = m.proxy.await(ctx, "knows what changed while it was away", seenLimit, func() bool {
		for i := range changed {
			if m.proxy.known[pod(i).resource()].revision != "0" {
				return false
			}
		}
		for i := range made {
			s, ok := m.proxy.known[pod(fresh+i).resource()]
			if !ok || s.removed || !m.proxy.known[pod(changed+i).resource()].removed {
				return false
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	after, err := m.proxy.now()
	if err != nil {
		return err
	}
	d := after.since(before)
	r := m.result
	r.Differing, r.Resent, r.ResentBytes, r.VersionBytes = changed+2*made, d.resources, d.received, d.sent
	return nil
}

func (m *measurement) pod(ctx context.Context, p pod) (*corev1.Pod, error) {
	return m.filler.core.CoreV1().Pods(p.namespace()).Get(ctx, p.name(), metav1.GetOptions{})
}

// storm changes pods as fast as the API server takes it. Each pod is changed by one worker, so that its revisions are in order.
func (m *measurement) storm(ctx context.Context) error {
	first := 2 * awayPods // behind those that were deleted
	pods := make([]*corev1.Pod, min(stormPods, m.config.Pods-first))
	err := m.filler.each(ctx, "storm", len(pods), func(ctx context.Context, i int) (err error) {
		pods[i], err = m.pod(ctx, pod(first+i))
		return err
	})
	if err != nil {
		return err
	}
	if err := m.control.resetPeak(); err != nil {
		return err
	}
	used, err := m.control.usage()
	if err != nil {
		return err
	}
	before, err := m.proxy.now()
	if err != nil {
		return err
	}
	revisions := make([]int, len(pods))
	begin := time.Now()
	group, stop := errgroup.WithContext(ctx)
	for w := range atOnce {
		group.Go(func() (err error) {
			for revision := 1; ; revision++ {
				for i := w; i < len(pods); i += atOnce {
					if time.Since(begin) > m.config.Storm {
						return nil
					}
					if pods[i], err = m.filler.revise(stop, pods[i], strconv.Itoa(revision)); err != nil {
						return err
					}
					revisions[i] = revision
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	end := time.Now()
	r := m.result
	r.ChangeTime = end.Sub(begin)
	var last time.Time
	for i, revision := range revisions {
		r.Changes += revision
		if revision == 0 {
			continue
		}
		at, err := m.proxy.awaitRevision(ctx, pod(first+i).resource(), strconv.Itoa(revision), seenLimit)
		if err != nil {
			return err
		}
		last = slices.MaxFunc([]time.Time{last, at}, time.Time.Compare)
	}
	r.Lag = max(0, last.Sub(end))
	after, err := m.proxy.now()
	if err != nil {
		return err
	}
	r.States = after.since(before).resources
	u, err := m.control.usage()
	if err != nil {
		return err
	}
	r.StormMax, r.LastRSS, r.StormCPU = u.peak, u.rss, u.cpu-used.cpu
	u, err = m.rest(ctx)
	r.ProxyLast = u.rss
	return err
}
