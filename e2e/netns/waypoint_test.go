package netns

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/requests"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestWaypointStart starts the waypoint's binary before a control plane that answers: that takes well under a second where nothing else
// uses the processors, and the process rests with less than 30 MiB.
func TestWaypointStart(t *testing.T) {
	w := newWorldOf(t, lab.IPv4)
	binary := filepath.Join(t.TempDir(), "waypoint")
	build := exec.CommandContext(w.ctx, "go", "build", "-o", binary, "github.com/ambit-mesh/ambit/waypoint/cmd/waypoint")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build waypoint: %v\n%s", err, out)
	}
	node, err := w.AddNode("node1")
	if err != nil {
		t.Fatal(err)
	}
	pod, err := node.AddPod("waypoint")
	if err != nil {
		t.Fatal(err)
	}
	w.Control.SetAddresses(pod.Address(true))
	if err := requests.Configure(w.Control, "10.1.1.1:8080", "spiffe://cluster.local/ns/default/sa/server"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p, err := pod.StartWaypoint(binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitReady(w.ctx); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	used, err := process.CPU([]int{p.PID()})
	if err != nil {
		t.Fatal(err)
	}
	if used > time.Second { // the clock would also tell what else the machine does
		t.Errorf("ready after %v of processor time (%v by the clock)", used, took)
	}
	for _, nack := range w.Control.Nacks() {
		t.Errorf("it refuses its configuration: %s", nack)
	}
	const most = 30 << 20
	var held uint64
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(ioTimeout); ; <-tick.C {
		if held, err = process.Memory([]int{p.PID()}); err != nil {
			t.Fatal(err)
		}
		if held < most {
			break
		}
		if time.Now().After(end) {
			t.Errorf("it rests with %d KiB, %d KiB are allowed", held>>10, most>>10)
			break
		}
	}
	t.Logf("ready after %v (%v of processor time), %d KiB", took, used, held>>10)
}
