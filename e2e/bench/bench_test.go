package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestMain is also the programs that run inside the pods: see site.start.
func TestMain(m *testing.M) {
	if inside, err := Inside(context.Background(), os.Args[1:], os.Stdout); inside {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// newSite builds our proxy, and two pods on two nodes with it between them.
func newSite(b *testing.B) (*site, context.Context) {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("skipped: network namespaces need root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	b.Cleanup(cancel)
	dir := b.TempDir()
	binary := filepath.Join(dir, "ztunnel")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/ambit-mesh/ambit/ztunnel/cmd/ztunnel").CombinedOutput(); err != nil {
		b.Fatalf("build ztunnel: %v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	if err := lab.Clear(); err != nil {
		b.Fatal(err)
	}
	s, err := Path{Name: "ambit", Client: binary, Server: binary}.build(ctx, self, dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.close(); err != nil {
			b.Error(err)
		}
	})
	return s, ctx
}

// BenchmarkFirstByte opens connections for a second, one at a time, each until the first byte of the answer and the end: the
// proxies accept it, open a stream on a tunnel that stands, and connect to the application.
func BenchmarkFirstByte(b *testing.B) {
	s, ctx := newSite(b)
	var sum Sample
	var p50 time.Duration
	for b.Loop() {
		sample, err := s.drive(ctx, Load{Name: "connect", Kind: "connect", Parallel: 1, Duration: time.Second})
		if err != nil {
			b.Fatal(err)
		}
		if sample.Failed > 0 || sample.Ops == 0 {
			b.Fatalf("%d of %d connections failed: %s", sample.Failed, sample.Ops+sample.Failed, sample.FirstError)
		}
		sum.Ops += sample.Ops
		sum.CPU += sample.CPU
		p50 += sample.P50
	}
	b.ReportMetric(0, "ns/op") // it says how long the load ran
	b.ReportMetric(float64(p50.Microseconds())/float64(b.N), "p50-us/conn")
	b.ReportMetric(float64(sum.CPU.Microseconds())/float64(sum.Ops), "proxies-cpu-us/conn")
}

// BenchmarkIdleConnections opens 10,000 connections that then say nothing, and reports the resident memory of the larger proxy.
func BenchmarkIdleConnections(b *testing.B) {
	s, ctx := newSite(b)
	if err := process.RaiseLimit(); err != nil {
		b.Fatal(err)
	}
	const mib = 1 << 20
	idle, err := process.Memory(s.proxies)
	if err != nil {
		b.Fatal(err)
	}
	var held Sample
	for b.Loop() {
		if held, err = s.drive(ctx, Load{Name: "hold", Kind: "hold", Parallel: 10_000, Duration: time.Second}); err != nil {
			b.Fatal(err)
		}
		if held.Failed > 0 {
			b.Fatalf("%d connections failed: %s", held.Failed, held.FirstError)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(idle)/mib, "idle-MiB")
	b.ReportMetric(float64(held.Memory)/mib, "held-MiB")
}
