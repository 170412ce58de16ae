package state

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// A loop that cannot go on keeps a bounded number of events, and then whoever posts waits; nothing is lost, and events of one
// object stay in order.
func TestPostWaitsForTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, rounds = 10, 2000 // far more events than there is room for
		blocked, told := make(chan struct{}), map[string]int{}
		var held bool
		l := NewLoop(LoopConfig{
			Kinds: []cluster.Kind{cluster.KindPod}, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
			Report: func(Report) {},
			Publish: func(c resource.Change) {
				if held {
					<-blocked
				}
				held = true // from the second change on
				for _, r := range c.Upserts {
					told[r.Name]++
				}
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		l.Post(cluster.Event{Kind: cluster.KindPod, Op: cluster.Replace})
		<-l.Ready()
		posted := 0
		poster := make(chan struct{})
		go func() {
			defer close(poster)
			for i := range nodes * rounds {
				p := &cluster.Pod{
					Key: cluster.Key{Namespace: "shop", Name: fmt.Sprint("p", i%nodes)}, Ready: true, Node: "n",
					IPs:    []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i%nodes + 1)})},
					Labels: cluster.LabelsOf(map[string]string{"app": fmt.Sprint(i / nodes)}),
				}
				l.Post(cluster.Event{Kind: cluster.KindPod, Op: cluster.Upsert, Key: p.Key, Object: p})
				posted++
			}
		}()
		synctest.Wait()
		if limit := maxQueued + maxBatch + 1; posted > limit {
			t.Errorf("%d events were taken while nothing could be published, want at most %d", posted, limit)
		}
		close(blocked)
		<-poster
		synctest.Wait()
		for i := range nodes {
			key := cluster.Key{Namespace: "shop", Name: fmt.Sprint("p", i)}
			if err := l.Do(ctx, func(s *State) {
				if got := s.pods[key].Labels.Get("app"); got != fmt.Sprint(rounds-1) {
					t.Errorf("%s is at change %s, want the last, %d", key, got, rounds-1)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		<-done
		t.Logf("%d events, %d resources", posted, len(told))
	})
}
