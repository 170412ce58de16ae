package scenarios

import (
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// shapes: server-first, half-close, reset, a long transfer and many at once arrive as what they are.
func shapes() scenario {
	const ns = "ambit-shapes"
	return scenario{
		name: "04-shapes-of-connections", manifest: "shapes.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			ns := w.ns
			captures := w.capture(t, nodes()...)
			var wg sync.WaitGroup
			for _, pair := range w.crossings() {
				from := harness.Pod{Namespace: ns, Name: pair.from}
				to := w.ips(t, harness.Pod{Namespace: ns, Name: pair.to})[0].String()
				wg.Go(func() { w.smallShapes(t, from, to) })
			}
			wg.Wait()
			stop(t, captures) // no capture keeps up with what comes now
			onlyTunnels(t, captures, w.addresses(t, ns))
			for _, pair := range []pair{{"client1", "server1"}, {"client1", "server2"}, {"client2", "server1"}} {
				from := harness.Pod{Namespace: ns, Name: pair.from}
				w.largeShapes(t, from, pair.to, w.ips(t, harness.Pod{Namespace: ns, Name: pair.to})[0].String())
			}
		},
	}
}

// smallShapes may run beside the test's own goroutine: it only reports errors.
func (w *world) smallShapes(t *testing.T, from harness.Pod, to string) {
	outcomes, err := w.Dial(w.ctx, from, traffic.DialRequest{Attempts: []traffic.Attempt{
		{Target: target(to, traffic.PortGreeter), Protocol: traffic.ProtocolGreeter},
	}})
	if err != nil || outcomes[0].Kind != "" {
		t.Errorf("server-first from %s to %s: %+v, %v", from, to, outcomes, err)
	}
	tool := target(to, traffic.PortTool)
	half, err := harness.Do[traffic.HalfCloseReport](w.ctx, w.Cluster, from, traffic.VerbHalfClose,
		traffic.HalfCloseRequest{Target: tool, Pause: 3 * time.Second})
	if err != nil || half != (traffic.HalfCloseReport{}) {
		t.Errorf("half-close from %s to %s: %+v, %v", from, to, half, err)
	}
	reset, err := harness.Do[traffic.ResetReport](w.ctx, w.Cluster, from, traffic.VerbReset, traffic.ResetRequest{Target: tool})
	want := traffic.ResetReport{ByClient: traffic.KindReset, ByServer: traffic.KindReset}
	if err != nil || reset != want {
		t.Errorf("reset from %s to %s: the other side saw %+v, want %+v; %v", from, to, reset, want, err)
	}
}

func (w *world) largeShapes(t *testing.T, from harness.Pod, name, to string) {
	t.Helper()
	transfer, err := harness.Do[traffic.TransferReport](w.ctx, w.Cluster, from, traffic.VerbTransfer,
		traffic.TransferRequest{Target: target(to, traffic.PortTool), Bytes: 1 << 30})
	if err != nil {
		t.Errorf("1 GiB from %s to %s and back: %v", from, name, err)
	} else {
		t.Logf("1 GiB from %s to %s in %s, back in %s", from.Name, name, transfer.Up.Round(time.Millisecond), transfer.Down.Round(time.Millisecond))
	}
	burst, err := harness.Do[traffic.BurstReport](w.ctx, w.Cluster, from, traffic.VerbBurst,
		traffic.BurstRequest{Targets: []string{target(to, traffic.PortEcho)}, Connections: 1000})
	if err != nil || burst.OK != 1000 {
		t.Errorf("1000 connections at once from %s to %s: %d worked, %v\n%s\n%v", from, name, burst.OK, burst.Failed, list(burst.Failures, 10), err)
	} else {
		t.Logf("1000 connections at once from %s to %s in %s", from.Name, name, burst.Took.Round(time.Millisecond))
	}
}
