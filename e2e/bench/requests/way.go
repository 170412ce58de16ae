package requests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// Ways from one pod to another. Those with a waypoint have its name.
const (
	bareWay   = "bare"
	tunnelWay = "two ztunnels"
)

// Programs are the binaries of the whole way.
type Programs struct{ Ztunnel, Waypoint string }

// WayReport is the outcome of RunWay.
type WayReport struct {
	Ways  []string
	Loads []Load
	// Sums are by load and way; CPU is of the ztunnels and the waypoint together.
	Sums map[string]map[string]*Sum
	// CPU is what the waypoint alone used, by load and way.
	CPU map[string]map[string]time.Duration
	// Ready is how long the process of our waypoint took until it was ready.
	Ready time.Duration
	// Memory is each waypoint's.
	Memory map[string]*Memory
	config Config
}

// way is the pods and proxies of a run.
type way struct {
	lab       *lab.Lab
	bare      *lab.Host // a client outside the mesh
	client    *lab.Pod
	addrs     map[string]string // by way
	ztunnels  []int
	waypoints map[string]int // by way
	ready     time.Duration
}

// setUp is how long the pods and proxies may take.
const setUp = 60 * time.Second

// RunWay measures the whole way from a pod by its ztunnel, a waypoint and another ztunnel to a pod on another node: with our waypoint, a
// reverse proxy of net/http between tunnels of ours, and Envoy; beside it the way without a waypoint and that without any proxy. All share
// all processors. It needs root.
func RunWay(ctx context.Context, c Config, programs Programs, progress io.Writer) (_ *WayReport, err error) {
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := buildWay(ctx, c, dir, programs)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.lab.Close()) }()
	r := &WayReport{
		Ways: []string{bareWay, tunnelWay, Waypoint, Reverse}, Loads: c.loads(), Sums: map[string]map[string]*Sum{},
		CPU: map[string]map[string]time.Duration{}, Memory: map[string]*Memory{}, Ready: w.ready, config: c,
	}
	if c.Envoy != "" {
		r.Ways = append(r.Ways, Envoy)
	}
	fmt.Fprintf(progress, "the waypoint is ready after %v\n", r.Ready.Round(time.Millisecond))
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	for name, pid := range w.waypoints {
		m := &Memory{}
		if m.Idle, err = process.Memory([]int{pid}); err != nil {
			return nil, err
		}
		r.Memory[name] = m
	}
	for _, l := range r.Loads {
		if err := r.load(ctx, w, l, progress); err != nil {
			return nil, err
		}
	}
	for _, name := range r.waypoints() {
		if err := r.Memory[name].ofMany(c, name, progress, func(l Load, s *Sum, most *uint64) error {
			l.Addr = w.addrs[name]
			return drive(ctx, c.Self, l, w.client.Start, []int{w.waypoints[name]}, s, most)
		}); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// waypoints are the ways that have one.
func (r *WayReport) waypoints() []string { return r.Ways[slices.Index(r.Ways, Waypoint):] }

// load runs all rounds of a load.
func (r *WayReport) load(ctx context.Context, w *way, l Load, progress io.Writer) error {
	sums, alone := map[string]*Sum{}, map[string]time.Duration{}
	r.Sums[l.Name()], r.CPU[l.Name()] = sums, alone
	for round := range r.config.Rounds + 1 {
		for _, name := range r.Ways {
			one, host, pids, own := l, w.client.Host, slices.Clone(w.ztunnels), []int(nil)
			one.Addr = w.addrs[name]
			if pid, ok := w.waypoints[name]; ok {
				own = []int{pid}
				pids = append(pids, pid)
			}
			if name == bareWay {
				host, pids = w.bare, nil
			}
			s := sums[name]
			if round == 0 {
				one.Duration = warmUp
				s, sums[name] = &Sum{}, &Sum{}
			}
			before, err := process.CPU(own)
			if err != nil {
				return err
			}
			if err := drive(ctx, r.config.Self, one, host.Start, pids, s, nil); err != nil {
				return fmt.Errorf("load %s on the way %q: %w", l.Name(), name, err)
			}
			after, err := process.CPU(own)
			if err != nil {
				return err
			}
			if round > 0 {
				alone[name] += after - before
			}
		}
	}
	for _, name := range r.Ways {
		fmt.Fprintf(progress, "%s: %s: %s\n", l.Name(), name, sums[name])
	}
	return nil
}

// Failed returns how many requests failed.
func (r *WayReport) Failed() (n uint64) {
	for _, sums := range r.Sums {
		for _, s := range sums {
			n += s.Failed
		}
	}
	return n
}

// Write prints the table: each figure, and our waypoint's share of those of the others.
func (r *WayReport) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "the whole way\tfigure")
	for _, name := range r.Ways {
		fmt.Fprintf(t, "\t%s", name)
	}
	others := r.waypoints()[1:]
	for _, name := range others {
		fmt.Fprintf(t, "\tof %s", name)
	}
	fmt.Fprintln(t)
	row := func(load, figure, format string, ways []string, of func(way string) float64) {
		fmt.Fprintf(t, "%s\t%s", load, figure)
		for _, name := range r.Ways {
			if slices.Contains(ways, name) {
				fmt.Fprintf(t, "\t"+format, of(name))
			} else {
				fmt.Fprint(t, "\t")
			}
		}
		for _, name := range others {
			fmt.Fprintf(t, "\t%.2f", of(Waypoint)/of(name))
		}
		fmt.Fprintln(t)
	}
	for _, l := range r.Loads {
		sums, alone := r.Sums[l.Name()], r.CPU[l.Name()]
		row(l.Name(), "CPU of all proxies for a request, us", "%.1f", r.Ways[1:], func(way string) float64 { return micro(sums[way].PerRequest()) })
		row("", "of it the waypoint's", "%.1f", r.waypoints(), func(way string) float64 {
			return micro(alone[way] / time.Duration(max(sums[way].Requests, 1)))
		})
		row("", "requests a second", "%.0f", r.Ways, func(way string) float64 { return sums[way].Rate() })
		row("", "p50, us", "%.0f", r.Ways, func(way string) float64 { return micro(median(sums[way].P50)) })
		row("", "p99, us", "%.0f", r.Ways, func(way string) float64 { return micro(median(sums[way].P99)) })
	}
	const size = 1 << 20
	row("the waypoint's memory, MiB", "idle", "%.1f", r.waypoints(), func(way string) float64 { return float64(r.Memory[way].Idle) / size })
	for _, l := range r.config.many() {
		row("", fmt.Sprintf("%d busy connections, %s", l.Connections, l.Version), "%.1f", r.waypoints(), func(way string) float64 {
			return float64(r.Memory[way].Many[l.Version]) / size
		})
	}
	fmt.Fprintf(t, "ms until it is ready\t%s\t%d\n", "", r.Ready.Milliseconds())
	return t.Flush()
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
