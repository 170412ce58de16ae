// Package requests measures what an L7 proxy costs: the same requests through our waypoint, a reverse proxy of net/http, and Envoy, one
// after the other in each round, so that what the machine does meanwhile is the same for all. What counts are ratios within one run.
package requests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// Config configures a run.
type Config struct {
	// Envoy is the program to compare with; "" for none.
	Envoy string
	// Self is this program, which Run starts again: its main calls Inside.
	Self string
	// Rounds is how often each load is run on each proxy, for Duration each time.
	Rounds   int
	Duration time.Duration
	// Connections is how many there are for the memory figure.
	Connections int
	// Watch, if set, is called with the name and process of each proxy once it serves.
	Watch func(name string, pid int)
}

// Names of proxies in reports.
const (
	Waypoint = "waypoint"
	Reverse  = "net/http"
	Envoy    = "Envoy"
)

// Sum is what all rounds of a load came to on one proxy.
type Sum struct {
	Requests, Failed uint64
	// CPU is the processor time of the proxy, Took that of the clock.
	CPU, Took time.Duration
	// P50 and P99 are those of each round.
	P50, P99   []time.Duration
	FirstError string
}

// PerRequest is the processor time of one request.
func (s *Sum) PerRequest() time.Duration { return s.CPU / time.Duration(max(s.Requests, 1)) }

// Rate is requests per second.
func (s *Sum) Rate() float64 { return float64(s.Requests) / s.Took.Seconds() }

// Memory is what a proxy holds, in bytes: when nothing has come yet, and at most while many connections send requests, by version.
type Memory struct {
	Idle uint64
	Many map[Version]uint64
}

// Report is the outcome of a run.
type Report struct {
	Config  Config
	Proxies []string
	Loads   []Load
	Sums    map[string]map[string]*Sum // by load and proxy
	Memory  map[string]*Memory         // by proxy
}

// run is a run under way.
type run struct {
	Config
	cores   *cores
	proxies map[string]*program
	report  *Report
}

// many are the loads for the memory figure, without an address.
func (c Config) many() []Load {
	return []Load{
		{Version: HTTP1, Connections: c.Connections, Streams: 1, Duration: c.Duration},
		{Version: HTTP2, Connections: c.Connections, Streams: 1, Duration: c.Duration},
	}
}

// loads are those that are measured, without an address.
func (c Config) loads() []Load {
	return []Load{
		{Version: HTTP1, Connections: 32, Streams: 1, Duration: c.Duration},
		{Version: HTTP2, Connections: 4, Streams: 16, Duration: c.Duration},
	}
}

// Run measures the proxies alone: clients and backend are on loopback, in plain. It writes progress as it goes.
func Run(ctx context.Context, c Config, progress io.Writer) (_ *Report, err error) {
	r := &run{Config: c, proxies: map[string]*program{}, report: &Report{
		Config: c, Proxies: []string{Waypoint, Reverse}, Loads: c.loads(), Sums: map[string]map[string]*Sum{}, Memory: map[string]*Memory{}}}
	if c.Envoy != "" {
		r.report.Proxies = append(r.report.Proxies, Envoy)
	}
	if r.cores, err = newCores(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	behind, err := r.startSelf(r.cores.rest, asBackend, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer behind.stop()
	for _, name := range r.report.Proxies {
		p, err := r.startProxy(ctx, name, dir, behind.addr)
		if err != nil {
			return nil, err
		}
		defer p.stop()
		r.proxies[name] = p
	}
	return r.report, r.measure(ctx, progress)
}

func (r *run) startProxy(ctx context.Context, name, dir, backend string) (p *program, err error) {
	switch name {
	case Waypoint:
		p, err = r.startSelf(r.cores.proxy, asWaypoint, "127.0.0.1:0", backend)
	case Reverse:
		p, err = r.startSelf(r.cores.proxy, asReverse, "127.0.0.1:0", backend)
	default:
		p, err = r.startEnvoy(ctx, dir, backend)
	}
	if err == nil && r.Watch != nil {
		r.Watch(name, p.cmd.Process.Pid)
	}
	return p, err
}

// warmUp is how long each load runs before the first round, so that connections to the backend are there.
const warmUp = 300 * time.Millisecond

// settle is how long proxies have served until their memory is looked at for the first time.
const settle = time.Second

func (r *run) measure(ctx context.Context, progress io.Writer) error {
	if err := pause(ctx, settle); err != nil {
		return err
	}
	for _, name := range r.report.Proxies {
		idle, err := process.Memory(r.proxies[name].pid())
		if err != nil {
			return err
		}
		r.report.Memory[name] = &Memory{Idle: idle}
	}
	for _, l := range r.report.Loads {
		sums := map[string]*Sum{}
		r.report.Sums[l.Name()] = sums
		for round := range r.Rounds + 1 {
			for _, name := range r.report.Proxies {
				one := l
				if round == 0 {
					one.Duration = warmUp
					sums[name] = &Sum{}
				}
				s := sums[name]
				if round == 0 {
					s = &Sum{}
				}
				if err := r.drive(ctx, name, one, s, nil); err != nil {
					return err
				}
			}
		}
		for _, name := range r.report.Proxies {
			fmt.Fprintf(progress, "%s: %s: %s\n", l.Name(), name, sums[name])
		}
	}
	for _, name := range r.report.Proxies {
		if err := r.report.Memory[name].ofMany(r.Config, name, progress, func(l Load, s *Sum, most *uint64) error {
			return r.drive(ctx, name, l, s, most)
		}); err != nil {
			return err
		}
	}
	return nil
}

// ofMany sees how much a proxy holds while many connections send requests, as run has them.
func (m *Memory) ofMany(c Config, proxy string, progress io.Writer, run func(l Load, s *Sum, most *uint64) error) error {
	m.Many = map[Version]uint64{}
	for _, l := range c.many() {
		var s Sum
		var most uint64
		if err := run(l, &s, &most); err != nil {
			return err
		}
		m.Many[l.Version] = most
		fmt.Fprintf(progress, "memory: %s: idle %s, %d connections of %s %s (%s)\n", proxy, mib(m.Idle), l.Connections, l.Version, mib(most), &s)
	}
	return nil
}

// memoryTick is how often memory is looked at.
const memoryTick = 50 * time.Millisecond

// drive runs a load on a proxy: see drive.
func (r *run) drive(ctx context.Context, name string, l Load, sum *Sum, most *uint64) error {
	p := r.proxies[name]
	l.Addr = p.addr
	on := func(cmd *exec.Cmd) error { return start(cmd, r.cores.rest) }
	if err := drive(ctx, r.Self, l, on, p.pid(), sum, most); err != nil {
		return fmt.Errorf("load %s through %s: %w", l.Name(), name, err)
	}
	return nil
}

// drive runs a load in a process of its own, self, that on starts, and adds what came of it, and what proxies used meanwhile. most, if
// not nil, becomes the most memory that one of them held.
func drive(ctx context.Context, self string, l Load, on func(*exec.Cmd) error, proxies []int, sum *Sum, most *uint64) error {
	spec, err := json.Marshal(l)
	if err != nil {
		return err
	}
	before, err := process.CPU(proxies)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, asLoad, string(spec))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := on(cmd); err != nil {
		return fmt.Errorf("start load: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(memoryTick)
	defer tick.Stop()
	for running := true; running; {
		select {
		case err = <-ended:
			running = false
		case <-tick.C:
			if most == nil {
				continue
			}
			now, err := process.Memory(proxies)
			if err != nil {
				return err
			}
			*most = max(*most, now)
		}
	}
	if err != nil {
		return err
	}
	after, err := process.CPU(proxies)
	if err != nil {
		return err
	}
	var got Result
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		return fmt.Errorf("read what came of it: %w", err)
	}
	sum.add(got, l.Duration, after-before)
	return nil
}

func (s *Sum) add(got Result, took, cpu time.Duration) {
	s.Requests += got.Requests
	s.Failed += got.Failed
	s.CPU += cpu
	s.Took += took
	s.P50, s.P99 = append(s.P50, got.P50), append(s.P99, got.P99)
	if s.FirstError == "" {
		s.FirstError = got.FirstError
	}
}

// String is for progress.
func (s *Sum) String() string {
	text := fmt.Sprintf("%.0f/s, %.1f us of CPU each, p50 %d us, p99 %d us", s.Rate(), micro(s.PerRequest()), median(s.P50).Microseconds(), median(s.P99).Microseconds())
	if s.Failed > 0 {
		text += fmt.Sprintf(", %d FAILED (%s)", s.Failed, s.FirstError)
	}
	return text
}

func mib(n uint64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// Failed returns how many requests failed.
func (r *Report) Failed() (n uint64) {
	for _, sums := range r.Sums {
		for _, s := range sums {
			n += s.Failed
		}
	}
	return n
}

// Write prints the table: each figure, and the waypoint's share of it.
func (r *Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "load\tfigure")
	for _, name := range r.Proxies {
		fmt.Fprintf(t, "\t%s", name)
	}
	for _, name := range r.Proxies[1:] {
		fmt.Fprintf(t, "\tof %s", name)
	}
	fmt.Fprintln(t)
	row := func(load, figure, format string, of func(proxy string) float64) {
		fmt.Fprintf(t, "%s\t%s", load, figure)
		for _, name := range r.Proxies {
			fmt.Fprintf(t, "\t"+format, of(name))
		}
		for _, name := range r.Proxies[1:] {
			fmt.Fprintf(t, "\t%.2f", of(Waypoint)/of(name))
		}
		fmt.Fprintln(t)
	}
	for _, l := range r.Loads {
		sums := r.Sums[l.Name()]
		row(l.Name(), "CPU of a request, us", "%.1f", func(p string) float64 { return micro(sums[p].PerRequest()) })
		row("", "requests a second", "%.0f", func(p string) float64 { return sums[p].Rate() })
		row("", "p50, us", "%.0f", func(p string) float64 { return micro(median(sums[p].P50)) })
		row("", "p99, us", "%.0f", func(p string) float64 { return micro(median(sums[p].P99)) })
	}
	const size = 1 << 20
	row("memory, MiB", "idle", "%.1f", func(p string) float64 { return float64(r.Memory[p].Idle) / size })
	for _, l := range r.Config.many() {
		row("", fmt.Sprintf("%d busy connections, %s", l.Connections, l.Version), "%.1f", func(p string) float64 { return float64(r.Memory[p].Many[l.Version]) / size })
	}
	return t.Flush()
}

// median is the middle one of values, or the later of two.
func median(values []time.Duration) time.Duration {
	if len(values) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(values))[len(values)/2]
}
