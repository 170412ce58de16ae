package scenarios

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// Under load, over all paths together: so many new connections a second, and so many held from before the event on, which
// exchange a line every 100 ms and live on for the time "afterwards".
const (
	loadRate = 200
	loadHeld = 50
)

// loads run in both clients of a quartet: from each node to the server on the same node, to the one on the other, and to the
// service before both.
type loads struct {
	running []*harness.Load
	began   time.Time
}

// load starts connections between the pods of a quartet.
func (w *world) load(t *testing.T, label string, rate, held int) *loads {
	t.Helper()
	l := &loads{began: time.Now()}
	targets := []string{
		target(w.ips(t, harness.Pod{Namespace: w.ns, Name: "server1"})[0].String(), traffic.PortEcho),
		target(w.ips(t, harness.Pod{Namespace: w.ns, Name: "server2"})[0].String(), traffic.PortEcho),
		target(w.clusterIPs(t, w.ns, "server")[0], traffic.PortEcho),
	}
	for _, client := range []string{"client1", "client2"} {
		running, err := w.StartLoad(w.ctx, harness.Pod{Namespace: w.ns, Name: client}, traffic.LoadRequest{
			Targets: targets, Rate: rate / 2, Hold: held / 2, Label: label,
		})
		w.must(t, err)
		l.running = append(l.running, running)
	}
	return l
}

// limits are what a load may suffer.
type limits struct {
	// cut, if not nil, says whether a held connection may have been cut so.
	cut func(traffic.Failure) bool
	// lost, if not nil, says whether a request may have failed so: one on a connection that was kept and is cut.
	lost func(traffic.Failure) bool
	// failed is how many new connections from one pod may have failed.
	failed int
}

// stop ends the loads and judges them: no new connection may have failed, and no held one been cut but as the limits say.
func (l *loads) stop(t *testing.T, name string, limits limits) []traffic.LoadReport {
	t.Helper()
	var reports []traffic.LoadReport
	for _, running := range l.running {
		report, err := running.Stop()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		reports = append(reports, report)
		t.Logf("%s from %s: %s", name, running.From.Name, summary(report))
		n := report.FailedTotal()
		if limits.lost != nil {
			report.Failures = slices.DeleteFunc(report.Failures, func(f traffic.Failure) bool {
				if !limits.lost(f) {
					return false
				}
				t.Logf("%s from %s: lost as expected: %s", name, running.From.Name, f)
				n--
				return true
			})
		}
		if n > limits.failed {
			t.Errorf("%s from %s: %d of %d new connections failed %v, the first of them:\n%s",
				name, running.From, n, report.Opened, report.Failed, list(report.Failures, 10))
		}
		// Beyond that much the machine is too slow for the load, and the load proves less than it says.
		if report.Opened < report.Due*9/10 {
			t.Errorf("%s from %s: only %d new connections of %d that were due", name, running.From, report.Opened, report.Due)
		}
		cut := report.Cut
		if limits.cut != nil {
			cut = slices.DeleteFunc(slices.Clone(cut), limits.cut)
		}
		if len(cut) > 0 {
			t.Errorf("%s from %s: %d of %d held connections were cut:\n%s", name, running.From, len(cut), report.Held, list(cut, 10))
		}
	}
	return reports
}

func summary(r traffic.LoadReport) string {
	return fmt.Sprintf("%s; %d new (median %s, p99 %s, slowest %s), %d failed; %d held, %d exchanges, %d cut, longest stall %s at %s",
		r.Ended.Sub(r.Started).Round(time.Second), r.Opened, r.Median.Round(100*time.Microsecond), r.P99.Round(100*time.Microsecond),
		r.Slowest.Round(time.Millisecond), r.FailedTotal(), r.Held, r.Exchanges, len(r.Cut), r.Stall.Round(time.Millisecond), r.StallAt.Format("15:04:05.0"))
}

func list(failures []traffic.Failure, n int) string {
	var lines []string
	for _, f := range failures {
		lines = append(lines, "  "+f.String())
	}
	return strings.TrimRight(clip(lines, n), "\n")
}

// linger lets the loads run on for the time "afterwards". It waits for a clock on purpose: the claim is about that time.
func (w *world) linger(t *testing.T) { w.pass(t, afterwards) }

// pass waits for a clock.
func (w *world) pass(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-w.ctx.Done():
		t.Fatal(w.ctx.Err())
	}
}
