package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// Config configures a run.
type Config struct {
	// Ztunnel is our binary; Peer another one, or empty.
	Ztunnel, Peer string
	// Duration of each load.
	Duration time.Duration
	// Connections to hold for the memory figures.
	Connections int
	// Workloads for the memory figure of a large mesh; none if zero.
	Workloads int
	// Only names the paths to run, "ambit:one node" for "ambit, one node", and Loads the loads; all if empty. Memory is measured only if all loads are run.
	Only, Loads []string
	// Self is this program, which runs again inside the pods.
	Self string
}

func (c Config) loads() []Load {
	d := c.Duration
	all := []Load{
		{Name: "one stream, client to server", Kind: "send", Parallel: 1, Duration: d},
		{Name: "eight streams", Kind: "send", Parallel: 8, Duration: d},
		{Name: "one stream, server to client", Kind: "receive", Parallel: 1, Duration: d},
		{Name: "1 KiB ping-pong, one connection", Kind: "pingpong", Parallel: 1, Duration: d},
		{Name: "1 KiB ping-pong, 64 connections", Kind: "pingpong", Parallel: 64, Duration: d},
		{Name: "new connection + 1 byte, one at a time", Kind: "connect", Parallel: 1, Duration: d},
		{Name: "new connection + 1 byte, 32 at a time", Kind: "connect", Parallel: 32, Duration: d},
	}
	if len(c.Loads) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(l Load) bool { return !slices.Contains(c.Loads, fmt.Sprint(l.Kind, l.Parallel)) })
}

func (c Config) paths() []Path {
	out := []Path{
		{Name: "bare"},
		{Name: "plain proxies", Plain: true},
		{Name: "ambit", Client: c.Ztunnel, Server: c.Ztunnel},
		{Name: "ambit, one node", Client: c.Ztunnel, Server: c.Ztunnel, SameNode: true},
	}
	if c.Peer != "" {
		out = append(out,
			Path{Name: "peer", Client: c.Peer, Server: c.Peer},
			Path{Name: "peer, one node", Client: c.Peer, Server: c.Peer, SameNode: true},
			Path{Name: "ambit to peer", Client: c.Ztunnel, Server: c.Peer},
			Path{Name: "peer to ambit", Client: c.Peer, Server: c.Ztunnel},
		)
	}
	if len(c.Only) == 0 {
		return out
	}
	var kept []Path
	for _, p := range out {
		for _, name := range c.Only {
			if strings.ReplaceAll(p.Name, ", ", ":") == name {
				kept = append(kept, p)
			}
		}
	}
	return kept
}

// memory is what a path's proxies hold, in bytes.
type memory struct{ idle, open, after, crowd uint64 }

// Report is the outcome of a run.
type Report struct {
	Paths   []Path
	Loads   []Load
	Samples map[string]map[string]Sample // by path and load
	memory  map[string]memory
	config  Config
}

// Run runs every load on every path, one at a time. It writes progress as it goes.
func Run(ctx context.Context, c Config, progress io.Writer) (*Report, error) {
	r := &Report{Paths: c.paths(), Loads: c.loads(), Samples: map[string]map[string]Sample{}, memory: map[string]memory{}, config: c}
	for _, p := range r.Paths {
		fmt.Fprintf(progress, "%s:\n", p.Name)
		if err := r.path(ctx, p, progress); err != nil {
			return nil, fmt.Errorf("path %s: %w", p.Name, err)
		}
	}
	return r, nil
}

func (r *Report) path(ctx context.Context, p Path, progress io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := p.build(ctx, r.config.Self, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var m memory
	if m.idle, err = process.Memory(s.proxies); err != nil {
		return err
	}
	r.Samples[p.Name] = map[string]Sample{}
	for _, l := range r.Loads {
		sample, err := s.drive(ctx, l)
		if err != nil {
			return err
		}
		r.Samples[p.Name][l.Name] = sample
		fmt.Fprintf(progress, "  %-42s %s\n", l.Name, describe(l, sample))
	}
	if p.Client == "" || p.SameNode || len(r.config.Loads) > 0 {
		return nil
	}
	held, err := s.drive(ctx, Load{Name: "hold", Kind: "hold", Parallel: r.config.Connections, Duration: time.Second})
	if err != nil {
		return err
	}
	if held.Failed > 0 {
		fmt.Fprintf(progress, "  %d of %d connections failed: %s\n", held.Failed, r.config.Connections, held.FirstError)
	}
	m.open = held.Memory
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	if m.after, err = process.Memory(s.proxies); err != nil {
		return err
	}
	if r.config.Workloads > 0 {
		s.lab.Control.SetAddresses(crowd(r.config.Workloads)...)
		if err := pause(ctx, 15*time.Second); err != nil {
			return err
		}
		if m.crowd, err = process.Memory(s.proxies); err != nil {
			return err
		}
	}
	r.memory[p.Name] = m
	fmt.Fprintf(progress, "  memory: idle %s, %d connections %s, 10 s after %s\n", mib(m.idle), r.config.Connections, mib(m.open), mib(m.after))
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func describe(l Load, s Sample) string {
	out := ""
	switch l.Kind {
	case "send", "receive":
		out = fmt.Sprintf("%.1f Gb/s", s.Rate*8/1e9)
		if s.Bytes > 0 && s.CPU > 0 {
			out += fmt.Sprintf(", %.2f s of CPU per GB", s.CPU.Seconds()/(float64(s.Bytes)/1e9))
		}
	default:
		out = fmt.Sprintf("%.0f/s, p50 %d us, p99 %d us", s.Rate, s.P50.Microseconds(), s.P99.Microseconds())
		if s.Ops > 0 && s.CPU > 0 {
			out += fmt.Sprintf(", %d us of CPU each", s.CPU.Microseconds()/int64(s.Ops))
		}
	}
	if s.Failed > 0 {
		out += fmt.Sprintf(", %d FAILED (%s)", s.Failed, s.FirstError)
	}
	return out
}

func mib(n uint64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

// Write prints the table: each cell is the figure and its ratio to bare TCP.
func (r *Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := []string{"load"}
	for _, p := range r.Paths {
		head = append(head, p.Name)
	}
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, l := range r.Loads {
		row := []string{l.Name}
		for _, p := range r.Paths {
			s := r.Samples[p.Name][l.Name]
			cell := fmt.Sprintf("%.0f/s %dus", s.Rate, s.P50.Microseconds())
			if l.Kind == "send" || l.Kind == "receive" {
				cell = fmt.Sprintf("%.1f Gb/s", s.Rate*8/1e9)
			}
			if bare, ok := r.Samples["bare"][l.Name]; ok && p.Name != "bare" && bare.Rate > 0 {
				cell += fmt.Sprintf(" (%.2f)", s.Rate/bare.Rate)
			}
			if s.Failed > 0 {
				cell += fmt.Sprintf(" %d failed", s.Failed)
			}
			row = append(row, cell)
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	for _, l := range r.Loads {
		row := []string{"CPU: " + l.Name}
		for _, p := range r.Paths {
			s := r.Samples[p.Name][l.Name]
			switch {
			case s.CPU == 0:
				row = append(row, "-")
			case l.Kind == "send" || l.Kind == "receive":
				row = append(row, fmt.Sprintf("%.2f s/GB", s.CPU.Seconds()/(float64(s.Bytes)/1e9)))
			default:
				row = append(row, fmt.Sprintf("%d us each", s.CPU.Microseconds()/int64(max(s.Ops, 1))))
			}
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	for _, line := range []struct {
		name string
		of   func(memory) uint64
	}{
		{"memory idle", func(m memory) uint64 { return m.idle }},
		{fmt.Sprintf("memory, %d connections", r.config.Connections), func(m memory) uint64 { return m.open }},
		{"memory 10 s after", func(m memory) uint64 { return m.after }},
		{fmt.Sprintf("memory, %d workloads", r.config.Workloads), func(m memory) uint64 { return m.crowd }},
	} {
		row := []string{line.name}
		for _, p := range r.Paths {
			if n := line.of(r.memory[p.Name]); n > 0 {
				row = append(row, mib(n))
			} else {
				row = append(row, "-")
			}
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}
