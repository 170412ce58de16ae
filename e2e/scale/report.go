package scale

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// peer10k and peer100k are what a real Istio control plane of August 2026 took on a machine of two cores, and bar what is asked of
// ours at 100,000 pods.
type row struct{ what, ours, bar, peer10k, peer100k string }

// Write prints the table.
func (r *Result) Write(w io.Writer) error {
	rate := float64(r.Changes) / max(r.ChangeTime.Seconds(), 0.001)
	rows := []row{
		{"start until ready", span(r.Ready), "at most 12.2 s", "2.7 s", "24.5 s"},
		{"  processor time", span(r.ReadyCPU), "", "2 s", "40 s"},
		{"  memory (RSS; its peak)", mib(r.ReadyRSS) + "; " + mib(r.ReadyMax), "at most 1,485 MiB", "430 MiB", "2,970 MiB"},
		{"full snapshot to a node proxy", span(r.Snapshot), "", "0.11 s", "2.2 s"},
		{"  what it is", fmt.Sprintf("%d resources, %s", r.SnapshotResources, mib(uint64(r.SnapshotBytes))), "", "", ""},
		{"created pod seen, p50", span(percentile(r.Seen, 50)), "at most 20 ms", "108 ms", "107 ms"},
		{"created pod seen, p99", span(percentile(r.Seen, 99)), "at most 100 ms", "116 ms", "5.5 s"},
		{"  of it the API server's answer, p50, p99", span(percentile(r.Answered, 50)) + ", " + span(percentile(r.Answered, 99)), "", "", ""},
		{"reconnect: resources sent, of those that differ", fmt.Sprintf("%d of %d", r.Resent, r.Differing), "all of them, no more", "", ""},
		{"  bytes received; sent (versions)", fmt.Sprintf("%d; %d", r.ResentBytes, r.VersionBytes), "", "", ""},
		{"storm: changes a second by the API server", fmt.Sprintf("%.0f, %d in all", rate, r.Changes), "", "", ""},
		{"  states sent; the last after", fmt.Sprintf("%d; %s", r.States, span(r.Lag)), "in order, the last always", "", ""},
		{"  memory: peak; at the end", mib(r.StormMax) + "; " + mib(r.LastRSS), "bounded", "", "3,690 MiB"},
		{"  processor time of istiod-lite", span(r.StormCPU), "", "", ""},
		{"ztunnel: start until it has everything", span(r.Ztunnel), "", "", ""},
		{"  its memory: 10 s later; then; peak", mib(r.ZtunnelRested) + "; " + mib(r.ZtunnelRSS) + "; " + mib(r.ZtunnelPeak), "at most 200 MiB", "", "221 MiB"},
		{"the subscriber's memory: at rest; after all changes; peak", mib(r.ProxyRSS) + "; " + mib(r.ProxyLast) + "; " + mib(r.ProxyMax), "at most 200 MiB", "", "221 MiB"},
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\tambit, %d pods\tasked at 100,000\tIstio, 10,000\tIstio, 100,000\n", r.Pods)
	for _, x := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", x.what, x.ours, x.bar, x.peer10k, x.peer100k)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "Istio's figures are of another run, on another day: a reference. Its node proxy's is Rust ztunnel's, idle.")
	return err
}

// percentile returns the smallest value that p percent of all do not exceed; 0 of none.
func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)*p+99)/100-1]
}

func span(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= 100*time.Millisecond:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func mib(n uint64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
