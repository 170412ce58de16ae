package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// trafficVerb has this test binary be a traffic server or client, in a process of its own: loads must not wait for each
// other in one Go scheduler.
const trafficVerb = "ambit-traffic"

// traffic serves, or runs a load and prints its result.
func traffic(args []string) int {
	ctx := context.Background() // it is killed
	var err error
	if args[0] == "serve" {
		err = bench.Serve(ctx)
	} else {
		var l bench.Load
		var result bench.Result
		if err = json.Unmarshal([]byte(args[0]), &l); err == nil {
			if result, err = l.Run(ctx, args[1], func() {}); err == nil {
				err = json.NewEncoder(os.Stdout).Encode(result)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// spawn runs this binary as a traffic process.
func (w *world) spawn(args ...string) *exec.Cmd {
	w.t.Helper()
	self, err := os.Executable()
	w.must(err)
	cmd := exec.Command(self, append([]string{trafficVerb}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// serveTraffic starts a traffic server in a pod.
func (w *world) serveTraffic(p *lab.Pod) {
	w.t.Helper()
	cmd := w.spawn("serve")
	w.must(p.Start(cmd))
	w.OnClose(func() error {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()         // killed
		return nil
	})
	w.eventually("the traffic server in "+p.Name+" serves", func() error {
		c, err := p.Dial("127.0.0.1:5003")
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// load starts a load in a pod; the function that it returns waits for its end.
func (w *world) load(p *lab.Pod, l bench.Load, to *lab.Pod) func() (bench.Result, error) {
	w.t.Helper()
	spec, err := json.Marshal(l)
	w.must(err)
	cmd := w.spawn(string(spec), to.IPv4.String())
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(p.Start(cmd))
	return func() (bench.Result, error) {
		var result bench.Result
		body, err := io.ReadAll(out)
		err = errors.Join(err, cmd.Wait())
		if err == nil {
			err = json.Unmarshal(body, &result)
		}
		return result, err
	}
}

// TestNoisyNeighbours has one pod open 2,000 connections a second and another one send at full rate, first outside of the
// mesh and then in it. A third pod of the same nodes, always in the mesh, must not feel much of the difference, and nothing
// of it may fail. Rounds of both kinds alternate and what counts is the ratio, since the machine has other work too.
func TestNoisyNeighbours(t *testing.T) {
	if raceDetector() {
		t.Skip("skipped: with the race detector, times say nothing")
	}
	// most is the bar: times the p99 with the same loads outside of the mesh. In the short form a few stalls of the machine make
	// the p99, so that its bar only tells whether the work is shared at all: it was 12 to 17 times when it was shared too late. It
	// is measured again, twice at the most, before that is said.
	rounds, length, most, again := 5, 2*time.Second, 9.0, 2
	if soak() {
		rounds, length, most, again = 10, 20*time.Second, 5, 0
	}
	w := newWorld(t)
	n1, n2 := w.node("node1", "ZTUNNEL_WORKER_THREADS=2"), w.node("node2", "ZTUNNEL_WORKER_THREADS=2")
	make2 := func(name string, add func(*lab.Node, string) *lab.Pod) pair {
		p := pair{add(n1, name+"-client"), add(n2, name+"-server")}
		w.serveTraffic(p.server)
		return p
	}
	quiet := make2("quiet", w.captured)
	loads := [2][2]pair{
		{make2("outside-storm", w.pod), make2("outside-bulk", w.pod)},
		{make2("storm", w.captured), make2("bulk", w.captured)},
	}
	w.settle()
	ratio := w.noise(rounds, length, quiet, loads)
	for ; ratio > most && again > 0; again-- {
		ratio = w.noise(rounds, length, quiet, loads)
	}
	if ratio > most {
		t.Errorf("p99 of a third pod is %.1f times what it is with the loads outside of the mesh, want at most %.0f times", ratio, most)
	}
}

// pair is a client and the server that it talks to.
type pair struct{ client, server *lab.Pod }

// noise measures the quiet pair's p99 beside each of two kinds of loads (a storm of new connections, and one at full rate), and
// returns how many times that of the first is that of the second.
func (w *world) noise(rounds int, length time.Duration, quiet pair, loads [2][2]pair) float64 {
	w.t.Helper()
	const (
		storms = 2000
		warm   = time.Second
	)
	names := [2]string{"outside of the mesh", "in the mesh"}
	var p99 [2][]time.Duration
	for range rounds {
		for i, l := range loads {
			storm := w.load(l[0].client, bench.Load{Name: "storm", Kind: "storm", PerSecond: storms, Duration: warm + length}, l[0].server)
			bulk := w.load(l[1].client, bench.Load{Name: "bulk", Kind: "send", Parallel: 1, Duration: warm + length}, l[1].server)
			<-time.After(warm)
			got, err := w.load(quiet.client, bench.Load{Name: "quiet", Kind: "pingpong", Parallel: 1, Duration: length}, quiet.server)()
			if err != nil || got.Failed > 0 || got.Ops == 0 {
				w.t.Fatalf("loads %s: ping-pong of the third pod: %+v, %v", names[i], got, err)
			}
			p99[i] = append(p99[i], got.P99)
			s, err := storm()
			w.must(err)
			b, err := bulk()
			w.must(err)
			w.t.Logf("loads %s: ping-pong %.0f/s, p50 %v, p99 %v; storm %.0f/s, %d failed %s; bulk %.2f Gb/s", names[i],
				got.Rate, got.P50, got.P99, s.Rate, s.Failed, s.FirstError, b.Rate*8/1e9)
			if s.Ops == 0 || b.Bytes == 0 {
				w.t.Errorf("loads %s: they did nothing: %+v, %+v", names[i], s, b)
			}
		}
	}
	for i := range p99 {
		slices.Sort(p99[i])
	}
	outside, inside := p99[0][rounds/2], p99[1][rounds/2]
	ratio := float64(inside) / float64(outside)
	w.t.Logf("median p99: %v outside, %v inside, ratio %.2f", outside, inside, ratio)
	return ratio
}
