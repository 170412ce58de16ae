package vips

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// known is what a control plane knows, for one goroutine at a time.
type known struct {
	entries   []*cluster.ServiceEntry
	listed    int
	shortages map[cluster.Key][]cluster.Shortage
}

func (k *known) All(context.Context) ([]*cluster.ServiceEntry, error) {
	k.listed++
	return k.entries, nil
}

func (k *known) SetShortages(_ context.Context, all map[cluster.Key][]cluster.Shortage) error {
	k.shortages = all
	return nil
}

// A range without free addresses is told of, and looked at again when something has changed: not time and again.
func TestExhaustedRangeIsLeftInPeace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written := entry("written", 1, "w.example")
		written.AutoAddress, written.Addresses = false, []netip.Prefix{rangeIPv4, rangeIPv6}
		wants := entry("wants", 2, "a.example")
		k := &known{entries: []*cluster.ServiceEntry{written, wants}}
		w := New(dynamicfake.NewSimpleDynamicClient(runtime.NewScheme()), k, slog.New(slog.NewTextHandler(t.Output(), nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.Run(ctx) }()
		<-time.After(10 * time.Minute)
		synctest.Wait()
		if k.listed != 1 || len(k.shortages[wants.Key]) != 2 {
			t.Errorf("after ten minutes entries were listed %d times, want once; shortages: %v", k.listed, k.shortages)
		}
		written.Addresses = nil
		w.Notify()
		synctest.Wait()
		if k.listed < 2 || len(k.shortages) != 0 {
			t.Errorf("after a change entries were listed %d times; shortages: %v", k.listed, k.shortages)
		}
		cancel()
		<-done
	})
}
