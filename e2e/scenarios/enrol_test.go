package scenarios

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// enrolUnderLoad: a live namespace is enrolled and un-enrolled, twice, under load. Connections of all four phases live to the
// end, and no new one fails.
func enrolUnderLoad() scenario {
	const ns = "ambit-enrol"
	return scenario{
		name: "05-enrol-and-unenrol-under-load", manifest: "enrol.yaml", namespaces: []string{ns},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			among := w.addresses(t, ns)
			running := []*loads{w.load(t, "plain", loadRate, loadHeld)}
			names := []string{"opened before it was enrolled"}
			for round := 1; round <= 2; round++ {
				w.must(t, w.Enrol(w.ctx, ns))
				w.must(t, w.AwaitCaptured(w.ctx, ns, captured))
				all := time.Now()
				t.Logf("round %d: captured at %s", round, all.Format(time.TimeOnly))
				running = append(running, w.load(t, fmt.Sprint("enrolled ", round), 0, loadHeld))
				names = append(names, fmt.Sprintf("opened while enrolled, round %d", round))
				w.pass(t, afterwards/3)
				newInTunnels(t, captures, among, all)
				w.must(t, w.Unenrol(w.ctx, ns))
				w.must(t, w.AwaitReleased(w.ctx, ns, captured))
				t.Logf("round %d: released at %s", round, time.Now().Format(time.TimeOnly))
				w.pass(t, afterwards/3)
			}
			w.pass(t, afterwards*2/3)
			for i, l := range running {
				l.stop(t, names[i], limits{})
			}
		},
	}
}

// newInTunnels fails the test if a connection that was opened since a moment is not a tunnel.
func newInTunnels(t *testing.T, captures []*harness.Capture, among []netip.Addr, since time.Time) {
	t.Helper()
	for _, capture := range captures {
		var bare []harness.Flow
		for _, flow := range harness.NotTunnelled(capture.Flows(among...)) {
			if flow.Opened.After(since) {
				bare = append(bare, flow)
			}
		}
		if len(bare) > 0 {
			t.Errorf("%s: %d connections were opened in clear after all pods were captured (%s):\n%s", capture.Node, len(bare),
				since.Format("15:04:05.000"), harness.Describe(bare, 10))
		}
	}
}

// lastLine is the last line of what a program prints.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// midstream: the kernel forgets the connections of captured pods, or they are silent in one direction for long. Whatever
// becomes of them, their payload does not go out in clear.
func midstream() scenario {
	const ns = "ambit-midstream"
	return scenario{
		name: "12-midstream", manifest: "midstream.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			captures := w.capture(t, nodes()...)
			among := w.addresses(t, ns)
			l := w.load(t, "midstream", 20, 20)
			half := make(chan string, 2)
			for _, pair := range []pair{{"client1", "server2"}, {"client2", "server1"}} {
				from := harness.Pod{Namespace: ns, Name: pair.from}
				to := target(w.ips(t, harness.Pod{Namespace: ns, Name: pair.to})[0].String(), traffic.PortTool)
				go func() {
					report, err := harness.Do[traffic.HalfCloseReport](w.ctx, w.Cluster, from, traffic.VerbHalfClose,
						traffic.HalfCloseRequest{Target: to, Pause: 90 * time.Second})
					if err != nil {
						half <- err.Error()
					} else {
						half <- report.ClientFirst + report.ServerFirst
					}
				}()
			}
			w.pass(t, afterwards/6)
			forget := func(port int) {
				for _, name := range []string{"client1", "client2", "server1", "server2"} {
					inside, err := w.Inside(w.ctx, harness.Pod{Namespace: ns, Name: name})
					w.must(t, err)
					out, err := inside.Command(w.ctx, "conntrack", "-D", "-p", "tcp", "--dport", fmt.Sprint(port))
					w.must(t, err)
					t.Logf("%s: %s", name, lastLine(out))
				}
			}
			// Those of the held connections, on their way to the proxy and from it; not the half-closed ones.
			forget(traffic.PortEcho)
			for range 2 {
				if failed := <-half; failed != "" {
					t.Errorf("half-close with 90 s of silence: %s", failed)
				}
			}
			// Those of the tunnels, which the half-closed ones shared.
			forget(api.PortHBONE)
			w.pass(t, afterwards/6)
			// A connection that the kernel has forgotten may end; it may not go on in clear. One that was just being made is such
			// a connection, too: at most two for each time that entries were deleted.
			l.stop(t, "connections whose entries were deleted", limits{cut: func(traffic.Failure) bool { return true }, failed: 16})
			onlyTunnels(t, captures, among)
		},
	}
}
